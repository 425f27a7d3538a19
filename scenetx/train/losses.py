"""What training minimises: pictures, depth with confidence, points, cameras, normals. Pure functions of tensors.

Every scene of a batch counts alike: what is a mean over pixels is one of each scene first.
Geometry is compared in a gauge of its own: scenes are scaled so that the mean true distance from the cameras is one,
and poses are compared between pairs of views, so that neither the choice of the world nor of the first view matters.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, normalize

from scenetx.core import Cameras
from scenetx.core.rigid import invert_rigid
from scenetx.measure.image import C1, C2, WINDOW, gaussian_window
from scenetx.models.pixel_splats import pixel_gaussians
from scenetx.models.pose_codec import fields_of_view
from scenetx.splat import rasterize


def ssim_batch(a: Float[Tensor, "n h w 3"], b: Float[Tensor, "n h w 3"]) -> Float[Tensor, ""]:
    """Mean SSIM over pictures: `scenetx.measure.image.ssim` of a batch, differentiable."""
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"ssim: pictures of {a.shape[1]} x {a.shape[2]} are smaller than the {WINDOW} px window")
    window = gaussian_window(dtype=a.dtype).to(a.device)
    x, y = a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 2)[:, None]
    maps = conv2d(conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = maps.unflatten(0, (5, -1))
    similarity = (2 * mean_x * mean_y + C1) * (2 * (xy - mean_x * mean_y) + C2)
    scale = (mean_x.square() + mean_y.square() + C1) * (xx - mean_x.square() + yy - mean_y.square() + C2)
    return (similarity / scale).mean()


def gradient_loss(a: Float[Tensor, "n h w 3"], b: Float[Tensor, "n h w 3"]) -> Float[Tensor, ""]:
    """Mean difference of the steps between neighbouring pixels: sharp edges in the right places."""
    off = a - b
    return (off.diff(dim=1).abs().mean() + off.diff(dim=2).abs().mean()) / 2


def mean_of_valid(values: Float[Tensor, "*b v h w"], valid: Bool[Tensor, "*b v h w"]) -> Float[Tensor, "*b"]:
    """Each scene's mean over its valid pixels; 0 where there is none."""
    return (values * valid).sum((-3, -2, -1)) / valid.sum((-3, -2, -1)).clamp_min(1)


def scene_scale(
    depth: Float[Tensor, "*b v h w"], K: Float[Tensor, "*b v 3 3"], valid: Bool[Tensor, "*b v h w"]
) -> Float[Tensor, "*b"]:
    """Mean distance of the valid points from their own cameras; 1 where there is none."""
    distance = mean_of_valid(points_in_camera(depth, K).norm(dim=-1), valid)
    return torch.where(valid.any(-1).any(-1).any(-1), distance, 1.0)


