"""Which of the numbers that a .sog can hold each splat gets: the cheapest, counting error and bits.

A .sog keeps numbers as bytes, and lossless WebP packs a byte in about as many bits as it is rare. So each number takes
the symbol of least ``weight (symbol - number)^2 + price bits(symbol)``, with bits by how often the symbol is taken:
entropy-constrained scalar quantisation (Chou, Lookabaugh and Gray, 1989). What pictures hardly feel ends on the few
symbols that others use too. ``weight`` is a number's `scenetx.fit.sensitivity`, ``price`` the mean squared error of the
pictures that a bit is worth. `scenetx.io.sog.write_sog` stores the results exactly.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.fit.sensitivity import Sensitivity
from scenetx.io.codebook import ENTRIES, palette
from scenetx.splat.cpu_jit import kernel

FINEST = 65535  # steps of a position along an axis
COARSEST = 8  # positions are multiples of at most 2^8 of them
ROUNDS = 10  # of choosing symbols by how often they were chosen
LEAST_PALETTE, MOST_PALETTE = 32, 1024
SPLATS_PER_ENTRY = 64
SCALE_STEP, SCALE_SPAN = 0.04, 24.0  # of ln(standard deviation), and how far below the largest it is told apart
COLOR_STEP, COLOR_MOST = 0.02, 10.0  # of the first SH coefficient
_BLOCK = 1 << 24  # distances held at once


def coded_means(means: Float[Tensor, "g 3"], weights: Sensitivity, price: float) -> Float[Tensor, "g 3"]:
    """Positions on the file's grid, 16 bits an axis of sign(x) ln(1 + |x|); the outermost stay where the grid ends."""
    if not len(means):
        return means
    wide = means.double()
    logs = (wide.sign() * wide.abs().log1p()).numpy()
    low, high = logs.min(0), logs.max(0)
    unit = np.where(high > low, high - low, 1.0) / FINEST
    places = (logs - low) / unit
    # dx / dlog = 1 + |x|
    weight = weights.means.double().numpy() * (unit * (1 + wide.abs().numpy())) ** 2
    symbols = np.zeros(places.shape, np.int64)
    for axis in range(3):
        place, cost = np.ascontiguousarray(places[:, axis]), np.ascontiguousarray(weight[:, axis])
        symbols[:, axis] = _rounded(place, _steps(cost, price, COARSEST)).clip(0, FINEST)
        for _ in range(ROUNDS):
            _choose_multiple(place, cost, price * _bits(symbols[:, axis] & 255, ENTRIES), symbols[:, axis])
        symbols[place.argmin(), axis], symbols[place.argmax(), axis] = 0, FINEST if high[axis] > low[axis] else 0
    coded = torch.from_numpy(low + unit * symbols)
    return (coded.sign() * coded.abs().expm1()).to(means)


