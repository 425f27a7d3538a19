"""The training loop: one function from a laptop's core to a cluster, on Lightning Fabric.

    settings = load_settings(TrainSettings(), file="configs/mini-view.toml")
    train(settings, "runs/mini-view")                 # one process
    torchrun --nproc_per_node 8 -m scenetx train ...  # the same, shared out

A step depends on its number and the weights alone (`scenetx.train.feed`), and every step is either taken by all
processes or by none. So a run that is killed goes on from its last checkpoint to the very same weights, on a CPU to the
last bit.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scenetx.core import InputError
from scenetx.core.atomic import write_tensors
from scenetx.train import checkpoint
from scenetx.train.checkpoint import Progress, Trained
from scenetx.train.feed import Batches, Feed
from scenetx.train.optim import average_into, build_optimizer, learning_rate, set_learning_rate
from scenetx.train.record import Record
from scenetx.train.settings import TrainSettings
from scenetx.train.tasks import ViewTask, build_model, build_task

log = logging.getLogger(__name__)

Report = Callable[[str, float, str], None]
Evaluate = Callable[[nn.Module, TrainSettings, int], dict[str, float]]
"""Scores of a model on held-out scenes: ``(model, settings, scenes) -> name -> number``."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended. ``done``: all steps of the settings are taken."""

    progress: Progress
    done: bool
    weights: Path | None
    """The newest checkpoint's weights (the average's, where there is one)."""


@dataclass
class _Run:
    """What the steps share."""

    fabric: Any
    settings: TrainSettings
    folder: Path
    wrapped: Any
    trained: Trained
    optimizer: Any
    feed: Feed
    record: Record | None
    progress: Progress
    report: Report
    evaluate: Evaluate | None
    sums: dict[str, list[Tensor | float]] = field(default_factory=dict)


