"""Training a scene's student: in minutes, on a CPU, from posed pictures and their depth."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, InputError, Scene, View, project, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.geometry.align import align_cameras
from scenetx.live.classical_map import FOLDER
from scenetx.live.kept import scene_mark
from scenetx.live.kv_map import Eye, at_home
from scenetx.live.kv_tracker import scene_depth
from scenetx.live.student import (
    CELL,
    CoordinateNet,
    Student,
    StudentReport,
    StudentShape,
    evened,
    examine,
    halved,
    network_size,
)
from scenetx.models.pictures import to_model

STUDENT_FILE = "student.safetensors"
Say = Callable[[str, float], None]


@dataclass(frozen=True)
class StudentSettings:
    """How a student is trained. Angles in degrees."""

    shape: StudentShape = field(default_factory=StudentShape)
    steps: int = 1500
    seconds: float = 0.0
    """Stop after this time instead (the learning rate follows); 0 = after ``steps``."""
    batch: int = 4
    rate: float = 3e-3
    parts: float = 0.5
    """Weight, at the beginning, of telling the scene's parts apart."""
    zoom: float = 1.3
    """Pictures are enlarged or reduced by up to this."""
    turn: float = 12.0
    light: float = 0.25
    """Contrast, and brightness as a share of it, vary by up to this."""
    seed: int = 0


@dataclass(frozen=True)
class Lessons:
    """All pictures in the network's size (``n`` of them, float, before evening), and what is known of their pixels.

    places: scene coordinates (normalised) at cells of the pictures' pixels, NaN = unknown; K for these pixels.
    """

    images: Float[Tensor, "n 3 h w"]
    places: Float[Tensor, "n h w 3"]
    K: Float[Tensor, "n 3 3"]
    cam_from_place: Float[Tensor, "n 4 4"]  # the normalised world
    center: Float[Tensor, "3"]
    radius: float
    depth: float  # typical, normalised


def train_student(
    scene: Scene, settings: StudentSettings | None = None, say: Say | None = None, *, test: Sequence[View] | None = None
) -> Student:
    """A student of the scene's training views, examined on its held-out ones (or on ``test``).

    Teacher: the views' depth maps, else the scene's points; where a pixel has none, the known cameras alone
    (reprojection). Raises InputError
    for fewer than two posed pictures. ``say`` hears a line and the share done.
    """
    settings = settings or StudentSettings()
    views = [view for view in (scene.training or scene.registered) if view.camera is not None]
    if len(views) < 2:
        raise InputError(scene.source or "scene", f"{len(views)} posed pictures", "reconstruct it first")
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        points = None if scene.points is None or not len(scene.points) else scene.points.positions
        lessons = prepare_lessons(views, settings.shape.side, scene_depth(scene, views), points)
        net = CoordinateNet(settings.shape, _anchors(lessons, settings.shape.anchors))
        notes = _train(net, lessons, settings, say or _silent)
    student = Student(halved(net), settings.shape, lessons.center, lessons.radius)
    seconds = time.perf_counter() - begin
    held_out = list(scene.held_out if test is None else test)
    figures = examine(student, held_out, lessons.depth * lessons.radius) if held_out else {}
    student.report = StudentReport(student.megabytes, seconds, len(views), notes=notes, **figures)
    return student


def open_student(
    scene: Scene, folder: str | Path, settings: StudentSettings | None = None, say: Say | None = None
) -> Student:
    """The student kept in a scene's folder, if it is of these cameras; else it is trained, and kept there."""
    settings = settings or StudentSettings()
    folder = Path(folder)
    path = (folder.parent if folder.name == "scene.json" else folder) / FOLDER / STUDENT_FILE
    source = scene_mark(scene, settings)
    if path.is_file():
        with contextlib.suppress(InputError):
            kept = Student.load(path)
            if kept.report.source == source:
                return kept
    student = train_student(scene, settings, say)
    student.report = replace(student.report, source=source)
    # A scene on a read-only or full disk can still be tracked in.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        student.save(path)
    return student


