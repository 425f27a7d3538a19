"""Scene students: map size, build seconds and accuracy on pictures they have not seen.

    python benchmarks/student.py fox-scene/ desk-scene/    # reconstructed; examined on their held-out views
    python benchmarks/student.py fox-scene/ --steps 600 --side 240

Errors are against the scene's own cameras: of the centre in the scene's unit and as a share of the typical depth, and
of the rotation in degrees, medians over the localised pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch

from scenetx.io.scene_dir import load_scene
from scenetx.live.student import StudentShape
from scenetx.live.student_train import StudentSettings, train_student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=StudentSettings().steps)
    parser.add_argument("--side", type=int, default=StudentShape().side)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = StudentSettings(StudentShape(side=arguments.side), steps=arguments.steps)
    rows = []
    for folder in arguments.scenes:
        scene = load_scene(folder)
        student = train_student(scene, settings, lambda line, share: print(f"\r{share:4.0%} {line}   ", end=""))
        view = next(iter(scene.held_out or scene.registered))
        assert view.camera is not None
        start = time.perf_counter()
        for _ in range(10):
            student.locate(view.image, view.camera.K[0], None)
        row = {"scene": folder.name, **asdict(student.report), "locate_seconds": (time.perf_counter() - start) / 10}
        rows.append(row)
        print(f"\r{row}")
    settings_said = {"steps": arguments.steps, "side": arguments.side, "threads": arguments.threads}
    arguments.output.write_text(json.dumps({"settings": settings_said, "rows": rows}, indent=1) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
