"""instant, refined and fitted splats side by side, of finished scenes or of procedural ones that no model learned from.

    python benchmarks/splat_ways.py SCENE ... [--depth sweep mini-splat] [--ways refined fitted equal]
    python benchmarks/splat_ways.py --procedural 8 --views 16 --side 64 --every 4 --depth sweep mini-splat

Each way starts anew from the scene's pictures, cameras and points (its splats and their depth are not looked at); times
are those of the splats alone, on the machine named in the result. ``refined`` tells of instant splats too, for each
source of depth: plane-sweep stereo, or a model (a name or a file). ``equal`` is fitting from the sparse points again in
as many steps as take the time that refining (of the last source named) took. Procedural scenes have exact cameras and
points, and every n-th view held out; one more is made first and not counted, so that nothing is compiled while timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from procedural_scenes import procedural_scene

from scenetx.pipeline.reconstruct import reconstruct, settings_for

SEEDS = 5000  # of the first procedural scene: below those that training draws from
LEAST = 20  # steps of ``equal``
Row = dict[str, Any]


def made(scene: Path, way: str, depth: str, words: Sequence[str], quality: str) -> list[Row]:
    """What reconstruct says of a way, and of the one before it; in a folder of its own."""
    model = [] if depth == "sweep" or way == "fitted" else [f"model={depth}"]
    settings = settings_for(quality, overrides=[f"splats={way}", "preview=false", *words, *model])
    with tempfile.TemporaryDirectory() as folder:
        scene_of = reconstruct(scene, Path(folder) / "out", settings=settings, again=True)
    steps = {stage.name: stage.settings for stage in scene_of.history}.get("splats", {}).get("steps", 0)
    return [{**row, "steps": steps} for row in scene_of.metrics["splats"]]


def compared(scene: Path, options: argparse.Namespace) -> list[Row]:
    """The rows of one scene."""
    out: list[Row] = []
    for depth in options.depth:
        for way in ("instant", "refined"):
            if way in options.ways:
                out += [{**row, "depth": depth} for row in made(scene, way, depth, options.set, options.quality)]
    if "fitted" in options.ways:
        out += made(scene, "fitted", "", options.set, options.quality)
    if {"refined", "fitted", "equal"} <= set(options.ways):
        steps = max(LEAST, round(out[-1]["steps"] * refined_seconds(out) / out[-1]["seconds"]))
        short = made(scene, "fitted", "", [*options.set, f"fit.steps={steps}"], options.quality)
        out += [{**row, "by": "equal"} for row in short]
    # `refined` brings its start along: of two alike the later one stays.
    unique = {(row["by"], row.get("depth")): row for row in out}
    return [{"scene": scene.name, **row} for row in unique.values()]


def refined_seconds(rows: Sequence[Row]) -> float:
    """Of the last source of depth named."""
    return [float(row["seconds"]) for row in rows if row["by"] == "refined"][-1]


def scenes_of(options: argparse.Namespace, folder: Path) -> Iterator[Path]:
    """The folders to compare; procedural ones are written as they are needed, the first to be forgotten."""
    yield from options.scenes
    held = range(options.every // 2, options.views, options.every)
    for number in range(options.procedural + (options.procedural > 0)):
        seed = options.seed + number - 1
        yield procedural_scene(seed, options.views, options.side, held).save(folder / f"procedural-{seed}")


def means(rows: Sequence[Row]) -> list[Row]:
    """Of every way over the scenes that have it."""
    out = []
    for by, depth in dict.fromkeys((row["by"], row.get("depth")) for row in rows):
        some = [row for row in rows if (row["by"], row.get("depth")) == (by, depth)]
        told = [key for key in ("seconds", "psnr") if all(row[key] is not None for row in some)]
        mean = {key: round(sum(row[key] for row in some) / len(some), 3) for key in told}
        out.append({"by": by, "depth": depth, "scenes": len(some), **mean})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path)
    parser.add_argument("--quality", default="draft", choices=["draft", "standard", "high"])
    parser.add_argument("--ways", nargs="+", default=["instant", "refined", "fitted"])
    parser.add_argument("--depth", nargs="+", default=["sweep"], help="sweep, or a model of splats: its name or file")
    parser.add_argument("--procedural", type=int, default=0, help="so many procedural scenes too")
    parser.add_argument("--seed", type=int, default=SEEDS, help="of the first procedural scene")
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, for example fit.steps=500")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for scene in scenes_of(options, Path(folder)):
            found = compared(scene, options)
            if scene.name != f"procedural-{options.seed - 1}":
                rows += found
            for row in found:
                psnr = "not measured" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
                who = f"{row['by']} {row.get('depth') or ''}"
                print(f"{scene.name:<24} {who:<22} {row['seconds']:8.2f} s  {psnr}", flush=True)
    for row in means(rows):
        print(row)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    machine["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
    if options.out is not None:
        kept = {**machine, "quality": options.quality, "settings": options.set, "means": means(rows), "rows": rows}
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
