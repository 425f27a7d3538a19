"""Cameras and depth of pictures by a geometry model: in one pass where memory allows, else in joined chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, InputError, Sim3, View, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.geometry.chunks import Link, align_points, alike, plan_chunks, settle
from scenetx.geometry.lift import LiftSettings, normalize_cameras
from scenetx.models.geometry import Geometry
from scenetx.models.memory import GIB, available_memory, check_fits, need, pictures_that_fit
from scenetx.models.open_geometry import find_geometry
from scenetx.models.pictures import (
    MOST_CROPPED,
    SizeRule,
    Window,
    cameras_for_model,
    lost_share,
    to_model,
    window_for,
)

Estimator = Callable[[Float[Tensor, "n h w 3"], Cameras | None], Geometry]
Say = Callable[[str, float], None]
TRUSTED_FIT = 0.1  # median distance over extent up to which two chunks are taken to show the same thing
STRIDE = 4  # every so many pixels of a shared picture take part in joining


@dataclass(frozen=True)
class PredictSettings:
    """How a geometry model is used."""

    weights: str = "hub"
    """"hub": the fetched weights of the model's name; else a file."""
    chunk: int = 0
    """Pictures looked at together, at most; 0 = as many as fit into memory, at most 120."""
    overlap: int = 12
    """Pictures that neighbouring chunks share, at most half a chunk."""
    loops: int = 8
    """Places seen again, at most, that are used to settle the chunks."""
    refine: bool = True
    """Refine the predicted cameras by bundle adjustment, and keep what explains the matches best."""
    lift: LiftSettings = field(default_factory=LiftSettings)


@dataclass(frozen=True)
class Predictor:
    """A model ready to look at pictures. ``takes_cameras``: given cameras are of use to it."""

    name: str
    estimate: Estimator
    rule: SizeRule
    module: nn.Module | None = None
    takes_cameras: bool = False
    metric: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Prediction:
    """Of one picture: camera, depth (z) and confidence at the model's pixels, and where these lie in the picture."""

    camera: Cameras
    depth: Float[Tensor, "h w"]
    confidence: Float[Tensor, "h w"]
    window: Window


@dataclass(frozen=True)
class Piece:
    """A chunk's answer in the chunk's own frame."""

    indices: tuple[int, ...]
    geometry: Geometry


def open_predictor(name: str, settings: PredictSettings) -> Predictor:
    """The model of this name with its weights, on a CUDA device where there is one with room for twice these.

    Raises InputError as `find_geometry` and loading do; never goes online.
    """
    meant = find_geometry(name, settings.weights)
    free = available_memory()
    if meant.megabytes * 1e6 > free:
        what = f"{name}: weights of {meant.megabytes:,.0f} MB, {free / GIB:.1f} GiB are free"
        raise InputError("memory", what, "take a smaller model (scenetx models list)")
    roomy = torch.cuda.is_available() and 2 * meant.megabytes * 1e6 < available_memory("cuda")
    device = "cuda" if roomy else "cpu"
    module = meant.load(device)
    takes = "cameras" in module.takes

    def estimate(images: Tensor, cameras: Cameras | None) -> Geometry:
        given = None if cameras is None or not takes else cameras.to(device)
        with torch.inference_mode():
            return replace(module(images.to(device), given), published={}).to("cpu")

    return Predictor(name, estimate, meant.rule, module, takes, bool(module.metric), device)


def of_one_shape(views: Sequence[View], rule: SizeRule) -> tuple[list[View], list[View]]:
    """The views that fit into the common shape, and those that would lose more than half of themselves in it."""
    size = rule.common([(view.height, view.width) for view in views])
    fits = [lost_share(window_for(view.height, view.width, size), size) <= MOST_CROPPED for view in views]
    kept = [view for view, good in zip(views, fits, strict=True) if good]
    return kept, [view for view, good in zip(views, fits, strict=True) if not good]


