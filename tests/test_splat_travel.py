"""Packed splat files: compressed PLY, SOG, glTF. Round trips, files of other writers, and files that mean harm."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from splat_scenes import make_scene

from scenetx.core import Gaussians, InputError
from scenetx.core.rigid import rotation_from_quat
from scenetx.io.codebook import morton_order, nearest_level, palette, scalar_codebook
from scenetx.io.ply import read_splat_ply
from scenetx.io.sog import read_sog, write_sog
from scenetx.io.splat_formats import read_gaussians, write_gaussians
from scenetx.splat import rasterize

DEV = Path(__file__).parents[2] / "shared/data/dev/splats"
needs_dev = pytest.mark.skipif(not DEV.is_dir(), reason="the development data is not beside this checkout")
COUNT = 300  # two chunks of a compressed PLY


def scene(degree: int = 2) -> Gaussians:
    gaussians, _ = make_scene(COUNT, degree=degree, size=0.1)
    return replace(gaussians, sh=gaussians.sh.clamp(-3.9, 3.9))


def in_order_of(back: Gaussians, like: Gaussians) -> Gaussians:
    match = torch.cdist(like.means.double(), back.means.double()).argmin(1)
    assert sorted(match.tolist()) == list(range(len(like)))
    return back[match]


def psnr(a: Gaussians, b: Gaussians) -> float:
    _, cameras = make_scene(1, height=40, width=52, cameras=2)
    pictures = [rasterize(part, cameras, backend="torch").rgb.clamp(0, 1) for part in (a, b)]
    return float(-10 * (pictures[0] - pictures[1]).square().mean().clamp_min(1e-12).log10())


@pytest.mark.parametrize(
    "name, position, angle, scale, alpha, dc, sh, least",
    [
        ("a.compressed.ply", 4e-3, 8e-3, 3e-3, 3e-3, 8e-3, 0.017, 38),
        ("a.sog", 1e-4, 3e-2, 0.1, 3e-3, 0.1, 0.1, 35),
        ("a.glb", 1e-6, 1e-6, 1e-5, 1e-6, 1e-6, 1e-5, 70),
    ],
)
@pytest.mark.parametrize("degree", [0, 3])
def test_round_trips(tmp_path, degree, name, position, angle, scale, alpha, dc, sh, least):
    """Each number within the step its format states, and the same picture from our own rasterizer."""
    gaussians = replace(scene(degree), antialiased=True)
    path = tmp_path / name
    if name == "a.sog":
        write_sog(gaussians, path, entries=COUNT)  # as many palette entries as splats: only the levels are lossy
    else:
        write_gaussians(gaussians, path)
    raw = read_gaussians(path)
    back = in_order_of(raw, gaussians)
    assert back.antialiased
    assert back.means.dtype == torch.float32
    torch.testing.assert_close(back.means, gaussians.means, atol=position, rtol=0)
    turn = rotation_from_quat(gaussians.quats).transpose(1, 2) @ rotation_from_quat(back.quats)
    assert (turn - torch.eye(3)).abs().max() <= angle
    torch.testing.assert_close(back.scales.log(), gaussians.scales.log(), atol=scale, rtol=0)
    torch.testing.assert_close(back.opacities, gaussians.opacities, atol=alpha, rtol=0)
    torch.testing.assert_close(back.sh[:, :1], gaussians.sh[:, :1], atol=dc, rtol=0)
    torch.testing.assert_close(back.sh[:, 1:], gaussians.sh[:, 1:], atol=sh, rtol=0)
    assert psnr(gaussians, back) > least
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_the_same_bytes_every_time(tmp_path):
    for name in ("a.compressed.ply", "a.sog", "a.glb"):
        write_gaussians(scene(1), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        write_gaussians(scene(1), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize("count", [0, 1, 256])
def test_few_splats(tmp_path, count):
    gaussians = scene(1)[:count]
    for name in ("a.compressed.ply", "a.sog"):
        write_gaussians(gaussians, tmp_path / name)
        assert len(read_gaussians(tmp_path / name)) == count
    if count:
        write_gaussians(gaussians, tmp_path / "a.glb")
        assert len(read_gaussians(tmp_path / "a.glb")) == count
    else:
        with pytest.raises(InputError, match="no splats"):
            write_gaussians(gaussians, tmp_path / "a.glb")


def test_broken_splats_are_left_out(tmp_path):
    gaussians = scene(1)
    gaussians.means[3] = torch.nan
    gaussians.scales[5] = 0
    gaussians.opacities[:] = 0
    for name in ("a.compressed.ply", "a.sog", "a.glb"):
        write_gaussians(gaussians, tmp_path / name)
        back = read_gaussians(tmp_path / name)
        assert len(back) == COUNT - 1
        assert bool((back.opacities == 0).all())
    write_sog(gaussians, tmp_path / "w.sog", entries=4, weights=torch.ones(COUNT))
    assert len(read_sog(tmp_path / "w.sog")) == COUNT - 1


@needs_dev
def test_compressed_ply_is_written_as_supersplat_writes_it(tmp_path):
    """Splats of SuperSplat's own file, written again: within one step of its chunks everywhere."""
    theirs = read_splat_ply(DEV / "biker_decoded.ply")[:512]
    write_gaussians(theirs, tmp_path / "a.compressed.ply")
    ours = read_gaussians(tmp_path / "a.compressed.ply")
    distance = torch.cdist(theirs.means.double(), ours.means.double()).min(1).values
    span = (theirs.means.max(0).values - theirs.means.min(0).values).max()
    assert distance.max() <= span / 1000


