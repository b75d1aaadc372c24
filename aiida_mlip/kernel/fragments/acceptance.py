"""Whether the buffer of a fragment wants to be relaxed, and whether the fragment is good enough to be labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, describe_pair, near_pairs, pair_limits
from aiida_mlip.kernel.fragments.fragment import Region

#: A pair nearer than this many times its limit asks for a relaxation; where the repulsion of the relaxation begins.
NEAR: Final[float] = 1.1
#: A force on a buffer atom above so many times the largest in core and trust region, and above so many eV/Å, is no
#: force of the parent: something was left without its neighbours, or two atoms were put together.
FORCE_EXCESS: Final[float] = 3.0
LEAST_FORCE: Final[float] = 2.0
#: An atom with so many times the γ that it has in the parent has other surroundings than there.
STRANGER: Final[float] = 1.25


@dataclass(frozen=True)
class AcceptanceLimits:
    """What is asked of a fragment before DFT is.

    :param max_atoms: largest fragment.
    :param min_distance_ang: smallest distances, see :func:`aiida_mlip.kernel.distances.pair_limits`.
    :param buffer_novelty: γ that a buffer atom may have in any case.
    :param buffer_excess: and else so many times the largest γ that an atom of the fragment has in the parent: where
        everything is new to the potential, the buffer is, too.
    :param survival: relative change of the centre's γ that is allowed.
    """

    max_atoms: int = 200
    min_distance_ang: float | Mapping[str, float] | None = None
    buffer_novelty: float = 1.5
    buffer_excess: float = 2.0
    survival: float = 0.05

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises InvalidInputError: one that is not positive.
        """
        for name in ("max_atoms", "buffer_novelty", "buffer_excess", "survival"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name}: must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class Assessment:
    """A fragment as the potential sees it; its first atom is the centre.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, zeros for a cluster.
    :param pbc: (3,).
    :param region: (a,) of :class:`~aiida_mlip.kernel.fragments.fragment.Region`.
    :param parent_novelty: (a,) γ in the parent, NaN for caps.
    :param novelty: (a,) γ in the fragment.
    :param forces: (a, 3) eV/Å.
    """

    numbers: UInt8[np.ndarray, "a"]
    positions: Float[np.ndarray, "a 3"]
    cell: Float[np.ndarray, "3 3"]
    pbc: Bool[np.ndarray, "3"]
    region: UInt8[np.ndarray, "a"]
    parent_novelty: Float[np.ndarray, "a"]
    novelty: Float[np.ndarray, "a"]
    forces: Float[np.ndarray, "a 3"]

    @property
    def movable(self) -> Bool[np.ndarray, "a"]:
        """Atoms that a relaxation may move."""
        return movable(self.region)

    @property
    def largest_buffer_novelty(self) -> float:
        """Of the atoms that may be moved; 0 where there are none, inf where one is not a number."""
        values = self.novelty[self.movable]
        return float(np.where(np.isnan(values), np.inf, values).max(initial=0.0))

    @property
    def largest_buffer_force(self) -> float:
        """eV/Å, of the atoms that may be moved."""
        return float(np.linalg.norm(self.forces[self.movable], axis=1).max(initial=0.0))

    def novelty_limit(self, limits: AcceptanceLimits) -> float:
        """γ that no buffer atom may exceed."""
        known = self.parent_novelty[np.isfinite(self.parent_novelty)]
        return max(limits.buffer_novelty, limits.buffer_excess * float(known.max(initial=0.0)))


def movable(region: UInt8[np.ndarray, "a"]) -> Bool[np.ndarray, "a"]:
    """(a,) atoms that a relaxation may move: buffer and caps. Core and trusted atoms stand where they stood."""
    return np.asarray(region >= Region.BUFFER)


