"""Published geometry models: every key of the released files, and every output of the published code."""

import gc

import numpy as np
import pytest
import torch
from published import HERE, golden, listing, relative, state

from scenetx.core import Cameras
from scenetx.core.rigid import invert_rigid
from scenetx.models import mapanything, zoo
from scenetx.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from scenetx.models.pi3 import rotation_from_nine
from scenetx.models.weights import load_strictly

TOLERANCE = 1e-4
LISTINGS = {
    "da3-small": "da3-small", "da3-base": "da3-base", "da3-large": "da3-large", "da3-giant": "da3-giant",
    "pi3": "Pi3", "pi3x": "Pi3X", "vggt": "VGGT-1B", "mapanything": "MapAnything_v1.1",
}  # fmt: skip
NORMALISATION = {
    "image_mean": torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1),
    "image_std": torch.tensor(IMAGENET_STD).view(1, 3, 1, 1),
}
FIXED = {
    "pi3": NORMALISATION,
    "pi3x": NORMALISATION,
    "mapanything": {"info_sharing.view_pos_table": torch.tensor([0.0, 1.0]).repeat(768)[None]},
}
LEFT_OUT = {"da3-giant": "model.gs_head.", "vggt": "track_head."}


@pytest.mark.parametrize("name", LISTINGS)
def test_the_released_keys_and_shapes_are_ours(name: str):
    shapes = listing(LISTINGS[name])
    module = zoo.build(name, meta=True)
    source = zoo.source_of(zoo.find(name))
    released = source.from_published({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    ours = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in released.items()} == ours
    published = {source.to_published(key) for key in ours}
    extra = {key for key in shapes.keys() - published if mapanything.canonical(key) not in published}
    assert all(key.startswith(LEFT_OUT.get(name, "-")) for key in extra)
    assert published <= shapes.keys()


def loaded(name: str):
    answers, keys = golden(name)
    weights = state(keys["tensors"]) | FIXED.get(name, {})
    for key, values in weights.items():
        probe = f"weight_probe/{key}"
        if probe in answers.files:
            count = answers[probe].size
            assert np.allclose(values.flatten()[:count], answers[probe], atol=1e-7), key
    module = zoo.load_model(name, weights)
    return module, answers


def compare(found, answers, case: str, least: int):
    names = {key.partition("/")[2] for key in answers.files if key.startswith(f"{case}/")}
    common = sorted(name for name in names & found.keys() if not name.startswith("in_"))
    assert len(common) >= least
    errors = {name: relative(found[name].float(), answers[f"{case}/{name}"].astype(np.float32)) for name in common}
    assert max(errors.values()) < TOLERANCE, errors


def pictures(answers, case: str):
    return torch.from_numpy(answers[f"{case}/images"]).float() / 255


def da3_cameras(answers, case: str, images):
    if f"{case}/in_extrinsics" not in answers.files:
        return None
    world_from_cam = invert_rigid(torch.from_numpy(answers[f"{case}/in_extrinsics"]))
    return Cameras(world_from_cam, torch.from_numpy(answers[f"{case}/in_intrinsics"]), *images.shape[1:3])


def check_da3(module, answers):
    cases = sorted({key.partition("/")[0] for key in answers.files} - {"seed", "weight_probe"})
    assert cases
    for case in cases:
        images = pictures(answers, case)
        with torch.no_grad():
            geometry = module(images, da3_cameras(answers, case, images))
        compare(dict(geometry.published), answers, case, 4)


def test_da3_small_answers_as_published():
    """Committed cases: two pictures, and three with given cameras."""
    module = zoo.build("da3-small", meta=True)
    shapes = {f"model.{name}": tensor.shape for name, tensor in module.state_dict().items()}
    load_strictly(module, zoo.source_of(zoo.find("da3-small")).from_published(state(shapes)), "rule", None)
    check_da3(module.eval(), np.load(HERE / "da3_small.npz"))


def test_da3_small_answers_as_published_in_all_cases():
    check_da3(*loaded("da3-small"))


@pytest.mark.slow
def test_da3_base_answers_as_published():
    check_da3(*loaded("da3-base"))


@pytest.mark.slow
def test_vggt_answers_as_published():
    module, answers = loaded("vggt")
    for case in ("v2", "v3"):
        with torch.no_grad():
            found = dict(module(pictures(answers, case)).published)
        found["pose_enc_iters"] = torch.stack([found.pop(f"pose_enc_{turn}") for turn in range(4)])
        compare(found, answers, case, 8)
    del module
    gc.collect()


@pytest.mark.slow
def test_pi3_answers_as_published():
    module, answers = loaded("pi3")
    with torch.no_grad():
        compare(dict(module(pictures(answers, "v3")).published), answers, "v3", 6)
    assert relative(rotation_from_nine(torch.from_numpy(answers["svd/in"])), answers["svd/out"]) < TOLERANCE
    del module
    gc.collect()


@pytest.mark.slow
def test_pi3x_answers_as_published():
    module, answers = loaded("pi3x")
    images = pictures(answers, "cond3")
    poses, K, depth = (torch.from_numpy(answers[f"cond3/in_{key}"]) for key in ("poses", "intrinsics", "depths"))
    with torch.no_grad():
        compare(dict(module(pictures(answers, "v3")).published), answers, "v3", 7)
        given = module(images, Cameras(poses, K, *images.shape[1:3]), depth=depth)
    compare(dict(given.published), answers, "cond3", 7)
    del module
    gc.collect()


@pytest.mark.slow
def test_mapanything_answers_as_published():
    module, answers = loaded("mapanything")
    images = pictures(answers, "cond2")

    def of_both(key: str):
        return torch.stack([torch.from_numpy(answers[f"cond2/in_view{view}_{key}"]) for view in (0, 1)])

    K = of_both("intrinsics")
    # The published code counts pixels from the first one's centre, we from its corner.
    K[:, :2, 2] += 0.5
    with torch.no_grad():
        compare(dict(module(pictures(answers, "v2")).published), answers, "v2", 10)
        given = module(images, Cameras(of_both("camera_pose"), K, *images.shape[1:3]), depth=of_both("depth_z"))
    compare(dict(given.published), answers, "cond2", 10)
    del module
    gc.collect()
