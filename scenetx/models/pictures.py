"""Pictures to the size a model takes, and the exact way back to the pixels they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError

MOST_CROPPED = 0.5  # a picture that would lose more than this share of itself is not forced into the common size


@dataclass(frozen=True)
class SizeRule:
    """A model's input size: the ``longest`` side, or the number of ``pixels``; sides are multiples of ``patch``."""

    longest: int = 504
    pixels: int | None = None
    patch: int = 14
    filter: Literal["box", "bicubic", "lanczos"] = "lanczos"

    def size(self, height: float | int, width: float | int) -> tuple[int, int]:
        """Height and width for a picture of this shape. Raises InputError when a side is shorter than one patch."""
        if min(height, width) < self.patch:
            raise InputError("picture", f"{width:.0f}x{height:.0f} pixels", f"give sides of {self.patch} or more")
        if self.pixels is None:
            scale = self.longest / max(height, width)
            return self._whole(height * scale), self._whole(width * scale)
        scale = (self.pixels / (height * width)) ** 0.5
        rows, columns = (self._whole(side * scale) // self.patch for side in (height, width))
        while rows * columns * self.patch**2 > self.pixels:
            # Published rule: shrink the side that is too long for the picture's shape.
            if rows == 1 or (columns > 1 and columns / rows > width / height):
                columns -= 1
            else:
                rows -= 1
        return rows * self.patch, columns * self.patch

    def common(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """One size for pictures of several shapes: that of the median shape (log of width over height)."""
        shapes = sorted(sizes, key=lambda size: size[1] / size[0])
        height, width = shapes[len(shapes) // 2]
        return self.size(height, width)

    def _whole(self, side: float | int) -> int:
        return max(self.patch, round(side / self.patch) * self.patch)


RULES = {
    "da3": SizeRule(504, filter="box"),
    "vggt": SizeRule(518, filter="bicubic"),
    "pi3": SizeRule(pixels=255_000),
    "pi3x": SizeRule(pixels=255_000),
    "mapanything": SizeRule(518),
}
"""By the file that defines the model."""


@dataclass(frozen=True)
class Window:
    """The part of a ``height`` x ``width`` picture that a model sees, resampled corner to corner.

    ``model pixel = (pixel - (left, top)) * (scale_x, scale_y)``, both counted from the corner.
    """

    height: int
    width: int
    left: float
    top: float
    scale_x: float
    scale_y: float

    def K_for_picture(self, K: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
        """Intrinsics for the picture's pixels from those for the model's."""
        back = K.new_tensor([[1 / self.scale_x, 0, self.left], [0, 1 / self.scale_y, self.top], [0, 0, 1]])
        return back @ K

    def K_for_model(self, K: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
        """Intrinsics for the model's pixels from those for the picture's."""
        there = K.new_tensor(
            [
                [self.scale_x, 0, -self.left * self.scale_x],
                [0, self.scale_y, -self.top * self.scale_y],
                [0, 0, 1],
            ]
        )
        return there @ K

    def map_for_picture(self, values: Float[Tensor, "h w"], height: int, width: int) -> Float[Tensor, "i j"]:
        """A map over the model's pixels (depth, confidence) at the picture resized to ``height`` x ``width``.

        Nearest: depth must not be blended over an edge. 0 where the model did not look.
        """
        y = (torch.arange(height) + 0.5) * self.height / height
        x = (torch.arange(width) + 0.5) * self.width / width
        row, column = ((y - self.top) * self.scale_y).floor().long(), ((x - self.left) * self.scale_x).floor().long()
        rows, columns = values.shape
        seen = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))[None]
        picked = values[row.clamp(0, rows - 1)[:, None], column.clamp(0, columns - 1)[None]]
        return torch.where(seen, picked, torch.zeros_like(picked))


def window_for(height: int, width: int, size: tuple[int, int]) -> Window:
    """The largest centred part of a picture that has (nearly) the shape of ``size``.

    Rounding the sides to whole patches is a slight stretch, not a crop: only a shape that is off by more than one patch
    is cropped.
    """
    rows, columns = size
    off = (width / height) / (columns / rows)
    slack = 14 / min(rows, columns)
    if abs(off - 1) <= slack:
        return Window(height, width, 0.0, 0.0, columns / width, rows / height)
    if off > 1:
        kept = height * columns / rows
        return Window(height, width, (width - kept) / 2, 0.0, columns / kept, rows / height)
    kept = width * rows / columns
    return Window(height, width, 0.0, (height - kept) / 2, columns / width, rows / kept)


def lost_share(window: Window, size: tuple[int, int]) -> float:
    """Share of the picture that the window leaves out."""
    return 1 - (size[1] / window.scale_x / window.width) * (size[0] / window.scale_y / window.height)


def to_model(
    pictures: Sequence[UInt8[Tensor, "_ _ 3"]], rule: SizeRule, size: tuple[int, int] | None = None
) -> tuple[Float[Tensor, "n h w 3"], list[Window]]:
    """Pictures of any size as one batch in [0, 1], and what part of each is in it.

    size: the common size, default by `SizeRule.common`. Raises InputError for a picture that would lose more than half
    of itself: portrait and landscape pictures do not go together.
    """
    if not pictures:
        raise InputError("pictures", "none", "give one or more")
    size = size or rule.common([(picture.shape[0], picture.shape[1]) for picture in pictures])
    method = {
        "box": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS
    }[rule.filter]  # fmt: skip
    batch, windows = torch.empty(len(pictures), *size, 3), []
    for index, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        window = window_for(height, width, size)
        if lost_share(window, size) > MOST_CROPPED:
            shape = f"{width}x{height}, the others are {size[1]}x{size[0]} in shape"
            raise InputError("picture", shape, "reconstruct portrait and landscape pictures apart")
        box = (
            window.left,
            window.top,
            window.left + size[1] / window.scale_x,
            window.top + size[0] / window.scale_y,
        )
        # Enlarging with a box filter repeats pixels.
        smooth = Image.Resampling.BICUBIC if window.scale_x > 1 and rule.filter == "box" else method
        resized = Image.fromarray(picture.numpy()).resize((size[1], size[0]), smooth, box)
        batch[index] = torch.from_numpy(np.array(resized)).float() / 255
        windows.append(window)
    return batch, windows


def cameras_for_model(cameras: Sequence[Cameras], windows: Sequence[Window], size: tuple[int, int]) -> Cameras:
    """Cameras (batches of one, of the pictures) for the model's pixels."""
    K = torch.stack([window.K_for_model(camera.K[0].double()) for camera, window in zip(cameras, windows, strict=True)])
    world_from_cam = torch.cat([camera.world_from_cam.double() for camera in cameras])
    return Cameras(world_from_cam, K, *size)
