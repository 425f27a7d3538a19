"""Batches by number: step ``k`` of a run is the same batch whenever, and by however many processes, it is made.

A scene's index is ``k * batch + place``; everything random about it comes from the run's seed and that index. So a
run is resumed by starting at another number, and processes share a step by taking turns at its places.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scenetx.core import Cameras, InputError
from scenetx.data.datasets import open_posed
from scenetx.data.procedural import procedural_views
from scenetx.data.sample import Sample, procedural_samples
from scenetx.data.samplers import choose_views
from scenetx.data.shards import Shards
from scenetx.train.settings import HELD_OUT_SEEDS, TrainSettings

log = logging.getLogger(__name__)
RESTARTS = 3
"""Times that lost workers are replaced before the run gives up."""
TRIES = 16
"""Scenes on end that may be broken."""


@runtime_checkable
class Scenes(Protocol):
    """A finite set of scenes."""

    def __len__(self) -> int: ...

    def cameras(self, index: int) -> Cameras: ...

    def sample(self, index: int, views: Sequence[int] | None = None) -> Sample: ...


class Batches(Dataset[dict[str, Tensor]]):
    """``batch(step, places)``: those places of a step's batch, views in the order context, targets."""

    def __init__(self, settings: TrainSettings, device: torch.device | str = "cpu") -> None:
        """Raises InputError where the data cannot be opened."""
        self.settings = settings.checked()
        self.device = torch.device(device)
        self._kept: dict[int, Sample] = {}
        data = settings.data
        self.scenes: Scenes | None = None
        if data.source == "shards":
            self.scenes = Joined([Shards(path) for path in data.path])
        elif data.source == "scenes":
            self.scenes = Joined([open_posed(path) for path in data.path])

    def context(self, step: int) -> int:
        """How many views a step shows; all of its scenes alike."""
        data = self.settings.data
        if data.context_most <= data.context:
            return data.context
        rng = np.random.default_rng([self.settings.seed, 1, step])
        return int(rng.integers(data.context, data.context_most + 1))

    def told(self, step: int) -> bool:
        """Whether a geometry model is given the cameras in a step."""
        return bool(np.random.default_rng([self.settings.seed, 2, step]).uniform() < self.settings.loss.cameras_given)

    def batch(self, step: int, places: Sequence[int]) -> dict[str, Tensor]:
        """Tensors of some of a step's scenes."""
        context = self.context(step)
        targets = 0 if self.settings.task == "geometry" else self.settings.data.targets
        indices = [step * self.settings.batch + place for place in places]
        if self.scenes is None:
            made = zip(self._procedural(step, places), indices, strict=True)
            return collate(
                [sample[self._views(i, sample.cameras, context, targets, sample.depth)] for sample, i in made]
            )
        return collate([self._stored(index, context, targets) for index in indices])

    def __getitem__(self, item: tuple[int, tuple[int, ...]]) -> dict[str, Tensor]:
        torch.set_num_threads(1)
        return self.batch(*item)

    def _views(
        self, index: int, cameras: Cameras, context: int, targets: int, depth: Tensor | None = None
    ) -> list[int]:
        """The context views, then the targets, of the scene at an index of the run."""
        rng = np.random.default_rng([self.settings.seed, 3, index])
        shown, asked = choose_views(rng, self.settings.data.sampler, cameras, context, targets, depth)
        if self.settings.task == "geometry":
            # Pictures come in any order: the order of time would tell which way a camera went.
            shown = rng.permutation(shown).tolist()
        return [*shown, *asked]

    def _procedural(self, step: int, places: Sequence[int]) -> list[Sample]:
        """The generator's scenes for some places of a step. With ``reuse`` they are drawn from a window of ``pool``
        scenes that moves on by ``batch / reuse`` a step, and kept in memory while they are in it."""
        settings = self.settings
        if settings.data.reuse <= 1:
            numbers = [step * settings.batch + place for place in places]
            return self._made(numbers, difficulty(settings, step))
        new, pool = settings.batch // settings.data.reuse, settings.data.pool
        drawn = np.random.default_rng([settings.seed, 6, step]).permutation(pool)[: settings.batch] + step * new
        self._kept = {number: sample for number, sample in self._kept.items() if number >= step * new}
        chosen = [int(drawn[place]) for place in places]
        # A scene is as difficult as the step at which it came into the window.
        births = {number: max(0, (number - pool) // new + 1) for number in chosen if number not in self._kept}
        for level in sorted({difficulty(settings, birth) for birth in births.values()}):
            numbers = [number for number, birth in births.items() if difficulty(settings, birth) == level]
            self._kept |= dict(zip(numbers, self._made(numbers, level), strict=True))
        return [self._kept[number] for number in chosen]

    def _made(self, numbers: Sequence[int], level: float) -> list[Sample]:
        data = self.settings.data
        views = self.settings.views + data.extra_views
        config = replace(data.procedural, height=data.height, width=data.width, views=views, difficulty=level)
        seeds = [HELD_OUT_SEEDS + self.settings.seed * (1 << 32) + number for number in numbers]
        made = procedural_samples(procedural_views(seeds, config, device=self.device), [str(seed) for seed in seeds])
        # What a view model does not look at need not be kept.
        return [replace(one, depth=None, normals=None) for one in made] if self.settings.task == "view" else made

    def _stored(self, index: int, context: int, targets: int) -> Sample:
        """A scene of a finite set, only the views that are needed; each pass over the set has its own order.

        A scene that is broken or has too few views is named, and the next one of the order taken.
        """
        assert self.scenes is not None
        data, count = self.settings.data, len(self.scenes)
        order = np.random.default_rng([self.settings.seed, 4, index // count]).permutation(count)
        tries = min(count, TRIES)
        for tried in range(tries):
            try:
                place = int(order[(index + tried) % count])
                views = self._views(index, self.scenes.cameras(place), context, targets)
                return self.scenes.sample(place, views).fitted(data.height, data.width)
            except InputError as error:
                log.warning("left out: %s", error)
        raise InputError("training data", f"{tries} scenes on end cannot be read", "mend or make the data again")


class Joined:
    """Several sets of scenes as one."""

    def __init__(self, parts: Sequence[Scenes]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def cameras(self, index: int) -> Cameras:
        part, place = self._place(index)
        return part.cameras(place)

    def sample(self, index: int, views: Sequence[int] | None = None) -> Sample:
        part, place = self._place(index)
        return part.sample(place, views)

    def _place(self, index: int) -> tuple[Scenes, int]:
        for part in self._parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)


def difficulty(settings: TrainSettings, step: int) -> float:
    """The procedural difficulty of a step."""
    data = settings.data
    end = data.procedural.difficulty
    if data.difficulty_from is None or data.curriculum < 1:
        return end
    # In steps of a hundredth: a compiled caster and a person both like few different ones.
    share = min(1.0, step / data.curriculum)
    return math.floor(100 * (data.difficulty_from + share * (end - data.difficulty_from))) / 100


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples of one size as a batch; depth and normals where all have them."""
    out = {
        "rgb": torch.stack([sample.rgb for sample in samples]),
        "world_from_cam": torch.stack([sample.world_from_cam for sample in samples]),
        "K": torch.stack([sample.K for sample in samples]),
    }
    for name in ("depth", "normals"):
        planes = [getattr(sample, name) for sample in samples]
        if all(plane is not None for plane in planes):
            out[name] = torch.stack(planes)
    return out


class Feed:
    """A process's share of each step's batch, in order, from any step on; counts the seconds it was waited for."""

    def __init__(self, batches: Batches, rank: int, ranks: int) -> None:
        settings = batches.settings
        whole = ranks * settings.accumulate
        if settings.batch % whole:
            what = f"{settings.batch} scenes for {ranks} processes in {settings.accumulate} parts"
            raise InputError("train: batch", what, f"make it a multiple of {whole}")
        self.batches, self.stalled = batches, 0.0
        self.restarts = 0
        each = settings.batch // whole
        self._places = [
            tuple(range((rank * settings.accumulate + part) * each, (rank * settings.accumulate + part + 1) * each))
            for part in range(settings.accumulate)
        ]

    def steps(self, first: int, last: int) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
        """``(step, parts)`` for the steps from ``first`` to before ``last``. Lost workers are replaced."""
        step = first
        while step < last:
            source = self._source(step, last)
            try:
                while step < last:
                    begun = time.perf_counter()
                    parts = [next(source) for _ in self._places]
                    self.stalled += time.perf_counter() - begun
                    yield step, parts
                    step += 1
            except RuntimeError as error:
                if "worker" not in str(error) or self.restarts >= RESTARTS:
                    raise
                self.restarts += 1
                log.warning("a data worker was lost at step %d (%s); starting others", step, str(error)[:100])

    def _source(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        items = [(step, places) for step in range(first, last) for places in self._places]
        data = self.batches.settings.data
        if data.workers == 0:
            return (self.batches.batch(*item) for item in items)
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=items,  # type: ignore[arg-type]
            num_workers=data.workers,
            prefetch_factor=data.ahead,
            multiprocessing_context="spawn",
        )
        return iter(loader)
