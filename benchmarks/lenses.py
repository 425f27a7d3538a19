"""What the last bundle adjustment may change of a lens, and how right the cameras then are.

    python benchmarks/lenses.py --data ../shared/data/dev fox sceaux kermit

Each scene is reconstructed; then its model is adjusted again with one and with two radial terms and with OPENCV's eight
numbers, the principal point in the middle and free, and every result compared with the reference cameras. ``halves``:
by how much of the picture's longer side the principal points differ that either half of the pictures finds.
``reference``: bundle adjustment of the same matches begun at the reference cameras, lens as found; where it walks away
from them and explains the matches better, the reference is no truer than the result. Added to benchmarks/lenses.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pycolmap
import sfm
import torch

from scenetx.geometry import mapping
from scenetx.geometry.align import align_cameras
from scenetx.geometry.sfm import SfmSettings
from scenetx.geometry.sfm_job import fingerprint
from scenetx.measure.shape import pose_errors

HERE = Path(__file__).parent
LENSES = ("SIMPLE_RADIAL", "RADIAL", "OPENCV")
NONE: frozenset[int] = frozenset()


class Truth:
    """Reference cameras under the names that the pictures have in the model."""

    def __init__(self, scene: Path) -> None:
        images = json.loads((scene / "cameras.json").read_text())["images"]
        self.world_from_cam = {
            f"{fingerprint(name)}.png": np.array(camera["c2w"], dtype=np.float64)
            for name, camera in images.items()
            if camera is not None and camera.get("c2w") is not None
        }

    def errors(self, model: pycolmap.Reconstruction) -> dict[str, float]:
        """Median rotation error in degrees, centre error in percent of the cameras' extent."""
        known = [image for image in map(model.image, model.reg_image_ids()) if image.name in self.world_from_cam]
        true = torch.tensor(np.stack([self.world_from_cam[image.name] for image in known]))
        found = torch.tensor(np.stack([_world_from_cam(image) for image in known]))
        errors = pose_errors(true, found, reference_from_estimate=align_cameras(true, found))
        rotation, centre = float(errors.rotation_deg.median()), 100 * float(errors.center.median())
        return {"rotation_deg": round(rotation, 4), "centre_percent": round(centre, 4)}


def _world_from_cam(image: pycolmap.Image) -> np.ndarray:
    return np.linalg.inv(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))


def as_lens(model: pycolmap.Reconstruction, kind: str) -> pycolmap.Reconstruction:
    """A copy whose lenses have a mean focal length, a centred principal point, the first radial term, and else 0."""
    copy = pycolmap.Reconstruction(model)
    for camera in copy.cameras.values():
        focal, first = camera.mean_focal_length(), camera.params[max(camera.principal_point_idxs()) + 1]
        middle = [camera.width / 2, camera.height / 2]
        params = {
            "SIMPLE_RADIAL": [focal, *middle, first],
            "RADIAL": [focal, *middle, first, 0.0],
            "OPENCV": [focal, focal, *middle, first, 0.0, 0.0, 0.0],
        }
        camera.model = getattr(pycolmap.CameraModelId, kind)
        camera.params = params[kind]
    return copy


def adjusted(model: pycolmap.Reconstruction, truth: Truth, kind: str, centre: bool) -> dict[str, float]:
    """The scene's model with another lens: cost, errors, and how far the halves' principal points are apart."""
    settings, mine = SfmSettings(), as_lens(model, kind)
    cost, _ = mapping.adjust(mine, settings, NONE, principal_point=False)
    row = {}
    if centre:
        cost, _ = mapping.adjust(mine, settings, NONE, principal_point=True)
        apart = mapping.halves_apart(mine, settings, NONE)
        row["halves_percent"] = round(100 * max(apart.values(), default=0.0), 3)
    return {"cost": round(cost, 1), **truth.errors(mine), **row}


def from_reference(
    model: pycolmap.Reconstruction, truth: Truth, folder: Path, settings: SfmSettings
) -> dict[str, object]:
    """Bundle adjustment begun at the reference cameras: where it ends and what it gains."""
    start = pycolmap.Reconstruction(model)
    for camera in start.cameras.values():
        # The lens that the database has, with what was found of it.
        middle = [camera.principal_point_x, camera.principal_point_y]
        params = [camera.mean_focal_length(), *middle, camera.params[max(camera.principal_point_idxs()) + 1]]
        camera.model = pycolmap.CameraModelId.SIMPLE_RADIAL
        camera.params = params
    for image in map(start.image, start.reg_image_ids()):
        if image.name in truth.world_from_cam:
            cam_from_world = np.linalg.inv(truth.world_from_cam[image.name])
            start.frame(image.frame_id).rig_from_world = pycolmap.Rigid3d(cam_from_world[:3])
    for point_id in list(start.points3D):
        start.delete_point3D(point_id)
    # Pictures that are looked at again, more finely, have their matches in a database of its own.
    fine = folder / "database_fine.db"
    database = fine if fine.is_file() else folder / "database.db"
    start = mapping.map_points(start, database, folder / "images", folder / "again", settings)
    start.update_point_3d_errors()
    before = start.compute_mean_reprojection_error()
    mapping.adjust(start, settings, frozenset(start.cameras), principal_point=False)
    after = start.compute_mean_reprojection_error()
    return {"pixels_before": round(before, 3), "pixels_after": round(after, 3), **truth.errors(start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data/dev")
    options = parser.parse_args()
    out = HERE / "lenses.json"
    for name in options.scenes:
        scene, settings = options.data / name, SfmSettings()
        truth = Truth(scene)
        with tempfile.TemporaryDirectory() as scratch:
            found = sfm.run(scene, settings, Path(scratch), masks=True)
            folder = Path(scratch) / "sfm"
            model = pycolmap.Reconstruction(folder / "model")
            rows: dict[str, object] = {"taken": {"notes": found["notes"], **truth.errors(model)}}
            for kind, centre in [*((kind, False) for kind in LENSES[:2]), *((kind, True) for kind in LENSES[1:])]:
                rows[kind + (", principal point" if centre else "")] = adjusted(model, truth, kind, centre)
            rows["reference"] = from_reference(model, truth, folder, settings)
        results = json.loads(out.read_text()) if out.is_file() else {}
        out.write_text(json.dumps({**results, name: rows}, indent=1, sort_keys=True) + "\n")
        for kind, row in rows.items():
            print(f"{name:<16} {kind:<24} {row}", flush=True)


if __name__ == "__main__":
    main()
