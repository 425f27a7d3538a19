"""Adam over the rows of a table, in one fused pass that can skip the rows a view did not touch.

Splats come and go while they are fitted, so the optimiser owns the parameters and moves its moments with their rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import prange
from torch import Tensor

from scenetx.splat.cpu_jit import kernel

BETA1, BETA2, EPS = 0.9, 0.999, 1e-15  # as 3DGS; gradients of splats are tiny, so eps must be tinier
_LEAST_ROWS = 256
_BLOCK = 256  # rows a task
_SETTLED = 16_384  # steps after which both bias corrections are 1 in float32


class Adam:
    """Adam (Kingma and Ba, 2015) for tensors that share their first dimension, ``g`` rows.

    Each row counts its own steps, so a new row starts with its own bias correction; when no row is skipped this is
    `torch.optim.Adam`. With ``marker`` set, only rows whose gradient in that parameter is not zero are stepped (the
    "sparse Adam" of Taming 3DGS, arXiv 2406.15643): a splat out of view keeps its moments. A row whose gradient is not
    finite is never stepped. On a CPU: numba, float32, deterministic; elsewhere a torch twin of the same semantics.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, marker: str | None = None) -> None:
        self.parameters = {name: _leaf(tensor) for name, tensor in parameters.items()}
        self.marker = marker
        self.first = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        some = next(iter(self.parameters.values()))
        self.counts = torch.zeros(len(some), dtype=torch.int32, device=some.device)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, name: str) -> Tensor:
        return self.parameters[name]

    def step(self, rates: Mapping[str, float | Float[Tensor, "columns"]]) -> None:
        """One step with a learning rate per parameter (or per column of its rows); gradients are dropped afterwards."""
        live = {name: tensor for name, tensor in self.parameters.items() if tensor.grad is not None}
        if not live:
            return
        columns = {name: _columns(rates[name], tensor) for name, tensor in live.items()}
        if all(_fused(tensor) for tensor in live.values()):
            self._step_fused(live, columns)
        else:
            rows = self._rows_to_step(live)
            self.counts += rows
            for name in live:
                self._update(name, rows, columns[name])
        for tensor in live.values():
            tensor.grad = None

    def _step_fused(self, live: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> None:
        kinds = (
            list(live.values()),
            [tensor.grad for tensor in live.values() if tensor.grad is not None],
            [self.first[name] for name in live],
            [self.second[name] for name in live],
        )
        tables = (tuple(map(_rows_of_numbers, kind)) for kind in kinds)
        rates = tuple(columns[name].numpy() for name in live)
        marker = list(live).index(self.marker) if self.marker is not None and self.marker in live else -1
        _step_rows(*tables, rates, marker, self.counts.numpy(), *_corrections())

    def _rows_to_step(self, live: Mapping[str, Tensor]) -> Bool[Tensor, "g"]:
        rows = torch.ones(len(self), dtype=torch.bool, device=self.counts.device)
        for name, tensor in live.items():
            grad = tensor.grad
            assert grad is not None
            flat_grad = grad.flatten(1) if grad.ndim > 1 else grad[:, None]
            rows &= flat_grad.isfinite().all(-1)
            if name == self.marker:
                rows &= (flat_grad != 0).any(-1)
        return rows

    def _update(self, name: str, rows: Tensor, rates: Tensor) -> None:
        tensor, first, second = self.parameters[name], self.first[name], self.second[name]
        grad = tensor.grad
        assert grad is not None
        p, g, m, v = (part.detach().reshape(len(part), -1) for part in (tensor, grad, first, second))
        steps = self.counts[:, None].clamp_min(1).double()
        first_bias, second_bias = (1 - BETA1**steps).to(p), (1 - BETA2**steps).to(p)
        g = torch.where(rows[:, None], g, torch.zeros_like(g))
        m_new, v_new = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        change = m_new / first_bias / ((v_new / second_bias).sqrt() + EPS) * rates
        for old, new in ((m, m_new), (v, v_new), (p, p - change)):
            old.copy_(torch.where(rows[:, None], new, old))

    def overwrite(self, rows: Int[Tensor, "n"], values: Mapping[str, Tensor]) -> None:
        """New values for some rows, which start over with no moments."""
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name][rows] = value.to(self.parameters[name])
        self.forget(rows)

    def forget(self, rows: Int[Tensor, "n"]) -> None:
        for moments in (self.first, self.second):
            for tensor in moments.values():
                tensor[rows] = 0
        self.counts[rows] = 0

    def append(self, values: Mapping[str, Tensor]) -> None:
        """More rows, without moments."""
        for name, tensor in self.parameters.items():
            value = values[name].detach().to(tensor)
            self.parameters[name] = _leaf(torch.cat([tensor.detach(), value]))
            for moments in (self.first, self.second):
                moments[name] = torch.cat([moments[name], torch.zeros_like(value)])
        added = len(next(iter(self.parameters.values()))) - len(self.counts)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(added)])

    def keep(self, rows: Bool[Tensor, "g"]) -> None:
        """Drop the other rows."""
        for name, tensor in self.parameters.items():
            self.parameters[name] = _leaf(tensor.detach()[rows])
            for moments in (self.first, self.second):
                moments[name] = moments[name][rows]
        self.counts = self.counts[rows]

    def widen(self, name: str, length: int) -> None:
        """Grow the second dimension of a parameter to ``length`` with zeros."""
        tensor = self.parameters[name].detach()
        extra = tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])
        self.parameters[name] = _leaf(torch.cat([tensor, extra], dim=1))
        for moments in (self.first, self.second):
            moments[name] = torch.cat([moments[name], extra], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of it, flat, for a checkpoint."""
        out = {"counts": self.counts}
        for kind, tensors in (("value", self.parameters), ("first", self.first), ("second", self.second)):
            out |= {f"{kind}.{name}": tensor.detach() for name, tensor in tensors.items()}
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises KeyError for a name that is missing."""
        device = self.counts.device
        for name in self.parameters:
            self.parameters[name] = _leaf(state[f"value.{name}"].to(device))
            self.first[name] = state[f"first.{name}"].to(device)
            self.second[name] = state[f"second.{name}"].to(device)
        self.counts = state["counts"].to(device)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_()


def _columns(rate: float | Tensor, tensor: Tensor) -> Float[Tensor, "columns"]:
    """A learning rate for each column of a parameter's rows."""
    width = tensor[0].numel() if len(tensor) else 1
    return rate.to(tensor) if isinstance(rate, Tensor) else tensor.new_full((width,), float(rate))


def _rows_of_numbers(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().reshape(len(tensor), -1).numpy())


def _fused(tensor: Tensor) -> bool:
    """Starting threads costs more than a small table (exposures, cameras) is worth."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and len(tensor) >= _LEAST_ROWS


@cache
def _corrections() -> tuple[np.ndarray, np.ndarray]:
    """1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) by the step count t, which stays at the table's end."""
    steps = np.arange(1, _SETTLED + 1, dtype=np.float64)
    first = np.concatenate([[1.0], 1 / (1 - BETA1**steps)])
    second = np.concatenate([[1.0], 1 / np.sqrt(1 - BETA2**steps)])
    return first.astype(np.float32), second.astype(np.float32)


