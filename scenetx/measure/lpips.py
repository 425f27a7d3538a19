"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018, arXiv 1801.03924), version 0.1 on VGG-16.

Exactly the metric of the published tables (``lpips.LPIPS(net="vgg")`` with ``normalize=True``). The weights are other
people's and are read from this machine, never fetched: torchvision's ``vgg16-397923af.pth`` (ImageNet) and the five
channel weightings ``vgg.pth`` of the LPIPS repository (weights/v0.1). Without them there is no LPIPS.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from scenetx.core import InputError

TRUNK_FILE, WEIGHTING_FILE = "vgg16-397923af.pth", "vgg.pth"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Convolutions of VGG-16 by their place in torchvision's `features`; a stage ends with the relu that is compared, and a
# pooling leads to the next one.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)
EPS = 1e-10


class Lpips:
    """The metric with its weights: ``trunk`` by torchvision's names, ``weighting`` by the LPIPS repository's."""

    def __init__(self, trunk: Mapping[str, Tensor], weighting: Mapping[str, Tensor]) -> None:
        self._convs = [
            [(_get(trunk, f"features.{i}.weight", 4), _get(trunk, f"features.{i}.bias", 1)) for i in stage]
            for stage in STAGES
        ]
        self._weights = [_get(weighting, f"lin{i}.model.1.weight", 4) for i in range(len(STAGES))]
        for stage, (weight, channels) in enumerate(zip(self._weights, CHANNELS, strict=True)):
            if tuple(weight.shape) != (1, channels, 1, 1) or len(self._convs[stage][-1][0]) != channels:
                raise InputError(
                    "LPIPS weights", f"stage {stage} has {tuple(weight.shape)}", "give those of VGG-16, v0.1"
                )

    def __call__(self, a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"]) -> float:
        """Distance of two pictures with values in [0, 1]; 0 when equal."""
        with torch.no_grad():
            return float(self.distance(a[None], b[None])[0])

    def distance(self, a: Float[Tensor, "n h w 3"], b: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n"]:
        """The same for pairs, differentiable. Raises ValueError for pictures below 16 pixels: VGG halves four times."""
        if min(a.shape[1:3]) < 16:
            raise ValueError(f"lpips: a picture of {a.shape[1]} x {a.shape[2]} is smaller than 16 px")
        total = torch.zeros(len(a), dtype=a.dtype, device=a.device)
        x, y = self._scaled(a), self._scaled(b)
        for stage, weight in enumerate(self._weights):
            x, y = self._stage(x, stage), self._stage(y, stage)
            difference = (_unit(x) - _unit(y)).square()
            total = total + conv2d(difference, weight.to(difference)).mean((1, 2, 3))
        return total

    def _scaled(self, pictures: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        x = 2 * pictures.permute(0, 3, 1, 2) - 1
        return (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]

    def _stage(self, x: Float[Tensor, "n c h w"], stage: int) -> Float[Tensor, "n e a b"]:
        if stage:
            x = max_pool2d(x, 2)
        for weight, bias in self._convs[stage]:
            x = conv2d(x, weight.to(x), bias.to(x), padding=1).relu()
        return x


def load_lpips(folder: str | Path | None = None) -> Lpips:
    """LPIPS with the weight files of ``folder``, or of the places where they usually lie.

    Those are ``$SCENETX_WEIGHTS/lpips``, ``~/.cache/scenetx/weights/lpips`` and, for the trunk, torch's own cache.
    Raises InputError that says which file is missing and where it comes from.
    """
    folders = [Path(folder)] if folder is not None else _places()
    sources = {
        TRUNK_FILE: "torchvision's VGG-16 (download.pytorch.org/models/vgg16-397923af.pth)",
        WEIGHTING_FILE: "the LPIPS repository (richzhang/PerceptualSimilarity, lpips/weights/v0.1/vgg.pth)",
    }
    read = []
    for name, source in sources.items():
        path = next((place / name for place in folders if (place / name).is_file()), None)
        if path is None:
            raise InputError("LPIPS", f"no {name} in {folders[0]}", f"put it there; it comes from {source}")
        read.append(_read(path))
    return Lpips(*read)


def _places() -> list[Path]:
    given = os.environ.get("SCENETX_WEIGHTS")
    ours = Path(given) if given else Path.home() / ".cache" / "scenetx" / "weights"
    return [ours / "lpips", Path.home() / ".cache" / "torch" / "hub" / "checkpoints"]


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(str(path), "broken, or not a file of tensors", "get it again") from error
    if not isinstance(content, Mapping):
        raise InputError(str(path), f"holds a {type(content).__name__}", "give the published file")
    return content


def _get(tensors: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    value = tensors.get(name)
    if not isinstance(value, Tensor) or value.ndim != dims:
        raise InputError("LPIPS weights", f"no {name}", "give torchvision's VGG-16 and LPIPS v0.1's vgg.pth")
    return value


def _unit(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each place's channels with length 1."""
    # The square root of zero has no gradient; the published code keeps the epsilon outside, and so do we.
    length = x.square().sum(1, keepdim=True)
    return x / (torch.where(length > 0, length, 1.0).sqrt() * (length > 0) + EPS)
