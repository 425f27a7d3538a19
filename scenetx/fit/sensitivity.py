"""How much pictures change with every number of every splat: what tells which numbers may be kept coarsely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError
from scenetx.splat import Backend, rasterize

LOOKS = 24  # pictures at least, if need be of one camera several times: each is one draw of a random estimate
LEAST = 1e-3  # of a number's mean sensitivity: what no camera sees is kept coarsely too, but not anyhow


@dataclass(frozen=True)
class Sensitivity:
    """The squared error of the pictures, mean over all their pixels and channels, that a change by 1 of each number
    adds, to second order and for each number alone. Shapes as in `Gaussians`; ``log_scales``: per e-fold."""

    means: Float[Tensor, "g 3"]
    quats: Float[Tensor, "g 4"]
    log_scales: Float[Tensor, "g 3"]
    opacities: Float[Tensor, "g"]
    sh: Float[Tensor, "g k 3"]

    @property
    def rest(self) -> Float[Tensor, "g"]:
        """Of a splat's view-dependent colour as a whole: the mean over its coefficients; above 0."""
        mean = self.sh[:, 1:].flatten(1).mean(1)
        return mean.clamp_min(1e-6 * float(mean.max()) + 1e-30)


def sensitivity(
    gaussians: Gaussians, cameras: Sequence[Cameras], *, seed: int = 0, backend: Backend = "auto"
) -> Sensitivity:
    """The diagonal of J^T J of the pictures that ``cameras`` take, divided by their number of pixels and channels.

    Estimated with random signs (Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007): one
    backward pass a picture gives J^T s, whose square has the diagonal as its mean. Deterministic in ``seed``. Raises
    InputError without a camera.
    """
    if not cameras:
        raise InputError("compress", "no camera", "give a scene with registered training views")
    generator = torch.Generator().manual_seed(seed)
    plain = gaussians.detach()
    names = ("means", "quats", "scales", "opacities", "sh")
    sums = {name: torch.zeros_like(getattr(plain, name)) for name in names}
    numbers = 0
    for _ in range(math.ceil(LOOKS / len(cameras))):
        for camera in cameras:
            leaves = {name: getattr(plain, name).clone().requires_grad_() for name in names[:-1]}
            # Colour is felt as much whatever it is, but where it is clamped to black for these cameras and not for
            # others; hence the second picture, of grey splats.
            grey = torch.zeros_like(plain.sh).requires_grad_()
            rgb = rasterize(replace(plain, **leaves), camera, backend=backend).rgb
            of_grey = rasterize(replace(plain, sh=grey), camera, backend=backend).rgb
            signs = torch.randint(0, 2, rgb.shape, generator=generator).mul(2).sub(1).to(rgb)
            gradients = torch.autograd.grad(((rgb + of_grey) * signs).sum(), [*leaves.values(), grey])
            for name, gradient in zip(names, gradients, strict=True):
                sums[name] += gradient.square().nan_to_num(0, 0, 0)
            numbers += rgb.numel()
    found = {name: total / numbers for name, total in sums.items()}
    found["log_scales"] = found.pop("scales") * plain.scales.square()
    return Sensitivity(**{name: _floored(values) for name, values in found.items()})


def _floored(values: Float[Tensor, "g *k"]) -> Float[Tensor, "g *k"]:
    return values.clamp_min(LEAST * float(values.mean())) if values.numel() else values
