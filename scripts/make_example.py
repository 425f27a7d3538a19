"""Make the bundled example photo set ``examples/desk``: path-traced pictures of a procedural desk, with truth.

The scene is our own (see ``example_desk.py``), the camera is a hand-held phone with a radial-tangential lens,
and the truth (poses, intrinsics, distortion, quarter-size depth) is written beside the pictures.

Mitsuba 3 (BSD-3-Clause) renders; it is a developer tool for this script only, never a dependency of the package.
``pyoidn`` (MIT; Open Image Denoise, Apache-2.0) is used to denoise when it is installed.

    pip install mitsuba pillow numpy pyoidn
    python scripts/make_example.py --out examples/desk --size 1200 --spp 32 --views 30
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

import numpy as np
from example_desk import (
    INKS,
    STAND_UV,
    Desk,
    book,
    box,
    jacket,
    join,
    keycaps,
    labelled,
    landscape,
    lathe,
    leaf,
    noise,
    page,
    patch,
    quad,
    ramp,
    shapes,
    sheet,
    topo,
    tube,
    wood,
)
from numpy.typing import NDArray
from PIL import Image

LOG = logging.getLogger("make_example")
DISTORTION = (0.06, -0.08, 0.0006, -0.0004)  # k1 k2 p1 p2 of the landscape sensor
EQUIV_MM = 26.0  # 35 mm equivalent, by the diagonal
FLOOR = -0.74
WALL = 0.52


# ------------------------------------------------------------------------------------------------ layout
def room(s: Desk) -> None:
    """Add walls, floor, rug, pictures on the walls, the lights and the surroundings."""
    import mitsuba as mi

    r = s.rng
    s.material("floor", wood(r, 1400, 1800, [(.62, .44, .28), (.46, .30, .17), (.25, .15, .08)], 14, 4), .25)
    s.add(quad((-2.2, WALL, FLOOR), (4.4, 0, 0), (0, -3.4, 0)), "floor")
    s.material("rug", shapes(r, 1000, 1500, (.52, .20, .16), 900, 34))
    s.add(box(2.3, 1.5, .012).placed((0, -.75, FLOOR)), "rug")
    for name, bg, p, a, n in (("wall", (.60, .70, .68), (-2.2, WALL, 2.0), (4.4, 0, 0), 1500),
                              ("wall_l", (.80, .72, .58), (-2.2, -2.9, 2.0), (0, WALL + 2.9, 0), 800),
                              ("wall_r", (.74, .70, .64), (2.2, WALL, 2.0), (0, -WALL - 2.9, 0), 800)):
        s.material(name, shapes(r, 1300, 2048, bg, n, 26) * .55 + .45 * np.asarray(bg, np.float32))
        s.add(quad(p, a, (0, 0, FLOOR - 2.0)), name)
    s.material("frame", wood(r, 200, 500, [(.30, .20, .12), (.10, .06, .03)], 2), .12)
    hung = [((.42, WALL - .02, .52), 0, .62, .44), ((-.95, WALL - .02, .5), 0, .5, .66), ((1.35, WALL - .02, .45), 0, .66, .5),
            ((-2.18, -.35, .42), 90, .8, .56), ((-2.18, -1.5, .4), 90, .6, .8), ((2.18, -.25, .45), -90, .84, .6),
            ((2.18, -2.2, .4), -90, .6, .8)]
    for i, (at, yaw, w, h) in enumerate(hung):
        art = [landscape, topo, lambda q, a, b: shapes(q, a, b, INKS[8], 170, 60)][i % 3](r, int(700 * h), int(700 * w * 1.2))
        s.material(f"art{i}", art, .12 if i % 2 else None)
        s.add(box(w + .06, .024, h + .06).placed((at[0], at[1], at[2] - .03), yaw), "frame")
        s.add(quad((-w / 2, -.0125, h), (w, 0, 0), (0, 0, -h)).placed(at, yaw), f"art{i}")
    s.material("lamp_white", (.9, .9, .9))
    s.add(quad((1.9, -2.5, 1.9), (0, 1.2, 0), (.3, 0, -1.2)).placed((0, 0, 0)), "lamp_white", (21, 22, 24))
    s.add(quad((-.9, -1.3, 2.1), (1.3, 0, 0), (0, 1.1, 0)), "lamp_white", (8.5, 8.0, 7.2))
    sky = ramp(np.repeat(np.linspace(0, 1, 32, dtype=np.float32)[:, None], 64, 1), [(.85, .92, 1.05), (.7, .66, .6), (.3, .25, .2)])
    sky[8:14, 40:48] *= 4
    s.items["sky"] = {"type": "envmap", "bitmap": mi.Bitmap(sky), "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], 90)}


def shelves(s: Desk) -> None:
    """Add a book shelf on the wall and a book case on the left; every book has its own size and jacket."""
    r = s.rng
    for i in range(20):
        s.material(f"book{i}", jacket(r), .18 if i % 2 else None)
    s.material("board", wood(r, 300, 1600, [(.72, .54, .34), (.50, .33, .18)], 1), .2)
    s.add(box(1.0, .2, .022).placed((-.25, WALL - .11, .47)), "board")
    rows = [((-.72, WALL - .11, .492), 0., .70)]
    for k in range(4):
        rows.append(((-1.98, .40, FLOOR + .12 + .38 * k), -90., 0.72))
        s.add(box(.8, .26, .025).placed((-2.02, .08, FLOOR + .095 + .38 * k), 90), "board")
    j = 0
    for at, yaw, length in rows:
        x = 0.
        while x < length:
            t, h, d = r.uniform(.018, .048), r.uniform(.17, .27), r.uniform(.12, .16)
            lean = -9. if r.random() < .1 else 0.
            c, q = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
            spot = (at[0] + c * (x + t / 2), at[1] + q * (x + t / 2), at[2] + (.003 if lean else 0))
            turn = yaw if yaw == 0 else 90.
            s.add(box(t, d, h, STAND_UV).placed(spot, turn, 0, 0), f"book{j % 20}")
            x, j = x + t + .002 - lean * .001, j + 7


def desk(s: Desk) -> None:
    """Add the desk, the map on it, stacked books, an open book and loose papers."""
    r = s.rng
    s.material("desk", wood(r, 1150, 2048, [(.80, .60, .38), (.60, .39, .20), (.30, .17, .08)], 6), .16)
    s.add(box(1.6, .84, .035).placed((0, 0, -.035)), "desk")
    s.add(box(.42, .7, .62).placed((.52, .03, -.66)), "frame")
    for x, y in ((-.74, -.36), (-.74, .36), (.74, -.36), (.74, .36)):
        s.add(box(.05, .05, -FLOOR - .035).placed((x, y, FLOOR)), "frame")
    s.material("map", topo(r, 820, 1300), .35)
    s.add(sheet(r, .74, .46, .0).placed((-.06, -.14, .0004), 3), "map")
    z = 0.
    for i, (w, d, t, yaw) in enumerate(((.19, .27, .045, 8), (.17, .25, .03, -14), (.16, .23, .038, 22), (.13, .20, .022, -5))):
        s.add(book(w, d, t).placed((-.56, .14, z), yaw), f"book{i + 3}")
        z += t + .0005
    s.add(book(.15, .22, .028).placed((.63, -.26, 0), -24), "book9")
    s.add(book(.14, .20, .022).placed((.62, -.25, .0285), 12), "book12")
    for side in (-1, 1):
        y, x = np.mgrid[.115:-.115:12j, 0:.165:16j]
        x = x if side > 0 else x - .165
        arch = .004 + .020 * np.sin(np.pi * np.clip(np.abs(x) / .17, 0, 1) ** .6) * (1 - .4 * np.abs(x) / .165)
        s.material(f"open{side}", page(r, 760, 540), .5)
        mesh = patch(np.stack([x, y, arch], -1))
        s.add(mesh.placed((.40, -.06, .002), -12), f"open{side}")
    s.material("cover", (.35, .10, .09), .3)
    s.add(box(.345, .24, .004).placed((.40, -.06, 0), -12), "cover")
    papers = [(-.62, -.26, 17), (-.58, -.20, -8), (.28, -.30, -20), (-.05, .13, 11), (.10, -.34, 6), (-.74, -.03, 80)]
    for i, (x, y, yaw) in enumerate(papers):
        s.material(f"paper{i}", page(r, 900, 636, [(.95, .94, .90), (.96, .92, .78), (.86, .91, .94)][i % 3]))
        s.add(sheet(r, .15, .21, .002).placed((x, y, .0006 * (i + 2)), yaw), f"paper{i}")
    for i in range(7):
        s.material(f"card{i}", landscape(r, 360, 520) if i % 2 else shapes(r, 360, 520, INKS[i], 70, 40), .1)
        x, y = [(-.30, .02), (.20, .10), (-.38, -.36), (.46, -.31), (-.02, -.36), (.30, .35), (.70, .0)][i]
        s.add(sheet(r, .12, .083, .003).placed((x, y, .005), float(r.uniform(-40, 40))), f"card{i}")


def things(s: Desk) -> None:
    """Add the keyboard, mug, pen cup, ball, boxes, cube and standing cards."""
    r = s.rng
    s.material("keys", keycaps(r, 5, 14), .3)
    s.material("dark", ramp(noise(r, 256, 512, (60, 120), 2), [(.10, .11, .13), (.24, .25, .28)]), .2)
    keys = []
    for i in range(70):
        cell = (i % 14 / 14, i // 14 / 5, (i % 14 + 1) / 14, (i // 14 + 1) / 5)
        side = (cell[0], cell[1], cell[0] + .004, cell[1] + .01)
        uv = {k: cell if k == "top" else side for k in ("top", "front", "back", "left", "right", "bottom")}
        keys.append(box(.0225, .0225, .009, uv).placed((.026 * (i % 14 - 6.5), .026 * (2 - i // 14), .014)))
    s.add(join(keys).placed((-.07, -.22, .0015), 5), "keys")
    s.add(box(.385, .148, .016).placed((-.07, -.22, .0015), 5), "dark")
    mug = shapes(r, 420, 1100, (.90, .87, .80), 150, 40)
    s.material("mug", labelled(r, mug, 3, 76), .06)
    s.material("glaze", (.72, .24, .16), .06)
    s.add(lathe([(.034, 0), (.040, .004), (.042, .05), (.043, .097)], 64).placed((.17, .0, 0)), "mug")
    s.add(lathe([(.043, .097), (.0415, .099), (.039, .097), (.038, .05), (.034, .008), (0, .006)], 64).placed((.17, .0, 0)), "glaze")
    a = np.linspace(-1.45, 1.45, 24)
    s.add(tube(np.c_[.041 + .026 * np.cos(a), 0 * a, .052 + .03 * np.sin(a)], .006).placed((.17, .0, 0), 35), "glaze")
    s.material("coffee", ramp(noise(r, 128, 128, (6, 6)), [(.05, .02, .01), (.16, .08, .04)]), .05)
    s.add(lathe([(.0385, .078), (0, .0785)]).placed((.17, .0, 0)), "coffee")
    s.material("cup", shapes(r, 400, 900, (.16, .30, .34), 260, 26), .25)
    s.add(lathe([(.038, 0), (.040, .10), (.037, .10), (.034, .004), (0, .004)]).placed((-.36, .10, 0)), "cup")
    for i in range(9):
        s.material(f"pen{i}", labelled(r, shapes(r, 300, 160, INKS[i], 30, 26), 2, 30), .1)
        pen = lathe([(.0, .0), (.0042, .012), (.0042, .15), (.0035, .152), (0, .152)], 12)
        angle = i * 2.4
        s.add(pen.placed((-.36 + .017 * np.cos(angle), .10 + .017 * np.sin(angle), .006), i * 137., 6. + i, 5.), f"pen{i}")
    for i, (x, y, yaw) in enumerate(((.18, -.18, 60), (.23, -.2, 100), (-.42, -.12, 20))):
        s.add(lathe([(0, 0), (.0042, .012), (.0042, .15), (0, .152)], 12).placed((x, y, .009), yaw, 90), f"pen{i * 3}")
    globe = topo(r, 700, 1400)
    s.material("globe", globe, .08)
    t = np.linspace(-np.pi / 2, np.pi / 2, 33)
    s.add(lathe(list(zip(.085 * np.cos(t), .085 + .085 * np.sin(t), strict=True)), 64).placed((-.16, .27, 0), 0, 12, 0), "globe")
    for i, (w, d, h, x, y, z, yaw) in enumerate(((.24, .17, .13, .38, .27, 0, -10), (.13, .10, .07, .36, .28, .13, 18),
                                               (.10, .10, .10, -.33, -.06, 0, 30), (.12, .05, .055, .06, .30, 0, -25),
                                               (.045, .045, .045, .05, -.06, .002, 40), (.045, .045, .045, -.21, .13, 0, 15))):
        bg = [(.66, .48, .30), (.70, .18, .22), (.20, .36, .52), (.86, .78, .60), (.9, .86, .8), (.9, .7, .2)][i]
        s.material(f"box{i}", labelled(r, shapes(r, 620, 620, bg, 60, 44), 9, 46), None if i == 0 else .15)
        s.add(box(w, d, h).placed((x, y, z), yaw), f"box{i}")


def lamp_and_plant(s: Desk) -> None:
    """Add the metal lamp with its bulb, the potted plant, coins and paper clips."""
    r = s.rng
    s.metal("brass", "Cu", .18)
    s.metal("steel", "Al", .22)
    s.material("shade", ramp(noise(r, 300, 700, (60, 140), 2), [(.10, .30, .28), (.18, .44, .40)]), .2)
    s.material("bulb", (.9, .9, .85))
    s.add(lathe([(.075, 0), (.075, .012), (.06, .02), (.012, .024), (0, .024)]).placed((.66, .22, 0)), "brass")
    s.add(tube(np.array([(.66, .22, .02), (.67, .23, .15), (.68, .24, .30), (.60, .20, .42), (.52, .15, .46)]), .008), "brass")
    shade = lathe([(.088, -.06), (.05, .03), (.025, .055), (.0, .06), (.022, .052), (.047, .027), (.085, -.06)])
    s.add(shade.placed((.51, .145, .42), 30, -20), "shade")
    t = np.linspace(-np.pi / 2, np.pi / 2, 9)
    s.add(lathe(list(zip(.022 * np.cos(t), .022 * np.sin(t), strict=True)), 16).placed((.51, .145, .42)), "bulb", (95, 72, 46))
    s.material("pot", labelled(r, shapes(r, 420, 1100, (.66, .34, .22), 200, 28), 1, 60))
    pot = [(.045, 0), (.062, .085), (.068, .088), (.069, .105), (.062, .105), (.058, .09), (0, .09)]
    s.add(lathe(pot).placed((.15, .31, 0)), "pot")
    y, x = np.mgrid[-1:1:180j, 0:1:360j]
    vein = np.maximum(np.exp(-(y * 16) ** 2), .8 * np.exp(-(np.sin((x - .35 * np.abs(y)) * 34) * 3.0) ** 2))
    for i in range(4):
        t = np.clip(.75 * noise(r, 180, 360, (5, 9)) + .15, 0, 1) * (1 - .6 * vein) + .75 * vein * (.6 + .1 * i)
        greens = [(.05, .16 + .03 * i, .05), (.16 + .04 * i, .38, .12), (.62, .70 - .05 * i, .36)]
        s.material(f"leaf{i}", ramp(t.astype(np.float32), greens), .22)
    for i in range(34):
        k = i / 34
        rise, span = .20 * (1 - k) + r.uniform(.02, .06), .07 + .10 * k + r.uniform(0, .03)
        m = leaf(span, .045 + .02 * r.random(), rise, .10 * k + .02)
        s.add(m.placed((.15, .31, .09), i * 137.5 + r.uniform(-12, 12)), f"leaf{i % 4}")
    for i in range(14):
        x, y = r.uniform(-.7, .7), r.uniform(-.40, -.33)
        disc = lathe([(.011, 0), (.011, .0016), (.009, .0019), (0, .0019)], 28)
        s.add(disc.placed((x, y, .006)), ["brass", "steel"][i % 2])
    standing = [(-.40, .33, 10, .16, .22), (.56, .37, -14, .2, .15), (-.68, .33, 24, .14, .19)]
    for i, (x, y, yaw, w, h) in enumerate(standing):
        s.material(f"stand{i}", [landscape, page, landscape][i](r, int(h * 2800), int(w * 2800)), .08)
        s.add(box(w + .02, .012, h + .02).placed((x, y, 0), yaw, 0, -12), "frame")
        s.add(quad((-w / 2, -.0065, h + .01), (w, 0, 0), (0, 0, -h)).placed((x, y, 0), yaw, 0, -12), f"stand{i}")


def build(folder: Path, seed: int) -> dict[str, Any]:
    """Make the whole scene as a Mitsuba dictionary; mesh files go to ``folder``."""
    scene = Desk(np.random.default_rng(seed), folder)
    for part in (room, shelves, desk, things, lamp_and_plant):
        part(scene)
    return scene.items
