"""Predicted cameras put to the test: refined by bundle adjustment, and judged by the matches (pycolmap)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float

from scenetx.geometry import mapping
from scenetx.geometry.sfm_job import JobPicture, SfmSettings

NEAR = 2.0
"""Pixels from the epipolar line within which a match is explained."""
MOST = 400
"""Matches of a pair that are looked at: a pair of like pictures must not outvote ten others."""
ROUNDS = (0.1, 0.05, 0.025, 0.012, 0.006, 0.004)
"""Reprojection error allowed in each round of triangulation and adjustment, in longer sides of the picture: predicted
cameras are near (a few degrees), not right."""
FEWEST = 15
"""A picture that sees fewer points after refinement was not placed by it."""
BETTER = 0.005
"""By how much more an answer must explain to be taken over the one before it in the order of trust."""


@dataclass(frozen=True)
class Matches:
    """Verified matches by pair of picture names: pixels in the first, pixels in the second."""

    pairs: Mapping[tuple[str, str], tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]]

    @property
    def total(self) -> int:
        return sum(len(a) for a, _ in self.pairs.values())

    @staticmethod
    def read(database: Path, names: Sequence[str]) -> Matches:
        """Evenly chosen inliers of every verified pair."""
        handle = pycolmap.Database.open(database)
        try:
            points = {
                index + 1: np.asarray(handle.read_keypoints(index + 1), dtype=np.float64)[:, :2]
                for index in range(len(names))
                if handle.exists_keypoints(index + 1)
            }
            ids, geometries = handle.read_two_view_geometries()
            pairs = {}
            for pair_id, geometry in zip(ids, geometries, strict=True):
                a, b = pycolmap.pair_id_to_image_pair(pair_id)
                inliers = np.asarray(geometry.inlier_matches)
                if len(inliers) and a in points and b in points:
                    chosen = inliers[np.linspace(0, len(inliers) - 1, min(MOST, len(inliers))).round().astype(int)]
                    pairs[names[a - 1], names[b - 1]] = (points[a][chosen[:, 0]], points[b][chosen[:, 1]])
        finally:
            handle.close()
        return Matches(pairs)


@dataclass(frozen=True)
class Try:
    """One answer and the share of matches it explains."""

    how: str
    model: pycolmap.Reconstruction
    share: float


def guessed_model(database: Path, pictures: Sequence[JobPicture]) -> pycolmap.Reconstruction:
    """Predicted poses, and for each camera the median of its pictures' predicted focal lengths; no points."""
    model = mapping.known_model(database, pictures)
    focals: dict[int, list[float]] = defaultdict(list)
    for image in model.images.values():
        guess = pictures[image.image_id - 1].guess
        assert guess is not None
        focals[image.camera_id].append((guess[0] + guess[1]) / 2)
    for camera_id, values in focals.items():
        camera = model.camera(camera_id)
        camera.params = [float(np.median(values)), camera.width / 2, camera.height / 2, 0.0]
    return model


def refine_guess(
    guess: pycolmap.Reconstruction,
    database: Path,
    images: Path,
    folder: Path,
    settings: SfmSettings,
    report: Callable[[float], None],
) -> pycolmap.Reconstruction | None:
    """Triangulate and adjust with an ever smaller tolerance; then place anew who was not held. None: nothing held."""
    model = pycolmap.Reconstruction(guess)
    side = max(max(camera.width, camera.height) for camera in model.cameras.values())
    for number, share in enumerate(ROUNDS):
        tolerance = max(4.0, share * side)
        report(number / (len(ROUNDS) + 1))
        mapping.empty_folder(folder / "points")
        model = pycolmap.triangulate_points(
            model, database, images, folder / "points", True, _loose(settings, tolerance, tolerance / side)
        )
        if model.num_points3D() < 8:
            return None
        # First the poses alone: a wrong focal length would otherwise take up what the poses got wrong.
        fixed = frozenset(model.cameras) if number < 2 else frozenset()
        mapping.adjust(model, settings, fixed, principal_point=False)
        pycolmap.ObservationManager(model).filter_all_points3D(tolerance, 0.5)
    weak = [image.frame_id for image in _registered(model) if image.num_points3D < FEWEST]
    for frame_id in weak:
        model.deregister_frame(frame_id)
    if model.num_reg_images() < 2:
        return None
    if weak:
        start = folder / "start"
        mapping.empty_folder(start)
        model.write(start)
        again = mapping.map_incremental(
            database, images, folder / "again", settings, lambda share: report(0.8 + 0.2 * share), relaxed=True,
            start=start,
        )  # fmt: skip
        if again is not None and again.model.num_reg_images() >= model.num_reg_images():
            model = again.model
    return model


