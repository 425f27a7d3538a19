"""The rasterizer on CUDA, through gsplat (Ye et al., arXiv 2409.06765). gsplat is imported only when it is used."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.cameras import Cameras
from scenetx.core.errors import InputError
from scenetx.core.gaussians import Gaussians
from scenetx.core.scene import Render
from scenetx.splat.rules import LOW_PASS, MIN_QUAT_NORM
from scenetx.splat.stats import ScreenStats


def rasterize_cuda(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Float[Tensor, "3"],
    sh_degree: int,
    antialiased: bool,
    near: float,
    stats: ScreenStats | None,
) -> Render:
    """See `scenetx.splat.rasterize`. gsplat detaches the view directions: no gradient through them, unlike here.

    Raises InputError if gsplat cannot be loaded or compiled.
    """
    height, width = cameras.height, cameras.width
    usable = gaussians.finite() & (gaussians.quats.norm(dim=-1) > MIN_QUAT_NORM)
    index = None if bool(usable.all()) else usable.nonzero()[:, 0]
    g = gaussians if index is None else gaussians[index]
    picture, alpha, meta = _rasterization()(
        means=g.means,
        quats=g.quats,
        scales=g.scales,
        opacities=g.opacities.clamp(max=1),
        colors=g.sh,
        viewmats=cameras.cam_from_world,
        Ks=cameras.K,
        width=width,
        height=height,
        near_plane=near,
        eps2d=LOW_PASS,
        sh_degree=sh_degree,
        packed=False,
        render_mode="RGB+ED",
        absgrad=stats is not None,
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    if stats is not None:
        _note(stats, meta, index, height, width)
    alpha = alpha[..., 0]
    rgb = picture[..., :3] + (1 - alpha)[..., None] * background
    return Render(rgb, torch.where(alpha > 0, picture[..., 3], 0), alpha)


def _note(stats: ScreenStats, meta: dict[str, Any], index: Tensor | None, height: int, width: int) -> None:
    radii = meta["radii"]  # (n, g, 2) in 1.5, (n, g) before
    radii = radii.amax(-1) if radii.ndim == 3 else radii
    means2d = meta["means2d"]
    seen = [(row > 0).nonzero()[:, 0] for row in radii]
    for row, here in zip(radii, seen, strict=True):
        stats.saw(here if index is None else index[here], row[here].float(), height, width)

    def add_gradients(grad: Tensor) -> None:
        absgrad = getattr(means2d, "absgrad", grad)  # set by gsplat's backward just before this hook
        for row, here in zip(absgrad, seen, strict=True):
            stats.felt(here if index is None else index[here], row[here], height, width, len(seen))

    if means2d.requires_grad:
        means2d.register_hook(add_gradients)


def _rasterization() -> Any:
    try:
        from gsplat import rasterization
    except (ImportError, OSError, RuntimeError) as error:  # not installed, no packaging, or its build failed
        raise InputError(
            "rasterizer backend cuda",
            f"gsplat does not load ({error})",
            "pip install 'scenetx[cuda]' and nvcc, or use cpu",
        ) from error
    return rasterization
