"""Everything a training run is made of, as one tree of frozen settings; a recipe in configs/ holds what differs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Literal

from scenetx.config import in_range
from scenetx.core import InputError
from scenetx.data.procedural import ProceduralConfig
from scenetx.data.samplers import SamplerSettings
from scenetx.models.da3 import Da3Config
from scenetx.models.lvsm import LvsmConfig
from scenetx.models.srt import SrtConfig
from scenetx.models.stereo_splats import StereoSplatsConfig
from scenetx.models.svsm import SvsmConfig

Task = Literal["view", "geometry", "splats"]
ModelName = Literal["svsm", "lvsm", "srt", "da3", "stereo_splats"]
TASKS: dict[ModelName, Task] = {
    "svsm": "view", "lvsm": "view", "srt": "view", "da3": "geometry", "stereo_splats": "splats",
}  # fmt: skip
HELD_OUT_SEEDS = 1 << 20
"""Procedural seeds below this are never trained on: evaluations draw from them."""


@dataclass(frozen=True)
class DataSettings:
    """Where scenes come from and which of their views are looked at."""

    source: Literal["procedural", "shards", "scenes"] = "procedural"
    path: tuple[Path, ...] = ()
    """Shards: a folder of .tar files. Scenes: posed folders (`scenetx.data.datasets.open_posed`)."""
    height: int = 128
    width: int = 128
    context: int = 2
    """Views shown to a model of views or of splats; all views of a geometry model."""
    context_most: int = 0
    """Where larger, a step shows ``context`` to this many views, drawn by its number."""
    targets: int = 6
    """Views a model of views or of splats has to paint."""
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)
    """``height``, ``width`` and ``views`` are taken from above."""
    difficulty_from: float | None = None
    """Procedural difficulty at the first step; it rises to ``procedural.difficulty``."""
    curriculum: int = 0
    """Steps over which it rises."""
    reuse: int = 1
    """Steps that look at a procedural scene, by other views, where making scenes costs more than learning from them."""
    pool: int = 1024
    """Scenes in memory that steps draw from, when ``reuse`` is more than 1."""
    extra_views: int = 0
    """Procedural views beyond those a step needs, to draw from."""
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    workers: int = 0
    """Processes that prepare batches; 0: the training process, on its own device."""
    ahead: int = 2
    """Batches each worker prepares ahead."""


@dataclass(frozen=True)
class LossSettings:
    """Weights of the terms; 0 leaves one out."""

    mse: float = 1.0
    ssim: float = 0.0
    gradient: float = 0.0
    perceptual: float = 0.0
    """LPIPS; needs its weights (`scenetx.measure.lpips.load_lpips`)."""
    depth: float = 1.0
    depth_gradient: float = 0.5
    points: float = 0.5
    camera: float = 1.0
    """Of relative rotations; of relative translations half."""
    matching: float = 0.0
    """Of where the blocks that see all views look (`scenetx.train.matching`)."""
    fov: float = 1.0
    rays: float = 0.0
    """Of the ray head, where a geometry model has one."""
    normals: float = 0.0
    splat: float = 0.0
    """Of the last view painted by the others' pixels as Gaussians; for a geometry model."""
    planes: float = 0.0
    """Of the planes that a model of splats decides between, by cross-entropy."""
    far: float = 0.0
    """Of pixels without depth lying farther than a model of splats looks: where they are a sky, as procedural ones."""
    confidence: float = 0.05
    """Weight of -log(confidence): higher trusts less."""
    cameras_given: float = 0.0
    """Share of steps in which a geometry model is told the cameras."""


@dataclass(frozen=True)
class PretrainSettings:
    """What a geometry model's trunk learns first (`scenetx.train.pretrain`); "" is geometry itself."""

    kind: Literal["", "completion", "masked_depth", "matching", "cameras"] = ""
    masked: float = 0.9
    """Share of the patches that are hidden."""
    looks: float = 0.3
    """cameras: weight of where the blocks that see all views look (`scenetx.train.matching`)."""
    moves: float = 1.0
    """cameras: weight of how far each patch moves between the views, in half picture widths."""


@dataclass(frozen=True)
class OptimSettings:
    """AdamW with linear warm-up and a cosine to ``floor``. Published values of LVSM and SVSM, for 512 scenes a step."""

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    """Of matrices; gains, biases and tokens are not decayed."""
    warmup: int = 3000
    steps: int = 100_000
    floor: float = 0.0
    """Learning rate at the end, as a share of ``lr``."""
    clip: float = 1.0
    skip: float = 5.0
    """After warm-up, a step whose gradient is larger than this times ``clip`` is left out. 0: never."""
    ema: float = 0.0
    """Decay of the averaged weights that are evaluated and exported; 0: none."""


