"""A scene's splats as small files, and what each size costs in quality."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Gaussians, InputError, Scene
from scenetx.core.atomic import write_bytes
from scenetx.fit import evaluate_views
from scenetx.fit.compress import CompressSettings, Price, compress_splats, merged, significance
from scenetx.fit.sensitivity import Sensitivity, sensitivity
from scenetx.fit.settle import rounded
from scenetx.fit.targets import target_view
from scenetx.io.json_value import to_json
from scenetx.io.least_turned import least_turned
from scenetx.io.ply import write_splat_ply
from scenetx.io.scene_dir import load_scene, refuse_own, scene_folder
from scenetx.io.sog import write_sog
from scenetx.io.splat_formats import COMPRESSED_PLY, read_gaussians, write_gaussians
from scenetx.pipeline.workspace import Report, silent

FORMATS = ("sog", "spz", COMPRESSED_PLY[1:], "glb")
CURVE = "rate_distortion.json"
SLACK = 0.97  # of the target's bytes are aimed for: the size of a picture is known once it is packed
LEAST_KEEP = 0.02
BALANCE = 0.4  # error that all bits of the file may be worth, in what the scene's pictures are wrong by anyway
USUAL = 30.0  # dB; the more pictures are wrong by, the smaller the part of it that more splats would mend
LEAST_PRICE = 1e-3  # of the price that follows from that: where finer numbers are no longer seen
STEEP = 6.0  # a size goes with the price to the power of minus a seventh; a little less does not overshoot
RIGHT = 45.0  # dB; pictures that are better than that are as good as those that are
RECOVERED = 1.15  # times the bytes that just merged splats take, once they have recovered: details are sharper
LOOKS = 4  # at the size of a share of the splats, or of a price, before the work on it begins
CAMERAS = 12  # that say how coarse numbers may be before the work begins
JUDGES = 4  # training views that judge a scene without held-out ones


@dataclass(frozen=True)
class CompressPlan:
    """What `compress` is asked for."""

    target: float = 10.0  # times smaller than the scene's 3DGS .ply
    formats: tuple[str, ...] = ("sog", "spz", COMPRESSED_PLY[1:])
    fit: CompressSettings = field(default_factory=CompressSettings)  # ``keep`` follows from the target

    def __post_init__(self) -> None:
        if not 1 <= self.target <= 1000:
            raise InputError("compress --target", f"{self.target:g}x", "use 1x to 1000x")
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise InputError("compress --formats", ", ".join(unknown) or "none", f"use some of {', '.join(FORMATS)}")


@dataclass(frozen=True)
class RatePoint:
    """One file: ``splats`` full or light, bytes, times smaller than the .ply, quality of what is read back from it."""

    name: str
    splats: str
    gaussians: int
    bytes: int
    ratio: float
    psnr: float
    psnr_lost: float
    ssim: float
    read_seconds: float


@dataclass(frozen=True)
class RateCurve:
    """The table of `compress`; the first point is the .ply itself. ``best``: the file that was asked for."""

    points: tuple[RatePoint, ...]
    best: RatePoint
    target: float
    judged_by: str
    seconds: float

    def line(self) -> str:
        """The one line for the screen."""
        best = self.best
        reached = "" if best.ratio >= self.target else f" (the target of {self.target:g}x was not reached)"
        quality = f"PSNR {best.psnr:.2f} dB ({-best.psnr_lost:+.2f}) on {self.judged_by}"
        return f"{best.name}: {best.bytes / 1e6:.2f} MB, {best.ratio:.1f}x smaller{reached}; {quality}"


def parse_target(text: str) -> float:
    """``10x``, ``10`` or ``7.5x`` as a number. Raises InputError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,4}(?:\.\d{1,3})?)\s*x?\s*", text, re.IGNORECASE)
    if found is None:
        raise InputError("compress --target", text[:40], "say how many times smaller, for example 10x")
    return float(found[1])


