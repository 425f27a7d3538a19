"""Geometry transformers: time and peak memory of a forward, and of a cached step against the full forward.

    python benchmarks/geometry_models.py --models da3-small da3-base --views 1 4 16 --threads 2
    python benchmarks/geometry_models.py --models da3-small --cache 30
    python benchmarks/geometry_models.py ... --published published.json

Weights are random: they change nothing about the work. Each measurement runs in a process of its own, so that the peak
is that of the forward (with the model's weights) alone. ``published.json`` holds the published code's figures at equal
inputs and threads, made by whoever runs that code: [{"model": "da3-small", "views": 4, "height": 378, "width": 504,
"threads": 2, "seconds": 1.0, "peak_mib": 1000.0}, ...]; the ratios are then in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from scenetx.models.memory import need
from scenetx.models.zoo import load_model

SIZES = {"da3": (378, 504), "vggt": (392, 518), "pi3": (392, 518), "mapanything": (392, 518)}


def size_of(model: str) -> tuple[int, int]:
    return next(size for name, size in SIZES.items() if model.startswith(name))


def random_weights(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.02, generator=generator)


def measure(job: dict) -> dict:
    """One measurement, in this process."""
    torch.set_num_threads(job["threads"])
    device = job["device"]
    module = load_model(job["model"], None, init=False)
    random_weights(module)
    module = module.to(device)
    height, width = job["height"], job["width"]
    images = torch.rand(job["views"], height, width, 3, generator=torch.Generator().manual_seed(1)).to(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    out: dict = dict(job)
    with torch.inference_mode():
        if job["kind"] == "step":
            cache = module.map(images[:-1], capacity=job["views"])
            out["cache_mib"] = round(cache.bytes_per_view * cache.views / 2**20, 1)
            out["seconds"] = best(lambda: module.step(images[-1], cache), job, device)
            out["seconds_camera_only"] = best(lambda: module.step(images[-1], cache, dense=False), job, device)
        else:
            out["seconds"] = best(lambda: module(images), job, device)
    if device == "cuda":
        out["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    else:
        out["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        out["before_mib"] = round(before, 1)
    out["estimated_mib"] = round(need(module, height, width).total(job["views"]) / 2**20, 1)
    return out


def best(run: Callable[[], object], job: dict, device: str) -> float:
    """The fastest of a few runs after one to warm up."""
    seconds = []
    for _ in range(job["repeats"] + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(min(seconds[1:] or seconds), 4)


def apart(job: dict) -> dict:
    """One measurement, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {**job, "failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def with_published(rows: list[dict], published: list[dict]) -> None:
    """Our time and peak over the published code's, where both were measured on equal inputs."""
    same = ("model", "views", "height", "width", "threads")
    for row in rows:
        for other in published:
            if row["kind"] == "forward" and "seconds" in row and all(row[key] == other.get(key) for key in same):
                row["time_ratio"] = round(row["seconds"] / other["seconds"], 3)
                if other.get("peak_mib"):
                    row["peak_ratio"] = round(row["peak_mib"] / other["peak_mib"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["da3-small", "da3-base"])
    parser.add_argument("--views", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--cache", type=int, default=0, help="keyframes of a map to step against; 0 = no such test")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--published", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(json.loads(arguments.job))))
        return
    rows = []
    for model in arguments.models:
        height, width = arguments.size or size_of(model)
        common = {"model": model, "height": height, "width": width, "threads": arguments.threads}
        common |= {"repeats": arguments.repeats, "device": arguments.device}
        jobs = [{**common, "kind": "forward", "views": views} for views in arguments.views]
        if arguments.cache:
            jobs += [{**common, "kind": kind, "views": arguments.cache + 1} for kind in ("step", "forward")]
        for job in jobs:
            row = apart(job)
            rows.append(row)
            print({key: value for key, value in row.items() if key not in ("height", "width", "repeats")}, flush=True)
    if arguments.published:
        with_published(rows, json.loads(arguments.published.read_text()))
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    arguments.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
