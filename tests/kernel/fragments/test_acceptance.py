"""When a buffer is relaxed, which atoms move, and what is refused: each reason alone, and none without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, near_pairs, pair_limits
from aiida_mlip.kernel.fragments.acceptance import (
    AcceptanceLimits,
    Assessment,
    disturbed,
    movable,
    why_refuse,
    why_relax,
)
from aiida_mlip.kernel.fragments.centres import choose_centres, iterate_centres
from aiida_mlip.kernel.fragments.fragment import Region

LIMITS = AcceptanceLimits()


def fragment(**changes) -> Assessment:
    """A sound fragment of 32 copper atoms: nine of the core, nine trusted, the rest buffer."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    region = np.full(32, Region.BUFFER, dtype=np.uint8)
    region[:9], region[9:18] = Region.CORE, Region.TRUST
    novelty = np.full(32, 0.8)
    novelty[0] = 2.0
    sound = Assessment(
        numbers=atoms.numbers.astype(np.uint8),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=np.ones(3, dtype=bool),
        region=region,
        parent_novelty=novelty,
        novelty=novelty.copy(),
        forces=np.full((32, 3), 0.5),
    )
    return replace(sound, **changes)


def with_novelty(atom: int, value: float) -> Assessment:
    novelty = fragment().novelty.copy()
    novelty[atom] = value
    return fragment(novelty=novelty)


def moved(atom: int, towards: int, distance: float) -> Assessment:
    positions = fragment().positions.copy()
    direction = positions[atom] - positions[towards]
    positions[atom] = positions[towards] + distance * direction / np.linalg.norm(direction)
    return fragment(positions=positions)


def test_a_sound_fragment_is_left_alone_and_accepted():
    assert why_relax(fragment(), LIMITS) is None
    assert why_refuse(fragment(), LIMITS) is None
    assert not disturbed(fragment(), LIMITS).any()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (with_novelty(0, 2.2), r"did not survive: γ = 2\.000 in the parent, 2\.200 in the fragment, \+10\.0 %"),
        (with_novelty(0, 1.8), "did not survive"),
        (with_novelty(0, np.nan), "not finite"),
        (with_novelty(0, np.inf), "not finite"),
        (with_novelty(31, 4.1), r"the buffer is too strange: γ up to 4\.10, allowed are 4\.00"),
        (with_novelty(31, np.nan), "the buffer is too strange"),
        (moved(31, 30, 1.8), r"Cu \(atom 3[01]\) and Cu \(atom 3[01]\) are 1\.800 Å apart, nearer than allowed"),
    ],
)
def test_each_refusal_has_its_reason(case, reason):
    import re

    assert re.search(reason, why_refuse(case, LIMITS))


def test_size_counts_first():
    assert why_refuse(fragment(), AcceptanceLimits(max_atoms=31)) == "it has 32 atoms, more than max_atoms, 31"


@given(change=st.floats(-0.2, 0.2), gamma=st.floats(0.5, 100.0))
def test_survival_is_relative(change: float, gamma: float):
    before, after = fragment().parent_novelty.copy(), fragment().novelty.copy()
    before[0], after[0] = gamma, gamma * (1 + change)
    refused = why_refuse(fragment(parent_novelty=before, novelty=after), AcceptanceLimits(survival=0.05))
    assert (refused is not None) == (abs(after[0] - before[0]) > 0.05 * before[0])


@given(own=st.floats(0.1, 50.0), worst=st.floats(0.1, 50.0))
def test_a_buffer_may_be_as_strange_as_the_parent_is(own: float, worst: float):
    """Twice the largest γ of the parent's atoms, or the threshold where the parent is tame; caps have none."""
    before = np.full(32, min(worst, 2.0))
    before[[20, 30]] = worst, np.nan
    state = replace(with_novelty(31, own), parent_novelty=before)
    state.novelty[0] = before[0]
    allowed = max(1.5, 2 * worst)
    state.novelty[1:31] = 0.1
    assert (why_refuse(state, LIMITS) is None) == (own <= allowed)
    assert (why_relax(state, LIMITS) is None) == (own <= allowed)


def test_only_atoms_in_trouble_move():
    """Never core and trust, and of the buffer no others than those."""
    assert np.flatnonzero(disturbed(with_novelty(31, 5.0), LIMITS)).tolist() == [31]
    assert "γ = 5.00" in why_relax(with_novelty(31, 5.0), LIMITS)
    assert np.flatnonzero(disturbed(moved(31, 30, 1.9), LIMITS)).tolist() == [30, 31]
    assert "1.03 times the least" in why_relax(moved(31, 30, 1.9), LIMITS)
    forces = fragment().forces.copy()
    forces[25] = [0.0, 9.0, 0.0]
    assert np.flatnonzero(disturbed(fragment(forces=forces), LIMITS)).tolist() == [25]
    assert "9.0 eV/Å on a buffer atom" in why_relax(fragment(forces=forces), LIMITS)
    # in core and trust region it is the parent's own affair
    forces[25], forces[3] = 0.5, [0.0, 9.0, 0.0]
    assert why_relax(fragment(forces=forces), LIMITS) is None
    assert not disturbed(with_novelty(12, 50.0), LIMITS).any()
    assert movable(fragment().region).sum() == 14


def test_a_fragment_without_a_buffer_is_never_relaxed():
    whole = fragment(region=np.zeros(32, dtype=np.uint8))
    assert why_relax(whole, LIMITS) is None
    assert not disturbed(whole, LIMITS).any()
    assert why_refuse(whole, LIMITS) is None


@pytest.mark.parametrize("name", ["max_atoms", "buffer_novelty", "buffer_excess", "survival"])
def test_limits_are_positive(name):
    with pytest.raises(InvalidInputError, match=f"{name}: must be positive, got 0"):
        AcceptanceLimits(**{name: 0})


@given(seed=st.integers(0, 1000))
def test_near_pairs_hold_the_closest_one(seed: int):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.5, seed=seed)
    shape = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    limits = pair_limits(None)
    i, j, ratio = near_pairs(*shape, limits, reach=1.2)
    closest = closest_pair(*shape, limits, reach=1.2)
    if len(i):
        assert ratio.min() == closest[0]
        assert (closest[1], closest[2]) in set(zip(i.tolist(), j.tolist(), strict=True))
        assert ratio.max() < 1.2
    else:
        assert closest[0] >= 1.2


def test_centres_one_by_one_are_the_same():
    rng = np.random.default_rng(0)
    positions, grades = rng.uniform(0, 30, (500, 3)), rng.uniform(0, 5, 500)
    shape = (positions, 30 * np.eye(3), np.ones(3, dtype=bool))
    every = choose_centres(grades, *shape, threshold=1.0, separation=8.0)
    lazy = iterate_centres(grades, *shape, threshold=1.0, separation=8.0)
    assert [next(lazy) for _ in range(5)] == every[:5].tolist()
    assert choose_centres(grades, *shape, threshold=1.0, separation=8.0, limit=3).tolist() == every[:3].tolist()
