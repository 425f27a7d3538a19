"""Camera paths through a scene: orbit, spiral, through the views, between keyframes.

Everything is in world units, computed in float64 and handed back in the dtype of the cameras it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from scenetx.core.cameras import Cameras, look_at, project
from scenetx.core.errors import InputError
from scenetx.core.rigid import quat_from_rotation, rigid, rotation_from_quat
from scenetx.core.scene import Scene, View

Order = Literal["auto", "given", "nearest"]
_Add = Callable[[Tensor, Tensor], Tensor]  # a point moved along a tangent
_Difference = Callable[[Tensor, Tensor], Tensor]  # the tangent from the second point to the first

FULL_CIRCLE_GAP = math.radians(120)  # a wider gap between neighbouring azimuths means nobody looked from there
FORWARD_FACING = math.radians(35)  # every camera this close to the mean direction = one window into the scene
FRAMES_PER_KEY = 6  # fewer frames between two keyframes would show hand shake instead of a path


@dataclass(frozen=True)
class Layout:
    """How the registered cameras stand: what they look at, which way is up, and whether they face it."""

    focus: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    near: float  # 5 % and 95 % quantile of the depths seen, world units
    far: float
    inward: bool  # most cameras have the focus in front of them


def orbit(scene: Scene, n: int, *, height: int | None = None, width: int | None = None) -> Cameras:
    """A loop around what the cameras look at, ``n`` frames, the end joining the start.

    Cameras all around: a circle of their median radius and height. Cameras on an arc: a swing along that arc and back.
    Cameras that all look the same way: an ellipse in their plane, inside the convex hull of their centres (one place
    only: a circle of 2 % of the look-at distance). Cameras that look outwards or past each other have nothing to
    circle: they get `through`. Collisions are not checked. Raises InputError without a registered view or frames.
    """
    cameras = _cameras(scene, n, height, width)
    layout = camera_layout(scene)
    if not layout.inward:
        return through(scene, n, height=height, width=width)
    centers, forward = cameras.centers, cameras.forward
    phase = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    mean_forward = normalize(forward.mean(0), dim=0)
    if bool((forward @ mean_forward > math.cos(FORWARD_FACING)).all()):
        eyes = _ellipse(centers, mean_forward, layout.focus, phase)
    else:
        eyes = _circle(centers, layout, phase)
    return _framed(scene, look_at(eyes, layout.focus, layout.up), cameras)


def spiral(scene: Scene, n: int, *, turns: float = 2.0, height: int | None = None, width: int | None = None) -> Cameras:
    """The spiral of forward-facing captures, ``n`` frames, about the average camera (LLFF, Mildenhall et al. 2019).

    The radii are the 90 % quantiles of the centres' offsets along the average camera's axes; all frames look at the
    point that LLFF calls the focus depth (between 0.9 near and 5 far in disparity). Not for cameras around an object.
    """
    cameras = _cameras(scene, n, height, width)
    layout = camera_layout(scene)
    centers = cameras.centers
    middle = centers.mean(0)
    forward = normalize(cameras.forward.mean(0), dim=0)
    if float(cameras.forward.mean(0).norm()) < 1e-6:
        forward = cameras.forward[0]
    average = look_at(middle[None], middle + forward, layout.up)[0]
    offsets = (centers - middle) @ average[:3, :3]
    radii = torch.quantile(offsets.abs(), 0.9, dim=0)
    close, far, blend = 0.9 * layout.near, 5 * layout.far, 0.75
    focus = middle + forward / ((1 - blend) / close + blend / far)
    theta = 2 * math.pi * turns * torch.arange(n, dtype=torch.float64) / n
    swing = torch.stack([theta.cos(), theta.sin(), (0.5 * theta).sin()], dim=-1) * radii
    return _framed(scene, look_at(middle + swing @ average[:3, :3].T, focus, layout.up), cameras)


def through(
    scene: Scene, n: int, *, order: Order = "auto", height: int | None = None, width: int | None = None
) -> Cameras:
    """A smooth flight of ``n`` frames through the registered views; its ends are the first and last of them.

    order "auto" keeps the views' order if that is a sensible walk (a video, a tour), and otherwise goes from neighbour
    to neighbour. With fewer than `FRAMES_PER_KEY` frames a view, only an even selection of the views is flown through.
    """
    cameras = _cameras(scene, n, height, width)
    index = _visiting_order(cameras, order)
    keep = min(len(index), max(2, n // FRAMES_PER_KEY))
    picks = torch.linspace(0, len(index) - 1, keep, dtype=torch.float64).round().long()
    keyframes = cameras[index[picks]]
    path = interpolate(keyframes, n)
    return replace(path, world_from_cam=path.world_from_cam.to(scene.world_from_cams.dtype))


def interpolate(keyframes: Cameras, n: int, *, closed: bool = False) -> Cameras:
    """``n`` cameras on a C1 curve through the keyframes, from the first to the last (closed: back to the first).

    Centripetal Catmull-Rom (Yuksel et al., 2011; a turn counts as a distance, so the camera may also turn on the spot),
    as cubic Bezier pieces: centres by de Casteljau, rotations by de Casteljau with slerp (Shoemake, 1985). K is blended
    linearly. Frames are even in the curve's parameter, not in speed. Raises InputError for no keyframe or no frame.
    """
    if n < 1 or len(keyframes) < 1:
        raise InputError("camera path", f"{len(keyframes)} keyframes, {n} frames", "give at least one of each")
    index = torch.arange(len(keyframes))
    if closed:
        index = torch.cat([index, index[:1]])
    dtype = keyframes.world_from_cam.dtype
    poses, K = keyframes.world_from_cam[index].double(), keyframes.K[index].double()
    if len(index) == 1:
        return replace(keyframes, world_from_cam=poses.expand(n, 4, 4).to(dtype), K=K.expand(n, 3, 3).to(dtype))
    centers, quats = poses[:, :3, 3], quat_from_rotation(poses[:, :3, :3])
    steps = _knot_steps(centers, quats)
    knots = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    frames = torch.arange(n, dtype=torch.float64) / (n if closed else max(n - 1, 1))
    times = frames * knots[-1]
    piece = (torch.searchsorted(knots, times, right=True) - 1).clamp(0, len(steps) - 1)
    u = ((times - knots[piece]) / steps[piece])[:, None].clamp(0, 1)
    eyes = _bezier(_controls(centers, steps, closed, _add, _difference), piece, u, _add, _difference)
    turns = _bezier(_controls(quats, steps, closed, _quat_add, _quat_difference), piece, u, _quat_add, _quat_difference)
    blend = K[piece] + u[..., None] * (K[piece + 1] - K[piece])
    world_from_cam = rigid(rotation_from_quat(turns), eyes)
    return replace(keyframes, world_from_cam=world_from_cam.to(dtype), K=blend.to(keyframes.K.dtype))


def camera_layout(scene: Scene) -> Layout:
    """What the registered cameras look at and which way is up. Raises InputError when there is no registered view.

    The focus is the point closest to all viewing rays with L1 weights (iteratively reweighted), drawn very weakly to
    the median depth of the scene's points, which decides where parallel rays do not.
    """
    cameras = _cameras(scene, 1, None, None)
    centers, forward = cameras.centers, cameras.forward
    near, middle, far = _depth_range(scene, cameras)
    prior = (centers + middle * forward).mean(0)
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    focus, pull = prior, 1e-3 * torch.eye(3, dtype=torch.float64)
    for _ in range(20):
        miss = (across @ (focus - centers)[:, :, None]).squeeze(-1).norm(dim=-1)
        weight = (1 / miss.clamp_min(1e-3 * middle))[:, None, None]
        weight = weight / weight.mean() / len(centers)
        normal = (weight * across).sum(0) + pull
        target = (weight * across @ centers[:, :, None]).sum(0).squeeze(-1) + pull @ prior
        focus = torch.linalg.solve(normal, target)
    in_front = ((focus - centers) * forward).sum(-1) > 0.05 * middle
    aimed = ((focus - centers) * forward).sum(-1) > 0.7 * (focus - centers).norm(dim=-1)
    inward = float((in_front & aimed).double().mean()) > 0.6
    return Layout(focus, up_axis(cameras), near, far, inward)


def up_axis(cameras: Cameras) -> Float[Tensor, "3"]:
    """The direction photographers call up: the mean of the cameras' -y axes.

    Where these cancel (pictures taken on their side all around an object), the normal of the plane the centres lie in.
    """
    mean = -cameras.world_from_cam[:, :3, 1].double().mean(0)
    if float(mean.norm()) > 0.25:
        return normalize(mean, dim=0)
    centers = cameras.centers.double()
    axis = torch.linalg.svd(centers - centers.mean(0), full_matrices=True).Vh[-1]
    return axis if float(axis @ mean) >= 0 else -axis


def _circle(centers: Float[Tensor, "m 3"], layout: Layout, phase: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
    """Eyes at the cameras' median radius and height about the focus, over the azimuths that the cameras cover."""
    offset = centers - layout.focus
    level = offset @ layout.up
    flat = offset - level[:, None] * layout.up
    radius = flat.norm(dim=-1)
    first = normalize(flat[int(radius.argmax())], dim=0)
    second = torch.linalg.cross(layout.up, first, dim=0)
    azimuth = torch.atan2(flat @ second, flat @ first).sort().values
    gaps = torch.diff(azimuth, append=azimuth[:1] + 2 * math.pi)
    widest = int(gaps.argmax())
    start = azimuth[(widest + 1) % len(azimuth)]
    if float(gaps[widest]) <= FULL_CIRCLE_GAP:
        angle = start + phase
    else:
        half = (2 * math.pi - gaps[widest]) / 2
        angle = start + half + 0.95 * half * phase.sin()
    ring = angle.cos()[:, None] * first + angle.sin()[:, None] * second
    return layout.focus + radius.median() * ring + level.median() * layout.up


