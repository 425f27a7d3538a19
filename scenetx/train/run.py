"""`scenetx train CONFIG`: a recipe and a folder to a training run, its scores and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from scenetx.config import load_settings
from scenetx.core import InputError
from scenetx.core.atomic import write_bytes
from scenetx.data.datasets import open_posed
from scenetx.data.sample import Sample
from scenetx.train import checkpoint
from scenetx.train.evaluate import held_out, score
from scenetx.train.loop import Outcome, train
from scenetx.train.settings import TrainSettings
from scenetx.train.tasks import build_model

Report = Callable[[str, float, str], None]
PLACES = (Path("configs"), Path(__file__).parents[2] / "configs")


def settings_of(config: str, overrides: Sequence[str] = ()) -> TrainSettings:
    """The settings of a recipe: a TOML file, or the name of one in configs/. Raises InputError."""
    path = Path(config)
    if not path.is_file() and path.suffix == "":
        path = next((place / f"{config}.toml" for place in PLACES if (place / f"{config}.toml").is_file()), path)
    return load_settings(TrainSettings(), file=path, overrides=overrides)


def run_training(
    config: str, folder: str | Path | None = None, overrides: Sequence[str] = (), report: Report | None = None
) -> tuple[Path, Outcome]:
    """Train a recipe in ``folder`` (``runs/NAME``), going on from its newest checkpoint."""
    from scenetx.train.evaluate import evaluate

    settings = settings_of(config, overrides)
    where = Path(folder) if folder is not None else Path("runs") / settings.name
    return where, train(settings, where, report=report, evaluate=evaluate)


def evaluate_run(
    config: str,
    weights: str | Path,
    overrides: Sequence[str] = (),
    *,
    scenes: int = 64,
    posed: Sequence[str | Path] = (),
    output: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of weights of a recipe's model on held-out procedural scenes and on posed folders, each by name.

    Raises InputError for weights of another model or a folder that holds no posed pictures.
    """
    settings = settings_of(config, overrides)
    model = build_model(settings)
    checkpoint.start_from(Path(weights), model)
    if torch.cuda.is_available() and settings.accelerator != "cpu":
        model = model.cuda()
    data = settings.data
    table = {"procedural (held out)": score(model, held_out(settings, scenes), data.context, data.targets)}
    for path in posed:
        for sample in _samples(path, data.height, data.width, settings.views):
            table[sample.name] = score(model, [sample], data.context, data.targets)
    if output is not None:
        write_bytes(output, json.dumps(table, indent=1).encode())
    return table


def _samples(path: str | Path, height: int, width: int, views: int) -> list[Sample]:
    """Posed scenes at a model's size, thinned to neighbouring views from the middle of each."""
    opened, out = open_posed(path), []
    for index, scene in enumerate(opened.scenes):
        if len(scene) < 2:
            continue
        count = min(views, len(scene))
        first = (len(scene) - count) // 2
        out.append(opened.sample(index, list(range(first, first + count))).fitted(height, width))
    if not out:
        raise InputError(str(path), "no scene of two or more posed pictures", "reconstruct it first")
    return [replace(sample, name=f"{Path(path).name}/{sample.name}") for sample in out]
