"""Which splats touch which tiles and rows, front to back, in numba.

Tiles are narrow columns. For each column a splat crosses, the rows its ellipse covers there follow in closed form: a
(tile, splat) pair is exact and carries its rows. Splats are sorted by depth once; filling the tiles in that order
leaves each tile's list sorted. Fixed chunks of splats count and fill on their own, so nothing depends on the threads.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import math

import numpy as np
from numba import prange

from scenetx.splat.cpu_jit import kernel
from scenetx.splat.cpu_lanes import prefetch
from scenetx.splat.cpu_project import COLUMNS, COV_XX, COV_XY, COV_YY, DEPTH, DET, MX, MY, REACH

f32 = np.float32
TILE_WIDTH, TILE_HEIGHT = 8, 32  # a row of a tile is one vector of the blending loops
CHUNKS = 16
AHEAD = 8  # splats: in depth order they lie anywhere in a table larger than the nearer caches
RADIX_BITS = 11
ZERO, ONE, HALF = f32(0), f32(1), f32(0.5)


@kernel()
def depth_order(table, seen):
    """Indices of the seen splats, nearest first, equal depths in their order: a radix sort on the floats' bits."""
    count = 0
    for i in range(len(seen)):
        count += seen[i]
    index, keys = np.empty(count, np.int32), np.empty(count, f32)
    count = 0
    for i in range(len(seen)):
        if seen[i]:
            index[count], keys[count] = i, table[i, DEPTH]
            count += 1
    bits = keys.view(np.uint32)  # positive floats sort as their bits do
    other_index, other_bits = np.empty_like(index), np.empty_like(bits)
    mask = np.uint32((1 << RADIX_BITS) - 1)
    for step in range(3):
        shift = np.uint32(step * RADIX_BITS)
        start = np.zeros((1 << RADIX_BITS) + 1, np.int64)
        for i in range(count):
            start[((bits[i] >> shift) & mask) + 1] += 1
        for i in range(1 << RADIX_BITS):
            start[i + 1] += start[i]
        for i in range(count):
            digit = (bits[i] >> shift) & mask
            to = start[digit]
            start[digit] = to + 1
            other_index[to], other_bits[to] = index[i], bits[i]
        index, other_index, bits, other_bits = other_index, index, other_bits, bits
    return index


@kernel()
def outline(row):
    """The splat's ellipse as the column loops need it: everything that does not depend on the column."""
    reach, xx, xy, yy = row[REACH], row[COV_XX], row[COV_XY], row[COV_YY]
    rx, ry = math.sqrt(reach * xx), math.sqrt(reach * yy)
    slack = f32(1e-3) + f32(1e-5) * (rx + ry)
    return (
        row[MX] - HALF,
        row[MY] - HALF,
        rx,
        slack,
        xy * math.sqrt(reach / yy),
        reach,
        ONE / xx,
        row[DET] / xx,
        xy / xx,
    )


@kernel()
def column_range(ellipse, columns):
    """First column and one past the last that the splat's box meets."""
    mx, rx = ellipse[0] + HALF, ellipse[2]
    left = min(max((mx - rx) / f32(TILE_WIDTH), ZERO), f32(columns))
    right = min(max((mx + rx) / f32(TILE_WIDTH), -ONE), f32(columns - 1))
    return int(left), int(right) + 1 if right >= ZERO else 0


@kernel()
def row_range(ellipse, column, height):
    """First pixel row and one past the last whose centres the ellipse can cover within the column (none: equal).

    The upper and lower boundaries are a concave and a convex curve, so their extremes within the column's pixel
    centres lie at the ellipse's own extreme, or at the column's edge nearest to it.
    """
    mx, my, rx, slack, at_top, reach, per_xx, ratio, slope = ellipse
    left = f32(column * TILE_WIDTH) - mx - slack
    right = left + f32(TILE_WIDTH - 1) + slack + slack
    if left > rx or right < -rx:
        return 0, 0
    high_at, low_at = min(max(at_top, left), right), min(max(-at_top, left), right)
    high = slope * high_at + math.sqrt(max(reach - high_at * high_at * per_xx, ZERO) * ratio)
    low = slope * low_at - math.sqrt(max(reach - low_at * low_at * per_xx, ZERO) * ratio)
    first = min(max(math.ceil(my + low - slack), ZERO), f32(height))
    last = min(max(math.floor(my + high + slack), -ONE), f32(height - 1))
    if last < first:
        return 0, 0
    return int(first), int(last) + 1


@kernel(parallel=True)
def count_pairs(table, order, columns, rows, height, chunk_counts, splat_counts):
    """Pairs of each (chunk, tile) and, where not zero, of each splat."""
    flat = table.reshape(table.size)
    size = (len(order) + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        for tile in range(columns * rows):
            chunk_counts[chunk, tile] = 0
        for rank in range(chunk * size, min(len(order), (chunk + 1) * size)):
            prefetch(flat, COLUMNS * order[min(rank + AHEAD, len(order) - 1)])
            splat = order[rank]
            ellipse = outline(table[splat])
            first, last = column_range(ellipse, columns)
            total = 0
            for column in range(first, last):
                top, bottom = row_range(ellipse, column, height)
                if top < bottom:
                    for line in range(top // TILE_HEIGHT, (bottom - 1) // TILE_HEIGHT + 1):
                        chunk_counts[chunk, line * columns + column] += 1
                        total += 1
            splat_counts[splat] = total


@kernel()
def starts(chunk_counts, splat_counts, tile_start, slot_start):
    """Running sums: where each tile's list, each chunk's part in it (in place) and each splat's slots begin."""
    at = 0
    for tile in range(chunk_counts.shape[1]):
        tile_start[tile] = at
        for chunk in range(CHUNKS):
            count = chunk_counts[chunk, tile]
            chunk_counts[chunk, tile] = at
            at += count
    tile_start[chunk_counts.shape[1]] = at
    total = 0
    for splat in range(len(splat_counts)):
        slot_start[splat] = total
        total += splat_counts[splat]
    slot_start[len(splat_counts)] = total


@kernel(parallel=True)
def fill_pairs(table, order, columns, height, chunk_starts, slot_start, pairs):
    """Write (splat, its slot, first row, end row) of each pair into the tile lists."""
    flat = table.reshape(table.size)
    size = (len(order) + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        for rank in range(chunk * size, min(len(order), (chunk + 1) * size)):
            prefetch(flat, COLUMNS * order[min(rank + AHEAD, len(order) - 1)])
            splat = order[rank]
            ellipse = outline(table[splat])
            slot = slot_start[splat]
            first, last = column_range(ellipse, columns)
            for column in range(first, last):
                top, bottom = row_range(ellipse, column, height)
                if top >= bottom:
                    continue
                for line in range(top // TILE_HEIGHT, (bottom - 1) // TILE_HEIGHT + 1):
                    tile = line * columns + column
                    to = chunk_starts[chunk, tile]
                    chunk_starts[chunk, tile] = to + 1
                    pairs[to, 0], pairs[to, 1] = splat, slot
                    pairs[to, 2] = max(top - line * TILE_HEIGHT, 0)
                    pairs[to, 3] = min(bottom - line * TILE_HEIGHT, TILE_HEIGHT)
                    slot += 1
