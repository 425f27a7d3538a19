"""Procedural desk scene for the bundled example photo set: textures, meshes and layout.

Every texture is painted here with numpy and Pillow (with Pillow's built-in font) and every mesh is generated
here; nothing is downloaded.  ``make_example.py`` lays them out; :class:`Desk` collects a Mitsuba 3
scene dictionary.  Mitsuba (BSD-3-Clause) is a developer tool for ``make_example.py`` only; the package itself
never imports it.

World frame: metres, +z up, the desk top is z = 0, the wall behind the desk is y = +0.52.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.float32]
Rgb = Sequence[float]
WORD_LIST = (
    "amber birch copper delta ember fern granite harbour indigo juniper kestrel lantern meadow north olive "
    "pebble quartz river slate timber umber violet willow yarrow zephyr atlas cedar dune echo field garden "
    "island journal kiln ledger marble notes orchard paper quill ridge signal tide valley winter"
)
WORDS = WORD_LIST.split()
# fmt: off
INKS = np.array([[.78, .22, .16], [.13, .30, .48], [.93, .70, .22], [.16, .42, .33], [.46, .22, .42],
                 [.90, .48, .22], [.12, .14, .20], [.55, .68, .74], [.86, .82, .72], [.36, .52, .24]])
# fmt: on


# ---------------------------------------------------------------------------------------------- textures
def noise(rng: np.random.Generator, h: int, w: int, cells: tuple[float, float] = (4, 4), octaves: int = 5) -> Floats:
    """Fractal value noise in [0, 1] with ``cells`` lattice cells down and across at the first octave."""
    out = np.zeros((h, w), np.float32)
    for i in range(octaves):
        gh, gw = (min(int(c * 2**i) + 2, m) for c, m in zip(cells, (h, w), strict=True))
        grid = Image.fromarray(rng.random((gh, gw)).astype(np.float32))
        out += 0.55**i * np.asarray(grid.resize((w, h), Image.Resampling.BICUBIC))
    return (out - out.min()) / (np.ptp(out) + 1e-9)


def ramp(t: Floats, colours: Sequence[Rgb]) -> Floats:
    """Map a field in [0, 1] through evenly spaced colours."""
    xs, table = np.linspace(0, 1, len(colours)), np.asarray(colours, np.float32)
    return np.stack([np.interp(t, xs, table[:, c]) for c in range(3)], -1).astype(np.float32)


def to_image(tex: Floats) -> Image.Image:
    """Convert a float texture to an 8-bit picture."""
    return Image.fromarray((np.clip(tex, 0, 1) * 255).astype(np.uint8))


def to_floats(im: Image.Image) -> Floats:
    """Convert an 8-bit picture to a float texture."""
    return np.asarray(im.convert("RGB"), np.float32) / 255


def ink(rng: np.random.Generator) -> tuple[int, int, int]:
    """Pick a slightly varied print colour."""
    c = np.clip(INKS[rng.integers(len(INKS))] + rng.normal(0, 0.04, 3), 0, 1) * 255
    return int(c[0]), int(c[1]), int(c[2])


def words(rng: np.random.Generator, n: int) -> str:
    """Make a nonsense phrase of ``n`` words."""
    return " ".join(rng.choice(WORDS, n))


def write(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, size: float, fill: Any, **kw: Any) -> None:
    """Draw text in Pillow's built-in font."""
    draw.text(xy, text, fill=fill, font=ImageFont.load_default(max(size, 6)), **kw)


