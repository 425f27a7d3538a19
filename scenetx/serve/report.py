"""The report: one self-contained HTML page that says what was made, how good it is, and what is missing."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from numbers import Real
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8

from scenetx.core import Scene
from scenetx.core.atomic import write_text
from scenetx.serve.report_figures import absolute_error, camera_plans, data_uri, error_scale, inferno
from scenetx.serve.report_tables import (
    bytes_text,
    history_section,
    methods_section,
    number,
    reference_section,
    seconds_text,
    skipped_section,
)

KNOWN_FILES = (
    "viewer.html",
    "splats.ply",
    "splats.spz",
    "points.ply",
    "preview.mp4",
    "transforms.json",
    "metrics.json",
)
PACKAGES = ("scenetx", "torch", "numpy", "pycolmap", "numba", "gsplat")


@dataclass(frozen=True)
class ReportPicture:
    """A photo beside its render: the same view, the same size, sRGB."""

    name: str
    photo: UInt8[np.ndarray, "h w 3"]
    render: UInt8[np.ndarray, "h w 3"]

    def __post_init__(self) -> None:
        if self.photo.shape != self.render.shape or self.photo.size == 0:
            raise ValueError(
                f"{self.name}: photo {self.photo.shape} and render {self.render.shape} must be one size and not empty"
            )


@dataclass(frozen=True)
class ReportSettings:
    """What bounds the size of the page."""

    max_pictures: int = 16  # of more, the worst and the best halves are shown
    row_side: int = 640  # longest side of a picture in a row, pixels
    hero_side: int = 1280


def write_report(
    scene: Scene,
    folder: str | Path,
    pictures: Sequence[ReportPicture] = (),
    *,
    command: str = "",
    files: Sequence[str | Path] = (),
    settings: ReportSettings | None = None,
) -> Path:
    """Writes ``folder/report.html`` and gives its path.

    The page loads nothing from anywhere; all of it is in the file, and a content security policy forbids the rest. It
    links (relatively) to ``files`` and to the well-known files of a scene folder that exist inside ``folder``. Each
    part of `Scene.metrics` may be missing: the page then leaves it out or says that it was not measured. Per-view
    PSNR that `metrics` lacks is computed from ``pictures`` (no mask). Raises InputError if the folder is not writable.
    """
    settings = settings or ReportSettings()
    folder = Path(folder)
    scores = [_score(scene, picture) for picture in pictures]
    order = sorted(range(len(pictures)), key=lambda i: scores[i][0])
    ranked = [pictures[i] for i in order]
    ranked_scores = [scores[i] for i in order]
    room = resources.files("scenetx.serve")
    script = (room / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    body = [
        _hero(scene, ranked, ranked_scores, settings),
        _tiles(scene, folder),
        _pictures_section(scene, ranked, ranked_scores, settings),
        _cameras_section(scene),
        methods_section(scene.metrics),
        reference_section(scene.metrics),
        history_section(scene),
        skipped_section(scene),
        _again_section(command),
    ]
    page = Template((room / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(_title(scene)),
        lead=_lead(scene),
        links=_links(folder, files),
        body="\n".join(part for part in body if part),
        css=(room / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
        footer=escape(
            f"Made by scenetx {_version('scenetx')}. This page is one file and loads nothing from the network."
        ),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _title(scene: Scene) -> str:
    source = Path(scene.source)
    # Many data sets keep their pictures in a folder of this name, which tells nobody what they show.
    named = source.parent if source.name.lower() in ("images", "photos", "pictures", "frames", "rgb") else source
    return named.name or source.name or scene.source or "Scene"


def _score(scene: Scene, picture: ReportPicture) -> tuple[float, float | None]:
    """PSNR and SSIM of a view: those measured if `metrics` has them, else PSNR from the pictures."""
    known = _mapping(_mapping(scene.metrics.get("views")).get(picture.name))
    psnr, ssim = known.get("psnr"), known.get("ssim")
    if not isinstance(psnr, Real) or math.isnan(psnr):
        difference = (picture.photo.astype(np.float32) - picture.render.astype(np.float32)) / 255
        psnr = -10 * float(np.log10(max(float(np.square(difference).mean()), 1e-10)))
    return float(psnr), float(ssim) if isinstance(ssim, Real) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _counts(scene: Scene) -> tuple[int, int]:
    registered = scene.metrics.get("registered", len(scene.registered))
    images = scene.metrics.get("images", len(scene.views))
    return int(registered), int(images)


def _is_held_out(scene: Scene, name: str) -> bool:
    return any(view.held_out for view in scene.views if view.name == name)


def _lead(scene: Scene) -> str:
    """The result in a sentence or two of plain words."""
    registered, images = _counts(scene)
    if images == 0:
        return "There are no pictures in this scene."
    if registered == 0:
        return f"No camera was found for any of the {images} pictures."
    if registered == images:
        said = "The one picture has a camera." if images == 1 else f"All {images} pictures found their place."
    else:
        rest = "the other one is" if images - registered == 1 else f"the other {images - registered} are"
        said = f"{registered} of {images} pictures found their place; {rest} named below."
    psnr, held_out = scene.metrics.get("psnr"), len(scene.held_out)
    if psnr is not None and held_out:
        kept = "one picture" if held_out == 1 else f"{held_out} pictures"
        said += f" On {kept} that the fit never saw, the renders reach <b>{number(psnr, 2)} dB</b>."
    elif psnr is not None:
        said += f" The renders reach <b>{number(psnr, 2)} dB</b>."
    elif scene.gaussians is not None:
        said += " Nothing was held out, so how well new views look was not measured."
    return said


def _links(folder: Path, files: Sequence[str | Path]) -> str:
    """Relative links to what exists inside the folder; other files are named without a link."""
    items, seen = [], set()
    for file in [*(folder / name for name in KNOWN_FILES), *map(Path, files)]:
        path = file if file.is_absolute() or file.exists() else folder / file
        if path.resolve() in seen or not path.exists() or path.name == "report.html":
            continue
        seen.add(path.resolve())
        size = f" <small>{bytes_text(path.stat().st_size)}</small>" if path.is_file() else ""
        if path.resolve().is_relative_to(folder.resolve()):
            target = quote(path.resolve().relative_to(folder.resolve()).as_posix(), errors="replace")
            text = "Open in the viewer" if path.name == "viewer.html" else escape(path.name) + size
            main = ' class="main"' if path.name == "viewer.html" else ""
            items.append(f'<li{main}><a href="./{target}">{text}</a></li>')
        else:
            items.append(f"<li><span>{escape(path.name)}{size}</span></li>")
    return f'<nav aria-label="Files"><ul class="links">{"".join(items)}</ul></nav>' if items else ""


def _tiles(scene: Scene, folder: Path) -> str:
    metrics = scene.metrics
    registered, images = _counts(scene)
    protocol = escape(str(metrics.get("protocol", "")))
    tiles = [("Pictures placed", f"{registered} <small>of {images}</small>", "")]
    if metrics.get("psnr") is not None:
        title = "PSNR, held out" if scene.held_out else "PSNR"
        matched = metrics.get("psnr_color_corrected")
        note = f"{number(matched, 2)} dB, colours matched" if matched is not None else ""
        tiles.append((title, f"{number(metrics['psnr'], 2)} <small>dB</small>", note))
    if metrics.get("ssim") is not None:
        tiles.append(("SSIM, held out" if scene.held_out else "SSIM", number(metrics["ssim"], 3), ""))
    splats = metrics.get("gaussians", None if scene.gaussians is None else len(scene.gaussians))
    if splats is not None:
        size = next((folder / n for n in ("splats.ply", "splats.spz") if (folder / n).is_file()), None)
        note = f"{bytes_text(size.stat().st_size)} as {size.suffix}" if size else ""
        tiles.append(("Splats", f"{int(splats):,}".replace(",", "\u202f"), note))
    elif scene.points is not None:
        tiles.append(("Points", f"{len(scene.points):,}".replace(",", "\u202f"), ""))
    stages = _mapping(metrics.get("seconds"))
    total = sum(stage.seconds for stage in scene.history) or sum(
        float(v) for v in stages.values() if isinstance(v, Real)
    )
    if total:
        tiles.append(("Time", re.sub("([a-z]+)", r"<small>\1</small>", seconds_text(total)), ""))
    if metrics.get("model"):
        quality = f"quality {escape(str(metrics['quality']))}" if metrics.get("quality") else ""
        tiles.append(("Cameras by", escape(str(metrics["model"])), quality))
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{value}" + (f'<small class="note">{note}</small>' if note else "") + "</dd></div>"
        for label, value, note in tiles
    )
    said = (
        f'<p class="soft" style="margin-top:10px"><small>How it was measured: {protocol}</small></p>'
        if protocol
        else ""
    )
    return f'<section aria-label="Summary" style="margin-top:0"><dl class="tiles">{cells}</dl>{said}</section>'


def _hero(
    scene: Scene, pictures: list[ReportPicture], scores: list[tuple[float, float | None]], settings: ReportSettings
) -> str:
    """The picture of median PSNR (neither the best nor the worst), photo against render; else the first view."""
    if pictures:
        middle = len(pictures) // 2
        picture, name = pictures[middle], escape(pictures[middle].name)
        photo = data_uri(picture.photo, settings.hero_side, 86)
        render = data_uri(picture.render, settings.hero_side, 86)
        kind = "held-out" if _is_held_out(scene, picture.name) else "training"
        which = (
            f"the {kind} picture of median PSNR, {scores[middle][0]:.2f} dB" if len(pictures) > 1 else f"{kind} picture"
        )
        size = f'width="{picture.photo.shape[1]}" height="{picture.photo.shape[0]}"'
        return (
            f'<figure class="hero"><div class="compare"><img {size} src="{render}" alt="Render of {name}">'
            f'<img class="over" src="{photo}" alt="Photo {name}">'
            '<input type="range" min="0" max="100" value="50" aria-label="Share of the photo shown">'
            '<span class="tag left">photo</span><span class="tag right">render</span></div>'
            f"<figcaption>Drag to compare. {name}: {which}.</figcaption></figure>"
        )
    for view in (*scene.registered, *scene.views):
        if view.image.numel():
            name = escape(view.name)
            uri = data_uri(view.image.cpu().numpy(), settings.hero_side, 86)
            return f'<figure class="hero"><img src="{uri}" alt="Photo {name}"><figcaption>{name}</figcaption></figure>'
    return ""


def _pictures_section(
    scene: Scene, pictures: list[ReportPicture], scores: list[tuple[float, float | None]], settings: ReportSettings
) -> str:
    if not pictures:
        return ""
    held_out = [_is_held_out(scene, picture.name) for picture in pictures]
    title = "Held-out pictures" if all(held_out) else "Pictures and renders"
    shown = list(range(len(pictures)))
    said = "Worst first."
    if len(shown) > settings.max_pictures:
        half = settings.max_pictures // 2
        shown = shown[: settings.max_pictures - half] + shown[len(shown) - half :]
        said = f"The {settings.max_pictures - half} worst and the {half} best of {len(pictures)}, worst first."
    if all(held_out):
        said = "The fit never saw these photos. " + said
    errors = {i: absolute_error(pictures[i].photo, pictures[i].render) for i in shown}
    scale = error_scale(list(errors.values()))
    ramp = data_uri(inferno(np.linspace(0, 1, 256)[None].repeat(4, 0)), 256, 95)
    legend = (
        f'<div class="legend"><span>error 0</span><img src="{ramp}" alt="Colour scale: black is no error, then '
        f'purple, orange and yellow"><span>{scale} or more of 255 levels</span></div>'
    )
    rows = [_row(pictures[i], scores[i], errors[i] / scale, held_out[i] or all(held_out), settings) for i in shown]
    return (
        f'<section><h2>{title}</h2><p class="soft">{said} The error map is the mean absolute difference of the sRGB '
        f"channels.</p>{legend}{''.join(rows)}</section>"
    )


def _row(
    picture: ReportPicture,
    score: tuple[float, float | None],
    error: np.ndarray,
    held_out: bool,
    settings: ReportSettings,
) -> str:
    name = escape(picture.name)
    psnr, ssim = score
    height, width = picture.photo.shape[:2]
    figures = [
        ("photo", picture.photo, f"Photo {name}"),
        ("render", picture.render, f"Render of {name}"),
        ("error", inferno(error.astype(np.float64)), f"Error map of {name}, {psnr:.2f} dB"),
    ]
    cells = "".join(
        f'<figure><img loading="lazy" width="{width}" height="{height}" src="{data_uri(pixels, settings.row_side)}" '
        f'alt="{alt}"><figcaption>{label}</figcaption></figure>'
        for label, pixels, alt in figures
    )
    badge = "" if held_out else '<span class="badge">training picture</span>'
    ssim_text = "" if ssim is None else f"<span>SSIM <b>{ssim:.3f}</b></span>"
    tall = " tall" if height > width else ""
    return (
        f'<article class="row"><header><h3>{name}</h3><span>PSNR <b>{psnr:.2f}</b> dB</span>{ssim_text}{badge}'
        f'<button type="button" hidden data-compare="{name}" aria-label="Compare photo and render of {name}">Compare'
        f'</button></header><div class="trio{tall}">{cells}</div></article>'
    )


def _cameras_section(scene: Scene) -> str:
    plans = camera_plans(scene)
    if not plans:
        return ""
    figures = "".join(f"<figure>{svg}<figcaption>{title}</figcaption></figure>" for title, svg in plans)
    held_out = len(scene.held_out)
    keys = f'<li class="train"><i></i>{len(scene.training)} for training</li>'
    if held_out:
        keys += f'<li class="held"><i></i>{held_out} held out</li>'
    posed = {"input": "given with the pictures", "sfm": "found by structure from motion", "model": "found by a model"}
    said = f"Camera poses were {posed[scene.posed_by]}. " if scene.posed_by in posed else ""
    return (
        f'<section><h2>Cameras</h2><p class="soft">{said}Up is what the photographer held up; lengths are in the units '
        f'of the scene. Point at a camera for its name.</p><ul class="keys">{keys}</ul>'
        f'<div class="plans">{figures}</div></section>'
    )


def _again_section(command: str) -> str:
    versions = [f"{name} {_version(name)}" for name in PACKAGES if _version(name)]
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    code = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    lead = "<p>The same again:</p>" if command else ""
    text = escape(", ".join([*versions, machine]))
    return f'<section><h2>How this was made</h2>{lead}{code}<p class="soft"><small>{text}</small></p></section>'


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
