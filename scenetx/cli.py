"""The verbs. Each reads its arguments, calls one story of `scenetx.pipeline` and says what came of it."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg, subcommand

from scenetx.core.errors import InputError

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
    model: Literal["auto", "sfm"] = "auto"
    """Who estimates the cameras when the source has none."""
    eval_every: int = 8
    """Hold out every n-th picture to score the result; 0 = none."""
    splats: bool = True
    """Stop after the cameras with --no-splats."""
    config: Path | None = None
    """TOML file with settings that differ from the quality's."""
    reference: Path | None = None
    """cameras.json with true cameras: their errors go into the report."""
    again: bool = False
    """Throw away what an earlier run left in the output folder's work area."""


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


@dataclass(frozen=True)
class Export:
    """Write the scene in other formats, by suffix: .ply .splat .spz .glb, transforms.json, a COLMAP folder."""

    scene: Positional[Path]
    targets: Positional[tuple[Path, ...]]


@dataclass(frozen=True)
class Evaluate:
    """Score a scene on its held-out pictures, and its cameras against a reference."""

    scene: Positional[Path]
    reference: Path | None = None
    """cameras.json, transforms.json or COLMAP model with true cameras."""


@dataclass(frozen=True)
class Doctor:
    """What is installed, what works, what is missing and how to get it."""


Verb = (
    Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Render, subcommand("render")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Doctor, subcommand("doctor")]
)


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. Exit codes: 0 done, 1 a defect of ours, 2 bad input (one line on stderr), 130 interrupted."""
    # Worker threads that spin while they wait burn the cores of a laptop; read by OpenMP when torch and numba load.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    verb = tyro.cli(Verb, prog="scenetx", description="Photos to cameras, splats and a page.", args=arguments)  # type: ignore[call-overload]
    console = Console(stderr=True, highlight=False)
    verbs: dict[type, Callable[..., None]] = {
        Reconstruct: _reconstruct,
        Render: _render,
        Export: _export,
        Evaluate: _evaluate,
        Doctor: _doctor,
    }
    try:
        verbs[type(verb)](verb, console)
    except InputError as error:
        console.print(f"scenetx: {error}", style="bold red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted; what is done is kept, the same command goes on", markup=False)
        raise SystemExit(130) from None


def _reconstruct(verb: Reconstruct, console: Console) -> None:
    from scenetx.pipeline.progress import Progress
    from scenetx.pipeline.reconstruct import reconstruct, settings_for
    from scenetx.pipeline.workspace import default_output

    settings = settings_for(
        verb.quality,
        file=verb.config,
        overrides=(
            f"model={verb.model}",
            f"eval_every={verb.eval_every}",
            f"splats={str(verb.splats).lower()}",
            *verb.overrides,
        ),
    )
    folder = verb.output or default_output(verb.source)
    with Progress(console) as progress:
        scene = reconstruct(
            verb.source,
            folder,
            settings=settings,
            reference=verb.reference,
            report=progress.report,
            command=f"scenetx {shlex.join(sys.argv[1:])}",
            again=verb.again,
        )
    for stage in scene.history:
        for note in stage.notes:
            console.print(f"  {stage.name}: {note}", markup=False, soft_wrap=True)
    for skipped in scene.skipped:
        console.print(f"  skipped {skipped.name}: {skipped.reason}", markup=False, soft_wrap=True)
    console.print(_scores(scene.metrics))
    console.print(f"[bold]open[/bold] {folder / 'report.html'}", soft_wrap=True)


def _render(verb: Render, console: Console) -> None:
    from scenetx.io.scene_dir import load_scene
    from scenetx.pipeline.progress import Progress
    from scenetx.pipeline.render import PathSettings, render_path

    settings = PathSettings(
        path=verb.path,
        frames=verb.frames,
        fps=verb.fps,
        width=verb.width,
        depth=verb.depth,
        backend=verb.backend,
    )
    output = verb.output or verb.scene / f"{Path(verb.path).stem}.mp4"
    with Progress(console) as progress:
        files = render_path(load_scene(verb.scene), output, settings, progress.report)
    for path in (output,) if output.is_dir() else files:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _export(verb: Export, console: Console) -> None:
    from scenetx.io.scene_dir import load_scene
    from scenetx.pipeline.export import export

    if not verb.targets:
        raise InputError("export", "no target", "name one or more files, for example splats.spz")
    scene = load_scene(verb.scene)
    for target in verb.targets:
        written = export(scene, target)
        size = f" ({written.stat().st_size / 1e6:.1f} MB)" if written.is_file() else ""
        console.print(f"wrote {written}{size}", markup=False, soft_wrap=True)


def _evaluate(verb: Evaluate, console: Console) -> None:
    from scenetx.io.scene_dir import load_scene
    from scenetx.pipeline.score import evaluate, write_metrics

    metrics = evaluate(load_scene(verb.scene), reference=verb.reference)
    write_metrics(metrics, verb.scene)
    console.print(_scores(metrics))


def _doctor(_: Doctor, console: Console) -> None:
    from scenetx.doctor import diagnose, lines

    for line in lines(diagnose()):
        console.print(line, markup=False, soft_wrap=True)


def _scores(metrics: object) -> Table:
    """The headline numbers as a small table."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    if not isinstance(metrics, dict):
        return table
    if "registered" in metrics:
        table.add_row("cameras", f"{metrics['registered']} of {metrics['images']} pictures")
    if "gaussians" in metrics:
        table.add_row("splats", f"{metrics['gaussians']:,}")
    if metrics.get("psnr") is not None:
        views = len(metrics.get("views", ()))
        table.add_row("held-out", f"PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.4f} ({views} pictures)")
    reference = metrics.get("reference") or {}
    if "rotation_deg_median" in reference:
        text = f"rotation {reference['rotation_deg_median']:.3f} deg, centre {reference['center_percent_median']:.3f} %"
        table.add_row("against the reference", f"{text} (medians, {reference['cameras']} cameras)")
    if "depth_absrel" in reference:
        table.add_row("depth", f"AbsRel {reference['depth_absrel']:.4f}")
    if "seconds" in metrics:
        total = sum(metrics["seconds"].values())
        table.add_row("time", f"{total // 60:.0f} min {total % 60:.0f} s")
    return table
