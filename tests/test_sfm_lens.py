"""What the last bundle adjustment finds out about a lens: what is there and determined, and nothing else."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from scenetx.geometry import mapping
from scenetx.geometry.sfm import SfmSettings

WIDTH, HEIGHT, FOCAL = 1024, 768, 1100.0


def pictures(lens: list[float], *, count: int = 16, noise: float = 0.5) -> pycolmap.Reconstruction:
    """A model of cameras all around 400 points, seen through ``lens`` (RADIAL: f, cx, cy, k1, k2) with noise (px)."""
    pycolmap.set_random_seed(3)
    model = pycolmap.synthesize_dataset(
        pycolmap.SyntheticDatasetOptions(
            num_rigs=1,
            num_frames_per_rig=count,
            num_points3D=400,
            camera_width=WIDTH,
            camera_height=HEIGHT,
            camera_model_id=pycolmap.CameraModelId.RADIAL,
            camera_params=lens,
        )
    )
    pycolmap.synthesize_noise(pycolmap.SyntheticNoiseOptions(point2D_stddev=noise), model)
    return model


def refined(model: pycolmap.Reconstruction) -> tuple[np.ndarray, list[str]]:
    """The lens and the notes, started from one that knows the focal length alone."""
    (camera,) = model.cameras.values()
    camera.model = pycolmap.CameraModelId.SIMPLE_RADIAL
    camera.params = [FOCAL, WIDTH / 2, HEIGHT / 2, 0.0]
    notes = mapping.refine(model, SfmSettings())
    return np.array(camera.params), notes


def test_a_plain_lens_stays_plain():
    params, notes = refined(pictures([FOCAL, WIDTH / 2, HEIGHT / 2, -0.05, 0.0]))
    assert notes == []
    assert params[1:3].tolist() == [WIDTH / 2, HEIGHT / 2]
    assert params[0] == pytest.approx(FOCAL, rel=0.002)
    assert params[3] == pytest.approx(-0.05, abs=0.02)


def test_a_second_radial_term_is_found():
    params, notes = refined(
        pictures([FOCAL, WIDTH / 2, HEIGHT / 2, -0.3, 30.0])
    )  # large: the points fill the middle fifth of the pictures
    assert [note.split(" estimated")[0] for note in notes] == ["distortion"]
    assert params[3:] == pytest.approx([-0.3, 30.0], rel=0.1)
    assert params[1:3].tolist() == [WIDTH / 2, HEIGHT / 2]


def test_a_principal_point_off_the_middle_is_found_by_pictures_from_all_sides():
    params, notes = refined(pictures([FOCAL, WIDTH / 2 + 20, HEIGHT / 2 - 15, -0.05, 0.0]))
    assert notes[-1].startswith("principal point estimated")
    assert params[1:3] == pytest.approx([WIDTH / 2 + 20, HEIGHT / 2 - 15], abs=1.5)


def test_halves_that_disagree_do_not_determine_a_principal_point():
    clean = pictures([FOCAL, WIDTH / 2, HEIGHT / 2, 0.0, 0.0])
    assert mapping.halves_agree(clean, SfmSettings(), frozenset())
    # Every second picture was cut from a larger one, off the middle: one principal point is no answer.
    torn = pictures([FOCAL, WIDTH / 2, HEIGHT / 2, 0.0, 0.0])
    for image_id in sorted(torn.reg_image_ids())[::2]:
        for point in torn.image(image_id).points2D:
            point.xy = point.xy + np.array([25.0, 0.0])
    assert not mapping.halves_agree(torn, SfmSettings(), frozenset())


def test_few_pictures_keep_the_simple_lens():
    params, notes = refined(pictures([FOCAL, WIDTH / 2 + 20, HEIGHT / 2, -0.2, 0.4], count=8))
    assert notes == []
    assert len(params) == 4
