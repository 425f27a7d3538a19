"""Splat and point files: round trips, files of other writers, and files that mean harm."""

from __future__ import annotations

import gzip
import json
import logging
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenetx.core import Cameras, Gaussians, InputError, Original, Points, Scene, Sim3, View
from scenetx.core.gaussians import sh_basis
from scenetx.core.rigid import rotation_from_quat
from scenetx.io.glb import GLTF_FROM_WORLD, HELD_OUT_COLOR, TRAINING_COLOR, write_glb
from scenetx.io.ply import read_points_ply, read_splat_ply, write_points_ply, write_splat_ply
from scenetx.io.splat_formats import read_gaussians, read_splat, read_spz, write_gaussians, write_spz
from scenetx.splat import rasterize

DEV = Path(__file__).parents[2] / "shared/data/dev/splats"
DATA = Path(__file__).parent / "data"
needs_dev = pytest.mark.skipif(not DEV.is_dir(), reason="the development data is not beside this checkout")


def waves(n: int = 64, degree: int = 3) -> Gaussians:
    """Splats without a random number: tests/data holds what splat-transform 2.7.1 made of them."""

    def wave(k: int, size: float) -> torch.Tensor:
        steps = torch.outer(torch.arange(1, n + 1, dtype=torch.float64), torch.arange(1, k + 1) * 0.7)
        return ((steps + torch.arange(k)).sin() * size).float()

    quats = torch.nn.functional.normalize(wave(4, 1.0) + torch.tensor([0.3, 0, 0, 0]), dim=-1)
    sh = wave(48, 0.3).reshape(n, 16, 3)[:, : (degree + 1) ** 2]
    return Gaussians(wave(3, 2.0), quats, (wave(3, 1.0) - 3).exp(), 0.5 + 0.45 * wave(1, 1.0)[:, 0], sh)


def assert_alike(
    a: Gaussians, b: Gaussians, *, means: float, angle: float, log: float, alpha: float, dc: float, sh: float
):
    assert len(a) == len(b)
    assert a.antialiased == b.antialiased
    torch.testing.assert_close(b.means, a.means, atol=means, rtol=0)
    rotation = rotation_from_quat(a.quats).transpose(1, 2) @ rotation_from_quat(b.quats)
    assert (rotation - torch.eye(3)).abs().max() <= angle
    torch.testing.assert_close(b.scales.log(), a.scales.log(), atol=log, rtol=0)
    torch.testing.assert_close(b.opacities, a.opacities, atol=alpha, rtol=0)
    torch.testing.assert_close(b.sh[:, :1], a.sh[:, :1], atol=dc, rtol=0)
    torch.testing.assert_close(b.sh[:, 1:], a.sh[:, 1:], atol=sh, rtol=0)


EXACT = {"means": 0, "angle": 1e-6, "log": 1e-6, "alpha": 1e-6, "dc": 0, "sh": 0}
SPZ = {"means": 2**-12, "angle": 4e-3, "log": 0.032, "alpha": 0.002, "dc": 0.0135, "sh": 0.067}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("antialiased", [False, True])
def test_ply_and_spz_round_trip(tmp_path, degree, antialiased):
    gaussians = replace(waves(degree=degree), antialiased=antialiased)
    for suffix, close in ((".ply", EXACT), (".spz", SPZ)):
        path = tmp_path / f"a{suffix}"
        write_gaussians(gaussians, path)
        assert_alike(gaussians, read_gaussians(path), **close)
    assert (tmp_path / "a.spz").stat().st_size < (tmp_path / "a.ply").stat().st_size / 2


def test_splat_round_trip_keeps_what_the_format_holds(tmp_path):
    gaussians = waves(degree=0)
    write_gaussians(gaussians, tmp_path / "a.splat")
    back = read_gaussians(tmp_path / "a.splat")
    order = torch.cdist(gaussians.means.double(), back.means.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(gaussians)))
    assert_alike(gaussians, back[order], means=0, angle=0.03, log=1e-6, alpha=0.002, dc=0.008, sh=0)
    weight = back.scales.log().sum(-1) + back.opacities.log()
    assert (weight.diff() <= 0.02).all()  # the largest come first, up to the rounding of opacity


