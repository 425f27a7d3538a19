"""Where frames come from: a camera, a video, a folder or a glob, a network stream. Every reader gives upright sRGB."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
from jaxtyping import UInt8

from scenetx.core import InputError
from scenetx.io.images import read_picture
from scenetx.io.sources import find_source

STREAM = re.compile(r"^(rtsp|rtsps|rtmp|http|https|udp|tcp|srt)://", re.IGNORECASE)
# What a stream may lead to: never to a file of this machine.
_PROTOCOLS = "rtsp,rtsps,rtmp,rtp,http,https,tcp,tls,udp,srt,crypto,hls"
OPEN_SECONDS, READ_SECONDS, IDLE_SECONDS = 10.0, 5.0, 0.005
PICTURES_PER_SECOND = 30.0  # of folders, which have no clock


@dataclass(frozen=True)
class Shot:
    """A picture as a reader gives it; ``time`` in seconds on the source's clock, None = it has none."""

    image: UInt8[np.ndarray, "h w 3"]
    time: float | None = None
    name: str = ""
    note: str = ""


@runtime_checkable
class Reader(Protocol):
    """Opens and reads one source, again and again if asked. ``live``: pictures come whether they are wanted or not."""

    @property
    def name(self) -> str: ...

    @property
    def live(self) -> bool: ...

    def shots(self) -> Iterator[Shot]:
        """Opens the source and gives its pictures. Raises InputError when it cannot be opened or breaks."""
        ...


@dataclass(frozen=True)
class PictureFiles:
    """Pictures of a folder, a glob or an earlier scene, in natural order. Files that cannot be read are passed over."""

    files: tuple[tuple[str, Path, float | None], ...]
    name: str = "pictures"
    live: bool = False

    def shots(self) -> Iterator[Shot]:
        trouble, given = "", False
        for name, path, seconds in self.files:
            try:
                image = read_picture(path).pixels
            except InputError as error:
                trouble = str(error)
                continue
            yield Shot(image, seconds, name, trouble and f"passed over {trouble}")
            trouble, given = "", True
        if trouble and not given:
            raise InputError(self.name, f"no picture can be read ({trouble})", "give pictures that can be read")


@dataclass(frozen=True)
class VideoFile:
    """A video file, with its own time stamps. Packets that are damaged cost frames, not the rest."""

    path: Path
    live: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    def shots(self) -> Iterator[Shot]:
        # Only a file: FFmpeg would also follow addresses and playlists that a file names.
        with _opened(str(self.path.absolute()), self.name, options={"protocol_whitelist": "file"}) as stream:
            yield from _decoded(stream, self.name)


@dataclass(frozen=True)
class Camera:
    """A camera of this machine by its number (Linux: /dev/videoN; macOS: AVFoundation) or its device name."""

    device: str
    size: tuple[int, int] | None = None  # (width, height) to ask for
    fps: float | int | None = None
    live: bool = True

    @property
    def name(self) -> str:
        return f"camera {self.device}"

    def shots(self) -> Iterator[Shot]:
        options = {}
        if self.size is not None:
            options["video_size"] = f"{self.size[0]}x{self.size[1]}"
        if self.fps is not None:
            options["framerate"] = f"{self.fps:g}"
        if sys.platform == "darwin":
            place, kind = self.device, "avfoundation"
            options.setdefault("framerate", "30")
        elif sys.platform == "win32":
            place, kind = f"video={self.device}", "dshow"
        else:
            place, kind = self.device if self.device.startswith("/") else f"/dev/video{self.device}", "v4l2"
            if not Path(place).exists():
                there = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*"))) or "none"
                raise InputError(self.name, f"{place} does not exist (found: {there})", "plug it in or choose another")
        with _opened(place, self.name, format=kind, options=options) as stream:
            yield from _decoded(stream, self.name)


