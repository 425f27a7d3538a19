"""`scenetx localize`: where single pictures were taken, in a scene's frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scenetx.core import InputError
from scenetx.core.atomic import write_bytes
from scenetx.core.rigid import rotation_angle
from scenetx.io.images import is_picture, read_picture
from scenetx.io.json_value import JsonValue, read_json, to_json
from scenetx.live.intrinsics import GivenLens
from scenetx.live.localize import Localized, localize_picture
from scenetx.pipeline.locators import Method, OpenMap, Say, open_map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One picture's place; ``truth`` is the scene's own pose of that picture, where it has one."""

    picture: str
    found: Localized
    truth_distance: float | None = None
    truth_degrees: float | None = None

    def line(self) -> str:
        """For people."""
        found = self.found
        if found.located is None:
            return f"{self.picture}: not found in the scene ({found.note})"
        x, y, z = found.located.world_from_cam[:3, 3].tolist()
        parts = [f"{self.picture}: at {x:.4g} {y:.4g} {z:.4g}, confidence {found.located.confidence:.2f}"]
        if found.located.matches:
            parts.append(f"{found.located.inliers} of {found.located.matches} matches")
        parts.append(found.note)
        if self.truth_distance is not None and self.truth_degrees is not None:
            parts.append(f"{self.truth_distance:.3g} units and {self.truth_degrees:.2f} degrees from the scene's pose")
        return ", ".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        """For programs: matrices row by row; K and size are of the upright picture without its lens's distortion."""
        found, located = self.found, self.found.located
        return {
            "picture": self.picture,
            "found": located is not None,
            "world_from_cam": None if located is None else located.world_from_cam.flatten().tolist(),
            "K": found.K.flatten().tolist(),
            "width": found.width,
            "height": found.height,
            "confidence": 0.0 if located is None else located.confidence,
            "matches": 0 if located is None else located.matches,
            "inliers": 0 if located is None else located.inliers,
            "note": found.note,
            "from_scene": None
            if self.truth_distance is None
            else {"distance": self.truth_distance, "degrees": self.truth_degrees},
        }


def localize(
    scene: str | Path | OpenMap,
    pictures: Sequence[str | Path],
    *,
    method: Method = "auto",
    model: str = "auto",
    lens: GivenLens | None = None,
    output: str | Path | None = None,
    say: Say | None = None,
) -> list[Answer]:
    """Where pictures were taken, in the frame and scale of a scene folder.

    Intrinsics: ``lens``, else of the scene's camera for pictures of its size, else EXIF, else estimated. output: a JSON
    file for all answers. Pictures that cannot be read are said, listed there under "unread", and have no answer. Raises
    InputError for a scene that cannot be read, a picture that is not there, and when no picture can be read.
    """
    tell, files = say or log.info, _pictures(pictures)
    opened = scene if isinstance(scene, OpenMap) else open_map(scene, method, model=model, say=say)
    folder = None if isinstance(scene, OpenMap) else Path(scene)
    answers: list[Answer] = []
    unread: list[tuple[Path, InputError]] = []
    for path in files:
        try:
            picture = read_picture(path)
        except InputError as error:
            unread.append((path, error))
            if len(unread) == len(files):
                raise
            tell(f"passed over {error}")
            continue
        found = localize_picture(picture, opened.locator, opened.lenses, lens)
        distance, degrees = _against_truth(folder, path, found)
        answers.append(Answer(str(path), found, distance, degrees))
        tell(answers[-1].line())
    if output is not None:
        why = [{"picture": str(path), "note": str(error)} for path, error in unread]
        said = {"scene": str(folder or ""), "pictures": [a.as_json() for a in answers], "unread": why}
        write_bytes(Path(output), to_json(said))
    return answers


def _pictures(paths: Sequence[str | Path]) -> list[Path]:
    """Files, and the pictures of folders. Raises InputError for what is not there."""
    out: list[Path] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise InputError(str(path), "does not exist", "give a picture, or a folder of pictures")
        out += sorted(item for item in path.iterdir() if is_picture(item)) if path.is_dir() else [path]
    if not out:
        raise InputError("localize", "no picture", "name one or more picture files")
    return out


def _against_truth(folder: Path | None, path: Path, found: Localized) -> tuple[float | None, float | None]:
    """Distance and angle to the pose that the scene has for this picture (by its file), if it has."""
    if folder is None or found.located is None:
        return None, None
    folder = folder.parent if folder.name == "scene.json" else folder
    for entry in read_json(folder / "scene.json")["images"].items():
        if "camera" in entry and _is_same(entry, folder, path):
            truth = entry["camera"]["world_from_cam"].matrix(4, 4)
            pose = found.located.world_from_cam
            angle = rotation_angle(truth[:3, :3].T @ pose[:3, :3])
            return float((pose - truth)[:3, 3].norm()), float(torch.rad2deg(angle))
    return None, None


def _is_same(entry: JsonValue, folder: Path, path: Path) -> bool:
    resolved = path.resolve()
    return resolved in ((folder / "images" / entry["name"].text()).resolve(), Path(entry["original"]["path"].text()))
