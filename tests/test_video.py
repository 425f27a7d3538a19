"""Frames are chosen by motion and sharpness, from videos that lie about themselves; videos written play anywhere."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from scenetx.core import InputError
from scenetx.io.images import read_picture
from scenetx.io.prepare import PrepareSettings, open_source
from scenetx.io.video import VideoSettings, choose_frames, write_video

DEV = Path(__file__).parents[2] / "shared/data/dev"
needs_dev = pytest.mark.skipif(not DEV.is_dir(), reason="shared/data/dev is not beside this checkout")


def wall(height: int = 96, width: int = 700) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def pan(places: list[int], width: int = 128) -> list[np.ndarray]:
    whole = wall()
    return [whole[:, place : place + width] for place in places]


def test_written_videos_come_back(tmp_path: Path):
    frames = [np.ascontiguousarray(frame) for frame in pan(list(range(0, 60, 6)))]
    path = tmp_path / "deep/a.mp4"
    write_video(path, iter(frames), 25)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 25
        back = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(back) == len(frames)
    # Brightness only: 4:2:0 halves the resolution of colour.
    luma = np.array([0.2126, 0.7152, 0.0722])
    assert max(np.abs(a @ luma - b @ luma).mean() for a, b in zip(back, frames, strict=True)) < 4
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")


def test_colours_survive_the_way_through_yuv(tmp_path: Path):
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:32, :32], colours[:32, 32:], colours[32:, :32] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    write_video(tmp_path / "a.mp4", [colours] * 3, 10)
    chosen = choose_frames(tmp_path / "a.mp4", VideoSettings(1), tmp_path / "f")
    back = read_picture(chosen.frames[0].path).pixels
    for row, column in [(8, 8), (8, 56), (56, 8)]:
        assert np.abs(back[row, column].astype(int) - colours[row, column]).max() < 12


def test_odd_sizes_and_bad_requests(tmp_path: Path):
    write_video(tmp_path / "a.mp4", [np.zeros((33, 51, 3), np.uint8)], 30)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == (32, 50)
    frame = np.zeros((16, 16, 3), np.uint8)
    for frames, fps in [([], 30), ([frame, frame[:8]], 30), ([frame], 0.0), ([frame], float("nan")), ([frame[:1]], 30)]:
        with pytest.raises(InputError):
            write_video(tmp_path / "b.mp4", frames, fps)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_are_spread_by_motion_not_by_time(tmp_path: Path):
    # Stands still for 40 frames, then moves for 40: nearly all frames kept should be of the second half.
    write_video(tmp_path / "a.mp4", pan([0] * 40 + [6 * i for i in range(40)]), 30)
    chosen = choose_frames(tmp_path / "a.mp4", VideoSettings(10), tmp_path / "f")
    moving = [frame.index for frame in chosen.frames if frame.index >= 40]
    assert len(moving) >= 8
    assert max(np.diff(moving)) <= 8
    assert all(frame.time == pytest.approx(frame.index / 30, abs=1e-3) for frame in chosen.frames)


def test_blurred_frames_are_avoided(tmp_path: Path):
    frames = pan([5 * i for i in range(60)])
    sharp = {i for i in range(60) if i % 3 == 0}
    blurred = [
        frame if i in sharp else np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(3)))
        for i, frame in enumerate(frames)
    ]
    write_video(tmp_path / "a.mp4", blurred, 30)
    chosen = choose_frames(tmp_path / "a.mp4", VideoSettings(10, sharp_window=0.9), tmp_path / "f")
    assert len(chosen.frames) == 10
    assert sum(frame.index in sharp for frame in chosen.frames) >= 9


def test_asking_for_more_frames_than_there_are(tmp_path: Path):
    write_video(tmp_path / "a.mp4", pan([0, 20, 40]), 30)
    chosen = choose_frames(tmp_path / "a.mp4", VideoSettings(100), tmp_path / "f")
    assert [frame.index for frame in chosen.frames] == [0, 1, 2]


def test_rotation_in_the_header_is_applied(tmp_path: Path):
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, :48] = 250
    path = tmp_path / "a.mp4"
    write_video(path, [frame] * 2, 30)
    data = bytearray(path.read_bytes())
    one, none = (0x10000).to_bytes(4, "big"), bytes(4)
    unit = (0x40000000).to_bytes(4, "big")
    straight = one + none + none + none + one + none + none + none + unit
    place = data.index(straight, data.index(b"tkhd"))
    # Phones' "turn by 90 degrees clockwise to show": the left half comes to lie on top.
    minus = (0xFFFF0000).to_bytes(4, "big")
    data[place : place + 36] = none + one + none + minus + none + none + none + none + unit
    path.write_bytes(data)
    chosen = choose_frames(path, VideoSettings(1), tmp_path / "f")
    upright = read_picture(chosen.frames[0].path).pixels
    assert upright.shape == (96, 48, 3)
    assert upright[:40].min() > 200
    assert upright[56:].max() < 50


def test_truncated_video_gives_what_decodes_and_says_so(tmp_path: Path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "5"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for frame in pan([4 * i for i in range(60)]):
            video_frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(video_frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    chosen = choose_frames(path, VideoSettings(6), tmp_path / "f")
    assert 4 <= len(chosen.frames) <= 6
    assert max(frame.index for frame in chosen.frames) < 50


def test_what_is_no_video_says_so(tmp_path: Path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello " * 100)
    write_video(tmp_path / "cut.mp4", pan([0, 5, 9]), 30)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:500])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    cases = {"empty": "empty file", "text": "cannot be read as a video", "cut": "cut.mp4", "sound": "no video stream"}
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            choose_frames(tmp_path / f"{name}.mp4", VideoSettings(), tmp_path / "f")
    with pytest.raises(InputError, match=r"none\.mp4"):
        choose_frames(tmp_path / "none.mp4", VideoSettings(), tmp_path / "f")


def test_chosen_frames_are_kept_for_the_next_run_of_the_same_video(tmp_path: Path):
    path = tmp_path / "a.mp4"
    write_video(path, pan([0, 20, 40, 60]), 30)
    first = choose_frames(path, VideoSettings(3), tmp_path / "f")
    stamp = first.frames[0].path.stat().st_mtime_ns
    assert choose_frames(path, VideoSettings(3), tmp_path / "f") == first
    assert first.frames[0].path.stat().st_mtime_ns == stamp
    assert len(choose_frames(path, VideoSettings(2), tmp_path / "f").frames) == 2
    shutil.rmtree(tmp_path / "f")
    assert choose_frames(path, VideoSettings(3), tmp_path / "f") == first


def test_open_source_takes_a_video(tmp_path: Path):
    write_video(tmp_path / "a.mp4", pan([0, 20, 40, 60]), 30)
    seen = []
    result = open_source(
        str(tmp_path / "a.mp4"),
        PrepareSettings(width=64, num_frames=3),
        tmp_path / "w",
        lambda *step: seen.append(step),
    )
    assert result.kind == "video"
    assert len(result.scene.views) == 3
    times = [view.original.time for view in result.scene.views]
    assert times == sorted(times)
    assert {label for label, _ in seen} == {"video", "pictures"}
    assert all(0 <= fraction <= 1 for _, fraction in seen)


@needs_dev
def test_wrong_announced_frame_count_is_said_and_does_no_harm(tmp_path: Path):
    chosen = choose_frames(DEV / "video_pyramid/video.mp4", VideoSettings(12), tmp_path)
    assert len(chosen.frames) == 12
    assert chosen.frames[-1].index < 883
    assert "the file announces 1033 frames, 883 decode" in chosen.notes
