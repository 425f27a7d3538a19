"""Dense prediction heads in the manner of DPT (arXiv 2103.13413), as VGGT and Depth Anything 3 use it.

Tokens of four layers -> LayerNorm -> 1x1 convolution -> + uv embedding -> x4, x2, x1, x1/2 -> 3x3 convolution to one
width -> fused from coarse to fine -> a small convolutional end at the picture's resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

UV_GAIN = 0.1
STRIP = 96  # rows of a picture that the last convolutions take at once


def add_uv(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """Adds the sine-cosine embedding of the pixel's place to ``x`` (in place): half of the channels say x, half y.

    aspect: the picture's width / height; places lie in +-aspect/sqrt(aspect^2+1) by +-1/sqrt(aspect^2+1), pixel
    centres. Frequencies 100^(-k/(c/4)).
    """
    channels, height, width = x.shape[1:]
    diagonal = (aspect * aspect + 1) ** 0.5
    half = channels // 2
    x[:, :half] += _sincos(width, aspect / diagonal, half, x)[:, None, :]
    x[:, half:] += _sincos(height, 1 / diagonal, half, x)[:, :, None]
    return x


def _sincos(size: int, reach: float, channels: int, like: Tensor) -> Float[Tensor, "c s"]:
    edge = reach * (size - 1) / size
    places = torch.linspace(-edge, edge, size, dtype=torch.float32)
    omega = 100.0 ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    angles = omega[:, None] * places
    return (torch.cat([angles.sin(), angles.cos()]) * UV_GAIN).to(like)


class ResidualUnit(nn.Module):
    """x + conv2(relu(conv1(relu(x)))).

    relu_skip: some published models were trained with an in-place ReLU, which turns the skip into relu(x); their
    weights need it to stay so (VGGT, and all that was fine-tuned from it).
    """

    def __init__(self, features: int, *, relu_skip: bool) -> None:
        super().__init__()
        self.relu_skip = relu_skip
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        positive = relu(x)
        out = self.conv2(relu(self.conv1(positive)))
        return out.add_(positive if self.relu_skip else x)


class FusionBlock(nn.Module):
    """out_conv(resize(unit2(coarse + unit1(lateral)))), coarse to fine."""

    def __init__(self, features: int, *, lateral: bool, relu_skip: bool) -> None:
        super().__init__()
        if lateral:
            self.resConfUnit1 = ResidualUnit(features, relu_skip=relu_skip)
        self.resConfUnit2 = ResidualUnit(features, relu_skip=relu_skip)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(
        self,
        coarse: Float[Tensor, "n c h w"],
        lateral: Float[Tensor, "n c h w"] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "n c i j"]:
        """To ``size``, or twice the size; bilinear, corners aligned."""
        if lateral is not None:
            coarse = coarse + self.resConfUnit1(lateral)
        # Published: resize, then the 1x1 convolution. They commute (bilinear weights sum to one); this way it is cheap.
        out = self.out_conv(self.resConfUnit2(coarse))
        size = size or (2 * out.shape[-2], 2 * out.shape[-1])
        return interpolate(out, size=size, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """Holds the parts of a head that are published under ``scratch``."""

    output_conv1: nn.Module
    output_conv2: nn.Module
    output_conv1_aux: nn.ModuleList
    output_conv2_aux: nn.ModuleList


class Pyramid(nn.Module):
    """The part before the fusion: `stage` brings one layer's tokens to its scale and to the common width.

    A layer's tokens are projected as soon as they exist, so that no layer has to be kept at full width.
    """

    def __init__(self, dim: int, widths: Sequence[int], features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList([nn.Conv2d(dim, width, 1) for width in widths])
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch()
        for index, width in enumerate(widths):
            self.scratch.add_module(f"layer{index + 1}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))

    def project(
        self, index: int, tokens: Float[Tensor, "n t c"], grid: tuple[int, int], aspect: float
    ) -> Float[Tensor, "n d i j"]:
        """LayerNorm, 1x1 convolution and uv embedding of layer ``index`` of the four (patch tokens only)."""
        x = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        return add_uv(self.projects[index](x), aspect)

    def laterals(self, projected: Sequence[Float[Tensor, "n _ _ _"]]) -> list[Tensor]:
        """The four scales at the common width, finest first.

        On a CPU with their channels last in memory, which all after it keep: convolutions are twice as fast so.
        """
        layout = torch.channels_last if projected[0].device.type == "cpu" else torch.preserve_format
        return [
            self.scratch.get_submodule(f"layer{index + 1}_rn")(resize(x.to(memory_format=layout)))
            for index, (resize, x) in enumerate(zip(self.resize_layers, projected, strict=True))
        ]

    def add_fusion(self, features: int, *, relu_skip: bool, suffix: str = "") -> None:
        """Adds a chain refinenet1..4 (the coarsest has no lateral)."""
        for level in range(1, 5):
            block = FusionBlock(features, lateral=level < 4, relu_skip=relu_skip)
            self.scratch.add_module(f"refinenet{level}{suffix}", block)

    def fuse(self, laterals: Sequence[Float[Tensor, "n c _ _"]], suffix: str = "") -> Float[Tensor, "n c h w"]:
        """Coarse to fine; the result has twice the finest lateral's size."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in laterals]
        blocks = [self.scratch.get_submodule(f"refinenet{level}{suffix}") for level in range(1, 5)]
        out = blocks[3](laterals[3], size=sizes[2])
        out = blocks[2](out, laterals[2], size=sizes[1])
        out = blocks[1](out, laterals[1], size=sizes[0])
        return blocks[0](out, laterals[0])


