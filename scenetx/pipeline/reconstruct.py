"""The main story: from a source of pictures to a scene folder."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scenetx.config import load_settings, to_dict
from scenetx.core import Gaussians, InputError, Scene, Stage
from scenetx.fit import FitSettings, evaluate_views, fit_splats
from scenetx.fit import settings_for as fit_settings_for
from scenetx.geometry.sfm import SfmSettings
from scenetx.io.prepare import PrepareSettings, hold_out, open_source
from scenetx.io.scene_dir import load_scene, save_scene
from scenetx.pipeline.cameras import find_cameras
from scenetx.pipeline.choose import choose_model
from scenetx.pipeline.instant import (
    METHODS,
    InstantSettings,
    SplatsBy,
    instant_splats,
    method,
    shortened,
    side_by_side,
    uncrowded,
)
from scenetx.pipeline.page import write_page
from scenetx.pipeline.predict import PredictSettings
from scenetx.pipeline.reference import against_reference, read_reference
from scenetx.pipeline.render import PathSettings, render_path
from scenetx.pipeline.score import evaluate, report_pictures, with_depth, write_metrics
from scenetx.pipeline.stereo import stereo_file
from scenetx.pipeline.watch import UNWATCHED, Watcher
from scenetx.pipeline.workspace import Report, Workspace, default_output, silent
from scenetx.serve.report import write_report

Quality = Literal["draft", "standard", "high"]


@dataclass(frozen=True)
class ReconstructSettings:
    """All that can be set. `settings_for` gives the defaults of a quality."""

    quality: Quality = "standard"
    model: str = "auto"
    """auto, sfm, a published model's name (scenetx models list) or a weight file. mini and mini-splat also make the
    splats where these are instant or refined."""
    eval_every: int = 8
    splats: SplatsBy = "fitted"
    """fitted, refined (one pass, then a short fit), instant (one pass) or none."""
    preview: bool = True
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    sfm: SfmSettings = field(default_factory=SfmSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    instant: InstantSettings = field(default_factory=InstantSettings)
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        if self.eval_every < 0 or self.eval_every == 1:
            raise InputError("eval_every", self.eval_every, "give 0 (none) or 2 and more")


def settings_for(
    quality: Quality = "standard", *, file: str | Path | None = None, overrides: Sequence[str] = ()
) -> ReconstructSettings:
    """The defaults of a quality, then a TOML file's differences, then ``key=value`` overrides."""
    fit = fit_settings_for(quality)
    defaults = ReconstructSettings(quality=quality, prepare=PrepareSettings(width=fit.width), fit=fit)
    settings = load_settings(defaults, file=file, overrides=overrides)
    # One working size: the pictures are opened no larger than they are fitted to.
    return replace(settings, fit=replace(settings.fit, width=settings.prepare.width))


def reconstruct(
    source: str | Path,
    output: str | Path | None = None,
    *,
    quality: Quality = "standard",
    settings: ReconstructSettings | None = None,
    reference: str | Path | None = None,
    report: Report = silent,
    command: str = "",
    again: bool = False,
    watcher: Watcher = UNWATCHED,
) -> Scene:
    """Cameras, points, splats, scores and a report of ``source``, written to ``output`` (default ``SOURCE-scene``).

    source: folder of pictures, video file, glob, COLMAP model, transforms.json, LLFF or cameras.json folder. When it
    brings camera poses they are used and the result stays in their frame and scale. After an interruption the same call
    goes on; a finished scene of equal settings and pictures is loaded and returned. again: start over.
    reference: cameras to measure the found ones against, also those of a finished scene. watcher: told of cameras and
    splats as they come. Raises `InputError` for bad input; nothing written is lost.
    """
    settings = settings or settings_for(quality)
    # What is mistyped is said now, not after hours of work.
    choose_model(settings.model)
    makes_splats(settings)
    if reference is not None:
        read_reference(reference)
    if not str(source).strip():
        raise InputError("source", "is empty", "give a folder of pictures, a video, or a glob in quotes")
    space = Workspace(Path(output) if output else default_output(str(source)), report)
    finished = None if again else _finished(space.folder, str(source), settings)
    if finished is not None:
        return finished if reference is None else _measured(finished, reference, space.folder, command)
    with space.held(again=again):
        scene = _cameras(str(source), settings, space)
        watcher.scene(scene)
        if settings.splats != "none":
            scene = _splats(scene, settings, space, watcher)
        scene = _scores(scene, reference, settings, space)
        scene = replace(scene, history=(*space.stages, _summary(str(source), settings)))
        _write(scene, settings, space, command)
    space.close()
    return scene


