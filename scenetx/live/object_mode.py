"""Tracking an object instead of the room: a mask keeps the object, so that its frame is the map's world.

    masks = BoxFollower((x0, y0, x1, y1))            # or MaskFiles("masks/"), MaskVideo("mask.mp4")
    for update in track_frames(object_frames(frames, masks), Tracker(session, intrinsics)): ...
    cam_from_object = object_pose(update.world_from_cam)

What moves is then taken to be the camera: ``world_from_cam`` is ``object_from_cam``. As in KV-Tracker (arXiv
2512.22581), where a dilated box did as well as the silhouette. For metres, see `scale_for_size` and `scale_for_points`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from scenetx.core import InputError, Points, Scene, Sim3
from scenetx.core.rigid import invert_rigid
from scenetx.io.images import is_picture, read_mask
from scenetx.live.keyframes import Keyframe, grid_colors, grid_points
from scenetx.live.update import Frame, GrowsMap, Located, Locator, TellsK

BACKGROUND = (124, 116, 104)
"""ImageNet's mean colour: zero to the networks, and without features to the classical map."""


Box = tuple[float | int, float | int, float | int, float | int]
"""x0, y0, x1, y1 in pixels."""


@runtime_checkable
class Masks(Protocol):
    """Where the object is in each frame."""

    def of(self, image: UInt8[Tensor, "h w 3"], index: int) -> Bool[Tensor, "h w"] | None:
        """True = object, for frame ``index`` of the source; None = not found in it. Asked in order of frames."""
        ...


class MaskFiles:
    """A folder with one mask picture a frame, in order of their names; white (or opaque) = object."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        self.files = sorted(file for file in path.iterdir() if is_picture(file)) if path.is_dir() else []
        if not self.files:
            raise InputError(str(folder), "no mask pictures in it", "give a folder with one mask a frame")

    def of(self, image: UInt8[Tensor, "h w 3"], index: int) -> Bool[Tensor, "h w"] | None:
        """See `Masks`. None after the last file, and for empty masks."""
        if index >= len(self.files):
            return None
        mask = torch.from_numpy(read_mask(self.files[index], *image.shape[:2]).copy())
        return mask if mask.any() else None


class MaskVideo:
    """A video whose bright pixels are the object, frame for frame with the source."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._frames = self._decoded()
        self._next = 0
        self._last: np.ndarray | None = None

    def of(self, image: UInt8[Tensor, "h w 3"], index: int) -> Bool[Tensor, "h w"] | None:
        """See `Masks`. None after the last frame, and for empty masks. Raises InputError for what is no video."""
        while self._next <= index:
            self._last = next(self._frames, None)
            self._next += 1
            if self._last is None:
                return None
        if self._last is None:
            return None
        height, width = image.shape[:2]
        grey = torch.from_numpy(self._last).float()[None, None]
        mask = torch.nn.functional.interpolate(grey, (height, width), mode="nearest-exact")[0, 0] > 127
        return mask if mask.any() else None

    def _decoded(self) -> Iterator[UInt8[np.ndarray, "h w"]]:
        try:
            with av.open(str(self.path.absolute()), options={"protocol_whitelist": "file"}) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="gray")
        except (av.FFmpegError, IndexError) as error:
            raise InputError(str(self.path), error, "give a video of masks") from error


@dataclass(frozen=True)
class FollowSettings:
    """How a box is followed from frame to frame."""

    cells: int = 40
    """Longest side of the box in cells: what is compared."""
    reach: float = 0.5
    """How far the object may move between frames, in boxes."""
    scales: tuple[float, ...] = (0.94, 1.0, 1.06)
    sure: float = 0.6
    """Correlation above which the look is brought up to date."""
    lost: float = 0.35
    """Correlation below which the object is not there; then it is looked for everywhere."""
    margin: float = 0.15
    """The mask is this much larger than the box, of its size: a little surroundings do no harm, a cut edge does."""


