"""instant, refined and fitted splats of finished scenes, side by side: `python benchmarks/splat_ways.py SCENE ...`.

Each way starts anew from the scene folder's pictures, cameras and points (its splats and their depth are not looked
at); times are those of the splats alone, on the machine named in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from scenetx.pipeline.reconstruct import reconstruct, settings_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--quality", default="draft", choices=["draft", "standard", "high"])
    parser.add_argument("--ways", nargs="+", default=["instant", "refined", "fitted"])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, for example fit.steps=500")
    options = parser.parse_args()
    rows = []
    for scene in options.scenes:
        with tempfile.TemporaryDirectory() as folder:
            for way in options.ways:
                chosen = [f"splats={way}", "preview=false", *options.set]
                settings = settings_for(options.quality, overrides=chosen)
                made = reconstruct(scene, Path(folder) / "out", settings=settings, again=True)
            for row in made.metrics["splats"]:
                rows.append({"scene": scene.name, **row})
                psnr = "not measured" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
                print(f"{scene.name:<24} {row['by']:<8} {row['seconds']:8.1f} s  {psnr}", flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if options.out is not None:
        options.out.write_text(json.dumps({**machine, "quality": options.quality, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
