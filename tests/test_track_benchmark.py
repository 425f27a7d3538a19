"""What benchmarks/track.py counts: frames that are said to be tracked and are wrong; lenses made of a sequence's."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from scenetx.core import InputError, Sim3
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.io.lens import distort
from scenetx.live.intrinsics import GivenLens
from scenetx.live.update import Status, Update

HEIGHT, WIDTH, FOCAL = 90, 120, 100.0
LENS = GivenLens(K=(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "track.py"
    spec = importlib.util.spec_from_file_location("track_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def turn(degrees: float) -> torch.Tensor:
    return rotation_from_rotvec(torch.tensor([0.0, np.deg2rad(degrees), 0.0], dtype=torch.float64))


def poses(count: int = 40) -> torch.Tensor:
    """A quarter of a circle of radius 1."""
    out = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    for k in range(count):
        t = k / count * np.pi / 2
        out[k, :3, :3] = turn(30 * t)
        out[k, :3, 3] = torch.tensor([np.sin(t), 0.2 * np.sin(5 * t), np.cos(t)])
    return out


def update(k: int, pose: torch.Tensor | None, status: Status = "tracking") -> Update:
    return Update(k, k / 10, status, pose, torch.eye(3).double(), 1.0, name=f"{k}.png", latency=0.01)


def test_wrong_frames_are_counted_in_a_frame_that_they_do_not_bend(bench):
    true = poses()
    truth = {f"{k}.png": pose for k, pose in enumerate(true)}
    elsewhere = Sim3(3.0, turn(70), torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))
    found = elsewhere.apply_to_poses(true)
    extent = bench.extent_of(true[:, :3, 3])
    found[3, :3, 3] += 3 * 0.04 * extent * torch.tensor([0.0, 1.0, 0.0])  # 4 percent: not wrong
    found[5:15, :3, 3] += 3 * 0.5 * extent * torch.tensor([0.0, 1.0, 0.0])
    found[20, :3, :3] = found[20, :3, :3] @ turn(7)
    found[21, :3, :3] = found[21, :3, :3] @ turn(4)
    found[30, :3, 3] += 100
    updates = [update(k, pose) for k, pose in enumerate(found)]
    updates[30] = update(30, found[30], "unsure")
    updates[31] = update(31, None, "lost")
    out = bench.wrong_frames(updates, truth)
    assert out["tracked"] == 38
    assert out["wrong"] == 11
    assert out["worst_percent"] == pytest.approx(50, abs=0.5)
    assert out["worst_deg"] == pytest.approx(7, abs=0.2)
    assert bench.wrong_frames(updates[:3], truth) == {"tracked": 3}
    # The plain fit to all, of which the ATE is, is drawn towards them.
    assert bench.errors(updates, truth)["ate_percent"] > 10


def test_rotations_are_judged_where_the_path_is_a_line(bench):
    """A fit to centres alone leaves the turn about the line to the noise."""
    true = poses()
    rng = np.random.default_rng(0)
    true[:, :3, 3] = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 2.0])
    found = true.clone()
    found[:, :3, 3] += torch.from_numpy(0.002 * rng.normal(size=(40, 3)))
    truth = {f"{k}.png": pose for k, pose in enumerate(true)}
    updates = [update(k, pose) for k, pose in enumerate(found)]
    assert bench.errors(updates, truth)["rotation_deg_median"] > 5
    out = bench.wrong_frames(updates, truth)
    assert out["wrong"] == 0
    assert out["worst_deg"] < 0.5


def test_a_pass_says_the_focal_length_beside_the_true_one(bench):
    K = torch.diag(torch.tensor([97.04, 97.04, 1.0], dtype=torch.float64))
    true = poses(6)
    updates = [Update(k, 0.1 * k, "tracking", pose, K, 1.0, name=str(k)) for k, pose in enumerate(true)]
    updates.append(Update(6, 0.6, "lost", None, torch.eye(3).double(), 0.0, name="6", latency=0.1))
    out = bench.judged(updates, {str(k): pose for k, pose in enumerate(true)}, 100.0)
    assert (out["focal_found"], out["focal_true"], out["wrong"]) == (97.0, 100.0, 0)
    assert out["states"] == {"lost": 1, "tracking": 6}


def test_other_lenses_are_made_of_a_sequence(bench):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([2 * x, 2 * y, np.full_like(x, 7)], axis=2).astype(np.uint8)
    asked = argparse.Namespace(bend=-0.3, crop=100.0)
    [(name, made)], lens = bench.other_lens([("a.png", rgb)], LENS, asked)
    assert name == "a.png"
    assert lens.distortion == (-0.3, 0.0, 0.0, 0.0)
    assert made.shape[1] < WIDTH
    # Each pixel shows what the straight picture shows where the ray of its lens goes.
    fx, fy, cx, cy = lens.K
    for ray in ([0.3, 0.2], [-0.25, 0.3], [0.0, 0.0]):
        seen = distort(torch.tensor([ray], dtype=torch.float64), lens.distortion)[0].numpy() * [fx, fy] + [cx, cy]
        column, row = np.floor(seen).astype(int)
        straight = np.array(ray) * FOCAL + [WIDTH / 2, HEIGHT / 2]
        assert np.abs(made[row, column, :2] / 2 + 0.5 - straight).max() < 1.3
    [(_, middle)], lens = bench.other_lens([("a.png", rgb)], LENS, argparse.Namespace(bend=0.0, crop=60.0))
    assert middle.shape == (54, 72, 3)
    assert lens.K == (FOCAL, FOCAL, 36.0, 27.0)
    assert (middle == rgb[18:72, 24:96]).all()
    with pytest.raises(InputError, match="bent already"):
        bench.other_lens([("a.png", rgb)], GivenLens(K=LENS.K, distortion=(0.1,)), asked)
