"""Procedural scenes that no model learned from, as scenes to make splats of: exact cameras, and sparse points."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from scenetx.core import Points, Scene, View
from scenetx.core.scene import Original
from scenetx.data.procedural import ProceduralConfig, procedural_views

POINTS = 60  # surface points a picture, drawn as keypoints of structure from motion would lie


def procedural_scene(
    seed: int, views: int, side: int, held_out: Collection[int], *, difficulty: float = 0.1, depth: bool = False
) -> Scene:
    """Scene ``seed`` (below 2^20: none that is trained on), its cameras on one rig, some of its pictures held out.

    Points are true surface points at pixels of the training pictures, so that all ways start as they do after structure
    from motion. Pictures have their true z-depth where ``depth``, else none.
    """
    config = ProceduralConfig(side, side, views, difficulty=difficulty, blur=1, grain=0.0)
    made = procedural_views([seed], config)
    chance = torch.Generator().manual_seed(seed)
    shown, positions, colors = [], [], []
    for k in range(views):
        camera = replace(made.cameras(0)[k], world_from_cam=made.world_from_cam[0, k : k + 1].double())
        camera = replace(camera, K=camera.K.double())
        held, name = k in held_out, f"{k:03d}.png"
        true = made.depth[0, k] if depth else None
        shown.append(View(name, made.rgb[0, k], Original(name, side, side), camera, depth=true, held_out=held))
        known = (made.depth[0, k] > 0).nonzero()
        if held or len(known) == 0:
            continue
        rows, columns = known[torch.randint(len(known), (POINTS,), generator=chance)].unbind(-1)
        positions.append(made.points(k)[0][rows, columns])
        colors.append(made.rgb[0, k][rows, columns])
    points = Points(torch.cat(positions).double(), torch.cat(colors))
    return Scene(tuple(shown), points=points, posed_by="input", source=f"procedural {seed}")
