"""Pictures of the report as data URIs: photos and renders, error maps, the plan of the cameras as SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, Scene, unproject
from scenetx.core.paths import camera_layout

# Inferno (N. Smith, S. van der Walt, 2015; perceptually uniform, dark to light) as a polynomial in t of [0, 1].
_INFERNO = np.array(
    [
        [0.0002189403691192265, 0.001651004631001012, -0.01948089843709184],
        [0.1065134194856116, 0.5639564367884091, 3.932712388889277],
        [11.60249308247187, -3.972853965665698, -15.9423941062914],
        [-41.70399613139459, 17.43639888205313, 44.35414519872813],
        [77.162935699427, -33.40235894210092, -81.80730925738993],
        [-71.31942824499214, 32.62606426397723, 73.20951985803202],
        [25.13112622477341, -12.24266895238567, -23.07032500287172],
    ]
)


def inferno(value: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The inferno colour map; values are clipped to [0, 1]."""
    t = np.clip(np.nan_to_num(value, nan=1.0), 0, 1)[..., None]
    rgb = np.zeros((*t.shape[:-1], 3))
    for coefficient in _INFERNO[::-1]:
        rgb = rgb * t + coefficient
    return (255 * np.clip(rgb, 0, 1)).round().astype(np.uint8)


def absolute_error(photo: UInt8[np.ndarray, "h w 3"], render: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Mean absolute difference of the three sRGB channels, in levels 0 to 255."""
    return np.abs(photo.astype(np.float32) - render.astype(np.float32)).mean(-1)


def error_scale(errors: Sequence[Float[np.ndarray, "h w"]]) -> int:
    """One round scale (levels) for all error maps, holding 99 % of their pixels, so that they can be compared."""
    highest = max((float(np.quantile(error[::2, ::2], 0.99)) for error in errors), default=0.0)
    return next((scale for scale in (16, 32, 64, 128) if highest <= scale), 255)


def data_uri(pixels: UInt8[np.ndarray, "h w c"], max_side: int, quality: int = 82) -> str:
    """The picture as WebP inside a data URI, shrunk to ``max_side`` pixels; lossless where it has an alpha channel."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, lossless=pixels.shape[2] == 4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class _Frame:
    """A rectangle of the projected world and how it lands in the drawing (y of the drawing points down)."""

    left: float
    top: float
    scale: float
    width: float
    height: float

    def place(self, flat: Float[Tensor, "p 2"]) -> Float[Tensor, "p 2"]:
        x = (flat[:, 0] - self.left) * self.scale
        y = (self.top - flat[:, 1]) * self.scale
        return torch.stack([x, y], dim=-1)


def camera_plans(scene: Scene) -> list[tuple[str, str]]:
    """(title, SVG) of the registered cameras and points from above and from the side; empty without cameras.

    "Up" is the photographers' (`core.paths.up_axis`), since no one says where gravity is; the first axis is the
    direction along which the cameras spread most.
    """
    if not scene.registered:
        return []
    layout = camera_layout(scene)
    centers = scene.world_from_cams[:, :3, 3].double()
    flat = centers - centers.mean(0)
    flat = flat - (flat @ layout.up)[:, None] * layout.up
    # A tiny slope breaks the tie for one camera or a perfect circle.
    first = torch.linalg.svd(flat + 1e-9 * torch.eye(3, dtype=torch.float64)[:1], full_matrices=True).Vh[0]
    first = torch.nn.functional.normalize(first - (first @ layout.up) * layout.up, dim=0)
    if float(first @ scene.world_from_cams[:, :3, 0].double().mean(0)) < 0:
        first = -first
    second = torch.linalg.cross(layout.up, first, dim=0)
    views = [("From above", torch.stack([first, second], -1)), ("From the side", torch.stack([first, layout.up], -1))]
    return [(title, _plan(scene, axes, layout.focus, title)) for title, axes in views]


def _plan(scene: Scene, axes: Float[Tensor, "3 2"], focus: Float[Tensor, "3"], title: str) -> str:
    poses = scene.world_from_cams.double()
    centers = poses[:, :3, 3] @ axes
    cloud, colors = _cloud(scene)
    flat = cloud @ axes
    frame = _frame(centers, flat, (focus @ axes)[None])
    parts = [_dots(frame.place(flat), colors, frame)] if len(flat) else []
    length = 0.055 * max(frame.width, frame.height) / frame.scale
    for view in scene.registered:
        if view.camera is not None:
            label = f"{view.name} (held out)" if view.held_out else view.name
            kind = "held" if view.held_out else "train"
            parts.append(_wedge(label, kind, view.camera, axes, frame, length))
    parts.append(_scale_bar(frame))
    held_out = len(scene.held_out)
    text = f"{title}: {len(scene.registered)} cameras, {held_out} of them held out, and {len(cloud)} scene points"
    return (
        f'<svg viewBox="0 0 {frame.width:.0f} {frame.height:.0f}" role="img" aria-label="{escape(text, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _cloud(scene: Scene, limit: int = 20_000) -> tuple[Float[Tensor, "p 3"], UInt8[Tensor, "p 3"]]:
    if scene.points is not None and len(scene.points):
        positions, colors = scene.points.positions, scene.points.colors
    elif scene.gaussians is not None and len(scene.gaussians):
        solid = scene.gaussians.opacities > 0.3
        positions = scene.gaussians.means[solid]
        colors = (255 * scene.gaussians.rgb[solid]).round().to(torch.uint8)
    else:
        return torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.uint8)
    positions, colors = positions.detach().double().cpu(), colors.detach().cpu()
    finite = positions.isfinite().all(-1)
    positions, colors = positions[finite], colors[finite]
    step = max(1, len(positions) // limit)
    return positions[::step], colors[::step]


def _frame(centers: Float[Tensor, "n 2"], cloud: Float[Tensor, "p 2"], focus: Float[Tensor, "1 2"]) -> _Frame:
    """All cameras, what they look at, and the bulk of the points (far ones would shrink the plan to a dot)."""
    shown = torch.cat([centers, focus])
    if len(cloud) >= 20:
        low, high = torch.quantile(cloud, cloud.new_tensor([0.02, 0.98]), dim=0)
        reach = 2.5 * (shown.amax(0) - shown.amin(0)).max().clamp_min(1e-9)
        middle = shown.mean(0)
        shown = torch.cat([shown, low[None].maximum(middle - reach), high[None].minimum(middle + reach)])
    low, high = shown.amin(0), shown.amax(0)
    span = float((high - low).max()) or 1.0
    size = high - low + 0.24 * span
    middle = (low + high) / 2
    width, height = 640.0, 480.0
    scale = min(width / float(size[0]), height / float(size[1]))
    return _Frame(float(middle[0]) - width / scale / 2, float(middle[1]) + height / scale / 2, scale, width, height)


def _dots(placed: Float[Tensor, "p 2"], colors: UInt8[Tensor, "p 3"], frame: _Frame) -> str:
    """The points as one small transparent picture: thousands of circles would make the page heavy."""
    width, height = round(frame.width * 2), round(frame.height * 2)
    pixel = (placed * 2).floor().long()
    inside = ((pixel >= 0) & (pixel < torch.tensor([width - 2, height - 2]))).all(-1)
    x, y = pixel[inside].unbind(-1)
    canvas = np.zeros((height, width, 4), dtype=np.uint8)
    rgba = torch.nn.functional.pad(colors[inside], (0, 1), value=210).numpy()
    thick = 2 if len(placed) > 8000 else 3
    for dx, dy in product(range(thick), repeat=2):
        canvas[(y + dy).numpy(), (x + dx).numpy()] = rgba
    uri = data_uri(canvas, max(width, height))
    return f'<image href="{uri}" width="{frame.width:.0f}" height="{frame.height:.0f}"/>'


def _wedge(label: str, kind: str, camera: Cameras, axes: Float[Tensor, "3 2"], frame: _Frame, length: float) -> str:
    """The outline of a camera's pyramid with its true field of view."""
    width, height = camera.width, camera.height
    corners = torch.tensor([[[0, 0], [width, 0], [width, height], [0, height]]], dtype=torch.float64)
    world = unproject(corners, torch.full((1, 4), length, dtype=torch.float64), camera.to(torch.float64))[0]
    apex, *base = frame.place(torch.cat([camera.centers.double(), world]) @ axes).tolist()
    sides = "".join(f"M{apex[0]:.1f} {apex[1]:.1f}L{x:.1f} {y:.1f}" for x, y in base)
    far = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in base) + "Z"
    dot = f'<circle cx="{apex[0]:.1f}" cy="{apex[1]:.1f}" r="3.2"/>'
    return f'<g class="cam {kind}"><title>{escape(label)}</title><path d="{far}"/><path d="{sides}"/>{dot}</g>'


def _scale_bar(frame: _Frame) -> str:
    """Nothing where the plan has no size: cameras too far apart for arithmetic."""
    target = frame.width / frame.scale / 5 if frame.scale > 0 else 0.0
    if not 0 < target < math.inf:
        return ""
    power = 10.0 ** math.floor(math.log10(target))
    length = next(k * power for k in (5, 2, 1) if k * power <= target)
    x, y, end = 16, frame.height - 14, 16 + length * frame.scale
    return (
        f'<g class="scale"><path d="M{x} {y - 5:.1f}V{y:.1f}H{end:.1f}V{y - 5:.1f}"/>'
        f'<text x="{end + 8:.1f}" y="{y + 1:.1f}">{length:g} world units</text></g>'
    )
