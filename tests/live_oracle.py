"""A geometry model that is always right, up to a frame and scale of its own for each map; and a world for it to see."""

import math
from functools import lru_cache

import torch

from scenetx.core import Cameras, Sim3
from scenetx.core.cameras import look_at, pixel_grid
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.live.kv_map import Eye
from scenetx.models.attention import KVCache, KVShape
from scenetx.models.geometry import Geometry
from scenetx.models.pictures import SizeRule

HEIGHT, WIDTH, FOCAL = 70, 98, 90.0


def lens():
    return torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)


WAVES = (torch.rand(27, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1).tolist()


def height(x, y):
    """Of the ground."""
    return sum(0.08 * torch.sin(2.5 * (a * x + b * y) + 3 * c + k) for k, (a, b, c) in enumerate(WAVES[:3]))


def color(x, y):
    """Of the ground: a few waves of each length, in all directions."""
    channels = []
    for first in (3, 11, 19):
        value = sum(
            torch.sin((3 + 2.4 * k) * (a * x + b * y) + 9 * c) for k, (a, b, c) in enumerate(WAVES[first : first + 8])
        )
        channels.append(0.5 + 0.17 * value)
    return torch.stack(channels, -1).clamp(0, 1)


def picture(world_from_cam):
    """The hill from a camera: picture and exact depth."""
    return _picture(tuple(world_from_cam.flatten().tolist()))


@lru_cache(maxsize=512)
def _picture(numbers):
    world_from_cam = torch.tensor(numbers, dtype=torch.float64).view(4, 4)
    rays = torch.cat([pixel_grid(HEIGHT, WIDTH, dtype=torch.float64), torch.ones(HEIGHT, WIDTH, 1).double()], -1)
    rays = rays @ torch.linalg.inv(lens()).T @ world_from_cam[:3, :3].T
    eye = world_from_cam[:3, 3]
    depth = -eye[2] / rays[..., 2]
    for _ in range(10):
        point = eye + depth[..., None] * rays
        depth = (height(point[..., 0], point[..., 1]) - eye[2]) / rays[..., 2]
    point = eye + depth[..., None] * rays
    return (color(point[..., 0], point[..., 1]) * 255 + 0.5).to(torch.uint8), depth.float()


def walk(count, *, radius=1.0, turn=2 * math.pi):
    """Cameras on a circle above the hill, looking at its middle: there and back where it closes."""
    angle = torch.linspace(0, turn, count, dtype=torch.float64)
    eye = torch.stack([radius * angle.cos(), radius * angle.sin(), 2 + 0.1 * (3 * angle).sin()], -1)
    return look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def pan(count, degrees):
    """A camera that turns on the spot."""
    poses = walk(1).repeat(count, 1, 1)
    angle = torch.deg2rad(torch.linspace(0, degrees, count, dtype=torch.float64))
    turns = rotation_from_rotvec(angle[:, None] * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    poses[:, :3, :3] = poses[:, :3, :3] @ turns
    return poses


class Oracle:
    """Reads the number of a picture from its pixels, and tells its pose in a frame that is new with every map.

    ``mistakes``: {number of the map: {number of the picture: rotation and shift of its pose}} ; a mistake of picture
    None is made with all pictures, each its own. ``shown``: (picture, depth) of each pose, of the hill unless given.
    """

    metric = False

    def __init__(self, poses, *, shown=None, lenses=None, mistakes=None, seed=0):
        shown = shown or [picture(pose) for pose in poses]
        self.pictures = [image for image, _ in shown]
        self.depths = [depth for _, depth in shown]
        self.lenses = lens().repeat(len(poses), 1, 1) if lenses is None else lenses
        self.poses, self.mistakes = poses, mistakes or {}
        self.numbers = {image.numpy().tobytes(): number for number, image in enumerate(self.pictures)}
        self.generator = torch.Generator().manual_seed(seed)
        self.maps = 0

    def eye(self):
        return Eye("oracle", self, SizeRule(max(self.depths[0].shape), filter="box"), tells_focal=True)

    def number(self, image):
        return self.numbers[(image * 255).round().to(torch.uint8).numpy().tobytes()]

    def _said(self, numbers, map_from_world, cache_number=None):
        poses = map_from_world.apply_to_poses(self.poses[numbers])
        wrong = self.mistakes.get(cache_number, {})
        for row, number in enumerate(numbers):
            if number in wrong or None in wrong:
                turn = rotation_from_rotvec(0.7 * torch.randn(3, generator=self.generator).double())
                poses[row, :3, :3] = poses[row, :3, :3] @ turn
                poses[row, :3, 3] += map_from_world.scale * torch.randn(3, generator=self.generator).double()
        depth = torch.stack([self.depths[number] for number in numbers]) * map_from_world.scale
        cameras = Cameras(poses.float().double(), self.lenses[numbers], *depth.shape[1:])
        return Geometry(cameras, depth, torch.ones_like(depth))

    def map(self, images, *, capacity=None, dtype=torch.float32):
        scale = float(torch.rand((), generator=self.generator) * 3 + 0.3)
        turn = rotation_from_rotvec(torch.randn(3, generator=self.generator).double())
        shift = torch.randn(3, generator=self.generator).double()
        cache = KVCache({"trunk": KVShape(1, 1, 4, 2)}, capacity or len(images), dtype=dtype)
        cache.views = len(images)
        cache.notes |= {"size": torch.tensor(images.shape[1:3]), "turn": turn, "shift": shift}
        cache.notes["scale"] = torch.tensor(scale, dtype=torch.float64)
        cache.geometry = self._said([self.number(image) for image in images], self._frame(cache), self.maps)
        self.maps += 1
        return cache

    def _frame(self, cache):
        return Sim3(float(cache.notes["scale"]), cache.notes["turn"], cache.notes["shift"])

    def step(self, image, cache, *, dense=True, keep=False):
        geometry = self._said([self.number(image)], self._frame(cache))
        if keep:
            cache.keep()
        return geometry if dense else Geometry(geometry.cameras)