def compress(
    source: str | Path,
    output: str | Path | None = None,
    plan: CompressPlan | None = None,
    report: Report = silent,
) -> RateCurve:
    """Small splat files of a scene in ``output`` (a folder, default SCENE/compressed), and their rate-distortion table.

    The full splats are packed in every format first. Where SOG misses the target they are made fewer, and their
    numbers as coarse as pictures let each be (`scenetx.fit.compress`), until they fit, and packed again; every file is
    read back before it is scored on the held-out views (on training views, and said so, where none was held out).

    Raises:
        InputError: no splats, no registered views, an ``output`` that is a scene's own, or a file that cannot be
            written.
    """
    started = time.perf_counter()
    plan = plan or CompressPlan()
    folder = Path(output) if output is not None else scene_folder(source) / "compressed"
    refuse_own(folder)
    scene = load_scene(source)
    if scene.gaussians is None or not len(scene.gaussians):
        raise InputError(str(source), "has no splats", "run scenetx reconstruct without --no-splats first")
    work = _Bench(scene, folder)
    work.start(scene.gaussians)
    full = least_turned(scene.gaussians)  # the same splats, in numbers that pack better
    for index, kind in enumerate(plan.formats):
        work.pack(full, kind, "full")
        report("compress", 0.2 * (index + 1) / len(plan.formats), f"packing {kind}")
    best = next((point for point in work.points if point.name == "splats.sog"), None) or work.pack(full, "sog", "full")
    if best.ratio < plan.target:
        room = _Room(work, full, plan)
        report("compress", 0.2, "how many splats fit")
        light, scores = _light(scene, room.settings(), room.price, report)
        best = work.pack_to_size(light, scores, int(work.points[0].bytes / plan.target))
        for kind in plan.formats:
            if kind != "sog":
                work.pack(light, kind, "light")
    seconds = time.perf_counter() - started
    curve = RateCurve(tuple(work.points), best, plan.target, work.judged_by, round(seconds, 2))
    write_bytes(work.folder / CURVE, to_json(asdict(curve)))
    report("compress", 1.0, "")
    return curve


