"""Rotations, rigid motions and similarities. A transform is named target first: ``a_from_b`` maps frame b into a."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def rotation_from_quat(quat: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion wxyz of any length but zero (it is normalised here)."""
    w, x, y, z = torch.nn.functional.normalize(quat, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quat_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion wxyz with w >= 0 of a rotation matrix.

    All four candidate formulas are evaluated and the best conditioned one is taken (Shepperd, 1978), so no angle is a
    special case.
    """
    m = rotation
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    w2, x2 = 1 + m00 + m11 + m22, 1 + m00 - m11 - m22
    y2, z2 = 1 - m00 + m11 - m22, 1 - m00 - m11 + m22
    zy, xz, yx = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, zx, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    candidates = torch.stack(
        [
            torch.stack([w2, zy, xz, yx], -1),
            torch.stack([zy, x2, xy, zx], -1),
            torch.stack([xz, xy, y2, yz], -1),
            torch.stack([yx, zx, yz, z2], -1),
        ],
        dim=-2,
    )
    best = torch.stack([w2, x2, y2, z2], -1).argmax(-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    quat = torch.nn.functional.normalize(candidates.gather(-2, index).squeeze(-2), dim=-1)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def rotation_from_rotvec(rotvec: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Exponential map of so(3) (Rodrigues), exact and differentiable at zero; radians."""
    return torch.linalg.matrix_exp(cross_matrix(rotvec))


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix ``[v]x`` with ``[v]x @ u = v x u``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def rotation_angle(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle of a rotation in radians, in [0, pi]; accurate near zero, where arccos of the trace is not."""
    skew = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        dim=-1,
    )
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(skew.norm(dim=-1), trace - 1)


def rigid(rotation: Float[Tensor, "*batch 3 3"], translation: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """The 4x4 matrix of ``x -> rotation @ x + translation``."""
    out = torch.zeros(*rotation.shape[:-2], 4, 4, dtype=rotation.dtype, device=rotation.device)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = translation
    out[..., 3, 3] = 1
    return out


def invert_rigid(a_from_b: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """``b_from_a``, by the transpose: exact for rigid matrices, wrong for any other."""
    rotation = a_from_b[..., :3, :3].transpose(-1, -2)
    return rigid(rotation, -(rotation @ a_from_b[..., :3, 3:]).squeeze(-1))


@dataclass(frozen=True)
class Sim3:
    """A similarity ``x_a = scale * rotation @ x_b + translation`` between frames."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    @staticmethod
    def identity() -> Sim3:
        return Sim3(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    def apply(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of frame b in frame a, in the dtype of the points."""
        rotation, translation = self.rotation.to(points), self.translation.to(points)
        return self.scale * points @ rotation.T + translation

    def apply_to_poses(self, b_from_cam: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
        """Camera poses of frame b in frame a. The scale moves the centres; the rotations stay rotations."""
        rotation = self.rotation.to(b_from_cam) @ b_from_cam[..., :3, :3]
        return rigid(rotation, self.apply(b_from_cam[..., :3, 3]))

    def inverse(self) -> Sim3:
        rotation = self.rotation.T
        return Sim3(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def __matmul__(self, other: Sim3) -> Sim3:
        translation = self.scale * self.rotation @ other.translation + self.translation
        return Sim3(self.scale * other.scale, self.rotation @ other.rotation, translation)


def umeyama(target: Float[Tensor, "n 3"], source: Float[Tensor, "n 3"], *, with_scale: bool = True) -> Sim3:
    """Least-squares similarity ``target_from_source`` (Umeyama, 1991, eq. 40-42), in float64.

    Needs three points that are not on a line for a unique rotation; fewer give some rotation that fits.
    """
    target, source = target.double(), source.double()
    target_mean, source_mean = target.mean(0), source.mean(0)
    x, y = source - source_mean, target - target_mean
    u, d, vh = torch.linalg.svd(y.T @ x / len(x))
    sign = torch.ones(3, dtype=d.dtype)
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = u @ torch.diag(sign) @ vh
    variance = x.square().sum(-1).mean()
    scale = float((d * sign).sum() / variance) if with_scale and variance > 0 else 1.0
    return Sim3(scale, rotation, target_mean - scale * rotation @ source_mean)
