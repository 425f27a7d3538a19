"""One picture in a map: its intrinsics, then its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from scenetx.io.images import Picture
from scenetx.live.classical_map import Lens
from scenetx.live.intrinsics import GivenLens, Intrinsics
from scenetx.live.update import Located, Locator


@dataclass(frozen=True)
class Localized:
    """The answer for a picture: None in ``located`` = not found. ``K`` (float64) is of the ``width`` x ``height``
    picture, upright and without its lens's distortion."""

    located: Located | None
    K: Float[torch.Tensor, "3 3"]
    height: int
    width: int
    note: str


def localize_picture(
    picture: Picture, locator: Locator, lenses: Sequence[Lens] = (), given: GivenLens | None = None
) -> Localized:
    """Where a picture was taken. Intrinsics: given, else those of the map's camera for pictures of its size, else from
    EXIF, else as the map sees them, else assumed."""
    original = picture.original
    size = (original.height, original.width)
    known = any((lens.height, lens.width) == size for lens in lenses)
    note = ""
    if given is None and not known and original.focal_exif is not None:
        given = GivenLens(K=(original.focal_exif, original.focal_exif, original.width / 2, original.height / 2))
        note = f"focal length {original.focal_exif:.0f} pixels, from EXIF"
    pixels = torch.from_numpy(picture.pixels)
    intrinsics = Intrinsics(given, lenses, trusting=True)
    image, K = intrinsics.straight(pixels, locator)
    located = locator.locate(image, K, None)
    if located is None and known and given is None:
        # Another camera may have pictures of that size too.
        intrinsics = Intrinsics(None, lenses)
        image, K = intrinsics.straight(pixels, locator)
        located = locator.locate(image, K, None)
    notes = (note, *intrinsics.news(), located.note if located else "no place in the map fits")
    return Localized(located, K, int(image.shape[0]), int(image.shape[1]), "; ".join(part for part in notes if part))
