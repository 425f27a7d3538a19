"""From a splat file on disk to Gaussians in memory: `python benchmarks/splat_files.py --splats 200000 --degree 3`.

Splats are random, which packs worse and so reads slower than any scene's. Seconds of the best of a few reads after one
to warm up, on the clock and of the processor. SOG's palette has ``--entries`` vectors (finding more takes minutes).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from scenetx.core import Gaussians
from scenetx.io.sog import write_sog
from scenetx.io.splat_formats import read_gaussians, write_gaussians

NAMES = ("splats.ply", "splats.compressed.ply", "splats.spz", "splats.sog", "splats.splat", "splats.glb")


def random_splats(count: int, degree: int) -> Gaussians:
    chance = torch.Generator().manual_seed(0)
    normal = torch.randn(count, 11, generator=chance)
    sh = 0.2 * torch.randn(count, (degree + 1) ** 2, 3, generator=chance)
    return Gaussians(
        normal[:, :3], normal[:, 3:7], (0.5 * normal[:, 7:10] - 5).exp(), (2 * normal[:, 10]).sigmoid(), sh
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=200_000)
    parser.add_argument("--degree", type=int, default=3, choices=[0, 1, 2, 3])
    parser.add_argument("--entries", type=int, default=1024)
    parser.add_argument("--names", nargs="+", default=list(NAMES))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    gaussians = random_splats(options.splats, options.degree)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            path = Path(folder) / name
            if name.endswith(".sog"):
                write_sog(gaussians, path, entries=options.entries)
            else:
                write_gaussians(gaussians, path)
            clocks, works = [], []
            for _ in range(options.times + 1):
                clock, work = time.perf_counter(), time.process_time()
                found = read_gaussians(path)
                clocks.append(time.perf_counter() - clock)
                works.append(time.process_time() - work)
            row = {"file": name, "splats": len(found), "bytes": path.stat().st_size}
            row |= {"seconds": round(min(clocks[1:]), 3), "cpu_seconds": round(min(works[1:]), 3)}
            rows.append(row)
            print(row, flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if options.out is not None:
        options.out.write_text(json.dumps({**machine, "degree": options.degree, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
