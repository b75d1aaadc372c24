"""Energy of each species when alone: what the model need not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames

#: Weight of the ridge penalty relative to the data: decides only what the data leave open.
RIDGE: Final[float] = 1e-8


def compositions(frames: Frames, species: Sequence[str]) -> Int[np.ndarray, "n s"]:
    """(n, s) atoms of each species in each row.

    :raises InvalidInputError: a row has a species that is not listed.
    """
    from ase.data import atomic_numbers

    numbers = np.array([atomic_numbers[symbol] for symbol in species], dtype=np.int64)
    counts = np.zeros((len(frames), len(species)), dtype=np.int64)
    rows = frames.atom_rows()
    for column, number in enumerate(numbers):
        counts[:, column] = np.bincount(rows[frames.numbers == number], minlength=len(frames))
    if (counts.sum(axis=1) != frames.natoms).any():
        raise InvalidInputError(f"frames have species {frames.species}, but only {list(species)} are listed")
    return counts


def fit_reference_energies(
    frames: Frames, species: Sequence[str], *, prior: Mapping[str, float] | None = None, ridge: float = RIDGE
) -> dict[str, float]:
    """Energy per atom of each species (eV): a prior plus a ridge fit of what remains.

    With x_i the fractions of the species in frame i and y_i = E_i/N_i − x_i·e⁰ the residual per atom,
    d = argmin Σ_i (y_i − x_i·d)² + λ n |d|², and the result is e⁰ + d. Directions that the compositions leave open
    (always the same stoichiometry) get the shortest d, so the result is always defined.

    :param frames: rows; those without an energy are left out.
    :param species: chemical symbols wanted.
    :param prior: e⁰: energies of isolated atoms (eV), where known; a species without one starts at 0.
    :param ridge: λ, relative to the number of frames.
    :raises InvalidInputError: a frame has a species that is not listed.

    >>> from ase.build import bulk
    >>> from aiida_mlip.kernel.frames import from_ase
    >>> frames = from_ase([bulk("Si")]).with_columns(energy=np.array([-10.0]))
    >>> round(fit_reference_energies(frames, ["Si"])["Si"], 6)
    -5.0
    """
    known = prior or {}
    start = np.array([float(known.get(symbol, 0.0)) for symbol in species])
    counts = compositions(frames, species)
    rows = np.isfinite(frames.energy) & (frames.natoms > 0)
    shift = np.zeros(len(species))
    if rows.any():
        fractions: Float64[np.ndarray, "n s"] = counts[rows] / frames.natoms[rows, None]
        residual = frames.energy[rows] / frames.natoms[rows] - fractions @ start
        shift = _ridge(fractions, residual, ridge)
    return {symbol: float(value) for symbol, value in zip(species, start + shift, strict=True)}


def _ridge(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Argmin |y − x d|² + λ n |d|², by singular values: exact also for a rank-deficient x."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    weights = s / (s**2 + ridge * len(y))
    return np.asarray(vt.T @ (weights * (u.T @ y)))


def isolated_energies(known: Mapping[str, float], species: Sequence[str], fidelity: str) -> dict[str, float]:
    """Energies of isolated atoms (eV) of all species.

    :param known: what the dataset has at this fidelity.
    :raises InvalidInputError: one is missing; names it.
    """
    if missing := [symbol for symbol in species if symbol not in known]:
        raise InvalidInputError(
            f"'reference: isolated' needs an isolated atom of {', '.join(missing)} labelled at {fidelity!r}; "
            "use 'reference: fit' or label one"
        )
    return {symbol: float(known[symbol]) for symbol in species}


def rms_force(frames: Frames, *, floor: float = 1e-3) -> float:
    """Root of the mean square of the force components that are known (eV/Å), at least ``floor``.

    It is the energy scale of the model (doi:10.1038/s41467-022-29939-5); ``floor`` is for perfect crystals.
    """
    known = frames.forces[np.isfinite(frames.forces)]
    if known.size == 0:
        return 1.0
    return float(max(np.sqrt(np.mean(known**2)), floor))
