"""A world seen from its cameras, as flat tables of numbers: what the ray caster reads.

Done per scene in float64, so that a scene's numbers do not depend on what else is in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.data.shapes import WAVES, Solid
from scenetx.data.world import World

LIGHTS = 3


@dataclass(frozen=True)
class Tables:
    """``f`` frames; ``r`` rows, one for each solid or cut in each frame; ``m`` materials.

    Camera frames are OpenCV's; everything of a row is given from its frame's camera.
    """

    unit_from_cam: Float[Tensor, "r 12"]  # 3x4, row by row
    object_from_cam: Float[Tensor, "r 12"]
    quadric: Float[Tensor, "r 5"]
    half: Float[Tensor, "r 3"]
    shape: Float[Tensor, "r 2"]
    waves: Float[Tensor, "r 20"]
    sphere: Float[Tensor, "r 4"]  # centre in the camera's frame, radius
    kind: Int[Tensor, "r"]
    first_cut: Int[Tensor, "r"]  # row of the first cut; they follow each other
    cuts: Int[Tensor, "r"]
    role: Int[Tensor, "r"]  # 0 a cut, 1 a solid, 2 one that shades from a sun, 3 from every light
    material: Int[Tensor, "r"]
    owner: Int[Tensor, "r"]
    frame: Int[Tensor, "r"]
    lens: Float[Tensor, "f 4"]  # fx fy cx cy
    lights: Float[Tensor, "f 3 7"]  # position in the camera's frame, colour, reach
    surround: Float[Tensor, "f 18"]  # world's up in the camera's frame; ambient above, below; sky zenith, horizon; film
    materials: Float[Tensor, "m 28"]

    def to(self, device: torch.device | str) -> Tables:
        return Tables(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @staticmethod
    def cat(parts: list[Tables]) -> Tables:
        """The tables of several scenes as one."""
        shifts = {"first_cut": "kind", "frame": "lens", "material": "materials"}
        out = {}
        for field in fields(Tables):
            pieces = [getattr(part, field.name) for part in parts]
            if field.name in shifts:
                lengths = [len(getattr(part, shifts[field.name])) for part in parts]
                starts = np.cumsum([0, *lengths[:-1]])
                pieces = [piece + int(start) for piece, start in zip(pieces, starts, strict=True)]
            out[field.name] = torch.cat(pieces)
        return Tables(**out)

    def frames(self, first: int, last: int) -> Tables:
        """The tables of frames ``first`` to ``last`` (rows lie in the order of frames)."""
        low, high = torch.searchsorted(self.frame, torch.tensor([first, last], device=self.frame.device)).tolist()
        out = {}
        for field in fields(Tables):
            value = getattr(self, field.name)
            if field.name in ("lens", "lights", "surround"):
                value = value[first:last]
            elif field.name != "materials":
                value = value[low:high]
            out[field.name] = value
        out["first_cut"] = out["first_cut"] - low
        out["frame"] = out["frame"] - first
        return Tables(**out)


def compile_world(
    world: World,
    world_from_cam: Float[np.ndarray, "v 4 4"],
    K: Float[np.ndarray, "v 3 3"],
    times: Float[np.ndarray, "v"],
    film: Float[np.ndarray, "v 3"],
) -> Tables:
    """Tables of one world for ``v`` frames, each at its time; ``film`` is exposure, deviation of noise and its seed."""
    rows, first_cut, role = _rows(world)
    count, frames = len(rows), len(K)
    owners = np.array([row.owner for row in rows])
    world_from_object = np.stack([[motion.world_from_object(t) for motion in world.motions] for t in times])
    object_from_cam = (np.linalg.inv(world_from_object) @ world_from_cam[:, None])[:, owners]
    unit_from_object = np.linalg.inv(np.stack([row.object_from_unit for row in rows]))
    unit_from_cam = unit_from_object @ object_from_cam
    spheres = [row.sphere for row in rows]
    centers = np.stack([center for center, _ in spheres])
    cam_from_object = np.linalg.inv(object_from_cam)
    in_cam = (cam_from_object[..., :3, :3] @ centers[:, :, None])[..., 0] + cam_from_object[..., :3, 3]
    radius = np.broadcast_to([r for _, r in spheres], (frames, count))[..., None]
    waves = np.stack([np.zeros((WAVES, 5)) if row.waves is None else row.waves for row in rows])
    offset = np.arange(frames)[:, None] * count

    def once(values: list[int] | np.ndarray) -> Int[Tensor, "r"]:
        return torch.from_numpy(np.broadcast_to(np.asarray(values, dtype=np.int64), (frames, count)).reshape(-1).copy())

    def floats(values: np.ndarray, width: int) -> Float[Tensor, "r w"]:
        full = np.broadcast_to(values.reshape(-1, count, width), (frames, count, width))
        return torch.from_numpy(full.reshape(-1, width).astype(np.float32))

    return Tables(
        unit_from_cam=floats(unit_from_cam[..., :3, :], 12),
        object_from_cam=floats(object_from_cam[..., :3, :], 12),
        quadric=floats(np.stack([row.quadric for row in rows]), 5),
        half=floats(np.stack([row.half for row in rows]), 3),
        shape=floats(np.array([row.shape for row in rows]), 2),
        waves=floats(waves, 20),
        sphere=floats(np.concatenate([in_cam, radius], -1), 4),
        kind=once([row.kind for row in rows]),
        first_cut=once(np.array(first_cut) + offset),
        cuts=once([len(row.cuts) for row in rows]),
        role=once(role),
        material=once([row.material for row in rows]),
        owner=once(owners),
        frame=once(np.broadcast_to(np.arange(frames)[:, None], (frames, count))),
        **_surroundings(world, world_from_cam, K, film),
    )


def _rows(world: World) -> tuple[list[Solid], list[int], list[int]]:
    """The solids, then their cuts; the first cut's row and the role of each."""
    rows, first_cut = list(world.solids), []
    role = [1 + solid.casts for solid in world.solids]
    for solid in world.solids:
        first_cut.append(len(rows))
        for part in solid.cuts:
            rows.append(
                Solid(part.object_from_unit, part.quadric, part.half, owner=solid.owner, material=solid.material)
            )
            role.append(0)
    first_cut += [0] * (len(rows) - len(first_cut))
    return rows, first_cut, role


def _surroundings(
    world: World,
    world_from_cam: Float[np.ndarray, "v 4 4"],
    K: Float[np.ndarray, "v 3 3"],
    film: Float[np.ndarray, "v 3"],
) -> dict[str, Tensor]:
    """Lens, lights, ambient light and sky of each frame, and the materials."""
    frames = len(K)
    rotation, center = world_from_cam[:, :3, :3], world_from_cam[:, :3, 3]
    lights = np.zeros((frames, LIGHTS, 7))
    lights[..., 6] = 1.0
    for index, light in enumerate(world.lights[:LIGHTS]):
        lights[:, index, :3] = ((light.position - center)[:, None] @ rotation)[:, 0]
        lights[:, index, 3:6], lights[:, index, 6] = light.color, light.reach
    up = rotation[:, 2, :]
    still = np.concatenate([world.ambient.ravel(), world.sky.ravel()])
    surround = np.concatenate([up, np.broadcast_to(still, (frames, 12)), film], -1)
    lens = np.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], -1)
    materials = np.stack([material.packed() for material in world.materials])
    arrays = {"lens": lens, "lights": lights, "surround": surround, "materials": materials}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
