"""Reconstruct real scenes end to end and write benchmarks/scenes.json: cameras, held-out PSNR, seconds, memory.

    python benchmarks/scenes.py --root ../shared/data/dev --scenes fox fern --quality draft

Each scene runs in a process of its own through the public command, so that seconds and peak memory are those of a user.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def run(scene: Path, quality: str, overrides: list[str], keep: Path | None) -> dict[str, Any]:
    """Metrics of one reconstruction, with wall seconds; the error text when it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        output = (keep or Path(scratch)) / f"{scene.name}-{quality}"
        source = scene / "images" if (scene / "images").is_dir() else scene / "video.mp4"
        command = [
            sys.executable, "-m", "scenetx", "reconstruct", str(source), *overrides,
            "--output", str(output), "--quality", quality,
        ]  # fmt: skip
        if (scene / "cameras.json").exists():
            command += ["--reference", str(scene / "cameras.json")]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = round(time.monotonic() - start, 1)
        if done.returncode != 0:
            return {"failed": done.stderr.strip().splitlines()[-1:], "wall_seconds": seconds}
        metrics = json.loads((output / "metrics.json").read_text())
        return {**metrics, "wall_seconds": seconds}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as the README's table."""
    rows = [
        "| scene | pictures | registered | rotation, deg | centre, % | PSNR, dB | SSIM | splats | time | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in sorted(results.items()):
        if "failed" in result:
            rows.append(f"| {name} | failed: {' '.join(result['failed'])} |||||||||")
            continue
        truth = result.get("reference", {})
        minutes, seconds = divmod(round(result["wall_seconds"]), 60)
        rows.append(
            f"| {name} | {result['images']} | {result['registered']} "
            f"| {truth.get('rotation_deg_median', '-')} | {truth.get('center_percent_median', '-')} "
            f"| {result.get('psnr', float('nan')):.2f} | {result.get('ssim', float('nan')):.3f} "
            f"| {result.get('gaussians', 0):,} | {minutes}:{seconds:02d} | {result['peak_memory_gib']:.1f} GiB |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--scenes", nargs="+", required=True)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--set", nargs="*", default=[], help="settings as key=value")
    parser.add_argument("--keep", type=Path, help="folder for the scene folders; default: thrown away")
    parser.add_argument("--out", type=Path, default=HERE / "scenes.json")
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.scenes:
        result = run(arguments.root / name, arguments.quality, arguments.set, arguments.keep)
        kept.setdefault(arguments.quality, {})[name] = {**result, "machine": machine()}
        arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(kept[arguments.quality]))


if __name__ == "__main__":
    main()