def _ellipse(
    centers: Float[Tensor, "m 3"],
    forward: Float[Tensor, "3"],
    focus: Float[Tensor, "3"],
    phase: Float[Tensor, "n"],
) -> Float[Tensor, "n 3"]:
    """Eyes on the ellipse along the centres' principal axes, 0.9 times what their convex hull just holds."""
    middle = centers.mean(0)
    offset = centers - middle
    flat = offset - (offset @ forward)[:, None] * forward
    if float(flat.norm(dim=-1).max()) < 1e-6 * float((focus - middle).norm()):
        first = normalize(torch.linalg.cross(forward, forward.roll(1) + 1e-3, dim=0), dim=0)
        second = torch.linalg.cross(forward, first, dim=0)
        radii = 0.02 * (focus - middle).norm() * torch.ones(2, dtype=torch.float64)
    else:
        first = torch.linalg.svd(flat, full_matrices=True).Vh[0]
        second = torch.linalg.cross(forward, first, dim=0)
        plane = flat @ torch.stack([first, second], dim=-1)
        half = plane.abs().amax(0)
        # A convex body is inside another when its support function is smaller in every direction.
        angle = torch.arange(360, dtype=torch.float64) * math.pi / 180
        directions = torch.stack([angle.cos(), angle.sin()])
        hull = (plane @ directions).amax(0)
        ellipse = (half[:, None] * directions).norm(dim=0)
        radii = 0.9 * half * ((hull + 1e-12) / (ellipse + 1e-12)).amin().clamp(0, 1)
    return middle + radii[0] * phase.cos()[:, None] * first + radii[1] * phase.sin()[:, None] * second


