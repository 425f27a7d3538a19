"""`scenetx data make`: procedural scenes as a folder of shards, made by several processes, resumed where it stopped."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from scenetx.config import check_device, in_range, to_dict
from scenetx.core import InputError
from scenetx.core.atomic import write_bytes
from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.data.sample import procedural_samples
from scenetx.data.shards import write_shard

Report = Callable[[str, float, str], None]
ABOUT = "shards.json"


@dataclass(frozen=True)
class MakeSettings:
    """Which scenes, in how many files."""

    scenes: int = 1024
    start: int = 0
    """The first scene's seed; keep held-out seeds apart."""
    per_shard: int = 64
    processes: int = 1
    batch: int = 4
    """Scenes rendered together."""
    difficulty_from: float | None = None
    """Difficulty of the first shard; it rises to ``procedural.difficulty`` of the last. None: the same all along."""
    device: str = "cpu"
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)

    def __post_init__(self) -> None:
        for name, low in (("scenes", 1), ("start", 0), ("per_shard", 1), ("processes", 1), ("batch", 1)):
            if getattr(self, name) < low:
                raise InputError(f"data make: {name}", getattr(self, name), f"give at least {low}")
        in_range("data make:", self, 0.0, 1.0, "difficulty_from")
        check_device("data make: device", self.device)


def make_shards(folder: str | Path, settings: MakeSettings, report: Report | None = None) -> list[Path]:
    """Shards of procedural scenes in ``folder``; those that are there already are kept.

    Raises InputError when the folder holds shards of other settings, cannot be written, or a process died (what is
    done is kept; the same call goes on).
    """
    folder = Path(folder)
    # What does not change a scene may change from one call to the next: a set grows, unless its difficulty rises.
    grows = settings.difficulty_from is None
    same = replace(settings, processes=1, batch=1, scenes=1 if grows else settings.scenes, device="cpu")
    about = json.dumps(to_dict(same), indent=1).encode()
    known = folder / ABOUT
    # Settings that made no shard yet (a folder of photos that is not there) bind nobody.
    begun = known.is_file() and any(folder.glob("shard-*.tar"))
    if begun and known.read_bytes() != about:
        raise InputError(str(known), "is of other settings", "choose another folder, or the settings it was begun with")
    write_bytes(known, about)
    count = -(-settings.scenes // settings.per_shard)
    paths = [folder / f"shard-{index:06d}.tar" for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    done = count - len(missing)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, mp_context=context) as pool:
        jobs = [pool.submit(make_shard, str(paths[index]), index, settings) for index in missing]
        try:
            for job in as_completed(jobs):
                job.result()
                done += 1
                if report:
                    report("scenes", done / count, f"{done} of {count} shards")
        except BrokenProcessPool as error:
            what, do = f"a process died after {done} of {count} shards", "free memory, or use fewer processes"
            raise InputError(str(folder), what, f"{do}; the same command goes on") from error
        finally:
            pool.shutdown(cancel_futures=True)
    return paths


def make_shard(path: str, index: int, settings: MakeSettings) -> None:
    """Shard ``index`` of a set: what each process does."""
    if settings.device == "cpu":
        torch.set_num_threads(1)
    first = settings.start + index * settings.per_shard
    last = min(first + settings.per_shard, settings.start + settings.scenes)
    config, shards = settings.procedural, -(-settings.scenes // settings.per_shard)
    if settings.difficulty_from is not None and shards > 1:
        share = index / (shards - 1)
        config = replace(
            config, difficulty=settings.difficulty_from + share * (config.difficulty - settings.difficulty_from)
        )
    samples = []
    for low in range(first, last, settings.batch):
        seeds = range(low, min(low + settings.batch, last))
        views = procedural_views(seeds, config, device=settings.device).to("cpu")
        samples += procedural_samples(views, [f"{seed:08d}" for seed in seeds])
    write_shard(path, samples, {"difficulty": config.difficulty})