@dataclass
class NetworkStream:
    """An RTSP, RTMP, HTTP (MJPEG, HLS), UDP or SRT stream; ``finite`` when it says how long it is."""

    url: str
    live: bool = True
    finite: bool = False

    @property
    def name(self) -> str:
        """The address without a password."""
        return re.sub(r"//[^/@]*@", "//", self.url)

    def shots(self) -> Iterator[Shot]:
        options = {"protocol_whitelist": _PROTOCOLS, "fflags": "nobuffer", "flags": "low_delay"}
        if self.url.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        with _opened(self.url, self.name, options=options, timeout=(OPEN_SECONDS, READ_SECONDS)) as opened:
            self.finite = (opened[0].duration or 0) > 0
            yield from _decoded(opened, self.name)


def open_reader(source: str, *, size: tuple[int, int] | None = None, fps: float | int | None = None) -> Reader:
    """The reader for ``source``: a camera's number or /dev path, an address, a video, a folder, a glob, a picture.

    ``size`` (width, height) and ``fps`` are what a camera is asked for. Nothing is opened yet, but files are looked
    for. Raises InputError when ``source`` is none of these.
    """
    if re.fullmatch(r"\d{1,3}", source) and not Path(source).exists():
        return Camera(source, size, fps)
    if source.startswith("/dev/"):
        return Camera(source, size, fps)
    if STREAM.match(source):
        return NetworkStream(source)
    found = find_source(source)
    if found.kind == "video":
        return VideoFile(found.path)
    if found.kind == "scene":
        found = find_source(str(found.path / "images"))
    pictures = tuple((item.name, item.path, item.time) for item in found.found)
    if found.posed is not None and not pictures:
        pictures = tuple((item.name, item.path, None) for item in found.posed.pictures if item.path.is_file())
    if not pictures:
        raise InputError(source, "holds no pictures", "give a folder with pictures, a video, a camera number or a url")
    return PictureFiles(pictures, Path(source).name)


@contextlib.contextmanager
def _opened(place: str, name: str, **options: Any) -> Iterator[Any]:
    """(container, stream); what cannot be opened or breaks off while it is read becomes an InputError."""
    try:
        container = av.open(place, **options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(name, f"cannot be opened ({error})", "check that it is there and not in use") from error
    with container:
        if not container.streams.video:
            raise InputError(name, "has no video stream", "give one with pictures that move")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _decoded(opened: Any, name: str) -> Iterator[Shot]:
    """Upright frames with rising times, as far as it goes; raises InputError when a hundred packets in a row fail."""
    container, stream = opened
    rate = float(stream.average_rate or PICTURES_PER_SECOND)
    last, failures, first, note, idle = -1.0 / rate, 0, None, "", 0.0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except BlockingIOError as error:
            # Some cameras say "not yet" instead of waiting; the packets start anew after any error.
            idle += IDLE_SECONDS
            if idle > READ_SECONDS:
                raise InputError(name, f"gives no picture ({error})", "check that it is not in use") from error
            time.sleep(IDLE_SECONDS)
            packets = container.demux(stream)
            continue
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _broken(name, last, error) from error
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            failures, note = failures + 1, f"damaged data ({error})"
            if failures > 100:
                raise _broken(name, last, error) from error
            continue
        idle = 0.0
        failures = 0
        for frame in frames:
            stamp = frame.time
            if stamp is not None and first is None:
                first = float(stamp)  # streams count from any moment
            seconds = float(stamp) - (first or 0.0) if stamp is not None else last + 1 / rate
            last = seconds if seconds > last else last + 1 / rate
            yield Shot(upright(frame), last, note=note)
            note = ""


def _broken(name: str, last: float, error: Exception) -> InputError:
    return InputError(name, f"breaks off after {max(last, 0):.1f} s ({error})", "check the source")


def upright(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame as sRGB, turned as its display matrix says (phones send their sensor's way up, and that)."""
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def seconds_of(shot: Shot, index: int, started: float, *, live: bool, fps: float | int | None) -> float:
    """The time of a picture: by the replay rate, by the clock for live ones, by the source's own stamps, or by 30/s."""
    if fps is not None and not live:
        return index / fps
    if live:
        return time.perf_counter() - started
    if shot.time is not None and math.isfinite(shot.time):
        return shot.time
    return index / PICTURES_PER_SECOND
