"""Which pictures to match with which: all pairs, a video's neighbours and loops, or pictures that look alike.

Vocabulary trees have to be downloaded; here likeness is a VLAD descriptor (Jegou et al., 2010; intra-normalised as in
Arandjelovic & Zisserman, 2013) over words learned from the very pictures at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scipy.cluster.vq import kmeans2, vq

Pair = tuple[int, int]


def all_pairs(n: int) -> list[Pair]:
    return [(a, b) for a in range(n) for b in range(a + 1, n)]


def sequential_pairs(n: int, overlap: int) -> list[Pair]:
    """Each frame with its ``overlap`` successors and with those a power of two further on."""
    steps = {*range(1, overlap + 1), *(1 << k for k in range(n.bit_length()))}
    return sorted((a, a + step) for a in range(n) for step in steps if a + step < n)


def alike_pairs(likeness: Float[np.ndarray, "n n"], neighbors: int, min_gap: int = 1) -> list[Pair]:
    """Each picture with the ``neighbors`` most alike that are at least ``min_gap`` away in the order."""
    n = len(likeness)
    index = np.arange(n)
    scores = np.where(np.abs(index[:, None] - index[None]) >= min_gap, likeness, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :neighbors]
    pairs = {(min(a, int(b)), max(a, int(b))) for a in range(n) for b in order[a] if scores[a, b] > -np.inf}
    return sorted(pairs)


def in_order(likeness: Float[np.ndarray, "n n"]) -> bool:
    """Are these the frames of a walk? Then neighbours in the order are more alike than nearly any other two."""
    n = len(likeness)
    if n < 10:
        return False
    others = likeness[np.triu_indices(n, 2)]
    return bool(np.median(np.diagonal(likeness, 1)) > np.quantile(others, 0.95))


def likeness(
    descriptors: Sequence[UInt8[np.ndarray, "_ 128"]], words: int = 64, sample: int = 300, seed: int = 0
) -> Float[np.ndarray, "n n"]:
    """Cosine between the pictures' VLAD descriptors, in [-1, 1]; pictures without features are like nothing (0)."""
    generator = np.random.default_rng(seed)
    rooted = [_rooted(part[generator.permutation(len(part))[: 4 * sample]]) for part in descriptors]
    training = np.concatenate([part[:sample] for part in rooted])
    if len(training) < words:
        return np.zeros((len(descriptors), len(descriptors)), dtype=np.float32)
    if len(training) > 60_000:
        training = training[generator.permutation(len(training))[:60_000]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a word that no descriptor chose is a word less, and no news to anybody
        centers, _ = kmeans2(training, words, iter=12, minit="points", seed=seed)
    vlad = np.stack([_vlad(part, centers) for part in rooted])
    # Centring removes what all the pictures of one scene share.
    vlad -= vlad.mean(0)
    vlad /= np.maximum(np.linalg.norm(vlad, axis=1, keepdims=True), 1e-12)
    return vlad @ vlad.T


def _rooted(descriptors: UInt8[np.ndarray, "m 128"]) -> Float[np.ndarray, "m 128"]:
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _vlad(values: Float[np.ndarray, "m 128"], centers: Float[np.ndarray, "k 128"]) -> Float[np.ndarray, "d"]:
    out = np.zeros_like(centers)
    if len(values):
        word, _ = vq(values, centers)
        np.add.at(out, word, values - centers[word])
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
    return out.ravel() / np.sqrt(len(centers))
