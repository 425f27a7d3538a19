"""A camera that does not wait for its map: frames queue, are thinned, are caught up with; what goes wrong is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_room import FOCAL, HEIGHT, WIDTH, K, path, picture, room

from scenetx.core import umeyama
from scenetx.live.catch_up import CatchUp, CatchUpSettings
from scenetx.live.classical_session import ClassicalSession
from scenetx.live.intrinsics import GivenLens, Intrinsics
from scenetx.live.track import Tracker
from scenetx.live.update import Anchor, Frame, Located

LENS = GivenLens(K=(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
POSES = path(32)
LONG = 120.0


def until(true: Callable[[], bool]) -> None:
    """Waits for another thread; generous, for a busy machine."""
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def told(locate: Callable[..., Any], tell: Callable[[torch.Tensor], None]) -> Callable[..., Any]:
    def locate_and_tell(image: torch.Tensor, K: torch.Tensor, guess: torch.Tensor | None) -> Located | None:
        tell(image)
        return locate(image, K, guess)

    return locate_and_tell


class Scripted(ClassicalSession):
    """A session that answers as ``says``, each time that it may `go` on while it is patient."""

    name = "scripted"

    def __init__(self, says: Callable[[int], bool], *, begun: bool = True) -> None:
        self.says, self.begun = says, begun
        self.known_lens, self.patient, self.sparing, self.added = True, False, 1.0, False
        self.go = threading.Semaphore(0)
        self.asked: list[int] = []
        self.spared: list[float] = []

    keyframes = property(lambda self: 3 if self.begun else 0)
    steady = property(lambda self: self.begun)
    busy = property(lambda self: False)
    opening = property(lambda self: not self.begun)
    joins = property(lambda self: {})
    K = property(lambda self: K)
    K_settled = property(lambda self: True)
    lens_line = property(lambda self: "")

    def locate(self, image, K, guess):
        if self.patient:
            assert self.go.acquire(timeout=LONG)
        number = int(image[0, 0, 0])
        self.asked.append(number)
        self.spared.append(self.sparing)
        if not self.says(number):
            return None
        pose = torch.eye(4, dtype=torch.float64)
        return Located(pose, 0.9, anchor=Anchor("first.png", pose))


def frame(number: int) -> torch.Tensor:
    return torch.full((4, 6, 3), number, dtype=torch.uint8)


def test_a_camera_that_goes_on_is_caught_up_with():
    walls = room(0)
    pictures = [torch.from_numpy(picture(walls, pose.numpy())) for pose in POSES]
    number, seen = {id(image): k for k, image in enumerate(pictures)}, []
    with ClassicalSession(known_lens=True) as session:
        session.locate = told(session.locate, lambda image: seen.append(number[id(image)]))  # type: ignore[method-assign]
        live = CatchUp(session)
        tracker = Tracker(live, Intrinsics(LENS))
        said = []
        for k, image in enumerate(pictures[:-1]):
            said.append(tracker.step(Frame(k, k / 30, image)))
            # Once there is a map the camera does not wait any more.
            until(lambda: not live._queue or session.keyframes > 0)
        assert said[0].note == "a map is being begun"
        assert said[0].world_from_cam is None
        until(lambda: not live.behind)
        assert (session.patient, session.sparing) == (False, 1.0)
        last = tracker.step(Frame(31, 31 / 30, pictures[-1]))
        assert last.status == "tracking"
        live.close()
        session.finish()
        poses = {seen[int(name[:6]) - 1]: pose for name, pose in session.keyframe_poses().items()}
    assert len(poses) > 3
    numbers = sorted(poses)
    centers = torch.stack([poses[k][:3, 3] for k in numbers])
    truth = POSES[numbers][:, :3, 3]
    error = (umeyama(truth, centers).apply(centers) - truth).norm(dim=1)
    assert float(error.max()) < 0.05 * float((truth - truth.mean(0)).norm(dim=1).max())


def test_frames_that_wait_are_thinned_and_stay_in_order():
    session = Scripted(lambda number: True)
    live = CatchUp(session, CatchUpSettings(waiting=8, dense=4, sparing=3.0, again=1000))
    for number in range(100):
        assert live.locate(frame(number), K, None) is None
    assert live.behind
    assert live.K is None
    assert not live.K_settled
    assert "frames behind" in live.preparing
    for _ in range(100):
        session.go.release()
    until(lambda: not live.behind)
    assert session.asked == sorted(session.asked)
    assert len(session.asked) <= 10
    assert session.asked[-1] == 99
    assert session.spared[0] <= 3.0
    assert session.spared[-1] == 1.0
    assert live.preparing == ""
    found = live.locate(frame(100), K, None)
    assert found is not None
    live.close()


def test_large_frames_wait_in_smaller_numbers():
    session = Scripted(lambda number: True)
    live = CatchUp(session, CatchUpSettings(waiting=48, waiting_bytes=10 * 4 * 6 * 3))
    for number in range(100):
        live.locate(frame(number), K, None)
    assert len(live._queue) <= 10
    assert int(live._queue[-1].frame.image[0, 0, 0]) == 99
    for _ in range(100):
        session.go.release()
    live.close()


def test_where_the_way_is_lost_only_the_newest_frame_is_looked_for():
    session = Scripted(lambda number: number >= 60)
    live = CatchUp(session, CatchUpSettings(waiting=48, missed=3))
    for number in range(40):
        live.locate(frame(number), K, None)
    for _ in range(3):
        session.go.release()
    until(lambda: len(session.asked) == 3)
    live.locate(frame(40), K, None)
    live.locate(frame(41), K, None)
    for _ in range(2):
        session.go.release()
    until(lambda: len(session.asked) >= 4)
    assert session.asked[3] in (39, 40, 41)  # by when the worker looked; never the oldest
    for number in range(60, 64):
        live.locate(frame(number), K, None)
    for _ in range(9):
        session.go.release()
    until(lambda: not live.behind)
    live.close()


def test_a_map_that_has_not_begun_is_shown_what_is_seen_now():
    session = Scripted(lambda number: False, begun=False)
    live = CatchUp(session)
    live.locate(frame(0), K, None)
    until(lambda: not live._queue)
    for number in range(1, 30):
        live.locate(frame(number), K, None)
    for _ in range(2):
        session.go.release()
    until(lambda: len(session.asked) == 2)
    assert session.asked == [0, 29]
    session.go.release()
    threading.Timer(0.2, lambda: [session.go.release() for _ in range(5)]).start()
    live.close()
    assert not live.behind


def test_it_falls_behind_where_the_map_ends_and_goes_on_from_there():
    grown = threading.Event()
    session = Scripted(lambda number: number < 10 or grown.is_set())
    live = CatchUp(session, CatchUpSettings(missed=4))
    session.go.release()
    live.locate(frame(0), K, None)
    until(lambda: not live.behind)
    for number in range(1, 14):
        found = live.locate(frame(number), K, None)
        assert (found is not None) == (number < 10)
    assert live.behind
    assert session.patient
    first = len(session.asked)
    grown.set()
    for _ in range(20):
        session.go.release()
    until(lambda: not live.behind)
    assert session.asked[first] == 9, "the last frame that the map placed is where the way goes on"
    assert session.asked[-1] == 13
    live.close()


@pytest.mark.parametrize("error", [ValueError("a bad picture"), KeyError("a mistake")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_goes_wrong_is_raised_where_frames_are_given(error: Exception):
    def says(number: int) -> bool:
        raise error

    session = Scripted(says)
    session.go.release()
    live = CatchUp(session)
    live.locate(frame(0), K, None)
    until(lambda: not live.behind)
    with pytest.raises(ValueError if isinstance(error, ValueError) else RuntimeError, match=r"bad picture|mistake"):
        live.locate(frame(1), K, None)
    live.close()
