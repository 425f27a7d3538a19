"""Procedural scenes: exact depth, normals and motion, the same bits in any batch, and meshes' rays as an oracle."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image

from scenetx.core import InputError, project
from scenetx.data import ProceduralConfig, ProceduralViews, endless, procedural_views
from scenetx.data.cast import nearest, normals, shadowed, tile_rays, untile
from scenetx.data.compose import Taste, compose
from scenetx.data.procedural import _make
from scenetx.data.shade import shade
from scenetx.data.shapes import Solid, bowl, box, cone, cut, cylinder, edges, ellipsoid, placed, tube
from scenetx.data.tables import Tables, compile_world
from scenetx.data.world import (
    CELLS,
    CHECKER,
    GRATING,
    MARKS,
    PHOTO,
    Light,
    Material,
    Motion,
    World,
    random_turn,
)

SMALL = ProceduralConfig(height=48, width=40, views=3, difficulty=0.6, moving=0.7)


@lru_cache(maxsize=1)
def batch() -> ProceduralViews:
    return procedural_views([3, 5, 8, 13], SMALL)


def world_of(*solids: Solid) -> World:
    material = Material(0, np.full((3, 3), 0.5), 1.0, 0.5, 0.0, 0.0, 1.0, np.eye(3), 0.0, 3, 1)
    return World(
        solids=solids,
        materials=(material,),
        motions=(Motion(np.eye(4), np.zeros(3), np.array([0.0, 0.0, 1.0])),),
        lights=(Light(np.array([0.0, 0.0, 5.0]), np.ones(3), 5.0),),
        ambient=np.full((2, 3), 0.2),
        sky=np.full((2, 3), 0.5),
        low=np.full(3, -5.0),
        high=np.full(3, 5.0),
        focus=np.zeros(3),
        radius=1.0,
        obstacles=np.zeros((1, 4)),
    )


K = np.array([[60.0, 0, 31.0], [0, 55.0, 33.0], [0, 0, 1]])


def cast(*solids: Solid) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and camera-frame normals of a 64 x 64 picture from z = -4 along +z."""
    pose = np.eye(4)
    pose[2, 3] = -4.0
    tables = compile_world(world_of(*solids), pose[None], K[None], np.zeros(1), np.array([[1.0, 0.0, 0.0]]))
    rays = tile_rays(tables.lens, 64, 64)
    hits = nearest(tables, rays)
    found = hits.row.reshape(-1) >= 0
    n = torch.zeros(3, found.numel())
    picked = [v.reshape(-1)[found] for v in (hits.row, hits.depth, rays.x, rays.y)]
    n[:, found] = torch.stack(normals(tables, *picked))
    depth = torch.where(hits.row >= 0, hits.depth, 0.0)
    return untile(depth, 1, 64, 64)[0], untile(n.T.reshape(*hits.row.shape, 3), 1, 64, 64)[0]


def test_same_seed_same_bits_in_any_batch():
    alone = procedural_views([8], SMALL)
    for field in fields(ProceduralViews):
        ours, theirs = getattr(alone, field.name)[0], getattr(batch(), field.name)[2]
        count = ours.shape[1] if field.name == "world_from_object" else None
        assert torch.equal(ours, theirs if count is None else theirs[:, :count]), field.name


def test_seeds_differ():
    views = batch()
    assert not torch.equal(views.rgb[0], views.rgb[1])


def test_depth_and_cameras_reproject_to_their_own_pixels():
    views = batch()
    points = views.points(1)
    for scene in range(len(views)):
        seen = views.depth[scene, 1] > 0
        pixels, depth = project(points[scene][seen], views.cameras(scene)[1])
        line, column = seen.nonzero(as_tuple=True)
        expected = torch.stack([column, line], -1) + 0.5
        assert (pixels[0] - expected).abs().max() < 1e-2
        assert torch.allclose(depth[0], views.depth[scene, 1][seen], rtol=1e-4)


