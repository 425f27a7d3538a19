"""The one door to a picture of Gaussians."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.cameras import Cameras
from scenetx.core.errors import InputError
from scenetx.core.gaussians import Gaussians
from scenetx.core.scene import Render
from scenetx.splat.stats import ScreenStats

Backend = Literal["auto", "torch", "cpu", "cuda"]


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Float[Tensor, "3"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool | None = None,
    near: float = 0.01,
    backend: Backend = "auto",
    stats: ScreenStats | None = None,
) -> Render:
    """Pictures of ``gaussians`` (world frame) from every camera: rgb, expected z-depth (world units) and alpha.

    Splats are projected by their linearised covariance and blended front to back (Zwicker 2001; Kerbl 2023) with
    gsplat's constants (`scenetx.splat.rules`). Differentiable in all tensors of ``gaussians``, in ``background`` and in
    ``cameras.world_from_cam`` (its upper 3x4, taken as free numbers: the caller keeps the rotation a rotation). The
    hard cut-offs (alpha below 1/255, the end of a ray, the order of splats) have no gradient.

    background: linear rgb behind the splats, default black. sh_degree: highest band used, default all there are;
    more than there are means all. antialiased: opacity compensation of the low-pass filter (Mip-Splatting), default as
    the Gaussians were fitted. near: splats with z below this, world units, are not drawn. stats: added to in place.

    What is not finite, not in front or too faint draws nothing and gets a gradient of zero. Not guaranteed: rgb is at
    least 0 but may exceed 1; opacities above 1 count as 1; the picture does not depend on the number of threads but in
    the last bits on the backend; the ``cuda`` backend gives no gradient through the view direction of the colour.
    Raises InputError for a backend that cannot be had, or tensors it cannot take.
    """
    chosen = resolve_backend(backend, gaussians.means.device, gaussians.means.dtype)
    like = gaussians.means
    cameras = cameras.to(like.device).to(like.dtype)
    background = like.new_zeros(3) if background is None else background.to(like)
    degree = gaussians.sh_degree if sh_degree is None else min(sh_degree, gaussians.sh_degree)
    if degree < 0:
        raise InputError("sh_degree", degree, "use 0 to 3")
    if gaussians.sh_degree > 3:
        raise InputError("spherical harmonics degree of the Gaussians", gaussians.sh_degree, "use at most 3")
    if stats is not None and len(stats.seen) != len(gaussians):
        raise InputError("stats", f"{len(stats.seen)} entries", f"make them for {len(gaussians)} Gaussians")
    smooth = gaussians.antialiased if antialiased is None else antialiased
    arguments = (gaussians, cameras, background, degree, smooth, near, stats)
    if chosen == "cuda":
        from scenetx.splat.gsplat_backend import rasterize_cuda

        return rasterize_cuda(*arguments)
    if chosen == "cpu":
        from scenetx.splat.cpu_backend import rasterize_cpu

        return rasterize_cpu(*arguments)
    from scenetx.splat.torch_backend import rasterize_torch

    return rasterize_torch(*arguments)


def resolve_backend(
    backend: Backend, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Literal["torch", "cpu", "cuda"]:
    """The backend that will run for tensors on ``device``. Raises InputError, saying how to get it, if it cannot."""
    kind = torch.device(device).type
    if backend == "torch":
        return "torch"
    if backend == "auto":
        if kind == "cuda" and dtype == torch.float32 and _cuda_missing() is None:
            return "cuda"
        return "cpu" if kind == "cpu" and dtype == torch.float32 else "torch"
    if kind != backend:
        raise InputError(f"rasterizer backend {backend}", f"tensors on {kind}", f"move them to {backend} or use auto")
    if dtype != torch.float32:
        raise InputError(f"rasterizer backend {backend}", dtype, "use float32 tensors or the torch backend")
    if backend == "cuda":
        missing = _cuda_missing()
        if missing is not None:
            raise InputError("rasterizer backend cuda", *missing)
    return backend


def _cuda_missing() -> tuple[str, str] | None:
    """Why gsplat cannot run here, and the cure."""
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        return "no CUDA device that this torch can use", "use backend cpu, or install a CUDA build of torch"
    for module in ("gsplat", "packaging"):  # gsplat 1.5.3 forgets to require packaging
        if find_spec(module) is None:
            return f"{module} is not installed", "pip install 'scenetx[cuda]' (gsplat compiles with nvcc on first use)"
    return None
