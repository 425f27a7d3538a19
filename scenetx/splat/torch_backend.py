"""The definition of the picture: short, differentiable, any float dtype. The other backends are tested on it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.cameras import Cameras, pixel_grid
from scenetx.core.gaussians import Gaussians, sh_basis
from scenetx.core.rigid import rotation_from_quat
from scenetx.core.scene import Render
from scenetx.splat.rules import (
    FRUSTUM_MARGIN,
    LOW_PASS,
    MAX_ALPHA,
    MIN_ALPHA,
    MIN_QUAT_NORM,
    MIN_TRANSMITTANCE,
)
from scenetx.splat.stats import ScreenStats

TILE = 32  # pixels; only how the work is cut, no tile changes the picture


class Splats(NamedTuple):
    """Gaussians as one camera sees them, in pixels."""

    means: Float[Tensor, "v 2"]
    conics: Float[Tensor, "v 3"]  # xx, xy, yy of the inverse screen covariance
    radii: Float[Tensor, "v 2"]  # half box in which alpha reaches MIN_ALPHA
    opacities: Float[Tensor, "v"]
    colors: Float[Tensor, "v 3"]
    depths: Float[Tensor, "v"]

    def visible(self, height: int, width: int, near: float) -> Tensor:
        """True where the splat touches the picture. Whatever overflowed does not: it has no picture to give."""
        size = self.means.new_tensor([width, height])
        inside = (self.means + self.radii > 0) & (self.means - self.radii < size)
        finite = torch.cat([self.means, self.conics, self.radii, self.colors], dim=-1).isfinite().all(-1)
        return (self.depths >= near) & (self.opacities >= MIN_ALPHA) & inside.all(-1) & finite & self.depths.isfinite()


def rasterize_torch(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Float[Tensor, "3"],
    sh_degree: int,
    antialiased: bool,
    near: float,
    stats: ScreenStats | None,
) -> Render:
    """See `scenetx.splat.rasterize`. Memory: splats in a tile x its pixels; an oracle, no engine."""
    gaussians = gaussians._map(_with_finite_gradients)
    cameras = replace(cameras, world_from_cam=_with_finite_gradients(cameras.world_from_cam))
    pictures = [
        _render_one(gaussians, cameras[i], background, sh_degree, antialiased, near, stats, len(cameras))
        for i in range(len(cameras))
    ]
    if not pictures:
        empty = gaussians.means.new_zeros(0, cameras.height, cameras.width)
        return Render(empty[..., None].expand(-1, -1, -1, 3), empty, empty)
    rgb, depth, alpha = (torch.stack(maps) for maps in zip(*pictures, strict=True))
    return Render(rgb, depth, alpha)


def project_splats(gaussians: Gaussians, camera: Cameras, sh_degree: int, antialiased: bool) -> Splats:
    """Elliptical weighted average splats (Zwicker 2001; Kerbl 2023, eq. 5) with the view-dependent colour.

    The determinant of the screen covariance ``P P^T`` is taken as the squared cross product of the rows of ``P``
    (Lagrange), which thin splats cannot make negative by rounding.
    """
    world_from_cam, K = camera.world_from_cam[0], camera.K[0]
    rotation, center = world_from_cam[:3, :3], world_from_cam[:3, 3]
    x, y, z = ((gaussians.means - center) @ rotation).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]

    # Far outside the picture the linearised projection explodes, so it is taken at its margin there.
    slope_x = _clamp_slope(x / z, fx, cx, camera.width)
    slope_y = _clamp_slope(y / z, fy, cy, camera.height)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], -1).unflatten(-1, (2, 3))
    half = jacobian @ (rotation.T @ (rotation_from_quat(gaussians.quats) * gaussians.scales[:, None, :]))
    det_sharp = torch.linalg.cross(half[:, 0], half[:, 1], dim=-1).square().sum(-1)
    xx, xy, yy = (half[:, 0] ** 2).sum(-1), (half[:, 0] * half[:, 1]).sum(-1), (half[:, 1] ** 2).sum(-1)
    det = det_sharp + LOW_PASS * (xx + yy) + LOW_PASS**2
    xx, yy = xx + LOW_PASS, yy + LOW_PASS

    opacities = gaussians.opacities.clamp(max=1)
    if antialiased:
        opacities = opacities * (det_sharp / det).sqrt()
    reach = 2 * torch.log((opacities / MIN_ALPHA).clamp(min=1))
    directions = torch.nn.functional.normalize(gaussians.means - center, dim=-1)
    basis = sh_basis(directions, sh_degree)
    colors = (0.5 + (basis[..., None] * gaussians.sh).sum(-2)).clamp(min=0)
    return Splats(
        means=torch.stack([fx * x / z + cx, fy * y / z + cy], -1),
        conics=torch.stack([yy, -xy, xx], -1) / det[:, None],
        radii=torch.stack([reach * xx, reach * yy], -1).detach().sqrt(),
        opacities=opacities,
        colors=colors,
        depths=z,
    )


def composite(
    splats: Splats, delta: Float[Tensor, "v p 2"]
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p"], Float[Tensor, "p"]]:
    """Front-to-back blending of depth-sorted splats at offsets ``delta`` = mean - pixel centre: rgb, sum of wz, alpha.

    A pixel stops before the first splat that would bring its transmittance to MIN_TRANSMITTANCE or below.
    """
    a, b, c = splats.conics[:, None].unbind(-1)
    dx, dy = delta.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (splats.opacities[:, None] * torch.exp(-sigma)).clamp(max=MAX_ALPHA)
    alpha = torch.where((sigma >= 0) & (alpha >= MIN_ALPHA), alpha, 0)
    log_keep = torch.log1p(-alpha)
    log_after = log_keep.cumsum(0)
    weights = torch.where(log_after > math.log(MIN_TRANSMITTANCE), alpha * torch.exp(log_after - log_keep), 0)
    return weights.T @ splats.colors, weights.T @ splats.depths, weights.sum(0)


def _render_one(
    gaussians: Gaussians,
    camera: Cameras,
    background: Tensor,
    sh_degree: int,
    antialiased: bool,
    near: float,
    stats: ScreenStats | None,
    num_cameras: int,
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = camera.height, camera.width
    gaussians = replace(gaussians, sh=gaussians.sh[:, : (sh_degree + 1) ** 2])
    with torch.no_grad():  # only what is visible enters the graph, so what is not gets a gradient of exactly zero
        splats = project_splats(gaussians, camera, sh_degree, antialiased)
        usable = gaussians.finite() & (gaussians.quats.norm(dim=-1) > MIN_QUAT_NORM)
        visible = (usable & splats.visible(height, width, near)).nonzero()[:, 0]
        order = visible[splats.depths[visible].argsort(stable=True)]
    splats = project_splats(gaussians[order], camera, sh_degree, antialiased)
    absgrad = torch.zeros_like(splats.means)
    if stats is not None:
        stats.saw(order, splats.radii.ceil().amax(-1), height, width)
        if splats.means.requires_grad:
            splats.means.register_hook(lambda _: stats.felt(order, absgrad, height, width, num_cameras))

    pixels = pixel_grid(height, width, dtype=splats.means.dtype).to(splats.means.device)
    bands = []
    for top in range(0, height, TILE):
        tiles = [
            _render_tile(splats, pixels[top : top + TILE, left : left + TILE], absgrad, stats is not None)
            for left in range(0, width, TILE)
        ]
        bands.append(torch.cat(tiles, dim=1))
    rgb, weighted_depth, alpha = torch.cat(bands, dim=0).split([3, 1, 1], dim=-1)
    rgb = rgb + (1 - alpha) * background
    empty = alpha == 0
    depth = torch.where(empty, 0, weighted_depth / torch.where(empty, 1, alpha))
    return rgb, depth[..., 0], alpha[..., 0]


def _render_tile(splats: Splats, pixels: Tensor, absgrad: Tensor, wants_absgrad: bool) -> Tensor:
    h, w, _ = pixels.shape
    pixels = pixels.reshape(-1, 2)
    with torch.no_grad():
        touches = (splats.means + splats.radii > pixels[0] - 0.5) & (splats.means - splats.radii < pixels[-1] + 0.5)
        here = touches.all(-1).nonzero()[:, 0]
    near_by = Splats(*(values[here] for values in splats))
    delta = near_by.means[:, None] - pixels
    if wants_absgrad and delta.requires_grad:

        def add_absolute(grad: Tensor) -> None:
            absgrad.index_add_(0, here, grad.detach().abs().sum(1))

        delta.register_hook(add_absolute)
    rgb, depth, alpha = composite(near_by, delta)
    return torch.cat([rgb, depth[:, None], alpha[:, None]], dim=-1).reshape(h, w, 5)


def _clamp_slope(slope: Tensor, focal: Tensor, principal: Tensor, size: int) -> Tensor:
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    return torch.minimum(torch.maximum(slope, -principal / focal - margin), (size - principal) / focal + margin)


def _with_finite_gradients(tensor: Tensor) -> Tensor:
    """The same tensor, with zero gradients where float arithmetic overflowed (scales of 1e30 and so on)."""
    if not tensor.requires_grad:
        return tensor

    def finite(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)

    tensor = tensor.view_as(tensor)
    tensor.register_hook(finite)
    return tensor
