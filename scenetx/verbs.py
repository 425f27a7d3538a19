"""What can be said on the command line: one dataclass a verb, its fields the arguments, their docstrings the help."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

Quality = Literal["draft", "standard", "high"]


@dataclass(frozen=True)
class Reconstruct:
    """Photos, a video or a posed data set to a scene folder: cameras, points, splats, a report.

    The same command goes on after an interruption.
    """

    source: Positional[str]
    """Folder of pictures, video file, glob in quotes, COLMAP model, transforms.json, LLFF or cameras.json folder."""
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as key=value, for example fit.steps=4000 sfm.mapper=global."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Scene folder to write (default: SOURCE-scene in the working directory)."""
    quality: Annotated[Quality, arg(aliases=["-q"])] = "standard"
    """Seconds against detail."""
    model: str = "auto"
    """Who estimates the cameras: auto, sfm, a model (scenetx models list) or a weight file."""
    eval_every: int = 8
    """Hold out every n-th picture to score the result; 0 = none."""
    splats: Literal["fitted", "refined", "instant"] = "fitted"
    """fitted; instant: one pass, seconds, nothing fitted; refined: instant, then a short fit."""
    no_splats: Annotated[bool, FlagCreatePairsOff] = False
    """Stop after the cameras."""
    config: Path | None = None
    """TOML file with settings that differ from the quality's."""
    reference: Path | None = None
    """cameras.json, transforms.json or COLMAP model with true cameras: their errors go into the report."""
    again: bool = False
    """Throw away what an earlier run left in the output folder's work area."""
    live: bool = False
    """Watch in the browser while it runs."""


