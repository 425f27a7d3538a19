"""Fewer and lighter splats for the same pictures: LightGaussian (Fan et al., arXiv 2311.17245) on `scenetx.splat`.

Score every splat by what it adds to the training views, drop the least, let the rest recover, and take away bands of
view-dependent colour while the full splats teach the light ones, also from views that no photo shows. What the paper
does not do: neighbours are merged (`scenetx.core.levels`) where it would drop more, and the splats then settle on the
numbers of the file they go into (`scenetx.fit.settle`), as coarse as pictures let each be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError, Scene, View
from scenetx.core.levels import coarser
from scenetx.fit.exposure import Exposure
from scenetx.fit.initialise import restraint, viewing_distance
from scenetx.fit.sensitivity import Sensitivity, sensitivity
from scenetx.fit.settings import FitSettings
from scenetx.fit.settle import STAGES, Part, Settled
from scenetx.fit.shown import shown
from scenetx.fit.targets import Target, TargetView, target_view
from scenetx.fit.trainable import activated, trainable
from scenetx.io.least_turned import least_turned
from scenetx.splat import Backend, rasterize

FAINT = 1 / 48  # opacity below which a splat is let go before the others settle
SLOWEST = 0.2  # of the learning rates, where all splats stay
MUCH = 0.3  # share of the splats that goes, from which all steps of the recovery are taken
ENOUGH = 100  # cameras that say what numbers are worth
Price = Callable[[Gaussians, Sensitivity], float]
"""Mean squared error of the pictures that a bit of the file is worth, given the splats as they are then."""
_TELL = 20  # steps between two updates


@dataclass(frozen=True)
class CompressSettings:
    """Everything about making splats fewer and lighter. Learning rates are near those of a fit's first half: merged
    splats have some way to go."""

    keep: float = 0.6  # share of the splats that stays; the paper prunes 0.66 of 3DGS's many
    sh_degree: int | None = None  # of the result; None = as it is
    fewer: Literal["merge", "prune"] = "merge"  # prune is the paper's; merging neighbours instead leaves no holes
    idle: float = 0.005  # share of all significance that goes before the others are merged
    rounds: int = 2  # pruning in several rounds, each with its share of the recovery, loses less than one cut
    steps: int = 1200  # gradient steps of the recovery; fewer where little goes
    settle: int = 400  # gradient steps while number after number is fixed
    pseudo_views: float = 0.2  # share of the steps that look from where no photo was taken, at the teacher's picture
    jitter: float = 0.1  # of the pseudo-views, standard deviation in distances to the nearest training camera
    volume_power: float = 0.1  # beta of the paper's equation 4
    width: int = 640
    means_lr: float = 2e-4  # of the viewing distance
    scales_lr: float = 0.01
    quats_lr: float = 0.0025
    opacities_lr: float = 0.05
    sh_lr: float = 0.0125
    sh_rest_lr: float = 0.00125
    exposure: bool = True  # photos may differ in exposure, as in the fit
    seed: int = 0
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError("compress setting keep", self.keep, "use a share above 0, at most 1")
        if self.rounds < 1 or self.steps < 0 or self.settle < 0:
            shown = (self.rounds, self.steps, self.settle)
            raise InputError("compress settings rounds, steps, settle", shown, "use 1 or more, 0 or more, 0 or more")
        if self.sh_degree is not None and not 0 <= self.sh_degree <= 3:
            raise InputError("compress setting sh_degree", self.sh_degree, "use 0 to 3")
        if not 0 <= self.pseudo_views <= 1:
            raise InputError("compress setting pseudo_views", self.pseudo_views, "use 0 to 1")


@dataclass(frozen=True)
class CompressUpdate:
    """Where the work is; the last update (step == steps) carries the result and its significance."""

    step: int
    steps: int
    num_gaussians: int
    gaussians: Gaussians | None = None
    scores: Float[Tensor, "g"] | None = None


def significance(
    gaussians: Gaussians, cameras: list[Cameras], *, volume_power: float = 0.1, backend: Backend = "auto"
) -> Float[Tensor, "g"]:
    """Global significance: what each splat adds to all pixels of ``cameras``, times its volume to a small power.

    The paper's equation 4, ``sum over pixels of hit * opacity * transmittance``, times ``min(V / V_90, 1) ** beta``
    with V_90 the volume that nine tenths of the splats do not exceed. The hit is not counted as 0 or 1 but weighed by
    the splat's falloff, which makes the sum exactly the blending weight (`scenetx.fit.shown`). 0 for splats that are
    not seen or not finite.
    """
    if not cameras:
        raise InputError("compress", "no camera", "give a scene with registered training views")
    plain = gaussians.detach()
    total = torch.zeros(len(plain), device=plain.means.device)
    for camera in cameras:
        everywhere = plain.means.new_ones(camera.height, camera.width, 1)
        total += shown(plain, camera, everywhere, backend)[:, 0]
    volume = plain.scales.prod(dim=-1).nan_to_num(0, 0, 0)
    ninth = volume.kthvalue(max(1, round(0.9 * len(volume)))).values if len(volume) else volume.sum()
    weight = (volume / ninth.clamp_min(1e-38)).clamp(0, 1) ** volume_power
    return torch.where(plain.finite(), total.clamp_min(0) * weight, 0.0)


def most_significant(scores: Float[Tensor, "g"], count: int) -> Bool[Tensor, "g"]:
    """True for the ``count`` highest scores (all, if there are fewer); of equal ones the first."""
    keep = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.argsort(descending=True, stable=True)[: max(count, 0)]] = True
    return keep


def merged(gaussians: Gaussians, scores: Float[Tensor, "g"], count: int, idle: float) -> Gaussians:
    """At most ``count`` splats: those that hardly show (``idle`` of the summed ``scores``) go, then neighbours become
    one (`scenetx.core.levels`)."""
    order = scores.argsort(descending=True)
    seen = int((scores[order].cumsum(0) < (1 - idle) * scores.sum()).sum()) + 1
    return least_turned(coarser(gaussians[order[: max(count, seen)].sort().values], count))


def pseudo_cameras(
    cameras: Cameras, count: int, *, jitter: float, generator: torch.Generator
) -> Float[Tensor, "count 4 4"]:
    """``world_from_cam`` at training cameras moved at random by ``jitter`` times the way to the nearest other."""
    centers = cameras.centers.double()
    apart = torch.cdist(centers, centers) + torch.diag(centers.new_full((len(centers),), torch.inf))
    near = apart.min(dim=1).values.nan_to_num(0, 0, 0)
    index = torch.randint(len(cameras), (count,), generator=generator)
    poses = cameras.world_from_cam[index].clone()
    noise = torch.randn(count, 3, generator=generator).to(poses)
    poses[:, :3, 3] += jitter * near[index, None].to(poses) * noise
    return poses


def compress_splats(
    scene: Scene, settings: CompressSettings | None = None, price: Price | None = None
) -> Iterator[CompressUpdate]:
    """The scene's Gaussians with ``keep`` of their number and at most ``sh_degree`` bands, as `CompressUpdate`s.

    With ``price`` (asked once, after the recovery) in numbers that a .sog stores exactly and packs well; without one
    in free numbers. Held-out views are never looked at. Raises InputError for a scene without Gaussians or training
    views.
    """
    settings = settings or CompressSettings()
    if scene.gaussians is None or not len(scene.gaussians):
        raise InputError("compress", "the scene has no splats", "reconstruct it without --no-splats first")
    if not scene.training:
        raise InputError("compress", "the scene has no training view with a camera", "give the whole scene folder")
    work = _Work(scene, scene.gaussians, settings)
    target = max(1, round(settings.keep * len(scene.gaussians)))
    before = len(scene.gaussians)
    recovery = range(round(settings.steps * _gone(settings, scene.gaussians.sh_degree)))
    settling = range(len(recovery), len(recovery) + (settings.settle if price is not None else 0))
    rounds = settings.rounds if settings.fewer == "prune" else 1
    for index in range(rounds):
        share = (index + 1) / rounds
        if settings.fewer == "prune":
            work.prune(round(before * (target / before) ** share))
        else:
            work.merge(target)
        yield from work.walk(_part(recovery, index, rounds), recovery, settling.stop)
    if price is not None:
        work.trim()
        for index, parts in enumerate(STAGES):
            weights = work.sensitivity(index)
            if index == 0:
                worth = price(work.result(), weights)
            work.settle(parts, weights, worth)
            yield from work.walk(_part(settling, index, len(STAGES) - 1), settling, settling.stop)
    gaussians = work.result()
    yield CompressUpdate(settling.stop, settling.stop, len(gaussians), gaussians, work.scores(gaussians))


def _gone(settings: CompressSettings, sh_degree: int) -> float:
    """How much splats have to recover from, 0 (all stay as they are) to 1 (`MUCH` of them go, or bands of colour)."""
    lighter = settings.sh_degree is not None and settings.sh_degree < sh_degree
    return 1.0 if lighter else min(1.0, (1 - settings.keep) / MUCH)


def _part(steps: range, index: int, parts: int) -> range:
    """The ``index``-th of ``parts`` equal parts of ``steps``; none beyond the last."""
    return steps[len(steps) * index // parts : len(steps) * (index + 1) // parts]


class _Work:
    """The student's table, the teacher, and the pictures both are held to."""

    def __init__(self, scene: Scene, teacher: Gaussians, settings: CompressSettings) -> None:
        self.settings = settings
        self.teacher = teacher.detach().to("cpu").to(torch.float32)
        self.views = [self._target(view) for view in scene.training]
        self.cameras = [view.levels[0].camera for view in self.views]
        self.extent = viewing_distance(scene)
        # The photos have been visited before, about as often as a fit's defaults do.
        visits = FitSettings.steps + settings.steps + settings.settle
        self.restraint = restraint(scene, self.extent, visits)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.order: list[int] = []
        start = least_turned(self.teacher[self.teacher.finite()])
        degree = start.sh_degree if settings.sh_degree is None else min(settings.sh_degree, start.sh_degree)
        self.table = trainable(replace(start, sh=start.sh[:, : (degree + 1) ** 2].contiguous()), selective=True)
        several = settings.exposure and len(self.views) > 1
        self.exposure = Exposure(len(self.views), rate=0.002, decay=0.01) if several else None
        self.settled = Settled()
        self.pace = max(SLOWEST, _gone(settings, self.teacher.sh_degree))

    def _target(self, view: View) -> TargetView:
        return target_view(view, width=self.settings.width, pyramid=0)

    def scores(self, gaussians: Gaussians) -> Float[Tensor, "g"]:
        power, backend = self.settings.volume_power, self.settings.backend
        return significance(gaussians, self.cameras, volume_power=power, backend=backend)

    def result(self) -> Gaussians:
        gaussians = self._student().detach()
        return gaussians[gaussians.finite()]

    def _student(self) -> Gaussians:
        return self.settled.apply(activated(self.table, antialiased=self.teacher.antialiased))

    def trim(self) -> None:
        """Without splats that hardly show: a file would hold them all the same."""
        student = self.result()
        kept = student.opacities > FAINT
        self.table = trainable(least_turned(student[kept] if bool(kept.any()) else student), selective=True)

    def sensitivity(self, seed: int) -> Sensitivity:
        apart = math.ceil(len(self.cameras) / ENOUGH)
        some = self.cameras[seed % apart :: apart]
        return sensitivity(self._student(), some, seed=seed, backend=self.settings.backend)

    def settle(self, parts: Iterable[Part], weights: Sensitivity, price: float) -> None:
        """From now on the student has, in these ``parts``, the numbers of a file."""
        self.settled = self.settled.then(self._student().detach(), parts, weights, price)

    def merge(self, count: int) -> None:
        if count < len(self.table):
            free = activated(self.table, antialiased=self.teacher.antialiased).detach()
            self.table = trainable(merged(free, self.scores(free), count, self.settings.idle), selective=True)

    def prune(self, count: int) -> None:
        if count < len(self.table):
            scores = self.scores(activated(self.table, antialiased=self.teacher.antialiased).detach())
            self.table.keep(most_significant(scores, count))

    def walk(self, steps: range, whole: range, last: int) -> Iterator[CompressUpdate]:
        """``steps`` of the ``whole``, along which learning rates fall."""
        for step in steps:
            self.advance((step - whole.start) / len(whole))
            if (step + 1) % _TELL == 0 and step + 1 < last:
                yield CompressUpdate(step + 1, last, len(self.table))

    def advance(self, progress: float) -> None:
        """One step towards a photo, or towards the teacher's picture from a view that nobody took."""
        if not self.order:
            self.order = torch.randperm(len(self.views), generator=self.generator).tolist()
        index = self.order.pop()
        target = self.views[index].levels[0]
        invented = bool(torch.rand(1, generator=self.generator) < self.settings.pseudo_views)
        if invented:
            target = self._invented(target)
        student = self._student()
        rgb = rasterize(student, target.camera, backend=self.settings.backend).rgb[0]
        if self.exposure is not None and not invented:
            rgb = self.exposure.apply(rgb, index)
        size = student.scales.mean() / self.extent
        loss = target.loss(rgb, torch.zeros(3)) + self.restraint * (student.opacities.mean() + size)
        if not bool(loss.detach().isfinite()):
            return
        loss.backward()
        self._learn(progress)
        if self.exposure is not None and not invented:
            self.exposure.step(progress)

    def _invented(self, like: Target) -> Target:
        """The teacher's picture from near a training camera, through the lens of ``like``."""
        every = replace(
            like.camera,
            world_from_cam=torch.cat([camera.world_from_cam for camera in self.cameras]),
            K=like.camera.K.repeat(len(self.cameras), 1, 1),
        )
        poses = pseudo_cameras(every, 1, jitter=self.settings.jitter, generator=self.generator)
        camera = replace(like.camera, world_from_cam=poses)
        with torch.no_grad():
            rgb = rasterize(self.teacher, camera, backend=self.settings.backend).rgb[0]
        return Target(rgb.clamp(0, 1).mul(255).round().byte(), camera, None)

    def _learn(self, progress: float) -> None:
        """Rates fall along a cosine to a tenth, so that the last steps settle instead of shaking; the less went, the
        slower all of it."""
        s, fixed = self.settings, self.settled.fixed
        slower = self.pace * (0.55 + 0.45 * math.cos(math.pi * progress))
        rates = torch.full((3 * self.table["sh"].shape[1],), slower * s.sh_rest_lr)
        rates[:3] = 0.0 if "base" in fixed else slower * s.sh_lr
        self.table.step(
            {
                "means": 0.0 if "means" in fixed else slower * self.extent * s.means_lr,
                "quats": 0.0 if "quats" in fixed else slower * s.quats_lr,
                "log_scales": 0.0 if "scales" in fixed else slower * s.scales_lr,
                "logits": 0.0 if "opacities" in fixed else slower * s.opacities_lr,
                "sh": rates,
            }
        )
