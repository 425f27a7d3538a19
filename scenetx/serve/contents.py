"""What a viewer shows of a scene: the messages that describe it, its splats, its points and its photos."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Gaussians, Points, Scene, View
from scenetx.core.cameras import focal_and_center
from scenetx.core.paths import camera_layout, up_axis
from scenetx.core.scene import Stage
from scenetx.serve.messages import PointData, SceneInfo, SplatData, ViewInfo

FRAME_STAGE = "frame"
"""The line of history that says which way is up, where a person set it."""


@dataclass(frozen=True)
class ContentSettings:
    """What bounds the size of what is sent."""

    thumbnail_side: int = 160  # longest side, pixels
    photo_side: int = 960
    photo_quality: int = 82
    photo_bytes: int = 12_000_000  # all photos of a static page together; more pictures are made smaller
    max_points: int = 400_000  # of more, an even selection


@dataclass(frozen=True)
class Contents:
    """All that a page needs, in messages. ``photos``: JPEG by view name, empty where the server has them as files."""

    info: SceneInfo
    splats: SplatData | None = None
    points: PointData | None = None
    photos: Mapping[str, bytes] = field(default_factory=dict)


def describe(
    scene: Scene,
    *,
    title: str = "",
    photo_addresses: Mapping[str, str] | None = None,
    editable: bool = False,
    rendered: bool = False,
    live: bool = False,
    settings: ContentSettings | None = None,
) -> SceneInfo:
    """The scene in words and thumbnails. photo_addresses: where the page finds a view's photo, by name."""
    settings = settings or ContentSettings()
    center, radius = bounds(scene)
    scores = scene.metrics.get("views")
    views = tuple(
        _view_info(view, (photo_addresses or {}).get(view.name, ""), scores, settings) for view in scene.registered
    )
    return SceneInfo(
        title=title or Path(scene.source).name or "Scene",
        up=up_of(scene),
        center=_vector(center),
        radius=radius,
        views=views,
        splats=0 if scene.gaussians is None else len(scene.gaussians),
        points=0 if scene.points is None else min(len(scene.points), settings.max_points),
        editable=editable,
        rendered=rendered,
        live=live,
    )


def up_of(scene: Scene) -> tuple[float, float, float]:
    """Up as a person set it (the ``frame`` stage), else as the cameras were held."""
    for stage in scene.history:
        known = _stated_up(stage)
        if known is not None:
            return known
    if not scene.registered:
        return (0.0, -1.0, 0.0)
    cameras = [view.camera for view in scene.registered if view.camera is not None]
    first = cameras[0]
    pooled = type(first)(scene.world_from_cams, torch.cat([camera.K for camera in cameras]), first.height, first.width)
    return _vector(up_axis(pooled))


def _stated_up(stage: Stage) -> tuple[float, float, float] | None:
    up = stage.settings.get("up") if stage.name == FRAME_STAGE else None
    if isinstance(up, list | tuple) and len(up) == 3 and all(isinstance(value, Real) for value in up):
        vector = torch.tensor([float(value) for value in up], dtype=torch.float64)
        if vector.isfinite().all() and vector.norm() > 1e-6:
            return _vector(vector / vector.norm())
    return None


def bounds(scene: Scene) -> tuple[Float[Tensor, "3"], float]:
    """A sphere around what the cameras look at: the middle of the seen, and where four fifths of it lie."""
    cloud = _cloud(scene)
    if scene.registered:
        layout = camera_layout(scene)
        center = layout.focus.double()
    elif len(cloud):
        center = cloud.median(0).values
    else:
        return torch.zeros(3, dtype=torch.float64), 1.0
    distances = (cloud - center).norm(dim=-1) if len(cloud) else torch.zeros(0, dtype=torch.float64)
    radius = float(distances.quantile(0.8)) if len(distances) else 0.0
    if scene.registered:
        # Background far behind must not make the scene small: the cameras' own distances count.
        reach = float((scene.world_from_cams[:, :3, 3].double() - center).norm(dim=-1).median())
        radius = min(max(radius, 0.2 * reach), 2.0 * reach) if reach > 0 else radius
    return center, radius if math.isfinite(radius) and radius > 0 else 1.0


