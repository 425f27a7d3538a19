"""A mesh of a scene's splats against true depth: how much of it is clean, how near it is to what is there.

python benchmarks/mesh.py SCENE --reference REFERENCE --set voxel=0.01 --set votes=0,edge=1e9 [--out FILE]

Each ``--set`` is one row (FuseSettings; none = the defaults). Accuracy, completeness and F-score are those of points
drawn evenly from the surface (`scenetx.pipeline.reference`, units of the reference, F-score at 1 % of its extent).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
import trimesh

from scenetx.core import Points, Scene
from scenetx.geometry.fuse import FuseSettings, Mesh
from scenetx.io.scene_dir import load_scene
from scenetx.pipeline.mesh import scene_mesh
from scenetx.pipeline.reference import against_reference

SAMPLES = 200_000
SHOWN = ("accuracy", "completeness", "fscore")


def main() -> None:
    arguments = _arguments()
    scene = load_scene(arguments.scene)
    rows = []
    for text in arguments.set or [""]:
        settings = _settings(text)
        started = time.perf_counter()
        mesh, report = scene_mesh(scene, settings)
        row: dict[str, Any] = {"scene": arguments.scene.name, "settings": text}
        row |= dataclasses.asdict(report) | {"seconds": round(time.perf_counter() - started, 1)}
        if arguments.reference:
            row |= _errors(scene, mesh, arguments.reference)
        rows.append(row)
        print(row, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"rows": rows}, indent=1))


def _settings(text: str) -> FuseSettings:
    given = dict(part.split("=", 1) for part in text.split(",") if part)
    return FuseSettings(**{name: _value(value) for name, value in given.items()})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _errors(scene: Scene, mesh: Mesh, reference: Path) -> dict[str, float]:
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    drawn, _ = trimesh.sample.sample_surface(surface, SAMPLES, seed=0)
    points = torch.from_numpy(drawn).float()
    measured = dataclasses.replace(scene, points=Points(points, torch.zeros(len(points), 3, dtype=torch.uint8)))
    found = against_reference(measured, reference)
    return {name: found[name] for name in SHOWN if name in found}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--set", action="append")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
