"""Front-to-back blending of the tile lists and its gradient in numba: the hot loops.

A row of a tile is one vector (`cpu_lanes`): no branches between its pixels, and a splat's sums over rows stay in
registers. The tile's state is an array of planes. There is no vector exp, so it is a polynomial here.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
from numba import prange

from scenetx.splat import rules
from scenetx.splat.cpu_jit import kernel
from scenetx.splat.cpu_lanes import lane_numbers, load, magnitude, prefetch, some, spread, store, store_sums, where
from scenetx.splat.cpu_project import (
    BLUE,
    COLUMNS,
    CONIC_A,
    CONIC_B,
    CONIC_C,
    DEPTH,
    GREEN,
    MX,
    MY,
    OPACITY,
    RED,
    SLOT_COLUMNS,
)
from scenetx.splat.cpu_tiles import TILE_HEIGHT, TILE_WIDTH

f32 = np.float32
MIN_ALPHA, MAX_ALPHA = f32(rules.MIN_ALPHA), f32(rules.MAX_ALPHA)
MIN_TRANSMITTANCE = f32(rules.MIN_TRANSMITTANCE)
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
FAR = f32(-0.75)  # exp(8 * FAR) < 1/255: beyond the rim of every splat
CHECK_EVERY = 16  # splats between looks for rows that have ended
GROUPS = 64  # tasks; heavy tiles are dealt out first, like cards
AHEAD = 6  # pairs: their splats lie anywhere in a table larger than the nearer caches
NEVER = f32(-1)

# A tile's state, flat: rows of planes of lanes.
# Forward planes: transmittance (negative once a pixel has ended), colour, depth, last contributor.
T, R, G, B, D, LAST = (plane * TILE_WIDTH for plane in range(6))
FORWARD = 6 * TILE_WIDTH
# Backward planes: T, then what lies behind, the picture's gradients, the last contributor.
BEHIND, GR, GG, GB, GD, GA, UNTIL = (plane * TILE_WIDTH for plane in range(1, 8))
BACKWARD = 8 * TILE_WIDTH


@kernel()
def exp8(u):
    """exp(8 u) for u in [-0.75, 0] to 2e-6: a minimax polynomial for exp(u), squared three times."""
    squared = u * u  # in pairs (Estrin): a chain of six multiply-adds would be waited for
    high = squared * f32(0.0009552621) + (u * f32(0.0079112699) + f32(0.0414563326))
    low = squared * (u * f32(0.1666125089) + f32(0.4999934734)) + (u * f32(0.9999997328) + ONE)
    p = (squared * squared) * high + low
    p = p * p
    p = p * p
    return p * p


@kernel()
def blend_splat(s, live, first, end, k, row, left, top):
    """Add one splat to the tile's rows from ``first`` to ``end``."""
    dx = (row[MX] - left - HALF) - lane_numbers()
    dy = row[MY] - top - HALF - f32(first)
    b, c, opacity = row[CONIC_B], row[CONIC_C], row[OPACITY]
    red, green, blue, depth = row[RED], row[GREEN], row[BLUE], row[DEPTH]
    along = row[CONIC_A] * dx * dx
    for r in range(first, end):
        if live[r]:
            at = r * FORWARD
            u = (b * dy) * dx + (along + c * dy * dy)
            alpha = exp8(where(u > FAR, u, FAR)) * opacity
            alpha = where(alpha < MAX_ALPHA, alpha, MAX_ALPHA)
            t = load(s, at + T)
            hit = (alpha >= MIN_ALPHA) & (u <= ZERO) & (t > ZERO)
            w = alpha * t
            takes = hit & (t - w > MIN_TRANSMITTANCE)
            # Sums, since a choice between new and what was there would become a masked store, which is slow on AMD.
            ends = where(hit, t + t, ZERO)
            w = where(takes, w, ZERO)
            store(s, at + T, t - where(takes, w, ends))
            store(s, at + R, load(s, at + R) + w * red)
            store(s, at + G, load(s, at + G) + w * green)
            store(s, at + B, load(s, at + B) + w * blue)
            store(s, at + D, load(s, at + D) + w * depth)
            last = load(s, at + LAST)
            store(s, at + LAST, last + where(takes, k - last, ZERO))
        dy -= ONE