def _loose(settings: SfmSettings, tolerance: float, angle: float) -> pycolmap.IncrementalPipelineOptions:
    """Triangulation that believes cameras to ``tolerance`` pixels, ``angle`` radians."""
    options = pycolmap.IncrementalPipelineOptions(num_threads=settings.num_threads, random_seed=settings.seed)
    triangulation = options.triangulation
    triangulation.create_max_angle_error = triangulation.continue_max_angle_error = max(float(np.rad2deg(angle)), 2.0)
    triangulation.complete_max_reproj_error = triangulation.merge_max_reproj_error = max(tolerance, 4.0)
    triangulation.ignore_two_view_tracks = False
    options.mapper.filter_max_reproj_error = tolerance
    return options


def _registered(model: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    return [model.image(image_id) for image_id in model.reg_image_ids()]


def explained(model: pycolmap.Reconstruction, matches: Matches) -> float:
    """Share of matches within `NEAR` pixels (Sampson distance) of what the model's cameras say of the pair.

    Cameras in one place explain nothing, nor does a pair with a picture that has no camera.
    """
    if not matches.total:
        return 0.0
    by_name = {image.name: image for image in _registered(model)}
    centers = np.array([image.projection_center() for image in by_name.values()]).reshape(-1, 3)
    extent = float(np.linalg.norm(centers - centers.mean(0), axis=1).max()) if len(centers) else 0.0
    good = 0
    for (a, b), (in_a, in_b) in matches.pairs.items():
        if a not in by_name or b not in by_name:
            continue
        first, second = by_name[a], by_name[b]
        relative = second.cam_from_world() * first.cam_from_world().inverse()
        step = np.asarray(relative.translation)
        if np.linalg.norm(step) <= 1e-6 * extent:
            continue
        cameras = model.camera(first.camera_id), model.camera(second.camera_id)
        errors = sampson(relative.rotation.matrix(), step, _rays(cameras[0], in_a), _rays(cameras[1], in_b))
        focal = float(np.mean([camera.mean_focal_length() for camera in cameras]))
        good += int((errors * focal < NEAR).sum())
    return good / matches.total


def _rays(camera: pycolmap.Camera, pixels: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
    return np.asarray(camera.cam_from_img(pixels), dtype=np.float64)


def sampson(
    rotation: Float[np.ndarray, "3 3"],
    translation: Float[np.ndarray, "3"],
    first: Float[np.ndarray, "m 2"],
    second: Float[np.ndarray, "m 2"],
) -> Float[np.ndarray, "m"]:
    """First-order distance of matches from a relative pose, in the image plane at focal length 1 (Sampson, 1982)."""
    x, y, z = translation / np.linalg.norm(translation)
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    one = np.ones((len(first), 1))
    a, b = np.hstack([first, one]), np.hstack([second, one])
    line_b, line_a = a @ essential.T, b @ essential
    spread = (line_b[:, :2] ** 2).sum(1) + (line_a[:, :2] ** 2).sum(1)
    return np.abs((b * line_b).sum(1)) / np.sqrt(np.maximum(spread, 1e-24))


def choose(tried: Sequence[Try]) -> Try:
    """The answer that explains most; among near equals the refined prediction, then structure from motion."""
    trust = {"refined prediction": 0, "structure from motion": 1, "prediction": 2}
    best = max(one.share for one in tried)
    return min((one for one in tried if one.share >= best - BETTER), key=lambda one: trust[one.how])


def verdict(tried: Sequence[Try], best: Try, matches: Matches) -> str:
    """What was compared, in words."""
    if not matches.total:
        return "no matches between pictures: the predicted cameras could not be checked"
    shares = ", ".join(f"{one.how} {100 * one.share:.1f}%" for one in tried)
    return f"matches explained within {NEAR:g} px: {shares}; kept: {best.how}"
