"""`scenetx track` and `scenetx.track`: poses of a camera, a video or a stream as it runs, in a map's frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scenetx.core import InputError, Sim3
from scenetx.live.anchors import FINAL, write_final
from scenetx.live.capture import Capture, CaptureSettings
from scenetx.live.catch_up import CatchUp
from scenetx.live.classical_session import ClassicalSession
from scenetx.live.intrinsics import GivenLens, Intrinsics
from scenetx.live.known_scale import KnownScale, in_known_scale
from scenetx.live.object_mode import BoxFollower, MaskFiles, Masks, MaskVideo, object_frames
from scenetx.live.one_frame import into_one_frame
from scenetx.live.outputs import VIDEO, Recorder, Trajectory
from scenetx.live.pose_stream import open_stream
from scenetx.live.source import Reader, open_reader
from scenetx.live.track import Tracker, TrackSettings, track_frames
from scenetx.live.update import GrowsMap, Locator, ManyMaps, MovesKeyframes, Status, Update
from scenetx.pipeline.locators import Method, OpenMap, Say, open_map, open_without_map
from scenetx.pipeline.track_view import Growing, TrackView

log = logging.getLogger(__name__)
MAP_FOLDER = "map-scene"


@dataclass(frozen=True)
class TrackPlan:
    """What to track, in what, and what to do with the poses."""

    source: str
    map: Path | None = None
    """Scene folder to track in; None = a map is made on the way."""
    method: Method = "auto"
    model: str = "auto"
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    lens: GivenLens = field(default_factory=GivenLens)
    settings: TrackSettings = field(default_factory=TrackSettings)
    output: Path | None = None
    """Folder for the trajectory, and with ``record`` the video."""
    record: bool = False
    view: bool = False
    open_browser: bool = True
    port: int = 8080
    stream: str | None = None
    """udp://HOST:PORT or ws://HOST:PORT."""
    box: tuple[float, float, float, float] | None = None
    """Object mode: x0 y0 x1 y1 in the first frame; or"""
    mask: Path | None = None
    """a folder of masks or a mask video, frame for frame with the source."""
    known: KnownScale = field(default_factory=KnownScale)
    """A known size, or two known points, of what the map shows: poses are then in that unit."""

    def masks(self) -> Masks | None:
        """Where the object is, if one is tracked. Raises InputError for a mask that is not there."""
        if self.box is not None and self.mask is not None:
            raise InputError("track", "a box and a mask", "give one of the two")
        if self.box is not None:
            return BoxFollower(self.box)
        if self.mask is None:
            return None
        if not self.mask.exists():
            raise InputError(str(self.mask), "does not exist", "give a folder of masks or a mask video")
        return MaskFiles(self.mask) if self.mask.is_dir() else MaskVideo(self.mask)


@dataclass(frozen=True)
class TrackSummary:
    """What came of it."""

    frames: int
    posed: int
    """Frames with a pose that is believed."""
    dropped: int
    seconds: float
    """Of the source's clock."""
    states: dict[Status, int]
    latency_median: float
    latency_p95: float

    def line(self) -> str:
        """For people."""
        share = f"{self.posed} of {self.frames} frames placed"
        latency = f"latency {1000 * self.latency_median:.0f} ms (median), {1000 * self.latency_p95:.0f} ms (95 %)"
        return f"{share}, {self.dropped} dropped, {self.seconds:.1f} s; {latency}"


