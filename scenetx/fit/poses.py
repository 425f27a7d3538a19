"""Small corrections to the training cameras, in the frame and scale they came in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.rigid import cross_matrix, rigid, rotation_from_rotvec
from scenetx.fit.adam import Adam


class Poses:
    """A turn about each camera's own centre (radians, world axes) and a shift of the centre (in units of ``extent``).

    Moving, turning and scaling all cameras together with the splats changes no picture. That seven-dimensional freedom
    (the gauge, to first order) is projected out after every step, so the cameras stay in the input's frame and held-out
    cameras, which are not touched, stay registered to them.
    """

    def __init__(
        self, world_from_cam: Float[Tensor, "n 4 4"], *, extent: float, rate: float, device: str = "cpu"
    ) -> None:
        self.world_from_cam = world_from_cam.double()
        self.extent, self.rate = extent, rate
        count = len(world_from_cam)
        self.table = Adam({"delta": torch.zeros(count, 6, device=device)}, marker="delta")
        self.gauge = gauge_directions(self.world_from_cam[:, :3, 3] / extent).float().to(device)

    def apply(self, index: int) -> Float[Tensor, "1 4 4"]:
        return self._moved(self.table["delta"][index : index + 1], self.world_from_cam[index : index + 1])

    def step(self, progress: float) -> None:
        """Update what the last loss touched; ``progress`` in [0, 1] lowers the rate to a hundredth."""
        self.table.step({"delta": self.rate * 0.01**progress})
        with torch.no_grad():
            delta = self.table["delta"]
            flat = delta.reshape(-1)
            delta -= (self.gauge @ (self.gauge.T @ flat)).view_as(delta)

    def refined(self) -> Float[Tensor, "n 4 4"]:
        """``world_from_cam`` of all training cameras, float64."""
        return self._moved(self.table["delta"].detach().double(), self.world_from_cam)

    def _moved(self, delta: Tensor, world_from_cam: Tensor) -> Tensor:
        base = world_from_cam.to(delta)
        turned = rotation_from_rotvec(delta[:, :3]) @ base[:, :3, :3]
        return rigid(turned, base[:, :3, 3] + delta[:, 3:] * self.extent)


def gauge_directions(centers: Float[Tensor, "n 3"]) -> Float[Tensor, "m d"]:
    """Orthonormal columns spanning the first-order effect of a similarity on n cameras' (turn, shift), flattened."""
    count = len(centers)
    relative = centers - centers.mean(0)
    basis = torch.zeros(count, 6, 7, dtype=centers.dtype)
    for axis in range(3):
        unit = torch.eye(3, dtype=centers.dtype)[axis]
        basis[:, axis, axis] = 1  # a common turn about the middle turns each camera ...
        basis[:, 3:, axis] = relative @ cross_matrix(unit).T  # ... and swings its centre
        basis[:, 3 + axis, 3 + axis] = 1
    basis[:, 3:, 6] = relative
    columns, singular, _ = torch.linalg.svd(basis.reshape(-1, 7), full_matrices=False)
    return columns[:, singular > 1e-9 * singular.max()]