def _cameras(scene: Scene, n: int, height: int | None, width: int | None) -> Cameras:
    """The registered views' poses in float64, with one picture size and one K: those of the most common view."""
    if n < 1:
        raise InputError("camera path", f"{n} frames", "ask for at least one")
    views = [view for view in scene.registered if view.camera is not None]
    if not views:
        raise InputError("camera path", "no view has a camera", "reconstruct the scene first")
    size = _common_size(views)
    K = torch.cat([v.camera.K for v in views if v.camera is not None and (v.height, v.width) == size]).double()
    poses = scene.world_from_cams.double().cpu()
    cameras = Cameras(poses, K.cpu().median(0).values.expand(len(poses), 3, 3), *size)
    if height is None and width is None:
        return cameras
    height = height or max(1, round(size[0] * (width or 0) / size[1]))
    width = width or max(1, round(size[1] * height / size[0]))
    # Another aspect cuts the longer side, so no frame shows more than a view saw.
    scale = max(height / size[0], width / size[1])
    whole = cameras.resized(max(height, round(size[0] * scale)), max(width, round(size[1] * scale)))
    return whole.cropped((whole.height - height) // 2, (whole.width - width) // 2, height, width)


def _common_size(views: list[View]) -> tuple[int, int]:
    sizes = [(view.height, view.width) for view in views]
    return max(sizes, key=lambda size: (sizes.count(size), size[0] * size[1]))


def _framed(scene: Scene, world_from_cam: Float[Tensor, "n 4 4"], cameras: Cameras) -> Cameras:
    dtype = scene.world_from_cams.dtype
    K = cameras.K[:1].expand(len(world_from_cam), 3, 3)
    return replace(cameras, world_from_cam=world_from_cam.to(dtype), K=K.to(dtype))


def _depth_range(scene: Scene, cameras: Cameras) -> tuple[float, float, float]:
    """5 %, 50 % and 95 % quantiles of the depths the cameras see; 0.5, 1 and 2 extents when nothing is known."""
    if scene.points is not None and len(scene.points) > 0:
        cloud = scene.points.positions
    elif scene.gaussians is not None and len(scene.gaussians) > 0:
        cloud = scene.gaussians.means
    else:
        cloud = torch.zeros(0, 3)
    cloud = cloud[:: max(1, len(cloud) // 2000)].double().cpu()
    seen = cameras[slice(0, None, max(1, len(cameras) // 64))]
    pixels, depth = project(cloud, seen)
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float64)
    inside = (depth > 1e-9) & ((pixels > 0) & (pixels < size)).all(-1) & depth.isfinite()
    known = [view.depth[view.depth > 0].double().cpu() for view in scene.registered if view.depth is not None]
    depths = torch.cat([depth[inside], *[d[:: max(1, len(d) // 1000)] for d in known]])
    if len(depths) < 8:
        return 0.5 * scene.extent, 1.0 * scene.extent, 2.0 * scene.extent
    near, middle, far = torch.quantile(depths[:: max(1, len(depths) // 500_000)], depths.new_tensor([0.05, 0.5, 0.95]))
    return float(near), float(middle), float(far)


def _visiting_order(cameras: Cameras, order: Order) -> Int[Tensor, "m"]:
    """The order to fly in: given, or from neighbour to neighbour (greedy, then 2-opt exchanges)."""
    count = len(cameras)
    given = torch.arange(count)
    if order == "given" or count < 3:
        return given
    distance = torch.cdist(cameras.centers, cameras.centers)
    facing = (cameras.forward @ cameras.forward.T).clamp(-1, 1).arccos() / math.pi
    distance = distance / distance.max().clamp_min(1e-12) + facing
    tour, left = [0], set(range(1, count))
    while left:
        tour.append(min(left, key=lambda j: float(distance[tour[-1], j])))
        left.remove(tour[-1])
    nearest = _uncrossed(torch.tensor(tour), distance)
    walk = float(distance[given[:-1], given[1:]].sum())
    if order == "auto" and walk <= 1.5 * float(distance[nearest[:-1], nearest[1:]].sum()):
        return given
    return nearest


def _uncrossed(tour: Int[Tensor, "m"], distance: Float[Tensor, "m m"]) -> Int[Tensor, "m"]:
    """2-opt on a tour with free ends: reverse a stretch while that shortens it (at most 20 rounds)."""
    # A place at distance zero from everywhere, visited first, frees the beginning too.
    tour = torch.cat([torch.tensor([len(tour)]), tour])
    distance = torch.nn.functional.pad(distance, (0, 1, 0, 1))
    count = len(tour)
    for _ in range(20):
        changed = False
        for i in range(count - 1):
            # Reversing i+1..j changes the edges at both ends of the stretch; the last one has no edge behind it.
            j = torch.arange(i + 1, count)
            after = tour[(j + 1).clamp_max(count - 1)]
            open_end = (j + 1 < count).double()
            old = distance[tour[i], tour[i + 1]] + open_end * distance[tour[j], after]
            new = distance[tour[i], tour[j]] + open_end * distance[tour[i + 1], after]
            best = int((old - new).argmax())
            if float((old - new)[best]) > 1e-9:
                tour[i + 1 : i + 2 + best] = tour[i + 1 : i + 2 + best].flip(0)
                changed = True
        if not changed:
            break
    return tour[1:] if tour[1] < tour[-1] else tour[1:].flip(0)


def _knot_steps(centers: Float[Tensor, "m 3"], quats: Float[Tensor, "m 4"]) -> Float[Tensor, "m-1"]:
    """Centripetal knot spacing: the root of how far apart neighbours are, a half turn counting as the whole extent."""
    moved = centers.diff(dim=0).norm(dim=-1)
    extent = (centers - centers.mean(0)).norm(dim=-1).max().clamp_min(1e-12)
    turned = _quat_difference(quats[1:], quats[:-1]).norm(dim=-1)
    steps = (moved / extent + turned / math.pi).sqrt()
    # Equal neighbours keep a little time, so that no piece has zero length.
    return steps.clamp_min(1e-3 * float(steps.max())) if float(steps.max()) > 1e-9 else torch.ones_like(steps)


def _controls(keys: Tensor, steps: Tensor, closed: bool, add: _Add, difference: _Difference) -> Float[Tensor, "p 4 d"]:
    """Bezier control points of each piece, with non-uniform Catmull-Rom's tangents (a parabola through three keys)."""
    speed = difference(keys[1:], keys[:-1]) / steps[:, None]
    before, after = steps[:-1, None], steps[1:, None]
    inner = (after * speed[:-1] + before * speed[1:]) / (before + after)
    first, last = speed[:1], speed[-1:]
    if closed:
        first = last = (steps[0] * speed[-1:] + steps[-1] * speed[:1]) / (steps[0] + steps[-1])
    tangent = torch.cat([first, inner, last])
    third = steps[:, None] / 3
    leaving, arriving = add(keys[:-1], third * tangent[:-1]), add(keys[1:], -third * tangent[1:])
    return torch.stack([keys[:-1], leaving, arriving, keys[1:]], dim=1)


def _bezier(controls: Tensor, piece: Tensor, u: Tensor, add: _Add, difference: _Difference) -> Float[Tensor, "n d"]:
    """De Casteljau's construction, which needs nothing but a straight line between two points of the space."""
    points = list(controls[piece].unbind(1))
    while len(points) > 1:
        points = [add(a, u * difference(b, a)) for a, b in pairwise(points)]
    return points[0]


def _add(point: Tensor, step: Tensor) -> Tensor:
    return point + step


def _difference(target: Tensor, source: Tensor) -> Tensor:
    return target - source


def _quat_add(quat: Float[Tensor, "m 4"], rotvec: Float[Tensor, "m 3"]) -> Float[Tensor, "m 4"]:
    """``quat`` turned by ``rotvec`` (radians, in its own axes)."""
    half = rotvec.norm(dim=-1, keepdim=True) / 2
    turn = torch.cat([half.cos(), 0.5 * torch.sinc(half / math.pi) * rotvec], dim=-1)
    return _quat_multiply(quat, turn)


def _quat_difference(target: Float[Tensor, "m 4"], source: Float[Tensor, "m 4"]) -> Float[Tensor, "m 3"]:
    """The shortest turn (radians, in the source's axes) from ``source`` to ``target``: ``_quat_add`` undone."""
    turn = _quat_multiply(source * source.new_tensor([1, -1, -1, -1]), target)
    turn = torch.where(turn[:, :1] < 0, -turn, turn)
    sine = turn[:, 1:].norm(dim=-1, keepdim=True)
    scale = torch.where(sine > 1e-12, 2 * torch.atan2(sine, turn[:, :1]) / sine.clamp_min(1e-12), 2.0)
    return scale * turn[:, 1:]


def _quat_multiply(a: Float[Tensor, "m 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "m 4"]:
    scalar = a[:, :1] * b[:, :1] - (a[:, 1:] * b[:, 1:]).sum(-1, keepdim=True)
    vector = a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + torch.linalg.cross(a[:, 1:], b[:, 1:], dim=-1)
    return torch.cat([scalar, vector], dim=-1)
