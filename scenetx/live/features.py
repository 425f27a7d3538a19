"""SIFT features for the classical map, and their matching (pycolmap)."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pycolmap
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

_quiet = threading.Lock()


@dataclass(frozen=True)
class Features:
    """``n`` keypoints of one picture: pixels (first centre at 0.5, 0.5), size (sigma, pixels) and RootSIFT."""

    xy: Float[np.ndarray, "n 2"]
    sigma: Float[np.ndarray, "n"]
    descriptors: UInt8[np.ndarray, "n 128"]

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: np.ndarray) -> Features:
        return Features(self.xy[index], self.sigma[index], self.descriptors[index])


@dataclass(frozen=True)
class FeatureSettings:
    """Which features are found."""

    side: int = 640
    """Pictures are reduced to this longer side first: it is what the time goes with."""
    most: int = 1200
    peak: float = 0.004
    """Contrast threshold; COLMAP's 0.0067 finds little in blurred or plain pictures."""


class FeatureFinder:
    """Finds features. Not to be used by two threads at once (the extractor keeps its memory)."""

    def __init__(self, settings: FeatureSettings | None = None) -> None:
        self.settings = settings or FeatureSettings()
        options = pycolmap.FeatureExtractionOptions()
        options.num_threads = 1
        options.max_image_size = self.settings.side
        # The doubled first octave costs four times the rest and gives the least repeatable features.
        options.sift.first_octave = 0
        options.sift.max_num_features = self.settings.most
        options.sift.peak_threshold = self.settings.peak
        options.sift.max_num_orientations = 1
        with _quiet:
            level = pycolmap.logging.minloglevel
            pycolmap.logging.minloglevel = 2
            self._extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
            pycolmap.logging.minloglevel = level

    def __call__(self, grey: UInt8[np.ndarray, "h w"]) -> Features:
        """Features in the pixels of ``grey``, the strongest first up to `FeatureSettings.most`."""
        height, width = grey.shape
        grey = reduced(grey, self.settings.side)
        if min(grey.shape) < 16:
            return Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 128), np.uint8))
        found, described = self._extractor.extract(pycolmap.Bitmap.from_array(np.ascontiguousarray(grey)))
        table = np.array([(p.x, p.y, p.compute_scale()) for p in found], np.float32).reshape(-1, 3)
        back = np.array([width / grey.shape[1], height / grey.shape[0]], np.float32)
        descriptors = np.ascontiguousarray(described.data, np.uint8).reshape(-1, 128)
        return Features(table[:, :2] * back, table[:, 2] * back.mean(), descriptors)


def grey_of(image: UInt8[Tensor, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Luma (Rec. 601) of an sRGB picture."""
    return np.asarray(Image.fromarray(image.cpu().contiguous().numpy()).convert("L"))


def unit(descriptors: UInt8[np.ndarray, "n 128"]) -> Float[np.ndarray, "n 128"]:
    """Descriptors as float32 of length one."""
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def match(
    likeness: Float[np.ndarray, "n m"], *, ratio: float, mutual: bool = True
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Nearest neighbours by cosine that pass Lowe's test (distance under ``ratio`` times that of the second).

    ``likeness`` is overwritten. Gives rows, columns and the ratio of distances of each match.
    """
    n, m = likeness.shape
    if n == 0 or m == 0:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0, np.float32)
    rows = np.arange(n)
    best = likeness.argmax(axis=1)
    first = likeness[rows, best].copy()
    keep = np.ones(n, bool)
    if mutual:
        keep = likeness.argmax(axis=0)[best] == rows
    likeness[rows, best] = -1
    second = likeness.max(axis=1) if m > 1 else np.full(n, -1, np.float32)
    ratios = np.sqrt(np.maximum(1 - first, 0) / np.maximum(1 - second, 1e-6))
    keep &= (ratios < ratio) & (first > 0.5)
    return rows[keep], best[keep], ratios[keep]


def reduced(pixels: UInt8[np.ndarray, "h w *c"], side: int) -> UInt8[np.ndarray, "_h _w *c"]:
    """The picture by area, its longer side at most ``side``."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1.0:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def reduced_picture(image: UInt8[Tensor, "h w 3"], side: int) -> tuple[UInt8[Tensor, "_h _w 3"], float]:
    """`reduced`, and by how much the picture shrank."""
    small = torch.from_numpy(reduced(image.cpu().contiguous().numpy(), side))
    return small, small.shape[1] / image.shape[1]