def test_flow_lands_on_the_same_instance_at_the_same_place():
    views = batch()
    flow, visible = views.flow(0, 2)
    back, _ = views.flow(2, 0)
    assert visible.float().mean() > 0.1
    scene, line, column = visible.nonzero(as_tuple=True)
    at = flow[visible] + torch.stack([column, line], -1) + 0.5
    there = at.floor().long()
    # Away from rims, where the landing pixel's centre may be on the neighbour.
    names = views.instances.float()
    inner = torch.nn.functional.max_pool2d(names, 3, 1, 1) == -torch.nn.functional.max_pool2d(-names, 3, 1, 1)
    inner = inner[scene, 2, there[:, 1], there[:, 0]] & inner[scene, 0, line, column]
    same = views.instances[scene, 2, there[:, 1], there[:, 0]] == views.instances[scene, 0, line, column]
    assert inner.sum() > 300
    assert same[inner].float().mean() > 0.99
    # There and back again, up to the rounding of the landing place to a pixel.
    returned = back[scene, there[:, 1], there[:, 0]] + flow[visible]
    assert returned.norm(dim=-1).median() < 1.0


def test_flow_between_a_view_and_itself_is_zero():
    flow, visible = batch().flow(1, 1)
    assert flow.abs().max() < 1e-2
    assert torch.equal(visible, batch().depth[:, 1] > 0)


def test_moving_objects_move_and_the_surroundings_do_not():
    motion = (batch().world_from_object[:, 0] - batch().world_from_object[:, 2]).abs().amax((-1, -2))
    assert (motion[:, 0] == 0).all()
    assert (motion[:, 1:] > 0.01).any()
    still = procedural_views([3], replace(SMALL, moving=0.0, views=2, height=16, width=16))
    assert torch.equal(still.world_from_object[:, 0], still.world_from_object[:, 1])


def test_normals_are_unit_face_the_camera_and_stand_on_the_surface():
    views = batch()
    seen = views.depth > 0
    n = views.normals[seen]
    assert (n.norm(dim=-1) - 1).abs().max() < 1e-4
    assert views.normals[~seen].abs().max() == 0 if (~seen).any() else True
    world = torch.stack([views.points(k) for k in range(SMALL.views)], 1)
    rotation = views.world_from_cam[:, :, None, None, :3, :3]
    normal = (rotation @ views.normals[..., None])[..., 0]
    away = world - views.world_from_cam[:, :, None, None, :3, 3]
    assert ((normal * away).sum(-1)[seen] < 1e-4).all()
    # Along a picture line, steps between near points of one instance lie in the tangent plane.
    step = world[..., 1:, :] - world[..., :-1, :]
    together = (views.instances[..., 1:] == views.instances[..., :-1]) & seen[..., 1:] & seen[..., :-1]
    smooth = together & ((normal[..., 1:, :] * normal[..., :-1, :]).sum(-1) > 0.9999)
    mean = torch.nn.functional.normalize(normal[..., 1:, :] + normal[..., :-1, :], dim=-1)
    out_of_plane = (mean * step).sum(-1).abs() / step.norm(dim=-1).clamp_min(1e-9)
    assert smooth.float().mean() > 0.3
    assert (out_of_plane[smooth] < 0.05).float().mean() > 0.98


def test_every_instance_seen_is_one_that_exists_and_nothing_has_no_instance():
    views = batch()
    assert torch.equal(views.instances == 0, views.depth == 0)
    assert int(views.instances.max()) <= views.world_from_object.shape[2]
    assert all(len(views.instances[k].unique()) >= 3 for k in range(len(views)))
    assert float(views.depth[views.depth > 0].min()) > 0.05


def test_difficulty_makes_more_objects_and_solids():
    solids, objects = [], []
    for difficulty in (0.0, 0.5, 1.0):
        worlds = [compose(np.random.default_rng(seed), Taste(difficulty)) for seed in range(12)]
        solids.append(np.mean([len(world.solids) for world in worlds]))
        objects.append(np.mean([len(world.motions) for world in worlds]))
    assert solids[0] * 1.5 < solids[1] < solids[2] / 1.3
    assert objects[0] * 1.3 < objects[1] < objects[2]


