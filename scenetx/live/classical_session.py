"""Tracking without a map and without a model, on any CPU: two views make a map of features, which grows on the way.

    with ClassicalSession() as session:                  # a `Locator`: None until the first map is there (init)
        for update in scenetx.track("0", scene=session):
            session.added, session.keyframes, session.K  # became the last frame a keyframe?; pictures; intrinsics
        session.finish()                                 # all cameras adjusted together once more
        session.scene().save(folder)                     # a scene folder that `reconstruct` can go on with

Place and scale are the map's own: the world is the first keyframe's camera, and the unit the median depth of what it
saw. Poses come from `ClassicalLocator` as in any map; all that takes long (the opening, pictures that join, loops that
are closed) is done in a thread of its own, and what comes of it is swapped in whole.

Where the map is not seen for a while, another one is begun beside it, in a frame of its own (`Located.map` says which).
When a picture shows both, the two become one in the older one's frame (`meet`), and `joins` says how they lay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import InputError, Points, Scene, Sim3
from scenetx.live.anchors import anchor_of, keyframe_poses, shift_and_turn
from scenetx.live.classical import ClassicalSettings
from scenetx.live.classical_map import encode_grey
from scenetx.live.features import FeatureFinder, FeatureSettings, grey_of, reduced_picture
from scenetx.live.grow import FoundLens, GrowingMap, GrowSettings
from scenetx.live.grown import Grown, grown_of, points_of, scene_of
from scenetx.live.mapper import Mapper
from scenetx.live.meet import MeetSettings, closed, joined
from scenetx.live.opening import Opening, OpeningSettings
from scenetx.live.points import Seen, Station
from scenetx.live.radial import with_lens
from scenetx.live.update import KeyframePoses, Located


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
    away: int = 8
    """Frames in a row that a map does not place before another one is begun beside it;"""
    young: int = 5
    """one of fewer pictures is then given up for it,"""
    doubts: int = 4
    """and given up at once where its pictures so often in a row contradict each other."""
    lensless: int = 8
    """so often where the lens is still unknown."""
    lens_waiting: int = 4
    """Pictures that waited for the first map in which its lens is looked for, about."""
    maps: int = 4
    """At most; where nothing is seen of them, no more are begun."""
    doubted: float = 0.1
    """Confidence, at most, while they do."""
    features: FeatureSettings = field(default_factory=lambda: FeatureSettings(side=800, most=1000))
    opening: OpeningSettings = field(default_factory=OpeningSettings)
    grow: GrowSettings = field(default_factory=GrowSettings)
    meet: MeetSettings = field(default_factory=MeetSettings)
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
class _News:
    """What the mapper has made: the map ``number`` as it is now; and what became part of it, and how that lay."""

    number: int
    growing: GrowingMap
    grown: Grown
    note: str = ""
    joined: tuple[int, Sim3] | None = None
    rest: tuple[Station, ...] = ()
    """Of a map just begun: pictures that waited for it too, and may join it yet."""


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
        self.sparing = 1.0
        """Keyframes are so many times farther apart than the settings say, as long as enough of them is seen."""
        self.added = False
        self.known_lens = known_lens
        self._finder = FeatureFinder(self.settings.features)  # the mapper's
        self._opening = self._fresh_opening()
        self._maps: dict[int, GrowingMap] = {}  # the mapper's while it is busy
        self._ready: dict[int, Grown] = {}
        self._active = self._begun = -1  # numbers of the map in use, and of the last one begun
        self._joins: dict[int, tuple[int, Sim3]] = {}
        self._moved: Sim3 | None = None  # what the last swap did to the frame that poses are in
        self._lens: FoundLens | None = None  # once it holds: all maps are of one camera
        self._lens_known = False
        self._rest: list[Station] = []  # of the map in use
        self._pictures: dict[str, UInt8[Tensor, "h w 3"]] = {}
        self._frame: UInt8[Tensor, "h w 3"] | None = None
        self._seen = self._failed = self._best = 0
        self._doubts = 0  # frames in a row that the map's pictures contradict
        self._note = ""
        self._mapper: Mapper[Callable[[], _News | None], _News | None] = Mapper(lambda wish: wish())

    def _fresh_opening(self) -> Opening:
        return Opening(self.settings.opening, self.settings.grow.points)

    @property
    def _now(self) -> Grown | None:
        return self._ready.get(self._active)

    @property
    def growing(self) -> GrowingMap | None:
        """The map in use, as it grows: for those who look while nothing is being made (`finish`)."""
        return self._maps.get(self._active)

    @property
    def opening(self) -> bool:
        """See `ManyMaps`."""
        return self._now is None or self._failed >= self.settings.away

    @property
    def steady(self) -> bool:
        """Whether there is a map whose poses can be said (`GrowingMap.steady`)."""
        return self._now is not None and self._now.steady

    @property
    def busy(self) -> bool:
        """Whether the map is being changed: frames that it should take now are not taken."""
        return self._mapper.busy

    @property
    def joins(self) -> Mapping[int, tuple[int, Sim3]]:
        """See `ManyMaps`."""
        return dict(self._joins)

    @property
    def keyframes(self) -> int:
        """Pictures in the map now."""
        now = self._now
        return 0 if now is None else len(now.made.names)

    @property
    def K(self) -> Float[Tensor, "3 3"] | None:
        """Intrinsics (float64) for the last frame's pixels, as the map has them; None before there is one."""
        if self._now is None or self._frame is None:
            return None
        return torch.from_numpy(self._now.K(int(self._frame.shape[0]), int(self._frame.shape[1])))

    @property
    def lens_line(self) -> str:
        """See `TellsLens`."""
        if self._now is None or self._frame is None:
            return ""
        return self._now.lens_line(int(self._frame.shape[0]), int(self._frame.shape[1]))

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
            if self.patient:  # what was asked for while it was not
                self._mapper.settle()
            self._take()
        if guess is not None and self._moved is not None:
            guess = self._moved.apply_to_poses(guess)  # it is of the map that was in use before
        if self._now is None and not again:
            self._open(image, K)
            if self.patient:
                self._take()
            guess = None if self._now is None else torch.from_numpy(self._now.made.world_from_cam[-1].copy())
            while self.patient and self._rest:
                self._join_rest()
                self._take()
        if self._now is None:
            return None
        found = self._placed(self._active, image, K, guess)
        if found is None and not again:
            found = self._elsewhere(image, K)
        self._failed = 0 if found is not None else self._failed + (not again)
        if found is None or self._contradicted():
            return None
        if not self._mapper.busy:
            new = self._is_new(found)
            if new or self._doubts:
                self._join(image, self._lens_of(self._active, image, K), found, check=not new)
            else:
                self._join_rest()
        note, self._note = self._note, ""
        if found.rough:
            note = "; ".join(part for part in (note, f"the lens is being estimated: {self.lens_line}") if part)
        if self._doubts:
            found = replace(found, confidence=min(found.confidence, self.settings.doubted))
            note = note or "the map's pictures contradict this pose"
        anchor = anchor_of(found.world_from_cam.numpy(), self._now.made, self._now.depth)
        note = "; ".join(part for part in (note, found.note) if part)
        return replace(found, note=note, map=self._active, anchor=anchor)

    def _placed(
        self, number: int, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], guess: Float[Tensor, "4 4"] | None
    ) -> Located | None:
        """A frame in one of the maps, straightened as that map has it."""
        grown = self._ready[number]
        straight = grown.straight(image)
        found = grown.locator.locate(straight, self._lens_of(number, image, K), guess)
        if found is None or self.known_lens:
            return found
        return replace(found, image=straight, rough=not grown.steady)

    def _lens_of(self, number: int, image: Tensor, K: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
        """Once the focal length is known, the tracker keeps it, and follows a zoom."""
        grown = self._ready[number]
        if self.known_lens or grown.known_lens:
            return K
        return torch.from_numpy(grown.K(int(image.shape[0]), int(image.shape[1])))

    def finish(self, timeout: float | int | None = None) -> bool:
        """Wait for the map that is being made, and adjust all its cameras together. False: it took longer."""
        done = self._mapper.settle(timeout)
        self._take()
        if done and not self._mapper.busy:
            for number, growing in self._maps.items():
                growing.settle()
                self._ready[number] = grown_of(growing, self.settings.locator, self.settings.zooms)
        return done

    def scene(self) -> Scene:
        """The keyframes as a scene of posed pictures with the map's points; of several maps, the one of most pictures.

        Raises InputError before there is a map.
        """
        if not self._ready:
            raise InputError("map", "none yet", "move the camera sideways past something with texture")
        return scene_of(self._largest(), self._pictures)

    def keyframe_poses(self) -> KeyframePoses:
        """See `MovesKeyframes`: of the map that `scene` gives; empty before there is one."""
        if not self._ready:
            return {}
        grown = self._largest()
        return keyframe_poses(grown.made, grown.heirs)

    def _largest(self) -> Grown:
        return max(self._ready.values(), key=lambda each: len(each.made.names))

    def map_points(self) -> Points | None:
        """See `GrowsMap`: the map in use."""
        pictures = self._pictures  # first: those of keyframes that go are let go later
        now = self._now
        return None if now is None else points_of(now, pictures)

    def close(self) -> None:
        """End the mapper's thread."""
        self._mapper.close()

    def __enter__(self) -> ClassicalSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> None:
        """Gives a picture for a map to begin with to the mapper, if it has the time."""
        if self._mapper.busy or len(self._ready) >= self.settings.maps:
            return
        opening, lens, known = self._opening, self._lens, self.known_lens or self._lens_known
        self._tidy()
        name, (picture, shrink) = f"{self._seen:06d}.png", reduced_picture(image, self.settings.largest)
        self._pictures[name] = picture.clone()
        wish = _Wish(name, grey_of(picture), np.eye(4), np.diag([shrink, shrink, 1.0]) @ K.double().numpy())

        def build() -> _News | None:
            station = self._station(wish)
            if len(station.features) < self.settings.opening.matches:
                return None
            if lens is not None:
                station = with_lens(station, lens.focal, lens.k1)
            opened = opening.add(station, known_lens=self.known_lens or lens is not None)
            if opened is None:
                return None
            growing = GrowingMap(*opened, known_lens=known, settings=self.settings.grow, lens=lens)
            rest: tuple[Station, ...] = ()
            if lens is None and not known:
                growing.find_lens()
                rest = opening.rest[:: max(1, len(opening.rest) // self.settings.lens_waiting)]
            grown = grown_of(growing, self.settings.locator, self.settings.zooms)
            return _News(self._begun + 1, growing, grown, rest=rest)

        self._ask(build)

    def _join_rest(self) -> None:
        """Has one of the pictures that waited for the map taken in, for they tell of the lens as well. Only while there
        is nothing else to do: a camera that runs is lost where its map does not grow with it."""
        if not self._rest or self._mapper.busy:
            return
        number, growing, station = self._active, self._maps[self._active], self._rest.pop(0)

        def build() -> _News | None:
            placed = growing.placed(station)
            taken = placed is not None and growing.add(placed) == "taken"
            return self._met(number, growing) if taken else None

        self._ask(build)

    def _ask(self, build: Callable[[], _News | None]) -> None:
        """Files wait for what is made, and have it at once."""
        self._mapper.ask(build)
        if self.patient:
            self._mapper.settle()

    def _station(self, wish: _Wish) -> Station:
        size = (int(wish.grey.shape[0]), int(wish.grey.shape[1]))
        picture = encode_grey(wish.grey, self.settings.patch_side)
        features = self._finder(wish.grey)
        seen = None if self.known_lens else Seen(features.xy, picture)
        return Station(wish.name, wish.world_from_cam, wish.K, size, features, picture, seen)

    def _elsewhere(self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> Located | None:
        """A picture that the map in use does not place: in one of the others (each frame asks one), which then is in
        use; and after a while for a map to begin with."""
        others = [number for number in self._ready if number != self._active]
        if others:
            number = others[self._seen % len(others)]
            found = self._placed(number, image, K, None)
            if found is not None and found.confidence >= self.settings.sure:
                self._use(number)
                return found
        if self._failed >= self.settings.away:
            self._open(image, K)
        return None

    def _use(self, number: int) -> None:
        """Track in this map from now on; a young one that led nowhere is given up."""
        before, self._active = self._active, number
        if before in self._maps and before != number and len(self._maps[before].stations) < self.settings.young:
            del self._maps[before], self._ready[before]
        self._opening = self._fresh_opening()
        self._rest = []
        self._failed = self._best = self._doubts = 0

    def _contradicted(self) -> bool:
        """Gives up a young map whose pictures contradict each other, and one whose lens they do not settle."""
        assert self._now is not None
        young = self.keyframes < self.settings.young or (not self._now.holds and self._doubts >= self.settings.lensless)
        if self._doubts < self.settings.doubts or not young or self._mapper.busy:
            return False
        del self._maps[self._active], self._ready[self._active]
        self._use(min(self._ready, default=-1))
        return True

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
        return near > self.sparing or (near > 0.25 and patches < settings.fading * self._best)

    def _join(self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], found: Located, *, check: bool) -> None:
        """Has a frame taken into the map; ``check``: only asks whether the map bears its pose out."""
        number, growing = self._active, self._maps[self._active]
        kept, shrink = reduced_picture(image, self.settings.largest)
        name, lens = f"{self._seen:06d}.png", np.diag([shrink, shrink, 1.0]) @ K.double().numpy()
        wish = _Wish(name, grey_of(kept), found.world_from_cam.numpy().copy(), lens)
        if not check:
            self._pictures[name] = kept.clone()
            self.added = True

        def build() -> _News | None:
            station = self._station(wish)
            said = ("little" if growing.agrees(station) else "doubtful") if check else growing.add(station)
            self._doubts = self._doubts + 1 if said == "doubtful" else 0
            return self._met(number, growing) if said == "taken" else None

        self._ask(build)

    def _met(self, number: int, growing: GrowingMap) -> _News:
        """A map that has grown: its loop closed, if it has come back to a place, or one with another map that its
        newest picture shows too. The mapper's."""
        newest = growing.stations[-1]
        for other, known in list(self._maps.items()):
            if other != number:
                older, a, b = (other, known, growing) if other < number else (number, growing, known)
                whole = joined(a, b, newest, self.settings.meet, of_a=older == number)
                if whole is not None:
                    gone = max(number, other)
                    note = f"the maps begun first and later are one now, of {len(whole[0].stations)} pictures"
                    return _News(
                        older,
                        whole[0],
                        grown_of(whole[0], self.settings.locator, self.settings.zooms),
                        note,
                        (gone, whole[1]),
                    )
        whole_loop = closed(growing, self.settings.meet)
        note = "" if whole_loop is None else "a place seen before: the loop is closed"
        growing = growing if whole_loop is None else whole_loop
        return _News(number, growing, grown_of(growing, self.settings.locator, self.settings.zooms), note)

    def _take(self) -> None:
        """Swap in what the mapper has finished."""
        self._moved = None
        news, trouble = self._mapper.take(), self._mapper.trouble()
        if trouble:
            self._note = f"no new map: {trouble}"
        if news is None:
            return
        fresh = news.number > self._begun
        if not fresh and news.number not in self._maps:  # given up meanwhile
            return
        self._maps[news.number], self._ready[news.number] = news.growing, news.grown
        self._begun, self._best = max(self._begun, news.number), 0
        self._note = news.note or self._note
        self._take_lens(news.grown)
        if fresh:
            self._use(news.number)
            self._rest = list(news.rest)
            self.added = True
            self._note = f"map of {self.keyframes} pictures; its scale is its own: 1 = {_UNIT}"
        if news.joined is not None:
            gone, similarity = news.joined
            self._maps.pop(gone, None)
            self._ready.pop(gone, None)
            self._joins[gone] = (news.number, similarity)
            if self._active == gone:
                self._active, self._moved = news.number, similarity
        if not fresh:
            self._tidy()

    def _take_lens(self, grown: Grown) -> None:
        """What a map has found of the lens, for those that are begun from now on."""
        if self.known_lens or self._lens_known or not grown.holds:
            return
        if self._lens is None:  # those that wait were bent otherwise
            self._opening = self._fresh_opening()
        self._lens, self._lens_known = grown.lens, grown.known_lens

    def _tidy(self) -> None:
        """Only pictures of a map, or of the opening that waits for one, are kept."""
        used = {name for growing in self._maps.values() for name in growing.map.names} | set(self._opening.names)
        used |= {station.name for station in self._rest}
        self._pictures = {name: each for name, each in self._pictures.items() if name in used}


_UNIT = "the median depth of what its first picture saw"
