"""Small scenes and one way to run a backend, shared by the splat tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from scenetx.core import Cameras, Gaussians, Render
from scenetx.core.cameras import look_at
from scenetx.splat import ScreenStats, rasterize

TENSORS = ("means", "quats", "scales", "opacities", "sh")


def make_scene(count, height=45, width=61, *, cameras=1, degree=3, size=0.06, seed=0, dtype=torch.float32):
    """Random Gaussians around the origin and cameras four units away."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    gaussians = Gaussians(
        means=normal(count, 3) * torch.tensor([1.2, 0.9, 0.6]),
        quats=normal(count, 4),
        scales=size * torch.exp(0.5 * normal(count, 3)),
        opacities=torch.rand(count, generator=generator) * 0.95 + 0.02,
        sh=0.3 * normal(count, (degree + 1) ** 2, 3),
    )
    eye = torch.tensor([[0.2, -0.3, -4.0]]) + 0.3 * normal(cameras, 3)
    poses = look_at(eye, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
    K = torch.tensor([[1.1 * width, 0, 0.48 * width], [0, 1.2 * width, 0.53 * height], [0, 0, 1.0]])
    return gaussians.to(dtype), Cameras(poses, K.repeat(cameras, 1, 1), height, width).to(dtype)


def render_and_differentiate(gaussians, cameras, backend, **options) -> tuple[Render, dict, ScreenStats]:
    """The render, the gradients of a fixed random functional of it, and the screen statistics."""
    leaves = {name: getattr(gaussians, name).detach().clone().requires_grad_() for name in TENSORS}
    pose = cameras.world_from_cam.detach().clone().requires_grad_()
    background = torch.tensor([0.2, 0.5, 0.9], dtype=pose.dtype, device=pose.device, requires_grad=True)
    stats = ScreenStats.zeros(len(gaussians), pose.device)
    render = rasterize(
        replace(gaussians, **leaves),
        replace(cameras, world_from_cam=pose),
        background=background,
        backend=backend,
        stats=stats,
        **options,
    )
    generator = torch.Generator().manual_seed(7)
    loss = 0
    for picture, weight in ((render.rgb, 1.0), (render.depth, 0.1), (render.alpha, 1.0)):
        loss = loss + weight * (torch.rand(picture.shape, generator=generator).to(picture) * picture).sum()
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    return render, {**gradients, "world_from_cam": pose.grad, "background": background.grad}, stats