@torch.no_grad()
def with_teacher(scene: Scene, eye: Eye, *, chunk: int = 16) -> Scene:
    """The scene with a geometry model's depth on its posed pictures, ``chunk`` at a time, scaled to their cameras.

    For scenes that have cameras but no depth maps. Raises InputError where the model or `to_model` does.
    """
    posed = [index for index, view in enumerate(scene.views) if view.camera is not None]
    views = list(scene.views)
    # Every n-th picture together, so that the cameras of each chunk stand apart.
    parts = max(1, math.ceil(len(posed) / chunk))
    for start in range(parts):
        chosen = posed[start::parts]
        images, windows = to_model([views[index].image for index in chosen], eye.rule)
        said = eye.model.map(images.to(eye.device)).geometry
        assert said is not None
        geometry = at_home(said)
        if geometry.depth is None:
            raise InputError(eye.name, "says no depth", "use a model that does")
        true = torch.cat([camera.world_from_cam for index in chosen if (camera := views[index].camera) is not None])
        scale = align_cameras(true, geometry.cameras.world_from_cam).scale
        for row, index in enumerate(chosen):
            view = views[index]
            depth = windows[row].map_for_picture(geometry.depth[row].float() * scale, view.height, view.width)
            views[index] = replace(view, depth=depth)
    return replace(scene, views=tuple(views))


def prepare_lessons(
    views: Sequence[View], side: int, depth: float, points: Float[Tensor, "p 3"] | None = None
) -> Lessons:
    """Pictures of any sizes to one: each keeps its shape, shorter ones are padded. ``depth``: typical, for the rest.

    Depth of a pixel: the view's depth map, else of ``points`` (world) that fall near it.
    """
    sizes = [network_size(view.height, view.width, side) for view in views]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    images = torch.zeros(len(views), 3, height, width)
    places = torch.full((len(views), height, width, 3), torch.nan)
    K, poses = torch.zeros(len(views), 3, 3), []
    for row, (view, size) in enumerate(zip(views, sizes, strict=True)):
        camera = view.camera
        assert camera is not None
        channels = view.image.permute(2, 0, 1)[None].float() / 255
        small = nn.functional.interpolate(channels, size, mode="bilinear", antialias=True, align_corners=False)[0]
        images[row, :, : size[0], : size[1]] = small
        images[row, :, size[0] :] = images[row, :, :, size[1] :] = small.mean()
        ours = camera.to(torch.float64).resized(*size)
        K[row] = ours.K[0].float()
        poses.append(ours.world_from_cam[0])
        if view.depth is not None or points is not None:
            z = _depth_of(view, points, ours)
            shown = unproject(
                pixel_grid(*size, dtype=torch.float64).flatten(0, 1)[None], z.double().flatten()[None], ours
            )
            here = shown[0].view(*size, 3).float()
            if view.mask is not None:
                mask = nn.functional.interpolate(view.mask[None, None].float(), size, mode="nearest-exact")[0, 0]
                z = z * mask
            places[row, : size[0], : size[1]] = torch.where((z > 0)[..., None], here, torch.nan)
    world_from_cam = torch.stack(poses)
    return _normalised(images, places, K, world_from_cam, depth)


def _depth_of(view: View, points: Float[Tensor, "p 3"] | None, camera: Cameras) -> Float[Tensor, "h w"]:
    """z at the camera's pixels, 0 = unknown. Points stand for the 5 x 5 pixels around them, the nearest for each."""
    size = (camera.height, camera.width)
    if view.depth is not None:
        return nn.functional.interpolate(view.depth[None, None].float(), size, mode="nearest-exact")[0, 0]
    assert points is not None
    pixels, z = project(points.double(), camera)
    column, row = pixels[0].floor().clamp(-1, max(size)).long().unbind(-1)
    seen = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < size[1]) & (row < size[0])
    table = torch.full((size[0] * size[1],), torch.inf)
    table.scatter_reduce_(0, row[seen] * size[1] + column[seen], z[0, seen].float(), "amin")
    near = -nn.functional.max_pool2d(-table.view(1, 1, *size), 5, stride=1, padding=2)[0, 0]
    # What lies well behind its neighbours is hidden by their surface.
    front = -nn.functional.max_pool2d(-near[None, None], 17, stride=1, padding=8)[0, 0]
    return torch.where(near.isfinite() & (near < 1.3 * front), near, 0.0)


