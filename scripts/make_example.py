"""Make the bundled example photo set ``examples/desk``: path-traced pictures of a procedural desk, with truth.

The scene is our own (see ``example_desk.py``), the camera is a hand-held phone with a radial-tangential lens,
and the truth (poses, intrinsics, distortion, quarter-size depth) is written beside the pictures.

Mitsuba 3 (BSD-3-Clause) renders; it is a developer tool for this script only, never a dependency of the package.
``pyoidn`` (MIT; Open Image Denoise, Apache-2.0) is used to denoise when it is installed.

    pip install mitsuba pillow numpy pyoidn   # and an LLVM shared library (19 was used; DRJIT_LIBLLVM_PATH)
    python scripts/make_example.py --out examples/desk --size 1200 --spp 5 --views 26
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import example_desk as ed
import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOG = logging.getLogger("make_example")
DISTORTION = (0.06, -0.08, 0.0006, -0.0004)  # k1 k2 p1 p2 of the landscape sensor
EQUIV_MM = 26.0  # 35 mm equivalent, by the diagonal
FLOOR = -0.74
WALL = 0.52


# ------------------------------------------------------------------------------------------------ layout
# fmt: off
def room(s: ed.Desk) -> None:
    """Add walls, floor, rug, pictures on the walls, the lights and the surroundings."""
    import mitsuba as mi

    r = s.rng
    s.material("floor", ed.wood(r, 1400, 1800, [(.62, .44, .28), (.46, .30, .17), (.25, .15, .08)], 14, 4), .25)
    s.add(ed.quad((-2.2, WALL, FLOOR), (4.4, 0, 0), (0, -3.4, 0)), "floor")
    s.material("rug", ed.shapes(r, 1000, 1500, (.52, .20, .16), 900, 34))
    s.add(ed.box(2.3, 1.5, .012).placed((0, -.75, FLOOR)), "rug")
    for name, bg, p, a, n in (("wall", (.60, .70, .68), (-2.2, WALL, 2.0), (4.4, 0, 0), 1500),
                              ("wall_l", (.80, .72, .58), (-2.2, -2.9, 2.0), (0, WALL + 2.9, 0), 800),
                              ("wall_r", (.74, .70, .64), (2.2, WALL, 2.0), (0, -WALL - 2.9, 0), 800)):
        s.material(name, ed.shapes(r, 1300, 2048, bg, n, 26) * .55 + .45 * np.asarray(bg, np.float32))
        s.add(ed.quad(p, a, (0, 0, FLOOR - 2.0)), name)
    s.material("frame", ed.wood(r, 200, 500, [(.30, .20, .12), (.10, .06, .03)], 2), .12)
    hung = [((.42, WALL - .02, .52), 0, .62, .44), ((-.95, WALL - .02, .5), 0, .5, .66),
            ((1.35, WALL - .02, .45), 0, .66, .5),
            ((-2.18, -.35, .42), 90, .8, .56), ((-2.18, -1.5, .4), 90, .6, .8), ((2.18, -.25, .45), -90, .84, .6),
            ((2.18, -2.2, .4), -90, .6, .8)]
    for i, (at, yaw, w, h) in enumerate(hung):
        paint = [ed.landscape, ed.topo, lambda q, a, b: ed.shapes(q, a, b, ed.INKS[8], 170, 60)][i % 3]
        art = paint(r, int(700 * h), int(700 * w * 1.2))
        s.material(f"art{i}", art, .12 if i % 2 else None)
        s.add(ed.box(w + .06, .024, h + .06).placed((at[0], at[1], at[2] - .03), yaw), "frame")
        s.add(ed.quad((-w / 2, -.0125, h), (w, 0, 0), (0, 0, -h)).placed(at, yaw), f"art{i}")
    s.material("lamp_white", (.9, .9, .9))
    s.add(ed.quad((1.9, -1.1, 1.9), (0, -1.3, 0), (.3, 0, -1.3)), "lamp_white", (38, 41, 46))
    s.add(ed.quad((-.9, -1.3, 2.1), (1.3, 0, 0), (0, 1.1, 0)), "lamp_white", (8.5, 8.0, 7.2))
    up = np.repeat(np.linspace(0, 1, 32, dtype=np.float32)[:, None], 64, 1)
    sky = ed.ramp(up, [(.85, .92, 1.05), (.7, .66, .6), (.3, .25, .2)])
    sky[8:14, 40:48] *= 4
    upright = mi.ScalarTransform4f().rotate([1, 0, 0], 90)
    s.items["sky"] = {"type": "envmap", "bitmap": mi.Bitmap(sky), "to_world": upright}


def shelves(s: ed.Desk) -> None:
    """Add a book shelf on the wall and a book case on the left; every book has its own size and jacket."""
    r = s.rng
    for i in range(20):
        s.material(f"book{i}", ed.jacket(r), .18 if i % 2 else None)
    s.material("board", ed.wood(r, 300, 1600, [(.72, .54, .34), (.50, .33, .18)], 1), .2)
    s.add(ed.box(1.0, .2, .022).placed((-.25, WALL - .11, .47)), "board")
    rows = [((-.72, WALL - .11, .492), 0., .70)]
    for k in range(4):
        rows.append(((-1.98, .40, FLOOR + .12 + .38 * k), -90., 0.72))
        s.add(ed.box(.8, .26, .025).placed((-2.02, .08, FLOOR + .095 + .38 * k), 90), "board")
    j = 0
    for at, yaw, length in rows:
        x = 0.
        while x < length:
            t, h, d = r.uniform(.018, .048), r.uniform(.17, .27), r.uniform(.12, .16)
            lean = -9. if r.random() < .1 else 0.
            c, q = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
            spot = (at[0] + c * (x + t / 2), at[1] + q * (x + t / 2), at[2] + (.003 if lean else 0))
            turn = yaw if yaw == 0 else 90.
            s.add(ed.box(t, d, h, ed.STAND_UV).placed(spot, turn, 0, 0), f"book{j % 20}")
            x, j = x + t + .002 - lean * .001, j + 7


def desk(s: ed.Desk) -> None:
    """Add the desk, the map on it, stacked books, an open book and loose papers."""
    r = s.rng
    s.material("desk", ed.wood(r, 1150, 2048, [(.80, .60, .38), (.60, .39, .20), (.30, .17, .08)], 6), .16)
    s.add(ed.box(1.6, .84, .035).placed((0, 0, -.035)), "desk")
    s.add(ed.box(.42, .7, .62).placed((.52, .03, -.66)), "frame")
    for x, y in ((-.74, -.36), (-.74, .36), (.74, -.36), (.74, .36)):
        s.add(ed.box(.05, .05, -FLOOR - .035).placed((x, y, FLOOR)), "frame")
    s.material("map", ed.topo(r, 820, 1300), .35)
    s.add(ed.sheet(r, .74, .46, .0).placed((-.06, -.14, .0004), 3), "map")
    z = 0.
    pile = ((.19, .27, .045, 8), (.17, .25, .03, -14), (.16, .23, .038, 22), (.13, .20, .022, -5))
    for i, (w, d, t, yaw) in enumerate(pile):
        s.add(ed.book(w, d, t).placed((-.56, .14, z), yaw), f"book{i + 3}")
        z += t + .0005
    s.add(ed.book(.15, .22, .028).placed((.63, -.26, 0), -24), "book9")
    s.add(ed.book(.14, .20, .022).placed((.62, -.25, .0285), 12), "book12")
    for side in (-1, 1):
        y, x = np.mgrid[.115:-.115:12j, 0:.165:16j]
        x = x if side > 0 else x - .165
        arch = .004 + .020 * np.sin(np.pi * np.clip(np.abs(x) / .17, 0, 1) ** .6) * (1 - .4 * np.abs(x) / .165)
        s.material(f"open{side}", ed.page(r, 760, 540), .5)
        mesh = ed.patch(np.stack([x, y, arch], -1))
        s.add(mesh.placed((.40, -.06, .002), -12), f"open{side}")
    s.material("cover", (.35, .10, .09), .3)
    s.add(ed.box(.345, .24, .004).placed((.40, -.06, 0), -12), "cover")
    papers = [(-.62, -.26, 17), (-.58, -.20, -8), (.28, -.30, -20), (-.05, .13, 11), (.10, -.34, 6), (-.74, -.03, 80)]
    for i, (x, y, yaw) in enumerate(papers):
        s.material(f"paper{i}", ed.page(r, 900, 636, [(.95, .94, .90), (.96, .92, .78), (.86, .91, .94)][i % 3]))
        s.add(ed.sheet(r, .15, .21, .002).placed((x, y, .0006 * (i + 2)), yaw), f"paper{i}")
    for i in range(7):
        s.material(f"card{i}", ed.landscape(r, 360, 520) if i % 2 else ed.shapes(r, 360, 520, ed.INKS[i], 70, 40), .1)
        x, y = [(-.30, .02), (.20, .10), (-.38, -.36), (.46, -.31), (-.02, -.36), (.30, .35), (.70, .0)][i]
        s.add(ed.sheet(r, .12, .083, .003).placed((x, y, .005), float(r.uniform(-40, 40))), f"card{i}")


def things(s: ed.Desk) -> None:
    """Add the keyboard, mug, pen cup, ball, boxes, cube and standing cards."""
    r = s.rng
    s.material("keys", ed.keycaps(r, 5, 14), .3)
    s.material("dark", ed.ramp(ed.noise(r, 256, 512, (60, 120), 2), [(.10, .11, .13), (.24, .25, .28)]), .2)
    keys = []
    for i in range(70):
        cell = (i % 14 / 14, i // 14 / 5, (i % 14 + 1) / 14, (i // 14 + 1) / 5)
        side = (cell[0], cell[1], cell[0] + .004, cell[1] + .01)
        uv = {k: cell if k == "top" else side for k in ("top", "front", "back", "left", "right", "bottom")}
        keys.append(ed.box(.0225, .0225, .009, uv).placed((.026 * (i % 14 - 6.5), .026 * (2 - i // 14), .014)))
    s.add(ed.join(keys).placed((-.07, -.22, .0015), 5), "keys")
    s.add(ed.box(.385, .148, .016).placed((-.07, -.22, .0015), 5), "dark")
    mug = ed.shapes(r, 420, 1100, (.90, .87, .80), 150, 40)
    s.material("mug", ed.labelled(r, mug, 3, 76), .06)
    s.material("glaze", (.72, .24, .16), .06)
    s.add(ed.lathe([(.034, 0), (.040, .004), (.042, .05), (.043, .097)], 64).placed((.17, .0, 0)), "mug")
    inside = [(.043, .097), (.0415, .099), (.039, .097), (.038, .05), (.034, .008), (0, .006)]
    s.add(ed.lathe(inside, 64).placed((.17, .0, 0)), "glaze")
    a = np.linspace(-1.45, 1.45, 24)
    handle = ed.tube(np.c_[.041 + .026 * np.cos(a), 0 * a, .052 + .03 * np.sin(a)], .006)
    s.add(handle.placed((.17, .0, 0), 35), "glaze")
    s.material("coffee", ed.ramp(ed.noise(r, 128, 128, (6, 6)), [(.05, .02, .01), (.16, .08, .04)]), .05)
    s.add(ed.lathe([(.0385, .078), (0, .0785)]).placed((.17, .0, 0)), "coffee")
    s.material("cup", ed.shapes(r, 400, 900, (.16, .30, .34), 260, 26), .25)
    s.add(ed.lathe([(.038, 0), (.040, .10), (.037, .10), (.034, .004), (0, .004)]).placed((-.36, .10, 0)), "cup")
    for i in range(9):
        s.material(f"pen{i}", ed.labelled(r, ed.shapes(r, 300, 160, ed.INKS[i], 30, 26), 2, 30), .1)
        pen = ed.lathe([(.0, .0), (.0042, .012), (.0042, .15), (.0035, .152), (0, .152)], 12)
        angle = i * 2.4
        at = (-.36 + .017 * np.cos(angle), .10 + .017 * np.sin(angle), .006)
        s.add(pen.placed(at, i * 137., 6. + i, 5.), f"pen{i}")
    for i, (x, y, yaw) in enumerate(((.18, -.18, 60), (.23, -.2, 100), (-.42, -.12, 20))):
        pen = ed.lathe([(0, 0), (.0042, .012), (.0042, .15), (0, .152)], 12)
        s.add(pen.placed((x, y, .009), yaw, 90), f"pen{i * 3}")
    globe = ed.topo(r, 700, 1400)
    s.material("globe", globe, .08)
    t = np.linspace(-np.pi / 2, np.pi / 2, 33)
    ball = ed.lathe(list(zip(.085 * np.cos(t), .085 + .085 * np.sin(t), strict=True)), 64)
    s.add(ball.placed((-.16, .27, 0), 0, 12, 0), "globe")
    boxes = ((.24, .17, .13, .38, .27, 0, -10), (.13, .10, .07, .36, .28, .13, 18), (.10, .10, .10, -.33, -.06, 0, 30),
             (.12, .05, .055, .06, .30, 0, -25), (.045, .045, .045, .05, -.06, .002, 40),
             (.045, .045, .045, -.21, .13, 0, 15))
    for i, (w, d, h, x, y, z, yaw) in enumerate(boxes):
        bg = [(.66, .48, .30), (.70, .18, .22), (.20, .36, .52), (.86, .78, .60), (.9, .86, .8), (.9, .7, .2)][i]
        s.material(f"box{i}", ed.labelled(r, ed.shapes(r, 620, 620, bg, 60, 44), 9, 46), None if i == 0 else .15)
        s.add(ed.box(w, d, h).placed((x, y, z), yaw), f"box{i}")


def lamp_and_plant(s: ed.Desk) -> None:
    """Add the metal lamp with its bulb, the potted plant, coins and paper clips."""
    r = s.rng
    s.metal("brass", "Cu", .18)
    s.metal("steel", "Al", .22)
    s.material("shade", ed.ramp(ed.noise(r, 300, 700, (60, 140), 2), [(.10, .30, .28), (.18, .44, .40)]), .2)
    s.material("bulb", (.9, .9, .85))
    s.add(ed.lathe([(.075, 0), (.075, .012), (.06, .02), (.012, .024), (0, .024)]).placed((.66, .22, 0)), "brass")
    arm = [(.66, .22, .02), (.67, .23, .15), (.68, .24, .30), (.60, .20, .42), (.52, .15, .46)]
    s.add(ed.tube(np.array(arm), .008), "brass")
    shade = ed.lathe([(.088, -.06), (.05, .03), (.025, .055), (.0, .06), (.022, .052), (.047, .027), (.085, -.06)])
    s.add(shade.placed((.51, .145, .42), 30, -20), "shade")
    t = np.linspace(-np.pi / 2, np.pi / 2, 9)
    bulb = ed.lathe(list(zip(.022 * np.cos(t), .022 * np.sin(t), strict=True)), 16)
    s.add(bulb.placed((.51, .145, .42)), "bulb", (420, 300, 180))
    s.material("pot", ed.labelled(r, ed.shapes(r, 420, 1100, (.66, .34, .22), 200, 28), 1, 60))
    pot = [(.045, 0), (.062, .085), (.068, .088), (.069, .105), (.062, .105), (.058, .09), (0, .09)]
    s.add(ed.lathe(pot).placed((.15, .31, 0)), "pot")
    y, x = np.mgrid[-1:1:180j, 0:1:360j]
    vein = np.maximum(np.exp(-(y * 16) ** 2), .8 * np.exp(-(np.sin((x - .35 * np.abs(y)) * 34) * 3.0) ** 2))
    for i in range(4):
        t = np.clip(.75 * ed.noise(r, 180, 360, (5, 9)) + .15, 0, 1) * (1 - .6 * vein) + .75 * vein * (.6 + .1 * i)
        greens = [(.05, .16 + .03 * i, .05), (.16 + .04 * i, .38, .12), (.62, .70 - .05 * i, .36)]
        s.material(f"leaf{i}", ed.ramp(t.astype(np.float32), greens), .22)
    for i in range(34):
        k = i / 34
        rise, span = .20 * (1 - k) + r.uniform(.02, .06), .07 + .10 * k + r.uniform(0, .03)
        m = ed.leaf(span, .045 + .02 * r.random(), rise, .10 * k + .02)
        s.add(m.placed((.15, .31, .09), i * 137.5 + r.uniform(-12, 12)), f"leaf{i % 4}")
    for i in range(14):
        x, y = r.uniform(-.7, .7), r.uniform(-.40, -.33)
        disc = ed.lathe([(.011, 0), (.011, .0016), (.009, .0019), (0, .0019)], 28)
        s.add(disc.placed((x, y, .006)), ["brass", "steel"][i % 2])
    standing = [(-.40, .33, 10, .16, .22), (.56, .37, -14, .2, .15), (-.68, .33, 24, .14, .19)]
    for i, (x, y, yaw, w, h) in enumerate(standing):
        s.material(f"stand{i}", [ed.landscape, ed.page, ed.landscape][i](r, int(h * 2800), int(w * 2800)), .08)
        s.add(ed.box(w + .02, .012, h + .02).placed((x, y, 0), yaw, 0, -12), "frame")
        s.add(ed.quad((-w / 2, -.0065, h + .01), (w, 0, 0), (0, 0, -h)).placed((x, y, 0), yaw, 0, -12), f"stand{i}")


def build(folder: Path, seed: int) -> dict[str, Any]:
    """Make the whole scene as a Mitsuba dictionary; mesh files go to ``folder``."""
    scene = ed.Desk(np.random.default_rng(seed), folder)
    for part in (room, shelves, desk, things, lamp_and_plant):
        part(scene)
    return scene.items
# fmt: on


# --------------------------------------------------------------------------------------------- the camera
@dataclass(frozen=True)
class View:
    """One picture: upright camera, pose and the sensor's settings."""

    name: str
    width: int
    height: int
    focal: float
    centre: tuple[float, float]
    distortion: tuple[float, float, float, float]
    world_from_cam: NDArray[np.float64]
    ev: float
    balance: tuple[float, float]


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64], roll: float) -> NDArray[np.float64]:
    """Pose (world from camera, OpenCV axes) that looks at a target with +y down, rolled by degrees."""
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = np.cos(np.radians(roll)), np.sin(np.radians(roll))
    pose = np.eye(4)
    pose[:3] = np.stack([c * x + s * y, c * y - s * x, z, eye], -1)
    return pose