@dataclass(frozen=True)
class Render:
    """Novel views of a scene: a video or pictures."""

    scene: Positional[Path]
    """Scene folder."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """.mp4 or .webm file, or a folder for PNG files (default: SCENE/PATH.mp4)."""
    path: str = "orbit"
    """orbit, spiral, input, or a camera path file (.json)."""
    frames: int = 120
    fps: float = 30.0
    width: int | None = None
    """Picture width (default: as the scene's pictures)."""
    depth: bool = False
    """Write depth too."""
    backend: Literal["auto", "torch", "cpu", "cuda"] = "auto"
    model: str | None = None
    """Paint with a view-synthesis model (lvsm, svsm, srt, .. or a weight file) instead of the scene's splats."""
    context: int = 4
    """Pictures a model is shown for a view."""


@dataclass(frozen=True)
class View:
    """Open a scene in the browser: look around, measure, crop, make camera paths."""

    scene: Positional[Path]
    """Scene folder, or a splat file (.ply, .splat, .spz)."""
    port: int = 8080
    """The first port tried; taken ones are passed over."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets the whole network look."""
    open: bool = True
    """Only print the address with --no-open."""
    model: str | None = None
    """View-synthesis model (name or weight file) that draws the scene instead of its splats."""
    frame: Path | None = None
    """frame.json that a viewer page saved: the scene gets that scale and up axis first."""


@dataclass(frozen=True)
class Export:
    """Write the scene in other formats, by suffix and name."""

    scene: Positional[Path]
    """Scene folder."""
    targets: Positional[tuple[Path, ...]]
    """Splats: .ply .splat .spz .sog .compressed.ply, splats.glb. Page: .html. Points and cameras: .glb, points.ply,
    transforms.json, a folder (COLMAP). Surface (the extra mesh): mesh.glb, mesh.ply, mesh.obj, mesh-poisson.glb."""
    splats: int | None = None
    """At most so many: neighbours are merged, which leaves no holes. For phones and previews; takes a second."""


@dataclass(frozen=True)
class Compress:
    """Small splat files of a scene, and what each size costs in quality."""

    scene: Positional[Path]
    """Scene folder."""
    target: str = "10x"
    """How many times smaller than the splats' .ply the .sog file should be."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder for the files and rate_distortion.json (default: SCENE/compressed)."""
    formats: tuple[str, ...] = ("sog", "spz", "compressed.ply")
    """Of sog, spz, compressed.ply, glb."""
    steps: int = 1200
    """Gradient steps in which fewer splats recover, at most."""


@dataclass(frozen=True)
class Evaluate:
    """Score a scene on its held-out pictures, its cameras against a reference; or a model by a published protocol."""

    scene: Positional[Path]
    """Scene folder; with --protocol re10k, the folder with RealEstate10K's test split."""
    reference: Path | None = None
    """cameras.json, transforms.json or COLMAP model with true cameras."""
    width: int | None = None
    """Reduce photos and renders to this longest side first, to compare scenes of different qualities."""
    protocol: Literal["held-out", "re10k"] = "held-out"
    """re10k: two views in, three out, 256 x 256, as published (needs --index and --model)."""
    index: Path | None = None
    """evaluation_index_re10k.json of pixelSplat or NoPoSplat (they differ)."""
    model: str | None = None
    """View-synthesis model: a name (lvsm, svsm, srt, ..) or a weight file."""
    limit: int | None = None
    """Score only so many scenes."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """File for all scores (.json); default: the scene's metrics.json, unless --width changes what they mean."""


@dataclass(frozen=True)
class Models:
    """Published models: list them, tell about one, fetch its weights (the licence is shown first)."""

    action: Positional[Literal["list", "info", "fetch"]] = "list"
    name: Positional[str] = ""
    """The model, for info and fetch."""
    accept_non_commercial: bool = False
    """Fetch weights whose licence forbids commercial use."""


@dataclass(frozen=True)
class Train:
    """Train a model by a recipe; the same command goes on after an interruption. Several processes: torchrun."""

    config: Positional[str]
    """TOML file, or the name of one in configs/ (mini-view, mini-geometry, ..)."""
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as key=value, for example batch=16 optim.steps=2000."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder of checkpoints and metrics (default: runs/NAME)."""


@dataclass(frozen=True)
class Data:
    """Procedural scenes with exact answers as a folder of tar shards; the same command goes on, or makes more."""

    action: Positional[Literal["make"]]
    folder: Positional[Path]
    overrides: Positional[tuple[str, ...]] = ()
    """Settings as key=value, for example scenes=4096 processes=2 procedural.difficulty=0.3."""


@dataclass(frozen=True)
class Track:
    """Live 6-DoF pose from a camera, a video, a folder or a stream, in an earlier scene or in a map of its own."""

    source: str = "0"
    """Camera number, video, folder of pictures, glob in quotes, or an rtsp://, http:// or udp:// address."""
    map: Path | None = None
    """Scene folder to track in; without it a map grows on the way, in a scale of its own."""
    method: Literal["auto", "classical", "kv", "student"] = "auto"
    """classical runs on any CPU; kv: keys and values of a geometry model; auto picks and says."""
    model: str = "auto"
    """Geometry model of the kv way: a name (scenetx models list) or a weight file."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder for trajectory_tum.txt and updates.jsonl (without a map also trajectory_final_tum.txt and the map)."""
    fps: float | None = None
    """Replay a file at this rate as if it were live; asked of a camera."""
    record: bool = False
    """Keep the frames too, as OUTPUT/record.mkv."""
    view: bool = True
    """Watch in the browser; not with --no-view."""
    port: int = 8080
    stream: str | None = None
    """Send poses as JSON to udp://HOST:PORT, or serve them at ws://HOST:PORT."""
    fov: float | None = None
    """Horizontal field of view in degrees, where the camera is not the map's."""
    K: tuple[float, float, float, float] | None = None
    """fx fy cx cy in pixels, likewise."""
    lens: Path | None = None
    """An earlier scene of the same camera (of reconstruct, or OUTPUT/map-scene of track): its lens is taken."""
    box: tuple[float, float, float, float] | None = None
    """Track an object instead of the room: its box x0 y0 x1 y1 in the first frame; the map is then of the object."""
    mask: Path | None = None
    """Likewise: a folder of masks or a mask video, frame for frame with the source; white = object."""
    known_size: float | None = None
    """True length of the longest side of what the map shows (an object): poses are then in that unit. Needs --map."""
    known_points: tuple[float, float, float, float, float] | None = None
    """Likewise two points of the map, x0 y0 x1 y1 in pixels of one of its pictures, and their true distance."""
    known_picture: str = ""
    """The picture that --known-points are in, by its name in the scene's images folder; without it the first."""


@dataclass(frozen=True)
class Localize:
    """Where single pictures were taken, in a scene's frame."""

    scene: Positional[Path]
    """Scene folder."""
    pictures: Positional[tuple[Path, ...]]
    """Picture files or folders of them."""
    method: Literal["auto", "classical", "kv", "student"] = "auto"
    model: str = "auto"
    """Geometry model of the kv way: a name or a weight file."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """JSON file for the answers."""
    fov: float | None = None
    """Horizontal field of view in degrees, where the camera is not the scene's and EXIF does not say."""


@dataclass(frozen=True)
class Doctor:
    """What is installed, what works, what is missing and how to get it."""


def settings_last(words: Sequence[str]) -> list[str]:
    """The words of a command with its key=value settings together at the end, where tyro wants them.

    They may be written anywhere; the value of an option (``-o a=b``) stays where it is, and so does all after ``--``.
    """
    verbs: dict[str, type] = {"reconstruct": Reconstruct, "train": Train, "data": Data}
    verb = verbs.get(words[0]) if words else None
    if verb is None or "--" in words:
        return list(words)
    flags = {f"--{entry.name.replace('_', '-')}" for entry in fields(verb) if "bool" in str(entry.type)}
    moved = [
        place
        for place, word in enumerate(words)
        if re.match(r"[A-Za-z_][\w.]*=", word)
        and (not (before := words[place - 1]).startswith("-") or "=" in before or before.replace("_", "-") in flags)
    ]
    return [word for place, word in enumerate(words) if place not in moved] + [words[place] for place in moved]


def unboxed(box: str) -> str:
    """What tyro says in a box of lines, in one: its message, the names of options that it points to, where help is.

    A box is parts between rules. Of a part that lists options the first is named, without its help.
    """
    title, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()
    title, parts = title.strip("╭╮─ "), list[list[str]]([[]])
    for line in lines:
        words = line.strip("│╰╯─ ")
        if ("─" in line and not words) or set(words) == {"-"}:  # plain hyphens where the terminal has no box
            parts.append([])
        else:
            parts[-1].append(words)
    said, *more = [part for part in parts if any(part)] or [[title]]
    listed = ("Perhaps you meant:", "Arguments similar to", "Argument helptext:")
    first = " ".join(said[: said.index("")] if "" in said else said)
    told = [" ".join(part[:2] if part[0].startswith(listed) else part) for part in more]
    line = "; ".join(part.rstrip(".") for part in (first, *told)).replace("For full helptext,", "for all of it")
    return line if line.casefold().startswith(title.casefold()) else f"{title}: {line}"


Verb = (
    Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Render, subcommand("render")]
    | Annotated[View, subcommand("view")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Compress, subcommand("compress")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Models, subcommand("models")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Track, subcommand("track")]
    | Annotated[Localize, subcommand("localize")]
    | Annotated[Doctor, subcommand("doctor")]
)
