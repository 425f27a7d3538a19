"""Sources and outputs: cameras that vanish, frames that freeze, files that keep all, poses for other programs."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from live_room import Shots
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from scenetx.core import InputError
from scenetx.core.rigid import quat_from_rotation, rotation_from_rotvec
from scenetx.io.images import write_picture
from scenetx.io.lens import straighten
from scenetx.io.video import write_video
from scenetx.live.capture import Capture, CaptureSettings
from scenetx.live.classical_map import Lens
from scenetx.live.intrinsics import GivenLens, Straighten
from scenetx.live.outputs import LINES, TUM, Recorder, Trajectory, read_tum, tum_line
from scenetx.live.patches import Shelf, levels_of, pyramid, refined, sought, warped
from scenetx.live.pose_stream import WebSocketStream, open_stream
from scenetx.live.source import Camera, NetworkStream, PictureFiles, VideoFile, open_reader, upright
from scenetx.live.update import Frame, Update


def grey(count: int, size: tuple[int, int] = (24, 32)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(40, 200, (*size, 3), dtype=np.uint8) for _ in range(count)]


def update(index: int = 0, image: torch.Tensor | None = None) -> Update:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation_from_rotvec(torch.tensor([0.1, -0.4, 0.2], dtype=torch.float64))
    pose[:3, 3] = torch.tensor([1.0, 2.0, index], dtype=torch.float64)
    return Update(index, index / 30, "tracking", pose, torch.eye(3, dtype=torch.float64), 0.5, image=image)


def take(frames: Iterable[Frame], got: list[Frame], pause: float = 0.0) -> None:
    """Frames into ``got``, also those before an error."""
    for frame in frames:
        time.sleep(pause)
        got.append(frame)


def test_files_give_every_frame():
    with Capture(Shots(grey(30))) as frames:
        got = []
        for frame in frames:
            time.sleep(0.001)
            got.append(frame)
    assert [frame.index for frame in got] == list(range(30))
    assert {frame.dropped for frame in got} == {0}
    assert got[-1].time == pytest.approx(29 / 30)


def test_a_live_source_gives_the_newest_frame_and_counts_the_rest():
    class Endless(Shots):
        def shots(self):
            for shot in super().shots():
                time.sleep(0.002)
                yield shot

    reader = Endless(grey(100), live=True)
    with Capture(reader, CaptureSettings(patience=0.01, first_wait=0.001), lambda line: None) as frames:
        got: list[Frame] = []
        with pytest.raises(InputError, match="was gone"):
            take(frames, got, 0.03)
    assert len(got) < 60
    assert len(got) + sum(frame.dropped for frame in got) == 100
    assert got[-1].index == 99
    assert all(b.time > a.time for a, b in pairwise(got))


def test_a_replayed_file_keeps_its_rate():
    start = time.perf_counter()
    with Capture(Shots(grey(11)), CaptureSettings(fps=50)) as frames:
        got = list(frames)
    assert time.perf_counter() - start >= 0.2
    assert len(got) + sum(frame.dropped for frame in got) == 11
    assert got[-1].time == pytest.approx(0.2)


def test_a_camera_that_comes_back_is_welcomed():
    said: list[str] = []
    reader = Shots(grey(9), live=True, breaks=(3, 6))
    settings = CaptureSettings(first_wait=0.001, patience=0.05)
    got: list[Frame] = []
    with Capture(reader, settings, said.append) as frames, pytest.raises(InputError, match="was gone"):
        take(frames._frames(), got)  # every frame: what is newest depends on the machine's load
    assert len(got) == 9
    assert [frame.index for frame in got if frame.note.startswith("back after")] == [3, 6]
    assert sum("is gone (shots: unplugged" in line for line in said) == 2
    assert reader.opened >= 3


def test_a_source_that_never_opens_is_an_error():
    with (
        Capture(Shots(grey(3), live=True, breaks=(0,)), say=lambda line: None) as frames,
        pytest.raises(InputError, match="unplugged"),
    ):
        list(frames)
    with Capture(Shots([])) as frames, pytest.raises(InputError, match="gave no picture"):
        list(frames)


def test_black_and_frozen_frames_are_said():
    pictures = grey(2)
    black = np.full_like(pictures[0], 3)
    with Capture(Shots([pictures[0], black, *[pictures[1]] * 8])) as frames:
        notes = [frame.note for frame in frames]
    assert notes[:2] == ["", "black"]
    assert notes[2:7] == [""] * 5
    assert set(notes[7:]) == {"frozen"}


def test_a_looped_file_goes_on_in_time():
    reader = Shots(grey(4))

    class Looping(Shots):
        def shots(self):
            self.given = 0
            return super().shots()

    reader = Looping(grey(4))
    got = []
    with Capture(reader, CaptureSettings(loop=True)) as frames:
        for frame in frames:
            got.append(frame)
            if len(got) == 10:
                break
    assert [frame.index for frame in got] == list(range(10))
    assert all(b.time > a.time for a, b in pairwise(got))


def test_what_a_source_is(tmp_path: Path):
    assert open_reader("0") == Camera("0")
    assert open_reader("/dev/video7", size=(640, 480)) == Camera("/dev/video7", (640, 480))
    stream = open_reader("rtsp://me:secret@10.0.0.5:554/live")
    assert isinstance(stream, NetworkStream)
    assert stream.live
    assert "secret" not in stream.name
    for index, pixels in enumerate(grey(3, (40, 48))):
        write_picture(tmp_path / f"{index}.png", pixels)
    folder = open_reader(str(tmp_path))
    assert isinstance(folder, PictureFiles)
    assert [shot.name for shot in folder.shots()] == ["0.png", "1.png", "2.png"]
    with pytest.raises(InputError, match="does not exist"):
        open_reader(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="camera 97"):
        next(iter(open_reader("97").shots()))
    (tmp_path / "1.png").write_bytes(b"no picture")
    shots = list(folder.shots())
    assert [shot.name for shot in shots] == ["0.png", "2.png"]
    assert "1.png" in shots[1].note


def test_a_video_is_read_with_its_own_times(tmp_path: Path):
    write_video(tmp_path / "a.mp4", grey(8, (48, 64)), fps=20)
    reader = open_reader(str(tmp_path / "a.mp4"))
    assert isinstance(reader, VideoFile)
    shots = list(reader.shots())
    assert [shot.time for shot in shots] == pytest.approx([k / 20 for k in range(8)])
    assert shots[0].image.shape == (48, 64, 3)
    (tmp_path / "b.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"b\.mp4"):
        list(VideoFile(tmp_path / "b.mp4").shots())


def test_a_phones_frames_are_turned_upright():
    class Turned:
        def __init__(self, rotation: int) -> None:
            self.rotation = rotation

        def to_ndarray(self, format: str) -> np.ndarray:  # noqa: A002
            assert format == "rgb24"
            return np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)

    plain = upright(Turned(0))
    assert plain.shape == (2, 3, 3)
    assert np.array_equal(upright(Turned(90)), np.rot90(plain))
    assert np.array_equal(upright(Turned(-90)), np.rot90(plain, 3))
    assert np.array_equal(upright(Turned(180)), plain[::-1, ::-1])


def test_straightening_agrees_with_the_door():
    """The quick table while tracking and the careful resampling of io show the same picture."""
    rng = np.random.default_rng(3)
    coarse = torch.from_numpy(rng.random((1, 3, 9, 12)))
    smooth = torch.nn.functional.interpolate(coarse, size=(90, 120), mode="bicubic", align_corners=False)
    pixels = (smooth[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy().copy()
    lens = Lens(90, 120, (100.0, 0.0, 62.0, 0.0, 101.0, 44.0, 0.0, 0.0, 1.0), (-0.2, 0.05, 0.001, -0.002))
    quick = Straighten(lens)
    ours = quick(torch.from_numpy(pixels)).numpy()
    K = torch.tensor(lens.K, dtype=torch.float64).reshape(3, 3)
    theirs = straighten(pixels, K, lens.distortion, "opencv", quick.K, *ours.shape[:2])
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 0.7
    flat = Straighten(Lens(90, 120, lens.K))
    assert np.array_equal(flat(torch.from_numpy(pixels)).numpy(), pixels)


@pytest.mark.parametrize("lens", [{"fov": 2.0}, {"fov": float("nan")}, {"K": (0.0, 1.0, 1.0, 1.0)}])
def test_cameras_that_cannot_be_are_said(lens):
    with pytest.raises(InputError):
        GivenLens(**lens)


def test_patches_are_found_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 1, 30, 40)))
    big = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic", align_corners=False)
    base = (big[0, 0].clamp(0, 1) * 200 + 20).numpy()
    shift = np.array([0.37, -0.61])
    y, x = np.mgrid[0 : base.shape[0] - 10, 0 : base.shape[1] - 10].astype(float)

    def sampled(dx: float, dy: float) -> np.ndarray:
        i, j = np.floor(y + 4 + dy).astype(int), np.floor(x + 4 + dx).astype(int)
        a, b = (y + 4 + dy) - i, (x + 4 + dx) - j
        upper = (1 - b) * base[i, j] + b * base[i, j + 1]
        return (1 - a) * upper + a * ((1 - b) * base[i + 1, j] + b * base[i + 1, j + 1])

    # The frame shows everything `shift` further on, darker and flatter.
    map_picture = sampled(0, 0).round().astype(np.uint8)
    frame = (0.6 * sampled(-shift[0], -shift[1]) + 30).astype(np.float32)
    places = rng.uniform(30, 180, size=(40, 2))
    made = warped(Shelf.of([levels_of(map_picture)]), np.zeros(40, np.int64), places, np.tile(np.eye(2), (40, 1, 1)))
    found, alike = refined(frame, made, places)
    good = alike > 0.98
    assert good.sum() > 30
    away = np.abs(found[good] - places[good] - shift)
    assert np.median(away) < 0.03
    assert away.max() < 0.2
    coarse_found, score = sought(frame, made, places + np.array([5.0, -4.0]), 8)
    assert np.abs(coarse_found - places - shift)[score > 0.97].max() <= 1.2
    assert (score > 0.97).sum() > 25
    flat, score = sought(np.full_like(frame, 50), made, places, 3)
    assert (score == -1).all()
    assert len(pyramid(map_picture)) == 4
    del flat


def test_the_trajectory_is_on_disk_at_once(tmp_path: Path):
    with Trajectory(tmp_path / "out") as trajectory:
        for index in range(3):
            trajectory.add(update(index))
        lost = Update(3, 0.1, "lost", None, torch.eye(3, dtype=torch.float64), 0.0)
        trajectory.add(lost)
        poses = read_tum(tmp_path / "out" / TUM)  # while it is open
        lines = [json.loads(line) for line in (tmp_path / "out" / LINES).read_text().splitlines()]
    assert [time for time, _ in poses] == pytest.approx([0, 1 / 30, 2 / 30], abs=1e-6)
    assert poses[2][1][:3] == (1.0, 2.0, 2.0)
    assert [line["status"] for line in lines] == ["tracking"] * 3 + ["lost"]
    assert lines[3]["world_from_cam"] is None
    assert len(lines[0]["world_from_cam"]) == 16


def test_tum_lines_are_the_fields(tmp_path: Path):
    pose = update(5).world_from_cam
    assert pose is not None
    values = [float(part) for part in tum_line(1.25, pose).split()]
    w, x, y, z = quat_from_rotation(pose[:3, :3]).tolist()
    assert values == pytest.approx([1.25, 1, 2, 5, x, y, z, w], abs=1e-8)
    bad = tmp_path / "bad.txt"
    bad.write_text("# fine\n1 2 3 4 5 6 7 8\n1 2 three\n")
    with pytest.raises(InputError, match=r"bad\.txt:3"):
        read_tum(bad)


def test_a_record_plays(tmp_path: Path):
    with Recorder(tmp_path / "r.mkv") as record:
        for index, pixels in enumerate(grey(6, (48, 64))):
            record.add(update(index, torch.from_numpy(pixels)))
        record.add(update(6))
        record.add(update(7, torch.zeros(20, 20, 3, dtype=torch.uint8)))
    shots = list(VideoFile(tmp_path / "r.mkv").shots())
    assert len(shots) == 6
    assert shots[5].time == pytest.approx(5 / 30, abs=2e-3)
    with Recorder(tmp_path / "none.mkv"):
        pass
    assert not (tmp_path / "none.mkv").exists()


def test_poses_by_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        with open_stream(f"udp://127.0.0.1:{receiver.getsockname()[1]}") as stream:
            stream.send(update(4))
        got = json.loads(receiver.recv(65536))
    assert got["index"] == 4
    assert got["world_from_cam"][11] == 4.0


def test_poses_by_web_socket():
    with WebSocketStream("127.0.0.1", 0) as stream:
        address = f"ws://127.0.0.1:{stream.port}"
        with pytest.raises(InvalidStatus):
            connect(address, origin="http://elsewhere.example").close()
        with connect(address, origin="http://localhost:3000") as reader:
            for index in range(200):
                stream.send(update(index))
                try:
                    got = json.loads(reader.recv(timeout=0.05))
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail("nothing came")
        taken = WebSocketStream("127.0.0.1", stream.port)
        with pytest.raises(InputError, match="free port"):
            taken.__enter__()
    assert got["status"] == "tracking"


@pytest.mark.parametrize("address", ["tcp://a:1", "udp://a", "udp://:7", "ws://h:x", "nonsense", "udp://h:99999"])
def test_addresses_that_are_none(address):
    with pytest.raises(InputError):
        open_stream(address)
