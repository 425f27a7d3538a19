"""Tracking without a map and without a model, on any CPU: two views make a map of features, which grows on the way.

    with ClassicalSession() as session:                  # a `Locator`: None until the first map is there (init)
        for update in scenetx.track("0", scene=session):
            session.added, session.keyframes, session.K  # became the last frame a keyframe?; pictures; intrinsics
        session.finish()                                 # all cameras adjusted together once more
        session.scene().save(folder)                     # a scene folder that `reconstruct` can go on with

Place and scale are the map's own: the world is the first keyframe's camera, and the unit the median depth of what it
saw. Poses come from `ClassicalLocator` as in any map; pictures join in a thread of their own (`GrowingMap`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError, Original, Points, Scene, View
from scenetx.live.classical import ClassicalLocator, ClassicalSettings
from scenetx.live.classical_map import ClassicalMap, encode_grey
from scenetx.live.features import FeatureFinder, FeatureSettings, grey_of
from scenetx.live.grow import GrowingMap, GrowSettings, shift_and_turn
from scenetx.live.mapper import Mapper
from scenetx.live.opening import Opening, OpeningSettings
from scenetx.live.points import Station
from scenetx.live.update import Located


@dataclass(frozen=True)
class ClassicalSessionSettings:
    """When a frame becomes a keyframe. Shifts are in units of the depth of what is seen."""

    shift: float = 0.06
    angle: float = 8.0
    """Degrees."""
    fading: float = 0.6
    """And so does one in which only this share of the patches is found that the last keyframe had."""
    sure: float = 0.25
    """Poses less sure than this never do."""
    largest: int = 1280
    """Longest side in which keyframes are kept."""
    patch_side: int = 640
    """And that of their grey pictures, for the patches."""
    young: int = 5
    """A map of fewer pictures that finds nothing"""
    given_up: int = 30
    """so many frames in a row is given up, and another one begun;"""
    doubts: int = 4
    """or one whose pictures so often in a row contradict each other."""
    doubted: float = 0.1
    """Confidence, at most, while they do."""
    features: FeatureSettings = field(default_factory=lambda: FeatureSettings(side=800, most=1000))
    opening: OpeningSettings = field(default_factory=OpeningSettings)
    grow: GrowSettings = field(default_factory=GrowSettings)
    locator: ClassicalSettings = field(default_factory=lambda: ClassicalSettings(zoom=0.1, drift=0.05))
    """In a map of its own a zoom has to be plain: the map's own errors look like small ones,"""
    zooms: int = 8
    """and those of fewer pictures like large ones."""


@dataclass(frozen=True)
class _Wish:
    """A frame that is to join."""

    name: str
    grey: UInt8[np.ndarray, "h w"]
    world_from_cam: Float[np.ndarray, "4 4"]
    K: Float[np.ndarray, "3 3"]


@dataclass(frozen=True)
class _Grown:
    """A map that is ready to be tracked in."""

    locator: ClassicalLocator
    known_lens: bool
    depth: float
    made: ClassicalMap


