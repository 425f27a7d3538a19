"""Levels of detail: what merging a scene's splats costs, beside keeping the most important or most significant ones.

    python benchmarks/levels.py SCENE [SCENE ...]

PSNR of four training pictures with a half, a quarter and an eighth of the splats. "important": opacity times surface, a
budget's prefix in the viewer; "significant": what they add to the training views, which has to be rendered.
Writes benchmarks/levels.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from scenetx.core import Gaussians
from scenetx.core.levels import coarser
from scenetx.fit import evaluate_views
from scenetx.fit.compress import significance
from scenetx.io.scene_dir import load_scene
from scenetx.serve.contents import by_importance


def measured(folder: Path) -> list[dict[str, float | str]]:
    scene = load_scene(folder)
    assert scene.gaussians is not None, f"{folder} has no splats"
    gaussians = scene.gaussians[scene.gaussians.finite()]
    views = scene.training[:: max(1, len(scene.training) // 4)][:4]

    def quality(some: Gaussians) -> float:
        return round(evaluate_views(scene, some, views=views).mean_psnr, 2)

    cameras = [view.camera for view in scene.training[:: max(1, len(scene.training) // 16)] if view.camera is not None]
    significant = significance(gaussians, cameras).argsort(descending=True)
    important, full = by_importance(gaussians), quality(gaussians)
    rows: list[dict[str, float | str]] = []
    for share in (2, 4, 8):
        count = len(gaussians) // share
        begun = time.perf_counter()
        merged = coarser(gaussians, count)
        seconds = time.perf_counter() - begun
        row = {"scene": folder.name, "splats": count, "all": full, "merged": quality(merged)}
        row |= {
            "important": quality(gaussians[important[:count]]),
            "significant": quality(gaussians[significant[:count]]),
        }
        rows.append({**row, "seconds": round(seconds, 2)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path)
    rows = [row for scene in parser.parse_args().scenes for row in measured(scene)]
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
