"""Plane-sweep depth against exact geometry, and what filling keeps."""

from dataclasses import replace

import pytest
import torch
from wall_scene import textured

from scenetx.core import InputError, Points
from scenetx.core.cameras import pixel_grid
from scenetx.geometry.sweep import SweepSettings, filled, sweep


def test_depth_of_a_textured_wall():
    views, exact, points = textured()
    found = sweep(views, points, SweepSettings(width=64, planes=32, window=5))
    for view, depth, truth in zip(found, (one.depth for one in found), exact, strict=True):
        assert depth is not None
        assert depth.shape == (view.height, view.width)
        known = depth > 0
        assert known.float().mean() > 0.4
        assert ((depth - truth).abs() / truth)[known].median() < 0.015
    masked = [replace(view, mask=pixel_grid(48, 64)[..., 0] < 32) for view in views]
    half = sweep(masked, points, SweepSettings(width=64, planes=16, window=5))[0].depth
    assert half is not None
    assert (half[:, 32:] == 0).all()
    assert (half[:, :32] > 0).any()


def test_what_shows_nothing_is_not_believed():
    views, _, points = textured(3)
    blank = [replace(view, image=torch.full_like(view.image, 127)) for view in views]
    assert all(view.depth is not None and not bool(view.depth.any()) for view in sweep(blank, points))


def test_holes_are_filled_from_around():
    depth = torch.full((13, 17), 2.0)
    depth[:, 9:] = 4.0
    holes = torch.rand(13, 17, generator=torch.Generator().manual_seed(0)) < 0.7
    closed = filled(torch.where(holes, 0.0, depth))
    torch.testing.assert_close(closed[~holes], depth[~holes])
    assert closed.min() >= 2 - 1e-5
    assert closed.max() <= 4 + 1e-5
    assert (closed - depth).abs()[:, :4].max() < 0.2
    assert not bool(filled(torch.zeros(5, 5)).any())
    torch.testing.assert_close(filled(depth), depth)


def test_bad_requests_are_one_line():
    views, _, points = textured(2)
    for some, cloud in ((views[:1], points), (views, None), (views, Points(points.positions * 0 - 99, points.colors))):
        with pytest.raises(InputError, match="sweep"):
            sweep(some, cloud)
    with pytest.raises(InputError, match="sweep"):
        SweepSettings(window=4)