class DptHead(Pyramid):
    """VGGT's head: ``channels`` raw values a pixel at the picture's resolution."""

    def __init__(
        self, dim: int, widths: Sequence[int], features: int, channels: int, *, relu_skip: bool, patch: int = 14
    ) -> None:
        super().__init__(dim, widths, features)
        self.patch = patch
        self.add_fusion(features, relu_skip=relu_skip)
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = pixel_end(features // 2, channels)

    def forward(self, projected: Sequence[Float[Tensor, "n _ _ _"]], aspect: float) -> Float[Tensor, "n h w c"]:
        """From what `project` made of the four layers; raw values, not activated."""
        rows, columns = projected[2].shape[-2:]
        x = self.scratch.output_conv1(self.fuse(self.laterals(projected)))
        return to_pixels(x, self.scratch.output_conv2, (rows * self.patch, columns * self.patch), aspect)


def pixel_end(features: int, channels: int) -> nn.Sequential:
    """3x3 to 32, ReLU, 1x1 to ``channels``."""
    return nn.Sequential(nn.Conv2d(features, 32, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(32, channels, 1))


def to_pixels(
    x: Float[Tensor, "n c i j"], end: nn.Module, size: tuple[int, int], aspect: float
) -> Float[Tensor, "n h w d"]:
    """Resize to the picture, add the uv embedding, and the last convolutions; channels last."""
    x = interpolate(x, size=size, mode="bilinear", align_corners=True)
    return in_strips(end, add_uv(x, aspect)).permute(0, 2, 3, 1)


def in_strips(end: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
    """``end(x)``, on a CPU without gradients some rows at a time: what it makes in between is a head's largest.

    end: one 3x3 convolution with a border of one, then what looks at single pixels. A strip is run with the rows above
    and below it, and these are dropped: the same numbers.
    """
    height = x.shape[2]
    if torch.is_grad_enabled() or x.device.type != "cpu" or height <= STRIP:
        return end(x)
    whole: Tensor | None = None
    for top in range(0, height, STRIP):
        above, bottom = max(top - 1, 0), min(top + STRIP, height)
        part = end(x[:, :, above : min(bottom + 1, height)])[:, :, top - above : bottom - above]
        if whole is None:
            size = (*part.shape[:2], height, part.shape[3])
            whole = torch.empty(size, dtype=part.dtype, memory_format=torch.channels_last)
        whole[:, :, top:bottom] = part
    assert whole is not None
    return whole