def why_relax(fragment: Assessment, limits: AcceptanceLimits) -> str | None:
    """What asks for a relaxation of the buffer; None: every atom should stay where it stood in the parent.

    A buffer of atoms that stand as in the parent is the better for it: in a warm crystal they are where the heat has
    put them, and so are their forces. What a cut can spoil shows as a pair too near, a force beyond all others, or an
    environment that is stranger than any in the parent.
    """
    if not fragment.movable.any():
        return None
    table = pair_limits(limits.min_distance_ang)
    shape = (fragment.numbers, fragment.positions, fragment.cell, fragment.pbc)
    ratio, i, j, distance = closest_pair(*shape, table, reach=NEAR)
    if ratio < NEAR and bool(fragment.movable[[i, j]].any()):
        return f"{describe_pair(fragment.numbers, i, j, distance)}, {ratio:.2f} times the least"
    settled = np.linalg.norm(fragment.forces[~fragment.movable], axis=1).max(initial=0.0)
    if fragment.largest_buffer_force > max(LEAST_FORCE, FORCE_EXCESS * float(settled)):
        return (
            f"a force of {fragment.largest_buffer_force:.1f} eV/Å on a buffer atom, "
            f"{settled:.1f} eV/Å at most on the others"
        )
    if fragment.largest_buffer_novelty > fragment.novelty_limit(limits):
        return f"a buffer atom with γ = {fragment.largest_buffer_novelty:.2f}"
    return None


def disturbed(fragment: Assessment, limits: AcceptanceLimits) -> Bool[np.ndarray, "a"]:
    """(a,) buffer atoms that the cut has put into trouble; these, and no others, are worth moving.

    Those of a pair that is nearer than :data:`NEAR` times its limit, those with a force beyond all others, and, where
    a buffer atom is too strange for the fragment to be accepted, all that are stranger than they were in the parent.
    """
    found = np.zeros(len(fragment.numbers), dtype=bool)
    if not fragment.movable.any():
        return found
    table = pair_limits(limits.min_distance_ang)
    i, _, _ = near_pairs(fragment.numbers, fragment.positions, fragment.cell, fragment.pbc, table, reach=NEAR)
    found[i] = True
    force = np.linalg.norm(fragment.forces, axis=1)
    settled = float(force[~fragment.movable].max(initial=0.0))
    found |= force > max(LEAST_FORCE, FORCE_EXCESS * settled)
    if fragment.largest_buffer_novelty > fragment.novelty_limit(limits):
        before = np.nan_to_num(fragment.parent_novelty, nan=0.0, posinf=np.inf)
        found |= ~(fragment.novelty <= np.maximum(1.0, STRANGER * before))
    return np.asarray(found & fragment.movable)


def why_refuse(fragment: Assessment, limits: AcceptanceLimits) -> str | None:
    """Why a fragment is not to be labelled; None: it is accepted.

    :returns: the first of: too many atoms, a pair too near, a centre whose surroundings did not survive the cutting
        (its γ changed), a buffer that is too strange for the potential.
    """
    a = len(fragment.numbers)
    if a > limits.max_atoms:
        return f"it has {a} atoms, more than max_atoms, {limits.max_atoms}"
    table = pair_limits(limits.min_distance_ang)
    shape = (fragment.numbers, fragment.positions, fragment.cell, fragment.pbc)
    ratio, i, j, distance = closest_pair(*shape, table)
    if ratio < 1:
        return f"{describe_pair(fragment.numbers, i, j, distance)}, nearer than allowed"
    before, after = float(fragment.parent_novelty[0]), float(fragment.novelty[0])
    if not (np.isfinite(before) and np.isfinite(after)):
        return f"the grade of the centre is not finite: {before} in the parent, {after} in the fragment"
    if abs(after - before) > limits.survival * before:
        return (
            f"the surroundings of the centre did not survive: γ = {before:.3f} in the parent, {after:.3f} in the "
            f"fragment, {100 * (after / before - 1):+.1f} %, allowed are {100 * limits.survival:g} %; take a larger "
            "core or buffer"
        )
    allowed = fragment.novelty_limit(limits)
    if fragment.largest_buffer_novelty > allowed:
        return (
            f"the buffer is too strange: γ up to {fragment.largest_buffer_novelty:.2f}, allowed are {allowed:.2f} "
            "(buffer_novelty, or buffer_excess times the largest in the parent)"
        )
    return None
