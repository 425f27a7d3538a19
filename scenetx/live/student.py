"""A scene in a small network: every pixel's place in the scene, and from these the camera.

Scene coordinates: Shotton et al., CVPR 2013; by convolutions: DSAC* (Brachmann and Rother, 2021), ACE (Brachmann
et al., CVPR 2023); as centres and offsets: GLACE (Wang et al., CVPR 2024). Written from the papers; the network is a
small pyramid of its own, trained on the scene alone (`student_train`), for there is no pretrained part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scenetx.core import InputError, View
from scenetx.core.atomic import write_tensors
from scenetx.core.rigid import invert_rigid, rotation_angle
from scenetx.live.solve import ransac
from scenetx.live.update import Located

FORMAT = "scenetx-student-1"
CELL = 8
"""Pixels of the network's picture to one answer."""
FEWEST = 16
"""Inliers below which an answer is none."""


@dataclass(frozen=True)
class StudentShape:
    """The network's size. ``side``: longest side of the picture it sees."""

    side: int = 320
    widths: tuple[int, int, int] = (24, 48, 96)
    blocks: int = 4
    hidden: int = 192
    anchors: int = 48


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip, the second ``dilation`` apart."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        inner = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(inner)))


class CoordinateNet(nn.Module):
    """Pictures to scene coordinates, an answer for each `CELL` x `CELL` pixels: a place, and how far off it may be.

    A place is the mean of known ``anchors`` of the scene (softmax) plus an offset: what looks alike in two places picks
    one of them instead of their middle. Places are relative to the scene's ``center``, in units of its ``radius``.
    """

    anchors: Tensor

    def __init__(self, shape: StudentShape, anchors: Float[Tensor, "k 3"]) -> None:
        super().__init__()
        a, b, c = shape.widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, a, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
        )  # fmt: skip
        self.near = nn.Sequential(*[Residual(c, 1 + index % 2) for index in range(shape.blocks)])
        # A second level at a quarter of the size: what is around tells alike places apart.
        self.wide = nn.Sequential(nn.AvgPool2d(4, ceil_mode=True), Residual(c, 1), Residual(c, 2))
        self.head = nn.Sequential(
            nn.Conv2d(2 * c, shape.hidden, 1), nn.ReLU(), nn.Conv2d(shape.hidden, shape.hidden, 1), nn.ReLU()
        )
        self.out = nn.Conv2d(shape.hidden, len(anchors) + 4, 1)
        self.register_buffer("anchors", anchors.clone())

    def forward(
        self, images: Float[Tensor, "n 3 h w"]
    ) -> tuple[Float[Tensor, "n r c 3"], Float[Tensor, "n r c"], Float[Tensor, "n r c k"]]:
        """Places (normalised), the log of their expected error in the network's pixels, and the anchors' logits."""
        near = self.near(self.stem(images))
        wide = nn.functional.interpolate(self.wide(near), near.shape[-2:], mode="bilinear", align_corners=False)
        raw = self.out(self.head(torch.cat([near, wide], dim=1))).permute(0, 2, 3, 1)
        count = len(self.anchors)
        places = raw[..., :count].softmax(-1) @ self.anchors + 0.3 * raw[..., count : count + 3]
        # 30 pixels to begin with; never surer than a tenth of a pixel.
        return places, (raw[..., -1] + 3.4).clamp(-2.3, 6.0), raw[..., :count]


@dataclass(frozen=True)
class StudentReport:
    """How a student came to be and how good it is on pictures it has not seen (all in the scene's units)."""

    megabytes: float
    seconds: float = 0.0
    pictures: int = 0
    tested: int = 0
    localised: int = 0  # of the tested
    center_median: float = float("nan")  # of the localised
    rotation_deg_median: float = float("nan")
    center_share_median: float = float("nan")  # of the typical depth of the scene
    notes: tuple[str, ...] = field(default_factory=tuple)
    source: str = ""  # mark of the scene


