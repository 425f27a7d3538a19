"""The two-view RealEstate10K table, remade: pixelSplat's protocol with anybody's data, index and model.

Pictures (640 x 360) are resized by Lanczos to a height of 256 and cut to the middle 256 x 256; K follows the cut.
Scenes are skipped as published: another picture size, a field of view above 100 degrees, a baseline under 0.001. Scores
are means over target pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError
from scenetx.core.atomic import write_bytes
from scenetx.data.re10k import Clip, Clips, Entry, open_clips, read_index
from scenetx.measure.lpips import Lpips, load_lpips
from scenetx.measure.published import published_psnr, published_ssim
from scenetx.models.lvsm import Lvsm
from scenetx.models.rays import Frame, mean_frame
from scenetx.models.view_model import ViewModel, Views
from scenetx.pipeline.workspace import Report, silent

PICTURE = (360, 640)
LARGEST_FOV_DEGREES = 100.0
SMALLEST_BASELINE = 1e-3


@dataclass(frozen=True)
class Re10kSettings:
    """The protocol's numbers."""

    side: int = 256
    limit: int | None = None
    """Score only the first so many scenes."""
    published_frame: bool = True
    """LVSM only: normalise poses over context and target views together, as its authors' script did."""


@dataclass(frozen=True)
class Re10kScores:
    """Means over target pictures; ``lpips`` None without its weights. ``skipped``: scene -> why."""

    psnr: float
    ssim: float
    lpips: float | None
    scenes: int
    pictures: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    per_scene: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """PSNR, SSIM (, LPIPS) of each scene."""
    protocol: str = ""
    lpips_note: str = ""
    """Why there is no LPIPS."""


class Skip(Exception):  # noqa: N818 (no error: the protocol says so)
    """The protocol leaves this scene out."""


def evaluate_re10k(
    data: str | Path,
    index: str | Path,
    model: ViewModel,
    *,
    lpips: Lpips | None = None,
    settings: Re10kSettings | None = None,
    report: Report = silent,
) -> Re10kScores:
    """Scores of a model on a published index. Raises InputError when no scene of the index is in the data."""
    settings = settings or Re10kSettings()
    entries, clips = read_index(index), open_clips(data)
    here = clips.keys()
    keys = clips.ordered([key for key in entries if key in here])[: settings.limit]
    if not keys:
        raise InputError(str(data), f"none of the {len(entries)} scenes of {index}", "give the test split of that data")
    skipped = {key: "not in the data" for key in entries if key not in here}
    rows: dict[str, list[tuple[float, ...]]] = {}
    for done, key in enumerate(keys):
        try:
            rows[key] = _scene(clips, key, entries[key], model, lpips, settings)
        except Skip as reason:
            skipped[key] = str(reason)
        report("evaluate", (done + 1) / len(keys), f"{done + 1} of {len(keys)} scenes")
    every = np.array([row for scene in rows.values() for row in scene])
    if not len(every):
        raise InputError(
            str(data), f"all {len(keys)} scenes were skipped", f"the first: {next(iter(skipped.values()))}"
        )
    means = every.mean(0)
    per_scene = {key: tuple(np.mean(scene, axis=0).round(6).tolist()) for key, scene in rows.items()}
    third = float(means[2]) if lpips is not None else None
    note = _protocol(model, settings, len(rows), len(entries))
    return Re10kScores(float(means[0]), float(means[1]), third, len(rows), len(every), skipped, per_scene, note)


def run_re10k(
    data: str | Path,
    index: str | Path,
    model: str,
    output: str | Path | None = None,
    settings: Re10kSettings | None = None,
    report: Report = silent,
) -> Re10kScores:
    """`evaluate_re10k` for a model by name or file, with LPIPS where its weights are at hand; ``output``: JSON."""
    from scenetx.models.open_view_model import open_view_model

    note = ""
    try:
        lpips = load_lpips()
    except InputError as error:
        lpips, note = None, str(error)
    scores = evaluate_re10k(data, index, open_view_model(model), lpips=lpips, settings=settings, report=report)
    scores = replace(scores, lpips_note=note)
    if output is not None:
        write_bytes(output, json.dumps({"model": model, **asdict(scores)}, indent=1).encode())
    return scores


