"""CUDA against CPU, and our fitting against gsplat's own recipe: parity, speed and quality into benchmarks/gpu/*.json.

    python benchmarks/gpu.py --root ../shared/data/dev --scenes fern kermit    # or: scripts/bench --gpu

Needs a CUDA device and the extra ``cuda``. The other trainer is gsplat's: its rasterization, its `MCMCStrategy` and the
settings of its examples/simple_trainer.py (``mcmc``, all step numbers scaled to the number of steps), on the same
pictures, points, cap and steps. Both are scored by the same renderer and metric on the same held-out views.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fit import posed_scene
from rasterize import TENSORS, random_scene

from scenetx.core import Gaussians, Scene
from scenetx.fit import FitSettings, evaluate_views, fit_splats, settings_for
from scenetx.fit.initialise import first_gaussians
from scenetx.fit.photometric import photometric_loss
from scenetx.splat import rasterize

HERE = Path(__file__).parent


def with_gradients(gaussians: Gaussians, cameras: Any, backend: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [getattr(gaussians, name).clone().requires_grad_() for name in TENSORS]
    scene = replace(gaussians, **dict(zip(TENSORS, leaves, strict=True)))
    rgb = rasterize(scene, cameras, backend=backend).rgb
    weight = torch.rand(rgb.shape, generator=torch.Generator().manual_seed(0)).to(rgb.device)
    return rgb.detach().cpu(), [grad.cpu() for grad in torch.autograd.grad(rgb, leaves, weight)]


def parity(sizes: list[str]) -> list[dict[str, Any]]:
    """Largest picture difference and each gradient's cosine and norm ratio, CUDA against CPU."""
    rows = []
    for size in sizes:
        count, width, height = map(int, size.split("x"))
        gaussians, cameras = random_scene(count, width, height, 0)
        cpu, cpu_gradients = with_gradients(gaussians, cameras, "cpu")
        cuda, cuda_gradients = with_gradients(gaussians.to("cuda"), cameras.to("cuda"), "cuda")
        row: dict[str, Any] = {"size": size, "max": float((cpu - cuda).abs().max()), "psnr": psnr(cpu, cuda)}
        for name, a, b in zip(TENSORS, cpu_gradients, cuda_gradients, strict=True):
            cosine = torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
            row[name] = {"cosine": float(cosine), "norm_ratio": float(b.norm() / a.norm())}
        rows.append(row)
    return rows


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().clamp_min(1e-12).log10())


def milliseconds(call: Callable[[], Any], repeats: int = 20) -> float:
    call()
    best = math.inf
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def speed(sizes: list[str]) -> list[dict[str, Any]]:
    """Forward with gradient on both backends, best of 20."""
    rows = []
    for size in sizes:
        count, width, height = map(int, size.split("x"))
        gaussians, cameras = random_scene(count, width, height, 0)
        on_cuda = gaussians.to("cuda"), cameras.to("cuda")
        cpu = milliseconds(lambda g=gaussians, c=cameras: with_gradients(g, c, "cpu"), 3)
        cuda = milliseconds(lambda pair=on_cuda: with_gradients(*pair, "cuda"))
        rows.append({"size": size, "cpu_ms": cpu, "cuda_ms": cuda, "ratio": cpu / cuda})
    return rows


def fit_ours(scene: Scene, settings: FitSettings) -> tuple[Gaussians, float]:
    start = time.perf_counter()
    *_, last = fit_splats(scene, replace(settings, backend="cuda", device="cuda"))
    assert last.gaussians is not None
    return last.gaussians, time.perf_counter() - start


