"""The camera's intrinsics while tracking: given, from the map's own camera, or estimated once and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.cameras import pixel_grid
from scenetx.io.lens import distort, pinhole_for
from scenetx.live.classical_map import Lens
from scenetx.live.update import KnowsFocal, Locator, TellsK, TellsLens
from scenetx.splat.cpu_jit import kernel

DEFAULT_FOCAL = 1.0  # of the longer side: between a phone's 0.75 and a webcam's 1.2
SURE = 60  # matches that have to say so before a camera of the map's size is taken for another one
TRIES = 15  # frames on which an unknown camera is looked for, before the default is kept


@dataclass(frozen=True)
class GivenLens:
    """What a user says of the camera: a horizontal field of view in degrees, K of the pictures' pixels, or the cameras
    of an earlier scene, of which that for pictures of the same shape is taken."""

    fov: float | int | None = None
    K: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy
    distortion: tuple[float, ...] = ()
    cameras: tuple[Lens, ...] = ()

    @property
    def known(self) -> bool:
        """Whether anything is said."""
        return self.fov is not None or self.K is not None or bool(self.cameras)

    def __post_init__(self) -> None:
        if self.fov is not None and not 5 <= self.fov <= 150:
            raise InputError("fov", self.fov, "give 5 to 150 degrees, of the picture's width")
        if self.K is not None and not (min(self.K[:2]) > 0 and all(map(math.isfinite, self.K))):
            raise InputError("K", self.K, "give fx,fy,cx,cy in pixels")


class Intrinsics:
    """Decides on a camera when the first picture comes (and anew when the picture's size changes), and straightens.

    ``known``: the cameras the map was made with, each for its size; they are taken for pictures of the same shape,
    unless the map itself says that another focal length explains the picture much better.
    """

    def __init__(self, given: GivenLens | None = None, known: Sequence[Lens] = (), *, trusting: bool = False) -> None:
        """trusting: a picture of exactly the size of the map's pictures is of the map's camera, unasked."""
        self._given, self._trusting = given or GivenLens(), trusting
        self._known = tuple(known)
        self._size: tuple[int, int] | None = None
        self._straighten: Straighten | None = None
        self._settled = False
        self._tries = 0
        self._news: list[str] = []
        self._by_model = False
        self._given_lens: Lens | None = None

    def straight(
        self, image: UInt8[Tensor, "h w 3"], locator: Locator
    ) -> tuple[UInt8[Tensor, "_ _ 3"], Float[Tensor, "3 3"]]:
        """The picture without its lens's distortion, and its K (float64)."""
        size = (int(image.shape[0]), int(image.shape[1]))
        if size != self._size:
            if self._size is not None:
                self._news.append(f"the picture is now {size[1]}x{size[0]}")
            self._size, self._settled, self._tries = size, False, 0
        if not self._settled:
            self._settle(image, locator)
        if self._by_model and isinstance(locator, TellsK):
            self._take_models(locator, size)
        assert self._straighten is not None
        return self._straighten(image), self._straighten.K

    def follow(self, K: Float[Tensor, "3 3"]) -> None:
        """The lens has zoomed: this is the K of straightened pictures from now on."""
        if self._straighten is not None:
            self._straighten.K, self._settled = K, True

    def look_anew(self, image: UInt8[Tensor, "h w 3"], locator: Locator) -> None:
        """Asks the map for the focal length of a (straightened) picture that it cannot place."""
        found = locator.estimate_K(image) if isinstance(locator, KnowsFocal) else None
        if found is not None and found[1] >= SURE and self._straighten is not None:
            self.follow(found[0])
            self._news.append(f"the lens has zoomed: focal length {float(found[0][0, 0]):.0f} pixels")

    def news(self) -> tuple[str, ...]:
        """What was decided since the last call."""
        out, self._news = tuple(self._news), []
        return out

    def _settle(self, image: Tensor, locator: Locator) -> None:
        height, width = int(image.shape[0]), int(image.shape[1])
        given = self._from_given(height, width)
        if given is not None:
            self._keep(given, "")
            return
        lens = self.of_map(height, width)
        exact = any((known.height, known.width) == (height, width) for known in self._known)
        if lens is not None and ((exact and self._trusting) or not isinstance(locator, KnowsFocal)):
            self._keep(lens, "intrinsics: the map's camera")
            return
        self._tries += 1
        found = locator.estimate_K(image) if isinstance(locator, KnowsFocal) else None
        if found is not None:
            K = found[0]
            ratio = float(K[0, 0]) / lens.K[0] if lens is not None else 0.0
            # One picture does not tell a focal length better than this.
            if lens is not None and (0.88 < ratio < 1.14 or (exact and found[1] < SURE)):
                self._keep(lens, "intrinsics: the map's camera")
                return
            flat = tuple(float(value) for value in K.flatten())
            self._keep(Lens(height, width, flat), f"intrinsics: focal length {flat[0]:.0f} pixels, estimated")
            return
        if exact and lens is not None:
            self._keep(lens, "intrinsics: the map's camera")
            return
        focal = DEFAULT_FOCAL * max(height, width)
        default = lens or Lens(height, width, (focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0))
        self._straighten = Straighten(default)
        if isinstance(locator, TellsK) and not (locator.K is None and locator.K_settled):
            self._by_model = self._settled = True
            return
        # Without a locator that could tell better later, this is it.
        if not isinstance(locator, KnowsFocal) or self._tries >= TRIES:
            self._keep(default, f"intrinsics: focal length {default.K[0]:.0f} pixels, assumed")

    def _take_models(self, locator: TellsK, size: tuple[int, int]) -> None:
        """Who makes his own map sees the focal length, once there is one: it is taken, and kept when it is settled."""
        K = locator.K
        if K is not None:
            flat = tuple(float(value) for value in K.flatten())
            self._by_model = not locator.K_settled
            said = f"focal length {flat[0]:.0f} pixels, by the map"
            if isinstance(locator, TellsLens):
                said = locator.lens_line
            note = "" if self._by_model else f"intrinsics: {said}"
            self._keep(Lens(*size, flat), note)

    def _keep(self, lens: Lens, note: str) -> None:
        self._straighten, self._settled = Straighten(lens), True
        if note:
            self._news.append(note)

    def _from_given(self, height: int, width: int) -> Lens | None:
        """The user's lens. It is of the first picture; later ones of another size are the same turned or scaled."""
        given = self._given
        if not given.known:
            return None
        if given.cameras:
            return _of_cameras(given.cameras, height, width)
        if self._given_lens is None:
            fx, fy, cx, cy = given.K or (0.0, 0.0, width / 2, height / 2)
            if given.fov is not None and given.K is None:
                fx = fy = width / 2 / math.tan(math.radians(given.fov) / 2)
            K = (fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0)
            self._given_lens = Lens(height, width, K, given.distortion)
        return _for_size(self._given_lens, height, width) or self._given_lens

    def of_map(self, height: int, width: int) -> Lens | None:
        """The map's camera for pictures of this size: of the same shape, scaled or turned. None = none is."""
        return _of_shape(self._known, height, width)


def _of_cameras(cameras: Sequence[Lens], height: int, width: int) -> Lens:
    lens = _of_shape(cameras, height, width)
    if lens is None:
        theirs = ", ".join(f"{each.width}x{each.height}" for each in cameras)
        what = f"its cameras took pictures of {theirs}; these are {width}x{height}"
        raise InputError("the lens of an earlier scene", what, "take a scene of the same camera, or give --fov")
    return lens


def _of_shape(cameras: Sequence[Lens], height: int, width: int) -> Lens | None:
    """The one for pictures of this size, or of the same shape scaled or turned."""
    same = [known for known in cameras if (known.height, known.width) == (height, width)]
    fitting = (_for_size(known, height, width) for known in (*same, *cameras))
    return next((lens for lens in fitting if lens is not None), None)


def _for_size(lens: Lens, height: int, width: int) -> Lens | None:
    """A lens for pictures of another size: the same shape scaled, or that turned by a quarter, as when a phone is held
    the other way (then without distortion's tangential part, which is tiny). None = another shape."""
    for turned in (False, True):
        old_height, old_width = (lens.width, lens.height) if turned else (lens.height, lens.width)
        if abs(math.log(width / height * old_height / old_width)) >= 0.01:
            continue
        x, y = width / old_width, height / old_height
        fx, _, cx, _, fy, cy = lens.K[:6]
        if turned:
            fx, fy, cx, cy = fy, fx, cy, cx
        distortion = lens.distortion
        if turned and lens.kind == "opencv" and len(distortion) >= 4:
            distortion = (*distortion[:2], 0.0, 0.0, *distortion[4:])
        K = (x * fx, 0.0, x * cx, 0.0, y * fy, y * cy, 0.0, 0.0, 1.0)
        return Lens(height, width, K, distortion, lens.kind)
    return None


class Straighten:
    """Removes one camera's distortion: the table is made once, a frame then takes about a millisecond."""

    def __init__(self, lens: Lens, *, same: bool = False) -> None:
        """same: size and K stay as they are, and what the lens did not show is its border, repeated; else the picture
        is the largest without blank pixels."""
        K = torch.tensor(lens.K, dtype=torch.float64).reshape(3, 3)
        self.K: Float[Tensor, "3 3"] = K
        self._table: Float[np.ndarray, "h w 2"] | None = None
        if lens.kind == "fisheye" or any(lens.distortion):
            size = max(lens.height, lens.width)
            height, width = lens.height, lens.width
            if not same:
                self.K, height, width = pinhole_for(K, lens.distortion, lens.kind, height, width, size)
            pixels = pixel_grid(height, width, dtype=torch.float64)
            rays = (pixels - self.K[:2, 2]) / self.K.diagonal()[:2]
            places = distort(rays, lens.distortion, lens.kind) * K.diagonal()[:2] + K[:2, 2]
            self._table = places.to(torch.float32).numpy()

    def __call__(self, image: UInt8[Tensor, "h w c"]) -> UInt8[Tensor, "_ _ c"]:
        if self._table is None:
            return image
        out = np.empty((*self._table.shape[:2], image.shape[2]), np.uint8)
        _remap(np.ascontiguousarray(image.numpy()), self._table, out)
        return torch.from_numpy(out)


def _sampled(image, table, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Bilinear; the border is repeated."""
    height, width = image.shape[0], image.shape[1]
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            x = min(max(table[i, j, 0] - np.float32(0.5), np.float32(0)), np.float32(width - 1.001))
            y = min(max(table[i, j, 1] - np.float32(0.5), np.float32(0)), np.float32(height - 1.001))
            u, v = int(x), int(y)
            a, b = x - u, y - v
            for c in range(image.shape[2]):
                upper = image[v, u, c] + a * (np.float32(image[v, u + 1, c]) - image[v, u, c])
                lower = image[v + 1, u, c] + a * (np.float32(image[v + 1, u + 1, c]) - image[v + 1, u, c])
                out[i, j, c] = np.uint8(upper + b * (lower - upper) + np.float32(0.5))


_remap = kernel(nogil=True)(_sampled)
