"""Poses of several maps in one frame, where the maps were joined; the rest apart. For what is kept of a track."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from scenetx.core import Sim3
from scenetx.core.atomic import write_bytes
from scenetx.live.outputs import TUM, believed, write_tum

MAPS = "maps.json"
Joins = Mapping[int, tuple[int, Sim3]]


def root_of(number: int, joins: Joins) -> tuple[int, Sim3]:
    """The map that a map has become part of (itself, if none), and the similarity from its frame to that one's."""
    similarity = Sim3.identity()
    while number in joins:
        number, step = joins[number]
        similarity = step @ similarity
    return number, similarity


def into_one_frame(folder: str | Path, joins: Joins) -> tuple[int, int]:
    """Writes a `Trajectory`'s TUM file anew in the frame of the map that most poses are of, those of maps joined with
    it brought there; each other map's go to a file of their own (``trajectory_map3_tum.txt``).

    Gives the poses in the one frame, and those in no common one. `LINES` keeps what was said at the time, with each
    pose's map; MAPS says how the maps lie. Nothing is written where all poses are of one map.
    """
    folder = Path(folder)
    poses = [(said["time"], said["map"], said["world_from_cam"]) for said in believed(folder)]
    roots = {number: root_of(number, joins) for number in {number for _, number, _ in poses}}
    if len(roots) < 2:
        return len(poses), 0
    counted = Counter(roots[number][0] for _, number, _ in poses)
    main = min(counted, key=lambda root: (-counted[root], root))
    for root in counted:
        rows = []
        for seconds, number, flat in poses:
            if roots[number][0] == root:
                pose = torch.tensor(flat, dtype=torch.float64).reshape(4, 4)
                rows.append((seconds, roots[number][1].apply_to_poses(pose)))
        write_tum(folder / (TUM if root == main else f"trajectory_map{root}_tum.txt"), rows)
    maps = {
        str(number): {
            "frame": root,
            "frame_from_map": {
                "scale": similarity.scale,
                "rotation": similarity.rotation.flatten().tolist(),
                "translation": similarity.translation.tolist(),
            },
        }
        for number, (root, similarity) in sorted(roots.items())
    }
    write_bytes(folder / MAPS, json.dumps({"trajectory": main, "maps": maps}, indent=1).encode())
    return counted[main], len(poses) - counted[main]
