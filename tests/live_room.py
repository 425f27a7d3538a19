"""A box room of painted walls, seen by a camera on a known path: exact poses, and enough texture for features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from scenetx.core import Cameras, Original, Scene, View
from scenetx.core.cameras import look_at
from scenetx.live.source import Shot

HEIGHT, WIDTH, FOCAL = 180, 240, 190.0
K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)


def _paint(rng: np.random.Generator) -> np.ndarray:
    """A wall of 512 x 512 texels: blots of many sizes."""
    out = np.zeros((512, 512, 3))
    for cells, strength in ((8, 0.6), (32, 0.8), (64, 0.8), (128, 0.5)):
        noise = np.kron(rng.normal(size=(cells, cells, 3)), np.ones((512 // cells, 512 // cells, 1)))
        blur = 512 // cells // 2
        for axis in (0, 1):
            noise = sum(np.roll(noise, shift, axis) for shift in range(-blur, blur + 1)) / (2 * blur + 1)
        out += strength * noise
    return np.clip(128 + 75 * out, 0, 255)


def room(seed: int = 0) -> list[np.ndarray]:
    """The paint of six walls."""
    rng = np.random.default_rng(seed)
    return [_paint(rng) for _ in range(6)]


def picture(
    walls: list[np.ndarray], world_from_cam: np.ndarray, height: int = HEIGHT, width: int = WIDTH
) -> np.ndarray:
    """What a pinhole camera inside the box [-2, 2] x [-2, 2] x [-1.5, 1.5] sees; every ray hits one wall."""
    scale = width / WIDTH
    y, x = np.mgrid[0.5:height, 0.5:width]
    rays = np.stack([(x - width / 2) / (FOCAL * scale), (y - height / 2) / (FOCAL * scale), np.ones_like(x)], -1)
    rays = rays @ world_from_cam[:3, :3].T
    eye, half = world_from_cam[:3, 3], np.array([2.0, 2.0, 1.5])
    with np.errstate(divide="ignore"):
        far = np.where(rays == 0, np.inf, (np.sign(rays) * half - eye) / rays)
    axis = far.argmin(-1)
    hit = eye + rays * far.min(-1)[..., None]
    out = np.empty((height, width, 3))
    for k in range(3):
        for side in (0, 1):
            mine = (axis == k) & ((rays[..., k] > 0) == bool(side))
            u, v = (hit[mine] / half)[:, [(k + 1) % 3, (k + 2) % 3]].T
            a, b = (np.clip((w + 1) / 2 * 511, 0, 510.999) for w in (u, v))
            i, j = a.astype(int), b.astype(int)
            p, q = (a - i)[:, None], (b - j)[:, None]
            wall = walls[2 * k + side]
            out[mine] = (1 - p) * ((1 - q) * wall[i, j] + q * wall[i, j + 1]) + p * (
                (1 - q) * wall[i + 1, j] + q * wall[i + 1, j + 1]
            )
    return out.round().astype(np.uint8)


def path(count: int) -> torch.Tensor:
    """``count`` poses on a swinging walk that looks at one corner of the room, about 30 frames a second."""
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    eye = torch.stack([-0.9 + 0.9 * t, -0.6 + 0.25 * torch.sin(4 * t), 0.15 * torch.sin(5 * t)], -1)
    aim = torch.stack([2 + 0 * t, 0.6 + 0.6 * torch.sin(2.5 * t), 0.2 * torch.cos(3 * t)], -1)
    return look_at(eye, aim, torch.tensor([0.0, 0, 1], dtype=torch.float64))


def scene_of(walls: list[np.ndarray], poses: torch.Tensor) -> Scene:
    """The pictures and cameras of a path, as a reconstruction would have them."""
    views = []
    for index, pose in enumerate(poses):
        image = torch.from_numpy(picture(walls, pose.numpy()))
        camera = Cameras(pose[None], K[None], HEIGHT, WIDTH)
        original = Original(f"{index}.png", HEIGHT, WIDTH, K)
        views.append(View(f"{index:03d}.png", image, original, camera))
    return Scene(tuple(views), source="room", posed_by="input")


@dataclass
class Shots:
    """A `Reader` of given pictures; ``breaks`` are where it breaks off (once each), as an unplugged camera does."""

    images: list[np.ndarray]
    live: bool = False
    breaks: tuple[int, ...] = ()
    rate: float = 30.0
    opened: int = 0
    given: int = 0
    name: str = "shots"
    failures: list[int] = field(default_factory=list)

    def shots(self) -> Iterator[Shot]:
        from scenetx.core import InputError

        self.opened += 1
        while self.given < len(self.images):
            if self.given in self.breaks and self.given not in self.failures:
                self.failures.append(self.given)
                raise InputError(self.name, "unplugged", "plug it in")
            index = self.given
            self.given += 1
            yield Shot(self.images[index], index / self.rate, f"{index:03d}")
