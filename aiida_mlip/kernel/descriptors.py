"""A simple per-atom descriptor: smooth, and invariant under permutation, rotation, translation and cell choice.

It serves duplicate removal and coverage figures, where no potential is needed. It is no substitute for the features of
a trained potential.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matscipy.neighbours import neighbour_list
from scipy.sparse import csr_matrix

from aiida_mlip.kernel.cells import boxed

#: Neighbours within this distance (Å) enter, unless told otherwise.
DEFAULT_CUTOFF: Final[float] = 5.0
_RADIAL: Final[int] = 8
_ANGULAR: Final[int] = 3
#: Values per atom of :func:`atomic_descriptors`: two channels of radial sums and of l = 1, 2, 3 power spectra.
SIZE: Final[int] = 2 * (_RADIAL + 3 * _ANGULAR)
_GOLDEN: Final[float] = (np.sqrt(5.0) - 1.0) / 2.0
#: Distinct components of the tensors r⊗r and r⊗r⊗r, and how often each occurs in the full contraction.
_RANK2: Final[list[tuple[int, int, int]]] = [(0, 0, 1), (1, 1, 1), (2, 2, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2)]
_RANK3: Final[list[tuple[int, int, int, int]]] = [
    (0, 0, 0, 1), (1, 1, 1, 1), (2, 2, 2, 1), (0, 0, 1, 3), (0, 0, 2, 3),
    (1, 1, 0, 3), (1, 1, 2, 3), (2, 2, 0, 3), (2, 2, 1, 3), (0, 1, 2, 6),
]  # fmt: skip


def species_weights(numbers: UInt8[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
    """Number in -1..1 for each element, well separated for any few elements (golden-ratio sequence)."""
    return 2.0 * ((np.asarray(numbers, dtype=float) * _GOLDEN) % 1.0) - 1.0


def atomic_descriptors(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    cutoff: float = DEFAULT_CUTOFF,
) -> Float[np.ndarray, "a d"]:
    """Descriptor of every atom's surroundings, O(a).

    With w_j = 1 and w_j = s(Z_j) (:func:`species_weights`; doi:10.1063/1.5019667) and radial functions φ_n that vanish
    smoothly at the cutoff: G_n = Σ_j w_j φ_n(r_ij), and for l = 1, 2, 3
    S_nl = (Σ_jk w_j w_k φ_n(r_ij) φ_n(r_ik) P_l(cos θ_jik))^½ (doi:10.1103/PhysRevB.28.784), by tensor moments, so that
    no sum over triples is needed.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors.
    :param pbc: (3,) periodicity.
    :param cutoff: Å.
    :returns: (a, :data:`SIZE`), dimensionless. The species of the atom itself does not enter.
    :raises InvalidInputError: a periodic direction without a lattice vector.
    """
    moved, box = boxed(positions, cell, pbc, padding=cutoff + 1.0)
    i, j, d, D = neighbour_list("ijdD", positions=moved, cell=box, pbc=np.asarray(pbc, dtype=bool), cutoff=cutoff)
    n = len(numbers)
    if len(i) == 0:
        return np.zeros((n, SIZE))
    unit = D / d[:, None]
    gather = csr_matrix((np.ones(len(i)), (i, np.arange(len(i)))), shape=(n, len(i)))
    fade = 0.5 * (1.0 + np.cos(np.pi * d / cutoff))
    radial = fade[:, None] * _gaussians(d, _RADIAL, cutoff)
    angular = fade[:, None] * _gaussians(d, _ANGULAR, cutoff)
    tensors = _tensors(unit)
    parts = []
    for weight in (np.ones(len(j)), species_weights(numbers[j])):
        parts.append(gather @ (weight[:, None] * radial))
        for k in range(_ANGULAR):
            moments = gather @ ((weight * angular[:, k])[:, None] * tensors)
            parts.append(_power_spectrum(moments))
    return np.asarray(np.concatenate(parts, axis=1))


def _gaussians(distances: np.ndarray, count: int, cutoff: float) -> np.ndarray:
    """(p, count) Gaussians with centres from 1 Å to the cutoff, one spacing wide."""
    centres = np.linspace(1.0, cutoff, count, endpoint=False) + 0.5 * (cutoff - 1.0) / count
    width = (cutoff - 1.0) / count
    return np.asarray(np.exp(-0.5 * ((distances[:, None] - centres) / width) ** 2))


def _tensors(unit: np.ndarray) -> np.ndarray:
    """(p, 20) components 1, r, r⊗r, r⊗r⊗r of unit vectors, each distinct one once."""
    columns = [np.ones(len(unit)), *unit.T]
    columns += [unit[:, a] * unit[:, b] for a, b, _ in _RANK2]
    columns += [unit[:, a] * unit[:, b] * unit[:, c] for a, b, c, _ in _RANK3]
    return np.stack(columns, axis=1)


def _power_spectrum(moments: np.ndarray) -> np.ndarray:
    """(a, 3) square roots of Σ_jk w_j w_k P_l(cos θ_jk) for l = 1, 2, 3."""
    scalar = moments[:, 0] ** 2
    vector = (moments[:, 1:4] ** 2).sum(axis=1)
    rank2 = moments[:, 4:10] ** 2 @ np.array([m for *_, m in _RANK2], dtype=float)
    rank3 = moments[:, 10:] ** 2 @ np.array([m for *_, m in _RANK3], dtype=float)
    spectrum = np.stack([vector, 1.5 * rank2 - 0.5 * scalar, 2.5 * rank3 - 1.5 * vector], axis=1)
    return np.asarray(np.sqrt(np.maximum(spectrum, 0.0)))
