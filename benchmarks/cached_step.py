"""A cached step against the full forward: same model, same machine, one run, and where a step's time goes.

    python benchmarks/cached_step.py                          # da3-small, 30 and 50 keyframes, 378x280: some 6 minutes
    python benchmarks/cached_step.py --size 378 504           # as published: some 15 minutes on two cores
    python benchmarks/cached_step.py --size 70 98 --repeats 2 # a try
    python benchmarks/cached_step.py --device cuda

The forward looks at all keyframes and the new picture (31 and 51 pictures); the step places the new picture in the map
of the keyframes: its camera alone, as in tracking, or with depth. Weights are random, which changes nothing about the
work. Steps are measured before and after the forward, and the better of each is taken; processor seconds stand beside
the clock's, for machines that do something else too. ``without_depth`` takes the pictures' depth out of the forward (as
much for each as a step's depth costs), for those who want cameras only from both. ``peak_mib`` is the process's so far.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from scenetx.models.attention import KVCache
from scenetx.models.zoo import load_model


def random_weights(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.02, generator=generator)


def timed(run: Callable[[], object], repeats: int, device: str) -> tuple[float, float]:
    """The best of some runs: seconds by the clock, and of the processor."""
    clock, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return min(clock), min(processor)


def compare(
    module: nn.Module, keyframes: int, arguments: argparse.Namespace
) -> tuple[dict[str, float | int], dict[str, float]]:
    """One map, its steps and the forward over its pictures and one more; and the shares of a step."""
    height, width = arguments.size
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(keyframes + 1, height, width, 3, generator=generator).to(arguments.device)
    start = time.perf_counter()
    cache = module.map(images[:-1], capacity=keyframes)
    map_clock = time.perf_counter() - start
    steps: dict[bool, list[tuple[float, float]]] = {False: [], True: []}

    def measure_steps() -> None:
        for dense in (False, True):
            module.step(images[-1], cache, dense=dense)
            steps[dense].append(
                timed(
                    lambda dense=dense: module.step(images[-1], cache, dense=dense), arguments.repeats, arguments.device
                )
            )

    measure_steps()
    forward, forward_processor = timed(lambda: module(images), arguments.forwards, arguments.device)
    measure_steps()
    (camera, camera_processor), (dense, _) = ((min(t[0] for t in v), min(t[1] for t in v)) for v in steps.values())
    row = {
        "keyframes": keyframes,
        "map_seconds": round(map_clock, 3),
        "cache_mib": round(cache.bytes_per_view * keyframes / 2**20, 1),
        "forward_seconds": round(forward, 3),
        "step_camera_seconds": round(camera, 4),
        "step_dense_seconds": round(dense, 4),
        "times_faster": round(forward / camera, 1),
        "times_faster_dense": round(forward / dense, 1),
        "times_faster_processor": round(forward_processor / camera_processor, 1),
        "times_faster_without_depth": round((forward - (keyframes + 1) * (dense - camera)) / camera, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    return row, parts_of_a_step(module, images[-1], cache)


def parts_of_a_step(module: nn.Module, image: torch.Tensor, cache: KVCache) -> dict[str, float]:
    """Shares of a camera-only step by operator, and of the attention over the map."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        module.step(image, cache, dense=False)
    events = record.key_averages(group_by_input_shape=True)
    total = sum(event.self_cpu_time_total for event in events) or 1
    shares: dict[str, float] = {}
    tokens = max(shape.tokens for shape in cache.shapes.values())
    for event in events:
        name = event.key.removeprefix("aten::")
        if "attention" in name and event.input_shapes and len(event.input_shapes) > 1 and event.input_shapes[1]:
            name = "attention over the map" if event.input_shapes[1][-2] > 2 * tokens else "attention in the picture"
        elif name in ("addmm", "mm", "linear"):
            name = "linear layers"
        shares[name] = shares.get(name, 0.0) + event.self_cpu_time_total / total
    return {name: round(share, 3) for name, share in sorted(shares.items(), key=lambda item: -item[1])[:8]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="da3-small")
    parser.add_argument("--keyframes", nargs="+", type=int, default=[30, 50])
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), default=[280, 378])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="of a step")
    parser.add_argument("--forwards", type=int, default=1, help="of the full forward")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module = load_model(arguments.model, None, init=False)
    random_weights(module)
    module = module.to(arguments.device)
    rows = []
    with torch.inference_mode():
        for keyframes in arguments.keyframes:
            row, parts = compare(module, keyframes, arguments)
            rows.append({**row, "step_shares": parts})
            print(rows[-1], flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": arguments.threads}
    if arguments.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    result = {
        "model": arguments.model, "height": arguments.size[0], "width": arguments.size[1], "device": arguments.device,
        "machine": machine, "rows": rows,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