def test_ply_layout_is_the_references(tmp_path):
    gaussians = waves(degree=1)
    write_splat_ply(replace(gaussians, antialiased=True), tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    header, body = data.split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    rest = [f"f_rest_{i}" for i in range(9)]
    scale, rot = [f"scale_{i}" for i in range(3)], [f"rot_{i}" for i in range(4)]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity", *scale, *rot]
    assert "comment SplatRenderMode: mip" in lines
    table = np.frombuffer(body, "<f4").reshape(len(gaussians), len(names))
    row = dict(zip(names, table[5], strict=True))
    assert row["f_rest_1"] == gaussians.sh[5, 2, 0]  # second coefficient of red
    assert row["f_rest_3"] == gaussians.sh[5, 1, 1]  # first coefficient of green
    assert row["opacity"] == pytest.approx(float(gaussians.opacities[5].logit()), abs=1e-5)
    assert row["scale_2"] == pytest.approx(float(gaussians.scales[5, 2].log()), abs=1e-5)
    assert row["rot_0"] == pytest.approx(float(gaussians.quats[5, 0]), abs=1e-6)


@pytest.mark.parametrize("name", ["waves_splat_transform_v3.spz", "waves_splat_transform.compressed.ply"])
def test_files_of_splat_transform(name):
    """Made with splat-transform 2.7.1 from ``write_splat_ply(waves())``; both formats may reorder."""
    gaussians, theirs = waves(), read_gaussians(DATA / name)
    order = torch.cdist(gaussians.means.double(), theirs.means.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(gaussians)))
    assert_alike(gaussians, theirs[order], **(SPZ if name.endswith("spz") else SPZ | {"means": 2e-3, "angle": 6e-3}))


def test_spz_is_the_scene_turned_half_a_turn_about_x(tmp_path):
    """RUB against RDF: the numbers in the file, read without the flip, are the Gaussians of a turned frame."""
    gaussians = waves()
    half_turn = Sim3(1.0, torch.diag(torch.tensor([1.0, -1.0, -1.0])), torch.zeros(3))
    turned = gaussians.transformed(half_turn)
    write_spz(gaussians, tmp_path / "a.spz", sh_bits=(8, 8))
    raw = gzip.decompress((tmp_path / "a.spz").read_bytes())
    n = len(gaussians)
    sh = (np.frombuffer(raw, np.uint8, n * 45, len(raw) - n * 45).reshape(n, 15, 3) - 128.0) / 128
    np.testing.assert_allclose(sh, turned.sh[:, 1:].numpy(), atol=0.5 / 128 + 1e-4)
    first = np.frombuffer(raw[16:19] + (b"\0" if raw[18] < 128 else b"\xff"), "<i4")[0]
    assert first / 2.0 ** raw[13] == pytest.approx(float(turned.means[0, 0]), abs=2**-12)
    direction = torch.tensor([[0.36, 0.48, 0.8]])
    seen = sh_basis(direction, 3) @ gaussians.sh[0]
    torch.testing.assert_close(sh_basis(direction * torch.tensor([1, -1, -1]), 3) @ turned.sh[0], seen)


def test_spz_positions_follow_the_extent(tmp_path):
    for extent in (1e-3, 1.0, 1e3, 1e6):
        gaussians = waves()
        gaussians = replace(gaussians, means=gaussians.means * extent, scales=gaussians.scales * extent)
        write_spz(gaussians, tmp_path / "a.spz")
        error = (read_spz(tmp_path / "a.spz").means - gaussians.means).abs().max()
        assert error <= extent * 1e-3
        assert error <= float(gaussians.scales.min()) * 0.3
    with pytest.raises(InputError, match="units out"):
        write_spz(replace(gaussians, means=gaussians.means * 1e4), tmp_path / "a.spz")


