"""Splat fitting on posed scenes: held-out PSNR and SSIM, seconds, splats and steps a second, for each quality.

    python benchmarks/fit.py --data ../shared/data/dev --scenes kermit lund_door fern --quality draft standard

Cameras are the data set's own; points are triangulated with them (all pictures, as is the custom); every 8th picture is
held out. CPU seconds are those of the process, so that a busy machine can be told from a slow program. ``--set
name=value`` changes a fit setting. Results are added to ``--out`` (JSON), replacing those of the same scene and name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import numpy as np

from scenetx.core import Points, Scene
from scenetx.fit import FitSettings, evaluate_views, fit_splats, settings_for
from scenetx.fit.initialise import viewing_distance
from scenetx.geometry.sfm import SfmCamera, SfmPicture, SfmSettings, triangulate
from scenetx.io.prepare import CameraModel, PrepareSettings, hold_out, open_source, with_cameras


def posed_scene(folder: Path, work: Path, width: int) -> Scene:
    """The scene with its reference cameras, straightened pictures and triangulated points (kept in ``work``)."""
    import torch

    work.mkdir(parents=True, exist_ok=True)
    settings = PrepareSettings(width=width)
    opened = open_source(str(folder), settings, work)
    assert opened.posed is not None, f"{folder} has no cameras"
    posed = {p.name: p for p in opened.posed.pictures if p.world_from_cam is not None}
    models = {
        name: CameraModel(p.world_from_cam, p.K, p.distortion, p.lens, p.height, p.width) for name, p in posed.items()
    }
    scene = hold_out(with_cameras(opened.scene, models, settings), 8)
    cache = work / "points.npz"
    if not cache.exists():
        # Triangulate in straightened pictures of up to 1600 px, so that no lens is left to tell.
        large = replace(settings, width=1600)
        sharp = with_cameras(opened.scene, models, large)
        files = write_straight(sharp, work / "straight")
        cameras = {
            view.name: SfmCamera(
                view.camera.world_from_cam[0], view.camera.K[0], (0.0, 0.0, 0.0, 0.0), view.height, view.width
            )
            for view in sharp.registered
        }
        pictures = [SfmPicture(name, path) for name, path in files.items()]
        points = triangulate(pictures, cameras, work / "sfm", SfmSettings())
        np.savez(cache, positions=points.positions.numpy(), colors=points.colors.numpy())
    kept = np.load(cache)
    points = Points(torch.from_numpy(kept["positions"]), torch.from_numpy(kept["colors"]))
    return replace(scene, points=points, posed_by="input")


def published(settings: FitSettings, scene: Scene) -> FitSettings:
    """gsplat's recipe in our units. Its means' rate is in units of the cameras' extent, ours of the viewing distance.

    Its growth of 5 % every 100 of 30,000 steps reaches caps like ours in the first third.
    """
    share = settings.steps / 30_000
    unit = 1.1 * float(scene.extent) / float(viewing_distance(scene))
    return replace(
        settings,
        means_lr=1.6e-4 * unit,
        means_lr_end=1.6e-6 * unit,
        scales_lr=5e-3,
        quats_lr=1e-3,
        opacities_lr=5e-2,
        sh_lr=2.5e-3,
        sh_rest_lr=2.5e-3 / 20,
        selective=False,
        opacity_reg=0.01,
        scale_reg=0.01,
        noise_lr=5e5,
        pyramid=0,
        refine_start=500 / 30_000,
        refine_stop=25_000 / 30_000,
        grow_until=0.3,
        refine_interval=max(1, round(100 * share)),
        sh_interval=max(1, round(1000 * share)),
        initial_opacity=0.5,
        initial_scale=0.1,
    )


def write_straight(scene: Scene, folder: Path) -> dict[str, Path]:
    from scenetx.io.images import write_picture

    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for view in scene.registered:
        files[view.name] = folder / Path(view.name).with_suffix(".png").name
        write_picture(files[view.name], view.image.numpy())
    return files


def run(scene: Scene, settings: FitSettings) -> dict[str, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    for update in fit_splats(scene, settings):
        if update.psnr is not None:
            print(f"  {update.step:6d} {update.loss:.4f} {update.psnr:.2f} {update.num_gaussians}", flush=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert update.gaussians is not None
    held_out = evaluate_views(scene, update.gaussians)
    training = evaluate_views(scene, update.gaussians, views=scene.training[:: max(1, len(scene.training) // 6)])
    return {
        "psnr": round(held_out.mean_psnr, 3),
        "ssim": round(held_out.mean_ssim, 4),
        "psnr_training": round(training.mean_psnr, 3),
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "steps_per_second": round(settings.steps / wall, 2),
        "splats": update.num_gaussians,
        "steps": settings.steps,
        "views": len(scene.training),
        "picture": list(scene.training[0].image.shape[:2]),
        "points": len(scene.points or ()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/dev")
    parser.add_argument("--scenes", nargs="+", default=["kermit", "lund_door", "fern"])
    parser.add_argument("--quality", nargs="+", default=["draft"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--recipe", choices=["ours", "published"], help="default: ours, with poses and exposures")
    parser.add_argument("--name", default="", help="what to call this variant in the results")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-fit"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    changes = {}
    for item in arguments.set:
        key, value = item.split("=", 1)
        changes[key] = literal_eval(value) if not value.isidentifier() or value in ("True", "False", "None") else value
    for quality in arguments.quality:
        for name in arguments.scenes:
            settings = settings_for(quality, 1, **changes)
            if arguments.recipe is not None:
                settings = replace(settings, exposure=False, refine_poses=False)
            scene = posed_scene(arguments.data / name, arguments.work / name, settings.width)
            result = run(scene, published(settings, scene) if arguments.recipe == "published" else settings)
            key = "/".join(filter(None, (name, quality, arguments.recipe, arguments.name)))
            result["load"] = round(os.getloadavg()[0], 1)
            print(key, json.dumps(result), flush=True)
            results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            results[key] = result | {"cpus": os.cpu_count(), "machine": platform.machine(), "changes": changes}
            arguments.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
