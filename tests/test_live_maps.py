"""Several maps: tracks of features, maps that meet, loops, a second map beside a lost one, poses in one frame."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from live_room import FOCAL, HEIGHT, WIDTH, K, Shots, path, picture, room
from scipy.spatial.transform import Rotation

import scenetx
from scenetx.core import Sim3, umeyama
from scenetx.core.cameras import look_at
from scenetx.live.classical_map import encode_grey
from scenetx.live.classical_session import ClassicalSession
from scenetx.live.features import FeatureFinder, FeatureSettings, grey_of
from scenetx.live.grow import GrowingMap, GrowSettings
from scenetx.live.intrinsics import GivenLens
from scenetx.live.meet import MeetSettings, closed, joined, part_of
from scenetx.live.one_frame import MAPS, into_one_frame, root_of
from scenetx.live.outputs import TUM, Trajectory, read_tum
from scenetx.live.points import Station, link, map_of, starts
from scenetx.live.tracks import tracks
from scenetx.live.update import Update

LENS = GivenLens(K=(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
TURN = torch.from_numpy(Rotation.from_euler("xyz", [20, -35, 60], degrees=True).as_matrix())
ELSEWHERE = Sim3(2.5, TURN, torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))


def test_a_wrong_match_costs_itself_alone():
    view_of = np.repeat(np.arange(100), 3)  # pictures 0 to 99 of three features each: more than one word of bits
    number = np.arange(300).reshape(100, 3)
    right = np.concatenate([np.stack([number[:-1, k], number[1:, k]]) for k in range(3)], axis=1)
    wrong = np.stack([number[5:20, 0], number[6:21, 1]])
    found = tracks(np.concatenate([right, wrong], axis=1), view_of)
    assert [len(set(found[number[:, k]])) for k in range(3)] == [1, 1, 1]
    assert len(set(found)) == 3
    rng = np.random.default_rng(0)
    mixed = tracks(rng.integers(0, 300, size=(2, 400)), view_of)
    for track in range(int(mixed.max()) + 1):
        views = view_of[mixed == track]
        assert len(views) == len(set(views)) >= 2
    assert (tracks(np.zeros((2, 0), np.int64), view_of) == -1).all()


def stations_of(walls: list[np.ndarray], poses: torch.Tensor, first: int = 0) -> list[Station]:
    finder, out = FeatureFinder(FeatureSettings(side=640, most=500)), []
    for number, pose in enumerate(poses):
        grey = grey_of(torch.from_numpy(picture(walls, pose.numpy())))
        found = finder(grey)
        name = f"{first + number:06d}.png"
        out.append(Station(name, pose.numpy(), K.numpy(), (HEIGHT, WIDTH), found, encode_grey(grey, 640)))
    return out


def growing_of(stations: list[Station]) -> GrowingMap:
    """A map of pictures matched with the three before them."""
    settings = GrowSettings()
    links = {
        (stations[a].name, stations[b].name): link(stations[a], stations[b], settings.points)
        for b in range(len(stations))
        for a in range(max(0, b - 3), b)
    }
    number, first = {station.name: k for k, station in enumerate(stations)}, starts(stations)
    flat = [pair + first[[number[a], number[b]], None] for (a, b), pair in links.items()]
    made = map_of(stations, np.concatenate(flat, axis=1), settings.points)
    return GrowingMap(stations, made, known_lens=True, settings=settings, links=links)


@pytest.fixture(scope="module")
def walls() -> list[np.ndarray]:
    return room(0)


@pytest.fixture(scope="module")
def halves(walls) -> tuple[GrowingMap, GrowingMap]:
    """Two maps of one corner: of every other picture, the second in a frame of its own."""
    poses = path(12)
    apart = ELSEWHERE.inverse().apply_to_poses(poses[1::2])
    second = [
        replace(station, world_from_cam=pose.numpy())
        for station, pose in zip(stations_of(walls, poses[1::2], 100), apart, strict=True)
    ]
    return growing_of(stations_of(walls, poses[::2])), growing_of(second)


@pytest.mark.parametrize("of_a", [False, True])
def test_two_maps_of_one_place_become_one_in_the_older_frame(halves, of_a: bool):
    a, b = halves
    before = (a.map, b.map, a.stations, dict(a.links))
    answer = joined(a, b, (a if of_a else b).stations[-1], MeetSettings(), of_a=of_a)
    assert answer is not None
    whole, a_from_b = answer
    assert a_from_b.scale == pytest.approx(ELSEWHERE.scale, rel=0.02)
    points = torch.randn(5, 3, dtype=torch.float64)
    assert float((a_from_b.apply(points) - ELSEWHERE.apply(points)).norm(dim=-1).max()) < 0.12
    true = dict(zip([s.name for s in (*a.stations, *b.stations)], (*path(12)[::2], *path(12)[1::2]), strict=True))
    for station in whole.stations:
        assert np.linalg.norm(station.world_from_cam[:3, 3] - true[station.name].numpy()[:3, 3]) < 0.04
    assert len(whole.map) > max(len(a.map), len(b.map))
    assert (a.map, b.map, a.stations, dict(a.links)) == before  # what was given is as it was


def test_maps_of_two_places_stay_apart(halves):
    other = growing_of(stations_of(room(7), path(12)[:4], 200))
    assert joined(halves[0], other, other.stations[-1], MeetSettings()) is None
    assert joined(halves[0], other, halves[0].stations[-1], MeetSettings(), of_a=True) is None


def test_a_loop_takes_the_drift_out_of_the_way(walls):
    """There and back past the same corner; the way back matched with nothing of the way there, and drifted away."""
    there = path(10)
    true = torch.cat([there, there.flip(0)[1:7]])
    stations = stations_of(walls, true)
    grown = growing_of(stations)
    # No match across the turn of the way: as if the map had forgotten it.
    links = {pair: found for pair, found in grown.links.items() if not (pair[0] < "000006.png" <= pair[1])}
    drift = [Rotation.from_rotvec([0, 0.012 * k, 0.006 * k]).as_matrix() for k in range(10)]
    bent = list(stations[:6])
    for k, station in enumerate(stations[6:]):
        pose = station.world_from_cam.copy()
        pose[:3] = drift[k] @ (pose[:3] * [1, 1, 1, 1 + 0.01 * k])
        bent.append(replace(station, world_from_cam=pose))
    growing = GrowingMap(bent, grown.map, known_lens=True, links=links)
    growing.settle(4)
    mended = closed(growing, MeetSettings(apart=4))
    assert mended is not None

    def off(each: GrowingMap) -> float:
        centers = torch.stack([torch.from_numpy(station.world_from_cam[:3, 3]) for station in each.stations])
        goal = true[:, :3, 3]
        return float((umeyama(goal, centers).apply(centers) - goal).norm(dim=-1).square().mean().sqrt())

    assert off(mended) < 0.5 * off(growing)
    assert len(growing.stations) == len(mended.stations)
    # Without far pictures there is no loop.
    assert closed(growing, MeetSettings(apart=40)) is None


def test_a_part_of_a_map_is_a_map(halves):
    made = halves[0].map
    views = np.array([True, False, True, True, False, True])
    part = part_of(made, views)
    assert part.names == tuple(name for name, mine in zip(made.names, views, strict=True) if mine)
    assert len(part.obs_view) == int(views[made.obs_view].sum())
    assert set(np.unique(part.obs_point)) == set(range(len(part)))
    row = len(part.obs_view) // 2
    name = part.names[part.obs_view[row]]
    same = (made.obs_xy == part.obs_xy[row]).all(1) & (made.obs_view == made.names.index(name))
    assert (made.positions[made.obs_point[same]] == part.positions[part.obs_point[row]]).all()


@pytest.mark.slow
def test_a_lost_camera_begins_another_map_and_comes_home(walls):
    """A corner, a jump to the opposite one (another map), and slowly back to where the first map sees something."""
    t = torch.linspace(0, 1, 12, dtype=torch.float64)
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    eye = torch.stack([0.4 - 1.3 * t, 0.5 * torch.sin(3 * t), 0.2 * torch.cos(4 * t)], -1)
    away = look_at(eye, torch.tensor([[-2.0, -1.4, 0.1]], dtype=torch.float64).expand(12, 3), up)
    turn, s = torch.linspace(-2.4, 0.2, 26, dtype=torch.float64), torch.linspace(0, 1, 26, dtype=torch.float64)[:, None]
    aim = torch.stack([2 * torch.cos(turn), 2 * torch.sin(turn), 0 * turn], -1)
    poses = path(32)[:20]
    back = look_at((1 - s) * eye[-1] + s * poses[10, :3, 3], aim, up)
    poses = torch.cat([poses, away, back, path(32)[8:14]])
    shots = Shots([picture(walls, pose.numpy()) for pose in poses])
    with ClassicalSession(known_lens=True, patient=True) as own:
        updates = list(scenetx.track(shots, scene=own, lens=LENS))
        joins = own.joins
    assert {update.map for update in updates[:20]} == {0}
    beside = [update for update in updates if update.map != 0]
    assert beside
    assert any("another one is being begun" in update.note for update in updates)
    assert set(joins) == {update.map for update in beside}
    assert updates[-1].map == 0
    assert any("are one now" in update.note for update in updates)
    posed = [
        (root_of(u.map, joins)[1].apply_to_poses(u.world_from_cam)[:3, 3], pose[:3, 3])
        for u, pose in zip(updates, poses, strict=True)
        if u.world_from_cam is not None and u.status in ("tracking", "relocalised")
    ]
    found, true = (torch.stack(column) for column in zip(*posed, strict=True))
    off = (umeyama(true, found).apply(found) - true).norm(dim=-1)
    assert len(posed) > 35
    assert float(off.square().mean().sqrt()) < 0.1  # of a path that is 2.5 wide


def test_trajectories_are_written_in_one_frame_where_maps_met(tmp_path):
    poses = path(12)
    with Trajectory(tmp_path) as trajectory:
        for k, pose in enumerate(poses):
            number = k // 4
            mine = ELSEWHERE.inverse().apply_to_poses(pose) if number == 1 else pose
            trajectory.add(Update(k, 0.1 * k, "tracking", mine, K, 1.0, map=number))
    assert into_one_frame(tmp_path, {1: (0, ELSEWHERE)}) == (8, 4)
    rows = read_tum(tmp_path / TUM)
    assert len(rows) == 8
    for (_, values), pose in zip(rows, poses, strict=False):
        assert values[:3] == pytest.approx(pose[:3, 3].tolist(), abs=1e-6)
    assert len(read_tum(tmp_path / "trajectory_map2_tum.txt")) == 4
    said = json.loads((tmp_path / MAPS).read_text())
    assert said["maps"]["1"]["frame"] == 0
    assert said["maps"]["2"]["frame"] == 2
    number, similarity = root_of(3, {3: (1, ELSEWHERE), 1: (0, ELSEWHERE)})
    assert number == 0
    assert similarity.scale == pytest.approx(ELSEWHERE.scale**2)
