"""Long sequences in pieces: overlapping chunks, each solved alone, joined by robust similarities, loops closed.

The scheme of VGGT-Long (arXiv 2507.16443): neighbours share pictures; the same pixels of a shared picture have a place
in both chunks, which gives the similarity between them; loops add more such pairs; a graph over the similarities
settles the disagreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from scenetx.core import Sim3

SUBSET = 20_000


@dataclass(frozen=True)
class Link:
    """A measured similarity ``first_from_second`` between two chunks. weight: how much it is believed."""

    first: int
    second: int
    first_from_second: Sim3
    weight: float = 1.0


def plan_chunks(pictures: int, size: int, overlap: int) -> list[range]:
    """Ranges of at most ``size`` neighbours in which each shares ``overlap`` pictures with the one before.

    The last range is as long as the others. Raises ValueError unless 0 < overlap < size.
    """
    if pictures <= size:
        return [range(pictures)]
    if not 0 < overlap < size:
        raise ValueError(f"chunks: overlap {overlap} must be between 1 and {size - 1}")
    starts = [*range(0, pictures - size, size - overlap), pictures - size]
    return [range(start, start + size) for start in starts]


def align_points(
    target: Float[Tensor, "m 3"], source: Float[Tensor, "m 3"], weights: Float[Tensor, "m"] | None = None
) -> tuple[Sim3, float]:
    """The similarity ``target_from_source`` between the same points of two chunks, and how well it holds.

    Iteratively reweighted least squares (Umeyama, 1991, with Geman-McClure weights whose width is the median error).
    The second answer is the median distance after alignment over the median distance of the points from their middle.
    Raises ValueError for fewer than three points.
    """
    usable = target.isfinite().all(-1) & source.isfinite().all(-1)
    if weights is not None:
        usable &= weights > 0
    if int(usable.sum()) < 3:
        raise ValueError(f"align_points: {int(usable.sum())} points; give three or more")
    index = usable.nonzero()[:, 0]
    index = index[torch.linspace(0, len(index) - 1, min(len(index), SUBSET)).round().long()]
    y, x = target[index].double(), source[index].double()
    trust = torch.ones(len(index), dtype=torch.float64) if weights is None else weights[index].double()
    extent = float((y - y.median(0).values).norm(dim=-1).median()) or 1.0
    width, robust = None, trust
    sim3 = _weighted_umeyama(y, x, robust)
    for _ in range(30):
        errors = (sim3.apply(x) - y).norm(dim=-1)
        width = 2 * float(errors.median()) + 1e-9 * extent
        robust = trust / (1 + (errors / width) ** 2) ** 2
        sim3 = _weighted_umeyama(y, x, robust)
    return sim3, float((sim3.apply(x) - y).norm(dim=-1).median()) / extent


def _weighted_umeyama(y: Float[Tensor, "m 3"], x: Float[Tensor, "m 3"], weights: Float[Tensor, "m"]) -> Sim3:
    weights = weights / weights.sum()
    y_mean, x_mean = weights @ y, weights @ x
    y, x = y - y_mean, x - x_mean
    u, d, vh = torch.linalg.svd((weights[:, None] * y).T @ x)
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.linalg.det(u @ vh).sign()
    rotation = u @ torch.diag(sign) @ vh
    spread = float(weights @ x.square().sum(-1))
    scale = float((d * sign).sum()) / spread if spread > 0 else 1.0
    return Sim3(scale, rotation, y_mean - scale * rotation @ x_mean)


def chain(links: Sequence[Link], chunks: int) -> list[Sim3]:
    """Each chunk's ``world_from_chunk`` by walking from the first one over links between neighbours.

    Raises ValueError when a chunk has no link to the one before.
    """
    steps = {(link.first, link.second): link.first_from_second for link in links}
    poses = [Sim3.identity()]
    for index in range(1, chunks):
        if (index - 1, index) not in steps:
            raise ValueError(f"chunks {index - 1} and {index} are not linked")
        poses.append(poses[-1] @ steps[index - 1, index])
    return poses


def settle(links: Sequence[Link], chunks: int) -> list[Sim3]:
    """Each chunk's ``world_from_chunk`` that agrees best with all links, loops included.

    Least squares over similarities with a robust loss (a false loop loses its say), from the chain; the first chunk is
    the world. Residual of a link: log scale, rotation vector, and translation over the size of the step.
    """
    start = chain(links, chunks)
    loops = [link for link in links if link.second != link.first + 1]
    if not loops:
        return start
    size = float(np.median([float(link.first_from_second.translation.norm()) for link in links])) or 1.0
    first, second = (np.array([getattr(link, end) for link in links]) for end in ("first", "second"))
    measured = _stacked([link.first_from_second.inverse() for link in links])
    weights = np.sqrt([link.weight for link in links])[:, None]
    begin = _stacked(start)

    def residuals(values: np.ndarray) -> np.ndarray:
        poses = _moved(begin, np.vstack([np.zeros(7), values.reshape(-1, 7)]))
        error = _times(measured, _times(_inverse([part[first] for part in poses]), [part[second] for part in poses]))
        turn = Rotation.from_matrix(error[1]).as_rotvec()
        return (weights * np.hstack([np.log(error[0])[:, None], turn, error[2] / size])).ravel()

    answer = least_squares(residuals, np.zeros(7 * (chunks - 1)), loss="soft_l1", f_scale=0.1, max_nfev=50)
    scale, rotation, translation = _moved(begin, np.vstack([np.zeros(7), answer.x.reshape(-1, 7)]))
    return [
        Sim3(float(s), torch.from_numpy(r.copy()), torch.from_numpy(t.copy()))
        for s, r, t in zip(scale, rotation, translation, strict=True)
    ]


Stack = Sequence[np.ndarray]
"""Many similarities: scales [n], rotations [n 3 3], translations [n 3]."""


def _stacked(sims: Sequence[Sim3]) -> Stack:
    rotation = np.stack([sim.rotation.double().numpy() for sim in sims])
    translation = np.stack([sim.translation.double().numpy() for sim in sims])
    return np.array([float(sim.scale) for sim in sims]), rotation, translation


def _times(a: Stack, b: Stack) -> Stack:
    moved = a[0][:, None] * np.einsum("nij,nj->ni", a[1], b[2]) + a[2]
    return a[0] * b[0], a[1] @ b[1], moved


def _inverse(a: Stack) -> Stack:
    rotation = a[1].transpose(0, 2, 1)
    return 1 / a[0], rotation, -np.einsum("nij,nj->ni", rotation, a[2]) / a[0][:, None]


def _moved(a: Stack, steps: np.ndarray) -> Stack:
    """Similarities changed a little: log scale, rotation vector, translation in their own units."""
    rotation = a[1] @ Rotation.from_rotvec(steps[:, 1:4]).as_matrix()
    return a[0] * np.exp(steps[:, 0]), rotation, a[2] + a[0][:, None] * steps[:, 4:]


def alike(thumbnails: Float[Tensor, "n d"], gap: int, most: int, least: float = 0.9) -> list[tuple[int, int]]:
    """Pairs of pictures at least ``gap`` apart that look alike: candidates for loops, the most alike first.

    thumbnails: small grey pictures, flat. Compared by correlation; no picture is in two pairs.
    """
    centred = thumbnails - thumbnails.mean(-1, keepdim=True)
    unit = centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    likeness = unit @ unit.T
    n = len(likeness)
    far = torch.arange(n)[None] - torch.arange(n)[:, None] >= gap
    likeness = torch.where(far, likeness, torch.full_like(likeness, -1.0))
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for flat in likeness.flatten().argsort(descending=True).tolist():
        a, b = divmod(flat, n)
        if likeness[a, b] < least or len(pairs) >= most:
            break
        if not {a, b} & taken:
            pairs.append((a, b))
            taken |= {index for near in (a, b) for index in range(near - gap // 2, near + gap // 2 + 1)}
    return pairs