class _Room:
    """How the target is met: which share of the splats, and how coarse their numbers.

    Error falls with the file's bits about as bits fall with their price: at the least error for a size, the price of
    all bits together is a fixed share (`BALANCE`) of the error that bits can mend. Blur, noise and light that moves
    they cannot; that is taken to be more where pictures are more wrong (`USUAL`). That gives a price before anything
    else is known; as many splats as then fit are kept. When they have recovered, the price is set to what fills the
    room.
    """

    def __init__(self, work: _Bench, full: Gaussians, plan: CompressPlan) -> None:
        self.work, self.full, self.fit = work, full, plan.fit
        self.bytes = work.points[0].bytes * SLACK / plan.target
        views = work.scene.training[:: max(1, len(work.scene.training) // CAMERAS)][:CAMERAS]
        targets = [target_view(view, width=plan.fit.width, pyramid=0).levels[0] for view in views]
        self.cameras = [target.camera for target in targets]
        wrong = evaluate_views(work.scene, full, views=views, backend=plan.fit.backend).mean_psnr_corrected
        # PSNR is over pixels inside of masks, sensitivities are over all.
        inside = sum(1.0 if target.mask is None else float(target.mask.float().mean()) for target in targets)
        error = 10 ** (-(min(wrong, RIGHT) + USUAL) / 20) * inside / len(targets)
        self.planned = BALANCE * error / (8 * self.bytes)

    def settings(self) -> CompressSettings:
        """With the share of the splats that fits at the price that suits the room.

        Bytes a splat change as splats get fewer, hence more than one look.
        """
        fit, scores = self.fit, None
        if fit.fewer == "merge":
            cameras = [view.camera for view in self.work.scene.training if view.camera is not None]
            scores = significance(self.full, cameras, volume_power=fit.volume_power, backend=fit.backend)
        keep, start = 1.0, self.full
        for _ in range(LOOKS):
            share = max(LEAST_KEEP, min(1.0, keep * self.bytes / (RECOVERED * self._packed(start))))
            if scores is None or share == keep:
                return replace(fit, keep=share)
            keep = share
            start = merged(self.full, scores, max(1, round(keep * len(self.full))), fit.idle)
        return replace(fit, keep=keep)

    def price(self, gaussians: Gaussians, weights: Sensitivity) -> float:
        """The price at which the file fills the room, or nearly."""
        price = self.planned
        for _ in range(LOOKS):
            size = self.work.packed_size(rounded(gaussians, weights, price))
            if SLACK * self.bytes <= size <= self.bytes:
                break
            price *= min(max((size / self.bytes) ** STEEP, 1 / 16), 16.0)
        return max(price, LEAST_PRICE * self.planned)

    def _packed(self, gaussians: Gaussians) -> int:
        plain = gaussians.detach()[gaussians.finite()].to("cpu")
        if self.fit.sh_degree is not None:
            plain = replace(plain, sh=plain.sh[:, : (self.fit.sh_degree + 1) ** 2])
        weights = sensitivity(plain, self.cameras, backend=self.fit.backend)
        return self.work.packed_size(rounded(plain, weights, self.planned))


def _light(
    scene: Scene, settings: CompressSettings, price: Price, report: Report
) -> tuple[Gaussians, Float[Tensor, "g"]]:
    for update in compress_splats(scene, settings, price):
        share = 0.2 + 0.7 * update.step / max(update.steps, 1)
        report("compress", share, f"{update.num_gaussians:,} splats")
        if update.gaussians is not None and update.scores is not None:
            return update.gaussians, update.scores
    raise AssertionError("compress_splats ended without a result")


class _Bench:
    """Writes files, reads them back and scores what was read."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder = scene, folder
        self.points: list[RatePoint] = []
        self.views = scene.held_out or scene.training[:: max(1, len(scene.training) // JUDGES)][:JUDGES]
        if not self.views:
            raise InputError("compress", "the scene has no registered view to judge by", "give the whole scene folder")
        kind = "held-out" if scene.held_out else "training"
        self.judged_by = f"{len(self.views)} {kind} picture{'s' if len(self.views) > 1 else ''}"

    def start(self, gaussians: Gaussians) -> None:
        """The .ply that all is measured against; it is not kept."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "splats.ply"
            write_splat_ply(gaussians, path)
            self._score(path, "full")

    def pack(self, gaussians: Gaussians, kind: str, splats: str) -> RatePoint:
        """One file; light splats take the place of full ones under the same name."""
        path = self.folder / f"splats.{kind}"
        write_gaussians(gaussians, path)
        return self._score(path, splats)

    def packed_size(self, gaussians: Gaussians) -> int:
        """Bytes of their .sog, of which nothing is kept."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trial.sog"
            write_sog(gaussians, path)
            return path.stat().st_size

    def pack_to_size(self, gaussians: Gaussians, scores: Float[Tensor, "g"], most: int) -> RatePoint:
        """A .sog of at most ``most`` bytes where leaving out the least significant splats can make it so."""
        path = self.folder / "splats.sog"
        for _ in range(4):
            write_sog(gaussians, path, weights=scores)
            size = path.stat().st_size
            if size <= most or len(gaussians) < 64:
                break
            # The outermost splats stay: positions are stored between them, and would leave their grid without them.
            ends = torch.cat([gaussians.means.argmin(0), gaussians.means.argmax(0)])
            order = scores.index_fill(0, ends, torch.inf).argsort(descending=True, stable=True)
            kept = order[: max(1, int(len(gaussians) * SLACK * most / size))].sort().values
            gaussians, scores = gaussians[kept], scores[kept]
        return self._score(path, "light")

    def _score(self, path: Path, splats: str) -> RatePoint:
        began = time.perf_counter()
        gaussians = read_gaussians(path)
        seconds = time.perf_counter() - began
        scores = evaluate_views(self.scene, gaussians, views=self.views)
        size = path.stat().st_size
        first = self.points[0] if self.points else None
        point = RatePoint(
            name=path.name,
            splats=splats,
            gaussians=len(gaussians),
            bytes=size,
            ratio=round(first.bytes / size, 3) if first else 1.0,
            psnr=round(scores.mean_psnr, 4),
            psnr_lost=round(first.psnr - scores.mean_psnr, 4) if first else 0.0,
            ssim=round(scores.mean_ssim, 5),
            read_seconds=round(seconds, 3),
        )
        self.points.append(point)
        return point