def coded_quats(quats: Float[Tensor, "g 4"], weights: Sensitivity, price: float) -> Float[Tensor, "g 4"]:
    """The three smaller numbers in bytes; the largest is positive and follows from them."""
    quats = torch.nn.functional.normalize(quats.double(), dim=-1)
    largest = quats.abs().argmax(-1, keepdim=True)
    top = quats.gather(-1, largest)
    # A small number's change also changes the largest: by q_i / q_largest as much.
    ratio = (quats / top).square()
    weight = weights.quats.double() + weights.quats.double().gather(-1, largest) * ratio
    unit = math.sqrt(2) / 255
    places = (quats * top.sign() / math.sqrt(2) + 0.5) * 255
    others = torch.tensor([[j for j in range(4) if j != i] for i in range(4)])[largest[:, 0]]
    place, cost = places.gather(-1, others).numpy(), (weight * unit**2).gather(-1, others).numpy()
    small = np.stack([cheapest(place[:, i], cost[:, i], price, middle=128) for i in range(3)], -1)
    values = torch.from_numpy((small / 255 - 0.5) * math.sqrt(2))
    out = torch.zeros_like(quats).scatter(-1, others, values)
    rest = (1 - values.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    return out.scatter(-1, largest, rest).to(torch.float32)


def coded_scales(scales: Float[Tensor, "g 3"], weights: Sensitivity, price: float) -> Float[Tensor, "g 3"]:
    """Standard deviations whose logarithms are multiples of one step; the smallest are lifted where 256 of them do not
    span all."""
    logs = scales.double().clamp_min(1e-30).log().numpy()
    weight = weights.log_scales.double().numpy()
    symbols, step, low = _stepped(logs, SCALE_STEP, SCALE_SPAN)
    chosen = [cheapest(symbols[:, axis], weight[:, axis] * step**2, price) for axis in range(3)]
    return torch.from_numpy(np.exp((np.stack(chosen, -1) + low) * step)).to(scales)


def coded_opacities(opacities: Float[Tensor, "g"], weights: Sensitivity, price: float) -> Float[Tensor, "g"]:
    """Whole bytes; none vanishes."""
    places = 255 * opacities.double().clamp(0, 1).numpy()
    chosen = cheapest(places, weights.opacities.double().numpy() / 255**2, price, reach=40, least=1)
    return torch.from_numpy(chosen / 255).to(opacities)


def coded_base(base: Float[Tensor, "g 1 3"], weights: Sensitivity, price: float) -> Float[Tensor, "g 1 3"]:
    """First SH coefficients as multiples of one step; red and blue are priced by what they differ from green, as WebP
    stores them."""
    values = base[:, 0].double().clamp(-COLOR_MOST, COLOR_MOST).numpy()
    symbols, step, low = _stepped(values, COLOR_STEP, math.inf)
    weight = weights.sh[:, 0].double().numpy() * step**2
    green = cheapest(symbols[:, 1], weight[:, 1], price)
    red, blue = (cheapest(symbols[:, i], weight[:, i], price, minus=green) for i in (0, 2))
    return torch.from_numpy((np.stack([red, green, blue], -1) + low) * step)[:, None].to(base)


def coded_labels(rest: Float[Tensor, "g k 3"], weights: Sensitivity, price: float) -> Int[Tensor, "g"]:
    """Which splats share one view-dependent colour: a palette of vectors, entries that many use being cheaper
    (entropy-constrained vector quantisation). The numbers that are used are 0, 1, ... without a gap."""
    vectors = rest.detach().flatten(1).float()
    mass = weights.rest.float()
    count = min(max(LEAST_PALETTE, len(vectors) // SPLATS_PER_ENTRY), MOST_PALETTE, len(vectors))
    centers, labels = palette(vectors, count, weights=mass)
    for _ in range(ROUNDS // 2):
        costs = torch.from_numpy(price * _bits(labels.numpy(), len(centers))).float()
        labels = _cheapest_entry(vectors, centers, mass, costs)
        total = torch.zeros(len(centers)).index_add_(0, labels, mass)
        sums = torch.zeros_like(centers).index_add_(0, labels, vectors * mass[:, None])
        centers = torch.where(total[:, None] > 0, sums / total.clamp_min(1e-30)[:, None], centers)
    return torch.unique(labels, return_inverse=True)[1]


def _cheapest_entry(vectors: Tensor, centers: Tensor, mass: Tensor, costs: Tensor) -> Int[Tensor, "g"]:
    blocks = max(1, _BLOCK // len(centers))
    out = []
    for block, weight in zip(vectors.split(blocks), mass.split(blocks), strict=True):
        out.append((weight[:, None] * torch.cdist(block, centers).square() + costs).argmin(-1))
    return torch.cat(out)


def cheapest(
    places: Float[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"],
    price: float,
    *,
    reach: int = 24,
    least: int = 0,
    middle: int = 0,
    minus: Int[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "n"]:
    """Symbols from ``least`` to 255, each within ``reach`` of its place (a number in units of symbols), of least error
    and bits together. ``weights``: what a unit's squared error costs; ``middle``: where the first guess is at home;
    ``minus``: what is subtracted from a symbol before its bits are counted."""
    places, weights = np.ascontiguousarray(places, np.float64), np.ascontiguousarray(weights, np.float64)
    offset = np.zeros(len(places), np.int64) if minus is None else minus - 255
    start = places - (middle if minus is None else minus)
    symbols = _rounded(start, _steps(weights, price, 5)) + (middle if minus is None else minus)
    symbols = symbols.clip(least, ENTRIES - 1)
    for _ in range(ROUNDS):
        costs = price * _bits(symbols - offset, 2 * ENTRIES)
        _choose(places, weights, costs, offset, reach, least, symbols)
    return symbols


def _steps(weights: Float[np.ndarray, "n"], price: float, most: int) -> Float[np.ndarray, "n"]:
    """Powers of two near the step that is worth its bits by itself: an error of step^2 / 12, a bit for each halving."""
    worth = np.sqrt(6 * price / np.maximum(weights, 1e-300))
    return 2.0 ** np.floor(np.log2(np.maximum(worth, 1.0))).clip(0, most)


def _rounded(places: Float[np.ndarray, "n"], steps: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    return (np.rint(places / steps) * steps).astype(np.int64)


def _bits(symbols: Int[np.ndarray, "n"], levels: int) -> Float[np.ndarray, "levels"]:
    counts = np.bincount(symbols, minlength=levels) + 0.5
    return -np.log2(counts / counts.sum())


def _stepped(
    values: Float[np.ndarray, "n 3"], finest: float, span: float
) -> tuple[Float[np.ndarray, "n 3"], float, int]:
    """Places among 256 multiples of a step, the step (two digits: codebooks are text), and the lowest multiple."""
    if not values.size:
        return values, finest, 0
    high = float(values.max())
    values = np.maximum(values, high - span)
    step = max(finest, (high - float(values.min())) / (ENTRIES - 4))
    digit = 10.0 ** (math.floor(math.log10(step)) - 1)
    step = float(f"{math.ceil(step / digit - 1e-9) * digit:.2g}")
    low = math.floor(float(values.min()) / step)
    return values / step - low, step, low


# ruff: noqa: ANN001, ANN202
# numba infers the types:


@kernel(nogil=True)
def _choose(places, weights, costs, offset, reach, least, symbols):  # type: ignore[no-untyped-def]
    for i in range(len(places)):
        near = min(max(round(places[i]), least), 255)
        best, found = np.inf, near
        for symbol in range(max(near - reach, least), min(near + reach, 255) + 1):
            cost = weights[i] * (symbol - places[i]) ** 2 + costs[symbol - offset[i]]
            if cost < best:
                best, found = cost, symbol
        symbols[i] = found


@kernel(nogil=True)
def _choose_multiple(places, weights, costs, symbols):  # type: ignore[no-untyped-def]
    """Multiples of powers of two; only the lower byte has a price: the upper one follows from the splats before."""
    for i in range(len(places)):
        best, found = np.inf, 0
        for power in range(COARSEST + 1):
            step = 2**power
            symbol = min(max(round(places[i] / step) * step, 0), FINEST)
            cost = weights[i] * (symbol - places[i]) ** 2 + costs[symbol & 255]
            if cost < best:
                best, found = cost, symbol
        symbols[i] = found
