"""Score trained weights beside what ships, what knows nothing and structure from motion; let them ship where better.

    python benchmarks/ship.py mini-geometry runs/mini/checkpoints/step-00004000 --real fox/ examples/desk/
        [--scenes 256] [--history "what was learned before, and where"] [--write]

Scores held-out procedural scenes and, of each real one, four views from its middle (of a longer sequence every n-th, so
that it counts 25 pictures), at the size the model learned at; structure from motion sees the same four views at up to
960 pixels. A model of splats (mini-splat) is scored as `ship_splats.py` says: its real scenes are reconstructed ones,
and it must be better than mini-geometry's depth lifted by rules. Writes benchmarks/shipped.json. With --write, weights
that are no worse than those that ship, on the means of both kinds of scenes, go to scenetx/models/shipped/ (bfloat16)
with a card beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ship_splats import EXPLAINED, middle, real_views, splat_markdown, splat_rows

from scenetx.core import InputError
from scenetx.core.atomic import write_text
from scenetx.data.datasets import FrameScene, open_posed
from scenetx.data.sample import Sample
from scenetx.geometry.sfm import SfmPicture, SfmSettings, run_sfm
from scenetx.measure.shape import pose_errors
from scenetx.models.own import SHIPPED, Stated, open_own, read_stated, write_own
from scenetx.models.weights import read_weights
from scenetx.pipeline.stereo import NAME as SPLATS
from scenetx.train.evaluate import THRESHOLDS, held_out, score
from scenetx.train.settings import TrainSettings

HERE = Path(__file__).parent
VIEWS = 4
SFM_SIDE = 960
EXPLAINS = (
    "Procedural scenes are held out; of each picture set four views. Higher AUC and PSNR, lower AbsRel are better.",
    "Cameras that do not turn, one depth for all pixels and the nearest view know nothing: where a model is no",
    "better than they are it should not be used. Structure from motion sees the same four views at up to",
    f"{SFM_SIDE} pixels.",
)
Scores = dict[str, float]


def real_sample(path: Path) -> Sample:
    """Views from the middle of a posed folder, with depth where there is some."""
    opened = open_posed(path).scenes[0]
    if isinstance(opened, FrameScene):
        frames = [
            replace(frame, depth_path=depth) if frame.depth_path is None and depth.is_file() else frame
            for frame in opened.frames
            for depth in [path / "depth" / f"{Path(frame.name).stem}.png"]
        ]
        opened = FrameScene(opened.name, tuple(frames))
    return replace(opened.sample(middle(len(opened), VIEWS)), name=path.name)


def sfm_scores(sample: Sample) -> Scores:
    """AUC of structure from motion on the views; a pair with an unregistered view is one that is all wrong."""
    shrink = min(1.0, SFM_SIDE / max(sample.rgb.shape[1:3]))
    with tempfile.TemporaryDirectory() as scratch:
        pictures = []
        for k, picture in enumerate(sample.rgb.numpy()):
            size = (round(picture.shape[1] * shrink), round(picture.shape[0] * shrink))
            Image.fromarray(picture).resize(size, Image.Resampling.BOX).save(Path(scratch) / f"{k}.png")
            pictures.append(SfmPicture(str(k), Path(scratch) / f"{k}.png", "one"))
        try:
            found = run_sfm(pictures, Path(scratch) / "sfm", SfmSettings()).cameras
        except InputError:
            return {f"sfm_auc{t}": 0.0 for t in THRESHOLDS}
    names = sorted(found, key=int)
    true = sample.world_from_cam.double()[[int(name) for name in names]]
    errors = pose_errors(true, torch.stack([found[name].world_from_cam for name in names]).double())
    share = len(names) * (len(names) - 1) / (len(sample) * (len(sample) - 1))
    return {f"sfm_auc{t}": 100 * share * errors.auc(THRESHOLDS)[float(t)] for t in THRESHOLDS}


def scores_of(file: Path, stated: Stated, difficulty: float, count: int, real: Mapping[str, Any]) -> dict[str, Scores]:
    """By scene, at the size the weights learned at; "procedural" is the mean of ``count`` held-out ones.

    real: samples; of splats, scenes.
    """
    if stated.size is None:
        raise InputError(str(file), "does not say the size it learned at", "give a checkpoint of a training run")
    if stated.model == SPLATS:
        return splat_rows(file, max(stated.size), difficulty, count, real)
    (height, width), plain = stated.size, TrainSettings(model=stated.model)
    views = VIEWS if plain.task == "geometry" else VIEWS // 2
    procedural = replace(plain.data.procedural, difficulty=difficulty)
    data = replace(plain.data, height=height, width=width, context=views, procedural=procedural)
    settings, model = replace(plain, data=data), open_own(file, stated)
    out = {"procedural": score(model, held_out(settings, count), views, data.targets)}
    for name, sample in real.items():
        out[name] = score(model, [sample.fitted(height, width)], views, VIEWS - views)
    return out


def means(rows: Mapping[str, Scores]) -> dict[str, Scores]:
    """Of procedural and of real scenes: what decides whether weights ship."""
    real = [row for name, row in rows.items() if name != "procedural"]
    names = {name for row in real for name in row}
    mean = {name: float(np.mean([row[name] for row in real if name in row])) for name in names}
    return {"procedural": rows["procedural"], "real": mean}


def no_worse(new: Mapping[str, Scores], old: Mapping[str, Scores]) -> bool:
    """On both kinds of scenes, in what the model is for: poses and depth, or painted pictures."""
    better = True
    for kind in ("procedural", "real"):
        for name, sign in (("auc30", 1), ("absrel", -1), ("psnr", 1)):
            if name in new[kind] and name in old[kind]:
                better &= sign * new[kind][name] >= sign * old[kind][name]
    return better


def worth_it(row: Scores) -> bool:
    """Splats must be better than those of what ships already, on the scenes that both learned from."""
    return "geometry_psnr" not in row or row["psnr"] > row["geometry_psnr"]


def markdown(rows: Mapping[str, Scores]) -> str:
    """The scores as the card's table; what a scene has no truth for is left empty."""
    if "swept_psnr" in rows["procedural"]:
        return splat_markdown(rows)
    if "psnr" in rows["procedural"]:
        head = ["scene", "PSNR", "nearest view", "warped by a plane", "mean colour"]
        keys = [("psnr", 2), ("nearest_psnr", 2), ("warped_psnr", 2), ("mean_psnr", 2)]
    else:
        head = ["scene", "AUC@5 / 10 / 30", "do not turn", "structure from motion", "AbsRel", "one depth"]
        keys = [("auc", 1), ("still_auc", 1), ("sfm_auc", 1), ("absrel", 3), ("flat_absrel", 3)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [name]
        for key, digits in keys:
            parts = [f"{key}{t}" for t in THRESHOLDS] if key.endswith("auc") else [key]
            cells.append(" / ".join(f"{row[part]:.{digits}f}" for part in parts if part in row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hardware() -> str:
    """Where this runs: training is taken to have run on the same machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"a machine of {os.cpu_count()} cores, {models[0].split(':')[1].strip() if models else 'CPU'}"


def verdict(rows: Mapping[str, Scores]) -> str:
    """On how many picture sets the weights know more than nothing."""
    key, trivial = ("psnr", "nearest_psnr") if "psnr" in rows["procedural"] else ("auc30", "still_auc30")
    real = [row for name, row in rows.items() if name != "procedural"]
    better = sum(row[key] > row[trivial] for row in real)
    than = "the nearest view (PSNR)" if key == "psnr" else "cameras that do not turn (AUC@30)"
    return f"**Better than {than} on {better} of {len(real)} picture sets.**"


def card(name: str, state: Mapping[str, dict], rows: Mapping[str, Scores], history: str, weights: int) -> str:
    """What a person should know before using the weights."""
    settings, progress = state["settings"], state["progress"]
    data, optim = settings["data"], settings["optim"]
    lines = [
        f"# {name}",
        "",
        f"{weights / 1e6:.1f} million weights, bfloat16, Apache-2.0 like the package. Trained on nothing but this",
        f"package's own rendered scenes, {data['height']}x{data['width']}, of difficulty",
        f"{data['procedural']['difficulty']}; no photo was seen.",
        "",
        f"- Last stage: {progress['step']} steps of {settings['batch']} scenes, learning rate {optim['lr']},",
        f"  {progress['seconds'] / 60:.0f} minutes on {hardware()}.",
        *([f"- {history}"] if history else []),
        "- Curves: `benchmarks/train/`; commands and what was tried: `benchmarks/README.md`.",
        "",
        verdict(rows),
        "",
        *(EXPLAINED if settings["model"] == SPLATS else EXPLAINS),
        "",
        markdown(rows),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--real", nargs="*", type=Path, default=[])
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--history", default="")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "shipped.json")
    arguments = parser.parse_args()
    state = json.loads((arguments.checkpoint / "state.json").read_text())
    file = arguments.checkpoint / "average.safetensors"
    stated = read_stated(file)
    if stated is None:
        raise InputError(str(file), "does not say what it holds", "give a checkpoint's folder")
    level = float(state["settings"]["data"]["procedural"]["difficulty"])
    splats = stated.model == SPLATS and stated.size is not None
    real = {path.name: real_views(path, max(stated.size)) if splats else real_sample(path) for path in arguments.real}
    rows = scores_of(file, stated, level, arguments.scenes, real)
    if TrainSettings(model=stated.model).task == "geometry":
        for name, sample in real.items():
            rows[name] |= sfm_scores(sample)
    ships = SHIPPED / f"{arguments.name}.safetensors"
    was = read_stated(ships)
    old = None if was is None else scores_of(ships, was, level, arguments.scenes, real)
    print(markdown(rows))
    if old is not None:
        print("what ships:", markdown(old), sep="\n")
    good = (old is None or no_worse(means(rows), means(old))) and worth_it(rows["procedural"])
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    kept[arguments.name] = {"candidate": rows, "ships": old, "no_worse": good, "cores": os.cpu_count()}
    write_text(arguments.out, json.dumps(kept, indent=1) + "\n")
    print("no worse than what ships" if good else "worse than what ships, which stays")
    if arguments.write and good:
        tensors = {key: value.bfloat16() for key, value in read_weights(file).items()}
        write_own(ships, tensors, replace(stated, name=arguments.name))
        count = sum(value.numel() for value in tensors.values())
        write_text(ships.with_suffix(".md"), card(arguments.name, state, rows, arguments.history, count))


if __name__ == "__main__":
    main()
