"""3D Gaussians with activated values: what a rasterizer reads and every splat file is converted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenetx.core.rigid import Sim3, quat_from_rotation, rotation_from_quat

SH_C0 = 0.28209479177387814  # Y_0^0 = 1 / (2 sqrt(pi))


@dataclass(frozen=True)
class Gaussians:
    """``g`` Gaussians in the world frame.

    quats: wxyz, rotates the Gaussian's axes into the world; need not be normalised. scales: standard deviations along
    those axes, world units. opacities: in [0, 1]. sh: real spherical harmonics in the 3DGS order and sign (DC first),
    rgb = 0.5 + sum(sh * Y(direction from camera to mean)), clamped at 0.
    """

    means: Float[Tensor, "g 3"]
    quats: Float[Tensor, "g 4"]
    scales: Float[Tensor, "g 3"]
    opacities: Float[Tensor, "g"]
    sh: Float[Tensor, "g k 3"]
    antialiased: bool = False  # fitted with the 2D screen filter's opacity compensation (Mip-Splatting)

    def __post_init__(self) -> None:
        if math.isqrt(self.sh.shape[1]) ** 2 != self.sh.shape[1]:
            raise ValueError(f"gaussians: sh must hold 1, 4, 9 or 16 coefficients, not {self.sh.shape[1]}")

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: Bool[Tensor, "g"] | Int[Tensor, "m"] | slice) -> Gaussians:
        return self._map(lambda tensor: tensor[index])

    @property
    def sh_degree(self) -> int:
        return math.isqrt(self.sh.shape[1]) - 1

    @property
    def rgb(self) -> Float[Tensor, "g 3"]:
        """The colour without view dependence, in [0, 1]."""
        return (0.5 + SH_C0 * self.sh[:, 0]).clamp(0, 1)

    @property
    def covariances(self) -> Float[Tensor, "g 3 3"]:
        half = rotation_from_quat(self.quats) * self.scales[:, None, :]
        return half @ half.transpose(-1, -2)

    def to(self, like: torch.device | torch.dtype | str) -> Gaussians:
        return self._map(lambda tensor: tensor.to(like))

    def detach(self) -> Gaussians:
        return self._map(Tensor.detach)

    def finite(self) -> Bool[Tensor, "g"]:
        """True where every value is finite and the quaternion is not zero."""
        ok = self.quats.norm(dim=-1) > 0
        for tensor in self._tensors().values():
            ok &= tensor.flatten(1).isfinite().all(-1) if tensor.ndim > 1 else tensor.isfinite()
        return ok

    def transformed(self, a_from_b: Sim3) -> Gaussians:
        """The Gaussians of frame b in frame a. View-dependent colour is rotated too, band by band."""
        rotation = a_from_b.rotation.to(self.means)
        quats = quat_from_rotation(rotation @ rotation_from_quat(self.quats))
        sh = rotate_sh(self.sh, rotation)
        return replace(self, means=a_from_b.apply(self.means), quats=quats, scales=self.scales * a_from_b.scale, sh=sh)

    @staticmethod
    def cat(parts: list[Gaussians]) -> Gaussians:
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._tensors()
        }
        return replace(parts[0], **joined)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Gaussians:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **changed)


def sh_basis(directions: Float[Tensor, "*batch 3"], degree: int) -> Float[Tensor, "*batch k"]:
    """Real spherical harmonics up to ``degree`` (0 to 3) at unit directions, in the order and signs of 3DGS files."""
    x, y, z = directions.unbind(-1)
    one = torch.ones_like(x)
    out = [SH_C0 * one]
    if degree >= 1:
        c1 = 0.4886025119029199
        out += [-c1 * y, c1 * z, -c1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        c2, c20, c22 = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        out += [c2 * x * y, -c2 * y * z, c20 * (2 * zz - xx - yy), -c2 * x * z, c22 * (xx - yy)]
    if degree >= 3:
        c33, c32, c31 = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
        out += [
            -c33 * y * (3 * xx - yy),
            c32 * x * y * z,
            -c31 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -c31 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -c33 * x * (xx - 3 * yy),
        ]
    return torch.stack(out, dim=-1)


def rotate_sh(sh: Float[Tensor, "g k 3"], a_from_b: Float[Tensor, "3 3"]) -> Float[Tensor, "g k 3"]:
    """Coefficients in frame a of functions given in frame b.

    A band is closed under rotation, so its matrix is found by evaluating the basis at enough directions and solving;
    in float64 the residual is rounding error, with no table of Wigner matrices.
    """
    degree = math.isqrt(sh.shape[1]) - 1
    if degree == 0:
        return sh
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    here = sh_basis(directions, degree)
    there = sh_basis(directions @ a_from_b.double().cpu(), degree)  # direction_b = b_from_a @ direction_a
    out = sh.clone()
    for band in range(1, degree + 1):
        part = slice(band * band, (band + 1) ** 2)
        matrix = torch.linalg.lstsq(here[:, part], there[:, part]).solution
        out[:, part] = torch.einsum("ij,gjc->gic", matrix.to(sh), sh[:, part])
    return out