@kernel()
def find_live(s, live):
    """Mark the rows that still have pixels to go; are there any?"""
    any_live = False
    for r in range(TILE_HEIGHT):
        live[r] = some(load(s, r * FORWARD + T) > ZERO)
        any_live |= live[r]
    return any_live


@kernel()
def blend_tile(s, live, table, pairs, begin, end, left, top):
    flat = table.reshape(table.size)
    for k in range(begin, end):
        if (k - begin) % CHECK_EVERY == 0 and not find_live(s, live):
            return
        prefetch(flat, COLUMNS * pairs[min(k + AHEAD, end - 1), 0])
        blend_splat(s, live, pairs[k, 2], pairs[k, 3], f32(k - begin), table[pairs[k, 0]], f32(left), f32(top))


@kernel(parallel=True)
def blend_forward(table, pairs, tile_start, heavy_first, columns, background, rgb, depth, alpha, until):
    """Fill the picture; ``until`` keeps each pixel's last contributor, as its place in the tile's list."""
    height, width = depth.shape
    for group in prange(GROUPS):
        s, live = np.empty(TILE_HEIGHT * FORWARD, f32), np.empty(TILE_HEIGHT, np.bool_)
        for at in range(group, len(heavy_first), GROUPS):
            tile = heavy_first[at]
            left, top = (tile % columns) * TILE_WIDTH, (tile // columns) * TILE_HEIGHT
            s[:] = ZERO
            for r in range(TILE_HEIGHT):
                for lane in range(TILE_WIDTH):
                    inside = (left + lane < width) & (top + r < height)
                    s[r * FORWARD + T + lane] = ONE if inside else NEVER
                    s[r * FORWARD + LAST + lane] = NEVER
            blend_tile(s, live, table, pairs, tile_start[tile], tile_start[tile + 1], left, top)
            for r in range(min(TILE_HEIGHT, height - top)):
                y = top + r
                for lane in range(min(TILE_WIDTH, width - left)):
                    x, place = left + lane, r * FORWARD + lane
                    t = abs(s[place + T])
                    rgb[y, x, 0] = s[place + R] + t * background[0]
                    rgb[y, x, 1] = s[place + G] + t * background[1]
                    rgb[y, x, 2] = s[place + B] + t * background[2]
                    alpha[y, x] = ONE - t
                    depth[y, x] = s[place + D] / (ONE - t) if t < ONE else ZERO
                    until[y, x] = s[place + LAST]


@kernel()
def unblend_splat(s, last_of_row, first, end, k, row, left, top, absolute, slots, slot):
    """Take one splat off the tile's rows, back to front, and write its gradient sums into its slot."""
    dx = (row[MX] - left - HALF) - lane_numbers()
    dy = row[MY] - top - HALF - f32(first)
    a, b, c, opacity = row[CONIC_A], row[CONIC_B], row[CONIC_C], row[OPACITY]
    red, green, blue, depth = row[RED], row[GREEN], row[BLUE], row[DEPTH]
    along = a * dx * dx
    zero = spread(ZERO)
    sum_r, sum_g, sum_b, sum_d, sum_v, sum_vy, sum_vyy, sum_x, sum_y = (
        zero, zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    for r in range(first, end):
        if k <= last_of_row[r]:
            at = r * BACKWARD
            u = (b * dy) * dx + (along + c * dy * dy)
            raw = exp8(where(u > FAR, u, FAR)) * opacity
            alpha = where(raw < MAX_ALPHA, raw, MAX_ALPHA)
            hit = (alpha >= MIN_ALPHA) & (u <= ZERO) & (load(s, at + UNTIL) >= k)
            alpha = where(hit, alpha, ZERO)
            again = ONE / (ONE - alpha)
            t = load(s, at + T) * again
            w = alpha * t
            gr, gg, gb, gd = load(s, at + GR), load(s, at + GG), load(s, at + GB), load(s, at + GD)
            worth = gr * red + gg * green + gb * blue + gd * depth + load(s, at + GA)
            behind = load(s, at + BEHIND)
            v = where(raw <= MAX_ALPHA, alpha * (behind * again - t * worth), ZERO)
            store(s, at + BEHIND, behind + w * worth)
            store(s, at + T, t)
            sum_r, sum_g, sum_b, sum_d = sum_r + w * gr, sum_g + w * gg, sum_b + w * gb, sum_d + w * gd
            sum_v = sum_v + v
            sum_vy = sum_vy + v * dy
            sum_vyy = sum_vyy + v * (dy * dy)
            if absolute:  # |d loss / d mean| pixel by pixel, up to the factor 8 of the scaled conic
                sum_x = sum_x + magnitude(v * ((a + a) * dx + b * dy))
                sum_y = sum_y + magnitude(v * (b * dx + (c + c) * dy))
        dy -= ONE
    # Powers of dx are the same in every row, so they come in here. The order is that of the slots' columns.
    store_sums(slots, slot * SLOT_COLUMNS, sum_r, sum_g, sum_b, sum_d)
    store_sums(slots, slot * SLOT_COLUMNS + 4, sum_v, sum_v * dx, sum_vy, sum_v * dx * dx)
    store_sums(slots, slot * SLOT_COLUMNS + 8, sum_vy * dx, sum_vyy, sum_x * f32(8), sum_y * f32(8))


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
            y, x, place = top + r, left + lane, r * BACKWARD + lane
            s[place + UNTIL], s[place + T] = NEVER, ONE
            if y >= height or x >= width or until[y, x] < ZERO:
                continue
            s[place + UNTIL], s[place + T] = until[y, x], ONE - alpha[y, x]
            last_of_row[r] = max(last_of_row[r], until[y, x])
            gr, gg, gb = d_rgb[y, x, 0], d_rgb[y, x, 1], d_rgb[y, x, 2]
            gd = d_depth[y, x] / alpha[y, x]
            s[place + GR], s[place + GG], s[place + GB], s[place + GD] = gr, gg, gb, gd
            over = gr * background[0] + gg * background[1] + gb * background[2]
            s[place + GA] = d_alpha[y, x] - over - gd * depth[y, x]


@kernel(parallel=True)
def blend_backward(table, pairs, tile_start, heavy_first, columns, background, picture, gradient, absolute, slots):
    """Gradient sums of every (tile, splat) pair, each in its own slot: no two threads ever write one place.

    The absolute ones (for densification) cost extra and are zero unless ``absolute``.
    """
    flat, rows = slots.reshape(slots.size), table.reshape(table.size)
    for group in prange(GROUPS):
        s, last_of_row = np.empty(TILE_HEIGHT * BACKWARD, f32), np.empty(TILE_HEIGHT, f32)
        for at in range(group, len(heavy_first), GROUPS):
            tile = heavy_first[at]
            left, top = (tile % columns) * TILE_WIDTH, (tile // columns) * TILE_HEIGHT
            load_tile(s, last_of_row, left, top, background, picture, gradient)
            begin, end = tile_start[tile], tile_start[tile + 1]
            used = min(begin + int(last_of_row.max()) + 1, end)
            for k in range(used, end):
                slots[pairs[k, 1], :] = ZERO
            for k in range(used - 1, begin - 1, -1):
                ahead = max(k - AHEAD, begin)
                prefetch(rows, COLUMNS * pairs[ahead, 0])
                prefetch(flat, SLOT_COLUMNS * pairs[ahead, 1])
                unblend_splat(
                    s, last_of_row, pairs[k, 2], pairs[k, 3], f32(k - begin), table[pairs[k, 0]],
                    f32(left), f32(top), absolute, flat, pairs[k, 1],
                )  # fmt: skip
