"""Long sequences in pieces: the plan covers, joining undoes what was done to the pieces, loops take drift away."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import Sim3
from scenetx.core.rigid import rotation_angle, rotation_from_rotvec
from scenetx.geometry.chunks import Link, align_points, alike, chain, plan_chunks, settle


@settings(deadline=None, max_examples=40)
@given(pictures=st.integers(1, 300), size=st.integers(2, 40), share=st.floats(0.05, 0.95))
def test_the_plan_covers_every_picture_and_overlaps(pictures: int, size: int, share: float):
    overlap = min(max(1, round(share * size)), size - 1)
    chunks = plan_chunks(pictures, size, overlap)
    assert sorted({index for chunk in chunks for index in chunk}) == list(range(pictures))
    assert all(len(chunk) <= size for chunk in chunks)
    for before, after in pairwise(chunks):
        assert len(set(before) & set(after)) >= overlap
        assert after.start > before.start
    assert len(chunks) == 1 or all(len(chunk) == size for chunk in chunks)


def test_a_plan_without_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        plan_chunks(20, 5, 5)
    with pytest.raises(ValueError, match="overlap"):
        plan_chunks(20, 5, 0)


def random_sim3(generator: torch.Generator, turn: float = 1.0) -> Sim3:
    values = torch.randn(7, generator=generator, dtype=torch.float64)
    return Sim3(float((0.5 * values[0]).exp()), rotation_from_rotvec(turn * values[1:4]), values[4:])


def difference(a: Sim3, b: Sim3) -> float:
    turned = float(rotation_angle(a.rotation.T @ b.rotation))
    return turned + abs(a.scale / b.scale - 1) + float((a.translation - b.translation).norm())


def test_points_are_aligned_in_spite_of_outliers():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    true = random_sim3(generator)
    target = true.apply(source) + 0.01 * torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    target[:700] = 5 * torch.randn(700, 3, generator=generator, dtype=torch.float64)
    target[3] = torch.nan
    found, fit = align_points(target, source)
    assert difference(found, true) < 0.01
    assert fit < 0.05
    # Trust, where given, has its say: with the good points mistrusted the answer is another.
    trust = torch.zeros(2000, dtype=torch.float64)
    trust[:700] = 1
    _, bad = align_points(target, source, trust)
    assert bad > 0.3
    with pytest.raises(ValueError, match="three"):
        align_points(target[:2], source[:2])


def ring(generator: torch.Generator, noise: float):
    """True poses of ten chunks around a circle and the links between them, measured with an error that adds up."""
    true = [Sim3.identity()]
    turn = rotation_from_rotvec(torch.tensor([0.0, 0.628, 0.0], dtype=torch.float64))
    step = Sim3(1.0, turn, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    for _ in range(9):
        true.append(true[-1] @ step)
    links = []
    for index in range(9):
        measured = true[index].inverse() @ true[index + 1]
        values = noise * torch.randn(7, generator=generator, dtype=torch.float64)
        error = Sim3(float(values[0].exp()), rotation_from_rotvec(values[1:4]), values[4:])
        links.append(Link(index, index + 1, measured @ error))
    return true, links


def test_without_loops_the_chunks_are_chained():
    true, links = ring(torch.Generator().manual_seed(1), 0.0)
    for found, expected in zip(settle(links, 10), true, strict=True):
        assert difference(found, expected) < 1e-9
    with pytest.raises(ValueError, match="not linked"):
        chain(links[1:], 10)


def test_a_loop_takes_most_of_the_drift_away_and_a_false_loop_little():
    true, links = ring(torch.Generator().manual_seed(2), 0.03)
    drift = difference(chain(links, 10)[9], true[9])
    loop = Link(0, 9, true[0].inverse() @ true[9], weight=10.0)
    settled = settle([*links, loop], 10)
    assert difference(settled[9], true[9]) < 0.2 * drift
    assert difference(settled[5], true[5]) < difference(chain(links, 10)[5], true[5])
    far = torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64)
    wrong = Sim3(3.0, rotation_from_rotvec(torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)), far)
    fooled = settle([*links, loop, Link(1, 7, wrong)], 10)
    assert difference(fooled[9], true[9]) < drift


def test_alike_pictures_far_apart_are_found_once():
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(20, 192, generator=generator)
    walk = torch.cat([places, places[:5]]) + 0.05 * torch.randn(25, 192, generator=generator)
    pairs = alike(walk, gap=10, most=8)
    assert pairs
    assert all(b - a == 20 for a, b in pairs)
    assert alike(places, gap=5, most=8) == []
