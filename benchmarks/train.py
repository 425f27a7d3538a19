"""How fast training goes: samples and tokens a second, share of the machine's peak, waiting for data, Fabric's cost.

    python benchmarks/train.py                            # a small SVSM on the CPU
    python benchmarks/train.py --config mini-view         # a recipe as it is, for a GPU

The same step is also written by hand (no Fabric, no checkpoints, no records) and timed in turns with ours on the same
batches. Model FLOPs are counted by torch's counter on one step; the peak is a large matrix product timed here.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from scenetx.models.svsm import SvsmConfig
from scenetx.train.feed import Batches, Feed
from scenetx.train.loop import _prepare, _step
from scenetx.train.optim import build_optimizer, learning_rate, set_learning_rate
from scenetx.train.run import settings_of
from scenetx.train.settings import DataSettings, TrainSettings
from scenetx.train.tasks import build_model, build_task


def small() -> TrainSettings:
    """A model and batch that one core steps through in a second or so."""
    config = SvsmConfig(dim=128, heads=4, encoder_layers=4, decoder_layers=4)
    data = DataSettings(height=64, width=64, context=2, targets=3)
    data = replace(data, procedural=replace(data.procedural, difficulty=0.1, blur=1))
    return TrainSettings(svsm=config, data=data, batch=8)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the best of five."""
    n = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        sync(device)
        begun = time.perf_counter()
        for _ in range(4):
            a @ b
        sync(device)
        best = min(best, (time.perf_counter() - begun) / 4)
    return 2 * n**3 / best


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def by_hand(settings: TrainSettings, device: torch.device) -> Callable[..., None]:
    """The training step without the framework, on one device."""
    model = build_model(settings).to(device)
    task = build_task(settings, model)
    optimizer = build_optimizer(model, settings.optim, fused=device.type == "cuda")

    def step(number: int, parts: list[dict[str, torch.Tensor]], context: int) -> None:
        set_learning_rate(optimizer, learning_rate(number, settings.optim))
        for part in parts:
            batch = {name: value.to(device) for name, value in part.items()}
            (task(batch, context)["loss"] / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--set", nargs="*", default=[])
    arguments = parser.parse_args()
    settings = settings_of(arguments.config, arguments.set) if arguments.config else small()
    with tempfile.TemporaryDirectory() as folder:
        run = _prepare(settings, Path(folder), lambda *_: None, None)
        device = run.fabric.device
        hand = by_hand(settings, device)
        made = time.perf_counter()
        source = Feed(Batches(settings, device), 0, 1).steps(0, 2)
        batches = [next(source)[1] for _ in range(2)]
        made = (time.perf_counter() - made) / 2
        context = run.feed.batches.context(0)
        ours_s, hand_s = [], []
        counter = FlopCounterMode(display=False)
        with counter:
            _step(run, 0, batches[0])
        hand(0, batches[0], context)
        for number in range(arguments.steps):
            parts = batches[number % 2]
            sync(device)
            begun = time.perf_counter()
            _step(run, 0, parts)
            sync(device)
            middle = time.perf_counter()
            hand(0, parts, context)
            sync(device)
            ours_s.append(middle - begun)
            hand_s.append(time.perf_counter() - middle)
    ours, plain = statistics.median(ours_s), statistics.median(hand_s)
    dtype = torch.float32 if settings.precision == "32-true" else torch.bfloat16
    top = peak(device, dtype)
    config = getattr(settings, settings.model)
    tokens = settings.batch * settings.views * (settings.data.height // config.patch) * (
        settings.data.width // config.patch
    )  # fmt: skip
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    line = {
        "machine": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "model": settings.model,
        "parameters": sum(p.numel() for p in run.trained.model.parameters()), "batch": settings.batch,
        "step_seconds": ours, "by_hand_seconds": plain, "over_by_hand": ours / plain - 1,
        "samples_per_second": settings.batch / ours, "tokens_per_second": tokens / ours,
        "flop_per_step": counter.get_total_flops(), "peak_flop_per_second": top,
        "utilisation": counter.get_total_flops() / ours / top,
        "data_seconds": made, "stall_share_without_workers": made / (made + ours),
    }  # fmt: skip
    print(json.dumps(line, indent=1))
    arguments.output.write_text(json.dumps(line, indent=1) + "\n")


if __name__ == "__main__":
    main()
