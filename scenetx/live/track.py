"""From pictures to states: a locator's answers, checked against the motion, become init, tracking, unsure, lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.rigid import invert_rigid, rigid, rotation_angle, rotation_from_rotvec
from scenetx.live.capture import BLACK, FROZEN
from scenetx.live.intrinsics import Intrinsics
from scenetx.live.update import Frame, Located, Locator, ManyMaps, Prepares, Status, Update


@dataclass(frozen=True)
class TrackSettings:
    """When a pose is believed."""

    sure: float = 0.4
    """Confidence from which a pose is believed whatever the motion says,"""
    weak: float = 0.1
    """and under which it is not believed at all."""
    start: float = 0.3
    """Confidence that a first pose, and one after a loss, needs; less has to be confirmed by the next frame."""
    patience: int = 6
    """Frames without a pose, in a row, after which the camera is lost; and"""
    patience_seconds: float = 1.0
    """so many seconds, whichever is longer in coming."""
    jump: float = 6.0
    """A pose may be off the predicted one by so many times the recent steps without more proof."""
    turn: float = 25.0
    """Degrees off the predicted direction, likewise."""
    damping: float = 0.9
    """Share of the last motion that is expected to go on."""
    look_anew: int = 45
    """Lost frames after which, each time, another focal length is thought of."""


@dataclass
class _Motion:
    """Constant velocity, in the camera's own axes; forgets when the camera is lost."""

    damping: float
    last: Float[Tensor, "4 4"] | None = None
    at: float = 0.0
    linear: Float[Tensor, "3"] = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    angular: Float[Tensor, "3"] = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=15))

    def predict(self, seconds: float) -> Float[Tensor, "4 4"] | None:
        """Where the camera should be."""
        if self.last is None:
            return None
        # Beyond a quarter of a second nobody knows: hands turn back.
        dt = self.damping * min(max(seconds - self.at, 0.0), 0.25)
        return self.last @ rigid(rotation_from_rotvec(self.angular * dt), self.linear * dt)

    def moved(self, world_from_cam: Float[Tensor, "4 4"], seconds: float) -> None:
        """The camera was seen there."""
        dt = seconds - self.at
        if self.last is not None and 0 < dt < 1.0:
            step = invert_rigid(self.last) @ world_from_cam
            self.linear, self.angular = step[:3, 3] / dt, _rotvec(step[:3, :3]) / dt
            self.steps.append(float(step[:3, 3].norm()) / dt)
        else:
            self.linear, self.angular = torch.zeros_like(self.linear), torch.zeros_like(self.angular)
        self.last, self.at = world_from_cam, seconds

    def forget(self) -> None:
        """Where it was stays known, how it moved does not."""
        self.linear, self.angular = torch.zeros_like(self.linear), torch.zeros_like(self.angular)
        self.steps.clear()

    def surprise(self, world_from_cam: Float[Tensor, "4 4"], seconds: float) -> tuple[float, float]:
        """How far a pose is from the predicted one: in recent steps, and in degrees. Zero when there is no history."""
        guess = self.predict(seconds)
        if guess is None or len(self.steps) < 3:
            return 0.0, 0.0
        dt = min(max(seconds - self.at, 1e-3), 1.0)
        usual = max(sorted(self.steps)[len(self.steps) // 2], 0.3 * max(self.steps)) * dt
        off = float((world_from_cam[:3, 3] - guess[:3, 3]).norm())
        turned = float(torch.rad2deg(rotation_angle(guess[:3, :3].T @ world_from_cam[:3, :3])))
        return off / max(usual, 1e-9), turned


class Tracker:
    """The state machine over any `Locator`. One frame in, one `Update` out.

    A frame's guess is the predicted pose; without an answer the predicted pose is given as `unsure` for a while, then
    the camera is `lost` and every frame is looked for in the whole map. A pose that the motion does not explain is
    believed only when the map is certain of it, or when the next frame says the same. Black frames are not looked at;
    of frozen ones the pose is `unsure`. A pose in another map's frame (`ManyMaps`) says nothing of the motion.
    """

    def __init__(self, locator: Locator, intrinsics: Intrinsics, settings: TrackSettings | None = None) -> None:
        self.locator = locator
        self.intrinsics = intrinsics
        self.settings = settings or TrackSettings()
        self.status: Status = "init"
        self._motion = _Motion(self.settings.damping)
        self._missing = self._zooming = 0
        self._map = 0
        self._maps: set[int] = set()
        self._zoomed = False
        self._missing_since: float | None = None
        self._doubted: tuple[Float[Tensor, "4 4"], float, int] | None = None

    def step(self, frame: Frame) -> Update:
        """What is to be said of a frame. Frames come in order of time."""
        started = frame.captured if frame.captured is not None else time.perf_counter()
        image, K = self.intrinsics.straight(frame.image, self.locator)
        located, note = None, ""
        seen = BLACK not in frame.note.split("; ")
        if seen:
            located, note = self._look(image, K, frame.time)
        if located is not None and not self._believed(located, frame.time):
            located, note = None, "a pose that the motion does not explain"
        pose, confidence = self._settle(located, frame.time)
        zoom, K = self._zoom(image, located, K)
        if (zoom or FROZEN in frame.note.split("; ")) and self.status in ("tracking", "relocalised"):
            self.status = "unsure"
        if located is not None and located.image is not None:
            image = located.image
        notes = (frame.note, *self.intrinsics.news(), zoom, note, located.note if located else "")
        return Update(
            index=frame.index,
            time=frame.time,
            status=self.status,
            world_from_cam=pose,
            K=K,
            confidence=confidence,
            added=bool(getattr(self.locator, "added", False)),
            keyframes=int(getattr(self.locator, "keyframes", 0)),
            latency=time.perf_counter() - started,
            dropped=frame.dropped,
            note="; ".join(part for part in notes if part),
            locator=self.locator.name,
            image=image,
            name=frame.name,
            map=self._map,
            anchor=None if located is None else located.anchor,
        )

    def _look(self, image: Tensor, K: Tensor, seconds: float) -> tuple[Located | None, str]:
        """The locator's answer: near the guess, and in the whole map when there is none or it has failed before.

        Then the two take turns: both for one frame would take longer than frames may.
        """
        guess = self._motion.predict(seconds) if self.status != "init" else None
        failing = self.status == "lost" or self._missing >= 2
        located = self.locator.locate(image, K, None if failing and self._missing % 2 == 0 else guess)
        if located is None:
            preparing = self.locator.preparing if isinstance(self.locator, Prepares) else ""
            if preparing:
                return None, preparing
            beside = isinstance(self.locator, ManyMaps) and self.locator.opening and bool(self._maps)
            return None, "not found in the map; another one is being begun" if beside else "not found in the map"
        if located.confidence < self.settings.weak:
            return None, f"too weak a match ({located.note})" if located.note else "too weak a match"
        return located, ""

    def _zoom(
        self, image: Tensor, located: Located | None, K: Float[Tensor, "3 3"]
    ) -> tuple[str, Float[Tensor, "3 3"]]:
        """What there is to say of the lens, and the K that holds: one that zooms is followed from the second frame on
        that says so; where the place was lost, a zoom in one go is looked for now and then."""
        if located is None:
            self._zooming = 0
            if self.status == "lost" and self._missing % self.settings.look_anew == 0:
                self.intrinsics.look_anew(image, self.locator)
            return "", K
        # Of a lens that has zoomed before, less proof is asked.
        if located.K is None or not (located.zooms or self._zoomed):
            self._zooming = 0
            return "", K
        self._zooming += 1
        if self._zoomed or self._zooming >= 2:
            self._zoomed = True
            self.intrinsics.follow(located.K)
        about = f"the lens zooms: focal length about {float(located.K[0, 0]):.0f} pixels"
        return about, located.K if located.zooms else K

    def _believed(self, located: Located, seconds: float) -> bool:
        """The geometric check."""
        settings = self.settings
        if self.status in ("init", "lost") or located.map != self._map:
            plausible = located.confidence >= settings.start
        else:
            steps, turned = self._motion.surprise(located.world_from_cam, seconds)
            plausible = located.confidence >= settings.sure or (steps <= settings.jump and turned <= settings.turn)
        if plausible or self._confirms(located, seconds):
            self._doubted = None
            return True
        self._doubted = (located.world_from_cam, seconds, located.map)
        return False

    def _confirms(self, located: Located, seconds: float) -> bool:
        """Whether the frame before was put in about the same place, by a search that knew as little."""
        if self._doubted is None or seconds - self._doubted[1] > 0.5 or located.map != self._doubted[2]:
            return False
        step = invert_rigid(self._doubted[0]) @ located.world_from_cam
        turned = float(torch.rad2deg(rotation_angle(step[:3, :3])))
        usual = max(self._motion.steps, default=0.0) * (seconds - self._doubted[1])
        near = float(step[:3, 3].norm()) <= 3 * usual if usual > 0 else True
        return turned < 10 and near and located.confidence >= 0.5 * self.settings.start

    def _settle(self, located: Located | None, seconds: float) -> tuple[Float[Tensor, "4 4"] | None, float]:
        """The new state, and the pose and confidence to tell."""
        settings = self.settings
        if located is not None:
            again = self.status == "lost"
            if again:
                self._motion.forget()
            if located.map != self._map:
                self._motion, self._map = _Motion(settings.damping), located.map
                again = located.map in self._maps
            self._maps.add(located.map)
            sure = located.confidence >= 0.5 * settings.start
            self._motion.moved(located.world_from_cam, seconds)
            self._missing, self._missing_since = 0, None
            status: Status = "relocalised" if again else "tracking" if sure else "unsure"
            self.status = "unsure" if located.rough else status
            return located.world_from_cam, min(located.confidence, settings.weak if located.rough else 1.0)
        if self.status == "init":
            return None, 0.0
        self._missing += 1
        if self._missing_since is None:
            self._missing_since = seconds
        long = seconds - self._missing_since >= settings.patience_seconds
        if self.status == "lost" or (self._missing > settings.patience and long):
            self.status = "lost"
            return None, 0.0
        self.status = "unsure"
        return self._motion.predict(seconds), 0.0


def track_frames(frames: Iterable[Frame], tracker: Tracker) -> Iterator[Update]:
    """The updates of a source's frames, as they come. Holds nothing but the tracker's state: memory stays flat."""
    for frame in frames:
        yield tracker.step(frame)


def _rotvec(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "3"]:
    """Axis times angle (radians) of a rotation of less than a half turn."""
    skew = torch.stack(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = skew.norm()
    return skew * (rotation_angle(rotation) / sine) if float(sine) > 1e-12 else 0.5 * skew