def track(
    source: str | Reader,
    *,
    scene: str | Path | OpenMap | Locator | None = None,
    method: Method = "auto",
    model: str = "auto",
    fps: float | int | None = None,
    lens: GivenLens | None = None,
    capture: CaptureSettings | None = None,
    settings: TrackSettings | None = None,
    masks: Masks | None = None,
    say: Say | None = None,
) -> Iterator[Update]:
    """Poses of a source's frames as they come: ``for update in scenetx.track("0", scene="room-scene/"): ...``.

    source: camera number, video file, folder, glob, rtsp/http/udp address, or a `Reader`. scene: a scene folder (poses
    are in its frame and scale), an open map or locator, or None: the map is made on the way, which needs a geometry
    model's weights. method: auto, classical (any CPU), kv, student. fps: replay a file at this rate as if it were
    live. masks: object mode (`scenetx.live.object_mode`): the pose is then object_from_cam, in the frame of a map that
    shows the object alone. Files give every frame, live sources the newest one. Leaving the loop closes the source.
    Raises InputError for what cannot be opened.
    """
    tell = say or log.info
    opened = _opened(scene, method, model, lens, tell)
    with ExitStack() as stack:
        frames = stack.enter_context(Capture(source, capture or CaptureSettings(fps=fps), tell))
        locator = opened.locator
        if not isinstance(scene, OpenMap | Locator):
            stack.callback(_close, locator)
        if isinstance(locator, ClassicalSession):
            locator.patient = not frames.live  # files wait for the map, cameras are caught up with
            if frames.live:
                locator = CatchUp(locator)
                stack.callback(locator.close)
        tracker = Tracker(locator, Intrinsics(lens, opened.lenses), settings)
        yield from track_frames(frames if masks is None else object_frames(frames, masks), tracker)


def run_track(
    plan: TrackPlan, say: Say | None = None, on_update: Callable[[Update], None] | None = None
) -> TrackSummary:
    """Tracks until the source ends or Ctrl-C, with all outputs that the plan asks for; what was found is kept.

    A map made on the way is written to OUTPUT/map-scene, a scene folder that `reconstruct` can go on with; and the
    poses in its frame, as its keyframes stand in the end, to OUTPUT/trajectory_final_tum.txt (`anchors`). Until the
    first frame is looked at nothing is written: what an earlier run left there stays where this one cannot begin.
    """
    tell = say or log.info
    if plan.record and plan.output is None:
        raise InputError("record", "no folder to write to", "add --output DIR")
    # What is quick to look at is looked at before the map, which may take minutes.
    source = open_reader(plan.source, size=plan.capture.size, fps=plan.capture.fps)
    masks = plan.masks()
    opened, scene_from_world = _in_known_scale(plan, _opened(plan.map, plan.method, plan.model, plan.lens, tell), tell)
    tally = _Tally()
    with ExitStack() as stack:
        stack.callback(_close, opened.locator)
        growing = opened.locator.map_points if isinstance(opened.locator, GrowsMap) else None
        sinks = _sinks(plan, stack, scene_from_world, tell, growing)
        updates = track(
            source,
            scene=opened,
            lens=plan.lens,
            capture=plan.capture,
            settings=plan.settings,
            masks=masks,
            say=tell,
        )
        # A generator that is left is closed by hand: its capture thread should end now, not when memory is collected.
        stack.callback(updates.close)  # type: ignore[attr-defined]
        with suppress(KeyboardInterrupt):
            status: Status | None = None
            for update in updates:
                tally.add(update)
                for sink in (*sinks, *([on_update] if on_update else [])):
                    sink(update)
                if update.status != status:
                    tell(_state_line(update))
                    status = update.status
        updates.close()  # type: ignore[attr-defined]  # what still waits to be caught up with is left
        if tally.frames:
            _keep_map(plan, opened.locator, tell)
    if tally.frames and plan.output is not None and plan.map is None:
        _last_word(plan.output, opened.locator, tell)
    return tally.summary()


def _opened(
    where: str | Path | OpenMap | Locator | None, method: Method, model: str, lens: GivenLens | None, say: Say
) -> OpenMap:
    if isinstance(where, OpenMap):
        return where
    if isinstance(where, str | Path):
        return open_map(where, method, model=model, say=say)
    if where is not None:
        return OpenMap(where, ())
    known = lens is not None and lens.known
    return OpenMap(open_without_map(method, model, known_lens=known, say=say), ())


def _in_known_scale(plan: TrackPlan, opened: OpenMap, say: Say) -> tuple[OpenMap, Sim3 | None]:
    """The map in the unit that the plan asks for, and the way back to the scene's frame; None = it is the scene's."""
    if not plan.known:
        return opened, None
    if plan.map is None:
        raise InputError("track", "a known size without a map", "make the map first (-o DIR), then --map DIR/map-scene")
    locator, object_from_scene = in_known_scale(opened.locator, plan.known)
    say(f"poses in the known unit: 1 unit of the scene is {object_from_scene.scale:.6g}")
    return replace(opened, locator=locator), object_from_scene.inverse()


