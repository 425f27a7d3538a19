"""The pyramid transformer's forward pass: seconds and peak memory by number of views, beside the published code.

    python benchmarks/mvp.py --views 4 8 16 --height 256 --width 480 --out mvp.json
    PYTHONPATH=SITE python benchmarks/mvp.py --views 4 8 --height 128 --width 224 --published /path/to/MVP

With ``--published`` (a checkout of the published code; SITE holds einops, easydict and pyyaml) both run on the same
weights and pictures, in one process and in turn for the times, and each in a process of its own for the peak. Times are
the best of a few runs after one to warm up: on the clock, and of the processor, which other work on the machine does
not stretch as much. ``apart`` is the largest difference of colours. The published renderer is not called.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import subprocess
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

Forward = Callable[[], dict[str, torch.Tensor]]


def ring(views: int, height: int, width: int) -> tuple[torch.Tensor, Cameras]:
    angle = torch.linspace(0, 3, views)
    eyes = torch.stack([angle.cos(), 0.2 * angle.sin(), angle.sin()], -1)
    K = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]]).repeat(views, 1, 1)
    poses = look_at(eyes, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
    pictures = torch.rand(views, height, width, 3, generator=torch.Generator().manual_seed(0))
    return pictures, Cameras(poses, K, height, width)


def published(folder: Path, height: int, width: int) -> Any:
    """The published model for this size, its CUDA parts replaced by what is never called."""
    stubs: dict[str, dict[str, Any]] = {
        "gsplat": {"rasterization": None},
        "sh_cuda": {},
        "sh_cuda.mvp_cuda": {"spherical_harmonics_opacity": None},
    }
    for name, content in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    sys.path.insert(0, str(folder))
    import torch.utils.checkpoint  # the published code uses it without importing it
    import yaml
    from easydict import EasyDict
    from model import mvp as theirs
    from model.prope_custom import PropeDotProductAttention

    config = EasyDict(yaml.safe_load((folder / "configs/inference.yaml").read_text()))
    torch.manual_seed(0)
    model = theirs.MVPModel(config)
    # Its own train() gives nothing back, so eval() cannot be chained.
    model.eval()
    for stage, patch in ((2, 16), (3, 32)):
        across, down = width // patch, height // patch
        place = PropeDotProductAttention(64, across, down, width, height, config.model.num_register_tokens)
        setattr(model, f"attention{stage}", place)
    return model


def published_forward(model: Any, pictures: torch.Tensor, cameras: Cameras) -> Forward:
    """Their forward; what it hands to its renderer is the answer."""
    from easydict import EasyDict
    from model import mvp as theirs

    K = cameras.K
    lens = torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], -1)
    shown = EasyDict(image=pictures.permute(0, 3, 1, 2)[None], fxfycxcy=lens[None], c2w=cameras.world_from_cam[None])
    asked = EasyDict(image=shown.image[:, :1], fxfycxcy=shown.fxfycxcy[:, :1], c2w=shown.c2w[:, :1])
    caught: dict[str, torch.Tensor] = {}

    def render(xyz: torch.Tensor, feature: torch.Tensor, scale: torch.Tensor, *_: Any) -> torch.Tensor:
        caught.update(means=xyz[0], colors=feature[0], scales=scale[0].exp())
        return torch.zeros(1, 1, *pictures.shape[1:])

    def forward() -> dict[str, torch.Tensor]:
        theirs.GaussianRenderer.render = staticmethod(render)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the size of its input
            model(shown, asked)
        return dict(caught)

    return forward


def our_forward(model: Mvp, pictures: torch.Tensor, cameras: Cameras) -> Forward:
    def forward() -> dict[str, torch.Tensor]:
        found = model(pictures, cameras).gaussians
        return {"means": found.means, "colors": found.sh, "scales": found.scales}

    return forward


def models(folder: Path | None, height: int, width: int) -> tuple[Mvp, Any]:
    """Ours, and theirs with the same weights where a checkout is given."""
    torch.manual_seed(0)
    ours = Mvp(MvpConfig()).eval()
    theirs = published(folder, height, width) if folder else None
    if theirs is not None:
        ours.load_state_dict(from_published(theirs.state_dict()))
    return ours, theirs


def timed(calls: dict[str, Forward], times: int) -> dict[str, float]:
    """Of every call the best seconds, on the clock and of the processor, the calls taking turns."""
    best: dict[str, float] = {}
    for round_ in range(times + 1):
        for name, call in calls.items():
            clock, work = time.perf_counter(), time.process_time()
            call()
            seconds = {f"{name}_s": time.perf_counter() - clock, f"{name}_cpu_s": time.process_time() - work}
            if round_:
                best |= {key: min(value, best.get(key, value)) for key, value in seconds.items()}
    return best


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of the Gaussians' first colours, which no frame changes, over the largest of them."""
    first, other = ours["colors"][:, 0], theirs["colors"][:, 0]
    return float((first - other).abs().max() / other.abs().max())


def normalised(cameras: Cameras) -> Cameras:
    """As the published data loader leaves them: mean axes, largest coordinate 1."""
    from scenetx.models.rays import mean_frame

    return mean_frame(cameras, margin=1.0).of_cameras(cameras)


def peak(options: argparse.Namespace, views: int, which: str) -> float:
    """GiB of one forward with its weights, in a process of its own."""
    words = ["--peak-of", which, "--views", str(views)]
    words += ["--height", str(options.height), "--width", str(options.width)]
    words += ["--published", str(options.published)] if options.published else []
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace, views: int, ours: Mvp, theirs: Any) -> dict[str, Any]:
    pictures, cameras = ring(views, options.height, options.width)
    calls = {"ours": our_forward(ours, pictures, cameras)}
    row: dict[str, Any] = {"views": views}
    if theirs is not None:
        calls["published"] = published_forward(theirs, pictures, normalised(cameras))
    with torch.inference_mode():
        row |= timed(calls, options.times)
        if theirs is not None:
            row["ratio"], row["ratio_cpu"] = (row[f"ours{unit}"] / row[f"published{unit}"] for unit in ("_s", "_cpu_s"))
            row["apart"] = apart(calls["ours"](), calls["published"]())
    for name in calls:
        row[f"{name}_peak_gib"] = peak(options, views, name)
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--published", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--peak-of", choices=["ours", "published"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = options.published if options.peak_of != "ours" else None
    if options.peak_of == "published":
        theirs = published(options.published, options.height, options.width)
        pictures, cameras = ring(options.views[0], options.height, options.width)
        call = published_forward(theirs, pictures, normalised(cameras))
    else:
        ours, theirs = models(wanted, options.height, options.width)
        call = our_forward(ours, *ring(options.views[0], options.height, options.width))
    if options.peak_of:
        with torch.inference_mode():
            call()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    rows = []
    for views in options.views:
        rows.append(measure(options, views, ours, theirs))
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