def _cameras(source: str, settings: ReconstructSettings, space: Workspace) -> Scene:
    with space.stage("open", to_dict(settings.prepare)) as notes:
        opened = open_source(source, settings.prepare, space.work, space.progress("open"))
        known = opened.kind == "scene"
        notes.append("a scene with its cameras" if known else f"{len(opened.scene.views)} pictures")
        if known and settings.model not in ("auto", "sfm") and not makes_splats(settings):
            notes.append(f"model {settings.model} is not used: the scene's cameras stay as they are")
    if opened.kind == "scene":
        # Fitted anew from its own cameras; which views were held out may change.
        scene = load_scene(opened.path)
        if scene.gaussians is not None:  # its depth is what those splats show: nothing to start anew from
            scene = replace(scene, views=tuple(replace(view, depth=None) for view in scene.views))
        return hold_out(replace(scene, gaussians=None, metrics={}), settings.eval_every)
    with space.stage("cameras", to_dict(settings.sfm)) as notes:
        scene = find_cameras(
            opened,
            settings.sfm,
            settings.prepare,
            space,
            notes,
            model=settings.model,
            predict=settings.predict,
        )
    return hold_out(scene, settings.eval_every)


def _splats(scene: Scene, settings: ReconstructSettings, space: Workspace, watcher: Watcher) -> Scene:
    """Gaussians in the way asked for; ``metrics`` of the result tells of the way before it, where there was one."""
    if settings.splats == "fitted":
        return _fitted(scene, _enough_steps(settings, len(scene.training)), None, space, watcher)
    instant = replace(settings.instant, model=settings.instant.model or makes_splats(settings))
    fit = uncrowded(scene, settings.fit, instant) if settings.splats == "refined" else settings.fit
    with space.stage("instant", to_dict(instant)) as notes:
        say = space.progress("instant")
        start = instant_splats(scene, instant, fit, settings.predict.lift, notes, say)
    scene = replace(scene, gaussians=start)
    if settings.splats == "refined":
        first = method("instant", _splat_seconds(space), start, evaluate_views(scene, start))
        scene = _fitted(scene, shortened(fit, instant, len(start)), start, space, watcher)
        scene = replace(scene, metrics={METHODS: [first]})
    return scene


def makes_splats(settings: ReconstructSettings) -> str:
    """The weights by which ``model`` makes the splats of one pass; "" where it does not.

    Raises InputError for a model that can do nothing else where no such splats are asked for.
    """
    file = stereo_file(settings.model)
    if file is None:
        return ""
    if settings.splats not in ("instant", "refined"):
        if settings.model != "mini":
            raise InputError("model", settings.model, "it makes splats in one pass: add --splats instant or refined")
        return ""
    return str(file)


def _enough_steps(settings: ReconstructSettings, num_views: int) -> FitSettings:
    """The fit with as many steps as its quality takes for so many pictures, unless another number was asked for."""
    if settings.fit.steps != fit_settings_for(settings.quality).steps:
        return settings.fit
    return replace(settings.fit, steps=fit_settings_for(settings.quality, num_views).steps)


def _splat_seconds(space: Workspace) -> float:
    return sum(stage.seconds for stage in space.stages if stage.name in ("instant", "splats"))


