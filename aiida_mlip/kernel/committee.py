"""Deviations between the members of a committee: forces per atom, energies and stresses per frame.

The force deviation is that of *vectors*, u_i = sqrt(Σ_m |F_i^m − F̄_i|² / (M − 1)), and what a frame is judged by is its
*largest* one: a mean over atoms dilutes one bad atom by 1/N and is blind in large cells.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError


def force_deviation(forces: Float[np.ndarray, "M a 3"]) -> Float[np.ndarray, "a"]:
    """(a,) vector deviation of the forces, eV/Å: u_i = sqrt(Σ_m |F_i^m − F̄_i|² / (M − 1)).

    :param forces: (M, a, 3) eV/Å of M >= 2 members; an atom that a member has no forces for is NaN.
    :raises InvalidInputError: fewer than two members, or no vectors.

    >>> force_deviation(np.array([[[1.0, 0, 0]], [[0, 1.0, 0]]])).round(3).tolist()
    [1.0]
    """
    values = _members(forces, "forces", (3,))
    moved = values - values.mean(axis=0)
    return np.asarray(np.sqrt(np.einsum("mac,mac->a", moved, moved) / (len(values) - 1)))


def energy_deviation(energy: Float[np.ndarray, "M n"], natoms: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """(n,) standard deviation of the energies per atom, eV.

    :param energy: (M, n) total energies, eV, of M >= 2 members.
    :param natoms: (n,) atoms of each frame.
    :raises InvalidInputError: fewer than two members, or lengths that differ.
    """
    values = _members(energy, "energies", ())
    if np.shape(natoms) != values.shape[1:]:
        raise InvalidInputError(f"energies have shape {values.shape}, numbers of atoms {np.shape(natoms)}")
    return np.asarray(np.std(values / natoms, axis=0, ddof=1))


def stress_deviation(stress: Float[np.ndarray, "M n 3 3"]) -> Float[np.ndarray, "n"]:
    """(n,) deviation of the stress tensors in the Frobenius norm, eV/Å³.

    :param stress: (M, n, 3, 3) eV/Å³ of M >= 2 members.
    :raises InvalidInputError: fewer than two members, or no tensors.
    """
    values = _members(stress, "stresses", (3, 3))
    moved = values - values.mean(axis=0)
    return np.asarray(np.sqrt(np.einsum("mnij,mnij->n", moved, moved) / (len(values) - 1)))


def largest_per_frame(values: Float[np.ndarray, "a"], natoms: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """(n,) largest value over the atoms of each frame; NaN where one of them is.

    :param values: (a,) per atom, any unit.
    :param natoms: (n,) atoms of each frame, at least one; they add up to a.
    :raises InvalidInputError: they do not, or a frame has none.

    >>> largest_per_frame(np.array([1.0, 5.0, 2.0]), np.array([2, 1])).tolist()
    [5.0, 2.0]
    """
    counts = np.asarray(natoms)
    if counts.sum() != len(values) or (counts < 1).any():
        raise InvalidInputError(f"{len(values)} values for frames of {int(counts.sum())} atoms, each of at least one")
    if not len(counts):
        return np.zeros(0)
    return np.asarray(np.maximum.reduceat(values, np.concatenate([[0], np.cumsum(counts)[:-1]])))


def _members(values: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 + len(shape) or array.shape[2:] != shape or len(array) < 2:
        wanted = ", ".join(["M >= 2", "n", *map(str, shape)])
        raise InvalidInputError(f"{name} of a committee have shape {array.shape}, expected ({wanted})")
    return array
