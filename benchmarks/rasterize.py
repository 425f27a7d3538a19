"""Time of the CPU rasterizer, forward and with its gradient, against the definition in torch.

    python benchmarks/rasterize.py                # table on the screen and benchmarks/rasterize.json
    python benchmarks/rasterize.py --sizes 20000x400x300 --repeats 30

Scenes are random Gaussians with a median screen deviation of about 1.6 pixels at 400 x 300. The best of the repeats is
given: on a busy machine it is nearest to what the code costs. Pairs are (8 x 32 tile, splat) pairs after exact culling.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from scenetx.core import Cameras, Gaussians
from scenetx.core.cameras import look_at
from scenetx.splat import rasterize

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
    for _ in range(repeats + 1):  # the first compiles or loads the kernels
        start = time.perf_counter()
        render = rasterize(scene, cameras, backend=backend)
        middle = time.perf_counter()
        torch.autograd.grad(render.rgb, leaves, weight)
        forward.append(1e3 * (middle - start))
        both.append(1e3 * (time.perf_counter() - start))
    return min(forward[1:]), min(both[1:])


def count_pairs(gaussians: Gaussians, cameras: Cameras) -> int:
    leaf = gaussians.means.clone().requires_grad_()
    rgb = rasterize(replace(gaussians, means=leaf), cameras, backend="cpu").rgb
    return sum(len(view.pairs) for view in rgb.grad_fn.views)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["20000x400x300", "20000x800x600", "100000x400x300"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--degree", type=int, default=0, help="spherical harmonics degree")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-torch", action="store_true", help="skip the (slow) torch backend")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    import numba

    rows = []
    print(f"{'splats':>8} {'picture':>9} {'pairs':>8} {'threads':>7} {'fwd ms':>8} {'fwd+bwd':>8} {'torch/cpu':>9}")
    for size in options.sizes:
        count, width, height = map(int, size.split("x"))
        gaussians, cameras = random_scene(count, width, height, options.degree)
        pairs = count_pairs(gaussians, cameras)
        torch_ms = None if options.no_torch else best_ms(gaussians, cameras, "torch", 1)[1]
        for threads in options.threads:
            if threads > numba.config.NUMBA_NUM_THREADS:
                continue
            numba.set_num_threads(threads)
            forward, both = best_ms(gaussians, cameras, "cpu", options.repeats)
            ratio = None if torch_ms is None else torch_ms / both
            row = {"splats": count, "width": width, "height": height, "pairs": pairs, "threads": threads}
            rows.append({**row, "forward_ms": forward, "both_ms": both, "torch_both_ms": torch_ms})
            shown = "-" if ratio is None else f"{ratio:.0f}x"
            print(f"{count:8} {width:>5}x{height} {pairs:8} {threads:7} {forward:8.1f} {both:8.1f} {shown:>9}")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    versions = {"torch": torch.__version__, "numba": numba.__version__, "python": platform.python_version()}
    result = {"machine": machine, "versions": versions, "degree": options.degree, "rows": rows}
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(options.out)


if __name__ == "__main__":
    main()
