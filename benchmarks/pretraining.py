"""Whether pretraining helps geometry: the same number of steps with and without, on the same scenes.

    scenetx data make scenes64 scenes=4096 processes=2 procedural.height=64 procedural.width=64 procedural.views=8 \\
      procedural.difficulty=0.1 procedural.blur=1 procedural.grain=0.0 start=1048576
    python benchmarks/pretraining.py scenes64 runs/pretraining --before 1000 --after 1000

Each kind learns for ``--before`` steps and geometry for ``--after``; geometry alone is trained for the sum, and its
steps are the dearer ones (they have the dense head), so what is found in favour of pretraining is not owed to compute.
Geometry alone for ``--after`` steps stands beside it. Runs go on from where they were stopped. Writes
FOLDER/pretraining.json: scores on held-out scenes, seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from scenetx.train.checkpoint import start_from
from scenetx.train.evaluate import held_out, score, table
from scenetx.train.loop import train
from scenetx.train.run import settings_of
from scenetx.train.settings import PretrainSettings, TrainSettings
from scenetx.train.tasks import build_model

KINDS = ("completion", "masked_depth", "matching", "cameras")
MASKED = {"completion": 0.9, "masked_depth": 0.8}


def trained(settings: TrainSettings, folder: Path, steps: int) -> tuple[Path, float]:
    """Weights after so many steps, and the seconds they took."""
    outcome = train(replace(settings, optim=replace(settings.optim, steps=steps)), folder)
    assert outcome.weights is not None
    return outcome.weights, outcome.progress.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="mini-geometry-cpu")
    parser.add_argument("--before", type=int, default=1000)
    parser.add_argument("--after", type=int, default=1000)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--set", nargs="*", default=[])
    arguments = parser.parse_args()
    settings = settings_of(arguments.config, [f'data.path=["{arguments.shards}"]', *arguments.set])
    both = arguments.before + arguments.after
    plans: dict[str, TrainSettings] = {}
    seconds: dict[str, float] = {}
    for kind in arguments.kinds:
        first = replace(settings, pretrain=PretrainSettings(kind, MASKED.get(kind, 0.0)))
        weights, seconds[kind] = trained(first, arguments.folder / f"{kind}-first", arguments.before)
        plans[kind] = replace(settings, start_from=weights)
    samples = held_out(settings, arguments.scenes)
    rows = {}
    for name, steps in (
        ("alone", both),
        ("alone, fewer steps", arguments.after),
        *((k, arguments.after) for k in arguments.kinds),
    ):
        weights, spent = trained(plans.get(name, settings), arguments.folder / f"{name}-{steps}", steps)
        model = build_model(settings)
        start_from(weights, model)
        rows[name] = score(model, samples, settings.data.context, 0)
        rows[name] |= {"steps": steps, "seconds": spent + seconds.get(name, 0.0)}
        print(name)
        print(table(rows[name]), flush=True)
    about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "rows": rows}
    (arguments.folder / "pretraining.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
