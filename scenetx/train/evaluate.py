"""Scores of trained models on scenes that training never saw, beside baselines that know nothing.

Held-out procedural scenes have seeds below `HELD_OUT_SEEDS`. View models: PSNR and SSIM of painted targets, beside the
nearest shown picture as it is, the same moved as if the scene were one plane at its mean depth, and one mean colour.
Models of splats: the same, and the relative error of the shown views' depth.
Geometry models: pose AUC over pairs and depth AbsRel after one scale a scene, beside cameras that do not turn and one
depth for all pixels (which is given its best scale too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, InputError
from scenetx.core.cameras import pixel_grid
from scenetx.core.rigid import invert_rigid
from scenetx.data.procedural import procedural_views
from scenetx.data.sample import Sample, procedural_samples
from scenetx.data.samplers import SamplerSettings, choose_views
from scenetx.measure.image import psnr, ssim
from scenetx.measure.shape import depth_errors, pose_errors
from scenetx.models.stereo_splats import StereoSplats
from scenetx.models.view_model import ViewModel, Views
from scenetx.splat import rasterize
from scenetx.train.pretrain import Pretraining
from scenetx.train.settings import HELD_OUT_SEEDS, TrainSettings
from scenetx.train.splat_task import depth_range

THRESHOLDS = (5, 10, 30)


def held_out(settings: TrainSettings, count: int, device: torch.device | str = "cpu") -> list[Sample]:
    """``count`` procedural scenes of the settings' final difficulty that are never trained on."""
    if not 0 < count <= HELD_OUT_SEEDS:
        raise ValueError(f"held_out: {count} scenes; give 1 to {HELD_OUT_SEEDS}")
    data = settings.data
    views = data.context if settings.task == "geometry" else data.context + data.targets
    config = replace(data.procedural, height=data.height, width=data.width, views=views)
    out: list[Sample] = []
    for start in range(0, count, 8):
        seeds = range(start, min(start + 8, count))
        out += procedural_samples(procedural_views(seeds, config, device=device).to("cpu"), [str(s) for s in seeds])
    return out


def evaluate(model: nn.Module, settings: TrainSettings, scenes: int) -> dict[str, float]:
    """Scores on held-out procedural scenes: what the loop writes now and then."""
    return score(model, held_out(settings, scenes), settings.data.context, settings.data.targets)


def score(model: nn.Module, samples: Sequence[Sample], context: int, targets: int) -> dict[str, float]:
    """Means over scenes. The views of each are drawn by the scene's place in the list; the model ends in ``eval``."""
    if isinstance(model, Pretraining):
        model = model.geometry
    device = next(model.parameters()).device
    model.eval()
    rows = []
    for index, sample in enumerate(samples):
        rng = np.random.default_rng([5, index])
        if not isinstance(model, ViewModel | StereoSplats):
            rows.append(geometry_scores(model, sample, device))
            continue
        shown, asked = choose_views(rng, SamplerSettings(), sample.cameras, context, targets)
        if isinstance(model, ViewModel):
            rows.append(view_scores(model, sample, shown, asked, device))
        else:
            rows.append(splat_scores(model, sample, shown, asked, device))
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def view_scores(
    model: ViewModel, sample: Sample, shown: Sequence[int], asked: Sequence[int], device: torch.device
) -> dict[str, float]:
    """One scene: what is painted of ``asked`` from ``shown``, and what the baselines say."""
    rgb, cameras = sample.rgb.float() / 255, sample.cameras
    with torch.inference_mode():
        views = Views(rgb[list(shown)].to(device), _of(cameras, shown).to(device.type))
        painted = model.decode(model.encode(views), _of(cameras, asked).to(device.type)).float().cpu().clamp(0, 1)
    return picture_scores(painted, sample, shown, asked)


def splat_scores(
    model: StereoSplats, sample: Sample, shown: Sequence[int], asked: Sequence[int], device: torch.device
) -> dict[str, float]:
    """One scene with known depth: what the splats of ``shown`` show of ``asked``, what the baselines say, and the
    relative error of the depth of ``shown``."""
    rgb, cameras = sample.rgb[list(shown)].float() / 255, sample.cameras.to(torch.float32)
    if sample.depth is None or not bool((sample.depth[list(shown)] > 0).any()):
        raise InputError(sample.name, "no depth is known, so not how near and far to look", "give scenes with depth")
    depth = sample.depth[list(shown)].float()
    valid = depth > 0
    ranges = depth_range(depth[None], valid[None])[0]
    with torch.inference_mode():
        answer = model(rgb.to(device), _of(cameras, shown).to(device.type), ranges.to(device))
        painted = rasterize(answer.splats.gaussians, _of(cameras, asked).to(device.type)).rgb.cpu().clamp(0, 1)
    off = (answer.depth.cpu() - depth).abs()[valid] / depth[valid]
    return picture_scores(painted, sample, shown, asked) | {"absrel": float(off.mean())}