def _scene(
    clips: Clips, key: str, entry: Entry, model: ViewModel, lpips: Lpips | None, settings: Re10kSettings
) -> list[tuple[float, ...]]:
    """(PSNR, SSIM[, LPIPS]) of each target picture."""
    clip = clips.clip(key)
    if max(*entry.context, *entry.target) >= len(clip):
        raise Skip(f"frame {max(*entry.context, *entry.target)} of {len(clip)}")
    context, shown = framed(clip, entry.context, settings.side)
    target, truth = framed(clip, entry.target, settings.side)
    ends = context.centers[[0, -1]]
    if len(entry.context) > 1 and float((ends[0] - ends[1]).norm()) < SMALLEST_BASELINE:
        raise Skip(f"baseline {float((ends[0] - ends[1]).norm()):.2g}")
    frame: Frame | None = None
    if settings.published_frame and isinstance(model, Lvsm):
        frame = mean_frame(Cameras.cat([context, target]))
    with torch.inference_mode():
        painted = model.decode(model.encode(Views(shown, context), frame), target).float().cpu()
    out: list[tuple[float, ...]] = []
    for a, b in zip(truth, painted.clamp(0, 1), strict=True):
        scores = (published_psnr(a, b), published_ssim(a, b))
        out.append(scores if lpips is None else (*scores, lpips(a, b)))
    return out


def framed(clip: Clip, frames: tuple[int, ...], side: int) -> tuple[Cameras, Tensor]:
    """Cameras and pictures [n side side 3] of frames, resized and cut as the protocol does. Raises Skip."""
    cameras, pictures = [], []
    for index in frames:
        picture = clip.picture(index)
        if tuple(picture.shape[:2]) != PICTURE:
            raise Skip(f"a picture of {picture.shape[1]} x {picture.shape[0]}")
        fx, fy = clip.lens[index][:2]
        widest = max(2 * math.degrees(math.atan(0.5 / focal)) for focal in (fx, fy))
        if widest > LARGEST_FOV_DEGREES:
            raise Skip(f"a field of view of {widest:.0f} degrees")
        small, cut = resized_and_cut(picture, side)
        # As published: K is taken to be scaled exactly and the cut to be central, to the half pixel.
        scale = max(side / picture.shape[0], side / picture.shape[1])
        camera = clip.camera(index, round(picture.shape[0] * scale), round(picture.shape[1] * scale))
        cameras.append(_cut_camera(camera, side))
        pictures.append(small)
        assert cut == ((camera.height - side) // 2, (camera.width - side) // 2)
    return Cameras.cat(cameras), torch.stack(pictures).float() / 255


def resized_and_cut(picture: UInt8[Tensor, "h w 3"], side: int) -> tuple[UInt8[Tensor, "s s 3"], tuple[int, int]]:
    """The middle ``side`` x ``side`` of the picture at the smallest size that holds it (Lanczos, 8 bits), and where."""
    scale = max(side / picture.shape[0], side / picture.shape[1])
    height, width = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
    small = np.asarray(Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.LANCZOS))
    top, left = (height - side) // 2, (width - side) // 2
    return torch.from_numpy(small[top : top + side, left : left + side].copy()), (top, left)


def _cut_camera(camera: Cameras, side: int) -> Cameras:
    """The published K: focal lengths in pixels, the centre kept as a fraction of the cut (0.5 for this data)."""
    K = camera.K.clone()
    K[:, 0, 2] *= side / camera.width
    K[:, 1, 2] *= side / camera.height
    return Cameras(camera.world_from_cam, K, side, side)


def _protocol(model: ViewModel, settings: Re10kSettings, scored: int, listed: int) -> str:
    together = settings.published_frame and isinstance(model, Lvsm)
    frame = "poses normalised over context and targets, as LVSM's authors did" if together else "context views only"
    return (
        f"pixelSplat's RealEstate10K protocol: {scored} of {listed} scenes, {settings.side} px squares by Lanczos "
        f"and centre cut, PSNR/SSIM (sample covariance)/LPIPS (VGG), means over target pictures; frame: {frame}"
    )