class Student:
    """A trained network as a `Locator`: places for all cells at once, then PnP with RANSAC (poselib)."""

    def __init__(
        self,
        net: CoordinateNet,
        shape: StudentShape,
        center: Float[Tensor, "3"],
        radius: float,
        report: StudentReport | None = None,
        *,
        keep: float = 0.6,
        tolerance: float = 0.015,
    ) -> None:
        """keep: share of the cells, the surest, that PnP sees. tolerance: inliers' error over the longest side."""
        self.name = "student"
        self.net, self.shape = net.eval(), shape
        self.center, self.radius = center.double(), radius
        self.keep, self.tolerance = keep, tolerance
        self.report = report or StudentReport(self.megabytes)

    @property
    def megabytes(self) -> float:
        """Of the map as a file: half precision."""
        return sum(2 * tensor.numel() for tensor in self.net.state_dict().values()) / 1e6

    @torch.no_grad()
    def coordinates(
        self, image: UInt8[Tensor, "h w 3"]
    ) -> tuple[Float[Tensor, "m 2"], Float[Tensor, "m 3"], Float[Tensor, "m"]]:
        """Pixels of the cells' centres, their scene coordinates (world, float64) and log expected errors."""
        height, width = image.shape[:2]
        size = network_size(height, width, self.shape.side)
        places, spread, _ = self.net(prepared(image, size)[None])
        rows, columns = places.shape[1:3]
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) * CELL * height / size[0]
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) * CELL * width / size[1]
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        world = places[0].flatten(0, 1).double() * self.radius + self.center
        return pixels, world, spread[0].flatten()

    def locate(
        self,
        image: UInt8[Tensor, "h w 3"],
        K: Float[Tensor, "3 3"],
        guess: Float[Tensor, "4 4"] | None,  # noqa: ARG002
    ) -> Located | None:
        """See `Locator.locate`; the guess is not needed. ``confidence`` grows with the share of cells that agree."""
        pixels, world, spread = self.coordinates(image)
        chosen = spread.argsort()[: max(4 * FEWEST, round(self.keep * len(spread)))]
        height, width = image.shape[:2]
        found = self._solve(pixels[chosen], world[chosen], K, self.tolerance * max(height, width))
        if found is None:
            return None
        pose, inliers, _ = found
        share = inliers / len(chosen)
        confidence = min(max((share - 0.05) / 0.55, 0.0), 1.0)
        if inliers < FEWEST or confidence == 0.0:
            return None
        return Located(pose, confidence, len(chosen), inliers)

    def estimate_K(self, image: UInt8[Tensor, "h w 3"]) -> tuple[Float[Tensor, "3 3"], int] | None:
        """Intrinsics (float64; square pixels, centred) that explain a picture, and how many cells agree with them.

        The focal length is first tried in steps, then refined with the pose. None: it is not of this scene.
        """
        pixels, world, spread = self.coordinates(image)
        chosen = spread.argsort()[: max(4 * FEWEST, round(self.keep * len(spread)))]
        height, width = image.shape[:2]
        side = max(height, width)
        best: tuple[Float[Tensor, "3 3"], int] | None = None
        for focal in (0.6, 0.8, 1.05, 1.4):
            K = torch.tensor(
                [[focal * side, 0, width / 2], [0, focal * side, height / 2], [0, 0, 1]], dtype=torch.float64
            )
            found = self._solve(pixels[chosen], world[chosen], K, self.tolerance * side, free_focal=True)
            if found is not None and found[1] > max(0.3 * len(chosen), best[1] if best else 0):
                K[0, 0] = K[1, 1] = found[2]
                best = K, found[1]
        return best

    def _solve(
        self,
        pixels: Float[Tensor, "m 2"],
        world: Float[Tensor, "m 3"],
        K: Float[Tensor, "3 3"],
        error: float,
        *,
        free_focal: bool = False,
    ) -> tuple[Float[Tensor, "4 4"], int, float] | None:
        """``world_from_cam``, the number of inliers and the focal length; None without a finite answer."""
        # About the scene's middle: solvers lose digits far from the origin.
        places = (world - self.center).numpy()
        matrix, inliers, focal = ransac(pixels.numpy(), places, K.double().numpy(), error, free_focal=free_focal)
        if not np.isfinite(matrix).all() or not inliers.any():
            return None
        pose = invert_rigid(torch.from_numpy(matrix))
        pose[:3, 3] += self.center
        return pose, int(inliers.sum()), focal

    def save(self, path: str | Path) -> Path:
        """One safetensors file, weights in half precision (as `halved` left them, so nothing is lost)."""
        path = Path(path)
        tensors = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in self.net.state_dict().items()
            if name != "anchors"
        }
        tensors |= {"scene.anchors": self.net.anchors, "scene.center": self.center}
        about = {
            "shape": asdict(self.shape), "radius": self.radius, "keep": self.keep, "tolerance": self.tolerance,
            "report": asdict(self.report),
        }  # fmt: skip
        write_tensors(path, tensors, {"format": FORMAT, "about": json.dumps(about)})
        return path

    @staticmethod
    def load(path: str | Path) -> Student:
        """Read what `save` wrote. Raises InputError for anything else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise InputError(str(path), "not a student", f"give a file that holds {FORMAT}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about: dict[str, Any] = json.loads(header["about"])
            sizes = dict(about["shape"])
            shape = StudentShape(**(sizes | {"widths": tuple(sizes["widths"])}))
            anchors, center = tensors.pop("scene.anchors"), tensors.pop("scene.center")
            net = CoordinateNet(shape, anchors)
            state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
            net.load_state_dict(state | {"anchors": anchors})
            report = StudentReport(**(about["report"] | {"notes": tuple(about["report"]["notes"])}))
            return Student(
                net, shape, center, float(about["radius"]), report, keep=about["keep"], tolerance=about["tolerance"]
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(str(path), error, "give a file that Student.save wrote") from error


def halved(net: CoordinateNet) -> CoordinateNet:
    """The network with its numbers rounded to half precision: what is used is what is saved."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and name != "anchors":
                tensor.copy_(tensor.half())
        for parameter in net.parameters():
            # The layout of memory decides the order of sums, so it has to be that of a file read back.
            parameter.data = parameter.data.contiguous()
    return net