@kernel(parallel=True, fast=True)
@no_type_check
def _step_rows(
    params: tuple[np.ndarray, ...],
    grads: tuple[np.ndarray, ...],
    firsts: tuple[np.ndarray, ...],
    seconds: tuple[np.ndarray, ...],
    rates: tuple[np.ndarray, ...],
    marker: int,
    counts: np.ndarray,
    first_corrections: np.ndarray,
    second_corrections: np.ndarray,
) -> None:
    """One step of every parameter in one launch: a block's gradients are still in the cache when they are used."""
    b1, b2, eps = np.float32(BETA1), np.float32(BETA2), np.float32(EPS)
    a1, a2 = np.float32(1 - BETA1), np.float32(1 - BETA2)  # 1 - float32(0.999) would be off by 1e-5 of it
    last = first_corrections.size - 1
    for block in prange((counts.size + _BLOCK - 1) // _BLOCK):
        begin, end = block * _BLOCK, min((block + 1) * _BLOCK, counts.size)
        steps = np.ones(end - begin, np.bool_)
        for n in range(len(grads)):
            grad = grads[n]
            for row in range(begin, end):
                total = np.float32(0)
                for j in range(grad.shape[1]):
                    total += abs(grad[row, j])
                # A sum of magnitudes is finite and above zero exactly when its terms are finite and not all zero.
                steps[row - begin] &= np.isfinite(total) and (total > 0 or n != marker)
        for row in range(begin, end):
            counts[row] += steps[row - begin]
        for n in range(len(grads)):
            param, grad, first, second, rate = params[n], grads[n], firsts[n], seconds[n], rates[n]
            for row in range(begin, end):
                if not steps[row - begin]:
                    continue
                t = min(counts[row], last)
                c1, c2 = first_corrections[t], second_corrections[t]
                for j in range(param.shape[1]):
                    g = grad[row, j]
                    m = b1 * first[row, j] + a1 * g
                    v = b2 * second[row, j] + a2 * g * g
                    first[row, j] = m
                    second[row, j] = v
                    param[row, j] -= rate[j] * (m * c1) / (np.sqrt(v) * c2 + eps)
