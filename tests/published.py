"""Deterministic weights for published models: every tensor is a function of its key, its shape and a seed.

The goldens hold what the published code answers with these weights (float32, CPU).
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"
HERE = Path(__file__).parent / "golden"
# Text in the name, scale, shift: keeps exponentials and fields of view in a sane range.
ADJUST = (
    ("cam_dec.fc_fov.0.weight", 0.1, 0.0),
    ("cam_dec.fc_fov.0.bias", 1.0, 1.0),
    ("point_head.proj.weight", 0.2, 0.0),
    ("camera_head.pose_branch.fc2.weight", 0.2, 0.0),
    ("camera_head.pose_branch.fc2.bias", 1.0, 0.3),
    ("encoder.conv_blocks.", 1.5, 0.0),
    ("output_mlp.2.weight", 0.2, 0.0),
)


def weight(name, shape, seed=0):
    """The tensor of one key."""
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) + seed) & 0x7FFFFFFF)
    x = torch.randn(tuple(shape), generator=generator)
    last = name.rsplit(".", 1)[-1]
    if len(shape) >= 2:
        x = x * 0.02 if shape[0] == 1 else x / math.sqrt(math.prod(shape[1:]))
    elif last == "gamma" or ".ls1." in name or ".ls2." in name:
        x = 0.1 + 0.02 * x
    elif last == "weight":
        x = 1 + 0.1 * x
    else:
        x = 0.02 * x
    for text, scale, shift in ADJUST:
        if text in name:
            return x * scale + shift
    return x


def state(shapes, seed=0):
    """A published state dict."""
    return {name: weight(name, shape, seed) for name, shape in shapes.items()}


def golden(name):
    """The published answers and the checkpoint's keys, or skip."""
    folder = SHARED / "golden" / name
    if not (folder / "golden.npz").exists():
        pytest.skip(f"{folder} is not here")
    return np.load(folder / "golden.npz"), json.loads((folder / "keys.json").read_text())


def listing(name):
    """Key -> shape of a released checkpoint, or skip."""
    path = SHARED / "facts" / "keys" / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    shapes = {}
    for line in path.read_text().splitlines():
        key, _, shape = line.partition(" ")
        shapes[key] = tuple(int(side) for side in shape.strip("[](), ").split(",") if side.strip())
    return shapes


def relative(found, expected):
    """Largest difference over the largest value."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