def spots(n: int, rng: np.random.Generator) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Eye and target of a hand-held walk: a low arc, a high arc back, then close-ups."""
    low = round(n * 0.38)
    near = round(n * 0.26)
    out = []
    for count, span, dist, up, aim in (
        (low, 66, 1.10, 0.36, 0.10),
        (n - low - near, -60, 1.02, 0.80, 0.04),
        (near, 50, 0.66, 0.42, 0.03),
    ):
        for az in np.linspace(-span, span, count):
            a, d = np.radians(az + rng.normal(0, 1.5)), dist + rng.normal(0, 0.035)
            side = 0.42 * az / 66 if dist < 0.8 else 0.10 * np.sin(a)
            target = np.array([side, 0.03, aim]) + rng.normal(0, 0.025, 3)
            eye = np.array([d * np.sin(a), -d * np.cos(a), up + rng.normal(0, 0.03)])
            out.append((eye + np.array([target[0] * (dist < 0.8), 0, 0]), target))
    return out


def make_views(n: int, size: int, seed: int) -> list[View]:
    """Plan the pictures; every fifth is portrait, which turns the sensor's centre and tangential terms."""
    rng = np.random.default_rng(seed + 1)
    w, h = size, round(size * 0.75)
    focal = EQUIV_MM / 43.2666 * float(np.hypot(w, h))
    cx, cy = w / 2 + 0.0026 * w, h / 2 - 0.0018 * w
    k1, k2, p1, p2 = DISTORTION
    views = []
    for i, (eye, target) in enumerate(spots(n, rng)):
        tall = i % 5 == 3
        pose = look_at(eye, target, float(rng.normal(0, 2)))
        views.append(
            View(
                f"desk_{i + 1:03d}",
                h if tall else w,
                w if tall else h,
                focal,
                (h - cy, cx) if tall else (cx, cy),
                (k1, k2, p2, -p1) if tall else (k1, k2, p1, p2),
                pose,
                float(rng.uniform(-0.3, 0.3)),
                (float(rng.normal(1, 0.025)), float(rng.normal(1, 0.025))),
            )
        )
    return views


