"""Which map places the pictures: classical, a geometry model's keys and values, or a student; `auto` picks and says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from scenetx.core import InputError
from scenetx.io.json_value import JsonValue, read_json
from scenetx.io.scene_dir import load_scene
from scenetx.live.build import BuildSettings, build_map
from scenetx.live.classical import ClassicalLocator
from scenetx.live.classical_map import FILE, FOLDER, ClassicalMap, Lens, load_map, save_map
from scenetx.live.update import Locator
from scenetx.models.hub import local_file
from scenetx.models.zoo import ZOO
from scenetx.pipeline.choose import PREFERRED

Method = Literal["auto", "classical", "kv", "student"]
Say = Callable[[str], None]
DEFAULT_MODEL = "da3-small"


@dataclass(frozen=True)
class OpenMap:
    """A map, ready: who answers, the cameras its pictures were taken with, its size on disk (0 = in memory only)."""

    locator: Locator
    lenses: tuple[Lens, ...]
    bytes: int = 0


def open_map(folder: str | Path, method: Method = "auto", *, model: str = "auto", say: Say | None = None) -> OpenMap:
    """The map of a scene folder. The classical one and the student are kept in the folder once made.

    auto: a geometry model where one is named; else the classical way, which any CPU runs; where the pictures have too
    little texture for that, a geometry model whose weights are here. ``say`` is told which it is and why. Raises
    InputError for a folder that is no scene, and when no way is open.
    """
    _check_asked(method, model)
    folder = _folder(folder)
    tell = say or _silent
    if method == "student":
        return _student(folder, tell)
    if method == "kv" or (method == "auto" and model != "auto"):
        return _kv(folder, model, tell)
    try:
        opened = _classical(folder, tell)
    except InputError as error:
        name = _model_here(model)
        if method == "classical" or name is None:
            raise
        tell(f"method kv {name}: the classical map fails ({error})")
        return _kv(folder, name, tell)
    if method == "auto":
        tell(f"method classical: {len(opened.locator.map)} points with features")  # type: ignore[attr-defined]
    return opened


def open_without_map(
    method: Method = "auto", model: str = "auto", *, known_lens: bool = False, say: Say | None = None
) -> Locator:
    """A locator that makes its own map as it goes.

    auto: features and two-view geometry, which any CPU runs; a geometry model where its weights and a GPU are here, or
    where one is named. ``known_lens``: the camera's K is given and right. ``say`` is told which it is and why. Raises
    InputError for a student (which needs a scene), and for the kv way without weights.
    """
    _check_asked(method, model)
    tell, name = say or _silent, _model_here(model)
    if method == "student":
        raise InputError("track", "method student without a map", "give --map SCENE")
    if method == "kv" and name is None:
        raise InputError(
            "track",
            "method kv, and no geometry model's weights are here",
            f"fetch one (scenetx models fetch {DEFAULT_MODEL}), or leave --method away",
        )
    if name is not None and (method == "kv" or (method == "auto" and (model != "auto" or _has_gpu()))):
        from scenetx.live.kv_session import open_session

        tell(f"method kv {name}: the map grows while the camera moves; its scale is the model's")
        return open_session(name)
    from scenetx.live.classical_session import ClassicalSession

    why = "" if method == "classical" else " (runs on any CPU; --method kv takes a geometry model)"
    tell(f"method classical{why}: move sideways to begin; the map grows while the camera moves; its scale is arbitrary")
    return ClassicalSession(known_lens=known_lens)


def _check_asked(method: Method, model: str) -> None:
    if method not in get_args(Method):
        raise InputError("method", method, f"choose from {', '.join(get_args(Method))}")
    if model != "auto" and method in ("classical", "student"):
        raise InputError("model", model, f"method {method} has no use for one; leave --model away, or take --method kv")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def classical_map(folder: str | Path, *, say: Say | None = None, settings: BuildSettings | None = None) -> ClassicalMap:
    """The classical map of a scene folder: the one kept there if it is of these cameras, else made and kept."""
    folder, tell = _folder(folder), say or _silent
    path = folder / FOLDER / FILE
    if path.is_file():
        try:
            made = load_map(path)
            if _is_of(made, folder):
                return made
            tell("the scene has changed since its map was made; making it again")
        except InputError as error:
            tell(str(error))
    tell("making the classical map (once for a scene)")
    made = build_map(load_scene(folder), settings, name=str(folder))
    try:
        save_map(made, path)
    except InputError as error:  # a scene on a read-only disk can still be tracked in
        tell(f"the map is not kept: {error}")
    return made


def scene_lenses(folder: str | Path) -> tuple[Lens, ...]:
    """The cameras a scene was taken with, from its scene.json alone: one entry a size and lens."""
    out: dict[tuple[object, ...], Lens] = {}
    for entry in _registered(_folder(folder)):
        original = entry["original"]
        if "K" not in original:
            continue
        height, width = original["height"].whole(1, 1 << 20), original["width"].whole(1, 1 << 20)
        K = tuple(float(value) for value in original["K"].matrix(3, 3).flatten())
        kind: Literal["opencv", "fisheye"] = "opencv"
        if "lens" in original and original["lens"].text() == "fisheye":
            kind = "fisheye"
        distortion = original["distortion"].numbers()
        key = (height, width, tuple(round(value, 2) for value in K), distortion)
        out.setdefault(key, Lens(height, width, K, distortion, kind))
    return tuple(out.values())[:8]


def _classical(folder: Path, say: Say) -> OpenMap:
    made = classical_map(folder, say=say)
    path = folder / FOLDER / FILE
    return OpenMap(ClassicalLocator(made), made.lenses, path.stat().st_size if path.is_file() else made.bytes)


def _kv(folder: Path, model: str, say: Say) -> OpenMap:
    from scenetx.live.kv_session import open_kv

    name = _model_here(model) if model == "auto" else model
    locator = open_kv(folder, name or DEFAULT_MODEL)
    say(f"method {locator.name}: {locator.keyframes} keyframes")
    return OpenMap(locator, scene_lenses(folder), int(locator.map.nbytes))


def _student(folder: Path, say: Say) -> OpenMap:
    from scenetx.live.student_train import open_student

    student = open_student(load_scene(folder), folder, say=lambda label, share: say(f"{label} {share:.0%}"))
    say(f"method student: {student.megabytes:.1f} MB")
    return OpenMap(student, scene_lenses(folder), int(student.megabytes * 1e6))


def _model_here(model: str) -> str | None:
    """The geometry model to use without going online: the one named, or the first whose weights are here."""
    if model != "auto":
        return model
    names: Sequence[str] = (DEFAULT_MODEL, *PREFERRED)
    return next((name for name in names if local_file(ZOO[name]).is_file()), None)


def _folder(folder: str | Path) -> Path:
    folder = Path(folder)
    folder = folder.parent if folder.name == "scene.json" else folder
    if not (folder / "scene.json").is_file():
        raise InputError(str(folder), "holds no scene.json", "give a folder that scenetx reconstruct wrote")
    return folder


def _registered(folder: Path) -> list[JsonValue]:
    return [entry for entry in read_json(folder / "scene.json")["images"].items() if "camera" in entry]


def _is_of(made: ClassicalMap, folder: Path) -> bool:
    """Whether the map's cameras are those of the scene as it is now."""
    cameras = {entry["name"].text(): entry["camera"] for entry in _registered(folder)}
    for name, world_from_cam, K in zip(made.names, made.world_from_cam, made.K, strict=True):
        if name not in cameras:
            return False
        now = cameras[name]
        if not np.array_equal(now["world_from_cam"].matrix(4, 4).numpy(), world_from_cam):
            return False
        if not np.array_equal(now["K"].matrix(3, 3).numpy(), K):
            return False
    return True


def _silent(line: str) -> None:
    """Nobody is told."""
