"""What `ship.py` scores of a model of splats: pictures of views it was not shown, beside other ways to the same splats.

Of six pictures of a scene the second and the fifth are asked for, the others shown, all at the size the model learned
at, with their cameras and sparse points. Every way is `scenetx reconstruct --splats instant`: the model's own splats,
or depth lifted by rules, whose colours are set right as often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from procedural_scenes import procedural_scene
from torch.nn.functional import interpolate

import scenetx
from scenetx.core import Cameras, InputError, Scene, View
from scenetx.data.sample import Sample
from scenetx.fit import evaluate_views, settings_for
from scenetx.geometry.lift import LiftSettings, depth_scale, normalize_cameras
from scenetx.models.geometry_model import GeometryModel
from scenetx.models.open_geometry import find_geometry
from scenetx.pipeline.instant import InstantSettings, instant_splats
from scenetx.pipeline.lifting import LiftedSettings
from scenetx.pipeline.stereo import StereoSettings
from scenetx.train.evaluate import picture_scores

ASKED = (1, 4)
VIEWS = 6
COUNTED = 25  # pictures a sequence is thinned to before views are taken from its middle
EXPLAINED = (
    "PSNR of two views from the four around them, with given cameras and sparse points, at the size it learned at;",
    "procedural scenes are held out. Beside it what rules lift of mini-geometry's depth (at the points' scale), of",
    "plane-sweep stereo's and of the true depth. The nearest view and one plane know no geometry: where the model is",
    "no better than they are it should not be used.",
)


def real_views(path: Path, side: int) -> Scene:
    """Six views from the middle of a reconstructed scene, at most ``side`` on the longer side, two of them held out."""
    scene = scenetx.load(path)
    if scene.points is None or len(scene.registered) < VIEWS:
        raise InputError(str(path), f"{len(scene.registered)} views with cameras", "give a reconstructed scene of six")
    known = sorted(scene.registered, key=lambda view: view.name)
    chosen = [known[k] for k in middle(len(known), VIEWS)]
    shrunk = [replace(shrink(view, side), held_out=k in ASKED) for k, view in enumerate(chosen)]
    return replace(scene, views=tuple(shrunk), gaussians=None)


def middle(count: int, views: int) -> list[int]:
    """So many pictures from the middle of ``count``; of a longer sequence every n-th, so that it counts `COUNTED`."""
    step = max(1, min(round(count / COUNTED), (count - 1) // (views - 1)))
    first = (count - (views - 1) * step - 1) // 2
    return [first + k * step for k in range(views)]


def shrink(view: View, side: int) -> View:
    """The view at most ``side`` on the longer side, a multiple of eight, without depth."""
    assert view.camera is not None
    share = min(1.0, side / max(view.height, view.width))
    height, width = (max(8, 8 * round(share * length / 8)) for length in (view.height, view.width))
    image = interpolate(view.image.permute(2, 0, 1)[None].float(), size=(height, width), mode="area")
    small = image[0].permute(1, 2, 0).round().byte()
    return replace(view, image=small, camera=view.camera.resized(height, width), mask=None, depth=None, confidence=None)


def ways(scene: Scene) -> dict[str, Scene]:
    """The scene as each way is shown it, by the name of its score; depth that it has is the truth."""
    bare = replace(scene, views=tuple(replace(view, depth=None) for view in scene.views))
    out = {"psnr": bare, "swept_psnr": bare, "geometry_psnr": with_depth_of("mini-geometry", bare)}
    return out | ({"true_psnr": scene} if any(view.depth is not None for view in scene.views) else {})


@cache
def opened(name: str) -> GeometryModel:
    return find_geometry(name).load()


def with_depth_of(name: str, scene: Scene) -> Scene:
    """The training views with a geometry model's depth under their cameras, at the scale of the sparse points."""
    cameras = Cameras.cat([view.camera for view in scene.training if view.camera is not None])
    images = torch.stack([view.image for view in scene.training]).float() / 255
    with torch.inference_mode():
        found = opened(name)(images, normalize_cameras(cameras)[0].to(torch.float32)).depth
    assert found is not None
    assert scene.points is not None
    views = {}
    for view, depth in zip(scene.training, found.float(), strict=True):
        assert view.camera is not None
        scale = depth_scale(depth, view.camera, scene.points.positions)
        views[view.name] = replace(view, depth=depth * (scale or 1.0))
    return replace(scene, views=tuple(views.get(view.name, view) for view in scene.views))


def scene_scores(scene: Scene, file: Path, side: int) -> dict[str, float]:
    """PSNR on the views asked for of every way, and of guesses without any model."""
    fit = replace(settings_for("draft"), width=side)
    out = {}
    for name, seen in ways(scene).items():
        stereo = StereoSettings(side=side)
        rules = LiftedSettings(rounds=stereo.rounds)
        settings = InstantSettings(model=str(file) if name == "psnr" else "", lifted=rules, stereo=stereo)
        gaussians = instant_splats(seen, settings, fit, LiftSettings(), [], lambda *_: None)
        out[name] = evaluate_views(scene, gaussians).mean_psnr
    views = scene.registered
    depths = [view.depth for view in views if view.depth is not None]
    lenses = torch.cat([view.camera.K for view in views if view.camera is not None])
    rgb = torch.stack([view.image for view in views])
    true = torch.stack(depths) if len(depths) == len(views) else None
    sample = Sample(scene.source, rgb, scene.world_from_cams.float(), lenses.float(), true)
    asked = [k for k, view in enumerate(views) if view.held_out]
    shown = [k for k, view in enumerate(views) if not view.held_out]
    guesses = picture_scores(rgb[asked].float() / 255, sample, shown, asked)
    return out | {name: guesses[name] for name in ("nearest_psnr", "warped_psnr")}


def splat_rows(
    file: Path, side: int, difficulty: float, count: int, real: Mapping[str, Scene]
) -> dict[str, dict[str, float]]:
    """By scene; "procedural" is the mean of ``count`` held-out ones."""
    scenes = (procedural_scene(seed, VIEWS, side, ASKED, difficulty=difficulty, depth=True) for seed in range(count))
    rows = [scene_scores(scene, file, side) for scene in scenes]
    out = {"procedural": {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}}
    return out | {name: scene_scores(scene, file, side) for name, scene in real.items()}


def splat_markdown(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as the card's table; what a scene has no truth for is left empty."""
    head = [
        "scene",
        "PSNR",
        "mini-geometry's depth",
        "plane sweep's",
        "true depth",
        "nearest view",
        "warped by a plane",
    ]
    keys = ("psnr", "geometry_psnr", "swept_psnr", "true_psnr", "nearest_psnr", "warped_psnr")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [name, *[f"{row[key]:.2f}" if key in row else "" for key in keys]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
