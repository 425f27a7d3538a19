"""A mesh from depth: rendered pictures fused into a truncated signed distance field, and how clean the result is.

Fusion is Open3D's (the extra ``mesh``; imported when asked for): Curless and Levoy 1996, over a sparse block grid; a
Poisson surface of the fused points is the option that closes holes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from scenetx.core import Cameras, InputError, Render
from scenetx.geometry.lift import agreement, nearest_views, steady

NEIGHBORS = 6  # pictures asked to confirm another's depth
MANY = 16  # pictures, of which two can be expected to see a place as a third does
TOUCH = 4  # Open3D looks for blocks at every fourth pixel, and stops where none has depth
FIRST_BLOCKS = 10_000
"""Room at first, in blocks of 8 x 8 x 8 voxels; the grid grows."""


@dataclass(frozen=True)
class FuseSettings:
    """How depth becomes a surface. Lengths in world units; None is chosen from the depth seen."""

    voxel: float | None = None  # None: the median depth / 128, a few pixels of a draft
    truncation: float = 4.0  # of the signed distance, in voxels
    least_alpha: float = 0.5  # pixels that the splats cover less are not used
    edge: float = 0.04  # nor pixels whose depth differs by this share from a neighbour's: blends of two surfaces
    agree: float = 0.02  # another picture confirms a pixel where its depth is within this share
    votes: int | None = None  # of the nearest pictures that have to confirm a pixel; 0 uses all, None is 2 or 0
    farthest: float | None = None  # None: four times the median depth
    smallest: int = 100  # triangles; smaller pieces are thrown away
    surface: Literal["tsdf", "poisson"] = "tsdf"  # poisson closes holes and smooths; the TSDF keeps what was seen
    poisson_depth: int = 9  # of the octree: twice the detail a step
    poisson_trim: float = 0.02  # share of the vertices, the least supported by points, that is cut off again

    def __post_init__(self) -> None:
        for name in ("voxel", "truncation", "farthest"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"mesh setting {name}", value, "use a number above 0")
        if self.surface not in ("tsdf", "poisson"):
            raise InputError("mesh setting surface", self.surface, "use tsdf or poisson")
        if self.votes is not None and self.votes < 0:
            raise InputError("mesh setting votes", self.votes, "use 0 or more")
        if not (4 <= self.poisson_depth <= 13 and 0 <= self.poisson_trim < 1):
            shown = (self.poisson_depth, self.poisson_trim)
            raise InputError("mesh settings poisson_depth, poisson_trim", shown, "use 4 to 13, and a share below 1")


@dataclass(frozen=True)
class Mesh:
    """Triangles in the world frame, with a colour a vertex (sRGB)."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: UInt8[np.ndarray, "v 3"]


@dataclass(frozen=True)
class Cleanliness:
    """components: pieces that share no vertex. largest: share of the faces in the largest piece. holes: closed chains
    of edges that have one face only. nonmanifold_edges: edges with three or more. area: world units squared."""

    vertices: int
    faces: int
    components: int
    largest: float
    holes: int
    boundary_edges: int
    nonmanifold_edges: int
    degenerate_faces: int
    area: float
    watertight: bool
    removed_components: int = 0


