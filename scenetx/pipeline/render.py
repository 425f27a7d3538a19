"""Novel views of a scene: pictures, a video, depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError, Render, Scene
from scenetx.core.paths import orbit, spiral, through
from scenetx.io.camera_path import read_camera_path
from scenetx.io.images import write_picture
from scenetx.io.scene_dir import refuse_own
from scenetx.io.video import CONTAINERS, write_video
from scenetx.pipeline.view_render import Painter, PaintSettings
from scenetx.pipeline.workspace import Report, silent
from scenetx.splat import Backend, rasterize

PATHS = {"orbit": orbit, "spiral": spiral, "input": through}
MOST_FRAMES = 100_000


@dataclass(frozen=True)
class PathSettings:
    """A flight through the scene."""

    path: str = "orbit"
    """orbit, spiral, input (through the pictures' own cameras), or a camera path file (.json)."""
    frames: int = 120
    fps: float = 30.0
    """Frames a second of a video."""
    width: int | None = None
    """Width of the pictures; the height follows. None = as the scene's pictures."""
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    depth: bool = False
    """Write z-depth too: 16-bit PNG beside each picture, or a second video in false colour."""
    backend: Backend = "auto"
    model: str | None = None
    """Paint with a view-synthesis model (a name or a weight file) from the scene's pictures, instead of its splats."""
    context: int = 4
    """Pictures a model is shown for a view."""


def render(
    scene: Scene,
    cameras: Cameras,
    *,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    backend: Backend = "auto",
) -> Render:
    """What the scene's Gaussians look like from ``cameras`` (any size); float RGB, may exceed 1 where splats glow."""
    if scene.gaussians is None:
        raise InputError("the scene", "has no splats", "run scenetx reconstruct without --no-splats first")
    with torch.no_grad():
        backdrop = torch.tensor(background, dtype=scene.gaussians.means.dtype)
        return rasterize(scene.gaussians, cameras, background=backdrop, backend=backend)


def cameras_for(scene: Scene, settings: PathSettings) -> Cameras:
    """The flight's cameras, of the size asked for, with even sides (video needs them)."""
    if settings.frames < 1:
        raise InputError("frames", settings.frames, "ask for at least one")
    if settings.frames > MOST_FRAMES:
        raise InputError("frames", f"{settings.frames:,}", f"ask for at most {MOST_FRAMES:,}")
    if settings.path in PATHS:
        if not scene.registered:
            raise InputError("the scene", "has no cameras", "reconstruct it first")
        cameras = PATHS[settings.path](scene, settings.frames)
    elif settings.path.endswith(".json"):
        cameras = read_camera_path(settings.path)
    else:
        raise InputError("path", repr(settings.path), f"choose {', '.join(PATHS)} or name a .json file")
    width = cameras.width if settings.width is None else settings.width
    if not 2 <= width <= 16384:
        raise InputError("width", width, "choose between 2 and 16384 pixels")
    height = round(cameras.height * width / cameras.width)
    return cameras.resized(max(2, height // 2 * 2), width // 2 * 2)


def render_path(
    scene: Scene, output: str | Path, settings: PathSettings | None = None, report: Report = silent
) -> tuple[Path, ...]:
    """Render a flight to a video file (``.mp4 .webm .mkv .mov``) or, for a name without suffix, a folder of PNG files.

    Gives the files written. Depth is 16-bit PNG (world unit / 1000 a step; 0 = nothing there) for a folder, and for a
    video a second file ``NAME-depth`` of the same kind in grey, near = bright.
    """
    settings, output = settings or PathSettings(), Path(output)
    refuse_own(output)
    cameras = cameras_for(scene, settings)
    painter = _painter(scene, settings)
    if painter is not None:
        cameras = painter.size(cameras, settings.width)
    if output.suffix.lower() in CONTAINERS:
        return _to_video(_renders(scene, cameras, settings, report, painter), output, settings)
    return _to_folder(_renders(scene, cameras, settings, report, painter), output, settings)


def _painter(scene: Scene, settings: PathSettings) -> Painter | None:
    """None where splats are rendered. Raises InputError for depth, which view-synthesis models do not have."""
    if settings.model is None:
        return None
    if settings.depth:
        raise InputError("depth", f"unknown to the model {settings.model}", "leave --depth or --model out")
    from scenetx.models.open_view_model import open_view_model

    return Painter(scene, open_view_model(settings.model), PaintSettings(context=settings.context))


def _renders(
    scene: Scene, cameras: Cameras, settings: PathSettings, report: Report, painter: Painter | None
) -> Iterator[Render]:
    if painter is not None:
        yield from painter.paint(cameras, report)
        return
    for index in range(len(cameras)):
        yield render(scene, cameras[index], background=settings.background, backend=settings.backend)
        report("render", (index + 1) / len(cameras), f"{index + 1} of {len(cameras)}")


def _to_video(renders: Iterator[Render], output: Path, settings: PathSettings) -> tuple[Path, ...]:
    depths: list[Float[np.ndarray, "h w"]] = []

    def frames() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        for picture in renders:
            if settings.depth:
                depths.append(picture.depth[0].numpy().astype(np.float16))
            yield to_uint8(picture.rgb[0])

    write_video(output, frames(), settings.fps)
    if not settings.depth:
        return (output,)
    beside = output.with_name(f"{output.stem}-depth{output.suffix}")
    write_video(beside, (_grey(depth, depths) for depth in depths), settings.fps)
    return output, beside


def _to_folder(renders: Iterator[Render], output: Path, settings: PathSettings) -> tuple[Path, ...]:
    if output.suffix:
        raise InputError(str(output), f"suffix {output.suffix}", f"name a {', '.join(CONTAINERS)} file, or a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be made a folder ({error.strerror or error})"
        raise InputError(str(output), why, "choose another folder") from error
    files = []
    for index, picture in enumerate(renders):
        files.append(output / f"{index:05d}.png")
        write_picture(files[-1], to_uint8(picture.rgb[0]))
        if settings.depth:
            files.append(output / f"{index:05d}-depth.png")
            thousandths = (picture.depth[0] * 1000).clamp(0, 65535).round()
            Image.fromarray(thousandths.numpy().astype(np.uint16)).save(files[-1])
    return tuple(files)


def to_uint8(rgb: Float[Tensor, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """An sRGB picture in [0, 1] as bytes, rounded to nearest."""
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _grey(depth: Float[np.ndarray, "h w"], depths: list[Float[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Inverse depth as grey over one range for the whole flight, so that it does not flicker."""
    near = min((float(np.quantile(d[d > 0], 0.01)) for d in depths if (d > 0).any()), default=1.0)
    shade = np.where(depth > 0, near / np.maximum(depth.astype(np.float32), 1e-6), 0).clip(0, 1)
    return np.repeat((shade * 255).astype(np.uint8)[..., None], 3, axis=-1)
