"""The first Gaussians: from the scene's points, and from random points in front of the cameras where those are few."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError, Points, Scene, project, unproject
from scenetx.core.gaussians import SH_C0
from scenetx.fit.settings import FitSettings

NEIGHBOURS = 3
FAR = 50.0  # points farther from every camera than this many median distances are taken for outliers
RESTRAINT = 0.003, 0.01  # of few steps or photos that look from near places; the most
VISITS = 1500.0  # degrees to the next photo times visits of each, from which more restraint is needed
STRAY = 100.0  # viewing distances
SLIGHT = 0.005  # a standard deviation in radians: a pixel or two
FAINT = 0.1  # opacity


def first_gaussians(scene: Scene, settings: FitSettings) -> Gaussians:
    """Round Gaussians as wide as the mean distance to the three nearest points, in the points' colours.

    Never more than ``settings.max_splats``; with fewer points than ``settings.least_points``, random ones
    are added up to ``settings.initial_splats``. Deterministic in ``settings.seed``. Raises InputError for a scene
    without a registered training view.
    """
    if not scene.training:
        raise InputError("scene", "no training view with a camera", "run SfM first or give posed pictures")
    generator = torch.Generator().manual_seed(settings.seed)
    positions, colors = _usable_points(scene)
    if len(positions) > settings.max_splats:
        chosen = torch.randperm(len(positions), generator=generator)[: settings.max_splats]
        positions, colors = positions[chosen], colors[chosen]
    missing = min(settings.initial_splats, settings.max_splats) - len(positions)
    if len(positions) < settings.least_points and missing > 0:
        extra, extra_colors = random_points(scene, missing, positions, generator)
        positions, colors = torch.cat([positions, extra]), torch.cat([colors, extra_colors])
    count = len(positions)
    sizes = _neighbour_distance(positions) * settings.initial_scale
    return Gaussians(
        means=positions.float(),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        scales=sizes.float()[:, None].repeat(1, 3),
        opacities=torch.full((count,), settings.initial_opacity),
        sh=((colors.float() - 0.5) / SH_C0)[:, None, :],
        antialiased=settings.antialiased,
    )


def _usable_points(scene: Scene) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """Finite points that are not absurdly far from all cameras, and their colours in [0, 1]."""
    points: Points | None = scene.points
    if points is None or len(points) == 0:
        return torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3)
    positions = points.positions.double()
    finite = positions.isfinite().all(-1)
    positions, colors = positions[finite], points.colors[finite].float() / 255
    centers = scene.world_from_cams[:, :3, 3].double().numpy()
    distance = torch.from_numpy(cKDTree(centers).query(positions.numpy())[0])
    near = distance <= FAR * distance.median() if len(distance) else torch.zeros(0, dtype=torch.bool)
    return positions[near], colors[near]


def random_points(
    scene: Scene, number: int, seen: Float[Tensor, "p 3"], generator: torch.Generator
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Points behind random pixels of the training pictures, uniform in inverse depth, with the pixels' colours.

    The range of depth is that of the points already ``seen`` (2nd to 98th percentile per view, widened by a quarter),
    or without any from a fifth to five times the distance to where the cameras look.
    """
    views = scene.training
    share = -(-number // len(views))
    positions, colors = [], []
    for view in views:
        camera = view.camera
        assert camera is not None
        nearest, farthest = _depth_range(scene, camera, seen)
        draw = torch.rand(share, 3, generator=generator, dtype=torch.float64)
        pixels = draw[:, :2] * torch.tensor([camera.width, camera.height], dtype=torch.float64)
        depth = 1 / (1 / farthest + draw[:, 2] * (1 / nearest - 1 / farthest))
        positions.append(unproject(pixels[None], depth[None], camera.to(torch.float64))[0])
        x, y = pixels.long().unbind(-1)
        x = (x * view.width // camera.width).clamp(0, view.width - 1)
        y = (y * view.height // camera.height).clamp(0, view.height - 1)
        colors.append(view.image[y, x].float() / 255)
    chosen = torch.randperm(share * len(views), generator=generator)[:number]
    return torch.cat(positions)[chosen], torch.cat(colors)[chosen]


def viewing_distance(scene: Scene) -> float:
    """Median depth of the points in the training pictures, world units: what a step of a splat is measured by.

    The spread of the cameras, which 3DGS takes, is the same for a walk around an object, but far too small for pictures
    taken from one side and far too large for a walk through a building. It is the answer where there are no points.
    """
    seen = _usable_points(scene)[0]
    seen = seen[:: max(1, len(seen) // 4000)]
    depths = []
    for view in scene.training if len(seen) >= 50 else ():
        assert view.camera is not None
        pixels, depth = project(seen, view.camera.to(torch.float64))
        inside = (pixels >= 0).all(-1) & (pixels[..., 0] < view.camera.width) & (pixels[..., 1] < view.camera.height)
        depths.append(depth[inside & (depth > 0)])
    known = torch.cat(depths) if depths else torch.zeros(0)
    return float(known.median()) if len(known) >= 50 else 1.1 * scene.extent


def viewing_gap(scene: Scene, distance: float) -> float:
    """Median angle, degrees, from a training camera to the nearest other, seen from what it looks at.

    What it looks at is taken to be ``distance`` (`viewing_distance`) ahead. 180 for a single camera: nothing else looks
    there.
    """
    poses = _training_poses(scene)
    centers = poses[:, :3, 3]
    if len(centers) < 2:
        return 180.0
    targets = centers + distance * poses[:, :3, 2]
    toward = torch.nn.functional.normalize(centers - targets[:, None], dim=-1)  # [target, camera, 3]
    cosine = (toward * toward.diagonal(dim1=0, dim2=1).T[:, None]).sum(-1)
    nearest = cosine.fill_diagonal_(-1).amax(1).clamp(-1, 1)
    return float(nearest.acos().rad2deg().median())


def restraint(scene: Scene, distance: float, steps: int) -> float:
    """The weight against opacity and size (the regularisation of 3DGS-MCMC, Kheradmand et al. 2024; 0.01 there).

    Each visit of a photo teaches what is true of it alone, and the farther off the next photo looks from, the less does
    that one see and correct. So the weight grows with visits times `viewing_gap`, from where that product began to cost
    held-out views (benchmarks/README.md).
    """
    visits = steps / max(len(scene.training), 1)
    least, most = RESTRAINT
    return min(max(least, least * viewing_gap(scene, distance) * visits / VISITS), most)


def strays(gaussians: Gaussians, scene: Scene) -> Bool[Tensor, "g"]:
    """Faint splats that noise carried more than `STRAY` viewing distances away from every training camera.

    Each tints a pixel or two at most, but every format that stores positions between the outermost ones loses its
    precision to them.
    """
    centers = torch.cat([view.camera.centers for view in scene.training if view.camera is not None]).to(gaussians.means)
    apart = [torch.cdist(some, centers).amin(1) for some in gaussians.means.split(1 << 16)]
    distance = torch.cat(apart) if apart else gaussians.opacities
    small = gaussians.scales.amax(-1) < SLIGHT * distance
    return (distance > STRAY * viewing_distance(scene)) & small & (gaussians.opacities < FAINT)


def _depth_range(scene: Scene, camera: Cameras, seen: Float[Tensor, "p 3"]) -> tuple[float, float]:
    if len(seen) >= 50:
        in_cam = camera.cam_from_world[0].double()
        depth = seen @ in_cam[2, :3] + in_cam[2, 3]
        depth = depth[depth > 0]
        if len(depth) >= 20:
            low, high = torch.quantile(depth[:100_000], torch.tensor([0.02, 0.98], dtype=torch.float64)).tolist()
            return low * 0.8, high * 1.25
    distance = float((_focus(scene) - camera.centers[0].double()).norm())
    distance = max(distance, 1e-3 * scene.extent)
    return distance / 5, distance * 5


def _training_poses(scene: Scene) -> Float[Tensor, "v 4 4"]:
    return torch.cat([view.camera.world_from_cam for view in scene.training if view.camera is not None]).double()


def _focus(scene: Scene) -> Float[Tensor, "3"]:
    """The point nearest to all optical axes; with (nearly) parallel axes, one some extents in front of the cameras."""
    poses = _training_poses(scene)
    centers, forward = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    normal = across.sum(0)
    ahead = centers.mean(0) + 3 * scene.extent * torch.nn.functional.normalize(forward.mean(0), dim=0)
    # A weak pull towards that point decides what the axes do not, and hardly moves what they do.
    weight = 1e-3 * len(poses)
    right = (across @ centers[:, :, None]).sum(0).squeeze(-1) + weight * ahead
    return torch.linalg.solve(normal + weight * torch.eye(3, dtype=torch.float64), right)


def _neighbour_distance(positions: Float[Tensor, "p 3"]) -> Float[Tensor, "p"]:
    """Mean distance to the three nearest points, held between 1/20 and 10 times its median."""
    points = positions.double().numpy()
    if len(points) < 2:
        return torch.ones(len(points), dtype=torch.float64)
    nearest = cKDTree(points).query(points, k=min(NEIGHBOURS + 1, len(points)))[0][:, 1:]
    distance = torch.from_numpy(np.atleast_2d(nearest).mean(-1))
    middle = max(float(distance.median()), 1e-9)
    return distance.clamp(middle / 20, middle * 10)
