"""Energy of each species when alone: what the model need not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, id_keys

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


def fit_level_references(
    frames: Frames,
    species: Sequence[str],
    fidelities: Sequence[str],
    *,
    priors: Mapping[str, Mapping[str, float]] | None = None,
    ridge: float = RIDGE,
) -> dict[str, dict[str, float]]:
    """Energy per atom of each species (eV) at several levels of theory, such that their differences are small.

    The level b with most energies gets e_b by :func:`fit_reference_energies`. Any other level f that labels frames
    which b labels too gets e_b + (e⁰_f − e⁰_b) + d, with d the ridge fit of what remains of (E_f − E_b)/N on those
    frames: there the differences between the levels are as small as they can be made. A level without such frames
    gets a fit to its own energies, which starts from its e⁰, or from e_b.

    :param frames: rows at any of the levels; those without an energy are left out.
    :param species: chemical symbols wanted.
    :param fidelities: names of the levels.
    :param priors: e⁰ per level and symbol (eV): energies of isolated atoms; heeded only if all levels know all species.
    :param ridge: λ, relative to the number of frames.
    :raises InvalidInputError: a frame has a species that is not listed.
    """
    known = priors or {}
    complete = all(symbol in known.get(name, {}) for name in fidelities for symbol in species)
    start = {name: {symbol: known[name][symbol] if complete else 0.0 for symbol in species} for name in fidelities}
    rows = {name: _energy_rows(frames, name) for name in fidelities}
    base = max(fidelities, key=lambda name: len(rows[name]))
    found = {base: fit_reference_energies(frames.take(rows[base]), species, prior=start[base], ridge=ridge)}
    for name in fidelities:
        if name == base:
            continue
        prior = {symbol: found[base][symbol] + start[name][symbol] - start[base][symbol] for symbol in species}
        _, mine, theirs = np.intersect1d(
            id_keys(frames.frame_id[rows[name]]), id_keys(frames.frame_id[rows[base]]), return_indices=True
        )
        fitted = frames.take(rows[name][mine] if len(mine) else rows[name])
        if len(mine):
            # E_f − (E_b − n·e_b): what is left of E_f is the reference alone, and the difference between the levels
            counts = compositions(fitted, species)
            bound = frames.energy[rows[base][theirs]] - counts @ np.array([found[base][symbol] for symbol in species])
            fitted = fitted.with_columns(energy=fitted.energy - bound)
        elif complete:
            prior = start[name]
        found[name] = fit_reference_energies(fitted, species, prior=prior, ridge=ridge)
    return {name: found[name] for name in fidelities}


def level_shifts(
    references: Mapping[str, Mapping[str, float]], target: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Per level and symbol (eV): what a model in the energies of the target lacks of the energy of that level.

    :param references: reference energies of each level.
    :param target: reference energies that the model has.

    >>> level_shifts({"lda": {"Si": -5.0}, "pbe": {"Si": -7.0}}, {"Si": -7.0})
    {'lda': {'Si': 2.0}, 'pbe': {'Si': 0.0}}
    """
    return {
        name: {symbol: float(value) - float(target[symbol]) for symbol, value in known.items()}
        for name, known in references.items()
    }


def in_energies_of_one(frames: Frames, shifts: Mapping[str, Mapping[str, float]]) -> Frames:
    """The same rows with E' = E − Σ_s n_s·shift_f[s] for their level f; forces and stress stay.

    :param shifts: eV per level and symbol, see :func:`level_shifts`.
    :raises InvalidInputError: a row at another level, or with a species that is not listed.
    """
    energy = np.array(frames.energy, dtype=float)
    for index in np.unique(frames.fidelity):
        name = frames.fidelities[index] if index >= 0 else ""
        if name not in shifts:
            raise InvalidInputError(f"rows at fidelity {name!r}, but the levels are {', '.join(shifts)}")
        rows = frames.fidelity == index
        counts = compositions(frames.take(rows), list(shifts[name]))
        energy[rows] -= counts @ np.array(list(shifts[name].values()))
    return frames.with_columns(energy=energy)


def _energy_rows(frames: Frames, fidelity: str) -> Int[np.ndarray, "k"]:
    """Row numbers with an energy at this level."""
    if fidelity not in frames.fidelities:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero((frames.fidelity == frames.fidelity_index(fidelity)) & np.isfinite(frames.energy))


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