@needs_dev
def test_sog_of_another_writer():
    """PlayCanvas' logo (version 1, unpacked): bounds as its meta.json states them, splats that are whole."""
    folder = DEV / "playcanvas-logo"
    gaussians = read_gaussians(folder)
    meta = json.loads((folder / "meta.json").read_text())
    assert len(gaussians) == meta["means"]["shape"][0]
    for index, (end, bound) in enumerate((("min", "mins"), ("max", "maxs"))):
        value = getattr(gaussians.means, ("amin", "amax")[index])(0).double()
        logs = value.sign() * value.abs().log1p()
        torch.testing.assert_close(logs, torch.tensor(meta["means"][bound]).double(), atol=1e-4, rtol=0, msg=end)
    torch.testing.assert_close(gaussians.quats.norm(dim=-1), torch.ones(len(gaussians)), atol=1e-3, rtol=0)
    assert 0 <= gaussians.opacities.min() <= gaussians.opacities.max() <= 1


def test_glb_is_sound_gltf(tmp_path):
    """Read by another library as a point cloud: the positions it sees are ours with y and z turned."""
    import trimesh

    gaussians = scene(0)
    write_gaussians(gaussians, tmp_path / "a.glb")
    loaded = trimesh.load_scene(tmp_path / "a.glb")
    (cloud,) = loaded.geometry.values()
    np.testing.assert_allclose(cloud.vertices, gaussians.means.numpy() * [1, -1, -1], atol=1e-6)


# glTF of other writers


def glb_parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def write_parts(path: Path, document: dict, blob: bytes) -> Path:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<IIIII", 0x46546C67, 2, 28 + len(text) + len(blob), len(text), 0x4E4F534A)
    path.write_bytes(head + text + struct.pack("<II", len(blob), 0x004E4942) + blob)
    return path


def test_glb_nodes_move_splats_and_drafts_keep_logarithms(tmp_path):
    gaussians = scene(1)
    write_gaussians(gaussians, tmp_path / "a.glb")
    document, blob = glb_parts(tmp_path / "a.glb")
    document["nodes"] = [
        {"children": [1], "rotation": [0, 0, 1, 0]},  # half a turn about z
        {"mesh": 0, "translation": [1, 2, 3], "scale": [2, 2, 2]},
    ]
    index = document["meshes"][0]["primitives"][0]["attributes"]["KHR_gaussian_splatting:SCALE"]
    view = document["bufferViews"][document["accessors"][index]["bufferView"]]
    part = slice(view["byteOffset"], view["byteOffset"] + view["byteLength"])
    logs = np.log(np.frombuffer(blob[part], "<f4")).astype("<f4").tobytes()
    back = read_gaussians(write_parts(tmp_path / "b.glb", document, blob[: part.start] + logs + blob[part.stop :]))
    turned = gaussians.means.double() * torch.tensor([1, -1, -1])
    moved = (2 * turned + torch.tensor([1, 2, 3])) * torch.tensor([-1, -1, 1]) * torch.tensor([1, -1, -1])
    torch.testing.assert_close(back.means.double(), moved, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.scales, 2 * gaussians.scales, atol=1e-5, rtol=1e-5)


GLB_HARM = {
    "count": lambda d: d["accessors"][0].update(count=10**9),
    "offset": lambda d: d["bufferViews"][0].update(byteOffset=10**12),
    "negative": lambda d: d["bufferViews"][0].update(byteOffset=-4),
    "circle": lambda d: d["nodes"].__setitem__(0, {"children": [0]}),
    "shear": lambda d: d["nodes"][0].update(scale=[1, 2, 1]),
    "mirror": lambda d: d["nodes"][0].update(scale=[-1, 1, 1]),
    "no mesh": lambda d: d["nodes"][0].update(mesh=7),
    "plain points": lambda d: d["meshes"][0]["primitives"][0].pop("extensions"),
    "type": lambda d: d["accessors"][2].update(type="MAT4"),
    "outside": lambda d: d["buffers"][0].update(uri="../../etc/passwd"),
    "missing": lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("KHR_gaussian_splatting:OPACITY"),
    "packed": lambda d: d["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"].update(
        extensions={"KHR_gaussian_splatting_compression_spz_2": {}}
    ),
}


