"""Decoding from a cached state against painting from scratch, and what one more view costs.

    python benchmarks/view_models.py [--out benchmarks/view_models.json] [--dim 384] [--layers 12] [--repeat 5]

1. One 256-token target (128 x 128, patch 8) at 2, 4, 8, 16 context views: SVSM decoding from its state, against LVSM
   decoder-only of the same width and depth (layers of the decoder). Median of the repeats, after one unmeasured run.
   Weights are random: they do not change the time.
2. Encoding one more view with n views already in the state, for the per-view stream, the joint encoder, LVSM and SRT.
3. Memory a view takes in the state.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scenetx.core import Cameras
from scenetx.core.cameras import look_at
from scenetx.models.lvsm import Lvsm, LvsmConfig
from scenetx.models.srt import ISRT, Srt
from scenetx.models.svsm import Svsm, SvsmConfig
from scenetx.models.view_model import ViewModel, Views


def ring(n: int, side: int) -> Cameras:
    angle = torch.arange(n) * 2 * torch.pi / n
    eye = torch.stack([angle.cos(), 0.2 * torch.ones(n), angle.sin()], -1) * 3
    K = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1.0]]).repeat(n, 1, 1)
    return Cameras(look_at(eye, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0])), K, side, side)


def seconds(job: Callable[[], object], repeat: int) -> float:
    job()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def decode_rows(models: dict[str, ViewModel], counts: list[int], side: int, repeat: int) -> list[dict[str, float]]:
    rows = []
    for n in counts:
        cameras = ring(n + 1, side)
        views, target = Views(torch.rand(n, side, side, 3), cameras[:n]), cameras[n]
        row: dict[str, float] = {"views": n}
        for name, model in models.items():
            state = model.encode(views)
            row[name] = seconds(lambda model=model, state=state, target=target: model.decode(state, target), repeat)
        row["speedup"] = row["lvsm decoder-only"] / row["svsm"]
        rows.append(row)
        print(row, flush=True)
    return rows


def append_rows(models: dict[str, ViewModel], counts: list[int], side: int, repeat: int) -> list[dict[str, float]]:
    rows = []
    for n in counts:
        cameras = ring(n + 1, side)
        pictures = torch.rand(n + 1, side, side, 3)
        row: dict[str, float] = {"views": n}
        for name, model in models.items():
            state = model.encode(Views(pictures[:n], cameras[:n]))
            more = Views(pictures[n:], cameras[n])
            row[name] = seconds(lambda model=model, state=state, more=more: model.append(state, more), repeat)
            row[f"{name}, MB a view"] = state.nbytes / n / 1e6
        rows.append(row)
        print(row, flush=True)
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    heads = max(1, given.dim // 64)
    stream = SvsmConfig(given.dim, heads, encoder_layers=given.layers, decoder_layers=given.layers)
    svsm = Svsm(stream).eval()
    per_view = Svsm(SvsmConfig(given.dim, heads, 8, given.layers, given.layers, mixing="per_view")).eval()
    lvsm = Lvsm(LvsmConfig("decoder-only", given.dim, heads, decoder_layers=given.layers)).eval()
    decoded = decode_rows({"svsm": svsm, "lvsm decoder-only": lvsm}, given.views, given.side, given.repeat)
    appended = append_rows(
        {"svsm per view": per_view, "svsm joint": svsm, "lvsm decoder-only": lvsm, "isrt": Srt(ISRT).eval()},
        given.views,
        given.side,
        given.repeat,
    )
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "settings": {name: value for name, value in vars(given).items() if name != "out"},
        "decode one target, seconds": decoded,
        "encode one more view, seconds": appended,
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
