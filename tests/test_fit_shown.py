"""Splats that no photo would miss: what stands in the dark goes, what darkens something stays."""

import math

import pytest
import torch

from scenetx.core import Cameras, Gaussians
from scenetx.core.cameras import look_at
from scenetx.core.gaussians import SH_C0
from scenetx.fit.shown import PLAIN, shown, unmissed
from scenetx.fit.targets import Target
from scenetx.splat import rasterize

HEIGHT, WIDTH, COUNT = 48, 64, 8
BLACK = torch.zeros(3)


def splats(places: list[tuple[float, float, float]], color: float, size: float, opacity: float = 0.95) -> Gaussians:
    count = len(places)
    return Gaussians(
        means=torch.tensor(places),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        scales=torch.full((count, 3), size),
        opacities=torch.full((count,), opacity),
        sh=torch.full((count, 1, 3), (color - 0.5) / SH_C0),
    )


def joined(*parts: Gaussians) -> Gaussians:
    names = ("means", "quats", "scales", "opacities", "sh")
    return Gaussians(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    """A ring that looks at the origin from a little above."""
    angle = torch.arange(COUNT) / COUNT * 2 * math.pi
    eyes = torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.full_like(angle, 0.5)], -1)
    K = torch.tensor([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    return Cameras(look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0, 1])), K.repeat(COUNT, 1, 1), HEIGHT, WIDTH)


OBJECT = splats([(0, 0, 0), (0.2, 0, 0), (0, 0.2, 0), (0, 0, 0.2)], 0.8, 0.15)
LID = splats([(0, 0, 1.6)], 0.0, 0.25)  # over the object: seen from the ring against nothing
COAT = splats([(0.75, 0, 0.1), (0.8, 0, 0.1)], 0.0, 0.12)  # before the object, in two layers, seen from one side
AWAY = splats([(30.0, 30.0, 80.0)], 0.9, 0.1)  # in nobody's picture


def photos(gaussians: Gaussians, cameras: Cameras, background: torch.Tensor = BLACK) -> list[Target]:
    rgb = rasterize(gaussians, cameras, background=background).rgb
    return [Target((one.clamp(0, 1) * 255).round().byte(), cameras[k : k + 1], None) for k, one in enumerate(rgb)]


def test_what_is_shown_is_the_blending_weight(cameras):
    everything = joined(OBJECT, COAT, LID)
    half = torch.zeros(HEIGHT, WIDTH)
    half[:, : WIDTH // 2] = 1
    found = shown(everything, cameras[0:1], torch.stack([torch.ones_like(half), half, 1 - half], -1))
    alpha = rasterize(everything, cameras[0:1]).alpha[0].reshape(HEIGHT, WIDTH)
    assert found[:, 0].sum().item() == pytest.approx(alpha.sum().item(), rel=1e-4)
    assert found[:, 1].sum().item() == pytest.approx((alpha * half).sum().item(), rel=1e-4)
    assert torch.allclose(found[:, 0], found[:, 1] + found[:, 2], atol=1e-4)


def test_a_black_lid_over_an_object_goes_and_a_black_coat_before_it_stays(cameras):
    everything = joined(OBJECT, LID, COAT, AWAY)
    targets = photos(everything, cameras)
    gone = unmissed(everything, targets, BLACK)
    assert gone.tolist() == [False] * 4 + [True] + [False] * 2 + [True]
    for target in targets:
        before, after = (rasterize(g, target.camera).rgb for g in (everything, everything[~gone]))
        assert float((before - after).abs().max()) < PLAIN
    # From above the lid had hidden what is there.
    above = Cameras(look_at(torch.tensor([[0.0, 0.1, 4.0]]), torch.zeros(3), torch.tensor([0.0, 1, 0])), *_lens())
    hidden, free = (rasterize(g, above).rgb[0, HEIGHT // 2, WIDTH // 2].max() for g in (everything, everything[~gone]))
    assert float(hidden) < 0.4
    assert float(free) > 0.6


def test_what_a_mask_leaves_out_is_not_judged(cameras):
    everything = joined(OBJECT, LID)
    top = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    top[: HEIGHT // 2] = False
    masked = [Target(one.photo, one.camera, top) for one in photos(everything, cameras)]
    assert not unmissed(everything, masked, BLACK).any()


def test_the_background_may_have_any_color(cameras):
    white = torch.ones(3)
    pale = splats([(0, 0, 1.6)], 1.0, 0.25)
    everything = joined(OBJECT, pale, LID)
    gone = unmissed(everything, photos(everything, cameras, white), white)
    assert gone.tolist() == [False] * 6
    gone = unmissed(joined(OBJECT, pale), photos(joined(OBJECT, pale), cameras, white), white)
    assert gone.tolist() == [False] * 4 + [True]


def _lens() -> tuple[torch.Tensor, int, int]:
    return torch.tensor([[[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]]]), HEIGHT, WIDTH
