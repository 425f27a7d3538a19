"""Time of the CPU rasterizer, forward and with its gradient, against the definition in torch.

    python benchmarks/rasterize.py                # table on the screen and benchmarks/rasterize.json
    python benchmarks/rasterize.py --sizes 20000x400x300 --repeats 30

Scenes are random Gaussians with a median screen deviation of about 1.6 pixels at 400 x 300. The best of the repeats is
given: on a busy machine it is nearest to what the code costs. Pairs are (8 x 32 tile, splat) pairs after exact culling;
rows are the 8-pixel vectors in them. Blending a row takes FORWARD_OPERATIONS vector instructions of arithmetic at
least, its gradient BACKWARD_OPERATIONS (a fused multiply-add is one); `peak` is what share that is of the number the
machine does in the time the blending kernels take, measured by a loop of independent multiply-adds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from scenetx.core import Cameras, Gaussians
from scenetx.core.cameras import look_at
from scenetx.splat import cpu_backend, rasterize
from scenetx.splat.cpu_lanes import spread, store
from scenetx.splat.cpu_tiles import TILE_HEIGHT, TILE_WIDTH

# u 2, exp 10, alpha 2, comparisons 4 and their conjunctions 3, transmittance 4, weight 2, four channels 4, last 3
FORWARD_OPERATIONS = 34
# u 2, exp 10, alpha 3, comparisons 4, and 3, division 1, T 1, weight 2, worth 5, v 4, behind 1, sums 7
BACKWARD_OPERATIONS = 43
TENSORS = ("means", "quats", "scales", "opacities", "sh")


def random_scene(count: int, width: int, height: int, degree: int) -> tuple[Gaussians, Cameras]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    gaussians = Gaussians(
        means=normal(count, 3) * torch.tensor([0.9, 0.65, 0.5]),
        quats=normal(count, 4),
        scales=0.0145 * torch.exp(0.5 * normal(count, 3)),
        opacities=torch.rand(count, generator=generator) * 0.95 + 0.02,
        sh=0.3 * normal(count, (degree + 1) ** 2, 3),
    )
    pose = look_at(torch.tensor([[0.2, -0.3, -4.0]]), torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
    K = torch.tensor([[[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1.0]]])
    return gaussians, Cameras(pose, K, height, width)


def best_ms(gaussians: Gaussians, cameras: Cameras, backend: str, repeats: int) -> tuple[float, float]:
    """Best forward and best forward + backward milliseconds."""
    leaves = [getattr(gaussians, name).clone().requires_grad_() for name in TENSORS]
    scene = replace(gaussians, **dict(zip(TENSORS, leaves, strict=True)))
    weight = torch.rand(1, cameras.height, cameras.width, 3)
    forward, both = [], []
    for _ in range(repeats + 1):  # the first of several compiles or loads the kernels
        start = time.perf_counter()
        render = rasterize(scene, cameras, backend=backend)
        middle = time.perf_counter()
        torch.autograd.grad(render.rgb, leaves, weight)
        forward.append(1e3 * (middle - start))
        both.append(1e3 * (time.perf_counter() - start))
    return min(forward[repeats > 0 :]), min(both[repeats > 0 :])


def count_work(gaussians: Gaussians, cameras: Cameras) -> tuple[int, int]:
    """Pairs, and the rows in them that are reached before every pixel of the row has ended."""
    leaf = gaussians.means.clone().requires_grad_()
    views = rasterize(replace(gaussians, means=leaf), cameras, backend="cpu").rgb.grad_fn.views
    reached = sum(_rows_reached(view.pairs, view.tile_start, view.until, view.columns) for view in views)
    return sum(len(view.pairs) for view in views), reached


@numba.njit
def _rows_reached(pairs: np.ndarray, tile_start: np.ndarray, until: np.ndarray, columns: int) -> int:
    total = 0
    for tile in range(len(tile_start) - 1):
        left, top = tile % columns * TILE_WIDTH, tile // columns * TILE_HEIGHT
        last = np.full(TILE_HEIGHT, -1.0)
        for y in range(top, min(top + TILE_HEIGHT, until.shape[0])):
            last[y - top] = until[y, left : left + TILE_WIDTH].max()
        for place in range(tile_start[tile + 1] - tile_start[tile]):
            pair = pairs[tile_start[tile] + place]
            for row in range(pair[2], pair[3]):
                total += place <= last[row]
    return total


@numba.njit
def _multiply_add(count: int, out: np.ndarray) -> None:
    one, half = np.float32(1), np.float32(0.5)
    a, b, c, d = spread(one), spread(half), spread(one), spread(half)
    e, f, g, h = spread(one), spread(half), spread(one), spread(half)
    for _ in range(count):
        a, b, c, d = a * half + one, b * half + one, c * half + one, d * half + one
        e, f, g, h = e * half + one, f * half + one, g * half + one, h * half + one
    store(out, 0, a + b + c + d + e + f + g + h)


def peak_per_second() -> float:
    """Vector multiply-adds a second on one core, best of five."""
    out, count = np.zeros(8, np.float32), 5_000_000
    _multiply_add(1, out)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _multiply_add(count, out)
        seconds.append(time.perf_counter() - start)
    return 8 * count / min(seconds)


def blending_seconds(gaussians: Gaussians, cameras: Cameras, repeats: int) -> float:
    """Best time of the two blending kernels alone, forward and backward."""
    blend, spent = cpu_backend._kernels().blend, [0.0]
    kept = blend.blend_forward, blend.blend_backward

    def timed(kernel: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            start = time.perf_counter()
            kernel(*arguments)
            spent[-1] += time.perf_counter() - start

        return call

    blend.blend_forward, blend.blend_backward = map(timed, kept)
    try:
        for _ in range(repeats + 1):
            spent.append(0.0)
            best_ms(gaussians, cameras, "cpu", 0)
    finally:
        blend.blend_forward, blend.blend_backward = kept
    return min(spent[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["20000x400x300", "100000x960x640", "1000000x1920x1080"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--degree", type=int, default=0, help="spherical harmonics degree")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-torch", action="store_true", help="skip the (slow) torch backend")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows, peak = [], peak_per_second()
    heads = ("splats", "picture", "pairs", "threads", "fwd ms", "fwd+bwd", "peak", "torch/cpu")
    print("{:>8} {:>9} {:>9} {:>7} {:>8} {:>8} {:>5} {:>9}".format(*heads))
    for size in options.sizes:
        count, width, height = map(int, size.split("x"))
        gaussians, cameras = random_scene(count, width, height, options.degree)
        pairs, lines = count_work(gaussians, cameras)
        torch_ms = None if options.no_torch or count > 20_000 else best_ms(gaussians, cameras, "torch", 1)[1]
        for threads in options.threads:
            if threads > numba.config.NUMBA_NUM_THREADS:
                continue
            numba.set_num_threads(threads)
            forward, both = best_ms(gaussians, cameras, "cpu", options.repeats)
            ratio = None if torch_ms is None else torch_ms / both
            least = lines * (FORWARD_OPERATIONS + BACKWARD_OPERATIONS) / (peak * threads)
            share = least / blending_seconds(gaussians, cameras, options.repeats)
            row = {"splats": count, "width": width, "height": height, "pairs": pairs, "rows": lines, "threads": threads}
            row |= {"share_of_peak": share, "ns_per_pair": 1e6 * both / pairs}
            rows.append({**row, "forward_ms": forward, "both_ms": both, "torch_both_ms": torch_ms})
            shown = "-" if ratio is None else f"{ratio:.0f}x"
            work = f"{count:8} {width:>4}x{height:<4} {pairs:9} {threads:7}"
            print(f"{work} {forward:8.1f} {both:8.1f} {share:5.0%} {shown:>9}")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    versions = {"torch": torch.__version__, "numba": numba.__version__, "python": platform.python_version()}
    result = {"machine": machine, "versions": versions, "degree": options.degree, "rows": rows}
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(options.out)


if __name__ == "__main__":
    main()
