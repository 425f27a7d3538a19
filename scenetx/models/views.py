"""What all geometry models do with a set of pictures: check it, and run what sees one picture a few at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, InputError
from scenetx.models.attention import KVCache
from scenetx.models.layers import Rope


def checked(images: Float[Tensor, "n h w 3"], cameras: Cameras | None, patch: int, queries: int = 0) -> None:
    """Raises InputError for no pictures, sides that are no multiples of the patch, or cameras of other pictures."""
    n, height, width = images.shape[:3]
    if n == 0:
        raise InputError("pictures", "none", "give one or more")
    if height < patch or width < patch or height % patch or width % patch:
        raise InputError("picture size", f"{width}x{height}", f"give sides that are multiples of {patch} pixels")
    if not 0 <= queries <= n:
        raise InputError("queries", queries, f"give 0 to {n}")
    if cameras is None:
        return
    if len(cameras) != n - queries:
        raise InputError("cameras", f"{len(cameras)} for {n - queries} pictures", "give one a picture, or none")
    if (cameras.height, cameras.width) != (height, width):
        size = f"{cameras.width}x{cameras.height}, pictures {width}x{height}"
        raise InputError("cameras", size, "resize the cameras with the pictures (Cameras.resized)")


def one_picture(image: Float[Tensor, "h w 3"], cache: KVCache) -> Float[Tensor, "1 h w 3"]:
    """The picture as a batch. Raises InputError when the map is of another size, or empty."""
    size = tuple(int(side) for side in cache.notes["size"])
    if tuple(image.shape[:2]) != size:
        wanted = f"{size[1]}x{size[0]}"
        raise InputError("picture", f"{image.shape[1]}x{image.shape[0]}", f"give {wanted}, the size of the map's")
    if cache.views == 0:
        raise InputError("map", "no keyframes left", "map some pictures first")
    return image[None]


def views_in_chunks(
    block: nn.Module, x: Float[Tensor, "n t c"], chunk: int, rope: Rope | None = None
) -> Float[Tensor, "n t c"]:
    """A block in which pictures do not see each other, ``chunk`` pictures at a time."""
    if len(x) <= chunk:
        return block(x, rope=rope)
    out = [block(part, rope=rope) for part in x.split(chunk)]
    return torch.cat(out)
