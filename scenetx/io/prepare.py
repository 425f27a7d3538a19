"""From a SOURCE to a Scene of working pictures, and from known lenses to straight ones."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import uniform_filter
from torch import Tensor

from scenetx.core import Cameras, InputError, Original, Scene, Skipped, Stage, View
from scenetx.io.images import Picture, decode_picture, quiet_pillow, read_mask, write_picture
from scenetx.io.lens import pinhole_for, straighten, straighten_nearest
from scenetx.io.posed import Lens, PosedPicture, PosedSource
from scenetx.io.sources import Found, Kind, find_source, natural_key, safe_names
from scenetx.io.video import VideoSettings, choose_frames

OnProgress = Callable[[str, float], None]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# One decoded 50-megapixel photo takes 350 MB on its way: two at a time fit any laptop.
_THREADS = 2


@dataclass(frozen=True)
class PrepareSettings:
    """How sources become working pictures."""

    width: int = 960
    """Longest side of the working pictures, pixels; smaller pictures are not enlarged."""
    num_frames: int = 120
    """Frames taken from a video, at most."""
    masks: bool = True
    """Use masks/ folders and transparency."""
    keep_duplicates: bool = False
    """Keep pictures whose decoded pixels are all equal to an earlier one's."""
    min_side: int = 32
    """Pictures with a shorter side below this many pixels are skipped."""


@dataclass(frozen=True)
class Opened:
    """A source, opened. For kind "scene" the scene is empty and ``path`` is the folder to load.

    ``posed`` lists exactly the scene's views, under the same names (None unless kind is "posed").
    """

    scene: Scene
    posed: PosedSource | None
    kind: Kind
    path: Path


@dataclass(frozen=True)
class CameraModel:
    """A camera of a ``height`` x ``width`` upright picture, the original or a resized one: see `PosedPicture`."""

    world_from_cam: Float[Tensor, "4 4"]
    K: Float[Tensor, "3 3"]
    distortion: tuple[float, ...]
    lens: Lens
    height: int
    width: int


@dataclass(frozen=True)
class _Prepared:
    """A decoded picture at working size, before it has a name."""

    view: View
    digest: bytes
    note: str
    has_alpha: bool


def open_source(source: str, settings: PrepareSettings, folder: Path, on_progress: OnProgress | None = None) -> Opened:
    """Find out what ``source`` is (order: `sources.find_source`) and read its pictures at working size.

    Views come in natural order of their file names, without cameras; for a posed source call `with_cameras` with
    ``posed``. Unreadable, tiny and duplicate pictures are left out and named in ``Scene.skipped``. Frames of a video
    are written below ``folder``; everything else is left where it is. ``View.original.path`` is absolute.

    Raises:
        InputError: nothing to read, or not one usable picture; the message names the file and the first reason.
    """
    if settings.width < 16 or settings.num_frames < 1:
        value = f"width {settings.width}, num_frames {settings.num_frames}"
        raise InputError("prepare settings", value, "give a width of 16 or more and at least one frame")
    start = time.monotonic()
    report = on_progress or _silent
    what = find_source(source)
    if what.kind == "scene":
        return Opened(Scene(views=(), source=source), None, "scene", what.path)
    found = what.found
    notes: tuple[str, ...] = ()
    if what.kind == "video":
        chosen = choose_frames(what.path, VideoSettings(num_frames=settings.num_frames), folder / "frames", report)
        found = tuple(Found(frame.path.name, frame.path, None, frame.time) for frame in chosen.frames)
        notes = chosen.notes
    posed = {picture.name: picture for picture in what.posed.pictures} if what.posed else {}

    def load(item: Found) -> _Prepared | InputError:
        try:
            return _prepare(item, settings, posed.get(item.name))
        except InputError as error:
            return error

    with quiet_pillow():
        results = list(_each(load, found, report, "pictures"))
    kept, left_out = _sort_out(found, results, keep_duplicates=settings.keep_duplicates or what.kind == "posed")
    skipped = (*what.skipped, *left_out)
    if not kept:
        reasons = "; ".join(f"{line.name}: {line.reason}" for line in skipped[:2])
        raise InputError(source, f"not one usable picture ({reasons})", "give pictures that an image viewer can open")
    names = safe_names(list(kept), [".png" if item.has_alpha else ".jpg" for item in kept.values()])
    named = dict(zip(kept, names, strict=True))
    views = tuple(replace(item.view, name=named[old]) for old, item in kept.items())
    notes = (*notes, *(f"{named[old]}: {item.note}" for old, item in kept.items() if item.note))
    scene = Scene(views=views, source=source, skipped=skipped)
    scene = scene.with_stage(Stage("open", time.monotonic() - start, asdict(settings), notes))
    return Opened(scene, _renamed(what.posed, named), what.kind, what.path)