def undistort(x: Any, y: Any, distortion: tuple[float, ...]) -> tuple[Any, Any]:
    """Invert the OpenCV radial-tangential model by fixed-point steps (arrays of any kind)."""
    k1, k2, p1, p2 = distortion
    u, v = x, y
    for _ in range(14):
        r2 = u * u + v * v
        radial = 1 + r2 * (k1 + k2 * r2)
        du = 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
        dv = p1 * (r2 + 2 * v * v) + 2 * p2 * u * v
        u, v = (x - du) / radial, (y - dv) / radial
    return u, v


# ---------------------------------------------------------------------------------------------- rendering
def rays(view: View, x: Any, y: Any) -> Any:
    """World rays through normalised (undistorted) image coordinates."""
    import drjit as dr
    import mitsuba as mi

    pose = [[dr.opaque(mi.Float, float(q)) for q in row] for row in view.world_from_cam]
    d = [pose[i][0] * x + pose[i][1] * y + pose[i][2] for i in range(3)]
    eye = [pose[i][3] for i in range(3)]
    return mi.RayDifferential3f(mi.Ray3f(mi.Point3f(*eye), dr.normalize(mi.Vector3f(*d))))


def trace(scene: Any, integrator: Any, view: View, spp: int, seed: int) -> tuple[NDArray[np.float32], ...]:
    """Path-trace through the real lens: linear colour, albedo and normals, each (height, width, 3)."""
    import drjit as dr
    import mitsuba as mi

    n = view.width * view.height
    total = np.zeros((3, 3, n), np.float32)
    passes = max(spp // 8, 1)
    per = spp // passes
    for k in range(passes):
        sampler = mi.load_dict({"type": "independent"})
        sampler.seed(seed * 1000 + k, n * per)
        index = dr.arange(mi.UInt32, n * per) // per
        px, py = mi.Float(index % view.width), mi.Float(index // view.width)
        jitter = sampler.next_2d()
        f, cx, cy = (dr.opaque(mi.Float, v) for v in (view.focal, *view.centre))
        lens = tuple(dr.opaque(mi.Float, v) for v in view.distortion)
        ray = rays(view, *undistort((px + jitter.x - cx) / f, (py + jitter.y - cy) / f, lens))
        colour = integrator.sample(scene, sampler, ray)[0]
        hit = scene.ray_intersect(ray)
        albedo = hit.bsdf(ray).eval_diffuse_reflectance(hit, hit.is_valid())
        parts = (dr.minimum(colour, 12.0), albedo, hit.sh_frame.n)
        dr.eval(parts)
        for j, vec in enumerate(parts):
            for c in range(3):
                total[j, c] += np.asarray(dr.block_sum(vec[c], per)) / (per * passes)
    return tuple(np.ascontiguousarray(t.reshape(3, view.height, view.width).transpose(1, 2, 0)) for t in total)


def depth_map(scene: Any, view: View) -> NDArray[np.uint16]:
    """Exact z-depth in millimetres of the upright undistorted pinhole at a quarter size (0 = nothing hit)."""
    import drjit as dr
    import mitsuba as mi

    w, h = view.width // 4, view.height // 4
    index = dr.arange(mi.UInt32, w * h)
    x = ((mi.Float(index % w) + 0.5) * 4 - view.centre[0]) / view.focal
    y = ((mi.Float(index // w) + 0.5) * 4 - view.centre[1]) / view.focal
    hit = scene.ray_intersect(rays(view, x, y))
    z = np.asarray(hit.t / dr.sqrt(x * x + y * y + 1), dtype=np.float64)
    z = np.where(np.asarray(hit.is_valid()), z, 0)
    return np.round(z * 1000).clip(0, 65535).astype(np.uint16).reshape(h, w)


def denoise(
    colour: NDArray[np.float32], albedo: NDArray[np.float32], normal: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Remove path-tracing noise with Open Image Denoise when ``pyoidn`` is there; else return the input."""
    try:
        import pyoidn
    except ImportError:
        return colour
    return np.asarray(pyoidn.denoise(colour, albedo=albedo, normal=normal, hdr=True))


# ------------------------------------------------------------------------------------- sensor and output
def develop(linear: NDArray[np.float32], view: View, exposure: float, seed: int) -> Image.Image:
    """Turn linear light into a phone picture: vignetting, exposure, white balance, sensor noise, tone curve."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : view.height, 0 : view.width].astype(np.float32) + 0.5
    r2 = ((x - view.centre[0]) ** 2 + (y - view.centre[1]) ** 2) / view.focal**2
    light = linear * (exposure * 2**view.ev / (1 + 0.42 * r2) ** 1.2)[..., None]
    light = np.maximum(light * np.array([view.balance[0], 1, view.balance[1]], np.float32), 0)
    light = light + rng.normal(0, 1, light.shape) * np.sqrt(0.00006 * light + 0.0000012)
    light = np.maximum(light, 0)
    soft = np.where(light > 0.6, 0.6 + 0.4 * (1 - np.exp(-(light - 0.6) / 0.4)), light)
    srgb = np.where(soft < 0.0031308, 12.92 * soft, 1.055 * np.maximum(soft, 1e-9) ** (1 / 2.4) - 0.055)
    srgb = srgb + 0.05 * np.sin(2 * np.pi * (srgb - 0.5)) * (srgb * (1 - srgb)) * 2  # a gentle S curve
    return Image.fromarray((np.clip(srgb, 0, 1) * 255 + 0.5).astype(np.uint8))


def exif_of(view: View, index: int) -> Image.Exif:
    """Camera tags as a phone writes them."""
    tall = view.height > view.width
    when = datetime(2025, 5, 17, 14, 20, 5) + timedelta(seconds=7 * index)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "scenetx", "desk camera", 6 if tall else 1
    exif[0x0132] = when.strftime("%Y:%m:%d %H:%M:%S")
    tags = exif.get_ifd(0x8769)
    tags[0x829A], tags[0x8827] = round(1 / 60 * 2**view.ev, 5), 200
    tags[0x9003] = exif[0x0132]
    tags[0x829D], tags[0x920A], tags[0xA405] = 1.8, 4.25, round(EQUIV_MM)
    return exif


def record(view: View) -> dict[str, Any]:
    """Truth of one picture for ``cameras.json``."""
    return {
        "width": view.width,
        "height": view.height,
        "fx": view.focal,
        "fy": view.focal,
        "cx": view.centre[0],
        "cy": view.centre[1],
        "distortion": list(view.distortion),
        "world_from_cam": [[round(float(q), 9) for q in row] for row in view.world_from_cam],
    }


CONVENTION = (
    "Per picture, for the upright picture (EXIF orientation applied) before lens removal: pixels with the first "
    "pixel's centre at (0.5, 0.5); fx fy cx cy in pixels; distortion [k1, k2, p1, p2] of the OpenCV radial-tangential "
    "model; world_from_cam is a 4x4 matrix, OpenCV axes (+x right, +y down, +z forward), metres, world +z up. "
    "depth/NAME.png: exact z-depth in millimetres, 16 bit, 0 = nothing, of the upright undistorted pinhole with the "
    "same fx fy cx cy, at a quarter size (divide fx fy cx cy by 4)."
)


def main() -> None:
    """Render the set."""
    parser = argparse.ArgumentParser(description="Render the example photo set (needs mitsuba, a developer tool).")
    parser.add_argument("--out", type=Path, default=Path("examples/desk"))
    parser.add_argument("--size", type=int, default=1200, help="long side of a picture in pixels")
    parser.add_argument("--spp", type=int, default=5, help="light paths per pixel")
    parser.add_argument("--views", type=int, default=26)
    parser.add_argument("--only", type=int, nargs="*", help="render only these picture numbers (from 1)")
    parser.add_argument("--quality", type=int, default=78, help="JPEG quality")
    parser.add_argument("--exposure", type=float, default=0.62)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import mitsuba as mi

    mi.set_variant("llvm_ad_rgb")
    views = make_views(args.views, args.size, args.seed)
    for sub in ("images", "depth"):
        (args.out / sub).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        scene = mi.load_dict(build(Path(tmp), args.seed))
    integrator = mi.load_dict({"type": "path", "max_depth": 5})
    for i, view in enumerate(views):
        if args.only and i + 1 not in args.only:
            continue
        start = time.time()
        colour, albedo, normal = trace(scene, integrator, view, args.spp, args.seed + i)
        picture = develop(denoise(colour, albedo, normal), view, args.exposure, args.seed + i)
        if view.height > view.width:
            picture = picture.transpose(Image.Transpose.ROTATE_90)  # stored as the sensor reads it
        picture.save(args.out / "images" / f"{view.name}.jpg", quality=args.quality, exif=exif_of(view, i))
        Image.fromarray(depth_map(scene, view)).save(args.out / "depth" / f"{view.name}.png", optimize=True)
        LOG.info("%s median %.3f in %.1f s", view.name, float(np.median(colour)), time.time() - start)
    images = {f"{v.name}.jpg": {**record(v), "depth": f"depth/{v.name}.png", "depth_unit": 0.001} for v in views}
    truth = {"convention": CONVENTION, "pixel_center": 0.5, "images": images}
    (args.out / "cameras.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
