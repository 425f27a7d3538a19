"""What a fit may be told; the defaults are the quality 'standard'."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from scenetx.config import check_device, in_range
from scenetx.core import InputError
from scenetx.splat import Backend

Quality = Literal["draft", "standard", "high"]
Strategy = Literal["mcmc", "classic"]


@dataclass(frozen=True)
class FitSettings:
    """Everything about a fit. Means move in units of the viewing distance.

    Learning rates are 3DGS's, raised 2 to 10 times by measured PSNR: these fits take thousands of steps, not 30,000.
    """

    # size of the work
    steps: int = 5000
    width: int = 640  # longest side of the pictures fitted to; larger ones are reduced by area
    max_splats: int = 100_000
    sh_degree: int = 2
    sh_interval: int = 1000  # steps before the next band of view-dependent colour joins
    pyramid: int = 2  # coarse to fine: the first pictures are 1/2^pyramid of the size
    pyramid_until: float = 0.4  # share of the steps after which the pictures have their full size

    # learning rates
    means_lr: float = 1.6e-3
    means_lr_end: float = 4e-5
    scales_lr: float = 0.01
    quats_lr: float = 0.002
    opacities_lr: float = 0.05
    sh_lr: float = 0.005
    sh_rest_lr: float = 0.0005
    selective: bool = True  # do not step splats that the view did not touch

    # loss
    ssim_weight: float = 0.2
    opacity_reg: float | None = None  # None: what `scenetx.fit.initialise.restraint` says of these photos
    scale_reg: float | None = None
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    random_background: bool = False
    drop: float = 0.0  # share of the splats that the last steps leave out; for few photos from far-apart places

    # shape
    max_aspect: float = 0.0  # a splat's longest axis by its middle one, at most; 0 = no limit (benchmarks/README.md)

    # how splats come and go
    strategy: Strategy = "mcmc"
    clear: bool = True  # in the end, let splats go that no photo would miss (scenetx.fit.shown)
    refine_start: float = 0.05  # shares of the steps
    refine_stop: float = 0.8
    grow_until: float = 0.5
    refine_interval: int = 100
    min_opacity: float = 0.005
    noise_lr: float = 1e7  # the paper's 5e5 is for 30,000 steps; few steps need longer strides (benchmarks/fit.py)
    grow_grad2d: float = 8e-4  # classic, on absolute gradients as ScreenStats has them
    reset_interval: int = 3000  # classic

    # pictures that do not agree
    exposure: bool = True
    exposure_lr: float = 0.002
    exposure_decay: float = 0.01
    refine_poses: bool | None = None  # None: unless the poses came with the input
    poses_lr: float = 1e-4
    poses_start: float = 0.1  # share of the steps before cameras may move

    # start
    least_points: int = 1000  # with fewer from SfM, random points are added ...
    initial_splats: int = 5000  # ... up to this many
    initial_opacity: float = 0.1
    initial_scale: float = 1.0  # of the mean distance to the three nearest points
    antialiased: bool = False

    # running
    seed: int = 0
    backend: Backend = "auto"
    device: str = "cpu"
    eval_interval: int = 500
    eval_views: int = 4
    checkpoint_seconds: float = 60.0
    max_bad_steps: int = 50  # steps with a loss that is not finite before giving up

    def __post_init__(self) -> None:
        for name in ("steps", "width", "max_splats", "refine_interval", "sh_interval", "eval_interval"):
            if getattr(self, name) < 1:
                raise InputError(f"fit setting {name}", getattr(self, name), "use at least 1")
        if not 0 <= self.sh_degree <= 3:
            raise InputError("fit setting sh_degree", self.sh_degree, "use 0 to 3")
        if not 0 <= self.pyramid <= 4:
            raise InputError("fit setting pyramid", self.pyramid, "use 0 to 4")
        self._check_numbers()
        check_device("fit setting device", self.device)
        if not 0 <= self.drop < 1:
            raise InputError("fit setting drop", self.drop, "use a share from 0 to below 1")
        if self.max_aspect != 0 and not self.max_aspect >= 1:
            raise InputError("fit setting max_aspect", self.max_aspect, "use at least 1, or 0 for no limit")
        if self.strategy not in ("mcmc", "classic"):
            raise InputError("fit setting strategy", self.strategy, "use mcmc or classic")

    def _check_numbers(self) -> None:
        """What would silently end in an empty scene, or in one that means nothing."""
        what = "fit setting"
        in_range(what, self, 1e-12, math.inf, "means_lr", "means_lr_end", "initial_scale")
        in_range(
            what, self, 0.0, math.inf, "scales_lr", "quats_lr", "opacities_lr", "sh_lr", "sh_rest_lr", "opacity_reg",
            "scale_reg", "noise_lr", "grow_grad2d", "exposure_lr", "exposure_decay", "poses_lr", "checkpoint_seconds",
        )  # fmt: skip
        in_range(what, self, 0.0, 1.0, "pyramid_until", "ssim_weight", "refine_start", "refine_stop", "grow_until")
        in_range(what, self, 0.0, 1.0, "poses_start")
        in_range(what, self, 1e-6, 1 - 1e-6, "initial_opacity")
        in_range(what, self, 1e-6, 0.49, "min_opacity")  # twice of it is what a reset leaves
        in_range(what, self, 0.0, math.inf, "least_points", "initial_splats", "eval_views", "max_bad_steps")
        in_range(what, self, 1.0, math.inf, "reset_interval")
        if not all(0 <= part <= 1 for part in self.background):
            raise InputError(f"{what} background", self.background, "use red, green and blue from 0 to 1")


_PRESETS: dict[str, dict[str, Any]] = {
    "draft": {
        "steps": 2000,
        "width": 480,
        "max_splats": 40_000,
        "sh_degree": 1,
        "sh_interval": 700,
        "eval_interval": 250,
    },
    "standard": {},
    "high": {
        "steps": 15_000,
        "width": 960,
        "max_splats": 250_000,
        "sh_degree": 3,
        "sh_interval": 2000,
        "means_lr": 8e-4,
        "means_lr_end": 8e-6,
    },
}


def settings_for(quality: str = "standard", num_views: int = 50, **changes: Any) -> FitSettings:
    """The preset ``quality`` for ``num_views`` training pictures, with ``changes`` on top.

    Steps grow with the number of pictures once each would be visited fewer than ten times. Raises
    InputError for an unknown quality or setting.
    """
    if quality not in _PRESETS:
        raise InputError("quality", quality, f"use one of {', '.join(_PRESETS)}")
    unknown = sorted(set(changes) - set(FitSettings.__dataclass_fields__))
    if unknown:
        raise InputError("fit setting", unknown[0], f"use one of {', '.join(FitSettings.__dataclass_fields__)}")
    settings = replace(FitSettings(), **_PRESETS[quality])
    return replace(settings, **({"steps": max(settings.steps, 10 * num_views)} | changes))
