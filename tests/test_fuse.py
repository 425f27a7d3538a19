"""Meshes: fused from depth, cleaned, reported on, written for others.

Run by itself (`scripts/check`): Open3D brings threads of its own, which slow what comes after it in a process.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scenetx.core import Cameras, InputError, Render
from scenetx.core.cameras import look_at
from scenetx.geometry.fuse import FuseSettings, Mesh, cleanliness, fuse, without_crumbs
from scenetx.pipeline.mesh import write_mesh

UP = torch.tensor([0.0, -1.0, 0.0])


def box() -> Mesh:
    import trimesh

    made = trimesh.creation.box()
    faces = np.asarray(made.faces, np.int64)
    return Mesh(np.array(made.vertices), faces, np.full((len(made.vertices), 3), 9, np.uint8))


def test_cleanliness_counts_pieces_and_holes():
    whole = cleanliness(box())
    assert whole.watertight
    assert (whole.components, whole.holes, whole.boundary_edges, whole.nonmanifold_edges) == (1, 0, 0, 0)
    assert whole.area == pytest.approx(6)
    opened = cleanliness(replace(box(), faces=box().faces[1:]))
    assert not opened.watertight
    assert (opened.components, opened.holes, opened.boundary_edges) == (1, 1, 3)
    two = np.concatenate([box().faces, box().faces[:1] + 8])
    pair = Mesh(np.concatenate([box().vertices, box().vertices + 5]), two, np.zeros((16, 3), np.uint8))
    assert cleanliness(pair).components == 2
    clean, report = without_crumbs(pair, 2)
    assert (report.components, report.removed_components, len(clean.vertices)) == (1, 1, 8)
    np.testing.assert_allclose(clean.vertices[clean.faces], box().vertices[box().faces])
    tripled = Mesh(box().vertices, np.concatenate([box().faces, [[0, 1, 7]]]), box().colors)
    assert cleanliness(tripled).nonmanifold_edges >= 1
    nothing = cleanliness(Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.uint8)))
    assert (nothing.components, nothing.watertight) == (0, False)


def test_meshes_are_written_for_others(tmp_path):
    import trimesh

    for name, sign in (("mesh.glb", [1, -1, -1]), ("mesh.ply", [1, 1, 1])):
        write_mesh(box(), tmp_path / name)
        back = trimesh.load_mesh(tmp_path / name, process=False)
        np.testing.assert_allclose(np.sort(back.vertices, axis=0), np.sort(box().vertices * sign, axis=0), atol=1e-6)
        assert back.volume == pytest.approx(1)


def sphere_shots(views: int = 6) -> list[tuple[Render, Cameras]]:
    """Depth of a unit sphere, exact, from around the equator and from both poles."""
    angles = torch.arange(views) * (2 * torch.pi / views)
    eyes = torch.stack([3 * angles.cos(), torch.zeros(views), 3 * angles.sin()], -1)
    eyes = torch.cat([eyes, torch.tensor([[0.1, 3, 0], [0.1, -3, 0]])])
    out = []
    for eye in eyes:
        pose = look_at(eye[None], torch.zeros(3), UP)
        camera = Cameras(pose, torch.tensor([[[80.0, 0, 40], [0, 80, 40], [0, 0, 1]]]), 80, 80)
        y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(80) + 0.5, indexing="ij")
        rays = torch.stack([(x - 40) / 80, (y - 40) / 80, torch.ones_like(x)], -1)
        center = (-pose[0, :3, :3].T @ eye)[None, None]
        a, b = rays.square().sum(-1), (rays * center).sum(-1)
        inside = b.square() - a * (center.square().sum() - 1)
        depth = torch.where(inside > 0, (b - inside.clamp_min(0).sqrt()) / a, 0.0)
        rgb = torch.zeros(1, 80, 80, 3) + torch.tensor([1.0, 0.5, 0])
        out.append((Render(rgb, depth[None], (depth > 0).float()[None]), camera))
    return out


@pytest.mark.slow
def test_a_sphere_is_fused_from_its_depth(tmp_path):
    pytest.importorskip("open3d", exc_type=ImportError, reason="Open3D, the extra 'mesh', cannot be loaded")
    mesh, report = fuse(sphere_shots(), FuseSettings(voxel=0.04))
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert abs(np.median(radius) - 1) < 0.01
    assert np.abs(mesh.vertices.min(0) + mesh.vertices.max(0)).max() < 0.04
    assert np.abs(radius - 1).max() < 0.1
    assert report.components == 1
    assert report.area == pytest.approx(4 * np.pi, rel=0.05)
    assert np.abs(np.median(mesh.colors, axis=0) - [255, 128, 0]).max() <= 2
    closed, clean = fuse(sphere_shots(), FuseSettings(voxel=0.04, surface="poisson", poisson_depth=6, poisson_trim=0.0))
    radius = np.linalg.norm(closed.vertices, axis=1)
    assert np.abs(radius - 1).max() < 0.1
    assert (clean.components, clean.holes) == (1, 0)
    assert np.abs(np.median(closed.colors, axis=0) - [255, 128, 0]).max() <= 4
    # Something before one camera that the others look through is not there.
    shots = sphere_shots(16)
    shots[0][0].depth[0, 30:50, 30:50] -= 0.5
    confirmed, _ = fuse(shots, FuseSettings(voxel=0.04))
    believed, _ = fuse(shots, FuseSettings(voxel=0.04, votes=0))
    assert np.linalg.norm(confirmed.vertices, axis=1).max() < 1.1
    assert np.linalg.norm(believed.vertices, axis=1).max() > 1.3
    empty = [(replace(render, alpha=render.alpha * 0), camera) for render, camera in sphere_shots(1)]
    with pytest.raises(InputError, match="no pixel with depth"):
        fuse(empty)
    with pytest.raises(InputError, match="voxel"):
        fuse(sphere_shots(1), FuseSettings(voxel=1e-6))