class BoxFollower:
    """A mask from a box (x0, y0, x1, y1) in the first frame: normalised correlation with how it looked, then and now.

    The box moves and grows with the object; out-of-plane turns are followed by bringing the look up to date.
    """

    def __init__(self, box: Box, settings: FollowSettings | None = None) -> None:
        x0, y0, x1, y1 = box
        if not (x1 - x0 >= 4 and y1 - y0 >= 4):
            raise InputError("box", box, "give x0 y0 x1 y1 in pixels, at least 4 wide and high")
        self.box = (float(x0), float(y0), float(x1), float(y1))
        self.settings = settings or FollowSettings()
        self.correlation = 1.0
        self._first: Tensor | None = None
        self._now: Tensor | None = None

    def of(self, image: UInt8[Tensor, "h w 3"], index: int) -> Bool[Tensor, "h w"] | None:  # noqa: ARG002
        """See `Masks`."""
        picture = image.permute(2, 0, 1)[None].float() / 255
        height, width = image.shape[:2]
        if self._first is None or self._now is None:
            x0, y0, x1, y1 = self.box
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise InputError("box", self.box, f"give a box inside the {width}x{height} picture")
            self._first = self._now = self._look(picture, self.box)
        else:
            self._follow(picture)
        if self.correlation < self.settings.lost:
            return None
        x0, y0, x1, y1 = self.box
        grow_x, grow_y = self.settings.margin * (x1 - x0), self.settings.margin * (y1 - y0)
        mask = torch.zeros(height, width, dtype=torch.bool)
        left, top = max(0, round(x0 - grow_x)), max(0, round(y0 - grow_y))
        mask[top : max(0, round(y1 + grow_y)), left : max(0, round(x1 + grow_x))] = True
        return mask if mask.any() else None

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of the look."""
        x0, y0, x1, y1 = self.box
        cell = max(x1 - x0, y1 - y0) / self.settings.cells
        return max(8, round((y1 - y0) / cell)), max(8, round((x1 - x0) / cell))

    def _look(self, picture: Float[Tensor, "1 3 h w"], box: Box) -> Float[Tensor, "1 3 r c"]:
        rows, columns = self._grid() if self._first is None else self._first.shape[-2:]
        return _cut(picture, box, rows, columns)

    def _follow(self, picture: Float[Tensor, "1 3 h w"]) -> None:
        assert self._first is not None
        assert self._now is not None
        lost = self.correlation < self.settings.lost
        best, box = -1.0, self.box
        for scale in self.settings.scales:
            for look in (self._now, self._first):
                value, there = self._search(picture, look, scale, everywhere=lost)
                # The unchanged size wins ties: growth has to be shown.
                value -= 0.0 if scale == 1.0 else 0.01
                if value > best:
                    best, box = value, there
        self.correlation = best
        if best < self.settings.lost:
            return
        self.box = box
        if best > self.settings.sure and not lost:
            self._now = 0.8 * self._now + 0.2 * self._look(picture, box)

    def _search(
        self, picture: Float[Tensor, "1 3 h w"], look: Float[Tensor, "1 3 r c"], scale: float, *, everywhere: bool
    ) -> tuple[float, Box]:
        """The best correlation of a look in the picture, and the box there."""
        rows, columns = look.shape[-2:]
        x0, y0, x1, y1 = self.box
        wide, high = (x1 - x0) * scale, (y1 - y0) * scale
        center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
        if everywhere:
            height, width = picture.shape[-2:]
            area = (-wide / 2, -high / 2, width + wide / 2, height + high / 2)
        else:
            reach_x, reach_y = (0.5 + self.settings.reach) * wide, (0.5 + self.settings.reach) * high
            area = (center_x - reach_x, center_y - reach_y, center_x + reach_x, center_y + reach_y)
        cell_x, cell_y = wide / columns, high / rows
        tall, broad = round((area[3] - area[1]) / cell_y), round((area[2] - area[0]) / cell_x)
        table = _correlation(_cut(picture, area, tall, broad), look)
        peak = int(table.argmax())
        row, column = divmod(peak, table.shape[1])
        left, top = area[0] + column * cell_x, area[1] + row * cell_y
        return float(table.flatten()[peak]), (left, top, left + wide, top + high)


def _cut(picture: Float[Tensor, "1 3 h w"], box: Box, rows: int, columns: int) -> Float[Tensor, "1 3 r c"]:
    """A box of the picture (it may reach beyond) in ``rows`` x ``columns`` cells, grey outside."""
    height, width = picture.shape[-2:]
    x0, y0, x1, y1 = box
    cell = min((x1 - x0) / columns, (y1 - y0) / rows)
    if cell > 2:
        # Cells of several pixels: their mean, not one of them.
        shrink = int(cell)
        picture = torch.nn.functional.avg_pool2d(picture, shrink, ceil_mode=True, count_include_pad=False)
    x = (torch.arange(columns) + 0.5) / columns * (x1 - x0) + x0
    y = (torch.arange(rows) + 0.5) / rows * (y1 - y0) + y0
    where = torch.stack(torch.meshgrid(2 * x / width - 1, 2 * y / height - 1, indexing="xy"), -1)
    grey = picture.mean((-2, -1), keepdim=True)
    return torch.nn.functional.grid_sample(picture - grey, where[None], align_corners=False) + grey


def _correlation(area: Float[Tensor, "1 3 h w"], look: Float[Tensor, "1 3 r c"]) -> Float[Tensor, "i j"]:
    """Zero-mean normalised correlation of a look at each place of an area, over the three channels together."""
    centered = look - look.mean()
    rows, columns = look.shape[-2:]
    total, square = (_window_sums(value.sum(1)[0].double(), rows, columns) for value in (area, area.square()))
    variance = (square - total.square() / look.numel()).clamp_min(1e-4 * look.numel()).float()
    product = torch.nn.functional.conv2d(area, centered)[0, 0]
    return product / (variance.sqrt() * centered.norm().clamp_min(1e-6))


def _window_sums(values: Float[Tensor, "h w"], rows: int, columns: int) -> Float[Tensor, "i j"]:
    """Sums over all windows of ``rows`` x ``columns``, by summed areas (float64: differences of large sums)."""
    table = torch.nn.functional.pad(values.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return table[rows:, columns:] - table[:-rows, columns:] - table[rows:, :-columns] + table[:-rows, :-columns]


def cut_out(image: UInt8[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> UInt8[Tensor, "h w 3"]:
    """The object on `BACKGROUND`."""
    return torch.where(mask[..., None], image, torch.tensor(BACKGROUND, dtype=torch.uint8))


def object_frames(frames: Iterable[Frame], masks: Masks) -> Iterator[Frame]:
    """A source of the object alone. Frames without it are all background, which no map takes for the object."""
    for frame in frames:
        mask = masks.of(frame.image, frame.index)
        note = frame.note
        if mask is None:
            mask = torch.zeros(frame.image.shape[:2], dtype=torch.bool)
            note = f"{note}; object not found" if note else "object not found"
        yield replace(frame, image=cut_out(frame.image, mask), note=note)


class ObjectTracker:
    """A map of an object as a `Locator` in the object's own frame and scale: ``world_from_cam`` is object_from_cam.

    For pictures that already show the object alone (`object_frames`), or with ``masks``, then frames must come one by
    one in order and none may be left out. What the map inside tells of itself (keyframes, K, points, scene) is told on,
    in the object's frame; a map that does not tell K has none, and that is settled.
    """

    def __init__(self, inner: Locator, object_from_map: Sim3 | None = None, masks: Masks | None = None) -> None:
        self.inner, self.masks = inner, masks
        self.object_from_map = object_from_map or Sim3.identity()
        self.name = f"{inner.name}, object"
        self._seen = 0
        self._frame: UInt8[Tensor, "h w 3"] | None = None
        self._cut: UInt8[Tensor, "h w 3"] | None = None

    @property
    def keyframes(self) -> int:
        """Pictures in the map inside; 0 if it has none."""
        return int(getattr(self.inner, "keyframes", 0))

    @property
    def added(self) -> bool:
        """Whether the last frame became a keyframe of the map inside."""
        return bool(getattr(self.inner, "added", False))

    @property
    def K(self) -> Float[Tensor, "3 3"] | None:
        """See `TellsK`."""
        return self.inner.K if isinstance(self.inner, TellsK) else None

    @property
    def K_settled(self) -> bool:
        """See `TellsK`."""
        return self.inner.K_settled if isinstance(self.inner, TellsK) else True

    def map_points(self) -> Points | None:
        """See `GrowsMap`."""
        points = self.inner.map_points() if isinstance(self.inner, GrowsMap) else None
        return None if points is None else _points_in(points, self.object_from_map)

    def scene(self) -> Scene:
        """The map inside as a scene, in the object's frame and scale. Raises InputError for a map that makes none."""
        make: Any = getattr(self.inner, "scene", None)
        if make is None:
            raise InputError("map", f"{self.inner.name} makes no scene", "use the scene it was made of")
        return _scene_in(make(), self.object_from_map)

    def locate(
        self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], guess: Float[Tensor, "4 4"] | None
    ) -> Located | None:
        """See `Locator.locate`. None also where the mask finds no object."""
        if self.masks is not None:
            if image is not self._frame:
                mask = self.masks.of(image, self._seen)
                self._seen += 1
                self._frame, self._cut = image, None if mask is None else cut_out(image, mask)
            if self._cut is None:
                return None
            image = self._cut
        inside = None if guess is None else self.object_from_map.inverse().apply_to_poses(guess)
        found = self.inner.locate(image, K, inside)
        if found is None:
            return None
        return replace(found, world_from_cam=self.object_from_map.apply_to_poses(found.world_from_cam))


