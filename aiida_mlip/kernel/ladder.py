"""Ladders: one molecular dynamics run per seed frame, temperature, volume, strain and replica."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.cells import boxed
from aiida_mlip.kernel.frames import Frames, digest, from_arrays


@dataclass(frozen=True)
class Rung:
    """One run of a ladder.

    :param seed_row: row of the seed frame.
    :param seed_id: its frame id, 32 hexadecimal digits.
    :param kelvin: temperature in K.
    :param volume_scale: V/V₀.
    :param strain: (6,) components xx, yy, zz, yz, xz, xy of the symmetric strain tensor.
    :param replica: number of the run among those that differ in their velocities only.
    """

    seed_row: int
    seed_id: str
    kelvin: float
    volume_scale: float
    strain: tuple[float, ...]
    replica: int

    def key(self, seed: int) -> np.ndarray:
        """(16,) identity of the trajectory: it does not depend on which other rungs the ladder has."""
        numbers = (self.kelvin, self.volume_scale, *self.strain, self.replica, seed)
        return digest("aimd", self.seed_id, ",".join(repr(float(x)) for x in numbers))

    def rng(self, seed: int) -> np.random.Generator:
        """Random numbers of this run alone."""
        return np.random.default_rng(np.frombuffer(self.key(seed).tobytes(), dtype="<u4"))


def ladder(
    seeds: Frames,
    temperatures: Sequence[float],
    volume_scales: Sequence[float] = (1.0,),
    strains: Sequence[Sequence[float]] = ((0.0,) * 6,),
    replicas: int = 1,
) -> tuple[Rung, ...]:
    """All combinations, by seed, volume, strain, temperature, replica; a seed that appears twice runs once."""
    first = {name: row for row, name in reversed(list(enumerate(seeds.ids())))}
    return tuple(
        Rung(row, name, float(kelvin), float(scale), tuple(float(x) for x in strain), replica)
        for name, row in sorted(first.items(), key=lambda item: item[1])
        for scale, strain, kelvin, replica in itertools.product(volume_scales, strains, temperatures, range(replicas))
    )


def deformation_gradient(volume_scale: float, strain: Sequence[float]) -> Float[np.ndarray, "3 3"]:
    r"""F = (V/V₀)^⅓ (1 + ε) of a volume ratio and a strain; the strain's own volume change comes on top.

    :param strain: ε components xx, yy, zz, yz, xz, xy.

    >>> deformation_gradient(1.0, (0.0,) * 6).tolist() == np.eye(3).tolist()
    True
    """
    xx, yy, zz, yz, xz, xy = strain
    epsilon = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return float(volume_scale) ** (1 / 3) * (np.eye(3) + epsilon)


def starting_frame(seeds: Frames, rung: Rung, *, supercell: Sequence[int] = (1, 1, 1), padding: float = 6.0) -> Frames:
    """Frame a run starts from: the seed, boxed where it has no cell vector, repeated, then deformed.

    :param seeds: seed frames.
    :param rung: which seed, and its deformation.
    :param supercell: repetitions along the three cell vectors; 1 along directions that are not periodic.
    :param padding: empty space (Å) around directions without a cell vector.
    :returns: one row, without labels, whose parent is the seed.
    :raises InvalidInputError: a deformation or repetition of a seed that is not periodic in those directions, a cell
        that is turned inside out, or a single atom.
    """
    part = seeds.atom_slice(rung.seed_row)
    pbc = seeds.pbc[rung.seed_row]
    where = f"structures, frame {rung.seed_row}"
    repeats = np.asarray(supercell, dtype=int)
    if (repeats[~pbc] != 1).any():
        raise InvalidInputError(
            f"supercell: {where} is periodic along {pbc.tolist()}, cannot be repeated {list(supercell)}"
        )
    gradient = deformation_gradient(rung.volume_scale, rung.strain)
    if not pbc.all() and not np.allclose(gradient, np.eye(3), rtol=0, atol=0):
        raise InvalidInputError(f"volume_scales, strains: {where} is periodic along {pbc.tolist()} only, not strained")
    if np.linalg.det(gradient) <= 0:
        raise InvalidInputError(f"strains: {list(rung.strain)} turns the cell inside out")
    positions, cell = boxed(seeds.positions[part], seeds.cell[rung.seed_row], pbc, padding=padding)
    shifts = np.array(list(itertools.product(*(range(n) for n in repeats)))) @ cell
    positions = (shifts[:, None, :] + positions[None, :, :]).reshape(-1, 3)
    numbers = np.tile(seeds.numbers[part], len(shifts))
    if len(numbers) < 2:
        raise InvalidInputError(
            f"supercell: {where} has one atom, and the centre of mass of a run rests; repeat it, e.g. [2, 2, 2]"
        )
    return from_arrays(
        natoms=np.array([len(numbers)]),
        numbers=numbers,
        positions=positions @ gradient.T,
        cell=(repeats[:, None] * cell @ gradient.T)[None],
        pbc=pbc[None],
        parent_id=seeds.frame_id[rung.seed_row][None],
    )


def describe(rung: Rung) -> str:
    """A run in words, for reports."""
    text = f"frame {rung.seed_id[:8]}, {rung.kelvin:g} K"
    if rung.volume_scale != 1.0:
        text += f", V/V0 {rung.volume_scale:g}"
    if any(rung.strain):
        text += f", strain {list(rung.strain)}"
    return text + (f", replica {rung.replica}" if rung.replica else "")