@pytest.mark.parametrize("suffix, floor", [(".ply", 50), (".spz", 35)])
def test_files_look_the_same(tmp_path, suffix, floor):
    """PSNR of the picture over the pixels that splats cover, so that an empty background does not flatter it."""
    gaussians = waves(400, degree=3)
    gaussians = replace(gaussians, scales=gaussians.scales * 4, sh=gaussians.sh * 0.5)
    write_gaussians(gaussians, tmp_path / f"a{suffix}")
    pose = torch.eye(4)
    pose[2, 3] = -6
    K = torch.tensor([[[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]])
    before, after = (
        rasterize(each, Cameras(pose[None], K, 48, 64), backend="torch")
        for each in (gaussians, read_gaussians(tmp_path / f"a{suffix}"))
    )
    covered = before.alpha > 0.5
    assert covered.float().mean() > 0.3
    error = (before.rgb.clamp(0, 1) - after.rgb.clamp(0, 1))[covered].square().mean().clamp(min=1e-12)
    assert float(-10 * torch.log10(error)) > floor


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".splat"])
def test_edge_values_and_broken_splats(tmp_path, suffix, caplog):
    gaussians = waves(8)
    gaussians.opacities[:2] = torch.tensor([0.0, 1.0])
    gaussians.scales[2] = 0
    gaussians.means[3, 1] = torch.nan
    gaussians.quats[4] = 0
    gaussians.sh[5, 0, 0] = torch.inf
    with caplog.at_level(logging.WARNING):
        write_gaussians(gaussians, tmp_path / f"a{suffix}")
    assert "3 of 8" in caplog.text
    back = read_gaussians(tmp_path / f"a{suffix}")
    assert len(back) == 5
    assert bool(back.finite().all())
    opacities = back.opacities.sort().values
    assert opacities[0] < 1e-6
    assert opacities[-1] > 1 - 1e-6


@pytest.mark.parametrize("suffix", [".ply", ".spz"])
def test_no_splats_at_all(tmp_path, suffix):
    write_gaussians(waves()[:0], tmp_path / f"a{suffix}")
    assert len(read_gaussians(tmp_path / f"a{suffix}")) == 0


def test_broken_splats_in_a_file_are_dropped_and_counted(tmp_path, caplog):
    write_splat_ply(waves(10, 0), tmp_path / "a.ply")
    data = bytearray((tmp_path / "a.ply").read_bytes())
    width = (len(data) - data.index(b"end_header\n") - 11) // 10
    start = len(data) - 10 * width
    data[start : start + 4] = struct.pack("<f", np.nan)
    data[start + width : start + width + 4] = struct.pack("<f", np.inf)
    (tmp_path / "a.ply").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert len(read_splat_ply(tmp_path / "a.ply")) == 8
    assert "2 of 10" in caplog.text


def ply_text(form: str, order: str, gaussians: Gaussians, extra: bool = True) -> bytes:
    names = ["opacity", "x", "y", "z", "rot_3", "rot_0", "rot_1", "rot_2", "scale_0", "scale_1", "scale_2"]
    names += ["f_dc_2", "f_dc_0", "f_dc_1"] + (["strange"] if extra else [])
    table = torch.cat(
        [
            gaussians.opacities[:, None].logit(),
            gaussians.means,
            gaussians.quats[:, [3, 0, 1, 2]],
            gaussians.scales.log(),
            gaussians.sh[:, 0][:, [2, 0, 1]],
        ],
        dim=1,
    ).numpy()
    lines = ["ply", f"format {form} 1.0", "comment antialiased 1", f"element vertex {len(gaussians)}"]
    lines += [f"property {'uchar' if name == 'strange' else 'double'} {name}" for name in names] + ["end_header\n"]
    if order == "text":
        body = "\n".join(" ".join(map(repr, map(float, row))) + (" 7" if extra else "") for row in table).encode()
    else:
        kinds = [(name, "u1" if name == "strange" else order + "f8") for name in names]
        body = np.array([(*row, *([7] if extra else [])) for row in table.tolist()], kinds).tobytes()
    return "\n".join(lines).encode() + body


@pytest.mark.parametrize("form, order", [("ascii", "text"), ("binary_little_endian", "<"), ("binary_big_endian", ">")])
def test_plys_in_any_order_of_bytes_and_columns(tmp_path, form, order):
    gaussians = replace(waves(20, 0), antialiased=True)
    (tmp_path / "a.ply").write_bytes(ply_text(form, order, gaussians))
    assert_alike(gaussians, read_splat_ply(tmp_path / "a.ply"), **EXACT)


def test_missing_attributes_are_named(tmp_path):
    data = ply_text("ascii", "text", waves(3, 0)).replace(b"rot_2", b"rot_x").replace(b"opacity", b"opaque!")
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.ply: lacks opacity, rot_2 "):
        read_splat_ply(tmp_path / "a.ply")
    write_points_ply(Points(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8)), tmp_path / "p.ply")
    with pytest.raises(InputError, match="point cloud"):
        read_splat_ply(tmp_path / "p.ply")