def network_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size (whole cells) of what the network sees of a picture of this shape."""
    scale = side / max(height, width)
    rows, columns = (max(4, round(length * scale / CELL)) for length in (height, width))
    return rows * CELL, columns * CELL


def prepared(image: UInt8[Tensor, "h w 3"], size: tuple[int, int]) -> Float[Tensor, "3 r c"]:
    """The picture in the network's size, brightness evened: mean 0, deviation about 1."""
    channels = image.permute(2, 0, 1)[None].float() / 255
    small = nn.functional.interpolate(channels, size, mode="bilinear", antialias=True, align_corners=False)[0]
    return evened(small)


def evened(image: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
    """Without the exposure: the picture's mean brightness taken out, its deviation divided out."""
    mean, deviation = image.mean((-3, -2, -1), keepdim=True), image.std((-3, -2, -1), keepdim=True)
    return (image - mean) / (deviation + 0.02)


def examine(student: Student, views: Sequence[View], depth: float) -> dict[str, Any]:
    """The report's figures over views (posed pictures it has not seen); ``depth``: typical for the scene."""
    centers, turns = [], []
    for view in views:
        camera = view.camera
        assert camera is not None
        found = student.locate(view.image, camera.K[0], None)
        if found is None:
            continue
        true = camera.world_from_cam[0].double()
        centers.append((found.world_from_cam[:3, 3] - true[:3, 3]).norm())
        turns.append(rotation_angle(true[:3, :3].T @ found.world_from_cam[:3, :3]))
    figures: dict[str, Any] = {"tested": len(views), "localised": len(centers)}
    if centers:
        center = float(torch.stack(centers).median())
        figures |= {
            "center_median": center,
            "rotation_deg_median": float(torch.rad2deg(torch.stack(turns).median())),
            "center_share_median": center / depth,
        }
    return figures
