"""A map as keys and values: keyframes, what a geometry model's attention keeps of them, and their place in the world.

The idea is KV-Tracker's (arXiv 2512.22581): map with full attention over all keyframes, keep keys and values as the
only scene representation, place a new frame by attending to them. Model-agnostic over ``map`` and ``step``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scenetx.core import Cameras, InputError, Original, Scene, Sim3, View
from scenetx.core.atomic import replacing_path, write_tensors
from scenetx.core.rigid import invert_rigid, rotation_angle
from scenetx.geometry.align import align_cameras
from scenetx.live.agreement import coarse_grey
from scenetx.live.keyframes import Keyframe
from scenetx.models.attention import KVCache
from scenetx.models.geometry import Geometry
from scenetx.models.memory import available_memory, check_fits, need
from scenetx.models.open_geometry import find_geometry
from scenetx.models.pictures import SizeRule, Window, to_model

FORMAT = "scenetx-kv-map-1"
CACHE_FILE, KEYFRAMES_FILE = "cache.safetensors", "keyframes.safetensors"
CELL = 7
"""Pixels of the model's picture to a cell of a keyframe's grid."""
BASELINE = 0.1
"""Extent of the keyframes over their depth below which depth, not the places, tells the scale."""
SPARE = 4
"""Keyframes that can be added to a finished map before the next one replaces it."""


@runtime_checkable
class MapModel(Protocol):
    """What a geometry model has to have: every one of `scenetx.models` does."""

    metric: bool

    def map(
        self, images: Float[Tensor, "n h w 3"], *, capacity: int | None = None, dtype: torch.dtype = torch.float32
    ) -> KVCache:
        """All pictures together, remembered."""
        ...

    def step(
        self, image: Float[Tensor, "h w 3"], cache: KVCache, *, dense: bool = True, keep: bool = False
    ) -> Geometry:
        """One picture against what was remembered."""
        ...


@dataclass(frozen=True)
class Eye:
    """A geometry model and the sizes it looks at. ``tells_focal``: a camera-only step also says the focal length."""

    name: str
    model: MapModel
    rule: SizeRule
    tells_focal: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class KvMap:
    """A map that frames can be placed in. It is replaced as a whole, never changed (but for the cache's spare slots).

    ``world_from_map``: from the model's frame and scale to the world that callers see. ``fit``: how far the keyframes
    that were known before lie from where they were (see `align`), 0 = exactly.
    """

    cache: KVCache
    keyframes: tuple[Keyframe, ...]
    world_from_map: Sim3
    model: str
    fit: float = 0.0
    source: str = ""
    """Mark of the scene it was made of, if it was made of one."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures the model sees."""
        height, width = self.cache.notes["size"].tolist()
        return int(height), int(width)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, and of the keyframes' pictures."""
        return self.cache.nbytes + sum(keyframe.picture.nbytes for keyframe in self.keyframes)

    def save(self, folder: str | Path) -> Path:
        """Two files in a folder; a map read back gives the same poses to the last bit. Gives the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for number, keyframe in enumerate(self.keyframes):
            for name in ("picture", "K", "world_from_cam", "grid_lens", "depth", "grey"):
                tensors[f"{number}.{name}"] = getattr(keyframe, name).contiguous()
        tensors["rotation"], tensors["translation"] = self.world_from_map.rotation, self.world_from_map.translation
        about = {
            "model": self.model, "fit": self.fit, "source": self.source, "scale": self.world_from_map.scale,
            "keyframes": [[frame.index, frame.confidence, frame.name] for frame in self.keyframes],
        }  # fmt: skip
        # The same mark in both files: halves of two maps are not taken for one.
        mark = torch.tensor(list(uuid.uuid4().bytes), dtype=torch.uint8)
        self.cache.notes["mark"] = tensors["mark"] = mark
        with replacing_path(folder / KEYFRAMES_FILE) as part:
            write_tensors(part, tensors, {"format": FORMAT, "about": json.dumps(about)})
            self.cache.save(folder / CACHE_FILE)
        return folder

    @staticmethod
    def load(folder: str | Path, *, device: str = "cpu") -> KvMap:
        """Read what `save` wrote. Raises InputError for files that are missing, broken or of two different maps."""
        path = Path(folder) / KEYFRAMES_FILE
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise InputError(str(path), "not a map's keyframes", f"give a folder that holds {FORMAT}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(header["about"])
            keyframes = tuple(_keyframe(tensors, number, entry) for number, entry in enumerate(about["keyframes"]))
            world_from_map = Sim3(float(about["scale"]), tensors["rotation"], tensors["translation"])
            model, fit, source = str(about["model"]), float(about["fit"]), str(about["source"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(str(path), error, "give a folder that KvMap.save wrote") from error
        cache = KVCache.load(Path(folder) / CACHE_FILE, device=device)
        mark = cache.notes.get("mark")
        if mark is None or not torch.equal(mark.cpu(), tensors["mark"]) or cache.views != len(keyframes):
            raise InputError(str(folder), "keys and keyframes are of different maps", "map again")
        return KvMap(cache, keyframes, world_from_map, model, fit, source)

    def scene(self) -> Scene:
        """The keyframes as a scene of posed pictures, for `Scene.save` and `scenetx reconstruct`."""
        views = []
        for frame in self.keyframes:
            height, width = frame.picture.shape[:2]
            name = frame.name or f"{frame.index:06d}.png"
            camera = Cameras(frame.world_from_cam[None], frame.K[None], height, width)
            views.append(View(name, frame.picture, Original(name, height, width, frame.K), camera))
        return Scene(tuple(views), source=f"tracked with {self.model}", posed_by="model")


def _keyframe(tensors: dict[str, Tensor], number: int, entry: Sequence[Any]) -> Keyframe:
    index, confidence, name = entry
    parts = {
        part: tensors[f"{number}.{part}"] for part in ("picture", "K", "world_from_cam", "grid_lens", "depth", "grey")
    }
    return Keyframe(index=int(index), confidence=float(confidence), name=str(name), **parts)


def open_eye(model: str, *, weights: str = "hub", side: int = 0, device: str = "auto") -> Eye:
    """A geometry model by name (``da3-small``, ``pi3``, ...) or by its weight file.

    side: longest side (pixel budget, for models that have one, as its square times 3/4) of what the model looks at;
    0 = as published. Smaller is faster. device: auto = the first CUDA device, else the CPU. Raises InputError for
    unknown names, models that make pictures, and missing weights (never goes online).
    """
    meant = find_geometry(model, weights)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    module: Any = meant.load(device)
    rule = meant.rule
    if side:
        rule = replace(rule, longest=side, pixels=None if rule.pixels is None else side * side * 3 // 4)
    return Eye(meant.name, module, rule, tells_focal=meant.family in ("da3", "vggt"), device=device)


def unplaced(
    index: int, picture: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], *, name: str = "", confidence: float = 1.0
) -> Keyframe:
    """A picture that a map is yet to place."""
    eye, none = torch.eye(4, dtype=torch.float64), torch.zeros(0, 0)
    return Keyframe(index, picture, K.double(), eye, torch.eye(3, dtype=torch.float64), none, none, confidence, name)


@torch.no_grad()
def build_map(
    eye: Eye,
    keyframes: Sequence[Keyframe],
    known: Sequence[bool],
    *,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> KvMap:
    """One map of all keyframes, put where the ``known`` ones were: their places and scale do not jump.

    keyframes: one or more, ``known`` says whose ``world_from_cam`` (and ``depth``, if any) hold. With none known the
    first camera is the world's origin and the model's unit is the world's. size: of what the model sees; None = by the
    model's rule. Raises InputError for no keyframes, pictures of clashing shapes, or too little memory.
    """
    if not keyframes:
        raise InputError("map", "no pictures", "give one or more")
    images, windows = to_model([keyframe.picture for keyframe in keyframes], eye.rule, size)
    height, width = images.shape[1:3]
    if eye.device == "cpu" and isinstance(eye.model, torch.nn.Module) and hasattr(eye.model, "config"):
        check_fits(eye.name, need(eye.model, height, width), len(images), available_memory())
    cache = eye.model.map(images.to(eye.device), capacity=len(images) + SPARE, dtype=dtype)
    assert cache.geometry is not None
    geometry = at_home(cache.geometry)
    # What the model said of every pixel is not needed any more, and large.
    cache.geometry = None
    placed = [
        _seen(keyframe, image, geometry, number, _grid_K(eye, geometry.cameras, number, keyframe, window))
        for number, (keyframe, image, window) in enumerate(zip(keyframes, images, windows, strict=True))
    ]
    old = [index for index, is_known in enumerate(known) if is_known]
    if old:
        world_from_map, fit = align([keyframes[index] for index in old], [placed[index] for index in old])
    else:
        first = invert_rigid(placed[0].world_from_cam)
        world_from_map, fit = Sim3(1.0, first[:3, :3], first[:3, 3]), 0.0
    return KvMap(cache, tuple(moved(frame, world_from_map) for frame in placed), world_from_map, eye.name, fit)


def at_home(geometry: Geometry) -> Geometry:
    """What is kept of an answer, on the CPU."""
    depth, sure = geometry.depth, geometry.confidence
    return Geometry(
        geometry.cameras.to("cpu"), None if depth is None else depth.cpu(), None if sure is None else sure.cpu()
    )


def _grid_K(eye: Eye, cameras: Cameras, index: int, keyframe: Keyframe, window: Window) -> Float[Tensor, "3 3"]:
    """The model's own intrinsics where it states them (they fit its depth), else the given ones; for the grid."""
    K = cameras.K[index].double() if eye.tells_focal else window.K_for_model(keyframe.K)
    return torch.diag(K.new_tensor([1 / CELL, 1 / CELL, 1.0])) @ K


def _seen(
    keyframe: Keyframe, image: Float[Tensor, "h w 3"], geometry: Geometry, index: int, grid_lens: Float[Tensor, "3 3"]
) -> Keyframe:
    """A keyframe as the model sees it, in the model's frame. Of its depth only what is not among the least sure."""
    rows, columns = image.shape[0] // CELL, image.shape[1] // CELL
    depth = torch.zeros(rows, columns)
    if geometry.depth is not None:
        middle = CELL // 2
        depth = geometry.depth[index, middle::CELL, middle::CELL][:rows, :columns].float().clone()
        good = depth.isfinite() & (depth > 0)
        if geometry.confidence is not None:
            sure = geometry.confidence[index, middle::CELL, middle::CELL][:rows, :columns].float()
            good &= sure >= torch.quantile(sure.flatten(), 0.2)
        depth = torch.where(good, depth, 0.0)
    pose = geometry.cameras.world_from_cam[index].double().clone()
    return replace(keyframe, world_from_cam=pose, grid_lens=grid_lens, depth=depth, grey=coarse_grey(image, CELL))


def moved(keyframe: Keyframe, a_from_b: Sim3) -> Keyframe:
    """A keyframe of frame b in frame a."""
    pose = a_from_b.apply_to_poses(keyframe.world_from_cam)
    return replace(keyframe, world_from_cam=pose, depth=keyframe.depth * a_from_b.scale)


def align(reference: Sequence[Keyframe], estimate: Sequence[Keyframe]) -> tuple[Sim3, float]:
    """``reference_from_estimate`` of the same keyframes in two frames, robustly, and how badly it fits.

    Rotations and places as in `align_cameras`. Where all stand (almost) in one place, the ratio of the depths they see
    tells the scale, which places cannot. The misfit is the median distance over depth plus the median angle in radians.
    """
    target = torch.stack([keyframe.world_from_cam for keyframe in reference])
    source = torch.stack([keyframe.world_from_cam for keyframe in estimate])
    sim3 = align_cameras(target, source)
    depth = torch.tensor([frame.middle_depth for frame in reference], dtype=torch.float64).median()
    centers = target[:, :3, 3]
    extent = (centers - centers.mean(0)).norm(dim=-1).max()
    ratio = _depth_ratio(reference, estimate)
    if ratio is not None and extent < BASELINE * depth:
        turned = source[:, :3, 3] @ sim3.rotation.T
        shift = (centers - ratio * turned).median(0).values
        sim3 = Sim3(ratio, sim3.rotation, shift)
    elif ratio is None and extent < 1e-6 * depth:
        sim3 = replace(sim3, scale=1.0)
    found = sim3.apply_to_poses(source)
    away = (found[:, :3, 3] - centers).norm(dim=-1).median() / depth
    turn = rotation_angle(found[:, :3, :3].transpose(-1, -2) @ target[:, :3, :3]).median()
    return sim3, float(away + turn)


def _depth_ratio(reference: Sequence[Keyframe], estimate: Sequence[Keyframe]) -> float | None:
    """Median over keyframes of the median ratio of depths; None where too little is known in both."""
    ratios = []
    for a, b in zip(reference, estimate, strict=True):
        if a.depth.shape != b.depth.shape:
            continue
        both = (a.depth > 0) & (b.depth > 0)
        if int(both.sum()) >= 16:
            ratios.append((a.depth[both].double() / b.depth[both].double()).median())
    return float(torch.stack(ratios).median()) if ratios else None