def train(
    settings: TrainSettings,
    folder: str | Path,
    *,
    report: Report | None = None,
    evaluate: Evaluate | None = None,
    at_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Train until the settings' steps or seconds are spent; goes on from the newest checkpoint in ``folder``.

    ``at_step(step)`` is called after each step that is done. Raises InputError where Lightning Fabric is not installed,
    the data cannot be read, a checkpoint is of other settings, the disk is full, or losses are not finite too often.
    Ctrl-C ends the step, saves, and raises KeyboardInterrupt.
    """
    begun, folder = time.perf_counter(), Path(folder)
    run = _prepare(settings, folder, report or _silent, evaluate)
    first, saved = run.progress, run.progress.step
    with _stops() as asked:
        for step, parts in run.feed.steps(first.step, settings.optim.steps):
            _step(run, step, parts)
            spent = time.perf_counter() - begun
            run.progress = replace(run.progress, step=step + 1, seconds=first.seconds + spent)
            interrupted = _agreed(run.fabric, bool(asked))
            out_of_time = _agreed(run.fabric, spent >= settings.seconds)
            if run.progress.step % settings.save_every == 0 or out_of_time or interrupted:
                saved = _save(run)
            _tell(run, spent)
            if at_step is not None:
                at_step(run.progress.step)
            if interrupted:
                raise KeyboardInterrupt
            if out_of_time:
                break
    if saved < run.progress.step:
        _save(run)
    return _finish(run)


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Inside the block Ctrl-C and SIGTERM are noted, to be obeyed after the step; a second one is obeyed at once."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:  # noqa: ARG001
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silent(stage: str, fraction: float, message: str) -> None:
    """No progress bar."""


def _fabric(settings: TrainSettings) -> Any:
    """Fabric for this process and those that torchrun started beside it."""
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
    except ImportError as error:
        raise InputError("lightning-fabric", "not installed", "pip install 'scenetx[train]'") from error
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    cuda = torch.cuda.is_available() if settings.accelerator == "auto" else settings.accelerator == "cuda"
    if cuda and not torch.cuda.is_available():
        raise InputError("train: accelerator", "cuda, and no CUDA device is here", "set accelerator=cpu")
    backend = "nccl" if cuda else "gloo"
    strategy: Any = "auto"
    if settings.strategy == "fsdp" and world > 1:
        strategy = ModelParallelStrategy(
            _shard, data_parallel_size=world, tensor_parallel_size=1, process_group_backend=backend
        )
    elif world > 1:
        # Parts of a geometry model are used in some steps only (the encoder of given cameras).
        unused = settings.task == "geometry"
        strategy = DDPStrategy(process_group_backend=backend, find_unused_parameters=unused)
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local,
        num_nodes=max(1, world // local),
        strategy=strategy,
        # Mixed precision is set up block by block (`tasks.blocks_in_bf16`).
        precision="32-true",
    )
    fabric.launch()
    return fabric


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """FSDP: every transformer block on its own, then the rest (arXiv 2304.11277; PyTorch's ``fully_shard``)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for part in list(module.modules()):
        if isinstance(part, nn.ModuleList):
            for block in part:
                if not any(True for _ in block.parameters()):
                    continue
                fully_shard(block, mesh=mesh["data_parallel"])
                if hasattr(block, "keys_values"):
                    # Called beside `forward`: it too needs the block's whole weights.
                    register_fsdp_forward_method(block, "keys_values")
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _prepare(settings: TrainSettings, folder: Path, report: Report, evaluate: Evaluate | None) -> _Run:
    fabric = _fabric(settings)
    device = fabric.device
    model = build_model(settings)
    newest = checkpoint.found(folder / "checkpoints")
    if settings.start_from is not None and not newest:
        checkpoint.start_from(settings.start_from, model)
    task: nn.Module = build_task(settings, model)
    if settings.compile:
        task = torch.compile(task)  # type: ignore[assignment]
    wrapped = fabric.setup_module(task)
    inner = model
    raw = build_optimizer(inner, settings.optim, fused=device.type == "cuda")
    optimizer = fabric.setup_optimizers(raw)
    average = [p.detach().clone() for p in inner.parameters()] if settings.optim.ema else []
    trained = Trained(wrapped, inner, raw, average)
    progress = Progress()
    if newest:
        progress = checkpoint.load(newest[-1], trained, settings)
    made = device if settings.data.source == "procedural" and settings.data.workers == 0 else torch.device("cpu")
    feed = Feed(Batches(settings, made), fabric.global_rank, fabric.world_size)
    record = Record(folder, progress.step) if fabric.is_global_zero else None
    if record is None:
        report = _silent
    return _Run(fabric, settings, folder, wrapped, trained, optimizer, feed, record, progress, report, evaluate)


def _step(run: _Run, step: int, parts: list[dict[str, Tensor]]) -> None:
    """One step: all parts' gradients, then an update, unless something is wrong with it."""
    settings, fabric, batches = run.settings, run.fabric, run.feed.batches
    context, told = batches.context(step), batches.told(step)
    set_learning_rate(run.optimizer, learning_rate(step, settings.optim))
    finite = True
    for index, part in enumerate(parts):
        part = fabric.to_device(part)
        with fabric.no_backward_sync(run.wrapped, enabled=index + 1 < len(parts) and settings.strategy != "fsdp"):
            values = run.wrapped(part, context, told)
            finite = _agreed(fabric, bool(values["loss"].isfinite()), all_of_them=True)
            if not finite:
                break
            fabric.backward(values["loss"] / len(parts))
        for name, value in values.items():
            run.sums.setdefault(name, []).append(value.detach())
    norm = math.nan
    if finite:
        norm = float(_norm(run))
        finite = math.isfinite(norm)
    limit = settings.optim.skip * settings.optim.clip
    large = settings.optim.skip > 0 and step >= settings.optim.warmup and norm > limit
    if finite and not large:
        run.optimizer.step()
        if run.trained.average:
            average_into(run.trained.average, run.trained.model, settings.optim.ema, step)
        run.sums.setdefault("gradient_norm", []).append(norm)
    else:
        _left_out(run, step, parts, finite)
    run.optimizer.zero_grad(set_to_none=True)


def _norm(run: _Run) -> Tensor:
    """The gradient's norm over all processes' shares; gradients are clipped to the settings' length."""
    norm = torch.nn.utils.clip_grad_norm_(run.trained.model.parameters(), run.settings.optim.clip)
    return checkpoint.whole(norm)


def _left_out(run: _Run, step: int, parts: list[dict[str, Tensor]], finite: bool) -> None:
    """Count a step that is not taken; stop when there were too many, with the batch kept for a look."""
    bad = run.progress.bad + (not finite)
    run.progress = replace(run.progress, skipped=run.progress.skipped + 1, bad=bad)
    log.warning("step %d left out: %s", step, "its gradient is far too large" if finite else "not finite")
    if finite or bad <= run.settings.nan_limit:
        return
    path = run.folder / f"bad-step-{step:08d}-{run.fabric.global_rank}.safetensors"
    tensors = {f"{k}.{name}": value for k, part in enumerate(parts) for name, value in part.items()}
    write_tensors(path, tensors, {"step": str(step)})
    what = f"{bad} steps without a finite loss or gradient, the last is {step} (its batch: {path})"
    raise InputError("training", what, "lower optim.lr or mend the data, and delete the newest checkpoint")


def _agreed(fabric: Any, flag: bool, *, all_of_them: bool = False) -> bool:
    """One answer for all processes: whether any (or every one) says yes."""
    if fabric.world_size == 1:
        return flag
    votes = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(votes >= fabric.world_size) if all_of_them else bool(votes > 0)


def _save(run: _Run) -> int:
    """Write a checkpoint; the step it holds."""
    folder = run.folder / "checkpoints"
    checkpoint.save(folder, run.trained, run.settings, run.progress, writes=run.fabric.is_global_zero)
    run.fabric.barrier()
    return run.progress.step


def _tell(run: _Run, spent: float) -> None:
    """Metrics, pictures and scores, when it is time for them."""
    settings, step = run.settings, run.progress.step
    last = step == settings.optim.steps
    if step % settings.log_every == 0 or last:
        means = {name: float(torch.tensor([float(v) for v in values]).mean()) for name, values in run.sums.items()}
        names = sorted(means)
        if run.fabric.world_size > 1 and names:
            shared = run.fabric.all_reduce(torch.tensor([means[name] for name in names], device=run.fabric.device))
            means = dict(zip(names, shared.tolist(), strict=True))
        run.sums.clear()
        if run.record is not None:
            pace = {"lr": learning_rate(step - 1, settings.optim), "seconds": run.progress.seconds}
            pace |= {"stalled": run.feed.stalled / max(spent, 1e-9), "skipped": run.progress.skipped}
            run.record.write(step, **means, **pace)
        run.report("train", step / settings.optim.steps, f"step {step}, loss {means.get('loss', math.nan):.4f}")
    if run.record is None or settings.strategy == "fsdp":
        return
    if settings.task == "view" and (step % settings.picture_every == 0 or last):
        _pictures(run, step)
    answers = settings.pretrain.kind in ("", "cameras")  # the other pretrainings' models do not say cameras yet
    if run.evaluate is not None and answers and (step % settings.evaluate_every == 0 or last):
        with _averaged(run.trained):
            run.record.write(step, **run.evaluate(run.trained.model, settings, settings.evaluate_scenes))
        run.trained.model.train()


def _pictures(run: _Run, step: int) -> None:
    """A few scenes of step 0: what is shown, what is asked for, what is painted."""
    assert run.record is not None
    context, count = run.settings.data.context, min(4, run.settings.batch)
    batch = {name: value.to(run.fabric.device) for name, value in run.feed.batches.batch(0, range(count)).items()}
    context = run.feed.batches.context(0)
    with torch.no_grad():
        painted, truth = ViewTask(run.trained.model, replace(run.settings.loss, perceptual=0.0)).paint(batch, context)
    each = len(truth) // count
    rows = [[*(batch["rgb"][k, :context].float() / 255), truth[k * each], painted[k * each]] for k in range(count)]
    run.record.pictures(step, rows)


@contextmanager
def _averaged(trained: Trained) -> Iterator[None]:
    """Inside the block the model has its averaged weights, where there are any."""
    _swap(trained)
    try:
        yield
    finally:
        _swap(trained)


def _swap(trained: Trained) -> None:
    if not trained.average:
        return
    with torch.no_grad():
        for mean, parameter in zip(trained.average, trained.model.parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)


def _finish(run: _Run) -> Outcome:
    settings = run.settings
    if run.record is not None:
        run.record.close()
    newest = checkpoint.found(run.folder / "checkpoints")
    weights = None
    if newest:
        name = "average.safetensors" if settings.optim.ema else "model.safetensors"
        weights = newest[-1] / name
    return Outcome(run.progress, run.progress.step >= settings.optim.steps, weights)