class ClassicalSession:
    """A `Locator` that builds its own map."""

    name = "classical, own map"

    def __init__(
        self, settings: ClassicalSessionSettings | None = None, *, known_lens: bool = False, patient: bool = False
    ) -> None:
        """known_lens: the K that comes with the pictures is right; else the map finds the focal length, starting there.
        patient: wait for each new map, as files allow: the poses then do not depend on the machine."""
        self.settings = settings or ClassicalSessionSettings()
        self.patient = patient
        self.added = False
        self._given_lens = known_lens
        self._finder = FeatureFinder(self.settings.features)
        self._joining = FeatureFinder(self.settings.features)  # the mapper's own
        self._opening = self._fresh_opening()
        self._growing: GrowingMap | None = None
        self._now: _Grown | None = None
        self._pictures: dict[str, tuple[UInt8[Tensor, "h w 3"], float]] = {}
        self._frame: UInt8[Tensor, "h w 3"] | None = None
        self._seen = self._failed = self._best = 0
        self._doubts = 0  # frames in a row that the map's pictures contradict
        self._note = ""
        self._mapper: Mapper[Callable[[], _Grown | None], _Grown | None] = Mapper(lambda wish: wish())

    def _fresh_opening(self) -> Opening:
        return Opening(self.settings.opening, self.settings.grow.points)

    @property
    def keyframes(self) -> int:
        """Pictures in the map now."""
        return 0 if self._now is None else len(self._now.made.names)

    @property
    def K(self) -> Float[Tensor, "3 3"] | None:
        """Intrinsics (float64) for the last frame's pixels, as the map has them; None before there is one."""
        if self._now is None or self._frame is None:
            return None
        made, (height, width) = self._now.made, self._frame.shape[:2]
        scale = np.array([[width / made.sizes[0, 1]], [height / made.sizes[0, 0]], [1.0]])
        return torch.from_numpy(scale * made.K[0])

    @property
    def K_settled(self) -> bool:
        """Whether `K` will not change any more."""
        return self._now is not None and self._now.known_lens

    def locate(
        self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], guess: Float[Tensor, "4 4"] | None
    ) -> Located | None:
        """See `Locator.locate`. None while the first pictures are gathered, and where the map does not answer."""
        again = image is self._frame
        self._frame, self.added = image, self.added and again
        if not again:
            self._seen += 1
            self._take()
        if self._now is None:
            return None if again else self._begin(image, K)
        # Once the focal length is known, the tracker keeps it, and follows a zoom.
        lens = K if self._given_lens or self.K_settled else self.K
        assert lens is not None
        found = self._now.locator.locate(image, lens, guess)
        if found is None:
            self._failed += not again
            self._begin_anew()
            return None
        self._failed = 0
        self._begin_anew()
        if self._now is None:
            return None
        if not self._mapper.busy:
            new = self._is_new(found)
            if new or self._doubts:
                self._join(image, lens, found, check=not new)
        note, self._note = self._note, ""
        if self._doubts:
            found = replace(found, confidence=min(found.confidence, self.settings.doubted))
            note = note or "the map's pictures contradict this pose"
        return replace(found, note="; ".join(part for part in (note, found.note) if part))

    def finish(self, timeout: float | int | None = None) -> bool:
        """Wait for the map that is being made, and adjust all its cameras together. False: it took longer."""
        done = self._mapper.settle(timeout)
        self._take()
        growing = self._growing
        if done and growing is not None and not self._mapper.busy:
            growing.settle()
            self._now = _grown(growing, self.settings)
        return done

    def scene(self) -> Scene:
        """The keyframes as a scene of posed pictures with the map's points. Raises InputError before there is a map."""
        if self._now is None:
            raise InputError("map", "none yet", "move the camera sideways past something with texture")
        made = self._now.made
        views = []
        for name, pose, K in zip(made.names, made.world_from_cam, made.K, strict=True):
            picture = self._pictures[name][0]
            height, width = int(picture.shape[0]), int(picture.shape[1])
            camera = Cameras(torch.from_numpy(pose)[None], torch.from_numpy(K)[None], height, width)
            views.append(View(name, picture, Original(name, height, width, torch.from_numpy(K)), camera))
        return Scene(tuple(views), source="tracked without a map", points=self._points(made), posed_by="model")

    def map_points(self) -> Points | None:
        """The map as it is; None before there is one."""
        return None if self._now is None else self._points(self._now.made)

    def close(self) -> None:
        """End the mapper's thread."""
        self._mapper.close()

    def __enter__(self) -> ClassicalSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> Located | None:
        """A picture for the first map; once that is there, it is the last of its pictures."""
        name, (kept, shrink) = f"{self._seen:06d}.png", _reduced(image, self.settings.largest)
        grey = grey_of(kept)
        features = self._finder(grey)
        if len(features) < self.settings.opening.matches:
            return None
        lens = np.diag([shrink, shrink, 1.0]) @ K.double().numpy()
        picture = encode_grey(grey, self.settings.patch_side)
        size = (int(grey.shape[0]), int(grey.shape[1]))
        station = Station(name, np.eye(4), lens, size, features, picture)
        self._pictures[name] = (kept, shrink)
        opened = self._opening.add(station, known_lens=self._given_lens)
        if opened is None:
            waiting = set(self._opening.names)
            self._pictures = {key: value for key, value in self._pictures.items() if key in waiting}
            return None
        stations, made = opened
        self._growing = GrowingMap(stations, made, known_lens=self._given_lens, settings=self.settings.grow)
        self._now = _grown(self._growing, self.settings)
        self._tidy()
        self.added, self._failed, self._best = True, 0, 0
        pose = torch.from_numpy(made.world_from_cam[-1].copy())
        said = f"map of {self.keyframes} pictures; its scale is its own: 1 = {_UNIT}"
        return Located(pose, 1.0, len(made), len(made), said)

    def _begin_anew(self) -> None:
        """A young map that leads nowhere is given up."""
        leads_nowhere = self._failed >= self.settings.given_up or self._doubts >= self.settings.doubts
        if not leads_nowhere or self.keyframes >= self.settings.young or self._mapper.busy:
            return
        self._now = self._growing = None
        self._opening, self._failed, self._doubts = self._fresh_opening(), 0, 0
        self._pictures = {}

    def _is_new(self, found: Located) -> bool:
        """Whether a placed frame shows what no keyframe does."""
        assert self._now is not None
        settings, patches = self.settings, found.inliers
        self._best = max(self._best, patches)
        if found.confidence < settings.sure:
            return False
        pose = found.world_from_cam.numpy()
        away, turned = shift_and_turn(pose, self._now.made.world_from_cam)
        steps = np.maximum(away / (settings.shift * self._now.depth), turned / settings.angle)
        near = float(steps.min())
        return near > 1 or (near > 0.25 and patches < settings.fading * self._best)

    def _join(self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], found: Located, *, check: bool) -> None:
        """Has a frame taken into the map; ``check``: only asks whether the map bears its pose out."""
        assert self._growing is not None
        growing = self._growing
        kept, shrink = _reduced(image, self.settings.largest)
        name, lens = f"{self._seen:06d}.png", np.diag([shrink, shrink, 1.0]) @ K.double().numpy()
        wish = _Wish(name, grey_of(kept), found.world_from_cam.numpy().copy(), lens)
        if not check:
            self._pictures[name] = (kept.clone(), shrink)
            self.added = True

        def build() -> _Grown | None:
            size = (int(wish.grey.shape[0]), int(wish.grey.shape[1]))
            picture = encode_grey(wish.grey, self.settings.patch_side)
            station = Station(wish.name, wish.world_from_cam, wish.K, size, self._joining(wish.grey), picture)
            joined = ("little" if growing.agrees(station) else "doubtful") if check else growing.add(station)
            self._doubts = self._doubts + 1 if joined == "doubtful" else 0
            return _grown(growing, self.settings) if joined == "taken" else None

        self._mapper.ask(build)
        if self.patient:
            self._mapper.settle()

    def _take(self) -> None:
        """Swap in a finished map."""
        fresh, trouble = self._mapper.take(), self._mapper.trouble()
        if trouble:
            self._note = f"no new map: {trouble}"
        if fresh is not None:
            self._now, self._best = fresh, 0
            self._tidy()

    def _tidy(self) -> None:
        """Pictures of the map only."""
        assert self._now is not None
        names = set(self._now.made.names)
        self._pictures = {name: kept for name, kept in self._pictures.items() if name in names}

    def _points(self, made: ClassicalMap) -> Points:
        """The map's points in the colours of the first pictures that see them."""
        colors = np.zeros((len(made), 3), np.uint8)
        for view in reversed(range(len(made.names))):
            picture = self._pictures[made.names[view]][0].numpy()
            rows = np.flatnonzero(made.obs_view == view)
            x, y = np.floor(made.obs_xy[rows]).astype(int).T
            inside = picture[y.clip(0, picture.shape[0] - 1), x.clip(0, picture.shape[1] - 1)]
            colors[made.obs_point[rows]] = inside
        return Points(torch.from_numpy(made.positions).float(), torch.from_numpy(colors))


_UNIT = "the median depth of what its first picture saw"


def _grown(growing: GrowingMap, settings: ClassicalSessionSettings) -> _Grown:
    tells = growing.known_lens and len(growing.stations) >= settings.zooms
    how = settings.locator if tells else replace(settings.locator, zoom=float("inf"), drift=float("inf"))
    return _Grown(ClassicalLocator(growing.map, how), growing.known_lens, growing.middle_depth, growing.map)


def _reduced(image: UInt8[Tensor, "h w 3"], largest: int) -> tuple[UInt8[Tensor, "_ _ 3"], float]:
    """The picture with a longer side of at most ``largest``, and by how much it shrank."""
    height, width = int(image.shape[0]), int(image.shape[1])
    shrink = min(1.0, largest / max(height, width))
    if shrink == 1.0:
        return image, 1.0
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = Image.fromarray(image.cpu().contiguous().numpy()).resize(size, Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)), size[0] / width
