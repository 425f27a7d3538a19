"""SIFT features and verified matches in a COLMAP database, resumable picture by picture and pair by pair (pycolmap)."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from scenetx.geometry.pairs import Pair, alike_pairs, all_pairs, in_order, likeness, sequential_pairs
from scenetx.geometry.sfm_job import JobPicture, Pairing, SfmSettings

Report = Callable[[float], None]
FEW = 60
"""So many pictures are matched all with all whatever their order: it takes a minute or two and finds every loop."""
GUIDED = 1500
"""Pairs; with more, matching twice takes longer than all the rest, and so many pictures hold together without."""
SAMPLE = 4
"""Pictures that tell how many features to expect."""
MANY = 24
"""Above so many pictures half the features do: matching costs their square, and tracks are long."""


def link_pictures(pictures: Sequence[JobPicture], folder: Path) -> tuple[Path, Path | None]:
    """Folders with every picture (and mask, as name + .png) under its short name, by link where the disk allows."""
    roots = []
    for kind, files in {
        "images": {picture.key: picture.path for picture in pictures},
        "masks": {f"{picture.key}.png": picture.mask_path for picture in pictures if picture.mask_path},
    }.items():
        root = folder / kind
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for name, source in files.items():
            target = root / name
            try:
                target.symlink_to(Path(source).resolve())
            except OSError:
                shutil.copyfile(source, target)
        roots.append(root if files else None)
    assert roots[0] is not None
    return roots[0], roots[1]


def start_database(path: Path, pictures: Sequence[JobPicture]) -> None:
    """A new database that knows every picture and its (shared) camera; picture i has image id i + 1.

    The lens is SIMPLE_RADIAL: a richer one, free from the first pair on, trades focal length for distortion;
    `mapping.refine` adds what the pictures determine. Without a known focal length, 1.2 times the longer side is the
    first guess, as in COLMAP.
    """
    members: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        key = picture.group if picture.camera is None else f"given {picture.camera}"
        members[key, picture.height, picture.width].append(index)
    path.unlink(missing_ok=True)
    database = pycolmap.Database.open(path)
    try:
        for camera_id, ((_, height, width), indices) in enumerate(members.items(), start=1):
            camera = _first_camera([pictures[i] for i in indices], height, width)
            camera.camera_id = camera_id
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=camera_id)
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig, use_rig_id=True)
            for index in indices:
                image = pycolmap.Image(name=pictures[index].key, camera_id=camera_id, image_id=index + 1)
                database.write_image(image, use_image_id=True)
                frame = pycolmap.Frame(frame_id=index + 1, rig_id=camera_id)
                frame.add_data_id(image.data_id)
                database.write_frame(frame, use_frame_id=True)
    finally:
        database.close()


def _first_camera(pictures: Sequence[JobPicture], height: int, width: int) -> pycolmap.Camera:
    given = pictures[0].camera
    if given is not None:
        return pycolmap.Camera(
            model="OPENCV", width=width, height=height, params=list(given), has_prior_focal_length=True
        )
    focals = [picture.focal for picture in pictures if picture.focal]
    focal = float(np.median(focals)) if focals else 1.2 * max(height, width)
    params = [focal, width / 2, height / 2, 0]
    return pycolmap.Camera(
        model="SIMPLE_RADIAL", width=width, height=height, params=params, has_prior_focal_length=bool(focals)
    )


def carry_features(old: Path, new: Path, names: set[str], *, matches: bool) -> None:
    """Copy the features of the pictures ``names``, and if ``matches`` those between them, to another database."""
    source, target = pycolmap.Database.open(old), pycolmap.Database.open(new)
    try:
        ids = {image.image_id: image.name for image in source.read_all_images() if image.name in names}
        new_ids = {image.name: image.image_id for image in target.read_all_images()}
        for image_id, name in ids.items():
            if source.exists_keypoints(image_id) and source.exists_descriptors(image_id):
                target.write_keypoints(new_ids[name], source.read_keypoints(image_id))
                target.write_descriptors(new_ids[name], source.read_descriptors(image_id))
        for pair_id, found in zip(*source.read_all_matches(), strict=True) if matches else ():
            a, b = pycolmap.pair_id_to_image_pair(pair_id)
            if a in ids and b in ids and source.exists_two_view_geometry(a, b):
                target.write_matches(new_ids[ids[a]], new_ids[ids[b]], found)
                geometry = source.read_two_view_geometry(a, b)
                target.write_two_view_geometry(new_ids[ids[a]], new_ids[ids[b]], geometry)
    finally:
        source.close()
        target.close()


def extract(
    database: Path,
    images: Path,
    masks: Path | None,
    names: Sequence[str],
    settings: SfmSettings,
    report: Report,
    *,
    fine: bool,
) -> None:
    """SIFT of every picture that has none yet. ``fine``: affine shapes and a lower contrast threshold."""
    options = pycolmap.FeatureExtractionOptions(
        max_image_size=settings.max_image_size, num_threads=settings.num_threads
    )
    most = settings.max_features or (8192 if len(names) <= MANY else 4096)
    options.sift.max_num_features = most
    if fine:
        options.sift.estimate_affine_shape = True
        options.sift.peak_threshold = 0.002
    reader = pycolmap.ImageReaderOptions()
    if masks is not None:
        reader.mask_path = masks
    counts = feature_counts(database)
    missing = [name for name in names if name not in counts]
    if missing and not fine and _rich(images, names, options, settings):
        options.sift.first_octave = 0
    for start in range(0, len(missing), 8):
        report((len(names) - len(missing) + start) / len(names))
        pycolmap.extract_features(
            database, images, missing[start : start + 8], pycolmap.CameraMode.AUTO, reader, options, pycolmap.Device.cpu
        )
    report(1.0)


def _rich(
    images: Path, names: Sequence[str], options: pycolmap.FeatureExtractionOptions, settings: SfmSettings
) -> bool:
    """Do the pictures have enough features without being enlarged first, as SIFT does by default?

    Doubling every picture takes three quarters of the time; the features it adds are the finest, the least precise and
    the least repeatable. A few pictures tell.
    """
    plain = pycolmap.FeatureExtractionOptions(options.todict())
    plain.sift.first_octave = 0
    sift = pycolmap.Sift(plain, pycolmap.Device.cpu)
    counts = []
    for name in names[:: max(1, len(names) // SAMPLE)][:SAMPLE]:
        with Image.open(images / name) as opened:
            grey = opened.convert("L")
            grey.thumbnail((settings.max_image_size, settings.max_image_size))
        counts.append(len(sift.extract(np.asarray(grey, np.float32) / 255)[0]))
    return float(np.median(counts)) >= settings.few_features


def feature_counts(database: Path) -> dict[str, int]:
    """Number of features of every picture that was looked at."""
    handle = pycolmap.Database.open(database)
    try:
        return {
            image.name: handle.num_keypoints_for_image(image.image_id)
            for image in handle.read_all_images()
            if handle.exists_keypoints(image.image_id)
        }
    finally:
        handle.close()


def choose_pairs(database: Path, n: int, settings: SfmSettings) -> tuple[str, list[Pair]]:
    """The kind of pairing and the pairs, as positions of the pictures."""
    kind = settings.pairs
    if kind == "exhaustive" or (kind == "auto" and n <= min(FEW, settings.max_exhaustive)):
        return "exhaustive", all_pairs(n)
    handle = pycolmap.Database.open(database)
    try:
        descriptors = [handle.read_descriptors(index + 1).data for index in range(n)]
    finally:
        handle.close()
    alike = likeness(descriptors, seed=settings.seed)
    if kind == "auto":
        unordered: Pairing = "exhaustive" if n <= settings.max_exhaustive else "retrieval"
        kind = "sequential" if settings.ordered or in_order(alike) else unordered
    if kind == "exhaustive":
        return kind, all_pairs(n)
    if kind == "retrieval":
        return kind, alike_pairs(alike, settings.neighbors)
    loops = alike_pairs(alike, max(settings.neighbors // 8, 1), min_gap=settings.overlap + 1)
    return kind, sorted({*sequential_pairs(n, settings.overlap), *loops})


def match(
    database: Path, names: Sequence[str], pairs: Sequence[Pair], settings: SfmSettings, report: Report, *, fine: bool
) -> None:
    """Match and verify the pairs that are not in the database yet (pycolmap skips the others)."""
    guided = fine and len(pairs) <= GUIDED if settings.guided is None else settings.guided
    options = pycolmap.FeatureMatchingOptions(guided_matching=guided, num_threads=settings.num_threads)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = settings.seed
    chunk = max(64, len(pairs) // 50)
    listing = database.with_suffix(".pairs")
    pairing = pycolmap.ImportedPairingOptions(block_size=chunk, match_list_path=listing)
    for start in range(0, len(pairs), chunk):
        report(start / len(pairs))
        listing.write_text("".join(f"{names[a]} {names[b]}\n" for a, b in pairs[start : start + chunk]))
        pycolmap.match_image_pairs(database, options, pairing, verification, pycolmap.Device.cpu)
    report(1.0)


def verified_inliers(database: Path) -> dict[Pair, int]:
    """Verified matches of each pair with any, by positions of the pictures."""
    handle = pycolmap.Database.open(database)
    try:
        found = zip(*handle.read_two_view_geometry_num_inliers(), strict=True)
        pairs = {tuple(sorted(pycolmap.pair_id_to_image_pair(pair_id))): count for pair_id, count in found}
        return {(a - 1, b - 1): count for (a, b), count in pairs.items() if count}
    finally:
        handle.close()