def write_upright(scene: Scene, folder: Path, max_side: int) -> Mapping[str, Path]:
    """Every view's original as an upright 8-bit JPEG below ``folder``, the longer side at most ``max_side`` pixels.

    Reduced pictures are resampled corner to corner: x of the original = x of the file * (original width / file width),
    and likewise for y. A file that is there already with the right size and newer than its original is kept. Raises
    InputError when an original is gone or the disk is full.
    """

    def write(view: View) -> Path:
        path = (folder / view.name).with_suffix(".jpg")
        height, width = _fitted(view.original.height, view.original.width, max_side)
        if not _is_fresh(path, Path(view.original.path), height, width):
            picture = decode_picture(Path(view.original.path))
            write_picture(path, _resized(_same_size(picture, view).pixels, height, width), quality=97)
        return path

    _check_space(folder, sum(view.original.height * view.original.width for view in scene.views) // 2)
    with quiet_pillow():
        paths = list(_each(write, scene.views, _silent, ""))
    return {view.name: path for view, path in zip(scene.views, paths, strict=True)}


def with_cameras(scene: Scene, cameras: Mapping[str, CameraModel], settings: PrepareSettings) -> Scene:
    """The scene with a straightened working picture, a pinhole `View.camera` and the original's exact lens for every
    view that ``cameras`` names; the others lose their camera and keep their picture.

    Models may speak of the originals resized: K is scaled to the originals' pixels. ``View.original`` then has K,
    distortion and lens, so ``original pixel = K @ distort(inv(K_working) @ working pixel)``. Pictures are read again
    from the originals; mask, depth and confidence follow (nearest). Raises InputError when an original is gone or has
    another size now, and for names that are no view's.
    """
    unknown = sorted(set(cameras) - {view.name for view in scene.views})
    if unknown:
        raise InputError("cameras", f"{unknown[0]!r} is no picture of the scene", "give cameras of these pictures")

    def straight(view: View) -> View:
        model = cameras.get(view.name)
        return replace(view, camera=None) if model is None else _straightened(view, model, settings.width)

    with quiet_pillow():
        views = tuple(_each(straight, scene.views, _silent, ""))
    return replace(scene, views=views)


def hold_out(scene: Scene, every: int) -> Scene:
    """Mark every ``every``-th registered view, in natural order of names from the first on, as held out.

    The field's protocol (LLFF, mip-NeRF 360, 3DGS): ``every`` = 8. Where the source itself marked registered views,
    these stay as they are. With fewer registered views than ``every``, or ``every`` = 0, none is marked.
    Raises InputError for 1 or less than 0.
    """
    if every < 0 or every == 1:
        raise InputError("eval_every", every, "give 0 (hold out none) or 2 and more")
    if scene.held_out:
        return scene
    names = sorted((view.name for view in scene.registered), key=natural_key)
    chosen = set(names[::every]) if every and len(names) >= every else set()
    return replace(scene, views=tuple(replace(view, held_out=view.name in chosen) for view in scene.views))


def _prepare(item: Found, settings: PrepareSettings, posed: PosedPicture | None) -> _Prepared:
    picture = decode_picture(item.path)
    height, width = picture.pixels.shape[:2]
    if min(height, width) < settings.min_side:
        raise InputError(str(item.path), f"{width}x{height} pixels", f"give pictures of {settings.min_side} or more")
    digest = hashlib.blake2b(picture.pixels.tobytes(), digest_size=16, key=f"{height}x{width}".encode())
    digest.update(b"" if picture.alpha is None else picture.alpha.tobytes())
    fitted = _fitted(height, width, settings.width)
    original = replace(picture.original, path=str(item.path.absolute()))
    if item.time is not None:
        original = replace(original, time=item.time)
    used = _mask(item, picture) if settings.masks else None
    view = View(
        name=item.name,
        image=torch.from_numpy(_resized(_opaque_colours(picture, settings.width), *fitted)),
        original=original,
        mask=None if used is None else torch.from_numpy(_nearest(used, *fitted)),
        # With a mask file beside it, what is left out may be either.
        cutout=settings.masks and picture.alpha is not None and item.mask_path is None,
        depth=_depth(posed, *fitted) if posed is not None else None,
    )
    return _Prepared(view, digest.digest(), picture.note, settings.masks and picture.alpha is not None)


def _mask(item: Found, picture: Picture) -> Bool[np.ndarray, "h w"] | None:
    """True = use; None = use all. Both the mask file and transparency take pixels away."""
    masks = [] if picture.alpha is None else [picture.alpha > 127]
    if item.mask_path is not None:
        masks.append(read_mask(item.mask_path, *picture.pixels.shape[:2]))
    return np.logical_and.reduce(masks) if masks else None


def _depth(posed: PosedPicture, height: int, width: int) -> Float[Tensor, "h w"] | None:
    """The source's z-depth at working size, world units, 0 = none."""
    path = posed.depth_path
    if path is None:
        return None
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.array(image)
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            str(path), f"depth cannot be read ({error})", "give a 16-bit PNG or a .npy, or none"
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise InputError(str(path), f"depth of shape {values.shape}, {values.dtype}", "give one number a pixel")
    depth = np.nan_to_num(values.astype(np.float32) * posed.depth_unit, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(_nearest(depth.clip(min=0), height, width))


def _sort_out(
    found: Sequence[Found], results: Sequence[_Prepared | InputError], *, keep_duplicates: bool
) -> tuple[dict[str, _Prepared], tuple[Skipped, ...]]:
    """What can be used, by its name in the source, and what cannot, with the reason."""
    kept: dict[str, _Prepared] = {}
    skipped: list[Skipped] = []
    first: dict[bytes, str] = {}
    for place, result in zip(found, results, strict=True):
        if isinstance(result, InputError):
            skipped.append(Skipped(place.name, str(result).removeprefix(f"{place.path}: ")))
        elif not keep_duplicates and result.digest in first:
            skipped.append(Skipped(place.name, f"the same picture as {first[result.digest]}"))
        else:
            first.setdefault(result.digest, place.name)
            kept[place.name] = result
    return kept, tuple(skipped)


def _renamed(posed: PosedSource | None, named: Mapping[str, str]) -> PosedSource | None:
    """The posed source for the pictures that were read, under their names in the scene."""
    if posed is None:
        return None
    pictures = tuple(replace(p, name=named[p.name]) for p in posed.pictures if p.name in named)
    held_out = frozenset(named[name] for name in posed.held_out if name in named)
    return replace(posed, pictures=pictures, held_out=held_out)


def _straightened(view: View, model: CameraModel, longest: int) -> View:
    original = view.original
    if abs(math.log(model.width / model.height * original.height / original.width)) > 0.02:
        sizes = f"{original.width}x{original.height} pixels, its camera is for {model.width}x{model.height}"
        raise InputError(original.path, sizes, "give the pictures that the cameras were made for, the same way up")
    K = _scaled(model.K, model.height, model.width, original.height, original.width)
    K_new, height, width = pinhole_for(K, model.distortion, model.lens, original.height, original.width, longest)
    pixels = _opaque_colours(_same_size(decode_picture(Path(original.path)), view), longest)
    image = straighten(pixels, K, model.distortion, model.lens, K_new, height, width)
    original = replace(original, K=K, distortion=model.distortion, lens=model.lens)
    camera = Cameras(model.world_from_cam.double()[None], K_new[None], height, width)
    return replace(
        view,
        image=torch.from_numpy(image),
        original=original,
        camera=camera,
        mask=_carried(view, view.mask, original, camera),
        depth=_carried(view, view.depth, original, camera),
        confidence=_carried(view, view.confidence, original, camera),
    )


def _carried(view: View, values: Tensor | None, original: Original, camera: Cameras) -> Tensor | None:
    """A map of the view's old picture for its new one, whether the old one was straight already or not."""
    if values is None:
        return None
    h, w = int(values.shape[0]), int(values.shape[1])
    distortion, lens = original.distortion, original.lens
    if view.camera is not None:
        K = _scaled(view.camera.K[0], view.camera.height, view.camera.width, h, w)
        distortion, lens = (), "opencv"
    else:
        assert original.K is not None
        K = _scaled(original.K, original.height, original.width, h, w)
    moved = straighten_nearest(values.numpy(), K, distortion, lens, camera.K[0], camera.height, camera.width)
    return torch.from_numpy(moved)


def _scaled(K: Tensor, height: int, width: int, new_height: int, new_width: int) -> Float[Tensor, "3 3"]:
    scale = torch.tensor([new_width / width, new_height / height, 1.0], dtype=torch.float64)
    return K.double() * scale[:, None]


def _same_size(picture: Picture, view: View) -> Picture:
    if picture.pixels.shape[:2] != (view.original.height, view.original.width):
        now = f"{picture.original.width}x{picture.original.height} pixels"
        before = f"{view.original.width}x{view.original.height}"
        raise InputError(view.original.path, now, f"put back the picture of {before} that the scene was made from")
    return picture


def _fitted(height: int, width: int, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _opaque_colours(picture: Picture, longest: int) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels with what is transparent near the opaque ones in their colours: whatever a file holds there would be
    mixed into the rim of a reduced picture. ``longest``: side that it is to be reduced to."""
    if picture.alpha is None:
        return picture.pixels
    opaque = picture.alpha > 127
    reach = 2 * math.ceil(4 * max(1.0, max(opaque.shape) / longest)) + 1  # the resampling looks three pixels far
    share = uniform_filter(opaque.astype(np.float32), reach, mode="constant")
    near = ~opaque & (share > 0.5 / reach**2)
    pixels = picture.pixels.copy()
    for channel in range(3):
        colour = uniform_filter(np.where(opaque, pixels[..., channel], 0).astype(np.float32), reach, mode="constant")
        pixels[..., channel][near] = np.clip(colour[near] / share[near], 0, 255).round()
    return pixels


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    return np.ascontiguousarray(values[rows[:, None], columns])


def _is_fresh(path: Path, original: Path, height: int, width: int) -> bool:
    try:
        if path.stat().st_mtime < original.stat().st_mtime:
            return False
        with Image.open(path) as image:
            return image.size == (width, height)
    except (OSError, ValueError, SyntaxError):
        return False


def _check_space(folder: Path, needed: int) -> None:
    """Say it before an hour of work, not after."""
    place = next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), None)
    if place is not None and shutil.disk_usage(place).free < needed:
        free = shutil.disk_usage(place).free / 2**20
        raise InputError(str(folder), f"{free:.0f} MB free", f"make room for about {needed / 2**20:.0f} MB")


def _each(
    work: Callable[[_Item], _Result], items: Sequence[_Item], report: OnProgress, label: str
) -> Iterator[_Result]:
    """Results in order, computed by two threads that never run far ahead; an exception ends it."""
    waiting: list[Future[_Result]] = []
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > _THREADS:
                    yield waiting.pop(0).result()
                    done += 1
                    report(label, done / len(items))
            while waiting:
                yield waiting.pop(0).result()
                done += 1
                report(label, done / len(items))
        finally:
            for future in waiting:
                future.cancel()


def _silent(label: str, fraction: float) -> None:
    """No one watches."""
