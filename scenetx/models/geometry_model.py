"""What all geometry models have in common: how they are asked, and a map that a picture can be placed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, InputError
from scenetx.models.attention import KVCache, KVShape, Remember
from scenetx.models.geometry import Geometry
from scenetx.models.given import Given

Door = Callable[[str, int], Remember]
"""A cache's door for a stack of blocks and a layer of it."""
NOTHING = Given()


@dataclass(frozen=True)
class Ask:
    """How pictures are looked at.

    given: what is known of the pictures before the ``queries`` last ones. door: of a cache that is filled, or stepped
    against. dense: depth too, not the camera alone. notes: those of the map, in a step (all pictures are then queries).
    scenes: that many of equally many pictures, one after another, that do not see each other (training; no queries).
    """

    given: Given = NOTHING
    queries: int = 0
    door: Door | None = None
    dense: bool = True
    notes: Mapping[str, Tensor] | None = None
    scenes: int = 1


class GeometryModel(nn.Module):
    """`forward`, `map` and `step`, over what a model itself defines: `cache_shapes` and `_look`.

    ``takes``: what may be given with the pictures, of "cameras" (poses and intrinsics), "K" and "depth". ``metric``:
    answers are in metres. ``noted``: published outputs for a map that its steps need. Pictures' sides are multiples of
    ``patch``.
    """

    metric: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ()
    noted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(
        self,
        images: Float[Tensor, "n h w 3"],
        cameras: Cameras | None = None,
        *,
        K: Float[Tensor, "m 3 3"] | None = None,
        depth: Float[Tensor, "m i j"] | None = None,
        given_metric: bool = True,
        queries: int = 0,
    ) -> Geometry:
        """All pictures (in [0, 1]) see each other; the last ``queries`` see all and are seen by themselves only.

        Given cameras, intrinsics ``K`` or ``depth`` (z, 0 = unknown) are of the pictures before the queries;
        ``given_metric`` says whether their lengths are metres, to a model that can tell. Raises InputError for what the
        model does not take, for sizes that do not fit, and for no pictures.
        """
        given = self._given(images, cameras, K, depth, given_metric, queries)
        return self._look(images, Ask(given, queries))

    def map(
        self,
        images: Float[Tensor, "n h w 3"],
        cameras: Cameras | None = None,
        *,
        K: Float[Tensor, "m 3 3"] | None = None,
        depth: Float[Tensor, "m i j"] | None = None,
        given_metric: bool = True,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """Runs all pictures as `forward` does and keeps what a `step` needs of them.

        ``cache.geometry`` is the answer for them. There is room for ``capacity`` keyframes (default: these).
        """
        n, height, width = images.shape[:3]
        given = self._given(images, cameras, K, depth, given_metric, 0)
        cache = KVCache(self.cache_shapes(height, width), capacity or n, dtype=dtype, device=images.device)
        geometry = self._look(images, Ask(given, door=lambda stack, layer: cache.filling(stack, layer, n)))
        cache.geometry, cache.views = geometry, n
        cache.notes = {"size": torch.tensor((height, width)), **{name: geometry.published[name] for name in self.noted}}
        return cache

    def step(
        self, image: Float[Tensor, "h w 3"], cache: KVCache, *, dense: bool = True, keep: bool = False
    ) -> Geometry:
        """One picture against a map: exactly the forward in which the map's pictures do not see it.

        dense False: the camera only (where a model reads intrinsics off its rays, these are then a guess). keep: the
        picture becomes a keyframe of the map. Raises InputError when the map is empty, full or of another size.
        """
        size = tuple(int(side) for side in cache.notes["size"])
        if tuple(image.shape[:2]) != size:
            wanted = f"{size[1]}x{size[0]}"
            raise InputError("picture", f"{image.shape[1]}x{image.shape[0]}", f"give {wanted}, the size of the map's")
        if cache.views == 0:
            raise InputError("map", "no keyframes left", "map some pictures first")
        geometry = self._look(image[None], Ask(queries=1, door=cache.stepping, dense=dense, notes=cache.notes))
        if keep:
            cache.keep()
        return geometry

    def cache_shapes(self, height: int, width: int) -> dict[str, KVShape]:
        """What a cache holds of a view of this size, by stack of blocks; "trunk" is the one that sees all pictures."""
        raise NotImplementedError

    def _look(self, images: Float[Tensor, "n h w 3"], ask: Ask) -> Geometry:
        raise NotImplementedError

    def _given(
        self,
        images: Float[Tensor, "n h w 3"],
        cameras: Cameras | None,
        K: Float[Tensor, "m 3 3"] | None,
        depth: Float[Tensor, "m i j"] | None,
        given_metric: bool,
        queries: int,
    ) -> Given:
        """Checks the pictures and what is known of them."""
        n, height, width = images.shape[:3]
        if n == 0:
            raise InputError("pictures", "none", "give one or more")
        if min(height, width) < self.patch or height % self.patch or width % self.patch:
            raise InputError(
                "picture size", f"{width}x{height}", f"give sides that are multiples of {self.patch} pixels"
            )
        if not 0 <= queries <= n:
            raise InputError("queries", queries, f"give 0 to {n}")
        for name, value in (("cameras", cameras), ("K", K), ("depth", depth)):
            if value is None:
                continue
            if name not in self.takes:
                raise InputError(name, f"{type(self).__name__} takes none", TAKERS[name])
            if len(value) != n - queries:
                raise InputError(name, f"{len(value)} for {n - queries} pictures", "give one a picture, or none")
        if cameras is not None and (cameras.height, cameras.width) != (height, width):
            size = f"{cameras.width}x{cameras.height}, pictures {width}x{height}"
            raise InputError("cameras", size, "resize the cameras with the pictures (Cameras.resized)")
        if depth is not None and depth.shape[1:] != (height, width):
            size = f"{depth.shape[2]}x{depth.shape[1]}, pictures {width}x{height}"
            raise InputError("depth", size, "resize the depth with the pictures")
        return Given.of(cameras, K, depth, metric=given_metric)


TAKERS = {
    "cameras": "use a model that takes them (da3-*, pi3x, mapanything)",
    "K": "use a model that takes it (pi3x, mapanything), or give cameras",
    "depth": "use a model that takes it (pi3x, mapanything)",
}