def fuse(pictures: Iterable[tuple[Render, Cameras]], settings: FuseSettings | None = None) -> tuple[Mesh, Cleanliness]:
    """One mesh from rendered pictures (one camera each: rgb in [0, 1], z-depth in world units, alpha).

    Small pieces are removed and counted. Raises InputError without Open3D, without any usable depth, or when a grid
    this fine would not fit.
    """
    settings = settings or FuseSettings()
    library = _open3d()
    shots = [(render, camera) for render, camera in pictures]
    used = _confirmed([_usable(render, settings) for render, _ in shots], [camera for _, camera in shots], settings)
    depths = np.concatenate([depth[depth > 0] for depth in used]) if used else np.zeros(0)
    if not len(depths):
        raise InputError("mesh", "no pixel with depth", "give a scene whose splats cover its pictures")
    median = float(np.median(depths))
    voxel, farthest = settings.voxel or median / 128, settings.farthest or 4 * median
    if median / voxel > 1 << 13:
        raise InputError("mesh setting voxel", f"{voxel:.3g} for a depth of {median:.3g}", "use a coarser grid")
    volume = _integrated(library, shots, used, voxel, farthest, settings.truncation)
    found = volume.extract_triangle_mesh(0.0).to_legacy()
    if settings.surface == "poisson":
        found = _poisson(library, found, settings)
    colors = (255 * np.asarray(found.vertex_colors)).round().clip(0, 255).astype(np.uint8)
    mesh = Mesh(np.asarray(found.vertices).copy(), np.asarray(found.triangles).astype(np.int64), colors)
    if not len(mesh.faces):
        raise InputError("mesh", "the depth makes no surface", "use a coarser voxel, or more views")
    return without_crumbs(mesh, settings.smallest)


def _integrated(
    library: Any,
    shots: Sequence[tuple[Render, Cameras]],
    depths: Sequence[Float[np.ndarray, "h w"]],
    voxel: float,
    farthest: float,
    truncation: float,
) -> Any:
    """The signed distance field of all pictures, in blocks of 8 voxels where surfaces are."""
    core = library.core
    single = core.float32
    volume = library.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), (single, single, single), (1, 1, 3), voxel, 8, FIRST_BLOCKS, core.Device("CPU:0")
    )

    def image(values: Float[np.ndarray, "..."]) -> Any:
        return library.t.geometry.Image(core.Tensor(np.ascontiguousarray(values, dtype=np.float32)))

    for (render, camera), depth in zip(shots, depths, strict=True):
        K = camera.K[0].detach().cpu().double().numpy().copy()
        K[:2, 2] -= 0.5  # Open3D's pixel centres are whole numbers, ours are halves
        lens = core.Tensor(K)
        cam_from_world = core.Tensor(camera.cam_from_world[0].detach().cpu().double().numpy())
        seen, rgb = image(depth), image(render.rgb[0].detach().cpu().clamp(0, 1).numpy())
        looked = depth[::TOUCH, ::TOUCH]
        if not ((looked > 0) & (looked < farthest)).any():
            continue
        blocks = volume.compute_unique_block_coordinates(seen, lens, cam_from_world, 1.0, farthest, truncation)
        volume.integrate(blocks, seen, rgb, lens, lens, cam_from_world, 1.0, farthest, truncation)
    return volume


def _poisson(library: Any, mesh: Any, settings: FuseSettings) -> Any:
    """Screened Poisson surface (Kazhdan and Hoppe, 2013) of the fused mesh's vertices and normals, Open3D's; cut where
    no vertex supports it, and to their box."""
    if len(mesh.vertices) < 100:
        raise InputError("mesh", f"{len(mesh.vertices)} surface points", "use a coarser voxel, or more views")
    mesh.compute_vertex_normals()
    cloud = library.geometry.PointCloud(mesh.vertices)
    cloud.normals, cloud.colors = mesh.vertex_normals, mesh.vertex_colors
    # One thread: the solver's result depends on their number otherwise.
    found, support = library.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=settings.poisson_depth, linear_fit=True, n_threads=1
    )
    support = np.asarray(support)
    found.remove_vertices_by_mask(support < np.quantile(support, settings.poisson_trim))
    return found.crop(cloud.get_axis_aligned_bounding_box())


def without_crumbs(mesh: Mesh, smallest: int) -> tuple[Mesh, Cleanliness]:
    """The mesh without pieces of fewer than ``smallest`` faces (the largest always stays), and its report."""
    piece = _pieces(mesh)
    counts = np.bincount(piece)
    keep = counts >= smallest
    keep[counts.argmax()] = True
    faces = mesh.faces[keep[piece]]
    used, renumbered = np.unique(faces, return_inverse=True)
    clean = Mesh(mesh.vertices[used], renumbered.reshape(-1, 3).astype(np.int64), mesh.colors[used])
    return clean, cleanliness(clean, removed=int((~keep).sum()))