def _cloud(scene: Scene, most: int = 20_000) -> Float[Tensor, "p 3"]:
    """Positions to measure with: points if there are some, else splats that can be seen; an even selection."""
    if scene.points is not None and len(scene.points) > 10:
        positions = scene.points.positions
    elif scene.gaussians is not None and len(scene.gaussians):
        visible = scene.gaussians.opacities > 0.1
        positions = scene.gaussians.means[visible] if bool(visible.any()) else scene.gaussians.means
    else:
        return torch.zeros(0, 3, dtype=torch.float64)
    positions = positions.detach().cpu().double()
    positions = positions[positions.isfinite().all(-1)]
    return positions[:: max(1, len(positions) // most)]


def _view_info(view: View, photo: str, scores: Any, settings: ContentSettings) -> ViewInfo:
    assert view.camera is not None
    K = view.camera.K[0].double()
    score = scores.get(view.name) if isinstance(scores, Mapping) else None
    psnr = score.get("psnr") if isinstance(score, Mapping) else None
    return ViewInfo(
        name=view.name,
        world_from_cam=tuple(view.camera.world_from_cam[0].double().flatten().tolist()),
        lens=focal_and_center(K),
        width=view.width,
        height=view.height,
        held_out=view.held_out,
        thumbnail=jpeg(view.image.cpu().numpy(), settings.thumbnail_side, 75),
        photo=photo,
        psnr=float(psnr) if isinstance(psnr, Real) else None,
    )


def photos(scene: Scene, settings: ContentSettings | None = None) -> dict[str, bytes]:
    """Every registered photo as a JPEG, made smaller until all of them keep to ``settings.photo_bytes``."""
    settings = settings or ContentSettings()
    side = settings.photo_side
    while True:
        pictures = {
            view.name: jpeg(view.image.cpu().numpy(), side, settings.photo_quality) for view in scene.registered
        }
        total = sum(map(len, pictures.values()))
        if total <= settings.photo_bytes or side <= settings.thumbnail_side:
            return pictures
        # Bytes go about with the area; a little less than that sum asks for, so that one more round is enough.
        side = max(settings.thumbnail_side, int(side * 0.95 * math.sqrt(settings.photo_bytes / total)))


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], longest: int, quality: int) -> bytes:
    """A picture of at most ``longest`` pixels a side as JPEG."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def point_data(points: Points, settings: ContentSettings | None = None) -> PointData:
    """The cloud for the page. Confidence falls with the reprojection error, by rank: 255 is the best point."""
    settings = settings or ContentSettings()
    finite = points.positions.isfinite().all(-1).nonzero()[:, 0]
    chosen = finite[:: max(1, -(-len(finite) // settings.max_points))]
    confidence = np.full(len(chosen), 255, np.uint8)
    if points.errors is not None and len(chosen):
        order = np.argsort(np.argsort(points.errors[chosen].detach().cpu().numpy(), kind="stable"), kind="stable")
        confidence = (255 - np.floor(order * (255 / max(len(order) - 1, 1)))).astype(np.uint8)
    return PointData(
        count=len(chosen),
        positions=points.positions[chosen].detach().cpu().numpy().astype("<f4").tobytes(),
        colors=points.colors[chosen].cpu().numpy().astype(np.uint8).tobytes(),
        confidence=confidence.tobytes(),
    )


def by_importance(gaussians: Gaussians) -> Int[Tensor, "g"]:
    """Indices, the splats that cover most (opacity times the two largest axes) first: a budget takes a prefix."""
    two = gaussians.scales.detach().topk(2, dim=-1).values
    weight = gaussians.opacities.detach() * two.prod(-1)
    return torch.nan_to_num(weight, nan=0.0).argsort(descending=True, stable=True)


def _vector(values: Float[Tensor, "3"]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