def predict(
    views: Sequence[View], predictor: Predictor, settings: PredictSettings, say: Say, notes: list[str], *, posed: bool
) -> list[Prediction]:
    """Every view's camera, depth and confidence in one frame, the model's (of the given cameras when ``posed``)."""
    sizes = [(view.height, view.width) for view in views]
    size = predictor.rule.common(sizes)
    chunks = _chunks(predictor, settings, len(views), size, notes)
    pieces = []
    for number, chunk in enumerate(chunks):
        say(f"{predictor.name}, {len(views)} pictures", number / len(chunks))
        pieces.append(_look(views, tuple(chunk), predictor, size, posed=posed))
    poses = [Sim3.identity()] * len(pieces)
    if len(pieces) > 1 and not posed:
        poses = _join(views, pieces, predictor, size, settings, notes)
    windows = [window_for(height, width, size) for height, width in sizes]
    return _merged(pieces, poses, windows)


def _chunks(
    predictor: Predictor, settings: PredictSettings, pictures: int, size: tuple[int, int], notes: list[str]
) -> list[range]:
    """As many pictures at a time as fit; what that takes is said."""
    most = settings.chunk or 120
    if predictor.module is not None:
        needed, free = need(predictor.module, *size), available_memory(predictor.device)
        # Half of what is free: other programs and the fitting that follows live here too.
        fits = pictures_that_fit(needed, free // 2)
        if min(pictures, most) > fits and fits < 4:
            check_fits(predictor.name, needed, min(pictures, 4), free // 2)
        most = min(most, max(fits, 1))
        together = min(pictures, most)
        estimate = (
            f"about {needed.total(together) / GIB:.1f} GiB for {together} pictures of {size[1]}x{size[0]} at once"
        )
        notes.append(f"{predictor.name}: {estimate}")
    if pictures <= most:
        return [range(pictures)]
    if most < 4:
        raise InputError("chunk", most, "give 4 or more, or fewer pictures than it")
    chunks = plan_chunks(pictures, most, max(2, min(settings.overlap, most // 2)))
    notes.append(f"{len(chunks)} chunks of {most} pictures")
    return chunks


def _look(
    views: Sequence[View], indices: tuple[int, ...], predictor: Predictor, size: tuple[int, int], *, posed: bool
) -> Piece:
    """One pass over some views; given cameras go in and their frame comes out."""
    batch, windows = to_model([views[index].image for index in indices], predictor.rule, size)
    if not posed:
        return Piece(indices, _light(predictor.estimate(batch, None)))
    cameras = [camera for index in indices if (camera := views[index].camera) is not None]
    normal, back = normalize_cameras(cameras_for_model(cameras, windows, size))
    given = normal.to(torch.float32) if predictor.takes_cameras else None
    geometry = _light(predictor.estimate(batch, given))
    return Piece(indices, _in_given_frame(geometry, cameras_for_model(cameras, windows, size), back.scale))


def _light(geometry: Geometry) -> Geometry:
    """Only what is needed later."""
    return replace(geometry, points=None, published={}, cameras=geometry.cameras.to(torch.float64))


def _in_given_frame(geometry: Geometry, given: Cameras, scale: float) -> Geometry:
    """The depth under the given cameras: scaled by how far apart the found and the given ones are."""
    found = geometry.cameras.centers
    apart = (found[1:] - found[:1]).norm(dim=-1).median() if len(found) > 1 else torch.tensor(0.0)
    unit = float(scale / apart) if float(apart) > 1e-6 else 1.0
    depth = None if geometry.depth is None else geometry.depth * unit
    return replace(geometry, cameras=given, depth=depth)


def _join(
    views: Sequence[View],
    pieces: Sequence[Piece],
    predictor: Predictor,
    size: tuple[int, int],
    settings: PredictSettings,
    notes: list[str],
) -> list[Sim3]:
    """``world_from_chunk`` of every chunk, neighbours and loops agreeing as well as they can."""
    links = []
    for index, (before, after) in enumerate(pairwise(pieces)):
        sim3, fit = _between(before, after)
        links.append(Link(index, index + 1, sim3))
        if fit > TRUSTED_FIT:
            notes.append(f"chunks {index} and {index + 1} fit badly ({100 * fit:.0f}% of the depth)")
    loops = _loops(views, pieces, predictor, size, settings)
    if loops:
        notes.append(f"{len(loops)} loops closed")
    return settle([*links, *loops], len(pieces))


def _loops(
    views: Sequence[View],
    pieces: Sequence[Piece],
    predictor: Predictor,
    size: tuple[int, int],
    settings: PredictSettings,
) -> list[Link]:
    """Pictures that look alike in chunks that share none: the model looks at both places together and decides."""
    if settings.loops < 1 or len(pieces) < 3:
        return []
    length = len(pieces[0].indices)
    thumbnails = torch.stack([_thumbnail(view) for view in views])
    links = []
    for a, b in alike(thumbnails, length, settings.loops):
        first = next(i for i, piece in enumerate(pieces) if a in piece.indices)
        second = next(i for i, piece in reversed(list(enumerate(pieces))) if b in piece.indices)
        if second <= first + 1:
            continue
        reach = max(1, min(length // 4, 8))
        near_a = [index for index in pieces[first].indices if abs(index - a) <= reach]
        near_b = [index for index in pieces[second].indices if abs(index - b) <= reach]
        joint = _look(views, (*near_a, *near_b), predictor, size, posed=False)
        one, fit_one = _between(pieces[first], joint)
        two, fit_two = _between(pieces[second], joint)
        if max(fit_one, fit_two) <= TRUSTED_FIT:
            links.append(Link(first, second, one @ two.inverse()))
    return links


def _thumbnail(view: View) -> Float[Tensor, "d"]:
    grey = view.image.float().mean(-1)[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(grey, (12, 16)).flatten()


def _between(target: Piece, source: Piece) -> tuple[Sim3, float]:
    """The similarity from one chunk's frame to another's by the pictures both have seen, and how well it fits."""
    shared = sorted(set(target.indices) & set(source.indices))
    there, here, trust = [], [], []
    for index in shared:
        a, b = target.indices.index(index), source.indices.index(index)
        there.append(_world_points(target.geometry, a))
        here.append(_world_points(source.geometry, b))
        trust.append((_trust(target.geometry, a) * _trust(source.geometry, b)).sqrt())
    return align_points(torch.cat(there), torch.cat(here), torch.cat(trust))


def _world_points(geometry: Geometry, index: int) -> Float[Tensor, "m 3"]:
    assert geometry.depth is not None
    height, width = geometry.depth.shape[1:]
    pixels = pixel_grid(height, width, dtype=torch.float64)[::STRIDE, ::STRIDE].flatten(0, 1)
    depth = geometry.depth[index, ::STRIDE, ::STRIDE].flatten().double()
    return unproject(pixels[None], depth[None], geometry.cameras[index])[0]


def _trust(geometry: Geometry, index: int) -> Float[Tensor, "m"]:
    """Confidence; nothing for the less sure half and for what is very far."""
    assert geometry.depth is not None
    depth = geometry.depth[index, ::STRIDE, ::STRIDE].flatten()
    sure = torch.ones_like(depth)
    if geometry.confidence is not None:
        sure = geometry.confidence[index, ::STRIDE, ::STRIDE].flatten()
        sure = torch.where(sure >= sure.median(), sure, 0.0)
    return torch.where((depth > 0) & (depth < 5 * depth.median()), sure, 0.0)


def _merged(pieces: Sequence[Piece], poses: Sequence[Sim3], windows: Sequence[Window]) -> list[Prediction]:
    """Each picture from the chunk in which it is farthest from the ends."""
    best: dict[int, tuple[int, int, int]] = {}
    for number, piece in enumerate(pieces):
        for place, index in enumerate(piece.indices):
            margin = min(place, len(piece.indices) - 1 - place)
            if index not in best or margin > best[index][0]:
                best[index] = (margin, number, place)
    out = []
    for index, window in enumerate(windows):
        _, number, place = best[index]
        geometry, pose = pieces[number].geometry, poses[number]
        assert geometry.depth is not None
        camera = geometry.cameras[place]
        camera = replace(camera, world_from_cam=pose.apply_to_poses(camera.world_from_cam))
        depth = geometry.depth[place] * pose.scale
        confidence = torch.ones_like(depth) if geometry.confidence is None else geometry.confidence[place]
        out.append(Prediction(camera, depth, confidence, window))
    return out