def cleanliness(mesh: Mesh, *, removed: int = 0) -> Cleanliness:
    """What a user of the mesh wants to know before a print or a simulation."""
    faces = mesh.faces
    corners = mesh.vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1) / 2
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, uses = np.unique(edges, axis=0, return_counts=True)
    rim = unique[uses == 1]
    sizes = np.bincount(_pieces(mesh)) if len(faces) else np.zeros(0, np.int64)
    return Cleanliness(
        vertices=len(mesh.vertices),
        faces=len(faces),
        components=len(sizes),
        largest=float(sizes.max() / len(faces)) if len(faces) else 0.0,
        holes=_chains(rim),
        boundary_edges=len(rim),
        nonmanifold_edges=int((uses > 2).sum()),
        degenerate_faces=int((areas <= 0).sum()),
        area=float(areas.sum()),
        watertight=bool(len(faces)) and bool((uses == 2).all()),
        removed_components=removed,
    )


def _usable(render: Render, settings: FuseSettings) -> Float[Tensor, "h w"]:
    """z-depth of the one picture; 0 where there is too little of a surface, and at its edges."""
    depth, alpha = render.depth[0].detach().cpu().float(), render.alpha[0].detach().cpu().float()
    known = torch.where((alpha >= settings.least_alpha) & depth.isfinite() & (depth > 0), depth, 0.0)
    return torch.where(steady(known, settings.edge), known, 0.0)


def _confirmed(
    depths: Sequence[Float[Tensor, "_ _"]], cameras: Sequence[Cameras], settings: FuseSettings
) -> list[Float[np.ndarray, "_ _"]]:
    """Depth, float32, where enough of the nearest pictures see the same surface; 0 elsewhere. What hangs in the air
    before one camera is what others look through."""
    votes = settings.votes
    if votes is None:
        votes = 2 if len(depths) >= MANY else 0
    votes = min(votes, len(depths) - 1)
    out = []
    for index, depth in enumerate(depths):
        if votes > 0:
            others = nearest_views(cameras, index, NEIGHBORS)
            depth = torch.where(agreement(depths, cameras, index, others, settings.agree) >= votes, depth, 0.0)
        out.append(depth.numpy())
    return out


def _pieces(mesh: Mesh) -> Int[np.ndarray, "f"]:
    """The number of the piece that each face belongs to."""
    faces = mesh.faces
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    return _labels(pairs, len(mesh.vertices))[faces[:, 0]] if len(faces) else np.zeros(0, np.int64)


def _labels(pairs: Int[np.ndarray, "e 2"], count: int) -> Int[np.ndarray, "v"]:
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    used = np.zeros(count, bool)
    used[pairs] = True
    label = connected_components(graph, directed=False)[1]
    # Vertices that no pair uses are pieces of their own to scipy; they take no number here.
    numbers = np.unique(label[used], return_inverse=True)[1]
    out = np.full(count, -1, np.int64)
    out[used] = numbers
    return out


def _chains(edges: Int[np.ndarray, "e 2"]) -> int:
    """How many connected chains the edges make."""
    if not len(edges):
        return 0
    used, renumbered = np.unique(edges, return_inverse=True)
    return int(_labels(renumbered.reshape(-1, 2), len(used)).max()) + 1


def _open3d() -> Any:
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise InputError("mesh", f"Open3D is not installed ({error})", "pip install 'scenetx[mesh]'") from error
    except (ImportError, OSError) as error:  # installed, but a library of the system is missing
        cure = "install that library of the system (on Debian and Ubuntu: apt install libusb-1.0-0 libgl1 libgomp1)"
        raise InputError("mesh", f"Open3D cannot be loaded ({error})", cure) from error
    return open3d
