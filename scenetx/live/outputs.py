"""What tracking leaves behind: a TUM trajectory, JSON lines, a video. Written as it goes, so that an end keeps all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import av
import numpy as np
from jaxtyping import Float
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.atomic import write_bytes
from scenetx.core.rigid import quat_from_rotation
from scenetx.live.update import Update

TUM, LINES, VIDEO = "trajectory_tum.txt", "updates.jsonl", "record.mkv"
TUM_HEADER = "# timestamp tx ty tz qx qy qz qw (world from camera; OpenCV axes)"
BELIEVED = ("tracking", "relocalised")
"""Statuses whose poses a trajectory has."""


def tum_line(seconds: float, world_from_cam: Float[Tensor, "4 4"]) -> str:
    """``timestamp tx ty tz qx qy qz qw`` (TUM RGB-D, Sturm et al. 2012): where the camera is in the world."""
    w, x, y, z = quat_from_rotation(world_from_cam[:3, :3].double()).tolist()
    place = world_from_cam[:3, 3].double().tolist()
    return " ".join([f"{seconds:.6f}", *(f"{value:.9g}" for value in (*place, x, y, z, w))])


def read_tum(path: str | Path) -> list[tuple[float, tuple[float, ...]]]:
    """(seconds, (tx, ty, tz, qx, qy, qz, qw)) of a TUM trajectory. Raises InputError for a line that is none."""
    out = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "give a TUM trajectory") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            values = [float(part) for part in line.split()]
        except ValueError:
            values = []
        if len(values) != 8 or not all(map(math.isfinite, values)):
            raise InputError(f"{path}:{number}", line[:60], "give timestamp tx ty tz qx qy qz qw")
        out.append((values[0], tuple(values[1:])))
    return out


def as_json(update: Update) -> Mapping[str, Any]:
    """An update as JSON lines and pose streams have it; matrices row by row, K in pixels of ``width`` x ``height``."""
    pose = None if update.world_from_cam is None else update.world_from_cam.flatten().tolist()
    out: dict[str, Any] = {
        "index": update.index,
        "time": update.time,
        "status": update.status,
        "world_from_cam": pose,
        "K": update.K.flatten().tolist(),
        "confidence": round(update.confidence, 4),
        "added": update.added,
        "keyframes": update.keyframes,
        "latency": round(update.latency, 5),
        "dropped": update.dropped,
        "locator": update.locator,
        "map": update.map,
        "note": _sayable(update.note),
    }
    if update.name:
        out["name"] = _sayable(update.name)
    if update.anchor is not None:
        out["keyframe"] = update.anchor.name
        out["keyframe_from_cam"] = update.anchor.keyframe_from_cam.flatten().tolist()
    if update.image is not None:
        out["height"], out["width"] = int(update.image.shape[0]), int(update.image.shape[1])
    return out


def _sayable(text: str) -> str:
    """With question marks for what UTF-8 cannot say (a file name in another encoding): no file or stream takes it."""
    return text.encode(errors="replace").decode()


def believed(folder: str | Path) -> Iterator[Mapping[str, Any]]:
    """The `LINES` of a `Trajectory` whose poses are believed: those that are in its `TUM`."""
    with (Path(folder) / LINES).open(encoding="utf-8") as file:
        for line in file:
            said = json.loads(line)
            if said["world_from_cam"] is not None and said["status"] in BELIEVED:
                yield said


def write_tum(path: Path, poses: Iterable[tuple[float, Float[Tensor, "4 4"]]]) -> None:
    """A TUM trajectory of seconds and world_from_cam, whole or not at all."""
    rows = [TUM_HEADER, *(tum_line(seconds, pose) for seconds, pose in poses)]
    write_bytes(path, ("\n".join(rows) + "\n").encode())


class Trajectory:
    """A context manager that writes `TUM` (poses of tracking and relocalised frames) and `LINES` (every update).

    Each update is on disk, in whole lines, before the next one is looked at. Before the first one nothing is written:
    the files of an earlier run stay until then. Raises InputError when it cannot write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._tum: TextIO | None = None
        self._lines: TextIO | None = None

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in (self._tum, self._lines):
            if file is not None:
                file.close()
        self._tum = self._lines = None

    def add(self, update: Update) -> None:
        """One more update."""
        tum, lines = self._files()
        if update.world_from_cam is not None and update.status in BELIEVED:
            self._say(tum, tum_line(update.time, update.world_from_cam))
        self._say(lines, json.dumps(as_json(update), allow_nan=False, ensure_ascii=False))

    def _files(self) -> tuple[TextIO, TextIO]:
        """`TUM` and `LINES`, opened when first asked for."""
        if self._tum is None or self._lines is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._tum = (self.folder / TUM).open("w", encoding="utf-8")
                self._lines = (self.folder / LINES).open("w", encoding="utf-8")
            except OSError as error:
                self.close()
                raise _refused(self.folder, error) from error
            self._say(self._tum, TUM_HEADER)
        return self._tum, self._lines

    def _say(self, file: TextIO, line: str) -> None:
        try:
            file.write(line + "\n")
            file.flush()
        except OSError as error:
            raise _refused(self.folder, error) from error


class Recorder:
    """A context manager that writes the frames to a Matroska video at their own times; a torn end leaves it playable.

    Frames of another size than the first are left out. Nothing is written before the first frame.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, update: Update) -> None:
        """The frame of an update, if it has one."""
        if update.image is None:
            return
        pixels = update.image.cpu().numpy()
        height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        try:
            if self._container is None:
                self._open(height, width)
            if (height, width) != (self._stream.height, self._stream.width):
                return
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            self._last = max(self._last + 1, round(update.time * 1000))
            frame.pts, frame.time_base = self._last, Fraction(1, 1000)
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise _refused(self.path, error) from error

    def _open(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self.path), "w", format="matroska")
        self._stream = self._container.add_stream("libx264", rate=30, options={"crf": "20", "preset": "veryfast"})
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 1000)

    def close(self) -> None:
        """Writes what the encoder still holds."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode())
            container.close()
        except (av.FFmpegError, OSError) as error:
            raise _refused(self.path, error) from error


def _refused(path: Path, error: OSError) -> InputError:
    why = error.strerror or str(error)
    return InputError(str(path), f"cannot be written ({why})", "free space or choose another folder")