def _points_in(points: Points, there_from_here: Sim3) -> Points:
    return replace(points, positions=there_from_here.apply(points.positions))


def _scene_in(scene: Scene, there_from_here: Sim3) -> Scene:
    """A scene of a map (which has no splats) in another frame and scale."""
    views = []
    for view in scene.views:
        camera = view.camera
        if camera is not None:
            camera = replace(camera, world_from_cam=there_from_here.apply_to_poses(camera.world_from_cam))
        depth = None if view.depth is None else there_from_here.scale * view.depth
        views.append(replace(view, camera=camera, depth=depth))
    points = None if scene.points is None else _points_in(scene.points, there_from_here)
    return replace(scene, views=tuple(views), points=points)


def object_pose(world_from_cam: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """``cam_from_object``: the object as the camera sees it, when the map's world is the object's."""
    return invert_rigid(world_from_cam)


def object_points(keyframes: Sequence[Keyframe]) -> Float[Tensor, "m 3"]:
    """Points of the object (float64, the map's frame): where the keyframes have depth and no background."""
    background = torch.tensor(BACKGROUND, dtype=torch.uint8)
    parts = []
    for keyframe in keyframes:
        points, _ = grid_points(keyframe)
        shown = (grid_colors(keyframe) != background).any(-1)
        parts.append(points[shown[keyframe.depth > 0]])
    return torch.cat(parts) if parts else torch.zeros(0, 3, dtype=torch.float64)


def scale_for_size(points: Float[Tensor, "m 3"], size: float | int) -> Sim3:
    """``object_from_map``: origin in the middle of the points, their longest side ``size`` (metres, or whatever it is).

    The longest side is that of the middle 96 % of the points along their principal axes. Raises InputError for a size
    that is not above 0, or too few points.
    """
    if not size > 0:
        raise InputError("object size", size, "give a length above 0")
    if len(points) < 16:
        raise InputError("object", f"{len(points)} points", "show the object from a few sides first")
    points = points.double()
    center = points.median(0).values
    offset = (points - center)[:: max(1, len(points) // 20_000)]
    distance = offset.norm(dim=-1)
    offset = offset[distance <= 2 * torch.quantile(distance, 0.9)]  # strays would turn the axes
    axes = torch.linalg.svd(offset, full_matrices=False).Vh
    along = offset @ axes.T
    low, high = torch.quantile(along, 0.02, dim=0), torch.quantile(along, 0.98, dim=0)
    center = center + (low + high) / 2 @ axes
    scale = size / float((high - low).max())
    return Sim3(scale, torch.eye(3, dtype=torch.float64), -scale * center)


def scale_for_points(a: Float[Tensor, "3"], b: Float[Tensor, "3"], distance: float | int) -> Sim3:
    """``object_from_map`` by two points of the map whose true ``distance`` is known; the first becomes the origin."""
    length = float((b.double() - a.double()).norm())
    if not (distance > 0 and length > 0):
        raise InputError("two points", f"{length:g} apart in the map, truly {distance:g}", "give two different points")
    scale = distance / length
    return Sim3(scale, torch.eye(3, dtype=torch.float64), -scale * a.double())


def point_at(keyframe: Keyframe, x: float | int, y: float | int) -> Float[Tensor, "3"]:
    """The map's point (float64) at a pixel of a keyframe's picture: that of the nearest cell with depth.

    Raises InputError when none is near (within 4 cells).
    """
    height, width = keyframe.picture.shape[:2]
    rows, columns = keyframe.depth.shape
    known = (keyframe.depth > 0).nonzero().double() + 0.5
    points, _ = grid_points(keyframe)
    if len(known):
        distance = (known - known.new_tensor([y * rows / height, x * columns / width])).norm(dim=-1)
        nearest = int(distance.argmin())
        if float(distance[nearest]) <= 4:
            return points[nearest]
    raise InputError("point", f"({x:g}, {y:g}) in {keyframe.name or keyframe.index}", "choose one on the object")
