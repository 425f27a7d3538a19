"""Front-to-back blending of the tile lists and its gradient in numba: the hot loops.

A row of a tile is one vector: its loop over TILE_WIDTH lanes has no branch and reads and writes one array of planes
(structure of arrays), which LLVM vectorises. numba has no vector exp, so it is a polynomial here.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
from numba import prange

from scenetx.splat import rules
from scenetx.splat.cpu_jit import kernel
from scenetx.splat.cpu_project import (
    ABS_X,
    ABS_Y,
    BLUE,
    CONIC_A,
    CONIC_B,
    CONIC_C,
    DEPTH,
    G_RED,
    GREEN,
    MX,
    MY,
    OPACITY,
    RED,
    VX,
    VXX,
    VXY,
    VY,
    VYY,
    V,
)
from scenetx.splat.cpu_tiles import TILE_HEIGHT, TILE_WIDTH

f32 = np.float32
MIN_ALPHA, MAX_ALPHA = f32(rules.MIN_ALPHA), f32(rules.MAX_ALPHA)
MIN_TRANSMITTANCE = f32(rules.MIN_TRANSMITTANCE)
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
FAR = f32(-0.75)  # exp(8 * FAR) < 1/255: beyond the rim of every splat
CHECK_EVERY = 16  # splats between looks for rows that have ended
GROUPS = 64  # tasks; heavy tiles are dealt out first, like cards
NEVER = f32(-1)

# A tile's state is one array (row, plane x lane): all offsets in a row are constants, so LLVM needs no alias checks.
# Forward planes: transmittance (negative once a pixel has ended), colour, depth, last contributor.
T, R, G, B, D, LAST = (plane * TILE_WIDTH for plane in range(6))
FORWARD = 6 * TILE_WIDTH
# Backward planes: T, then what lies behind, the picture's gradients, the last contributor ...
BEHIND, GR, GG, GB, GD, GA, UNTIL = (plane * TILE_WIDTH for plane in range(1, 8))
# ... and one splat's terms: its weight times the 4 channels' gradients, V, V dy, V dy^2, |V d/dx|, |V d/dy|.
TERMS = 8 * TILE_WIDTH
TERM_R, TERM_G, TERM_B, TERM_D, TERM_V, TERM_VY, TERM_VYY, TERM_X, TERM_Y = (
    plane * TILE_WIDTH for plane in range(8, 17)
)
BACKWARD = 17 * TILE_WIDTH


@kernel(fast=True)
def exp8(u):
    """exp(8 u) for u in [-0.75, 0] to 2e-6: a minimax polynomial for exp(u), squared three times."""
    p = f32(0.0009552621)
    p = p * u + f32(0.0079112699)
    p = p * u + f32(0.0414563326)
    p = p * u + f32(0.1666125089)
    p = p * u + f32(0.4999934734)
    p = p * u + f32(0.9999997328)
    p = p * u + ONE
    p = p * p
    p = p * p
    return p * p


@kernel(fast=True)
def blend_row(s, r, k, dx0, a, bdy, cdyy, opacity, red, green, blue, depth):
    """Add one splat to one row of pixels."""
    for lane in range(TILE_WIDTH):
        dx = dx0 - f32(lane)
        u = (a * dx + bdy) * dx + cdyy
        alpha = opacity * exp8(u if u > FAR else FAR)
        alpha = alpha if alpha < MAX_ALPHA else MAX_ALPHA
        t = s[r, T + lane]
        hit = (alpha >= MIN_ALPHA) & (u <= ZERO) & (t > ZERO)
        after = t * (ONE - alpha)
        ends = hit & (after <= MIN_TRANSMITTANCE)
        takes = hit & (after > MIN_TRANSMITTANCE)
        w = alpha * t if takes else ZERO
        after = after if takes else t
        s[r, T + lane] = -t if ends else after
        s[r, R + lane] += w * red
        s[r, G + lane] += w * green
        s[r, B + lane] += w * blue
        s[r, D + lane] += w * depth
        s[r, LAST + lane] = k if takes else s[r, LAST + lane]


@kernel()
def find_live(s, live):
    """Mark the rows that still have pixels to go; are there any?"""
    some = False
    for r in range(TILE_HEIGHT):
        most = NEVER
        for lane in range(TILE_WIDTH):
            t = s[r, T + lane]
            most = t if t > most else most
        live[r] = most > ZERO
        some |= live[r]
    return some


@kernel()
def blend_tile(s, live, table, pairs, begin, end, left, top):
    for k in range(begin, end):
        if (k - begin) % CHECK_EVERY == 0 and not find_live(s, live):
            return
        i = pairs[k, 0]
        dx0 = table[i, MX] - f32(left) - HALF
        for r in range(pairs[k, 2], pairs[k, 3]):
            if live[r]:
                dy = table[i, MY] - f32(top + r) - HALF
                blend_row(
                    s, r, f32(k - begin), dx0, table[i, CONIC_A], table[i, CONIC_B] * dy, table[i, CONIC_C] * dy * dy,
                    table[i, OPACITY], table[i, RED], table[i, GREEN], table[i, BLUE], table[i, DEPTH],
                )  # fmt: skip


@kernel(parallel=True)
def blend_forward(table, pairs, tile_start, heavy_first, columns, background, rgb, depth, alpha, until):
    """Fill the picture; ``until`` keeps each pixel's last contributor, as its place in the tile's list."""
    height, width = depth.shape
    for group in prange(GROUPS):
        s, live = np.empty((TILE_HEIGHT, FORWARD), f32), np.empty(TILE_HEIGHT, np.bool_)
        for at in range(group, len(heavy_first), GROUPS):
            tile = heavy_first[at]
            left, top = (tile % columns) * TILE_WIDTH, (tile // columns) * TILE_HEIGHT
            s[:] = ZERO
            for r in range(TILE_HEIGHT):
                for lane in range(TILE_WIDTH):
                    inside = (left + lane < width) & (top + r < height)
                    s[r, T + lane] = ONE if inside else NEVER
                    s[r, LAST + lane] = NEVER
            blend_tile(s, live, table, pairs, tile_start[tile], tile_start[tile + 1], left, top)
            for r in range(min(TILE_HEIGHT, height - top)):
                y = top + r
                for lane in range(min(TILE_WIDTH, width - left)):
                    x = left + lane
                    t = abs(s[r, T + lane])
                    rgb[y, x, 0] = s[r, R + lane] + t * background[0]
                    rgb[y, x, 1] = s[r, G + lane] + t * background[1]
                    rgb[y, x, 2] = s[r, B + lane] + t * background[2]
                    alpha[y, x] = ONE - t
                    depth[y, x] = s[r, D + lane] / (ONE - t) if t < ONE else ZERO
                    until[y, x] = s[r, LAST + lane]


@kernel(fast=True)
def unblend_row(s, r, k, dx0, dy, a, b, c, opacity, red, green, blue, depth):
    """Take one splat off one row of pixels, back to front, and write its gradient terms."""
    bdy, two_cdy, cdyy = b * dy, (c + c) * dy, c * dy * dy
    for lane in range(TILE_WIDTH):
        dx = dx0 - f32(lane)
        u = (a * dx + bdy) * dx + cdyy
        raw = opacity * exp8(u if u > FAR else FAR)
        alpha = raw if raw < MAX_ALPHA else MAX_ALPHA
        alpha = alpha if (alpha >= MIN_ALPHA) & (u <= ZERO) & (k <= s[r, UNTIL + lane]) else ZERO
        again = ONE / (ONE - alpha)
        t = s[r, T + lane] * again
        w = alpha * t
        gr, gg, gb, gd = s[r, GR + lane], s[r, GG + lane], s[r, GB + lane], s[r, GD + lane]
        worth = red * gr + green * gg + blue * gb + depth * gd + s[r, GA + lane]
        behind = s[r, BEHIND + lane]
        v = alpha * (behind * again - t * worth)
        v = v if raw <= MAX_ALPHA else ZERO
        s[r, BEHIND + lane] = behind + w * worth
        s[r, T + lane] = t
        s[r, TERM_R + lane] = w * gr
        s[r, TERM_G + lane] = w * gg
        s[r, TERM_B + lane] = w * gb
        s[r, TERM_D + lane] = w * gd
        s[r, TERM_V + lane] = v
        s[r, TERM_VY + lane] = v * dy
        s[r, TERM_VYY + lane] = v * dy * dy
        # |d loss / d mean| pixel by pixel, up to the factor 8 of the scaled conic
        s[r, TERM_X + lane] = abs(v * (a * dx + a * dx + bdy))
        s[r, TERM_Y + lane] = abs(v * (b * dx + two_cdy))


@kernel(fast=True)
def add_terms(sums, s, r):
    for j in range(BACKWARD - TERMS):
        sums[j] += s[r, TERMS + j]


@kernel()
def fold_lanes(sums, dx0, slots, at):
    """Sum the lanes of one pair into its slot; powers of dx are the same in every row, so they come in here."""
    for channel in range(4):
        total = ZERO
        for lane in range(TILE_WIDTH):
            total += sums[channel * TILE_WIDTH + lane]
        slots[at, G_RED + channel] = total
    v0, vx, vy, vxx, vxy, vyy, abs_x, abs_y = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for lane in range(TILE_WIDTH):
        dx = dx0 - f32(lane)
        v, v_dy = sums[TERM_V - TERMS + lane], sums[TERM_VY - TERMS + lane]
        v0, vx, vxx = v0 + v, vx + v * dx, vxx + v * dx * dx
        vy, vxy = vy + v_dy, vxy + v_dy * dx
        vyy += sums[TERM_VYY - TERMS + lane]
        abs_x += sums[TERM_X - TERMS + lane]
        abs_y += sums[TERM_Y - TERMS + lane]
    slots[at, V], slots[at, VX], slots[at, VY], slots[at, VXX], slots[at, VXY], slots[at, VYY] = (
        v0,
        vx,
        vy,
        vxx,
        vxy,
        vyy,
    )
    slots[at, ABS_X], slots[at, ABS_Y] = f32(8) * abs_x, f32(8) * abs_y


@kernel()
def unblend_tile(s, sums, last_of_row, table, pairs, begin, end, left, top, slots):
    for k in range(end - 1, begin - 1, -1):
        i = pairs[k, 0]
        dx0 = table[i, MX] - f32(left) - HALF
        sums[:] = ZERO
        place = f32(k - begin)
        for r in range(pairs[k, 2], pairs[k, 3]):
            if place <= last_of_row[r]:
                dy = table[i, MY] - f32(top + r) - HALF
                unblend_row(
                    s, r, place, dx0, dy, table[i, CONIC_A], table[i, CONIC_B], table[i, CONIC_C],
                    table[i, OPACITY], table[i, RED], table[i, GREEN], table[i, BLUE], table[i, DEPTH],
                )  # fmt: skip
                add_terms(sums, s, r)
        fold_lanes(sums, dx0, slots, pairs[k, 1])


@kernel()
def load_tile(s, last_of_row, left, top, background, picture, gradient):
    """Planes of a tile from the picture and its gradient; pixels outside the picture have no contributor."""
    depth, alpha, until = picture
    d_rgb, d_depth, d_alpha = gradient
    height, width = depth.shape
    s[:] = ZERO
    last_of_row[:] = NEVER
    for r in range(TILE_HEIGHT):
        for lane in range(TILE_WIDTH):
            y, x = top + r, left + lane
            s[r, UNTIL + lane], s[r, T + lane] = NEVER, ONE
            if y >= height or x >= width or until[y, x] < ZERO:
                continue
            s[r, UNTIL + lane], s[r, T + lane] = until[y, x], ONE - alpha[y, x]
            last_of_row[r] = max(last_of_row[r], until[y, x])
            gr, gg, gb = d_rgb[y, x, 0], d_rgb[y, x, 1], d_rgb[y, x, 2]
            gd = d_depth[y, x] / alpha[y, x]
            s[r, GR + lane], s[r, GG + lane], s[r, GB + lane], s[r, GD + lane] = gr, gg, gb, gd
            over = gr * background[0] + gg * background[1] + gb * background[2]
            s[r, GA + lane] = d_alpha[y, x] - over - gd * depth[y, x]


@kernel(parallel=True)
def blend_backward(table, pairs, tile_start, heavy_first, columns, background, picture, gradient, slots):
    """Gradient sums of every (tile, splat) pair, each in its own slot: no two threads ever write one place."""
    for group in prange(GROUPS):
        s, sums = np.empty((TILE_HEIGHT, BACKWARD), f32), np.empty(BACKWARD - TERMS, f32)
        last_of_row = np.empty(TILE_HEIGHT, f32)
        for at in range(group, len(heavy_first), GROUPS):
            tile = heavy_first[at]
            left, top = (tile % columns) * TILE_WIDTH, (tile // columns) * TILE_HEIGHT
            load_tile(s, last_of_row, left, top, background, picture, gradient)
            begin, end = tile_start[tile], tile_start[tile + 1]
            used = min(begin + int(last_of_row.max()) + 1, end)
            for k in range(used, end):
                slots[pairs[k, 1], :] = ZERO
            unblend_tile(s, sums, last_of_row, table, pairs, begin, used, left, top, slots)