def wood(rng: np.random.Generator, h: int, w: int, colours: Sequence[Rgb], planks: int = 5, cut: int = 1) -> Floats:
    """Paint planks with rings, knots and fibres; grain runs across, ``cut`` boards per plank row."""
    out = np.zeros((h, w, 3), np.float32)
    rows = np.linspace(0, h, planks + 1).astype(int)
    for a, b in pairwise(rows):
        ends = np.concatenate([[0], np.sort(rng.uniform(0.05, 0.95, cut - 1)), [1]]) * w
        for c, d in pairwise(ends.astype(int)):
            ph, pw = b - a, max(d - c, 8)
            y, x = np.mgrid[0:ph, 0:pw].astype(np.float32) / ph
            warp = 1.3 * noise(rng, ph, pw, (2, 3)) + y * rng.uniform(0.7, 1.4)
            for _ in range(rng.integers(1, 4)):
                kx, ky, s = rng.uniform(0, pw / ph), rng.uniform(0, 1), rng.uniform(0.05, 0.16)
                warp += 1.2 * s / 0.1 * np.exp(-(((x - kx) / (3 * s)) ** 2) - ((y - ky) / s) ** 2)
            ring = 0.5 + 0.5 * np.sin(warp * rng.uniform(38, 60))
            fibre = noise(rng, ph, pw, (ph / 3, pw / 90), 2)
            t = 0.38 * ring**2 + 0.42 * fibre + 0.3 * noise(rng, ph, pw, (3, 5)) + rng.uniform(-0.16, 0.16)
            board = ramp(np.clip(t, 0, 1), colours) * (
                1 - 0.35 * (noise(rng, ph, pw, (ph / 2, pw / 40), 1) > 0.86)[..., None]
            )
            board[:2], board[:, :2] = board[:2] * 0.35, board[:, :2] * 0.5
            out[a:b, c:d] = board[:, : d - c]
    return out


