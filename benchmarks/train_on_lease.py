"""Train a recipe for a while, then score it: what scripts/train-on-lease runs.

    python benchmarks/train_on_lease.py mini-view runs/mini-view --seconds 1500 --posed fox-scene --set batch=64

Begins with the shipped weights of the recipe's name where they are of its model and the folder is new; goes on from
the folder's newest checkpoint otherwise. Without a GPU the recipe is trained smaller: fewer scenes a step, 32-bit.
Writes FOLDER/scores.json; the curve is FOLDER/metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from scenetx.core import InputError
from scenetx.models.own import SHIPPED, read_stated
from scenetx.train.checkpoint import found
from scenetx.train.evaluate import table
from scenetx.train.run import evaluate_run, run_training, settings_of
from scenetx.train.settings import TrainSettings


def fitted(config: str, folder: Path, seconds: float, given: list[str]) -> list[str]:
    """Overrides for this machine."""
    words = [f"seconds={seconds}"]
    if not torch.cuda.is_available():
        words += ["batch=8", "data.reuse=8", "data.pool=512", "accumulate=1", "precision=32-true", "evaluate_scenes=8"]
    shipped = shipped_for(settings_of(config, given))
    if shipped is not None and not found(folder / "checkpoints"):
        words.append(f"start_from={shipped}")
    return [*words, *given]


def shipped_for(settings: TrainSettings) -> Path | None:
    """The shipped weights of the recipe's name (``-cpu`` aside), where they are of the very model that it trains."""
    path = SHIPPED / f"{settings.name.removesuffix('-cpu')}.safetensors"
    stated, config = read_stated(path), getattr(settings, settings.model)
    same = stated is not None and stated.model == settings.model and stated.config(type(config)()) == config
    return path if same else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=1500.0)
    parser.add_argument("--scenes", type=int, default=64, help="held-out procedural scenes to score")
    parser.add_argument("--posed", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[])
    arguments = parser.parse_args()
    words = fitted(arguments.config, arguments.folder, arguments.seconds, arguments.set)

    def report(_: str, share: float, message: str) -> None:
        print(f"{100 * share:5.1f} %  {message}", flush=True)

    folder, outcome = run_training(arguments.config, arguments.folder, words, report)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"{outcome.progress.step} steps, {outcome.progress.seconds:.0f} s on {device}")
    if outcome.weights is None:
        raise InputError(str(folder), "no checkpoint was written", "give it more seconds")
    scores = evaluate_run(
        arguments.config, outcome.weights, words, scenes=arguments.scenes, posed=arguments.posed,
        output=folder / "scores.json",
    )  # fmt: skip
    for name, row in scores.items():
        print(name)
        print(table(row))
    (folder / "machine.json").write_text(json.dumps({"device": device, "torch": torch.__version__}, indent=1))


if __name__ == "__main__":
    main()
