"""The pyramid transformer's forward pass: seconds and peak memory by number of views.

    python benchmarks/mvp.py --views 4 8 16 --height 256 --width 480 --out mvp.json
    python benchmarks/mvp.py --published /path/to/MVP    # the published code beside it, same weights, same pictures

The published code needs einops and easydict; its CUDA parts (rendering) are not called and not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scenetx.core import Cameras
from scenetx.core.cameras import look_at
from scenetx.models.mvp import Mvp, MvpConfig, from_published


def ring(views: int, height: int, width: int) -> tuple[torch.Tensor, Cameras]:
    angle = torch.linspace(0, 3, views)
    eyes = torch.stack([angle.cos(), 0.2 * angle.sin(), angle.sin()], -1)
    K = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]]).repeat(views, 1, 1)
    poses = look_at(eyes, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
    pictures = torch.rand(views, height, width, 3, generator=torch.Generator().manual_seed(0))
    return pictures, Cameras(poses, K, height, width)


def published(folder: Path, height: int, width: int) -> Any:
    """The published model for this size, its renderer replaced by one that stops."""
    for name, content in {"gsplat": {"rasterization": None}, "sh_cuda": {}, "sh_cuda.mvp_cuda": {}}.items():
        sys.modules[name] = types.ModuleType(name)
        for key, value in content.items():
            setattr(sys.modules[name], key, value)
    sys.modules["sh_cuda.mvp_cuda"].spherical_harmonics_opacity = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    import yaml
    from easydict import EasyDict
    from model import mvp as theirs
    from model.prope_custom import PropeDotProductAttention

    config = EasyDict(yaml.safe_load((folder / "configs/inference.yaml").read_text()))
    model = theirs.MVPModel(config)
    model.eval()
    for stage, patch in ((2, 16), (3, 32)):
        place = PropeDotProductAttention(
            64, width // patch, height // patch, width, height, config.model.num_register_tokens
        )
        setattr(model, f"attention{stage}", place)
    theirs.GaussianRenderer.render = staticmethod(lambda *_: torch.zeros(1, 1, height, width, 3))
    return model


def run_published(model: Any, pictures: torch.Tensor, cameras: Cameras) -> None:
    from easydict import EasyDict

    K = cameras.K
    lens = torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], -1)
    shown = EasyDict(image=pictures.permute(0, 3, 1, 2)[None], fxfycxcy=lens[None], c2w=cameras.world_from_cam[None])
    asked = EasyDict(image=shown.image[:, :1], fxfycxcy=shown.fxfycxcy[:, :1], c2w=shown.c2w[:, :1])
    model(shown, asked)


def seconds(call: Callable[[], object], times: int) -> float:
    """The best of a few runs after one to warm up."""
    call()
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--published", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    ours = Mvp(MvpConfig()).eval()
    theirs = published(options.published, options.height, options.width) if options.published else None
    if theirs is not None:
        ours.load_state_dict(from_published(theirs.state_dict()))
    rows = []
    for views in options.views:
        pictures, cameras = ring(views, options.height, options.width)
        with torch.inference_mode():
            row: dict[str, Any] = {"views": views}
            row["seconds"] = seconds(lambda p=pictures, c=cameras: ours(p, c), options.times)  # type: ignore[misc]
            row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            if theirs is not None:
                row["published_seconds"] = seconds(
                    lambda p=pictures, c=cameras: run_published(theirs, p, c),  # type: ignore[misc]
                    options.times,
                )
                row["share"] = row["seconds"] / row["published_seconds"]
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
        print(rows[-1], flush=True)
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    if options.out is not None:
        options.out.write_text(json.dumps({**machine, "size": [options.width, options.height], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