def _sinks(
    plan: TrackPlan, stack: ExitStack, scene_from_world: Sim3 | None, say: Say, growing: Growing | None
) -> list[Callable[[Update], None]]:
    """Who is given each update; entered here, left in reverse. The page shows the scene in its own frame."""
    sinks: list[Callable[[Update], None]] = []
    if plan.output is not None:
        sinks.append(stack.enter_context(Trajectory(plan.output)).add)
        say(f"trajectory in {plan.output}")
        if plan.record:
            sinks.append(stack.enter_context(Recorder(plan.output / VIDEO)).add)
    if plan.stream is not None:
        sinks.append(stack.enter_context(open_stream(plan.stream)).send)
        say(f"poses at {plan.stream}")
    if plan.view:
        view = TrackView(
            plan.map, plan.source, port=plan.port, open_browser=plan.open_browser, say=say, growing=growing
        )
        show = stack.enter_context(view).show
        back = scene_from_world
        sinks.append(show if back is None else lambda update: show(_in_scene(update, back)))
    return sinks


def _in_scene(update: Update, scene_from_world: Sim3) -> Update:
    pose = update.world_from_cam
    return update if pose is None else replace(update, world_from_cam=scene_from_world.apply_to_poses(pose))


def _state_line(update: Update) -> str:
    where = f"{update.time:8.2f} s  frame {update.index}: {update.status}"
    return f"{where} ({update.note})" if update.note else where


def _keep_map(plan: TrackPlan, locator: Locator, say: Say) -> None:
    """A map that was made on the way, as a scene folder."""
    make: Any = getattr(locator, "scene", None)
    if plan.map is not None or plan.output is None or make is None:
        return
    finish: Any = getattr(locator, "finish", None)
    if finish is not None:
        finish(30.0)
    try:
        make().save(plan.output / MAP_FOLDER)
    except InputError as error:
        say(str(error))
        return
    say(f"map in {plan.output / MAP_FOLDER} (scenetx reconstruct makes splats of it)")


def _last_word(output: Path, locator: Locator, say: Say) -> None:
    """What of a trajectory can be said at the end only: how several maps lie, and where moved keyframes put it."""
    joins = locator.joins if isinstance(locator, ManyMaps) else {}
    if isinstance(locator, ManyMaps):
        one, apart = into_one_frame(output, joins)
        if apart:
            say(f"{one} poses are in one frame; {apart} are of maps that never met it and have files of their own")
    keyframes = locator.keyframe_poses() if isinstance(locator, MovesKeyframes) else {}
    if keyframes:
        count, left = write_final(output, keyframes, joins)
        others = f"; {left} are of another map" if left else ""
        say(f"{count} poses as the map has them in the end in {output / FINAL}{others}")


def _close(locator: Locator) -> None:
    close: Any = getattr(locator, "close", None)
    if close is not None:
        close()


class _Tally:
    """Counts as it goes; keeps latencies of at most the last hour at 30 frames a second."""

    def __init__(self) -> None:
        self._states: dict[Status, int] = {}
        self._latency: list[float] = []
        self._dropped = 0
        self._first = self._last = 0.0

    @property
    def frames(self) -> int:
        return sum(self._states.values())

    def add(self, update: Update) -> None:
        if not self._states:
            self._first = update.time
        self._last = update.time
        self._states[update.status] = self._states.get(update.status, 0) + 1
        self._dropped += update.dropped
        if len(self._latency) >= 108_000:
            del self._latency[:54_000]
        self._latency.append(update.latency)

    def summary(self) -> TrackSummary:
        latency = np.array(self._latency or [0.0])
        return TrackSummary(
            frames=self.frames,
            posed=self._states.get("tracking", 0) + self._states.get("relocalised", 0),
            dropped=self._dropped,
            seconds=self._last - self._first,
            states=dict(self._states),
            latency_median=float(np.median(latency)),
            latency_p95=float(np.quantile(latency, 0.95)),
        )
