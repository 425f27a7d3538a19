"""What a SOURCE is: pictures, a video, cameras with pictures, or a scene of ours. Nothing is decoded here."""

from __future__ import annotations

import glob
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scenetx.core import InputError, Skipped
from scenetx.io.cameras_json import read_cameras_json
from scenetx.io.colmap import find_model, read_colmap
from scenetx.io.images import RAW_SUFFIXES, is_picture
from scenetx.io.json_value import read_json
from scenetx.io.llff import read_llff
from scenetx.io.posed import PosedSource
from scenetx.io.transforms import read_transforms

Kind = Literal["pictures", "video", "posed", "scene"]
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".3gp", ".mpg", ".mpeg"})
_MASKS = "masks"
_NOT_PICTURES = frozenset({_MASKS, "mask", "depth", "depths", "__macosx"})
TRANSFORMS = ("transforms.json", "transforms_train.json")
_MAX_NAME = 100


@dataclass(frozen=True)
class Found:
    """A picture file: ``name`` is its path below the source, with forward slashes; ``time`` in seconds, if known."""

    name: str
    path: Path
    mask_path: Path | None = None
    time: float | None = None


@dataclass(frozen=True)
class Source:
    """``path`` is the video, the scene folder or where the pictures are; ``posed`` is set for kind "posed" only."""

    kind: Kind
    path: Path
    found: tuple[Found, ...] = ()
    posed: PosedSource | None = None
    skipped: tuple[Skipped, ...] = ()


def find_source(source: str) -> Source:
    """What ``source`` is, in this order.

    A file: a video by suffix; scene.json; transforms*.json (has "frames"); cameras.json (has "images");
    poses_bounds.npy; a COLMAP cameras/images/points3D file; one picture. A folder: scene.json (ours); transforms.json
    or transforms_train.json; a COLMAP model (cameras.bin or .txt here, in sparse/ or sparse/0/); poses_bounds.npy;
    cameras.json with at least one of its pictures; images/ with pictures; pictures here or deeper; a single video. A
    path that does not exist and has ``*``, ``?`` or ``[``: the pictures it matches.

    Hidden files, __MACOSX, masks/ and depth/ hold no pictures. Masks are looked for in masks/ beside or inside of the
    picture folder, as the picture's path with ".png" added or in place of its suffix; black = ignore.

    Raises:
        InputError: nothing there, an empty folder, a folder without pictures, an unknown kind of file, several videos.
    """
    if not source.strip():  # Path("") would be the working directory
        raise InputError("source", "is empty", "give a folder of pictures, a video, or a glob in quotes")
    path = Path(source).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(repr(source[:80]), f"is no path ({error})", "give a folder, a video or a glob") from error
    if is_file:
        return _from_file(path)
    if is_folder:
        return _from_folder(path)
    if glob.has_magic(source):
        return _from_glob(source)
    raise InputError(source, "does not exist", "give a folder of pictures, a video, or a glob in quotes")


def _from_file(path: Path) -> Source:
    suffix, name = path.suffix.lower(), path.name
    if suffix in VIDEO_SUFFIXES:
        return Source("video", path)
    if suffix == ".json":
        if name == "scene.json":
            return Source("scene", path.parent)
        root = read_json(path)
        if "frames" in root:
            return _posed(path, read_transforms(path))
        if "images" in root:
            return _posed(path, read_cameras_json(path))
        raise InputError(str(path), "JSON without 'frames' or 'images'", "give a transforms.json or cameras.json")
    if name == "poses_bounds.npy":
        return _posed(path, read_llff(path.parent))
    if path.stem in ("cameras", "images", "points3D") and suffix in (".bin", ".txt"):
        return _posed(path, read_colmap(path.parent, None))
    if is_picture(path):
        return _with_masks(path.parent, [path], ())
    raise InputError(str(path), f"unknown kind of file ({suffix or 'no suffix'})", "give pictures, a video or a folder")


def _from_folder(folder: Path) -> Source:
    if (folder / "scene.json").is_file():
        return Source("scene", folder)
    if any((folder / name).is_file() for name in TRANSFORMS):
        return _posed(folder, read_transforms(folder))
    if find_model(folder) is not None:
        return _posed(folder, read_colmap(folder, None))
    if (folder / "poses_bounds.npy").is_file():
        return _posed(folder, read_llff(folder))
    if (folder / "cameras.json").is_file() and is_ours(folder / "cameras.json"):
        posed = read_cameras_json(folder)
        if any(picture.path.is_file() for picture in posed.pictures):
            return _posed(folder, posed)
    below = folder / "images"
    if below.is_dir() and any(is_picture(path) for path in _files(below)):
        return _from_pictures(below)
    return _from_pictures(folder)


def is_ours(path: Path) -> bool:
    """Other programs write a cameras.json too (a list, in the output of 3DGS); those are left aside."""
    try:
        return "images" in read_json(path)
    except InputError:
        return False


