"""Who estimates the cameras, and why."""

from __future__ import annotations

from pathlib import Path

from scenetx.core import InputError
from scenetx.models.hub import local_file
from scenetx.models.open_geometry import find_geometry
from scenetx.models.own import shipped
from scenetx.models.zoo import ZOO, find, unknown_model
from scenetx.pipeline.stereo import stereo_file

# From the best that fits a laptop down; weights that may not be used commercially are never taken unasked.
PREFERRED = ("da3-base", "mapanything", "da3-small")


def choose_model(asked: str) -> tuple[str, str, str]:
    """(name, weights, why) of the estimator: "sfm", or a model that is on this machine.

    asked: "auto", "sfm", "mini" (ours, of the package), a model's name, or a weight file (or a folder of the hub's). A
    model that makes splats of posed pictures (mini-splat) leaves the cameras to structure from motion.
    Raises InputError for others. "auto" never takes "mini": structure from motion is truer (benchmarks/README.md).
    """
    if asked == "sfm":
        return "sfm", "", "asked for"
    if asked == "auto":
        for name in PREFERRED:
            if local_file(ZOO[name]).is_file():
                why = f"{name}: the best model whose weights are here; checked against structure from motion"
                return name, "hub", why
        return "sfm", "", "structure from motion: no model's weights are here (scenetx models list)"
    if asked in ZOO:
        entry = find(asked)
        if entry.kind != "geometry":
            raise InputError("model", asked, "it makes pictures, not geometry; see: scenetx models list")
        return asked, "hub", f"asked for ({entry.licence})"
    ours = shipped(asked, "geometry")
    if ours is not None:
        return ours.stem, str(ours), "asked for; ours, small, trained on rendered scenes alone"
    splats = stereo_file(asked)
    if splats is not None:
        return "sfm", "", f"structure from motion; {splats.stem} makes splats of its cameras"
    if Path(asked).exists():
        meant = find_geometry(asked)
        how = "it was trained as" if meant.stated else "its tensors are those of"
        return meant.name, asked, f"{Path(asked).name}: {how} {meant.name}"
    mini = ["mini"] if shipped("mini", "geometry") else []
    mini += ["mini-splat"] if shipped("mini-splat", "splat") else []
    geometry = [name for name, entry in sorted(ZOO.items()) if entry.kind == "geometry"]
    others = ["auto", "sfm", *mini]
    do = f"use {', '.join(others)}, a weight file, or one of {', '.join(geometry)}"
    raise unknown_model(asked, [*others, *geometry], do)
