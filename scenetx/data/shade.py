"""Light on what rays hit: textures, shadows of up to three lights, Phong's model, a sky, the film's exposure and grain.

Phong (1975) with a hemisphere of ambient light and a mirrored sky on glossy surfaces. Colours are squared into light
and the root is taken at the end, which stands in for sRGB's curve with an exactly rounded operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scenetx.data.cast import Hits, Rays, Vector, dot, normals, shadowed, transformed, turned
from scenetx.data.shade_cpu import pictures_compiled, surfaces_compiled
from scenetx.data.tables import LIGHTS, Tables
from scenetx.data.textures import hashed, surface_colors, uniform


@dataclass(frozen=True)
class Shaded:
    """Tiles of a picture."""

    rgb: Float[Tensor, "n p 3"]  # [0, 1]
    normals: Float[Tensor, "n p 3"]  # camera's frame, towards the camera, 0 where nothing is hit
    owner: Int[Tensor, "n p"]  # object hit, -1 where none


@dataclass(frozen=True)
class _Surface:
    """Hits in a row, with what lighting them needs."""

    index: Int[Tensor, "k"]  # among all rays
    frame: Int[Tensor, "k"]
    point: Vector  # camera's frame
    normal: Vector
    view: Vector  # unit, towards the camera
    albedo: Float[Tensor, "3 k"]  # light reflected, not display values
    specular: Float[Tensor, "k"]
    shininess: Float[Tensor, "k"]


def shade(
    tables: Tables,
    rays: Rays,
    hits: Hits,
    photos: UInt8[Tensor, "q s s 3"] | None = None,
    *,
    shadows: bool = True,
    compiled: bool = True,
) -> Shaded:
    """Pictures of the hits. ``compiled``: by machine code where the tables are on the CPU."""
    if compiled and hits.depth.device.type == "cpu":
        return _shade_compiled(tables, rays, hits, photos, shadows)
    n, p = hits.depth.shape
    surface, row = _surface(tables, rays, hits, photos)
    light = _lit(tables, surface, (n, p), shadows)
    around = tables.surround[rays.frame][:, None].unbind(-1)
    x, y = rays.x, rays.y
    length = (x * x + y * y + 1).sqrt()
    rgb = torch.stack(_sky(around, (x / length, y / length, 1 / length)))
    flat = rgb.reshape(3, -1)
    flat[:, surface.index] = light
    normal, owner = torch.zeros_like(flat), torch.full((n * p,), -1, dtype=torch.int64, device=x.device)
    normal[:, surface.index] = torch.stack(surface.normal)
    owner[surface.index] = tables.owner[row]
    display = _film(tables, rays, flat.reshape(3, n, p))
    return Shaded(display.movedim(0, -1), normal.reshape(3, n, p).movedim(0, -1), owner.reshape(n, p))


def _shade_compiled(
    tables: Tables, rays: Rays, hits: Hits, photos: UInt8[Tensor, "q s s 3"] | None, shadows: bool
) -> Shaded:
    normal, albedo, lifted, lit = surfaces_compiled(tables, rays, hits, photos)
    if shadows:
        for k, asked in enumerate(lit):
            lit[k] = ~shadowed(tables, lifted, tables.lights[rays.frame, k, :3], asked)
    rgb, owner = pictures_compiled(tables, rays, hits, normal, albedo, lit)
    return Shaded(rgb, normal, owner)


def _surface(
    tables: Tables, rays: Rays, hits: Hits, photos: UInt8[Tensor, "q s s 3"] | None
) -> tuple[_Surface, Int[Tensor, "k"]]:
    pixels = hits.depth.shape[1]
    index = (hits.row.reshape(-1) >= 0).nonzero()[:, 0]
    row, depth = hits.row.reshape(-1)[index], hits.depth.reshape(-1)[index]
    x, y = rays.x.reshape(-1)[index], rays.y.reshape(-1)[index]
    frame = rays.frame[torch.div(index, pixels, rounding_mode="floor")]
    normal = normals(tables, row, depth, x, y)
    point = (x * depth, y * depth, depth)
    length = (x * x + y * y + 1).sqrt()
    view = (-x / length, -y / length, -1 / length)
    m = tables.object_from_cam[row].unbind(-1)
    material = tables.materials[tables.material[row]].unbind(-1)
    footprint = depth / tables.lens[frame, 0] / dot(normal, view).clamp_min(0.2)
    color = surface_colors(material, transformed(m, point), turned(m, normal), footprint, photos)
    return _Surface(index, frame, point, normal, view, color * color, material[6], material[7]), row


def _lit(tables: Tables, surface: _Surface, shape: tuple[int, int], shadows: bool) -> Float[Tensor, "3 k"]:
    """Light that leaves the surfaces towards the camera."""
    around = tables.surround[surface.frame].unbind(-1)
    normal, view = surface.normal, surface.view
    up = 0.5 + 0.5 * dot(normal, (around[0], around[1], around[2]))
    facing = 2 * dot(normal, view)
    mirror = tuple(facing * a - b for a, b in zip(normal, view, strict=True))
    sky = _sky(around, (mirror[0], mirror[1], mirror[2]))
    rim = 1 - 0.5 * facing.clamp(0, 2)
    gloss = surface.specular * (0.08 + 0.5 * rim * rim * rim)
    ambient = torch.stack([around[6 + i] + (around[3 + i] - around[6 + i]) * up for i in range(3)])
    out = surface.albedo * ambient + torch.stack(sky) * gloss
    tile_frame = torch.div(
        torch.arange(shape[0], device=up.device), shape[0] // len(tables.lens), rounding_mode="floor"
    )
    for k in range(LIGHTS):
        if not bool((tables.lights[:, k, 3:6] > 0).any()):
            break
        lamp = tables.lights[surface.frame, k].unbind(-1)
        way = tuple(lamp[i] - surface.point[i] for i in range(3))
        square = dot((way[0], way[1], way[2]), (way[0], way[1], way[2]))
        distance = square.sqrt()
        toward = (way[0] / distance, way[1] / distance, way[2] / distance)
        cosine = dot(normal, toward).clamp_min(0)
        strength = 1 / (1 + square / (lamp[6] * lamp[6]))
        half = tuple(a + b for a, b in zip(toward, view, strict=True))
        size = dot((half[0], half[1], half[2]), (half[0], half[1], half[2])).clamp_min(1e-12).sqrt()
        shine = (dot(normal, (half[0], half[1], half[2])) / size).clamp(0, 1)
        for doubling in range(8):
            shine = torch.where(surface.shininess > doubling, shine * shine, shine)
        bright = strength
        if shadows:
            bright = strength * _unshaded(tables, surface, shape, tile_frame, k, cosine)
        diffuse, glint = cosine * bright, surface.specular * shine * bright * (cosine > 0)
        out = out + torch.stack([lamp[3 + i] * (surface.albedo[i] * diffuse + glint) for i in range(3)])
    return out


def _unshaded(
    tables: Tables,
    surface: _Surface,
    shape: tuple[int, int],
    tile_frame: Int[Tensor, "n"],
    lamp: int,
    cosine: Float[Tensor, "k"],
) -> Float[Tensor, "k"]:
    """1 where the lamp is in sight, 0 in shadow."""
    total = shape[0] * shape[1]
    # Off the surface by more than the error of the hit, so that nothing shades itself.
    off = 2e-3 + 1e-3 * surface.point[2]
    planes = []
    for value, normal in zip(surface.point, surface.normal, strict=True):
        plane = torch.zeros(total, device=value.device)
        plane[surface.index] = value + normal * off
        planes.append(plane.reshape(shape))
    asked = torch.zeros(total, dtype=torch.bool, device=cosine.device)
    asked[surface.index] = (cosine > 0) & (tables.lights[surface.frame, lamp, 3:6].amax(-1) > 0)
    light = tables.lights[tile_frame, lamp, :3]
    dark = shadowed(tables, (planes[0], planes[1], planes[2]), light, asked.reshape(shape))
    return (~dark.reshape(-1)[surface.index]).to(torch.float32)


def _sky(around: tuple[Tensor, ...], direction: Vector) -> list[Tensor]:
    """Light of the sky along unit directions: from the horizon's colour to the zenith's."""
    height = dot((around[0], around[1], around[2]), direction)
    share = height.abs().sqrt() * (height > 0) * 0.9 + 0.1
    return [around[12 + i] + (around[9 + i] - around[12 + i]) * share for i in range(3)]


def _film(tables: Tables, rays: Rays, light: Float[Tensor, "3 n p"]) -> Float[Tensor, "3 n p"]:
    """Exposure, the display's curve, and grain that is the same for the same pixel of the same frame."""
    exposure, grain, seed = tables.surround[rays.frame][:, None, 15:].unbind(-1)
    display = (light * exposure).clamp(0, 1).sqrt()
    if not bool((grain > 0).any()):
        return display
    n, p = rays.x.shape
    tile = torch.arange(n, device=light.device, dtype=torch.int32) % (n // len(tables.lens))
    place = (tile[:, None] * p + torch.arange(p, device=light.device, dtype=torch.int32)).reshape(-1)
    seeds = seed.to(torch.int32).expand(n, p).reshape(-1)
    zero = torch.zeros_like(place)
    channels = []
    for c in range(3):
        # Two uniform numbers make a triangle of variance 1/6.
        one, two = uniform(hashed(place, zero + c, zero, seeds)), uniform(hashed(place, zero + c, zero + 1, seeds))
        channels.append(((one + two - 1) * 6**0.5).reshape(n, p))
    return (display + torch.stack(channels) * grain).clamp(0, 1)
