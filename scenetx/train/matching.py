"""Which patches of two views see one point, and attention that is taught to look there.

Where a camera stands is told by where one view's things are in another's picture. A small model that is given only the
cameras as its aim does not find that out: it stays at the mean, which is no motion. Matches are known for every
scene that has depth, so the blocks that see all views are taught them: the first head of each asks for the patch of the
other view that sees the same point, and the rest of the model reads off what that head brings. This is the supervised
attention of LoFTR (arXiv 2104.00680, section 3.4, its coarse matching) inside of an alternating transformer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scenetx.core.rigid import invert_rigid
from scenetx.models.da3 import Da3
from scenetx.models.layers import Block
from scenetx.train import losses


def seen_at(
    depth: Float[Tensor, "b 2 h w"], K: Float[Tensor, "b 2 3 3"], world_from_cam: Float[Tensor, "b 2 4 4"], patch: int
) -> tuple[Float[Tensor, "b t 2"], Bool[Tensor, "b t"]]:
    """Where (x, y in pixels) the second view sees what is at the middle of each of the first view's patches, and
    whether it does: inside of its picture and hidden by nothing."""
    height, width = depth.shape[2:]
    middle = slice(patch // 2, None, patch)
    points = losses.points_in_camera(depth[:, 0], K[:, 0])[:, middle, middle].flatten(1, 2)
    motion = invert_rigid(world_from_cam[:, 1]) @ world_from_cam[:, 0]
    there = points @ motion[:, :3, :3].mT + motion[:, None, :3, 3]
    pixel = there @ K[:, 1].mT
    z = there[..., 2]
    place = pixel[..., :2] / z.clamp_min(1e-6)[..., None]
    x, y = place.unbind(-1)
    inside = (points[..., 2] > 0) & (z > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, row = x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()
    seen = depth[:, 1].flatten(1).gather(1, row * width + column)
    # No farther than the surface that is seen there, to a twentieth.
    return place, inside & (seen > 0) & (z < 1.05 * seen)


def patch_matches(
    depth: Float[Tensor, "b 2 h w"], K: Float[Tensor, "b 2 3 3"], world_from_cam: Float[Tensor, "b 2 4 4"], patch: int
) -> Int[Tensor, "b t"]:
    """The second view's patch that sees what is at the middle of each of the first view's; -1 where none does."""
    place, seen = seen_at(depth, K, world_from_cam, patch)
    column, row = (place / patch).long().unbind(-1)
    return torch.where(seen, row * (depth.shape[3] // patch) + column, -1)


def shares(place: Float[Tensor, "*b t 2"], grid: tuple[int, int], patch: int) -> Float[Tensor, "*b t n"]:
    """Bilinear weights of the patches (``grid``: rows, columns) around places in pixels: what moves by less than a
    patch moves its weights too, and the mean of the patches' middles under them is the place."""
    rows, columns = grid
    limit = torch.tensor([columns - 1, rows - 1], device=place.device)
    where = torch.minimum((place / patch - 0.5).nan_to_num().clamp_min(0), limit)
    low = where.long()
    part = where - low
    out = place.new_zeros(*place.shape[:-1], rows * columns)
    for right in (0, 1):
        for down in (0, 1):
            weight = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
            cell = torch.minimum(low + torch.tensor([right, down], device=place.device), limit)
            out.scatter_add_(-1, (cell[..., 1] * columns + cell[..., 0])[..., None], weight[..., None])
    return out


Looks = list[tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]]
"""Queries and keys of the first head of some layers, of all tokens of all views of each scene."""


@contextmanager
def watched(model: Da3) -> Iterator[Looks]:
    """Inside the block each layer that sees all views adds its first head's queries and keys to what is given out.

    They are caught after their norms and before they are turned: all patches are turned alike there, so that products
    of two patches do not change by it. With gradients only (without, a block may take its tokens in pieces).
    """
    looks: Looks = []
    caught: list[Tensor] = []

    def query(module: nn.Module, given: tuple[Tensor, ...], heads: Tensor) -> None:  # noqa: ARG001
        caught.append(heads[:, 0])

    def key(module: nn.Module, given: tuple[Tensor, ...], heads: Tensor) -> None:  # noqa: ARG001
        looks.append((caught.pop(), heads[:, 0]))

    handles = []
    for layer in model.global_layers():
        block = model.backbone.pretrained.blocks[layer]
        assert isinstance(block, Block)
        handles += [block.attn.q_norm.register_forward_hook(query), block.attn.k_norm.register_forward_hook(key)]
    try:
        yield looks
    finally:
        for handle in handles:
            handle.remove()


def attention_loss(
    looks: Looks,
    depth: Float[Tensor, "b v h w"],
    K: Float[Tensor, "b v 3 3"],
    poses: Float[Tensor, "b v 4 4"],
    patch: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of where each patch looks, in its own view and an other one, against where the other one sees the
    same point, a mean over layers; and the share of patches whose best match there is right in the best layer.

    depth: 0 where it is not known; poses: world_from_cam. 0 and 0 where no two views see one point.
    """
    views, grid = depth.shape[1], (depth.shape[2] // patch, depth.shape[3] // patch)
    pairs = losses.ordered_pairs(views).to(depth.device)
    each = [value[:, pairs].flatten(0, 1) for value in (depth, K, poses)]
    place, seen = (value.unflatten(0, (len(depth), len(pairs))) for value in seen_at(each[0], each[1], each[2], patch))
    if not bool(seen.any()):
        return depth.new_zeros(()), depth.new_zeros(())
    wanted = shares(place[seen], grid, patch)
    total, right = [], []
    for queries, keys in looks:
        q, k = (value.float().unflatten(1, (views, -1))[:, :, 1:] for value in (queries, keys))
        asking = q[:, pairs[:, 0]]
        there, here = ((asking @ k[:, pairs[:, side]].mT)[seen] / q.shape[-1] ** 0.5 for side in (1, 0))
        # Its own view's patches are in the same softmax, and the most alike of all: they must not win.
        every = torch.cat([there, here], -1)
        total.append(torch.nn.functional.cross_entropy(every, torch.nn.functional.pad(wanted, (0, wanted.shape[-1]))))
        right.append((there.argmax(-1) == wanted.argmax(-1)).float().mean())
    return torch.stack(total).mean(), torch.stack(right).amax()


def moves_loss(
    moved: Float[Tensor, "b 2 t 2"],
    depth: Float[Tensor, "b 2 h w"],
    K: Float[Tensor, "b 2 3 3"],
    poses: Float[Tensor, "b 2 4 4"],
    patch: int,
) -> Float[Tensor, ""]:
    """Mean error of how far what is at the middle of each patch moves (x, y, in half picture widths) from its view to
    the other one, where that sees it; 0 where it sees nothing."""
    height, width = depth.shape[2:]
    middle = patch // 2 + 0.5
    y, x = (torch.arange(0, side, patch, device=depth.device) + middle for side in (height, width))
    own = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1).flatten(0, 1)
    off = []
    for order in ([0, 1], [1, 0]):
        place, seen = seen_at(depth[:, order], K[:, order], poses[:, order], patch)
        off.append((moved[:, order[0]] - (place - own) / (width / 2))[seen].abs().mean(-1))
    every = torch.cat(off)
    return every.sum() / max(len(every), 1)