def _from_pictures(folder: Path) -> Source:
    files = _files(folder)
    pictures = [path for path in files if is_picture(path)]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not pictures and len(videos) == 1:
        return Source("video", videos[0])
    if not pictures and videos:
        names = ", ".join(path.name for path in videos[:3])
        raise InputError(str(folder), f"holds {len(videos)} videos ({names})", "name one of them")
    skipped = [
        Skipped(path.relative_to(folder).as_posix(), "a camera raw file; export it as JPEG or TIFF")
        for path in files
        if path.suffix.lower() in RAW_SUFFIXES
    ]
    skipped += [Skipped(p.relative_to(folder).as_posix(), "a video among pictures; give it alone") for p in videos]
    if not pictures:
        why = "holds only camera raw files" if skipped else "is empty" if not files else "holds no pictures"
        raise InputError(str(folder), why, "give a folder of JPEG, PNG, TIFF, WebP or HEIC pictures, or a video")
    return _with_masks(folder, pictures, tuple(skipped))


def _from_glob(pattern: str) -> Source:
    matches = [Path(match) for match in glob.glob(str(Path(pattern).expanduser()), recursive=True)]  # noqa: PTH207
    pictures = [path for path in matches if path.is_file() and is_picture(path) and not path.name.startswith(".")]
    if not pictures:
        what = f"matches {len(matches)} files, none a picture" if matches else "matches nothing"
        raise InputError(pattern, what, "check the pattern and put it in quotes")
    parents = [set(path.parents) for path in pictures]
    common = max(set.intersection(*parents), key=lambda path: len(path.parts))
    return _with_masks(common, pictures, ())


def _files(folder: Path) -> list[Path]:
    """All files below, none hidden, none in a folder that holds something else than pictures."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(str(folder), error.strerror or str(error), "give a folder that you may read") from error
    files: list[Path] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # A link to a folder could lead in circles.
        if entry.is_dir() and not entry.is_symlink():
            if entry.name.lower() not in _NOT_PICTURES and not (entry / "scene.json").is_file():
                files += _files(entry)
        elif entry.is_file():
            files.append(entry)
    return files


def _with_masks(folder: Path, pictures: list[Path], skipped: tuple[Skipped, ...]) -> Source:
    ordered = sorted(pictures, key=lambda path: natural_key(path.relative_to(folder).as_posix()))
    found = [
        Found(path.relative_to(folder).as_posix(), path, _mask_of(folder, path.relative_to(folder))) for path in ordered
    ]
    return Source("pictures", folder, tuple(found), skipped=skipped)


def _mask_of(folder: Path, name: Path) -> Path | None:
    for place in (folder / _MASKS, folder.parent / _MASKS):
        if place.is_dir():
            endings = (f"{name.name}.png", f"{name.stem}.png", name.name, f"{name.stem}.jpg")
            for ending in endings:
                if (place / name.parent / ending).is_file():
                    return place / name.parent / ending
    return None


def _posed(path: Path, posed: PosedSource) -> Source:
    """The pictures of a posed source that are there; the others are named."""
    there = [picture for picture in posed.pictures if picture.path.is_file()]
    lost = [Skipped(p.name, f"listed by the {posed.kind} source, but {p.path} is missing") for p in posed.pictures]
    lost = [line for line, picture in zip(lost, posed.pictures, strict=True) if picture not in there]
    if not there:
        example = posed.pictures[0].path if posed.pictures else path
        raise InputError(str(path), f"none of its pictures is there ({example})", "put the pictures back in place")
    there.sort(key=lambda picture: natural_key(picture.name))
    found = tuple(Found(p.name, p.path, p.mask_path or _mask_of(p.path.parent, Path(p.path.name))) for p in there)
    return Source("posed", path, found, posed, tuple(lost))


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which img2 comes before img10, upper and lower case alike."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    return tuple((0, int(piece)) if index % 2 else (1, piece) for index, piece in enumerate(pieces))


def safe_names(names: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    """A name in images/ for each picture: relative, of letters, digits and ``._-``, with the suffix given, unique also
    where upper and lower case are one (as on Windows and macOS)."""
    taken: set[str] = set()
    safe = []
    for name, suffix in zip(names, suffixes, strict=True):
        stem = unicodedata.normalize("NFC", str(Path(name).with_suffix("").as_posix()))
        parts = [re.sub(r"[^\w.-]+", "_", part).strip("._")[:_MAX_NAME] for part in stem.split("/")]
        base = "/".join(part for part in parts if part) or "picture"
        candidate, count = base, 2
        while candidate.casefold() in taken:
            candidate, count = f"{base}_{count}", count + 1
        taken.add(candidate.casefold())
        safe.append(candidate + suffix)
    return safe
