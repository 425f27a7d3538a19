"""A short training run, as torchrun starts it: ``train_job.py FOLDER SHARDS MODEL STRATEGY``."""

from __future__ import annotations

import sys
from pathlib import Path

from scenetx.data.procedural import ProceduralConfig
from scenetx.models.da3 import Da3Config
from scenetx.models.svsm import SvsmConfig
from scenetx.train.loop import train
from scenetx.train.settings import DataSettings, OptimSettings, TrainSettings


def settings(model: str, strategy: str, shards: Path) -> TrainSettings:
    """Two scenes a step, three steps, of shards of 28 x 28 pictures."""
    procedural = ProceduralConfig(difficulty=0.1, blur=1, shadows=False)
    small = {"dim": 32, "depth": 4, "heads": 2, "alternate_from": 1, "out_layers": (0, 1, 2, 3)}
    return TrainSettings(
        model=model,
        svsm=SvsmConfig(dim=32, heads=2, patch=7, encoder_layers=2, decoder_layers=2),
        da3=Da3Config(**small, features=8, widths=(8, 8, 8, 8)),
        data=DataSettings(
            "shards", (shards,), height=28, width=28, context=2, targets=2, procedural=procedural
        ),
        optim=OptimSettings(lr=1e-3, warmup=2, steps=3, ema=0.9),
        batch=2,
        accelerator="cpu",
        strategy=strategy,
        save_every=2,
        log_every=1,
    )  # fmt: skip


if __name__ == "__main__":
    folder, shards, model, strategy = sys.argv[1:]
    train(settings(model, strategy, Path(shards)), folder)