def frames_for_oracle() -> np.ndarray:
    rng = np.random.default_rng(4)
    return np.stack([placed(rng.uniform(0.5, 1.2, 3), rng.uniform(-0.4, 0.4, 3), random_turn(rng)) for _ in range(4)])


def mesh_of(name: str) -> object:
    trimesh = pytest.importorskip("trimesh", reason="trimesh makes the meshes to compare with")
    if name == "box":
        return trimesh.creation.box(extents=(2, 2, 2))
    if name == "ellipsoid":
        return trimesh.creation.icosphere(subdivisions=3)
    if name == "cylinder":
        return trimesh.creation.cylinder(radius=1, height=2, sections=96)
    mesh = trimesh.creation.cone(radius=1, height=2, sections=96)
    mesh.apply_translation([0, 0, -1])
    return mesh


def mesh_depth(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """z-depth by Open3D's ray casting where it is installed, else by Moeller and Trumbore's test on every face."""
    y, x = np.mgrid[0:64, 0:64] + 0.5
    rays = np.stack([(x - 31.0) / 60.0, (y - 33.0) / 55.0, np.ones_like(x)], -1).reshape(-1, 3)
    origin = np.array([0.0, 0.0, -4.0])
    try:
        import open3d
    except ImportError:
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        e1, e2, s = b - a, c - a, origin - a
        h = np.cross(rays[:, None], e2[None])
        det = (h * e1).sum(-1)
        det = np.where(np.abs(det) < 1e-12, np.nan, det)
        u = (h * s).sum(-1) / det
        q = np.cross(s, e1)
        v = (rays[:, None] * q).sum(-1) / det
        t = (q * e2).sum(-1) / det
        t = np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0), t, np.inf)
        return t.min(1).reshape(64, 64)
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(vertices.astype(np.float32), faces.astype(np.uint32))
    lines = np.concatenate([np.broadcast_to(origin, rays.shape), rays], -1).astype(np.float32)
    return scene.cast_rays(lines)["t_hit"].numpy().reshape(64, 64)


@pytest.mark.parametrize(
    ("name", "make"), [("box", box), ("ellipsoid", ellipsoid), ("cylinder", cylinder), ("cone", cone)]
)
def test_depth_agrees_with_rays_on_meshes(name: str, make):
    mesh = mesh_of(name)
    for frame in frames_for_oracle()[:2]:
        depth, _ = cast(make(frame))
        vertices = mesh.vertices @ frame[:3, :3].T + frame[:3, 3]
        expected = mesh_depth(vertices, mesh.faces)
        hit = np.isfinite(expected)
        ours = depth.numpy()
        assert hit.sum() > 100
        assert ((ours > 0) != hit).mean() < 0.01  # the mesh's rim is a polygon
        both = hit & (ours > 0)
        tolerance = 1e-4 if name == "box" else 0.03
        assert np.quantile(np.abs(ours - expected)[both], 0.98) < tolerance


def test_machine_code_casts_what_the_definition_casts():
    parts = [_make(seed, replace(SMALL, difficulty=1.0, blur=1), 0).tables for seed in (2, 6, 11)]
    tables = Tables.cat(parts)
    assert set(tables.kind.tolist()) >= {0, 1, 2}
    assert int(tables.cuts.max()) >= 2
    rays = tile_rays(tables.lens, 48, 40)
    plain, fast = nearest(tables, rays, compiled=False), nearest(tables, rays)
    assert torch.equal(plain.row, fast.row)
    # Roots may be rounded the other way: one unit of the last place, seen through a subtraction.
    assert torch.allclose(plain.depth, fast.depth, rtol=3e-6, atol=0)
    seen = plain.row >= 0
    depth = 0.999 * torch.where(seen, plain.depth, 1.0)
    light = tables.lights[rays.frame, 0, :3]
    asked = (tables, (rays.x * depth, rays.y * depth, depth), light, seen)
    dark = shadowed(*asked, compiled=False)
    assert 0.02 < dark[seen].float().mean() < 0.98
    assert (shadowed(*asked) != dark).sum() <= 2