@pytest.mark.parametrize(
    "header",
    [
        "ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n1 2 3\n",
        "ply\nformat binary_little_endian 1.0\nelement vertex 999999999999999999999999\nproperty float x\nend_header\n",
        "ply\nformat binary_little_endian 1.0\nelement vertex -1\nproperty float x\nend_header\n",
        "ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty int x\nproperty int x\nend_header\n12345678",
        "ply\nformat binary_middle_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n1234",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nnope\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty quaternion x\nend_header\n1\n",
        "ply\nformat ascii 1.0\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\n" + "comment " * 60000,
        "ply\nformat ascii 1.0\nelement vertex 1\n",
        "ply\n",
        "solid\n",
        "",
    ],
)
def test_hostile_ply_headers(tmp_path, header):
    (tmp_path / "a.ply").write_bytes(header.encode())
    for read in (read_splat_ply, read_points_ply):
        with pytest.raises(InputError, match=r"a\.ply"):
            read(tmp_path / "a.ply")


def one_line_about(path: Path, error: InputError) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


FILES = ["ply", "compressed.ply", "spz", "splat"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("suffix", FILES)
def test_damaged_files_are_read_or_refused(tmp_path, suffix, data):
    """Whatever happens to the bytes, the answer is finite Gaussians or one InputError."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "compressed.ply":
        raw = bytearray((DATA / "waves_splat_transform.compressed.ply").read_bytes())
    else:
        write_gaussians(waves(6, 1), path)
        raw = bytearray(path.read_bytes())
        raw = bytearray(gzip.decompress(raw)) if suffix == "spz" else raw
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    packed = suffix == "spz" and data.draw(st.booleans())
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    try:
        gaussians = read_gaussians(path)
    except InputError as error:
        one_line_about(path, error)
    else:
        assert bool(gaussians.finite().all())


def test_spz_bombs_and_strangers(tmp_path):
    path = tmp_path / "a.spz"
    head = struct.pack("<IIIBBBB", 0x5053474E, 3, 2**31, 3, 12, 0, 0)
    path.write_bytes(gzip.compress(head + bytes(1 << 16)))
    with pytest.raises(InputError, match="promises 2147483648 splats"):
        read_spz(path)
    small = struct.pack("<IIIBBBB", 0x5053474E, 3, 1, 0, 12, 0, 0)
    path.write_bytes(gzip.compress(small + bytes(1 << 26)))  # 64 MB of zeros behind one splat are left packed
    assert len(read_spz(path)) == 1
    for data in (b"", b"PK\3\4", gzip.compress(b"short"), gzip.compress(small)[:-12], gzip.compress(small)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.spz"):
            read_spz(path)


def test_unknown_suffixes(tmp_path):
    for name in ("a.obj", "a", "a.ksplat"):
        with pytest.raises(InputError, match="no splat format"):
            read_gaussians(tmp_path / name)
        with pytest.raises(InputError, match="no splat format"):
            write_gaussians(waves(2), tmp_path / name)
    for name in ("none.ply", "none.spz", "none.splat"):
        with pytest.raises(InputError, match=r"none\..*No such file"):
            read_gaussians(tmp_path / name)


def test_a_refused_write_leaves_the_old_file(tmp_path):
    write_gaussians(waves(3), tmp_path / "a.ply")
    before = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_gaussians(waves(5), tmp_path / "folder.ply")
    with pytest.raises(InputError, match="cannot be written"):
        write_gaussians(waves(5), tmp_path / "a.ply" / "below.ply")
    assert (tmp_path / "a.ply").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "folder.ply"]


@needs_dev
def test_development_files():
    plain, packed = read_splat_ply(DEV / "biker_decoded.ply"), read_splat_ply(DEV / "biker.compressed.ply")
    assert len(plain) == len(packed) == 152746
    assert_alike(plain, packed, means=1e-5, angle=1e-4, log=1e-4, alpha=1e-5, dc=1e-4, sh=0)
    with pytest.raises(InputError, match="SPZ version 4"):
        read_spz(DEV / "biker.spz")
    for name in ("minimal-v2.spz", "minimal-v3.spz"):
        tiny = read_spz(DEV / "tiny" / name)
        assert len(tiny) >= 1
        assert bool(tiny.finite().all())
    assert len(read_splat(DEV / "tiny/minimal.splat")) == 4


def cloud(n: int = 50, errors: bool = True) -> Points:
    torch.manual_seed(0)
    colors = torch.randint(0, 256, (n, 3), dtype=torch.uint8)
    return Points(torch.randn(n, 3), colors, torch.rand(n) if errors else None)


@pytest.mark.parametrize("errors", [False, True])
def test_points_round_trip(tmp_path, errors):
    points = cloud(errors=errors)
    write_points_ply(points, tmp_path / "a.ply")
    back = read_points_ply(tmp_path / "a.ply")
    assert torch.equal(back.positions, points.positions)
    assert torch.equal(back.colors, points.colors)
    assert (back.errors is None) == (points.errors is None)
    if errors:
        assert torch.equal(back.errors, points.errors)


@pytest.mark.parametrize(
    "kind, names, color, expected",
    [
        ("float", "red green blue", "1 0.5 0", [255, 128, 0]),
        ("float", "red green blue", "255 128 0", [255, 128, 0]),
        ("ushort", "red green blue", "65535 32896 0", [255, 128, 0]),
        ("uchar", "diffuse_red diffuse_green diffuse_blue", "255 128 0", [255, 128, 0]),
        ("uchar", "nx ny nz", "1 2 3", [128, 128, 128]),
        ("float", "f_dc_0 f_dc_1 f_dc_2", "0 9 -9", [128, 255, 0]),
    ],
)
def test_colours_of_points(tmp_path, kind, names, color, expected):
    lines = ["ply", "format ascii 1.0", "element vertex 2", "property float x", "property float y", "property float z"]
    lines += [f"property {kind} {name}" for name in names.split()]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    lines += [f"1 2 3 {color}", f"nan 2 3 {color}", "3 0 1 1"]
    (tmp_path / "a.ply").write_text("\n".join(lines))
    points = read_points_ply(tmp_path / "a.ply")
    assert points.positions.tolist() == [[1, 2, 3]]
    assert points.colors.tolist() == [expected]


def glb_colors(path: Path, name: str) -> set[tuple[int, ...]]:
    """The vertex colours of a mesh, read by hand: trimesh writes those of lines but does not read them."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    tree, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    attributes = next(mesh for mesh in tree["meshes"] if mesh["name"] == name)["primitives"][0]["attributes"]
    colors, positions = (tree["accessors"][attributes[key]] for key in ("COLOR_0", "POSITION"))
    assert colors["count"] == positions["count"]
    assert (colors["componentType"], colors["type"]) == (5121, "VEC4")
    start = tree["bufferViews"][colors["bufferView"]]["byteOffset"] + colors.get("byteOffset", 0)
    table = np.frombuffer(binary, np.uint8, 4 * colors["count"], start).reshape(-1, 4)
    return {tuple(map(int, row)) for row in table}


def test_glb_read_back(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    K = torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
    cameras = [Cameras(torch.eye(4)[None].clone(), K, 48, 64) for _ in range(2)]
    cameras[1].world_from_cam[0, :3, 3] = torch.tensor([4.0, 1, 0])
    image = torch.zeros(48, 64, 3, dtype=torch.uint8)
    views = tuple(
        View(f"{i}.jpg", image, Original("", 48, 64), camera=camera, held_out=i == 1)
        for i, camera in enumerate(cameras)
    )
    scene = Scene(views, points=cloud())
    write_glb(scene, tmp_path / "a.glb")
    back = trimesh.load_scene(tmp_path / "a.glb")
    assert set(back.geometry) == {"points", "camera 0.jpg", "camera 1.jpg"}
    np.testing.assert_allclose(
        back.geometry["points"].vertices, scene.points.positions.numpy() @ GLTF_FROM_WORLD, atol=1e-6
    )
    np.testing.assert_array_equal(np.asarray(back.geometry["points"].colors)[:, :3], scene.points.colors.numpy())
    lines = np.asarray(back.geometry["camera 1.jpg"].vertices)
    assert np.abs(lines - [4, -1, 0]).max(-1).min() < 1e-6  # the optical centre, y up
    depth = 0.08 * scene.extent
    corner = [4 + (0 - 32) / 50 * depth, -(1 + (0 - 24) / 50 * depth), -depth]
    assert np.abs(lines - corner).max(-1).min() < 1e-6
    assert glb_colors(tmp_path / "a.glb", "camera 1.jpg") == {HELD_OUT_COLOR}
    assert glb_colors(tmp_path / "a.glb", "camera 0.jpg") == {TRAINING_COLOR}
    with pytest.raises(InputError, match="neither points nor cameras"):
        write_glb(Scene(()), tmp_path / "b.glb")
