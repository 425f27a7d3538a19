"""Splats fitted to the scene's training pictures by gradient descent: one step at a time, and updates as they come."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError, Scene, View
from scenetx.fit.adam import Adam
from scenetx.fit.checkpoint import Checkpoint, fingerprint, read_checkpoint, write_checkpoint
from scenetx.fit.densify import Classic, Mcmc
from scenetx.fit.exposure import Exposure
from scenetx.fit.initialise import first_gaussians, restraint, strays, viewing_distance
from scenetx.fit.poses import Poses
from scenetx.fit.settings import FitSettings
from scenetx.fit.shown import unmissed
from scenetx.fit.targets import Target, TargetView, target_view
from scenetx.fit.trainable import activated, grow_bands, shorten_needles, thinned, trainable
from scenetx.measure.image import psnr
from scenetx.splat import ScreenStats, rasterize

log = logging.getLogger(__name__)
VISIBLE = 1 / 255  # a fainter splat changes no 8-bit picture
_UPDATE_SECONDS = 0.5
_ASPECT_STEPS = 20  # between two looks for needles


@dataclass(frozen=True)
class FitUpdate:
    """Where the fit is. The last update (``gaussians`` set) also carries the pictures' exposures and refined cameras.

    loss: running mean over about 50 steps. psnr: mean over a few held-out views at the size fitted to, None where not
    measured now. seconds: work so far, without the consumer's time, over all resumed runs. exposures: name -> gains,
    photo = gain * render. cameras: name -> refined training camera, for the view's own picture size. snapshot: gives
    the splats as they are now, on the CPU; to be called, if at all, before the next update is asked for.
    """

    step: int
    steps: int
    loss: float
    psnr: float | None
    gaussians: Gaussians | None
    num_gaussians: int
    seconds: float
    exposures: Mapping[str, Float[Tensor, "3"]] | None = None
    cameras: Mapping[str, Cameras] | None = None
    skipped: int = 0
    snapshot: Callable[[], Gaussians] | None = None


def fit_splats(
    scene: Scene, settings: FitSettings, *, start: Gaussians | None = None, checkpoint: Path | None = None
) -> Iterator[FitUpdate]:
    """Fit Gaussians to ``scene.training``; held-out views only ever measure. ``start``: the first ones (default: from
    the scene's points).

    The result is in the scene's own frame and scale. With ``checkpoint`` the state is written there now and then, and
    when the iterator is closed or interrupted; a later call with the same scene and settings goes on from it and, on
    the CPU backend, ends with the same bits as an undisturbed run. A checkpoint of another scene or other settings is
    ignored and replaced. Raises InputError when there is no training view, or when the loss stops being finite.
    """
    fit = _Fit(scene, settings, start)
    owner = fingerprint(replace(scene, gaussians=start), settings) if checkpoint is not None else ""
    if checkpoint is not None:
        fit.restore(read_checkpoint(checkpoint, owner))
    saved_at = told_at = time.monotonic()
    saved_step = fit.step
    try:
        yield fit.update(measured=None)
        while fit.step < settings.steps:
            fit.advance()
            now = time.monotonic()
            if checkpoint is not None and now - saved_at > settings.checkpoint_seconds:
                write_checkpoint(checkpoint, fit.state(), owner)
                saved_at, saved_step = time.monotonic(), fit.step
            measure = fit.step % settings.eval_interval == 0 and fit.step < settings.steps
            if measure or now - told_at > _UPDATE_SECONDS:
                yield fit.update(fit.held_out_psnr() if measure else None)
                told_at = time.monotonic()
        if checkpoint is not None and saved_step < fit.step:
            write_checkpoint(checkpoint, fit.state(), owner)
            saved_step = fit.step
        yield fit.finished()
    except (GeneratorExit, KeyboardInterrupt):
        # Between two steps the state is whole; an interrupt in the middle of one leaves the earlier file as it is.
        if checkpoint is not None and not fit.busy and saved_step < fit.step:
            write_checkpoint(checkpoint, fit.state(), owner)
        raise


class _Fit:
    """The mutable state of a running fit. Randomness is drawn anew from (seed, purpose, step), so none needs saving."""

    def __init__(self, scene: Scene, settings: FitSettings, start: Gaussians | None = None) -> None:
        self.scene, self.settings = scene, settings
        self.step, self.seconds, self.skipped, self.bad_run, self.loss = 0, 0.0, 0, 0, math.nan
        self.busy = False
        first = first_gaussians(scene, settings) if start is None else start.detach()[start.finite()]
        first = first.to(settings.device)
        self.first_count = len(first)
        self.table = trainable(first, selective=settings.selective)
        self.views = [self._target(view, settings.pyramid) for view in scene.training]
        spread = scene.held_out[:: max(1, len(scene.held_out) // max(settings.eval_views, 1))]
        self.judges = [self._target(view, 0) for view in spread[: settings.eval_views]]
        self.extent = viewing_distance(scene)
        own = restraint(scene, self.extent, settings.steps)
        self.opacity_reg, self.scale_reg = (
            own if given is None else given for given in (settings.opacity_reg, settings.scale_reg)
        )
        self.background = torch.tensor(settings.background, device=settings.device)
        self.mcmc = Mcmc(settings, self.extent)
        self.classic = Classic(settings, self.extent)
        self.stats = ScreenStats.zeros(len(first), settings.device) if settings.strategy == "classic" else None
        self.exposure = self._exposure()
        self.poses = self._poses()

    def _target(self, view: View, pyramid: int) -> TargetView:
        return target_view(view, width=self.settings.width, pyramid=pyramid, device=self.settings.device)

    def _exposure(self) -> Exposure | None:
        s = self.settings
        if not s.exposure or len(self.views) < 2:
            return None
        return Exposure(len(self.views), rate=s.exposure_lr, decay=s.exposure_decay, device=s.device)

    def _poses(self) -> Poses | None:
        s = self.settings
        wanted = self.scene.posed_by != "input" if s.refine_poses is None else s.refine_poses
        if not wanted or len(self.views) < 3:
            return None
        poses = torch.cat([view.levels[0].camera.world_from_cam for view in self.views]).cpu()
        return Poses(poses, extent=self.scene.extent, rate=s.poses_lr, device=s.device)

    # one step

    def advance(self) -> None:
        """One step: a loss, and unless it is not finite, what it asks for."""
        started = time.perf_counter()
        index = self._next_view()
        loss = self._loss(index)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
            self.busy = True
            self.bad_run = 0
            self.loss = value if math.isnan(self.loss) else self.loss + 0.02 * (value - self.loss)
            self._learn()
            self._refine()
        else:
            self._reject()
        self.step += 1
        self.seconds += time.perf_counter() - started
        self.busy = False

    def _next_view(self) -> int:
        epoch, position = divmod(self.step, len(self.views))
        return int(torch.randperm(len(self.views), generator=self._generator("order", epoch))[position])

    def _generator(self, purpose: str, index: int) -> torch.Generator:
        # A product with a large odd number spreads consecutive steps over the seeds of the Mersenne twister.
        purposes = ("order", "noise", "refine", "background", "drop")
        key = (self.settings.seed * len(purposes) + purposes.index(purpose)) << 32 | index
        return torch.Generator().manual_seed((key * 0x9E3779B97F4A7C15) & (2**63 - 1))

    def _loss(self, index: int) -> Tensor:
        s = self.settings
        target = self.views[index].at(self._level())
        gaussians = activated(self.table, antialiased=s.antialiased)
        background = self._background(target)
        seen = gaussians
        if s.drop > 0:
            seen = thinned(gaussians, s.drop * self._progress(), self._generator("drop", self.step))
        rgb = self._render(seen, target, index, background)
        loss = target.loss(rgb, background, ssim_weight=s.ssim_weight)
        if s.strategy == "mcmc":
            size = gaussians.scales.mean() / self.extent  # a number without a unit: the world's scale is arbitrary
            loss = loss + self.opacity_reg * gaussians.opacities.mean() + self.scale_reg * size
        return loss

    def _background(self, target: Target) -> Tensor:
        """Behind a cutout the colour changes at each step, so that no splat can pass for it."""
        if self.settings.random_background or target.empty is not None:
            return torch.rand(3, generator=self._generator("background", self.step)).to(self.background)
        return self.background

    def _render(self, gaussians: Gaussians, target: Target, index: int, background: Tensor) -> Tensor:
        """What the photo should show: the splats over ``background``, in the photo's exposure."""
        camera = target.camera
        if self.poses is not None and self._progress() >= self.settings.poses_start:
            camera = replace(camera, world_from_cam=self.poses.apply(index))
        cutout = target.empty is not None
        behind = torch.zeros_like(background) if cutout else background
        render = rasterize(gaussians, camera, background=behind, backend=self.settings.backend, stats=self.stats)
        rgb = render.rgb[0] if self.exposure is None else self.exposure.apply(render.rgb[0], index)
        # The colour behind a cutout was not photographed: it has no exposure.
        return rgb + (1 - render.alpha[0])[..., None] * background if cutout else rgb

    def _progress(self) -> float:
        return self.step / self.settings.steps

    def _level(self) -> int:
        s = self.settings
        if s.pyramid_until <= 0:
            return 0
        return max(0, s.pyramid - int(self._progress() / s.pyramid_until * (s.pyramid + 1)))

    def _means_lr(self) -> float:
        s = self.settings
        return self.extent * s.means_lr * (s.means_lr_end / s.means_lr) ** self._progress()

    def _learn(self) -> None:
        s = self.settings
        bands = self.table["sh"].shape[1]
        sh_rates = torch.full((3 * bands,), s.sh_rest_lr)
        sh_rates[:3] = s.sh_lr
        rates: dict[str, float | Tensor] = {
            "means": self._means_lr(),
            "quats": s.quats_lr,
            "log_scales": s.scales_lr,
            "logits": s.opacities_lr,
            "sh": sh_rates,
        }
        self.table.step(rates)
        if self.exposure is not None:
            self.exposure.step(self._progress())
        if self.poses is not None and self._progress() >= s.poses_start:
            self.poses.step((self._progress() - s.poses_start) / (1 - s.poses_start))

    def _refine(self) -> None:
        s = self.settings
        done = self.step + 1
        if s.max_aspect and done % _ASPECT_STEPS == 0:
            shorten_needles(self.table, s.max_aspect)
        due = done % s.refine_interval == 0 and s.refine_start <= done / s.steps <= s.refine_stop
        if due:
            generator = self._generator("refine", self.step)
            if self.stats is None:
                self.mcmc.refine(self.table, self._wanted_count(done), generator)
            else:
                self.stats = self.classic.refine(self.table, self.stats, s.max_splats, generator)
        if self.stats is None:
            self.mcmc.perturb(self.table, self._means_lr(), self._generator("noise", self.step))
        elif done % s.reset_interval == 0 and done / s.steps < s.refine_stop:
            self.classic.reset_opacities(self.table)
        grow_bands(self.table, min(s.sh_degree, done // s.sh_interval))

    def _unmissed(self, gaussians: Gaussians) -> Tensor:
        """Which of the splats no training photo would miss, by pictures of half the size."""
        targets = [view.at(1) for view in self.views]
        if self.poses is not None:
            poses = self.poses.refined().to(gaussians.means)
            moved = [replace(one.camera, world_from_cam=pose[None]) for one, pose in zip(targets, poses, strict=True)]
            targets = [replace(one, camera=camera) for one, camera in zip(targets, moved, strict=True)]
        return unmissed(gaussians, targets, self.background, self.settings.backend)

    def _wanted_count(self, done: int) -> int:
        """Geometric growth from the first number to the cap, which is reached at ``grow_until``."""
        s = self.settings
        share = (done / s.steps - s.refine_start) / max(s.grow_until - s.refine_start, 1e-9)
        return round(self.first_count * (s.max_splats / self.first_count) ** min(max(share, 0.0), 1.0))

    def _reject(self) -> None:
        self.skipped += 1
        self.bad_run += 1
        if self.bad_run > self.settings.max_bad_steps:
            where = f"no finite loss in {self.bad_run} steps before step {self.step}"
            raise InputError("fit", where, "check cameras and points for wild values, or lower the learning rates")

    # what it says

    def held_out_psnr(self) -> float | None:
        """Mean over a few held-out views at the fitted size; None when there is none."""
        if not self.judges:
            return None
        scores = []
        with torch.no_grad():
            gaussians = activated(self.table, antialiased=self.settings.antialiased)
            for judge in self.judges:
                target = judge.levels[0]
                rgb = rasterize(
                    gaussians, target.camera, background=self.background, backend=self.settings.backend
                ).rgb[0]
                scores.append(psnr(rgb.clamp(0, 1), target.photo.float() / 255, target.mask))
        return sum(scores) / len(scores)

    def update(self, measured: float | None) -> FitUpdate:
        steps, count = self.settings.steps, len(self.table)
        numbers = (self.step, steps, self.loss, measured, None, count, self.seconds)
        return FitUpdate(*numbers, skipped=self.skipped, snapshot=self.snapshot)

    def snapshot(self) -> Gaussians:
        """The splats as they are now; the state goes its own way."""
        with torch.no_grad():
            gaussians = activated(self.table, antialiased=self.settings.antialiased)
            return gaussians[gaussians.opacities >= VISIBLE].to("cpu")

    def finished(self) -> FitUpdate:
        """The result, on the CPU, without splats too faint or too far to be seen."""
        everything = activated(self.table, antialiased=self.settings.antialiased).detach().to("cpu")
        gaussians = everything[everything.finite() & (everything.opacities >= VISIBLE)]
        gaussians = gaussians[~strays(gaussians, self.scene)]
        if self.settings.clear:
            gaussians = gaussians[~self._unmissed(gaussians.to(self.settings.device)).to("cpu")]
        exposures = cameras = None
        if self.exposure is not None:
            gains = self.exposure.gains().cpu()
            exposures = {view.name: gain for view, gain in zip(self.views, gains, strict=True)}
        if self.poses is not None:
            refined = self.poses.refined().cpu()
            cameras = {
                view.name: replace(view.camera, world_from_cam=pose[None].to(view.camera.world_from_cam))
                for view, pose in zip(self.scene.training, refined, strict=True)
                if view.camera is not None
            }
        return replace(
            self.update(self.held_out_psnr()),
            gaussians=gaussians,
            num_gaussians=len(gaussians),
            exposures=exposures,
            cameras=cameras,
            snapshot=None,
        )

    # resuming

    def _tables(self) -> dict[str, Adam]:
        tables = {"splats": self.table}
        if self.exposure is not None:
            tables["exposure"] = self.exposure.table
        if self.poses is not None:
            tables["poses"] = self.poses.table
        return tables

    def state(self) -> Checkpoint:
        tensors: dict[str, Tensor] = {}
        for part, table in self._tables().items():
            tensors |= {f"{part}.{name}": tensor for name, tensor in table.state().items()}
        if self.stats is not None:
            tensors |= {f"stats.{name}": getattr(self.stats, name) for name in ("grad2d", "seen", "radii")}
        counted = {"step": self.step, "skipped": self.skipped, "bad_run": self.bad_run}
        numbers = {name: float(value) for name, value in counted.items()} | {"seconds": self.seconds}
        if not math.isnan(self.loss):  # as before the first step; JSON has no NaN to speak of
            numbers["loss"] = self.loss
        return Checkpoint(tensors, numbers)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        for part, table in self._tables().items():
            prefix = f"{part}."
            state = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
            table.restore(state)
        if self.stats is not None:
            device = self.settings.device
            names = ("grad2d", "seen", "radii")
            self.stats = ScreenStats(*(checkpoint.tensors[f"stats.{name}"].to(device) for name in names))
        numbers = checkpoint.numbers
        self.step, self.skipped, self.bad_run = (int(numbers[key]) for key in ("step", "skipped", "bad_run"))
        self.seconds, self.loss = numbers["seconds"], numbers.get("loss", math.nan)
        log.info("the fit goes on from step %d of %d", self.step, self.settings.steps)