def test_machine_code_shades_what_the_definition_shades():
    photos = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kinds = set()
    for seed, difficulty in ((3, 0.5), (4, 1.0), (6, 1.0)):
        config = replace(SMALL, height=32, width=32, difficulty=difficulty, views=2, blur=1)
        tables = _make(seed, config, len(photos)).tables
        rays = tile_rays(tables.lens, 32, 32)
        hits = nearest(tables, rays)
        fast, slow = (shade(tables, rays, hits, photos, compiled=compiled) for compiled in (True, False))
        assert torch.equal(fast.owner, slow.owner)
        assert torch.allclose(fast.normals, slow.normals, atol=1e-5)
        # On the edge of a texture's cell a root's last bit may decide.
        off = (fast.rgb - slow.rgb).abs().amax(-1)
        assert float((off > 1e-4).float().mean()) < 1e-3
        kinds |= set(tables.materials[tables.material[hits.row[hits.row >= 0]], 0].long().tolist())
    assert {GRATING, CHECKER, CELLS, MARKS, PHOTO} <= kinds


def test_cuts_take_away_exactly_what_they_cover():
    tunnel = placed(np.array([0.5, 0.5, 3.0]), np.zeros(3))
    depth, normal = cast(cut(box(placed(np.ones(3), np.zeros(3))), box(tunnel)))
    assert depth[33, 31] == 0  # through the tunnel
    assert depth[33, 31 - 14] == pytest.approx(3.0, abs=1e-5)  # x = -13.5 / 60 * 3: the front face
    # Rays just inside the tunnel meet its side wall, whose normal has no part along z.
    wall = (depth > 3.01) & (depth < 4.99)
    assert wall.sum() > 20
    assert normal[wall][:, 2].abs().max() < 1e-4


def test_hollow_solids_are_hollow():
    along = placed(np.ones(3), np.zeros(3))
    assert cast(tube(along, 0.3))[0][33, 31] == 0
    assert cast(edges(along, 0.2))[0][33, 31] == 0
    turned = placed(np.array([1.0, 1.0, -1.0]), np.zeros(3))
    shell = cast(bowl(turned, 0.2))[0]  # open towards the camera
    assert float(shell[33, 31]) == pytest.approx(4.8, abs=0.01)


def test_a_cut_too_many_is_refused():
    one = box(np.eye(4))
    with pytest.raises(ValueError, match="at most 3"):
        cut(one, one, one, one, one)


def test_photographs_are_painted_and_an_empty_folder_is_refused(tmp_path):
    config = replace(SMALL, height=32, width=32, views=1, photos=tmp_path)
    with pytest.raises(InputError, match="no pictures"):
        procedural_views([1], config)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    assert procedural_views([1], replace(config, photos=folder)).rgb.float().std() > 1


@pytest.mark.parametrize(
    "change",
    [{"difficulty": 1.5}, {"views": 0}, {"blur": 2}, {"kinds": ()}, {"rigs": ("crane",)}, {"difficulty": float("nan")}],
)
def test_bad_settings_are_refused(change):
    with pytest.raises((InputError, TypeError)):
        replace(SMALL, **change)


def test_bad_seeds_are_refused():
    with pytest.raises(InputError, match="seeds"):
        procedural_views([], SMALL)
    with pytest.raises(InputError, match="seeds"):
        procedural_views([-1], SMALL)


def test_ranks_share_the_seeds():
    tiny = replace(SMALL, height=8, width=8, views=1, blur=1)
    stream = endless(tiny, 1, start=1, stride=2)
    next(stream)
    assert torch.equal(next(stream).rgb, procedural_views([3], tiny).rgb)
