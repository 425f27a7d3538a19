"""Structure from motion on scenes with known cameras: registered, rotation and centre errors, seconds.

    python benchmarks/sfm.py --data ../shared/data/dev kermit fern temple

A scene is a folder with ``images/`` and ``cameras.json`` (per picture: c2w with OpenCV axes, fx, fy, cx, cy). Results
are added to benchmarks/sfm.json.
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
from PIL import Image, ImageOps

from scenetx.geometry.align import align_cameras
from scenetx.geometry.sfm import SfmPicture, SfmSettings, run_sfm
from scenetx.measure.shape import pose_errors

HERE = Path(__file__).parent


def upright(source: Path, folder: Path, name: str) -> Path:
    """The picture turned as EXIF says; a mask beside it where it is transparent."""
    with Image.open(source) as opened:
        picture = ImageOps.exif_transpose(opened)
        target = folder / f"{name}.png"
        alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
        if alpha is not None and alpha.getextrema()[0] < 255:
            alpha.point(lambda value: 255 * (value > 127)).save(folder / f"{name}.mask.png")
        picture.convert("RGB").save(target, compress_level=1)
    return target


def run(scene: Path, settings: SfmSettings, folder: Path, masks: bool) -> dict[str, object]:
    reference = json.loads((scene / "cameras.json").read_text())["images"]
    files = sorted(path for path in (scene / "images").iterdir() if path.suffix.lower() in (".jpg", ".png"))
    pictures = []
    for index, path in enumerate(files):
        target = upright(path, folder, f"{index:05d}")
        mask = folder / f"{index:05d}.mask.png"
        pictures.append(SfmPicture(path.name, target, "one", None, mask if masks and mask.is_file() else None))
    start = time.perf_counter()
    result = run_sfm(pictures, folder / "sfm", settings)
    seconds = time.perf_counter() - start
    names = [name for name in result.cameras if (reference.get(name) or {}).get("c2w") is not None]
    true = torch.tensor([reference[name]["c2w"] for name in names], dtype=torch.float64)
    found = torch.stack([result.cameras[name].world_from_cam for name in names])
    errors = pose_errors(true, found, reference_from_estimate=align_cameras(true, found))
    camera = result.cameras[names[0]]
    return {
        "registered": len(result.cameras),
        "pictures": len(pictures),
        "compared": len(names),
        "rotation_deg_median": round(float(errors.rotation_deg.median()), 4),
        "rotation_deg_max": round(float(errors.rotation_deg.max()), 4),
        "relative_rotation_deg_median": round(float(errors.relative_rotation_deg.median()), 4),
        "center_percent_median": round(100 * float(errors.center.median()), 4),
        "center_percent_max": round(100 * float(errors.center.max()), 4),
        "auc": {str(key): round(value, 4) for key, value in errors.auc().items()},
        "points": len(result.points),
        "seconds": round(seconds, 1),
        "focal_cx_cy": [round(float(value), 2) for value in (camera.K[0, 0], camera.K[0, 2], camera.K[1, 2])],
        "distortion": [round(value, 5) for value in camera.distortion],
        "notes": list(result.notes),
        "unregistered": dict(result.unregistered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data/dev")
    parser.add_argument("--mapper", default="auto")
    parser.add_argument("--ordered", action="store_true")
    parser.add_argument("--masks", action="store_true", help="use the pictures' alpha")
    parser.add_argument("--tag", default="", help="added to the scene's name in the results")
    args = parser.parse_args()
    settings = SfmSettings(mapper=args.mapper, ordered=args.ordered)
    out = HERE / "sfm.json"
    for name in args.scenes:
        with tempfile.TemporaryDirectory() as folder:
            row = run(args.data / name, settings, Path(folder), args.masks)
        row["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
        results = json.loads(out.read_text()) if out.is_file() else {}
        results[name + args.tag] = row
        out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(name + args.tag, json.dumps({key: value for key, value in row.items() if key != "machine"}), flush=True)


if __name__ == "__main__":
    main()
