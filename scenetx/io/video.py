"""Videos in and out: the frames worth keeping, and files that play everywhere."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from scenetx.core import InputError
from scenetx.core.atomic import write_bytes
from scenetx.io.images import write_picture
from scenetx.io.json_value import read_json, to_json

OnProgress = Callable[[str, float], None]

# A frame is judged on a small grey copy: enough for sharpness and shift, and little to compute.
_SMALL_SIDE = 192
_RECORD = "frames.json"
CONTAINERS = {
    ".mp4": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
"""FFmpeg's names of the container and the encoder of a suffix."""
ENCODERS = {
    "libx264": {"preset": "medium"},
    "libvpx-vp9": {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},  # b=0: quality alone decides
}


@dataclass(frozen=True)
class VideoSettings:
    """Which frames are taken from a video."""

    num_frames: int = 120
    """Frames to keep, at most."""
    sharp_window: float = 0.6
    """The sharpest frame is taken within this part of the way (in motion) from one kept frame to the next."""


@dataclass(frozen=True)
class Frame:
    """A kept frame: its file, its time in the video (seconds) and its number in decoding order."""

    path: Path
    time: float
    index: int


@dataclass(frozen=True)
class Chosen:
    """The frames, in order, and what there is to say about the video."""

    frames: tuple[Frame, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Survey:
    """One decoding of the whole video: per frame its time, sharpness and how far the picture has moved by then."""

    times: Float[np.ndarray, "n"]
    sharpness: Float[np.ndarray, "n"]
    path: Float[np.ndarray, "n"]
    notes: tuple[str, ...]


def choose_frames(
    path: str | Path, settings: VideoSettings, folder: Path, on_progress: OnProgress | None = None
) -> Chosen:
    """Decode a video twice: once small, to see how it moves and where it is sharp; once to write the frames kept.

    Frames are about equally far apart in picture motion (not in time: a camera that stands still gives few), each the
    sharpest (variance of the Laplacian) near its place. They are upright (the file's rotation is applied), named by
    their number in decoding order, PNG, and carry their own time stamps: variable frame rates and wrong frame counts
    do no harm. A file that breaks off gives what was decoded up to there, and a note. If ``folder`` holds the frames
    of this file (path, size, time of change) and these settings already, nothing is decoded.

    Raises:
        InputError: not a video, no video stream, not one frame that decodes, or a full disk.
    """
    path = Path(path)
    report = on_progress or _silent
    mark = _mark(path, settings)
    earlier = _earlier(folder, mark)
    if earlier is not None:
        return earlier
    survey = _survey(path, report)
    wanted = _spread(survey.path, survey.sharpness, settings)
    frames = _write_frames(path, survey, wanted, folder, report)
    notes = (f"{len(frames)} of {len(survey.times)} frames kept", *survey.notes)
    listed = [{"name": frame.path.name, "time": frame.time, "index": frame.index} for frame in frames]
    write_bytes(folder / _RECORD, to_json({"of": mark, "frames": listed, "notes": list(notes)}))
    return Chosen(frames, notes)


def write_video(
    path: str | Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float | int, crf: int = 18
) -> None:
    """A video (yuv420p, BT.709) of the kind its suffix names, whole or not at all.

    ``.webm`` holds VP9, ``.mkv`` and ``.mov`` H.264; any other name is an H.264 MP4 with the index first, so that
    browsers play it. Odd sizes lose their last row or column, which 4:2:0 cannot hold. ``crf``: 0 (lossless) to 51; 18
    looks lossless. Raises InputError for no frames, frames of different sizes, an impossible rate, a path that is no
    file, or a full disk.
    """
    path = Path(path)
    container_format, codec = CONTAINERS.get(path.suffix.lower(), CONTAINERS[".mp4"])
    if not (math.isfinite(fps) and 0.01 <= fps <= 1000) or not 0 <= crf <= 51:
        raise InputError(str(path), f"fps {fps}, crf {crf}", "give 0.01 to 1000 frames a second and a crf of 0 to 51")
    # Not `atomic.replacing`: to put the index first, FFmpeg opens the file a second time by its name.
    place = Path(os.path.realpath(path))  # a link stays one
    part = place.with_name(f".{place.name[:40]}.{os.getpid()}.part")
    try:
        if place.exists() and not place.is_file():
            raise InputError(str(path), "is no file", "give the video another name")
        place.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+faststart"} if container_format in ("mp4", "mov") else {}
        with av.open(str(part), "w", format=container_format, options=options) as container:
            _encode(container, codec, path, frames, Fraction(fps).limit_denominator(1001), crf)
        part.replace(place)
    except (av.FFmpegError, OSError) as error:
        why = error.strerror or str(error)
        raise InputError(str(path), f"cannot be written ({why})", "free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder could not be made
            part.unlink()


def _encode(container: Any, codec: str, path: Path, frames: Iterable[np.ndarray], rate: Fraction, crf: int) -> None:
    stream, size = None, (0, 0)
    for pixels in frames:
        height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        if stream is None:
            if min(height, width) < 2:
                raise InputError(str(path), f"frames of {width}x{height}", "make them at least 2x2 pixels")
            size = (height, width)
            stream = container.add_stream(codec, rate=rate, options={"crf": str(crf), **ENCODERS[codec]})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            # sRGB primaries are BT.709's; without a tag players guess by size and colours shift.
            stream.codec_context.colorspace = stream.codec_context.color_primaries = 1
            stream.codec_context.color_range, stream.codec_context.color_trc = 1, 1
        if (height, width) != size:
            raise InputError(str(path), f"a frame of {width}x{height} after {size[1]}x{size[0]}", "use one size")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        for packet in stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")):
            container.mux(packet)
    if stream is None:
        raise InputError(str(path), "no frames to write", "give at least one")
    for packet in stream.encode():
        container.mux(packet)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, video stream); what cannot be opened becomes an InputError."""
    try:
        # Only a file: FFmpeg would also follow URLs and playlists that a file names.
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(str(path), "an empty file (0 bytes)", "copy it again from the camera") from error
        raise InputError(str(path), f"cannot be read as a video ({error})", "give an MP4, MOV, MKV or AVI") from error
    with container:
        if not container.streams.video:
            raise InputError(str(path), "has no video stream", "give a file with pictures that move")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _decoded(container: Any, stream: Any, broken: list[str]) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) as far as the file goes; where it breaks off, a word about it lands in ``broken``.

    Packets that fail are passed over: damage in the middle of a file costs frames, not the rest of it.
    """
    rate = float(stream.average_rate or 30)
    last, failures = -1.0 / rate, 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            break
        except (av.FFmpegError, ValueError) as error:
            failures += 1
            if failures == 1:
                broken.append(f"the file is damaged or breaks off after {max(last, 0):.1f} s ({error})")
            if failures > 100:
                break
            continue
        for frame in frames:
            time = frame.time if frame.time is not None and frame.time > last else last + 1 / rate
            last = float(time)
            yield last, frame


def _turns(frame: Any) -> int:
    """Quarter turns counter-clockwise that make a decoded frame upright (the display matrix, as phones write it)."""
    return round((getattr(frame, "rotation", 0) or 0) / 90) % 4


def _survey(path: Path, report: OnProgress) -> _Survey:
    times, sharpness, moved, broken = [], [], [0.0], list[str]()
    with _opened(path) as (container, stream):
        announced = stream.frames
        seconds = float(container.duration or 0) / 1e6
        before = None
        for time, frame in _decoded(container, stream, broken):
            scale = _SMALL_SIDE / max(frame.width, frame.height)
            size = (max(16, round(frame.width * scale)), max(16, round(frame.height * scale)))
            small = frame.reformat(*size, format="gray", interpolation="AREA").to_ndarray().astype(np.float64)
            times.append(time)
            sharpness.append(float(_laplacian(small).var()))
            if before is not None:
                moved.append(moved[-1] + _motion(before, small))
            before = small
            if len(times) % 20 == 0:
                report("video", 0.5 * min(1.0, time / seconds) if seconds > 0 else 0.0)
    if not times:
        why = broken[0] if broken else "no frame in it decodes"
        raise InputError(str(path), why, "copy it again from the camera, or convert it to H.264")
    if announced and len(times) < announced:
        broken.insert(0, f"the file announces {announced} frames, {len(times)} decode")
    return _Survey(np.array(times), np.array(sharpness), np.array(moved), tuple(broken))


def _laplacian(grey: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h-2 w-2"]:
    inner = grey[1:-1, 1:-1]
    return grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner


def _motion(before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]) -> float:
    """How far the picture moved, in hundredths of its longer side: global shift plus what the shift leaves.

    The shift is phase correlation's (Kuglin and Hines, 1975) to a fraction of a pixel; the rest (turning, parallax)
    counts by the mean difference that is left, against the picture's own contrast.
    """
    window = np.hanning(before.shape[0])[:, None] * np.hanning(before.shape[1])
    spectra = np.fft.rfft2((before - before.mean()) * window), np.fft.rfft2((after - after.mean()) * window)
    cross = spectra[1] * spectra[0].conj()
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-3 * np.abs(cross).max() + 1e-12), s=before.shape)
    shift = [_peak(np.roll(surface, n // 2, axis), axis, n) for axis, n in enumerate(before.shape)]
    rows, columns = (round(value) for value in shift)
    still = np.roll(before, (rows, columns), (0, 1))
    margin = (slice(abs(rows), before.shape[0] - abs(rows)), slice(abs(columns), before.shape[1] - abs(columns)))
    left = np.abs(after[margin] - still[margin]).mean() if after[margin].size else 0.0
    return 100 * math.hypot(*shift) / max(before.shape) + float(left) / (float(before.std()) + 8.0)


def _peak(surface: Float[np.ndarray, "h w"], axis: int, n: int) -> float:
    """Place of the highest ridge along an axis, refined by a parabola, as a shift from the middle."""
    profile = surface.max(axis=1 - axis)
    best = int(profile.argmax())
    if 0 < best < n - 1:
        low, mid, high = profile[best - 1 : best + 2]
        bend = low - 2 * mid + high
        return best - n // 2 + (0.5 * float(low - high) / float(bend) if bend < 0 else 0.0)
    return float(best - n // 2)


def _spread(path: Float[np.ndarray, "n"], sharpness: Float[np.ndarray, "n"], settings: VideoSettings) -> list[int]:
    """Frame numbers, rising, about equally far apart along ``path``, the sharpest around each place."""
    count = min(settings.num_frames, len(path))
    # A little of plain time in it: where nothing moves, frames still differ in number and noise.
    along = path + np.arange(len(path)) * max(path[-1], 1e-9) / max(len(path), 1) * 0.05
    total = along[-1] or 1.0
    chosen: list[int] = []
    for k in range(count):
        center = total * (k + 0.5) / count
        half = 0.5 * settings.sharp_window * total / count
        inside = np.flatnonzero(np.abs(along - center) <= half)
        if not len(inside):
            inside = np.array([int(np.abs(along - center).argmin())])
        free = [int(i) for i in inside if not chosen or i > chosen[-1]]
        if free:
            chosen.append(max(free, key=lambda i: sharpness[i]))
    return chosen


def _write_frames(
    path: Path, survey: _Survey, wanted: list[int], folder: Path, report: OnProgress
) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    left = set(wanted)
    with _opened(path) as (container, stream):
        for index, (_, frame) in enumerate(_decoded(container, stream, [])):
            if index in left:
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame))
                place = folder / f"frame_{index:06d}.png"
                write_picture(place, np.ascontiguousarray(pixels))
                frames.append(Frame(place, float(survey.times[index]), index))
                report("video", 0.5 + 0.5 * len(frames) / len(wanted))
                left.discard(index)
                if not left:
                    break
    return tuple(frames)


def _mark(path: Path, settings: VideoSettings) -> dict[str, Any]:
    """What tells this file and these settings from others."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "check the path of the video") from error
    return {"file": str(path.absolute()), "bytes": state.st_size, "changed": state.st_mtime, **asdict(settings)}


def _earlier(folder: Path, mark: dict[str, Any]) -> Chosen | None:
    """The frames of an earlier run, if they are of the same file and settings and all there."""
    try:
        root = read_json(folder / _RECORD)
        if root["of"].mapping() != mark:
            return None
        frames = tuple(
            Frame(folder / item["name"].name(), item["time"].number(), item["index"].whole(0, 1 << 40))
            for item in root["frames"].items()
        )
        notes = tuple(note.text() for note in root["notes"].items())
        for frame in frames:
            with Image.open(frame.path):
                pass
    except (InputError, OSError):
        return None
    return Chosen(frames, notes)


def _silent(label: str, fraction: float) -> None:
    """No one watches."""