@dataclass(frozen=True)
class TrainSettings:
    """A training run. ``model`` names the class, whose own settings are in the table of that name."""

    name: str = "run"
    model: ModelName = "svsm"
    svsm: SvsmConfig = field(default_factory=SvsmConfig)
    lvsm: LvsmConfig = field(default_factory=LvsmConfig)
    srt: SrtConfig = field(default_factory=SrtConfig)
    da3: Da3Config = field(default_factory=Da3Config)
    stereo_splats: StereoSplatsConfig = field(default_factory=StereoSplatsConfig)
    start_from: Path | None = None
    """Weights to begin with; a checkpoint in the output folder comes first."""
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    batch: int = 32
    """Scenes a step, over all processes."""
    accumulate: int = 1
    """Parts a process computes its share in, one after another."""
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """bf16-mixed: the transformer blocks compute in bfloat16, cameras and losses never do."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: bool = False
    save_every: int = 500
    keep: int = 2
    """Checkpoints kept."""
    log_every: int = 10
    picture_every: int = 500
    evaluate_every: int = 1000
    evaluate_scenes: int = 16
    nan_limit: int = 20
    """Steps without a finite loss or gradient after which the run stops and saves the batch."""
    seconds: float = math.inf
    """Stop (and save) after this long; the same command goes on."""

    def __post_init__(self) -> None:
        positive = ("batch", "accumulate", "save_every", "keep", "log_every", "picture_every", "evaluate_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"train: {name}", getattr(self, name), "give at least 1")
        for name, value, low in (
            ("data.context", self.data.context, 1), ("data.targets", self.data.targets, 1),
            ("data.height", self.data.height, 8), ("data.width", self.data.width, 8),
            ("optim.steps", self.optim.steps, 1), ("optim.warmup", self.optim.warmup, 0),
        ):  # fmt: skip
            if value < low:
                raise InputError(f"train: {name}", value, f"give at least {low}")
        self._check_numbers()
        if not 0 <= self.pretrain.masked <= 1:
            raise InputError("train: pretrain.masked", self.pretrain.masked, "give a share, 0 to 1")
        if not 0 <= self.optim.ema < 1:
            raise InputError("train: optim.ema", self.optim.ema, "give a decay from 0 up to, not including, 1")

    def _check_numbers(self) -> None:
        in_range("train:", self, 0.0, math.inf, "evaluate_scenes", "nan_limit")
        if not self.seconds >= 0:  # inf is the default
            raise InputError("train: seconds", self.seconds, "give a number of at least 0")
        data, optim = self.data, self.optim
        in_range("train: data", data, 0.0, math.inf, "context_most", "curriculum", "extra_views", "workers")
        in_range("train: data", data, 1.0, math.inf, "reuse", "pool", "ahead")
        in_range("train: data", data, 0.0, 1.0, "difficulty_from")
        in_range("train: optim", optim, 0.0, math.inf, "lr", "weight_decay", "floor", "clip", "skip")
        if not all(0 <= beta < 1 for beta in optim.betas):
            raise InputError("train: optim.betas", optim.betas, "give two numbers from 0 up to, not including, 1")
        in_range("train: svsm", self.svsm, 1.0, math.inf, "dim", "heads", "patch", "encoder_layers", "decoder_layers")
        in_range("train: lvsm", self.lvsm, 1.0, math.inf, "dim", "heads", "patch", "decoder_layers", "latents")
        in_range("train: srt", self.srt, 1.0, math.inf, "conv_width", "dim", "heads", "hidden")
        for name, sizes in (("da3", self.da3), ("stereo_splats.da3", self.stereo_splats.da3)):
            in_range(f"train: {name}", sizes, 1.0, math.inf, "dim", "depth", "heads", "features", "patch")

    def checked(self) -> TrainSettings:
        """Itself, or an InputError for settings that do not go together (each alone may, on the way to others)."""
        data = self.data
        name = "stereo_splats.da3" if self.model == "stereo_splats" else self.model
        config: SvsmConfig | LvsmConfig | SrtConfig | Da3Config = attrgetter(name)(self)
        if config.dim % config.heads:
            raise InputError(f"train: {name}.heads", config.heads, f"make them divide the dim of {config.dim}")
        if self.task == "splats" and data.context < 2:
            raise InputError("train: data.context", data.context, "show a model of splats two views or more")
        if data.source != "procedural" and not data.path:
            raise InputError("train: data.path", "not given", f"name the folder of {data.source}")
        if self.pretrain.kind and (self.model != "da3" or data.context < 2):
            what = f"{self.pretrain.kind} of {self.model}, {data.context} views"
            raise InputError("train: pretrain", what, "use it with model da3 and data.context of at least 2")
        if data.reuse > 1 and (self.batch % data.reuse or data.pool < self.batch):
            what = f"{data.reuse}, batches of {self.batch}, a pool of {data.pool}"
            raise InputError(
                "train: data.reuse", what, "make it divide the batch, and the pool no smaller than a batch"
            )
        return self

    @property
    def task(self) -> Task:
        return TASKS[self.model]

    @property
    def views(self) -> int:
        """Views a scene must have."""
        shown = max(self.data.context, self.data.context_most)
        return shown if self.task == "geometry" else shown + self.data.targets
