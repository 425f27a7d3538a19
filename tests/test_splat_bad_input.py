"""Splats that are broken, invisible or strange: every door copes or answers in one line."""

import zipfile
from dataclasses import replace

import pytest
import torch
from splat_scenes import make_scene
from test_compress import photographed

from scenetx.core import Gaussians, InputError
from scenetx.fit.compress import CompressSettings, compress_splats, significance
from scenetx.fit.sensitivity import Sensitivity
from scenetx.fit.settle import rounded
from scenetx.io.ply import write_splat_ply
from scenetx.io.splat_formats import read_gaussians, write_gaussians
from scenetx.models.pixel_splats import merged
from scenetx.pipeline.compress import CompressPlan, compress
from scenetx.splat import rasterize

QUICK = CompressSettings(keep=0.5, steps=2, settle=2, rounds=1, pseudo_views=0.0, exposure=False)
NAMES = ("a.ply", "a.compressed.ply", "a.spz", "a.sog", "a.glb", "a.splat")


def poisoned(count: int = 60) -> Gaussians:
    """Every parameter NaN or infinite somewhere, some scales and quaternions zero or absurd."""
    gaussians, _ = make_scene(count, degree=1, size=0.15)
    gaussians.means[0, 1] = torch.nan
    gaussians.means[1, 0] = torch.inf
    gaussians.quats[2] = 0
    gaussians.quats[3, 2] = torch.nan
    gaussians.scales[4, 0] = torch.inf
    gaussians.scales[5, 1] = torch.nan
    gaussians.opacities[6] = torch.nan
    gaussians.sh[7, 0, 1] = -torch.inf
    gaussians.sh[8, 2, 1] = torch.nan
    return gaussians


def light(scene) -> Gaussians:
    result = list(compress_splats(scene, QUICK))[-1].gaussians
    assert result is not None
    return result


@pytest.mark.parametrize("name", NAMES)
def test_poison_is_left_out_of_every_file(tmp_path, name):
    write_gaussians(poisoned(), tmp_path / name)
    back = read_gaussians(tmp_path / name)
    assert 50 <= len(back) <= 60
    assert bool(back.finite().all())


def test_poisoned_scenes_are_compressed():
    scene = replace(photographed(60), gaussians=poisoned())
    result = light(scene)
    assert 20 <= len(result) <= 30
    assert bool(result.finite().all())


@pytest.mark.parametrize("name", NAMES)
def test_invisible_scenes_travel(tmp_path, name):
    gaussians, cameras = make_scene(30, degree=0)
    gaussians = replace(gaussians, opacities=torch.zeros(30))
    write_gaussians(gaussians, tmp_path / name)
    back = read_gaussians(tmp_path / name)
    assert bool((back.opacities < 1e-6).all())
    assert not bool(rasterize(back, cameras, backend="torch").alpha.any()) if len(back) else True


def test_invisible_scenes_are_compressed(tmp_path):
    scene = photographed(40)
    gaussians = replace(scene.gaussians, opacities=torch.zeros(40))
    scene = replace(scene, gaussians=gaussians)
    assert not bool(significance(gaussians, [view.camera for view in scene.training], backend="torch").any())
    assert len(light(scene)) == 20
    scene.save(tmp_path / "scene")
    curve = compress(tmp_path / "scene", None, CompressPlan(target=3.0, formats=("sog",), fit=QUICK))
    assert all(point.psnr > 0 for point in curve.points)


def test_extremes_are_rounded_and_merged():
    """Far, huge, tiny, all alike: finite numbers stay finite."""
    gaussians, _ = make_scene(64, degree=1)
    gaussians.means[0] = torch.tensor([1e7, -1e7, 1e7])
    gaussians.scales[1] = 1e-20
    gaussians.scales[2] = 1e6
    gaussians.sh[3] = 1e4
    for some in (gaussians, replace(gaussians, means=torch.ones(64, 3)), gaussians[:1]):
        unseen = Sensitivity(some.means * 0, some.quats * 0, some.scales * 0, some.opacities * 0, some.sh * 0)
        kept = rounded(some, unseen, 1e-9)
        assert bool(kept.finite().all())
        assert bool((kept.scales > 0).all())
        assert bool(merged(some, torch.ones(len(some)), torch.zeros(1, 3), 8).finite().all())


def test_extra_attributes_and_members_are_passed_over(tmp_path):
    gaussians, _ = make_scene(20, degree=0)
    write_splat_ply(gaussians, tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    head, body = data.split(b"end_header\n", 1)
    width = len(body) // 20
    rows = b"".join(body[i * width : (i + 1) * width] + b"\1\2\3\4\5" for i in range(20))
    head += b"property uchar label\nproperty int owner\n"
    (tmp_path / "b.ply").write_bytes(head + b"end_header\n" + rows)
    torch.testing.assert_close(read_gaussians(tmp_path / "b.ply").means, gaussians.means)
    write_gaussians(gaussians, tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog", "a") as archive:
        archive.writestr("../../strange.txt", "x")
        archive.writestr("thumbnail.webp", b"not a picture")
    assert len(read_gaussians(tmp_path / "a.sog")) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "a.sog", "b.ply"]


@pytest.mark.parametrize("gone", ["means_l.webp", "quats.webp", "meta.json"])
def test_missing_members_are_named(tmp_path, gone):
    gaussians, _ = make_scene(20, degree=0)
    write_gaussians(gaussians, tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive, zipfile.ZipFile(tmp_path / "b.sog", "w") as rest:
        for name in archive.namelist():
            if name != gone:
                rest.writestr(name, archive.read(name))
    with pytest.raises(InputError, match=gone.replace(".", r"\.")):
        read_gaussians(tmp_path / "b.sog")