def _fitted(scene: Scene, fit: FitSettings, start: Gaussians | None, space: Workspace, watcher: Watcher) -> Scene:
    """Fit Gaussians; refined poses replace the views' cameras."""
    with space.stage("splats", to_dict(fit)) as notes:
        update = None
        for update in fit_splats(scene, fit, start=start, checkpoint=space.work / "fit.safetensors"):
            psnr = f", held-out {update.psnr:.1f} dB" if update.psnr is not None else ""
            watcher.fitting(update)
            space.report("splats", update.step / update.steps, f"{update.num_gaussians:,} splats{psnr}")
        if update is None or update.gaussians is None or len(update.gaussians) == 0:
            raise InputError(scene.source, "no splats came out", "check the fit's settings, and that not all is masked")
        notes.append(f"{len(update.gaussians):,} splats in {update.steps} steps")
        refined = update.cameras or {}
        views = tuple(replace(view, camera=refined.get(view.name, view.camera)) for view in scene.views)
        return replace(scene, views=views, gaussians=update.gaussians)


def _scores(scene: Scene, reference: str | Path | None, settings: ReconstructSettings, space: Workspace) -> Scene:
    with space.stage("score"):
        # Depth first: a reference that knows depth measures it too.
        scene = with_depth(scene) if scene.gaussians is not None else scene
        scores = evaluate_views(scene, scene.gaussians) if scene.gaussians is not None else None
        metrics = evaluate(scene, reference=reference, held_out=scores)
    seconds = {stage.name: stage.seconds for stage in space.stages}
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    described: dict[str, Any] = {"seconds": seconds, "model": scene.posed_by, "quality": settings.quality}
    if scene.gaussians is not None and scores is not None:
        last = method(settings.splats, _splat_seconds(space), scene.gaussians, scores)
        described[METHODS] = side_by_side([*scene.metrics.get(METHODS, ()), last], space.folder)
    return replace(scene, metrics={**metrics, **described, "peak_memory_gib": round(peak / 2**20, 2)})


def _write(scene: Scene, settings: ReconstructSettings, space: Workspace, command: str) -> None:
    with space.stage("save"):
        save_scene(scene, space.folder)
        write_metrics(scene.metrics, space.folder)
        if scene.gaussians is not None and settings.preview:
            flight = PathSettings(path="input", frames=90, width=min(640, settings.prepare.width))
            render_path(scene, space.folder / "preview.mp4", flight, space.report)
        write_page(scene, space.folder / "viewer.html", title=space.folder.resolve().name.removesuffix("-scene"))
        _report(scene, space.folder, command)


def _report(scene: Scene, folder: Path, command: str) -> None:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    write_report(scene, folder, report_pictures(scene), command=command, files=files)


def _measured(scene: Scene, reference: str | Path, folder: Path, command: str) -> Scene:
    """A finished scene with its errors against a reference, in metrics.json and the report too."""
    errors = {"reference": against_reference(scene, reference)}
    scene = replace(scene, metrics={**scene.metrics, **errors})
    write_metrics(errors, folder)
    _report(scene, folder, command)
    return scene


def _summary(source: str, settings: ReconstructSettings) -> Stage:
    """The line of history by which the same command is known again."""
    return Stage("reconstruct", 0.0, {"source": str(Path(source).absolute()), **_flat(to_dict(settings))})


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return out


def _finished(folder: Path, source: str, settings: ReconstructSettings) -> Scene | None:
    """The scene in ``folder`` when it is complete and made from the same source with the same settings."""
    if not (folder / "scene.json").exists() or (folder / ".work").exists() or not (folder / "report.html").exists():
        return None
    scene = load_scene(folder)
    wanted = dict(_summary(source, settings).settings)
    made = next((dict(stage.settings) for stage in scene.history if stage.name == "reconstruct"), None)
    newest = max((path.stat().st_mtime for path in _sources(source)), default=0.0)
    return scene if made == wanted and newest < (folder / "scene.json").stat().st_mtime else None


def _sources(source: str) -> list[Path]:
    path = Path(source)
    return [path, *path.iterdir()] if path.is_dir() else [path] if path.exists() else []