@pytest.mark.parametrize("harm", GLB_HARM)
def test_harmful_glb_is_refused_with_one_line(tmp_path, harm):
    write_gaussians(scene(0)[:8], tmp_path / "a.glb")
    document, blob = glb_parts(tmp_path / "a.glb")
    GLB_HARM[harm](document)
    with pytest.raises(InputError) as caught:
        read_gaussians(write_parts(tmp_path / "b.glb", document, blob))
    assert "b.glb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cut_files_are_refused(tmp_path):
    for name in ("a.compressed.ply", "a.sog", "a.glb"):
        write_gaussians(scene(1)[:40], tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        cut = tmp_path / f"cut{name[1:]}"
        for size in (0, 1, 11, 30, len(whole) // 3, len(whole) - 5):
            cut.write_bytes(whole[:size])
            with pytest.raises(InputError) as caught:
                read_gaussians(cut)
            assert "cut" in str(caught.value)


# SOG that means harm


def sog_parts(tmp_path: Path) -> dict[str, bytes]:
    write_sog(scene(1)[:20], tmp_path / "a.sog", entries=8)
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def refused(tmp_path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(tmp_path / "b.sog", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(InputError) as caught:
        read_sog(tmp_path / "b.sog")
    assert "b.sog" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sog_meta_is_checked(tmp_path):
    files = sog_parts(tmp_path)
    meta = json.loads(files["meta.json"])
    assert meta["version"] == 2
    for changed, said in (
        ({"version": 3}, "version 3"),
        ({"count": 10**6}, "pixels for 1000000 splats"),
        ({"count": -1}, "count"),
        ({"count": 10**12}, "count"),
        ({"quats": {"files": ["../../secret.webp"]}}, "file name inside"),
        ({"quats": {"files": ["/etc/passwd"]}}, "file name inside"),
        ({"quats": {"files": []}}, "file names"),
        ({"quats": {"files": ["none.webp"]}}, "holds no 'none.webp'"),
        ({"sh0": {**meta["sh0"], "codebook": [1.0]}}, "1 levels"),
        ({"means": {**meta["means"], "mins": [0]}}, "three numbers"),
        ({"shN": {**meta["shN"], "count": 2}}, "palette of 2"),
        ({"shN": {**meta["shN"], "bands": 3}}, "palette picture"),
    ):
        assert said in refused(tmp_path, {**files, "meta.json": json.dumps({**meta, **changed}).encode()})
    assert "not JSON" in refused(tmp_path, {**files, "meta.json": b"{"})
    assert "not JSON" in refused(tmp_path, {**files, "meta.json": b"[" * 100_000})


def test_sog_bombs_are_refused(tmp_path):
    files = sog_parts(tmp_path)
    assert "promises" in refused(tmp_path, {**files, "meta.json": b" " * (1 << 25)})
    assert "no whole picture" in refused(tmp_path, {**files, "quats.webp": b"RIFF"})
    out = io.BytesIO()
    Image.new("RGBA", (2000, 2000)).save(out, "PNG")
    assert "2000 x 2000" in refused(tmp_path, {**files, "quats.webp": out.getvalue()})


def test_sog_with_an_impossible_rotation_loses_that_splat(tmp_path):
    files = sog_parts(tmp_path)
    with Image.open(io.BytesIO(files["quats.webp"])) as image:
        pixels = np.array(image.convert("RGBA"))
    pixels.reshape(-1, 4)[4, 3] = 9
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, exact=True)
    with zipfile.ZipFile(tmp_path / "b.sog", "w") as archive:
        for name, data in {**files, "quats.webp": out.getvalue()}.items():
            archive.writestr(name, data)
    assert len(read_sog(tmp_path / "b.sog")) == 19


# the parts


def test_scalar_codebook_beats_even_steps_and_keeps_the_ends():
    values = np.random.default_rng(0).normal(size=5000) ** 3
    levels = scalar_codebook(values)
    assert (np.diff(levels) >= 0).all()
    assert (levels[0], levels[-1]) == (values.min(), values.max())
    error = np.square(levels[nearest_level(values, levels)] - values).mean()
    even = np.linspace(values.min(), values.max(), 256)
    assert error < 0.4 * np.square(even[nearest_level(values, even)] - values).mean()


def test_palette_serves_what_weighs():
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(400)
    weights[:40] = 1000
    plain, weighted = (palette(vectors, 50, weights=mass) for mass in (None, weights))
    error = [(entries[labels] - vectors).square().sum(-1) for entries, labels in (plain, weighted)]
    assert error[1][:40].sum() < 0.3 * error[0][:40].sum()
    assert error[0].sum() < 0.8 * vectors.square().sum()
    entries, labels = palette(vectors, 400)
    torch.testing.assert_close(entries[labels], vectors)


def test_morton_order_keeps_neighbours_together():
    positions = np.random.default_rng(1).uniform(size=(4000, 3))
    order = morton_order(positions)
    assert sorted(order.tolist()) == list(range(4000))
    step = np.linalg.norm(np.diff(positions[order], axis=0), axis=1).mean()
    assert step < 0.25 * np.linalg.norm(np.diff(positions, axis=0), axis=1).mean()
