"""How strongly opacity and size are held down: by how far apart the photos look from, and how often each is visited."""

import dataclasses
import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras, Original, Points, Scene, View
from scenetx.core.cameras import look_at
from scenetx.fit import FitSettings, fit_splats
from scenetx.fit.initialise import RESTRAINT, VISITS, restraint, viewing_distance, viewing_gap

HEIGHT, WIDTH = 24, 32


def around(degrees: list[float], *, held_out: tuple[int, ...] = ()) -> Scene:
    """Points about the origin, seen from a circle of radius 3 at these angles."""
    angle = torch.tensor(degrees).deg2rad()
    eyes = 3 * torch.stack([angle.cos(), angle.sin(), torch.zeros(len(angle))], -1)
    poses: Float[Tensor, "v 4 4"] = look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0, 1]))
    K = torch.tensor([[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]])
    g = torch.Generator().manual_seed(3)
    views = tuple(
        View(
            f"{i}.png",
            torch.randint(0, 255, (HEIGHT, WIDTH, 3), generator=g, dtype=torch.uint8),
            Original(f"{i}.png", HEIGHT, WIDTH),
            Cameras(pose[None], K[None], HEIGHT, WIDTH),
            held_out=i in held_out,
        )
        for i, pose in enumerate(poses)
    )
    points = 0.4 * torch.randn(80, 3, generator=g)
    return Scene(views, points=Points(points, torch.full((80, 3), 128, dtype=torch.uint8)), posed_by="input")


def gap(scene: Scene) -> float:
    return viewing_gap(scene, viewing_distance(scene))


def weight(scene: Scene, steps: int) -> float:
    return restraint(scene, viewing_distance(scene), steps)


@pytest.mark.parametrize("step", [3.0, 20.0])
def test_the_gap_is_the_angle_to_the_next_training_camera(step: float):
    assert gap(around([step * k for k in range(9)])) == pytest.approx(step, rel=0.1)
    every_second = around([step * k for k in range(9)], held_out=(1, 3, 5, 7))
    assert gap(every_second) == pytest.approx(2 * step, rel=0.1)


def test_cameras_that_stand_on_each_other_have_no_gap_and_a_single_one_has_all():
    assert gap(around([10.0, 10.0, 10.0])) == pytest.approx(0, abs=1e-4)
    assert gap(around([10.0])) == 180


def test_far_apart_and_often_visited_photos_are_held_down_more():
    near, far = around([2.0 * k for k in range(10)]), around([20.0 * k for k in range(10)])
    assert weight(near, 2000) == RESTRAINT[0]
    assert weight(far, 2000) == pytest.approx(RESTRAINT[0] * gap(far) * 200 / VISITS)
    assert RESTRAINT[0] < weight(far, 2000) < weight(far, 2200) < RESTRAINT[1]
    assert weight(far, 30_000) == RESTRAINT[1]
    assert weight(far, 10) == RESTRAINT[0]


def test_a_weight_that_is_given_stands_and_none_takes_the_photos_own():
    scene = around([20.0 * k for k in range(6)])
    quick = FitSettings(steps=40, width=WIDTH, max_splats=80, sh_degree=0, pyramid=0, initial_splats=1, exposure=False)

    def opacities(**changes: float) -> Tensor:
        *_, last = fit_splats(scene, dataclasses.replace(quick, clear=False, **changes))
        assert last.gaussians is not None
        return last.gaussians.opacities

    own = weight(scene, quick.steps)
    assert math.isclose(own, RESTRAINT[0])
    torch.testing.assert_close(opacities(), opacities(opacity_reg=own, scale_reg=own), rtol=0, atol=0)
    held, free = opacities(opacity_reg=1.0), opacities(opacity_reg=0.0)
    assert held.mean() < free.mean()
