"""The training pictures as splats by a model of ours that compares them (`scenetx.models.stereo_splats`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError, Points, View
from scenetx.data.samplers import farthest_views
from scenetx.geometry.lift import agreement
from scenetx.geometry.sweep import depth_ranges
from scenetx.models.own import open_own, read_stated, shipped
from scenetx.models.pixel_splats import merged
from scenetx.models.stereo_splats import ROUND, StereoAnswer, StereoSplats
from scenetx.pipeline.lifting import resized

NAME = "stereo_splats"


@dataclass(frozen=True)
class StereoSettings:
    """How such a model looks at a scene. side: longest of its pictures, in pixels; sources: other pictures that each is
    compared with; faint: splats whose opacity is below it are left out."""

    side: int = 128
    sources: int = 4
    faint: float = 0.05
    whole: int = 4
    """Pictures that become splats whatever they show, those farthest apart: as many as such models learn from."""
    new: float = 0.15
    """Share of another picture that must be no surface of theirs for it to become splats too."""
    same: float = 0.05
    """Surfaces whose depths differ by less than this share are one."""
    rounds: int = 4
    """Times that colours are set right against all pictures."""

    def __post_init__(self) -> None:
        if self.side < 32 or self.sources < 1 or self.whole < 1 or self.rounds < 0 or not 0 <= self.faint < 1:
            shown = (self.side, self.sources, self.whole, self.rounds, self.faint)
            what = "stereo side, sources, whole, rounds, faint"
            raise InputError(what, shown, "use 32, 1, 1, 0 or more; faint in [0, 1)")


def stereo_file(asked: str) -> Path | None:
    """The weights of a name (``mini``, ``mini-splat``) or file, where these are of such a model; None for all else."""
    path = shipped(asked, "splat") or Path(asked)
    stated = read_stated(path)
    return path if stated is not None and stated.model == NAME else None


def open_stereo(path: Path, settings: StereoSettings) -> StereoSplats:
    """The model, told to compare as many pictures as the settings say. Raises InputError for a broken file."""
    stated = read_stated(path)
    assert stated is not None
    model = open_own(path, stated)
    assert isinstance(model, StereoSplats)
    model.config = replace(model.config, sources=settings.sources)
    return model


def stereo_splats(
    views: Sequence[View], points: Points | None, model: StereoSplats, most: int, settings: StereoSettings
) -> Gaussians:
    """At most ``most`` Gaussians of views that each have a camera, all looked at in one size.

    points: of the scene; they say how near and far to look. Raises InputError for fewer than two views or points that
    no camera sees.
    """
    if len(views) < 2 or points is None or len(points) == 0:
        shown = f"{len(views)} views, {0 if points is None else len(points)} points"
        raise InputError(
            "splats by comparing views", shown, "give two or more views with cameras and the points between"
        )
    images, cameras, used = _of_one_size(views, settings.side)
    ranges = depth_ranges([cameras[k].to(torch.float64) for k in range(len(views))], points)
    with torch.inference_mode():
        answer = model(images, cameras, torch.tensor(ranges, dtype=torch.float32))
    found, needed = answer.splats.gaussians, torch.zeros_like(used)
    needed[_needed(answer, cameras, settings)] = True
    found = found[(needed & used).flatten() & found.finite() & (found.opacities > settings.faint)]
    return merged(found, found.opacities, cameras.centers, most)


def _needed(answer: StereoAnswer, cameras: Cameras, settings: StereoSettings) -> list[int]:
    """Few pictures that together show what all do: those farthest apart, then what still has something new.

    Splats of many pictures at one place are one too many: each is a little off, and all are seen.
    """
    depths, single = list(answer.depth), [cameras[k] for k in range(len(cameras))]
    chosen: list[int] = []
    for index in farthest_views(cameras, len(cameras)):
        if len(chosen) >= settings.whole:
            known = agreement(depths, single, index, chosen, settings.same) > 0
            if float((~known).float().mean()) < settings.new:
                continue
        chosen.append(index)
    return chosen


def _of_one_size(views: Sequence[View], side: int) -> tuple[Float[Tensor, "n h w 3"], Cameras, Bool[Tensor, "n h w"]]:
    """Pictures, cameras and what their masks let through, at the usual shape, at most ``side`` on the longer side."""
    tall, wide = median(view.height for view in views), median(view.width for view in views)
    share = min(1.0, side / max(tall, wide))
    height, width = (max(4 * ROUND, ROUND * round(share * length / ROUND)) for length in (tall, wide))
    images, used, cameras = zip(*(resized(view, height, width) for view in views), strict=True)
    return torch.stack(images), Cameras.cat(list(cameras)), torch.stack(used)