def points_in_camera(depth: Float[Tensor, "*b h w"], K: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b h w 3"]:
    """Points of z-depth maps in their cameras' frames (no skew)."""
    height, width = depth.shape[-2:]
    x = torch.arange(width, device=depth.device) + 0.5
    y = torch.arange(height, device=depth.device) + 0.5
    lens = K[..., None, None, :, :]
    right = (x - lens[..., 0, 2]) / lens[..., 0, 0]
    down = (y[:, None] - lens[..., 1, 2]) / lens[..., 1, 1]
    return torch.stack([right * depth, down * depth, depth], -1)


def confident_l1(
    error: Float[Tensor, "*b v h w"],
    confidence: Float[Tensor, "*b v h w"],
    valid: Bool[Tensor, "*b v h w"],
    weight: float,
) -> Float[Tensor, ""]:
    """``mean(c e - weight log c)`` over valid pixels (Kendall and Gal, 2017; DUSt3R, eq. 4): doubt costs too."""
    return mean_of_valid(confidence * error - weight * confidence.log(), valid).mean()


def depth_gradient_loss(
    found: Float[Tensor, "*b v h w"], true: Float[Tensor, "*b v h w"], valid: Bool[Tensor, "*b v h w"], scales: int = 3
) -> Float[Tensor, ""]:
    """Steps between neighbouring pixels of the depth error, at ``scales`` strides (MegaDepth; MiDaS, eq. 11)."""
    total = found.new_zeros(())
    for k in range(scales):
        off, known = (found - true)[..., :: 2**k, :: 2**k], valid[..., :: 2**k, :: 2**k]
        for dim in (-2, -1):
            if off.shape[dim] > 1:
                both = known.narrow(dim, 1, known.shape[dim] - 1) & known.narrow(dim, 0, known.shape[dim] - 1)
                total = total + mean_of_valid(off.diff(dim=dim).abs(), both).mean()
    return total / scales


def ordered_pairs(views: int) -> Int[Tensor, "p 2"]:
    """Every view with every other, each way."""
    return (~torch.eye(views, dtype=torch.bool)).nonzero()


def relative_pose_loss(
    true: Float[Tensor, "*b v 4 4"], found: Float[Tensor, "*b v 4 4"], least: float = 0.05
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Rotation and translation error of all ordered pairs of views (the pairs of pi3, arXiv 2507.13347, eq. 5 to 8).

    Both must have one scale. Both are angles in radians where they are small, so that they count alike: rotation is the
    root of half the squared chordal distance; translation is divided by the true one's length (no less than ``least``),
    or the direction of a short one would not matter beside the length of a long one. Zero for a single view.
    """
    views = true.shape[-3]
    if views < 2:
        return found.new_zeros(()), found.new_zeros(())
    first, second = ordered_pairs(views).to(true.device).unbind(-1)
    wanted = invert_rigid(true)[..., first, :, :] @ true[..., second, :, :]
    got = invert_rigid(found)[..., first, :, :] @ found[..., second, :, :]
    off = got - wanted
    rotation = _rooted(off[..., :3, :3].square().sum((-1, -2)) / 2, 1e-2)
    translation = _rooted(off[..., :3, 3].square().sum(-1), 1e-3) / (wanted[..., :3, 3].norm(dim=-1) + least)
    return rotation.mean(), translation.mean()


def _rooted(square: Tensor, near: float) -> Tensor:
    """The root, round below ``near`` so that its slope is finite at zero."""
    return (square + near**2).sqrt() - near


def first_view_world(world_from_cam: Float[Tensor, "b v 4 4"], scale: Float[Tensor, "b"]) -> Float[Tensor, "b v 4 4"]:
    """Poses in their scene's first view's frame, lengths divided by ``scale``."""
    relative = invert_rigid(world_from_cam[:, :1]) @ world_from_cam
    shift = relative[..., :3, 3:] / scale[:, None, None, None]
    return torch.cat([torch.cat([relative[..., :3, :3], shift], -1), relative[..., 3:, :]], -2)


def fov_loss(found: Float[Tensor, "n 2"], K: Float[Tensor, "n 3 3"], height: int, width: int) -> Float[Tensor, ""]:
    """Mean error of the fields of view (of the height, of the width), radians."""
    return (found - fields_of_view(K, height, width)).abs().mean()


def contrastive_loss(
    a: Float[Tensor, "b n c"], b: Float[Tensor, "b m c"], match: Int[Tensor, "b n"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """InfoNCE (arXiv 1807.03748, eq. 4): ``match`` names the row of ``b`` that each row of ``a`` should be most like,
    -1 for none; features of length one. 0 where nothing matches."""
    known = match >= 0
    if not bool(known.any()):
        return (a.sum() + b.sum()) * 0
    alike = (a @ b.mT)[known] / temperature
    return torch.nn.functional.cross_entropy(alike, match[known])


def splat_loss(rgb: Float[Tensor, "v h w 3"], depth: Float[Tensor, "v h w"], cameras: Cameras) -> Float[Tensor, ""]:
    """Mean colour error of the last view as Gaussians on the other views' pixels show it (pixelSplat's loss, for found
    depth and found cameras), where they cover it; lenses get no gradient from the rasterizer. 0 for a single view."""
    views = len(rgb)
    if views < 2:
        return depth.new_zeros(())
    others, last = torch.arange(views - 1), torch.tensor([views - 1])
    seen = rasterize(pixel_gaussians(rgb[:-1], depth[:-1], cameras[others]), cameras[last])
    covered = (seen.alpha > 0.5).detach()
    # What shines through is not the splats' colour.
    colour = seen.rgb / seen.alpha.clamp_min(0.5)[..., None]
    return ((colour - rgb[-1:]).abs().mean(-1) * covered).sum() / covered.sum().clamp_min(1)


def normals_of_depth(depth: Float[Tensor, "*b h w"], K: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b i j 3"]:
    """Unit normals, towards the camera, of the surface between each pixel, its right and its lower neighbour:
    a row and a column fewer than pixels."""
    points = points_in_camera(depth, K)
    across = points[..., :-1, 1:, :] - points[..., :-1, :-1, :]
    down = points[..., 1:, :-1, :] - points[..., :-1, :-1, :]
    normal = normalize(torch.linalg.cross(down, across, dim=-1), dim=-1, eps=1e-8)
    away = (normal * points[..., :-1, :-1, :]).sum(-1, keepdim=True) > 0
    return torch.where(away, -normal, normal)


def normals_loss(
    depth: Float[Tensor, "*b v h w"],
    K: Float[Tensor, "*b v 3 3"],
    normals: Float[Tensor, "*b v h w 3"],
    valid: Bool[Tensor, "*b v h w"],
) -> Float[Tensor, ""]:
    """``1 - cos`` between the normals of found depth and true ones, where a pixel and its neighbours are valid."""
    cosine = (normals_of_depth(depth, K) * normals[..., :-1, :-1, :]).sum(-1)
    sound = valid[..., :-1, :-1] & valid[..., 1:, :-1] & valid[..., :-1, 1:]
    return mean_of_valid(1 - cosine, sound).mean()
