"""The verbs. Each reads its arguments, calls one story of `scenetx.pipeline` and says what came of it."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from scenetx.core.atomic import write_text
from scenetx.core.errors import InputError
from scenetx.verbs import (
    Compress,
    Data,
    Doctor,
    Evaluate,
    Export,
    Localize,
    Models,
    Reconstruct,
    Render,
    Track,
    Train,
    Verb,
    View,
    settings_last,
    unboxed,
)


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. Exit codes: 0 done, 1 a defect of ours, 2 bad input (one line on stderr), 130 interrupted."""
    # Worker threads that spin while they wait burn the cores of a laptop; read by OpenMP when torch and numba load.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    words = settings_last(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True, highlight=False)
    verb = _asked_for(words, console)
    verbs: dict[type, Callable[..., None]] = {
        Reconstruct: _reconstruct,
        Render: _render,
        View: _view,
        Export: _export,
        Compress: _compress,
        Evaluate: _evaluate,
        Models: _models,
        Train: _train,
        Data: _data,
        Track: _track,
        Localize: _localize,
        Doctor: _doctor,
    }
    try:
        with _stopped_by_kill():
            verbs[type(verb)](verb, console)
    except InputError as error:
        console.print(f"scenetx: {error}", style="bold red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted; what is done is kept, the same command goes on", markup=False)
        raise SystemExit(130) from None


def _asked_for(words: list[str], console: Console) -> Any:
    """The verb with its arguments; exits with 2 and one line where tyro would print a box of them."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(Verb, prog="scenetx", description="Photos to cameras, splats and a page.", args=words)  # type: ignore[call-overload]
    except SystemExit as end:
        if not end.code:  # --help
            raise
        console.print(f"scenetx: {unboxed(said.getvalue())}", style="bold red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None


@contextmanager
def _stopped_by_kill() -> Iterator[None]:
    """Inside the block SIGTERM, as a service manager or a machine that shuts down sends it, is obeyed as Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may say how signals are taken
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reconstruct(verb: Reconstruct, console: Console) -> None:
    from scenetx.pipeline.progress import Progress
    from scenetx.pipeline.reconstruct import reconstruct, settings_for
    from scenetx.pipeline.watch import UNWATCHED
    from scenetx.pipeline.workspace import default_output

    settings = settings_for(
        verb.quality,
        file=verb.config,
        overrides=(
            f"model={verb.model}",
            f"eval_every={verb.eval_every}",
            f"splats={'none' if verb.no_splats else verb.splats}",
            *verb.overrides,
        ),
    )
    folder = verb.output or default_output(verb.source)
    with ExitStack() as stack:
        live = stack.enter_context(_live_view(folder, console)) if verb.live else None
        with Progress(console) as progress:
            watch = live.watch(progress.report) if live else None
            scene = reconstruct(
                verb.source,
                folder,
                settings=settings,
                reference=verb.reference,
                report=watch.report if watch else progress.report,
                command=f"scenetx {shlex.join(sys.argv[1:])}",
                again=verb.again,
                watcher=watch or UNWATCHED,
            )
        _tell(scene, folder, console)
        if live:
            live.finished(scene)


def _live_view(folder: Path, console: Console) -> Any:
    from scenetx.pipeline.view import LiveView

    return LiveView(folder, say=lambda line: console.print(line, markup=False, soft_wrap=True))


def _tell(scene: Any, folder: Path, console: Console) -> None:
    """What came of a reconstruction."""
    for stage in scene.history:
        for note in stage.notes:
            console.print(f"  {stage.name}: {note}", markup=False, soft_wrap=True)
    for skipped in scene.skipped:
        console.print(f"  skipped {skipped.name}: {skipped.reason}", markup=False, soft_wrap=True)
    console.print(_scores(scene.metrics))
    console.print(f"[bold]open[/bold] {folder / 'report.html'}", soft_wrap=True)


