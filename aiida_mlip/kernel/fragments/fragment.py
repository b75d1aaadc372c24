"""A fragment, what its atoms are for, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.kernel.frames import NONE, Frames, from_arrays

#: How a fragment is completed.
Completion = Literal["crystal", "disordered", "molecular"]
COMPLETIONS: Final[tuple[str, ...]] = ("crystal", "disordered", "molecular")
GENERATOR: Final[str] = "fragment"
#: Value of ``parent_atom`` of an atom that was not in the parent.
NO_PARENT: Final[int] = NONE


class Region(IntEnum):
    """What an atom of a fragment is for."""

    CORE = 0
    TRUST = 1
    BUFFER = 2
    CAP = 3


class NoFragmentError(MlipError):
    """A centre of which no fragment can be made; the message says why."""


class FrameTooSmallError(InvalidInputError):
    """A frame that is smaller than the fragments that are to be cut out of it."""


@dataclass(frozen=True)
class FragmentLimits:
    """What is asked of a fragment.

    :param core_radius: Å; atoms within it are copied as they are and never moved, usually the model's cutoff.
    :param buffer: Å around the core.
    :param trust_depth: Å; atoms at least so far from every cut may be trusted.
    :param max_atoms: largest fragment that DFT is asked to do.
    :param min_distance_ang: smallest distances, see :func:`aiida_mlip.kernel.distances.pair_limits`.
    :param oxidation_states: charge by chemical symbol; empty: nothing is balanced (metals).
    """

    core_radius: float
    buffer: float = 3.0
    trust_depth: float = 3.0
    max_atoms: int = 200
    min_distance_ang: float | Mapping[str, float] | None = None
    oxidation_states: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises InvalidInputError: a length or number of atoms that is not positive.
        """
        for name, least in (("core_radius", 1e-9), ("buffer", 0.0), ("trust_depth", 0.0), ("max_atoms", 1)):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= least):
                raise InvalidInputError(f"{name}: must be {'positive' if least else 'at least 0'}, got {value}")

    @property
    def in_radius(self) -> float:
        """Å from the centre to the nearest cut."""
        return self.core_radius + self.buffer


@dataclass(frozen=True)
class Fragment:
    """A fragment; the centre is its first atom, at the origin.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, zeros for a cluster.
    :param pbc: (3,).
    :param region: (a,) of :class:`Region`.
    :param parent_atom: (a,) index in the parent frame; -1 for an atom that was not there (a cap).
    :param completion: how it was completed.
    :param removed: atoms that repair and balance took away.
    """

    numbers: UInt8[np.ndarray, "a"]
    positions: Float[np.ndarray, "a 3"]
    cell: Float[np.ndarray, "3 3"]
    pbc: Bool[np.ndarray, "3"]
    region: UInt8[np.ndarray, "a"]
    parent_atom: Int[np.ndarray, "a"]
    completion: Completion
    removed: int = 0

    def __len__(self) -> int:
        """Atoms."""
        return len(self.numbers)

    def take(self, rows: np.ndarray, *, removed: int = 0) -> Fragment:
        """The fragment of some of its atoms."""
        return Fragment(
            self.numbers[rows],
            self.positions[rows],
            self.cell,
            self.pbc,
            self.region[rows],
            self.parent_atom[rows],
            self.completion,
            self.removed + removed,
        )

    @property
    def frozen(self) -> Bool[np.ndarray, "a"]:
        """Atoms that stand where they stood in the parent."""
        return np.asarray(self.region == Region.CORE)

    @property
    def masked(self) -> Bool[np.ndarray, "a"]:
        """Atoms whose forces are no labels of the parent's environments: in a cluster all but core and trust."""
        return np.asarray((self.region >= Region.BUFFER) & (self.completion == "molecular"))

    def parent_values(self, values: np.ndarray) -> np.ndarray:
        """Numbers of the parent's atoms (p,), for the atoms of the fragment: (a,), NaN for caps."""
        found = np.asarray(values, dtype=float)[self.parent_atom]
        return np.where(self.parent_atom == NO_PARENT, np.nan, found)

    def to_frames(self, parent_id: UInt8[np.ndarray, "16"]) -> Frames:
        """One unlabelled row with region and parent atom of every atom.

        :param parent_id: frame id of the parent.
        """
        frames = from_arrays(
            natoms=np.array([len(self)]),
            numbers=self.numbers,
            positions=self.positions,
            cell=self.cell[None],
            pbc=self.pbc[None],
            generator=np.zeros(1, dtype=np.int16),
            generators=(GENERATOR,),
            region=self.region,
            parent_atom=self.parent_atom.astype(np.int32),
        )
        return frames.with_columns(parent_id=np.asarray(parent_id, dtype=np.uint8)[None])
