"""What a geometry model says of a set of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras


@dataclass(frozen=True)
class Geometry:
    """``n`` pictures' cameras and dense maps, at the pixels the model saw.

    cameras: in the model's own world (its frame and scale; metres where the model is metric). depth: z. confidence: the
    model's own scale, larger is surer. points: in the world, where the model has a head for them. ``published`` holds
    the published code's outputs under its own names and conventions (for instance ``pose_enc``, ``extrinsics``).
    """

    cameras: Cameras
    depth: Float[Tensor, "n h w"] | None = None
    confidence: Float[Tensor, "n h w"] | None = None
    points: Float[Tensor, "n h w 3"] | None = None
    metric: bool = False
    published: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cameras)

    def to(self, device: torch.device | str) -> Geometry:
        """The same answer elsewhere."""

        def there(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)

        return replace(
            self,
            cameras=self.cameras.to(device),
            depth=there(self.depth),
            confidence=there(self.confidence),
            points=there(self.points),
            published={name: values.to(device) for name, values in self.published.items()},
        )

    @staticmethod
    def cat(parts: list[Geometry]) -> Geometry:
        """One answer from several on different pictures of one size (and one world)."""
        first = parts[0]

        def joined(values: list[Tensor | None]) -> Tensor | None:
            present = [value for value in values if value is not None]
            return torch.cat(present) if len(present) == len(values) else None

        names = set.intersection(*(set(part.published) for part in parts))
        return replace(
            first,
            cameras=Cameras.cat([part.cameras for part in parts]),
            depth=joined([part.depth for part in parts]),
            confidence=joined([part.confidence for part in parts]),
            points=joined([part.points for part in parts]),
            published={name: torch.cat([part.published[name] for part in parts]) for name in sorted(names)},
        )