def _render(verb: Render, console: Console) -> None:
    from scenetx.io.scene_dir import load_scene, scene_folder
    from scenetx.pipeline.progress import Progress
    from scenetx.pipeline.render import PathSettings, render_path

    settings = PathSettings(
        path=verb.path,
        frames=verb.frames,
        fps=verb.fps,
        width=verb.width,
        depth=verb.depth,
        backend=verb.backend,
        model=verb.model,
        context=verb.context,
    )
    output = verb.output or scene_folder(verb.scene) / f"{Path(verb.path).stem}.mp4"
    with Progress(console) as progress:
        files = render_path(load_scene(verb.scene), output, settings, progress.report)
    for path in (output,) if output.is_dir() else files:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _view(verb: View, console: Console) -> None:
    from scenetx.pipeline.view import ViewSettings, apply_frame, view

    if verb.frame is not None:
        apply_frame(verb.scene, verb.frame)
    settings = ViewSettings(host=verb.host, port=verb.port, open_browser=verb.open, model=verb.model)
    view(verb.scene, settings, say=lambda line: console.print(line, markup=False, soft_wrap=True))


def _export(verb: Export, console: Console) -> None:
    from scenetx.io.scene_dir import load_scene
    from scenetx.pipeline.export import at_most, check_target, export

    if not verb.targets:
        raise InputError("export", "no target", "name one or more files, for example splats.spz")
    for target in verb.targets:
        check_target(target)
    scene = load_scene(verb.scene)
    if verb.splats is not None:
        scene = at_most(scene, verb.splats)
    for target in verb.targets:
        written = export(scene, target, verb.scene)
        size = f" ({written.stat().st_size / 1e6:.1f} MB)" if written.is_file() else ""
        console.print(f"wrote {written}{size}", markup=False, soft_wrap=True)


def _compress(verb: Compress, console: Console) -> None:
    from scenetx.fit.compress import CompressSettings
    from scenetx.pipeline.compress import CompressPlan, compress, parse_target
    from scenetx.pipeline.progress import Progress

    fit = CompressSettings(steps=verb.steps)
    plan = CompressPlan(target=parse_target(verb.target), formats=verb.formats, fit=fit)
    with Progress(console) as progress:
        curve = compress(verb.scene, verb.output, plan, progress.report)
    console.print(curve.line(), markup=False, soft_wrap=True)


def _evaluate(verb: Evaluate, console: Console) -> None:
    other = ("reference", "width") if verb.protocol == "re10k" else ("index", "model", "limit")
    for name in other:
        if (value := getattr(verb, name)) is not None:
            do = "leave it out" if verb.protocol == "re10k" else "add --protocol re10k, or leave it out"
            raise InputError(f"--{name}", f"{value} says nothing to --protocol {verb.protocol}", do)
    if verb.protocol == "re10k":
        _evaluate_re10k(verb, console)
        return
    from scenetx.io.scene_dir import load_scene, refuse_own, scene_folder
    from scenetx.pipeline.score import evaluate, write_metrics

    if verb.output is not None:
        refuse_own(verb.output)
    metrics = evaluate(load_scene(verb.scene), reference=verb.reference, width=verb.width)
    if verb.output is not None:
        write_text(verb.output, json.dumps(metrics, indent=1))
    elif verb.width is None:  # metrics.json is about the pictures as they were fitted
        write_metrics(metrics, scene_folder(verb.scene))
    console.print(_scores(metrics))


def _models(verb: Models, console: Console) -> None:
    from scenetx.pipeline.models import fetch_model, list_models, model_info

    table = Table(box=None, padding=(0, 2))
    if verb.action == "list":
        for column in ("name", "makes", "size", "licence", "here"):
            table.add_column(column)
        for row in list_models():
            table.add_row(row.name, row.kind, f"{row.megabytes:,} MB", row.licence, "yes" if row.here else "")
        console.print(table)
        return
    if not verb.name:
        raise InputError("models", verb.action, "name a model, for example: scenetx models info da3-small")
    for key, value in model_info(verb.name).items():
        console.print(f"{key:<9} {value}", markup=False, soft_wrap=True)
    if verb.action == "fetch":
        path = fetch_model(verb.name, accept_non_commercial=verb.accept_non_commercial)
        console.print(f"fetched {path}", markup=False, soft_wrap=True)


def _evaluate_re10k(verb: Evaluate, console: Console) -> None:
    from scenetx.pipeline.progress import Progress
    from scenetx.pipeline.re10k import Re10kSettings, run_re10k

    if verb.index is None or verb.model is None:
        raise InputError("protocol re10k", "no --index or no --model", "name the published index file and a model")
    with Progress(console) as progress:
        settings = Re10kSettings(limit=verb.limit)
        scores = run_re10k(verb.scene, verb.index, verb.model, verb.output, settings, progress.report)
    lpips = f"{scores.lpips:.4f}" if scores.lpips is not None else f"not measured ({scores.lpips_note})"
    line = f"PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f}, LPIPS {lpips}"
    console.print(f"{line}; {scores.pictures} pictures of {scores.scenes} scenes", markup=False, soft_wrap=True)
    console.print(f"{scores.protocol}; {len(scores.skipped)} scenes skipped", markup=False, soft_wrap=True)