def picture_scores(
    painted: Float[Tensor, "n h w 3"], sample: Sample, shown: Sequence[int], asked: Sequence[int]
) -> dict[str, float]:
    """Pictures of ``asked`` against the truth, beside what is guessed from ``shown`` without any model."""
    rgb, cameras = sample.rgb.float() / 255, sample.cameras
    truth = rgb[list(asked)]
    near = [nearest_view(cameras, shown, view) for view in asked]
    plane = _plane(sample)
    guesses = {
        "": painted,
        "nearest_": rgb[near],
        "warped_": torch.stack(
            [warped(rgb[k], _of(cameras, [k]), _of(cameras, [v]), plane) for k, v in zip(near, asked, strict=True)]
        ),
        "mean_": rgb[list(shown)].mean((0, 1, 2)).expand_as(truth),
    }
    out = {}
    for name, guess in guesses.items():
        pairs = list(zip(truth, guess, strict=True))
        out[f"{name}psnr"] = float(np.mean([min(psnr(a, b), 60.0) for a, b in pairs]))
        if min(truth.shape[1:3]) >= 11:
            out[f"{name}ssim"] = float(np.mean([ssim(a, b) for a, b in pairs]))
    return out


def geometry_scores(model: nn.Module, sample: Sample, device: torch.device) -> dict[str, float]:
    """One scene: cameras and depth of all of its views, and what the baselines say; depth only where it is known."""
    with torch.inference_mode():
        found = model(sample.rgb.float().to(device) / 255)
    poses = sample.world_from_cam.double()
    still = torch.eye(4, dtype=torch.float64).repeat(len(sample), 1, 1)
    # Cameras that do not turn and stand in a row: a direction as good as any.
    still[:, 0, 3] = torch.arange(len(sample), dtype=torch.float64)
    out: dict[str, float] = {}
    if len(sample) > 1:
        for name, guess in (("", found.cameras.world_from_cam.double().cpu()), ("still_", still)):
            errors = pose_errors(poses, guess)
            out |= {f"{name}auc{t}": 100 * errors.auc(THRESHOLDS)[float(t)] for t in THRESHOLDS}
            out[f"{name}rotation"] = float(errors.relative_rotation_deg.median())
    if sample.depth is not None and bool((sample.depth > 0).any()):
        true = sample.depth
        out["absrel"] = depth_errors(true, found.depth.float().cpu(), align="scale").abs_rel
        out["delta1"] = depth_errors(true, found.depth.float().cpu(), align="scale").delta1
        out["flat_absrel"] = depth_errors(true, torch.ones_like(true), align="scale").abs_rel
    return out


def nearest_view(cameras: Cameras, shown: Sequence[int], view: int) -> int:
    """The shown view whose place and direction are nearest to those of ``view``."""
    centers = cameras.centers.double()
    extent = (centers - centers.mean(0)).norm(dim=-1).max().clamp_min(1e-9)
    place = torch.cat([centers / extent, cameras.forward.double()], -1)
    return list(shown)[int((place[list(shown)] - place[view]).norm(dim=-1).argmin())]


def warped(picture: Float[Tensor, "h w 3"], source: Cameras, target: Cameras, depth: float) -> Float[Tensor, "h w 3"]:
    """``picture`` of camera ``source`` as ``target`` would see it if all lay at z-depth ``depth`` of the target."""
    height, width = picture.shape[:2]
    pixels = pixel_grid(height, width, dtype=torch.float64).flatten(0, 1)
    source, target = source.to(torch.float64), target.to(torch.float64)
    rays = torch.cat([pixels, torch.ones_like(pixels[:, :1])], -1) @ torch.linalg.inv(target.K[0]).T
    motion = invert_rigid(source.world_from_cam)[0] @ target.world_from_cam[0]
    there = (rays * depth) @ motion[:3, :3].T + motion[:3, 3]
    seen = there @ source.K[0].T
    place = seen[:, :2] / seen[:, 2:].clamp_min(1e-6)
    grid = 2 * place / torch.tensor([width, height], dtype=torch.float64) - 1
    # Outside of the picture, and behind the camera, the border's colours go on.
    out = torch.nn.functional.grid_sample(
        picture.permute(2, 0, 1)[None],
        grid.reshape(1, height, width, 2).to(picture),
        padding_mode="border",
        align_corners=False,
    )
    return out[0].permute(1, 2, 0)


def table(scores: Mapping[str, float]) -> str:
    """Scores as lines a person reads."""
    return "\n".join(f"  {name:<16} {value:8.3f}" for name, value in scores.items())


def _of(cameras: Cameras, views: Sequence[int]) -> Cameras:
    return cameras[torch.as_tensor(list(views))]


def _plane(sample: Sample) -> float:
    """The scene's mean depth; without depth, how far its cameras stand apart, doubled."""
    if sample.depth is not None and bool((sample.depth > 0).any()):
        return float(sample.depth[sample.depth > 0].mean())
    centers = sample.world_from_cam[:, :3, 3]
    return max(2 * float((centers - centers.mean(0)).norm(dim=-1).max()), 1e-3)