def _normalised(
    images: Float[Tensor, "n 3 h w"],
    places: Float[Tensor, "n h w 3"],
    K: Float[Tensor, "n 3 3"],
    world_from_cam: Float[Tensor, "n 4 4"],
    depth: float,
) -> Lessons:
    """Coordinates about the scene's middle, in units of its radius."""
    points = places.flatten(0, 2)[:: max(1, places.numel() // 600_000)].double()
    points = points[points.isfinite().all(-1)]
    if len(points) < 100:
        # No depth at all: the middle is what the cameras look at, from as far as is typical.
        points = world_from_cam[:, :3, 3] + depth * world_from_cam[:, :3, 2]
    center = points.median(0).values
    radius = max(float(torch.quantile((points - center).norm(dim=-1), 0.8)), 0.1 * depth)
    moved = world_from_cam.clone()
    moved[:, :3, 3] = (moved[:, :3, 3] - center) / radius
    cam_from_place = Cameras(moved, K.double(), 1, 1).cam_from_world.float()
    places = (places - center.float()) / radius
    # Very far pixels (the sky of a depth map) would pull the fit; their direction is still learnt from the camera.
    far = places.norm(dim=-1, keepdim=True) > 20
    places = torch.where(far, torch.nan, places)
    return Lessons(images, places, K, cam_from_place, center, radius, depth / radius)


def _anchors(lessons: Lessons, count: int) -> Float[Tensor, "k 3"]:
    """Centres of the scene's parts: k-means (Lloyd, 12 rounds) of known places; along the views without any."""
    points = lessons.places.flatten(0, 2)
    points = points[points.isfinite().all(-1)]
    if len(points) < 10 * count:
        inverse = torch.linalg.inv(lessons.cam_from_place)
        reach = lessons.depth * (0.5 + torch.rand(10 * count, 1))
        rows = torch.randint(len(inverse), (10 * count,))
        spray = torch.cat([0.5 * torch.randn(10 * count, 2), torch.ones(10 * count, 1)], -1) * reach
        points = (inverse[rows, :3, :3] @ spray[..., None])[..., 0] + inverse[rows, :3, 3]
    points = points[torch.randperm(len(points))[:8000]]
    centers = points[torch.randperm(len(points))[:count]].clone()
    for _ in range(12):
        owner = torch.cdist(points, centers).argmin(-1)
        total = torch.zeros_like(centers).index_add_(0, owner, points)
        number = torch.zeros(len(centers)).index_add_(0, owner, torch.ones(len(points)))
        centers = torch.where(number[:, None] > 0, total / number.clamp_min(1)[:, None], centers)
    return centers


def _train(net: CoordinateNet, lessons: Lessons, settings: StudentSettings, say: Say) -> tuple[str, ...]:
    """Adam with one rise and fall of the rate (by steps, or by the clock)."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=1e-3)
    net.train()
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    begin, step = time.perf_counter(), 0
    smooth = math.nan
    while True:
        done = (time.perf_counter() - begin) / settings.seconds if settings.seconds > 0 else step / settings.steps
        if done >= 1:
            break
        rate = settings.rate * min(1.0, done / 0.05 + 0.05) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch, where, rows = _augmented(lessons, settings)
        loss, error = _loss(net, batch, where, rows, lessons, settings, done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        step += 1
        smooth = error if math.isnan(smooth) else 0.98 * smooth + 0.02 * error
        if step % 20 == 0:
            say(f"student: {step} steps, {smooth:.1f} px", done)
    return (
        f"{step} steps of {settings.batch} pictures",
        f"median training error {smooth:.2f} px of {settings.shape.side}",
    )


def _augmented(
    lessons: Lessons, settings: StudentSettings
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b r c 2"], Tensor]:
    """Pictures turned, zoomed, shifted and lit anew; where (pixels of the lesson) each cell looks; which lessons."""
    count, (height, width) = settings.batch, lessons.images.shape[-2:]
    rows = torch.randint(len(lessons.images), (count,))
    angle = torch.deg2rad(settings.turn * (2 * torch.rand(count) - 1))
    zoom = torch.exp(math.log(settings.zoom) * (2 * torch.rand(count) - 1))
    cos, sin, aspect = angle.cos() / zoom, angle.sin() / zoom, height / width
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos, -sin * aspect
    theta[:, 1, 0], theta[:, 1, 1] = sin / aspect, cos
    # The middle may move by what the zoom cuts off, and a little more.
    theta[:, :, 2] = (2 * torch.rand(count, 2) - 1) * ((1 - 1 / zoom).clamp_min(0) + 0.1)[:, None]
    grid = nn.functional.affine_grid(theta, [count, 3, height, width], align_corners=False)
    images = nn.functional.grid_sample(lessons.images[rows], grid, padding_mode="border", align_corners=False)
    contrast = torch.exp(
        settings.light * (2 * torch.rand(count, 3, 1, 1) - 1) * torch.tensor([1.0, 0.3, 0.3])[:, None, None]
    )
    images = evened(images * contrast) + settings.light * (2 * torch.rand(count, 1, 1, 1) - 1)
    images = images + 0.03 * torch.randn_like(images)
    cells = nn.functional.affine_grid(theta, [count, 3, height // CELL, width // CELL], align_corners=False)
    where = (cells + 1) / 2 * torch.tensor([width, height])
    return images.contiguous(memory_format=torch.channels_last), where, rows


def _loss(
    net: CoordinateNet,
    images: Float[Tensor, "b 3 h w"],
    where: Float[Tensor, "b r c 2"],
    rows: Tensor,
    lessons: Lessons,
    settings: StudentSettings,
    done: float,
) -> tuple[Float[Tensor, ""], float]:
    """Laplace likelihood of the error with the network's own spread: what cannot be known costs little, if admitted.

    And, to begin with, which of the anchors is nearest: which part of the scene it is, is learnt faster than where.
    """
    places, spread, logits = net(images)
    height, width = images.shape[-2:]
    inside = (where >= 0).all(-1) & (where[..., 0] < width) & (where[..., 1] < height)
    x, y = where[..., 0].clamp(0, width - 1).long(), where[..., 1].clamp(0, height - 1).long()
    true = lessons.places[rows[:, None, None], y, x]
    error = _pixels_off(places, true, where, rows, lessons, done)
    loss = (error * torch.exp(-spread) + spread)[inside].mean()
    sure = inside & true.isfinite().all(-1)
    if settings.parts > 0 and sure.any():
        part = torch.cdist(true[sure], net.anchors).argmin(-1)
        loss = loss + settings.parts * (1 - done) * nn.functional.cross_entropy(logits[sure], part)
    return loss, float(error.detach()[inside].median())


def _pixels_off(
    places: Float[Tensor, "b r c 3"],
    true: Float[Tensor, "b r c 3"],
    where: Float[Tensor, "b r c 2"],
    rows: Tensor,
    lessons: Lessons,
    done: float,
) -> Float[Tensor, "b r c"]:
    """The error of places in pixels of the lessons.

    Of the place seen from the camera as a whole (distance over depth times focal length) where it is known, else of a
    place on the ray at the typical depth; and, as training goes on, of the reprojection alone, which is what PnP feels.
    """
    known = true.isfinite().all(-1)
    pose, K = lessons.cam_from_place[rows], lessons.K[rows, None, None]
    rotation, shift = pose[:, None, None, :3, :3], pose[:, None, None, :3, 3]
    focal = K[..., 0, 0]
    in_cam = (rotation @ places[..., None])[..., 0] + shift
    ray = torch.stack(
        [
            (where[..., 0] - K[..., 0, 2]) / focal,
            (where[..., 1] - K[..., 1, 2]) / K[..., 1, 1],
            torch.ones_like(where[..., 0]),
        ],
        -1,
    )
    there = (rotation @ torch.where(known[..., None], true, 0.0)[..., None])[..., 0] + shift
    there = torch.where(known[..., None], there, ray * lessons.depth)
    whole = (in_cam - there).norm(dim=-1) / there[..., 2].clamp_min(1e-3) * focal
    nearest = 0.1 * lessons.depth
    flat = focal * (in_cam[..., :2] / in_cam[..., 2:].clamp_min(nearest) - ray[..., :2]).norm(dim=-1)
    blend = torch.where(known, 0.7 * done, min(2 * done, 1.0))
    return torch.where(in_cam[..., 2] < nearest, whole, (1 - blend) * whole + blend * flat)


def _silent(label: str, fraction: float) -> None:
    pass