def _train(verb: Train, console: Console) -> None:
    from scenetx.pipeline.progress import Progress
    from scenetx.train.run import run_training

    with Progress(console) as progress:
        folder, outcome = run_training(verb.config, verb.output, verb.overrides, progress.report)
    ending = "trained" if outcome.done else "stopped; the same command goes on"
    line = f"{ending}: {outcome.progress.step:,} steps, {outcome.progress.skipped} left out, {folder / 'metrics.jsonl'}"
    console.print(line, markup=False, soft_wrap=True)
    if outcome.weights is not None:
        console.print(f"weights {outcome.weights}", markup=False, soft_wrap=True)


def _data(verb: Data, console: Console) -> None:
    from scenetx.config import load_settings
    from scenetx.data.make import MakeSettings, make_shards
    from scenetx.pipeline.progress import Progress

    with Progress(console) as progress:
        paths = make_shards(verb.folder, load_settings(MakeSettings(), overrides=verb.overrides), progress.report)
    console.print(f"wrote {len(paths)} shards to {verb.folder}", markup=False, soft_wrap=True)


def _track(verb: Track, console: Console) -> None:
    from scenetx.live.capture import CaptureSettings
    from scenetx.live.intrinsics import GivenLens
    from scenetx.live.known_scale import KnownScale
    from scenetx.pipeline.locators import scene_lenses
    from scenetx.pipeline.track import TrackPlan, run_track

    given = [f"--{name}" for name in ("fov", "K", "lens") if getattr(verb, name) is not None]
    if len(given) > 1:
        raise InputError("track", f"{' and '.join(given)} all describe the lens", "give one of them")
    cameras = () if verb.lens is None else scene_lenses(verb.lens)
    if verb.lens is not None and not cameras:
        raise InputError(str(verb.lens), "tells no lens", "take a scene whose pictures' cameras are known")
    plan = TrackPlan(
        source=verb.source,
        map=verb.map,
        method=verb.method,
        model=verb.model,
        capture=CaptureSettings(fps=verb.fps),
        lens=GivenLens(fov=verb.fov, K=verb.K, cameras=cameras),
        output=verb.output,
        record=verb.record,
        view=verb.view,
        port=verb.port,
        stream=verb.stream,
        box=verb.box,
        mask=verb.mask,
        known=KnownScale(verb.known_size, verb.known_points, verb.known_picture),
    )
    summary = run_track(plan, say=lambda line: console.print(line, markup=False, soft_wrap=True))
    console.print(summary.line(), markup=False, soft_wrap=True)


def _localize(verb: Localize, console: Console) -> None:
    from scenetx.live.intrinsics import GivenLens
    from scenetx.pipeline.localize import localize

    localize(
        verb.scene,
        verb.pictures,
        method=verb.method,
        model=verb.model,
        lens=None if verb.fov is None else GivenLens(fov=verb.fov),
        output=verb.output,
        say=lambda line: console.print(line, markup=False, soft_wrap=True),
    )


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
    if "pose_auc_30" in reference:
        curve = ", ".join(f"@{t} {reference[f'pose_auc_{t}']:.1f}" for t in (3, 5, 10, 30))
        table.add_row("pose AUC", f"{curve} %; ATE {reference['ate_rmse']:.4g}")
    if "depth_absrel" in reference:
        delta = f", delta < 1.25 {100 * reference['depth_delta1']:.1f} %" if "depth_delta1" in reference else ""
        table.add_row("depth", f"AbsRel {reference['depth_absrel']:.4f}{delta}")
    if "accuracy" in reference:
        text = f"accuracy {reference['accuracy']:.4g}, completeness {reference['completeness']:.4g}"
        table.add_row("points", f"{text}, F-score {100 * reference['fscore']:.1f} %")
    if "seconds" in metrics:
        total = sum(metrics["seconds"].values())
        table.add_row("time", f"{total // 60:.0f} min {total % 60:.0f} s")
    return table