def fit_gsplat(scene: Scene, settings: FitSettings) -> tuple[Gaussians, float]:
    """gsplat's recipe on the same scene: its strategy, learning rates, initialisation and schedule."""
    from gsplat import rasterization
    from gsplat.strategy import MCMCStrategy

    start, share = time.perf_counter(), settings.steps / 30_000
    extent = 1.1 * scene.extent
    params, optimizers = _gsplat_parameters(first_gaussians(scene, settings), settings, extent)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizers["means"], 0.01 ** (1 / settings.steps))
    strategy = MCMCStrategy(
        cap_max=settings.max_splats,
        refine_start_iter=int(500 * share),
        refine_stop_iter=int(25_000 * share),
        refine_every=max(1, int(100 * share)),
        verbose=False,
    )
    state = strategy.initialize_state()
    order = torch.Generator().manual_seed(0)
    for step in range(settings.steps):
        if step % len(scene.training) == 0:
            turn = torch.randperm(len(scene.training), generator=order)
        view = scene.training[int(turn[step % len(turn)])]
        camera = view.camera.to("cuda")
        degree = min(step // max(1, int(1000 * share)), settings.sh_degree)
        colors = torch.cat([params["sh0"], params["shN"]], 1)
        rgb, _, info = rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(), colors,
            camera.cam_from_world, camera.K, camera.width, camera.height, sh_degree=degree, packed=False,
        )  # fmt: skip
        loss = photometric_loss(rgb[0], view.image.cuda(), None if view.mask is None else view.mask.cuda())
        loss = loss + 0.01 * params["opacities"].sigmoid().mean() + 0.01 * params["scales"].exp().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        schedule.step()
        rate = schedule.get_last_lr()[0]
        strategy.step_post_backward(params, optimizers, state, step, info, lr=rate)
    torch.cuda.synchronize()
    return _gsplat_result(params), time.perf_counter() - start


def _gsplat_parameters(first: Gaussians, settings: FitSettings, extent: float) -> tuple[Any, dict[str, Any]]:
    """simple_trainer's ``mcmc`` start: opacity 0.5, a tenth of the neighbours' distance as scale."""
    count, bands = len(first), (settings.sh_degree + 1) ** 2
    values = {
        "means": (first.means, 1.6e-4 * extent),
        "scales": ((0.1 * first.scales / settings.initial_scale).log(), 5e-3),
        "quats": (torch.rand(count, 4, generator=torch.Generator().manual_seed(0)), 1e-3),
        "opacities": (torch.zeros(count), 5e-2),
        "sh0": (first.sh[:, :1], 2.5e-3),
        "shN": (torch.zeros(count, bands - 1, 3), 2.5e-3 / 20),
    }
    params = torch.nn.ParameterDict({k: torch.nn.Parameter(v.float().cuda()) for k, (v, _) in values.items()})
    optimizers = {k: torch.optim.Adam([params[k]], lr=rate, eps=1e-15) for k, (_, rate) in values.items()}
    return params, optimizers


def _gsplat_result(params: Any) -> Gaussians:
    with torch.no_grad():
        return Gaussians(
            means=params["means"].cpu(),
            quats=torch.nn.functional.normalize(params["quats"], dim=-1).cpu(),
            scales=params["scales"].exp().cpu(),
            opacities=params["opacities"].sigmoid().cpu(),
            sh=torch.cat([params["sh0"], params["shN"]], 1).cpu(),
        )


def quality(root: Path, names: list[str], work: Path, qualities: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        for preset in qualities:
            # What the other trainer does not have is off, so that the two differ in nothing else.
            settings = settings_for(preset, 1, exposure=False, refine_poses=False)
            scene = posed_scene(root / name, work / name, settings.width)
            row: dict[str, Any] = {"scene": name, "quality": preset, "steps": settings.steps}
            for who, train in (("ours", fit_ours), ("gsplat", fit_gsplat)):
                gaussians, seconds = train(scene, settings)
                scores = evaluate_views(scene, gaussians)
                row[who] = {"psnr": scores.mean_psnr, "ssim": scores.mean_ssim, "splats": len(gaussians)}
                row[who]["seconds"] = round(seconds, 1)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE.parents[1] / "shared/data/dev")
    parser.add_argument("--scenes", nargs="*", default=["fern", "kermit", "lund_door"])
    parser.add_argument("--quality", nargs="+", default=["draft", "standard"])
    parser.add_argument("--sizes", nargs="+", default=["20000x400x300", "200000x1280x720"])
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-fit"))
    parser.add_argument("--out", type=Path, default=HERE / "gpu")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: no CUDA device; run it on a machine that has one\n")
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    options.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "parity": lambda: parity(options.sizes),
        "speed": lambda: speed(options.sizes),
        "quality": lambda: quality(options.root, options.scenes, options.work, options.quality),
    }
    for part, measure in parts.items():
        result = {"machine": machine, "rows": measure()}
        (options.out / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(result["rows"]), flush=True)


if __name__ == "__main__":
    main()
