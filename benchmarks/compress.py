"""Rate and distortion of packed splats: `python benchmarks/compress.py SCENE [SCENE ...] --out compress.json`.

For every finished scene folder and every target: the table of `scenetx compress`, with the machine it ran on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from scenetx.fit.compress import CompressSettings
from scenetx.pipeline.compress import CompressPlan, compress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--targets", nargs="+", type=float, default=[5, 10, 15, 25])
    parser.add_argument("--steps", type=int, default=CompressSettings.steps)
    parser.add_argument("--settle", type=int, default=CompressSettings.settle)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for scene in options.scenes:
        for target in options.targets:
            with tempfile.TemporaryDirectory() as folder:
                fit = CompressSettings(steps=options.steps, settle=options.settle)
                plan = CompressPlan(target=target, formats=("sog", "spz"), fit=fit)
                curve = compress(scene, folder, plan)
            print(f"{scene.name:<24} {target:>5g}x  {curve.line()}", flush=True)
            rows.append({"scene": scene.name, "target": target, **asdict(curve)})
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if options.out is not None:
        options.out.write_text(json.dumps({**machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
