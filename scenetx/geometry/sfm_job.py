"""What structure from motion is asked to do, and how it says no. Without torch: the worker process starts fast."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Mapper = Literal["auto", "incremental", "global"]
Pairing = Literal["auto", "exhaustive", "sequential", "retrieval"]
Task = Literal["reconstruct", "triangulate", "refine"]


@dataclass(frozen=True)
class SfmSettings:
    """How pictures become cameras and points. The defaults are meant to need no change."""

    mapper: Mapper = "auto"
    """auto: incremental; while pictures are left out, also relaxed thresholds, the global mapper and finer features."""
    pairs: Pairing = "auto"
    """Which pictures are matched. auto: all with all for few pictures, else by order (frames of a walk) or likeness."""
    ordered: bool = False
    """The pictures are frames of a video, in order."""
    max_image_size: int = 1600
    """Pictures are reduced to this longest side (pixels) for feature detection."""
    max_features: int | None = None
    """SIFT features a picture. None: 8192, and 4096 where there are many pictures."""
    few_features: int = 2500
    """With fewer in the median picture, detect again with affine shapes and a lower contrast threshold."""
    guided: bool | None = None
    """Match again along the epipolar lines found; about 13 times the matching time. None: where features are few and
    pairs not too many."""
    max_exhaustive: int = 120
    """Up to this many pictures are matched all with all, unless they are frames of a walk (and more than 60)."""
    overlap: int = 12
    """Frames of a video are matched with this many successors (and with those 2, 4, 8, ... further on)."""
    neighbors: int = 40
    """Unordered pictures are matched with this many that look alike."""
    enough: float = 0.95
    """Share of pictures registered that ends the search for a better answer; placing the rest with relaxed thresholds,
    which is quick, is always tried."""
    principal_point: bool = True
    """Also estimate the principal point, where the pictures determine it."""
    intrinsics: tuple[float, ...] = ()
    """Of a calibrated camera: fx, fy, cx, cy[, k1, k2, p1, p2] in pixels of the upright originals; kept as they are.
    A ring around a small object seen through a long lens does not determine them."""
    min_model_size: int = 2
    """Smallest model that counts as an answer, in pictures."""
    seed: int = 0
    num_threads: int = -1

    def __post_init__(self) -> None:
        for name, choices in {
            "mapper": ("auto", "incremental", "global"),
            "pairs": ("auto", "exhaustive", "sequential", "retrieval"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"sfm: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if len(self.intrinsics) not in (0, 4, 8) or any(value <= 0 for value in self.intrinsics[:4]):
            raise ValueError(f"sfm: intrinsics are {self.intrinsics}; give fx, fy, cx, cy[, k1, k2, p1, p2] in pixels")


@dataclass(frozen=True)
class JobPicture:
    """A picture as the worker sees it. ``camera``: COLMAP's OPENCV parameters, where known, as ``cam_from_world``.

    ``guess``: (fx, fy, cx, cy) of a camera that is to be refined, with its ``cam_from_world``.
    """

    name: str
    path: str
    group: str
    focal: float | None = None
    mask_path: str | None = None
    height: int = 0
    width: int = 0
    camera: tuple[float, ...] | None = None
    cam_from_world: tuple[tuple[float, ...], ...] | None = None
    guess: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """The picture's name in the database: safe in lists separated by blanks and in any folder."""
        return fingerprint(self.name) + Path(self.path).suffix.lower()

    def stamp(self) -> list[Any]:
        """What has to stay the same for this picture's features to stay valid."""
        files = [Path(self.path)] + ([Path(self.mask_path)] if self.mask_path else [])
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return [self.name, stats, self.group, self.focal, self.camera]


@dataclass(frozen=True)
class Job:
    """Everything a worker process needs; travels as JSON."""

    task: Task
    folder: str
    pictures: tuple[JobPicture, ...]
    settings: SfmSettings
    skip: tuple[str, ...] = ()
    """Optional steps not to try (they brought an earlier worker down)."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        data = json.loads(text)
        pictures = []
        for entry in data["pictures"]:
            for name in ("camera", "cam_from_world", "guess"):
                if entry[name] is not None:
                    entry[name] = tuple(tuple(v) if isinstance(v, list) else v for v in entry[name])
            pictures.append(JobPicture(**entry))
        settings = SfmSettings(**{**data["settings"], "intrinsics": tuple(data["settings"]["intrinsics"])})
        return Job(data["task"], data["folder"], tuple(pictures), settings, tuple(data["skip"]))


class SfmFailed(Exception):  # noqa: N818 - the parent process turns it into an InputError
    """No answer can be had, in the three parts of an `InputError`."""

    def __init__(self, what: str, value: str, do: str) -> None:
        super().__init__(f"{what}: {value}; {do}")
        self.parts = (what, value, do)


def fingerprint(value: Any) -> str:
    """A short hash of anything JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
