"""One affine colour transform per training picture, so that a changing exposure is not painted into the scene."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.fit.adam import Adam


class Exposure:
    """``photo = M @ [render, 1]`` with one 3x4 M per picture, all starting at the identity.

    Only differences between pictures can be known, so the mean of all M is held at the identity (the gauge): a held-out
    picture, rendered without a correction, is neither brightened nor tinted by the training pictures. A decay towards
    the identity keeps a picture from explaining geometry by colour.
    """

    def __init__(self, count: int, *, rate: float, decay: float, device: str = "cpu") -> None:
        self.table = Adam({"delta": torch.zeros(count, 3, 4, device=device)}, marker="delta")
        self.rate, self.decay = rate, decay

    def apply(self, rgb: Float[Tensor, "h w 3"], index: int) -> Float[Tensor, "h w 3"]:
        delta = self.table["delta"][index]
        return torch.addmm(delta[:, 3], rgb.reshape(-1, 3), delta[:, :3].T).view_as(rgb) + rgb

    def step(self, progress: float) -> None:
        """Update what the last loss touched; ``progress`` in [0, 1] lowers the rate to a tenth."""
        self.table.step({"delta": self.rate * 0.1**progress})
        with torch.no_grad():
            delta = self.table["delta"]
            delta *= 1 - self.rate * self.decay
            delta -= delta.mean(0)

    def matrices(self) -> Float[Tensor, "n 3 4"]:
        return self.table["delta"].detach() + torch.eye(3, 4, device=self.table.counts.device)