def topo(rng: np.random.Generator, h: int, w: int) -> Floats:
    """Paint an invented topographic map: tints, contours, rivers, roads, a grid and place names."""
    e = noise(rng, h, w, (4, 4 * w / h), 6)
    tex = ramp(
        e,
        [
            (0.42, 0.62, 0.74),
            (0.60, 0.76, 0.80),
            (0.80, 0.84, 0.66),
            (0.72, 0.78, 0.52),
            (0.88, 0.80, 0.58),
            (0.74, 0.58, 0.44),
        ],
    )
    f = (e * 26) % 1
    tex *= (1 - 0.42 * (f < 0.11) * (e > 0.33))[..., None]
    tex *= (0.86 + 0.28 * noise(rng, h, w, (h / 6, w / 6), 3))[..., None]
    im = to_image(tex)
    d = ImageDraw.Draw(im)
    for i in range(9):
        pts = np.cumsum(rng.normal(0, h / 26, (40, 2)) + rng.normal(0, h / 24, 2), 0) + rng.uniform(0, 1, 2) * [w, h]
        d.line(
            [tuple(p) for p in pts],
            fill=[(190, 60, 40), (60, 60, 60), (60, 110, 170)][i % 3],
            width=2 + i % 3,
            joint="curve",
        )
    for x in range(0, w, h // 7):
        d.line([(x, 0), (x, h)], fill=(90, 110, 140), width=1)
        d.line([(0, x), (w, x)], fill=(90, 110, 140), width=1)
    for _ in range(70):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        d.ellipse([x - 5, y - 5, x + 5, y + 5], fill=ink(rng), outline=(20, 20, 20))
        write(d, (x + 8, y - 10), words(rng, 1).title(), rng.choice([16, 20, 26, 34]), (30, 25, 25))
    d.rectangle([0, 0, w - 1, h - 1], outline=(235, 232, 220), width=h // 40)
    return to_floats(im)


def landscape(rng: np.random.Generator, h: int, w: int) -> Floats:
    """Paint a landscape: clouds, a sun, ridges that fade with distance, a lake and speckled trees."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float32) / np.array([h, w], np.float32)[:, None, None]
    hue = rng.uniform(0, 1)
    tex = ramp(y * 1.5, [(0.25 + 0.4 * hue, 0.42, 0.70 - 0.2 * hue), (0.80, 0.74, 0.66), (0.97, 0.84, 0.62)])
    tex += 0.34 * (np.clip(noise(rng, h, w, (7, 3), 6) - 0.48, 0, 1) * (1 - y))[..., None] * 2
    sx, sy = rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.34)
    tex[((x - sx) * w / h) ** 2 + (y - sy) ** 2 < 0.055**2] = (1, 0.93, 0.74)
    for i in range(5):
        line = 0.36 + 0.12 * i + (0.22 - 0.03 * i) * (noise(rng, 2, w, (1, 3 + 2 * i), 6)[0] - 0.5)
        c = (1 - i / 5) * np.array([0.52, 0.56, 0.66]) + i / 5 * np.array([0.16, 0.30 + 0.2 * hue, 0.18])
        shade = 0.6 + 0.8 * noise(rng, h, w, (10 * (i + 1), 12 * (i + 1)), 4)
        tex = np.where((y > line[None])[..., None], np.clip(c * shade[..., None], 0, 1), tex)
    lake = y > 0.93
    tex[lake] = tex[lake] * 0.4 + np.array([0.25, 0.42, 0.52]) * 0.6
    tex += rng.normal(0, 0.025, (h, w, 1))
    return np.clip(tex, 0, 1).astype(np.float32)


def shapes(rng: np.random.Generator, h: int, w: int, bg: Rgb, n: int, size: float) -> Floats:
    """Paint a print of scattered discs, leaves, arcs and bars over a mottled ground."""
    im = to_image(np.asarray(bg, np.float32) * (0.82 + 0.3 * noise(rng, h, w, (h / 14, w / 14), 3))[..., None])
    d = ImageDraw.Draw(im)
    for _ in range(n):
        p, s, a = rng.uniform(0, 1, 2) * [w, h], size * rng.uniform(0.3, 1.1), rng.uniform(0, 2 * np.pi)
        kind, u = rng.integers(5), np.array([np.cos(a), np.sin(a)])
        v = np.array([-u[1], u[0]])
        if kind == 0:
            d.ellipse([*(p - s / 2), *(p + s / 2)], fill=ink(rng), outline=ink(rng), width=max(int(s / 9), 1))
        elif kind == 1:
            d.arc([*(p - s), *(p + s)], a * 57, a * 57 + rng.uniform(60, 200), fill=ink(rng), width=max(int(s / 6), 1))
        elif kind == 2:
            d.polygon(
                [tuple(p + s * (u * i + v * j)) for i, j in ((-1, -0.1), (1, -0.1), (1, 0.1), (-1, 0.1))], fill=ink(rng)
            )
        else:
            t = np.linspace(0, 1, 9)
            rim = np.concatenate([np.c_[t, 0.3 * np.sin(np.pi * t)], np.c_[t[::-1], -0.3 * np.sin(np.pi * t[::-1])]])
            d.polygon([tuple(p + 2 * s * (u * i + v * j)) for i, j in rim], fill=ink(rng))
            d.line([tuple(p), tuple(p + 2 * s * u)], fill=(235, 230, 215), width=max(int(s / 16), 1))
    return to_floats(im)


def page(rng: np.random.Generator, h: int, w: int, tint: Rgb = (0.95, 0.94, 0.90)) -> Floats:
    """Paint a printed page: a heading, paragraphs, and a chart or a picture."""
    im = to_image(np.asarray(tint, np.float32) * (0.95 + 0.07 * noise(rng, h, w, (h / 8, w / 8), 2))[..., None])
    d = ImageDraw.Draw(im)
    m, y = w * 0.09, h * 0.07
    write(d, (m, y), words(rng, 2).title(), w / 13, ink(rng))
    y += w / 9
    fig = rng.uniform(0.25, 0.55) * h
    while y < h * 0.93:
        if fig < y < fig + h * 0.02:
            box = (int(m), int(y), int(w - m), int(y + h * 0.26))
            if rng.random() < 0.5:
                im.paste(to_image(landscape(rng, box[3] - box[1], box[2] - box[0])), box[:2])
            else:
                d.rectangle(box, outline=(40, 40, 40), width=2)
                for i, v in enumerate(rng.uniform(0.1, 0.95, 14)):
                    x = m + (i + 0.5) * (w - 2 * m) / 15
                    d.rectangle([x, box[3] - v * h * 0.26, x + w / 30, box[3]], fill=ink(rng))
            y = box[3] + h * 0.03
        write(d, (m, y), words(rng, 12), w / 34, (35, 35, 40))
        d.rectangle([w - m, y, w, y + w / 20], fill=im.getpixel((2, int(min(y, h - 3)))))
        y += w / 26 * (1.9 if rng.random() < 0.12 else 1.15)
    return to_floats(im)


def jacket(rng: np.random.Generator, h: int = 640, w: int = 1000) -> Floats:
    """Paint a book jacket: back 45 %, spine 10 %, front 45 % of the width; the last 5 % of rows are pages."""
    base = np.clip(np.array(ink(rng)) / 255 * 0.8 + 0.08, 0, 1)
    art = [landscape, topo, lambda r, a, b: shapes(r, a, b, base, 160, 46)][rng.integers(3)](rng, h, w)
    tex = np.where(rng.random() < 0.5, art, art * 0.55 + base * 0.45).astype(np.float32)
    im = to_image(tex)
    d = ImageDraw.Draw(im)
    dark, light = (24, 22, 28), (245, 238, 220)
    a, b = (dark, light) if rng.random() < 0.5 else (light, dark)
    y = h * rng.uniform(0.08, 0.3)
    d.rectangle([w * 0.58, y, w * 0.97, y + h * 0.34], fill=a, outline=b, width=4)
    for i, text in enumerate(words(rng, 3).upper().split()):
        write(d, (w * 0.60, y + h * (0.02 + 0.1 * i)), text, h / 11, b)
    write(d, (w * 0.62, h * 0.84), words(rng, 2).title(), h / 17, b, stroke_width=2, stroke_fill=a)
    d.rectangle([w * 0.06, h * 0.15, w * 0.4, h * 0.6], fill=light)
    for i in range(13):
        write(d, (w * 0.08, h * (0.18 + 0.031 * i)), words(rng, 5)[:36], h / 36, dark)
    d.rectangle([w * 0.45, 0, w * 0.55, h], fill=a)
    label = Image.new("RGB", (h, int(w * 0.1)), a)
    write(ImageDraw.Draw(label), (h * 0.06, w * 0.015), words(rng, 2).upper()[:19], w * 0.062, b)
    ImageDraw.Draw(label).rectangle([h * 0.82, 0, h * 0.88, w], fill=ink(rng))
    im.paste(label.rotate(-90, expand=True), (int(w * 0.45), 0))
    out = to_floats(im)
    lines = noise(rng, int(h * 0.05), w, (h * 0.05, 3), 1)[..., None]
    out[-int(h * 0.05) :] = np.array([0.90, 0.86, 0.74]) * (0.62 + 0.42 * lines)
    return out


def labelled(rng: np.random.Generator, tex: Floats, lines: int, size: float) -> Floats:
    """Print a few lines of large text over a texture."""
    im = to_image(tex)
    d, (h, w) = ImageDraw.Draw(im), tex.shape[:2]
    for i in range(lines):
        write(
            d,
            (rng.uniform(0.03, 0.3) * w, (i + 0.2) * h / lines),
            words(rng, 2),
            size,
            ink(rng),
            stroke_width=1,
            stroke_fill=(240, 235, 225),
        )
    return to_floats(im)


def keycaps(rng: np.random.Generator, rows: int, cols: int, px: int = 64) -> Floats:
    """Paint one cell per key with a letter on it."""
    im = Image.new("RGB", (cols * px, rows * px), (58, 60, 66))
    d = ImageDraw.Draw(im)
    for i in range(rows * cols):
        x, y = i % cols * px, i // cols * px
        fill = ink(rng) if rng.random() < 0.22 else [(62, 64, 70), (212, 208, 198)][int(rng.random() < 0.55)]
        d.rectangle([x, y, x + px, y + px], fill=fill)
        text = "QWERTYUIOPASDFGHJKLZXCVBNM1234567890+-=/?#*"[rng.integers(43)]
        write(d, (x + 14, y + 6), text, 36, (20, 20, 24) if sum(fill) > 330 else (245, 245, 240))
        write(d, (x + 42, y + 40), str(rng.integers(10)), 14, (150, 40, 30))
    return to_floats(im)


# ------------------------------------------------------------------------------------------------ meshes
@dataclass
class Mesh:
    """Triangles with per-vertex normals and texture coordinates (v = 0 is the first texture row)."""

    v: Floats
    n: Floats
    t: Floats
    f: NDArray[np.int32]

    def placed(self, at: Rgb, yaw: float = 0, pitch: float = 0, roll: float = 0) -> Mesh:
        """Return a copy rotated by roll about x, pitch about y, yaw about z (degrees), then moved."""
        m = np.eye(3)
        for axis, deg in ((2, yaw), (1, pitch), (0, roll)):
            c, s = np.cos(np.radians(deg)), np.sin(np.radians(deg))
            i, j = [(1, 2), (2, 0), (0, 1)][axis]
            r = np.eye(3)
            r[i, i], r[i, j], r[j, i], r[j, j] = c, -s, s, c
            m = m @ r
        return Mesh(self.v @ m.T + np.asarray(at), self.n @ m.T, self.t, self.f)


def join(parts: Sequence[Mesh]) -> Mesh:
    """Merge meshes into one."""
    offs = np.cumsum([0] + [len(p.v) for p in parts[:-1]])
    return Mesh(
        np.concatenate([p.v for p in parts]),
        np.concatenate([p.n for p in parts]),
        np.concatenate([p.t for p in parts]),
        np.concatenate([p.f + o for p, o in zip(parts, offs, strict=True)]).astype(np.int32),
    )


def quad(p: Rgb, right: Rgb, down: Rgb, uv: Rgb = (0, 0, 1, 1)) -> Mesh:
    """Make a rectangle from its top-left corner and two edges; the front is the side where they look so."""
    p, a, b = (np.asarray(q, float) for q in (p, right, down))
    n = np.cross(a, -b)
    u0, v0, u1, v1 = uv
    return Mesh(
        np.array([p, p + a, p + a + b, p + b]),
        np.tile(n / np.linalg.norm(n), (4, 1)),
        np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)]),
        np.array([(0, 2, 1), (0, 3, 2)], np.int32),
    )


def box(sx: float, sy: float, sz: float, uv: dict[str, Rgb] | None = None) -> Mesh:
    """Make a box on z = 0, centred in x and y; ``uv`` gives texture windows by face (else a default unfolding)."""
    x, y, z = sx / 2, sy / 2, sz
    uv = uv or {
        "top": (0, 0, 1, 0.6),
        "front": (0, 0.6, 1, 0.8),
        "back": (0, 0.8, 1, 1),
        "left": (0, 0.6, 0.5, 0.8),
        "right": (0.5, 0.8, 1, 1),
        "bottom": (0, 0, 1, 0.6),
    }
    return join(
        [
            quad((-x, y, z), (sx, 0, 0), (0, -sy, 0), uv["top"]),
            quad((-x, -y, 0), (sx, 0, 0), (0, sy, 0), uv["bottom"]),
            quad((-x, -y, z), (sx, 0, 0), (0, 0, -z), uv["front"]),
            quad((x, y, z), (-sx, 0, 0), (0, 0, -z), uv["back"]),
            quad((-x, y, z), (0, -sy, 0), (0, 0, -z), uv["left"]),
            quad((x, -y, z), (0, sy, 0), (0, 0, -z), uv["right"]),
        ]
    )


BOOK_UV = {
    "top": (0.55, 0, 1, 0.95),
    "bottom": (0, 0, 0.45, 0.95),
    "left": (0.45, 0, 0.55, 0.95),
    "front": (0, 0.95, 1, 1),
    "back": (0, 0.95, 1, 1),
    "right": (0, 0.95, 1, 1),
}
# the spine of a lying book faces -x, and its lettering runs along y
STAND_UV = {
    "top": (0, 0.95, 1, 1),
    "bottom": (0, 0.95, 1, 1),
    "front": (0.45, 0, 0.55, 0.95),
    "back": (0, 0.95, 1, 1),
    "left": (0, 0, 0.45, 0.95),
    "right": (0.55, 0, 1, 0.95),
}


def book(w: float, d: float, t: float) -> Mesh:
    """Make a lying book: cover up, spine towards -x with its lettering along y."""
    m = box(w, d, t, BOOK_UV)
    m.t[16:20] = np.array([(0.45, 0), (0.45, 0.95), (0.55, 0.95), (0.55, 0)])[[3, 2, 1, 0]]
    return m


def lathe(profile: Sequence[tuple[float, float]], seg: int = 48, u_rep: float = 1) -> Mesh:
    """Revolve (radius, z) points, listed bottom to top for an outward surface; creases over 45 degrees stay."""
    p = np.asarray(profile, float)
    step = np.diff(p, axis=0)
    nr = np.c_[step[:, 1], -step[:, 0]] / np.linalg.norm(step, axis=1, keepdims=True).clip(1e-9)
    dist = np.concatenate([[0], np.cumsum(np.linalg.norm(step, axis=1))])
    dist /= dist[-1]
    a = np.linspace(0, 2 * np.pi, seg + 1) + np.pi / 2
    parts = []
    for i in range(len(step)):
        ends = []
        for k, j in ((i, i - 1), (i + 1, i + 1)):
            smooth = 0 <= j < len(nr) and nr[i] @ nr[j] > 0.7
            n = nr[i] + nr[j] if smooth else nr[i]
            n = n / np.linalg.norm(n)
            ends.append(
                (
                    np.c_[p[k, 0] * np.cos(a), p[k, 0] * np.sin(a), np.full(seg + 1, p[k, 1])],
                    np.c_[n[0] * np.cos(a), n[0] * np.sin(a), np.full(seg + 1, n[1])],
                    np.c_[np.linspace(0, u_rep, seg + 1), np.full(seg + 1, 1 - dist[k])],
                )
            )
        s, m = np.arange(seg), seg + 1
        f = np.concatenate([np.c_[s, s + 1, s + 1 + m], np.c_[s, s + 1 + m, s + m]]).astype(np.int32)
        parts.append(Mesh(*(np.concatenate([ends[0][q], ends[1][q]]) for q in range(3)), f))
    return join(parts)


def patch(xyz: Floats) -> Mesh:
    """Make a smooth surface from a grid of points of shape (rows, columns, 3), first row = first texture row."""
    h, w = xyz.shape[:2]
    n = np.cross(np.gradient(xyz, axis=1), -np.gradient(xyz, axis=0))
    n /= np.linalg.norm(n, axis=-1, keepdims=True).clip(1e-12)
    v, u = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    i = (np.arange(h - 1)[:, None] * w + np.arange(w - 1)).ravel()
    f = np.concatenate([np.c_[i, i + w + 1, i + 1], np.c_[i, i + w, i + w + 1]]).astype(np.int32)
    return Mesh(xyz.reshape(-1, 3), n.reshape(-1, 3), np.c_[u.ravel(), v.ravel()], f)


def sheet(rng: np.random.Generator, w: float, d: float, curl: float = 0.006) -> Mesh:
    """Make a slightly curled sheet of paper lying face up."""
    y, x = np.mgrid[d / 2 : -d / 2 : 16j, -w / 2 : w / 2 : 12j]
    z = 0.0015 + curl * (noise(rng, 16, 12, (1, 1), 1) + 2 * (x / w) ** 4 * rng.random() + 2 * (y / d) ** 4)
    return patch(np.stack([x, y, z], -1))


def tube(path: Floats, radius: float, seg: int = 14) -> Mesh:
    """Sweep a circle along a path."""
    t = np.gradient(path, axis=0)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    up = np.where(np.abs(t[:, 2:3]) < 0.95, [[0, 0, 1.0]], [[0, 1.0, 0]])
    a = np.cross(t, up)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b, ang = np.cross(t, a), np.linspace(0, 2 * np.pi, seg + 1)[None, :, None]
    return patch(path[:, None] + radius * (np.cos(ang) * a[:, None] - np.sin(ang) * b[:, None]))


def leaf(length: float, width: float, rise: float, droop: float) -> Mesh:
    """Make one leaf that leaves the origin along +x."""
    s, r = np.meshgrid(np.linspace(0, 1, 12), np.linspace(-1, 1, 7))
    half = width / 2 * np.sin(np.pi * s**0.8) ** 0.9
    z = rise * s - droop * s**2.2 + 0.25 * half * np.abs(r)
    return patch(np.stack([length * s * np.sqrt(np.clip(1 - 0.3 * s, 0, 1)), -half * r, z], -1))


# ------------------------------------------------------------------------------------------------- scene
@dataclass
class Desk:
    """Collects meshes and materials into a Mitsuba dictionary."""

    rng: np.random.Generator
    folder: Path
    items: dict[str, Any] = field(default_factory=lambda: {"type": "scene"})

    def material(self, name: str, look: Floats | Rgb, gloss: float | None = None) -> None:
        """Define a twosided material from a texture or a colour, diffuse or (``gloss`` = roughness) coated."""
        import mitsuba as mi

        arr = np.asarray(look, np.float32)
        value: dict[str, Any] = {"type": "rgb", "value": [float(c) for c in arr.ravel()[:3]]}
        if arr.ndim == 3:
            value = {"type": "bitmap", "bitmap": mi.Bitmap((np.clip(arr, 0, 1) * 235 + 6).astype(np.uint8))}
        inner = {"type": "diffuse", "reflectance": value}
        if gloss is not None:
            inner = {"type": "roughplastic", "diffuse_reflectance": value, "alpha": gloss, "nonlinear": True}
        self.items[f"mat_{name}"] = {"type": "twosided", "id": f"mat_{name}", "bsdf": inner}

    def metal(self, name: str, material: str, alpha: float) -> None:
        """Define a rough metal."""
        self.items[f"mat_{name}"] = {
            "type": "roughconductor",
            "id": f"mat_{name}",
            "material": material,
            "alpha": alpha,
        }

    def add(self, mesh: Mesh, material: str, emit: Rgb | None = None) -> None:
        """Write a mesh as PLY and refer to it."""
        name = f"obj{len(self.items):04d}"
        path = self.folder / f"{name}.ply"
        fields = [(k, "<f4") for k in ("x", "y", "z", "nx", "ny", "nz", "u", "v")]
        head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(mesh.v)}"]
        head += [f"property float {k}" for k, _ in fields]
        head += [f"element face {len(mesh.f)}", "property list uchar int vertex_indices", "end_header"]
        faces = np.zeros(len(mesh.f), [("n", "u1"), ("i", "<i4", 3)])
        faces["n"], faces["i"] = 3, mesh.f
        data = np.concatenate([mesh.v, mesh.n, mesh.t], 1).astype("<f4")
        path.write_bytes(("\n".join(head) + "\n").encode() + data.tobytes() + faces.tobytes())
        self.items[name] = {"type": "ply", "filename": str(path), "bsdf": {"type": "ref", "id": f"mat_{material}"}}
        if emit is not None:
            self.items[name]["emitter"] = {"type": "area", "radiance": {"type": "rgb", "value": list(emit)}}
