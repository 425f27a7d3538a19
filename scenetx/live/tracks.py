"""Tracks: features of many pictures that are one point, from matches of two; no picture shows a point twice."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from scenetx.splat.cpu_jit import kernel


def tracks(links: Int[np.ndarray, "2 k"], view_of: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The track of every feature (numbers without gaps; -1 = unmatched), matches taken in the order given.

    A match that would bring two features of one picture into a track is left out: one wrong match then costs itself
    alone, where connected components would make one useless track of two good ones (and, with many pairs matched, of
    most). ``view_of`` is each feature's picture.
    """
    words = (int(view_of.max(initial=0)) + 64) // 64
    parent = np.arange(len(view_of))
    seen = np.zeros((len(view_of), words), np.uint64)
    seen[parent, view_of // 64] = np.left_shift(np.uint64(1), (view_of % 64).astype(np.uint64))
    _unite(links[0].astype(np.int64), links[1].astype(np.int64), parent, seen)
    size = np.bincount(parent, minlength=len(parent))
    label = np.where(size[parent] > 1, parent, -1)
    kept = np.unique(label[label >= 0])
    return np.where(label >= 0, np.searchsorted(kept, label), -1)


def _united(left, right, parent, seen):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Union-find over the matches; ``seen`` holds a root's pictures as bits. Leaves every feature's root in parent."""
    for k in range(len(left)):
        a, b = left[k], right[k]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a == b:
            continue
        clash = False
        for w in range(seen.shape[1]):
            if seen[a, w] & seen[b, w]:
                clash = True
        if clash:
            continue
        parent[b] = a
        for w in range(seen.shape[1]):
            seen[a, w] |= seen[b, w]
    for k in range(len(parent)):
        root = k
        while parent[root] != root:
            root = parent[root]
        parent[k] = root


_unite = kernel(nogil=True)(_united)
