"""Whether energies, forces and stresses of frames belong together: the two tests behind the plausibility check.

*Work*: two frames that are small displacements of one another differ in energy by the work of the mean force and
stress, ΔE = -½(F₁ + F₂)·u + ½(V₁σ₁ + V₂σ₂):ε (trapezoid; exact to second order).
*Probe*: a linear potential fitted to the forces of one half of the frames (:mod:`~aiida_mlip.kernel.linear_probe`)
predicts the energies of the other half up to a constant per species, and the other way round.
Both give the ratio of the energies in the file to those of the forces: 1 when they belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.kernel.distances import geometry, smallest_distances
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.linear_probe import Design, Probe, fit

#: Displacements (Å) and strains up to which the trapezoid rule is trusted.
MAX_STEP_ANG: Final[float] = 0.35
MAX_STRAIN: Final[float] = 0.03
#: Energy differences (eV per atom) below this say nothing.
_SIGNIFICANT: Final[float] = 1e-4
_MIN_PAIRS: Final[int] = 4
_CUTOFF_IN_NEIGHBOURS: Final[float] = 2.1
_FIT_ATOMS: Final[int] = 3000
_FIT_FRAMES: Final[int] = 80
_CHECK_FRAMES: Final[int] = 400
_CHECK_ATOMS: Final[int] = 20_000
_MAX_ATOMS: Final[int] = 600
_MAX_SPECIES: Final[int] = 5
_MIN_FRAMES: Final[int] = 12
_MIN_CORRELATION: Final[float] = 0.7
_RIDGE: Final[float] = 1e-7


@dataclass(frozen=True)
class WorkTest:
    """Result of :func:`work_test`.

    :param ratio: median of ΔE(file) / ΔE(work); infinite when the forces do no work at all.
    :param spread: normalised median absolute deviation of that ratio.
    :param pairs: number of pairs of frames.
    :param row: row of the pair with the largest work.
    """

    ratio: float
    spread: float
    pairs: int
    row: int


@dataclass(frozen=True)
class ProbeTest:
    """Result of :func:`probe_test`; pairs are one value per half of the frames.

    :param energy_ratio: slopes of the file's energies against those of the forces.
    :param energy_correlation: their correlations, a constant per species removed.
    :param stress_ratio: slopes of the file's stresses (mean removed) against those of the forces; NaN without stresses.
    :param stress_correlation: their correlations.
    :param stiffness: mean curvature times squared neighbour distance, eV: 5 (noble gases) to 200 (diamond).
    :param rows: (r,) rows that were looked at.
    :param force_correlation: (r,) between the forces of a row and those of the probe.
    :param force_ratio: (r,) their slope.
    :param force_rms: (r,) rms force of the row, eV/Å.
    :param energy_deviation: (r,) eV per atom, residual of the energy line.
    :param telling: row whose energy differs most from the others.
    """

    energy_ratio: tuple[float, float]
    energy_correlation: tuple[float, float]
    stress_ratio: tuple[float, float]
    stress_correlation: tuple[float, float]
    stiffness: float
    rows: Int[np.ndarray, "r"]
    force_correlation: Float[np.ndarray, "r"]
    force_ratio: Float[np.ndarray, "r"]
    force_rms: Float[np.ndarray, "r"]
    energy_deviation: Float[np.ndarray, "r"]
    telling: int


def work_test(frames: Frames) -> WorkTest | None:
    """Compare energy differences with the work between neighbouring rows; None when no rows are close enough.

    :param frames: rows of one fidelity.
    """
    found: list[tuple[float, float, int]] = []
    first = 0
    for row in range(1, len(frames)):
        if not _same_atoms(frames, row - 1, row):
            first = row
            continue
        for other in {row - 1, first}:
            pair = _work(frames, other, row)
            if pair is not None:
                found.append((*pair, row))
    if not found:
        return None
    table = np.array(found)
    difference, work, rows = table.T
    size = frames.natoms[rows.astype(int)]
    telling = np.maximum(np.abs(work), np.abs(difference)) / size > _SIGNIFICANT
    if telling.sum() < _MIN_PAIRS:
        return None
    largest = int(rows[telling][np.argmax(np.abs(difference[telling]))])
    if np.abs(work[telling]).max() < 1e-6 * np.abs(difference[telling]).max():
        return WorkTest(ratio=np.inf, spread=0.0, pairs=int(telling.sum()), row=largest)
    ratios = difference[telling] / np.where(work[telling] == 0.0, np.nan, work[telling])
    ratios = ratios[np.isfinite(ratios)]
    middle = float(np.median(ratios))
    return WorkTest(
        ratio=middle,
        spread=float(1.4826 * np.median(np.abs(ratios - middle))),
        pairs=int(telling.sum()),
        row=largest,
    )


def _same_atoms(frames: Frames, a: int, b: int) -> bool:
    return bool(
        frames.natoms[a] == frames.natoms[b]
        and (frames.pbc[a] == frames.pbc[b]).all()
        and (frames.numbers[frames.atom_slice(a)] == frames.numbers[frames.atom_slice(b)]).all()
    )


def _work(frames: Frames, a: int, b: int) -> tuple[float, float] | None:
    """(ΔE of the file, ΔE of the work) in eV between two rows, None when they are too far apart or unlabelled."""
    part_a, part_b = frames.atom_slice(a), frames.atom_slice(b)
    forces = 0.5 * (frames.forces[part_a] + frames.forces[part_b])
    difference = frames.energy[b] - frames.energy[a]
    if not (np.isfinite(forces).all() and np.isfinite(difference)):
        return None
    if not frames.pbc[a].any():
        moves = frames.positions[part_b] - frames.positions[part_a]
        return None if np.abs(moves).max() > MAX_STEP_ANG else (float(difference), float(-(forces * moves).sum()))
    cell_a, cell_b = frames.cell[a], frames.cell[b]
    if min(abs(np.linalg.det(cell_a)), abs(np.linalg.det(cell_b))) < 1e-6:
        return None
    gradient = np.linalg.solve(cell_a, cell_b)  # row vectors: cell_b = cell_a (1 + ε)
    strain = gradient - np.eye(3)
    if np.abs(strain).max() > MAX_STRAIN:
        return None
    shift = np.linalg.solve(cell_b.T, frames.positions[part_b].T).T
    shift -= np.linalg.solve(cell_a.T, frames.positions[part_a].T).T
    shift -= np.round(shift) * frames.pbc[a]
    moves = shift @ (0.5 * (cell_a + cell_b))
    if np.linalg.norm(moves, axis=1).max() > MAX_STEP_ANG:
        return None
    work = -(forces * moves).sum()
    if np.abs(strain).max() > 1e-7:
        virial = 0.5 * sum(abs(np.linalg.det(frames.cell[k])) * frames.stress[k] for k in (a, b))
        if not np.isfinite(virial).all():
            return None
        work += (virial * strain).sum()
    return float(difference), float(work)


def probe_test(frames: Frames) -> ProbeTest | None:
    """Fit the linear probe to the forces and compare energies and stresses with what it predicts.

    :param frames: rows of one fidelity.
    :returns: None when there is too little to fit: few frames or forces, many species, or forces it cannot describe.
    """
    usable = _usable_rows(frames)
    species = tuple(int(z) for z in np.unique(frames.numbers))
    if len(usable) < _MIN_FRAMES or len(species) > _MAX_SPECIES:
        return None
    count = min(len(usable), _CHECK_FRAMES, max(_MIN_FRAMES, int(_CHECK_ATOMS / np.mean(frames.natoms[usable]))))
    rows = usable[np.unique(np.linspace(0, len(usable) - 1, count).astype(int))]
    looked = frames.take(rows)
    nearest = smallest_distances(looked, cutoff=8.0)
    if not np.isfinite(nearest).any():
        return None
    spacing = float(np.median(nearest[np.isfinite(nearest)]))
    probe = Probe(_CUTOFF_IN_NEIGHBOURS * spacing, species)
    train = _training_rows(looked)
    designs = {int(row): probe.design(looked, int(row)) for row in train}
    forces = [looked.forces[looked.atom_slice(row)] for row in range(len(looked))]
    halves = [{int(row): designs[int(row)] for row in train[part::2]} for part in (0, 1)]
    if min(sum(forces[row].size for row in half) for half in halves) < 3 * designs[int(train[0])].energy.size:
        return None
    coefficients = np.stack([_robust_fit(half, forces) for half in halves], axis=1)
    energy, stress = np.empty((len(looked), 2)), np.empty((len(looked), 3, 3, 2))
    lines = np.empty((len(looked), 2))
    for row in range(len(looked)):
        both = [probe.predict(looked, row, coefficients[:, k]) for k in (0, 1)]
        energy[row] = [prediction.energy for prediction in both]
        stress[row] = np.stack([prediction.stress for prediction in both], axis=-1)
        # the half that did not see this row speaks about it; both about a row that neither saw
        mix = np.array([row not in halves[0], row not in halves[1]], dtype=float)
        forces_here = np.tensordot(mix / mix.sum(), [prediction.forces for prediction in both], axes=1)
        lines[row] = _line(forces_here, forces[row])
    if np.median(lines[:, 0]) < _MIN_CORRELATION:
        return None
    other = [np.setdiff1d(np.arange(len(looked)), list(half)) for half in halves]
    results = [_energy_line(looked.take(rows_), energy[rows_, k]) for k, rows_ in enumerate(other)]
    stresses = [_stress_line(stress[rows_, ..., k], looked.stress[rows_]) for k, rows_ in enumerate(other)]
    per_atom = looked.energy / looked.natoms
    return ProbeTest(
        energy_ratio=(results[0][0], results[1][0]),
        energy_correlation=(results[0][1], results[1][1]),
        stress_ratio=(stresses[0][1], stresses[1][1]),
        stress_correlation=(stresses[0][0], stresses[1][0]),
        stiffness=_curvature(probe, looked, coefficients.mean(axis=1)) * spacing**2,
        rows=rows,
        force_correlation=lines[:, 0],
        force_ratio=lines[:, 1],
        force_rms=np.array([np.sqrt(np.mean(force**2)) for force in forces]),
        energy_deviation=_energy_line(looked, energy.mean(axis=1))[2],
        telling=int(rows[np.argmax(np.abs(per_atom - np.median(per_atom)))]),
    )


def _usable_rows(frames: Frames) -> np.ndarray:
    """Rows with more than one atom, an energy and all forces, not all of them zero."""
    known = np.isfinite(frames.forces).all(axis=1)
    size = np.linalg.norm(np.nan_to_num(frames.forces), axis=1)
    starts = frames.offsets[:-1]
    complete = np.minimum.reduceat(known, starts)
    moving = np.maximum.reduceat(size, starts) > 1e-4
    small = (frames.natoms > 1) & (frames.natoms <= _MAX_ATOMS)
    return np.flatnonzero(complete & moving & small & np.isfinite(frames.energy))


def _training_rows(frames: Frames) -> np.ndarray:
    """Evenly spaced rows with about ``_FIT_ATOMS`` atoms in all."""
    count = int(min(len(frames), _FIT_FRAMES, max(8, _FIT_ATOMS // max(1, int(np.mean(frames.natoms))))))
    return np.unique(np.linspace(0, len(frames) - 1, count).astype(int))


def _robust_fit(designs: dict[int, Design], forces: list[np.ndarray]) -> np.ndarray:
    """Fit twice; rows whose forces point against the first fit are left out of the second."""
    targets = [forces[row] for row in designs]
    squares = np.array([np.mean(target**2) for target in targets])
    # a hot row must not drown the others, nor one with hardly any force speak louder than it can
    weights = 1.0 / (squares + np.mean(squares))
    first = fit(list(designs.values()), targets, weights=weights, ridge=_RIDGE)
    good = np.array([_line(d.forces @ first, f)[0] > 0.3 for d, f in zip(designs.values(), targets, strict=True)])
    if good.all() or good.sum() < 3:
        return first
    return fit(list(designs.values()), targets, weights=np.where(good, weights, 0.0), ridge=_RIDGE)


def _stress_line(predicted: np.ndarray, stress: np.ndarray) -> tuple[float, float]:
    """Correlation and slope of the variation of the stress; its mean says nothing where the volume hardly varies."""
    known = np.isfinite(predicted).all(axis=(1, 2)) & np.isfinite(stress).all(axis=(1, 2))
    if known.sum() < _MIN_FRAMES // 2:
        return 0.0, np.nan
    x, y = predicted[known], stress[known]
    return _line(x - x.mean(axis=0), y - y.mean(axis=0))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Correlation and slope of y against x, both taken about zero."""
    xx, yy, xy = float(np.sum(x * x)), float(np.sum(y * y)), float(np.sum(x * y))
    if xx <= 0 or yy <= 0:
        return 0.0, np.nan
    return xy / np.sqrt(xx * yy), xy / xx


def _energy_line(frames: Frames, predicted: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Slope, correlation and residuals (eV per atom) of E = slope·E_probe + Σ_s n_s e_s, by iterated reweighting."""
    species = np.unique(frames.numbers)
    rows = frames.atom_rows()
    counts = np.stack([np.bincount(rows[frames.numbers == z], minlength=len(frames)) for z in species], axis=1)
    size = frames.natoms.astype(float)
    fractions = counts / size[:, None]
    x, y = predicted / size, frames.energy / size
    weights = np.ones(len(frames))
    for _ in range(20):
        root = np.sqrt(weights)
        # remove what composition explains from both, then a line through the rest
        scale = np.linalg.lstsq(fractions * root[:, None], np.stack([x, y], axis=1) * root[:, None], rcond=None)[0]
        dx, dy = (np.stack([x, y], axis=1) - fractions @ scale).T
        spread = float(np.sum(weights * dx * dx))
        slope = float(np.sum(weights * dx * dy)) / spread if spread > 0 else np.nan
        residual = dy - slope * dx if np.isfinite(slope) else dy
        mad = 1.4826 * float(np.median(np.abs(residual))) + 1e-9
        weights = np.minimum(1.0, 3.0 * mad / np.maximum(np.abs(residual), 1e-30))
    if np.sqrt(np.mean(dx * dx)) < _SIGNIFICANT:
        return np.nan, 0.0, residual
    top = float(np.sum(weights * dx * dy))
    bottom = np.sqrt(float(np.sum(weights * dx * dx)) * float(np.sum(weights * dy * dy)))
    return slope, (top / bottom if bottom > 0 else 0.0), residual


def _curvature(probe: Probe, frames: Frames, coefficients: np.ndarray, *, step: float = 0.01) -> float:
    """Mean diagonal of the probe's Hessian (eV/Å²) over a few rows, by random displacements (Hutchinson's estimate)."""
    rng = np.random.default_rng(0)
    values = []
    for row in np.unique(np.linspace(0, len(frames) - 1, 8).astype(int)):
        numbers, positions, cell, pbc = geometry(frames, int(row))
        move = step * rng.choice([-1.0, 1.0], size=positions.shape)
        ahead, behind = (
            probe.design_of(numbers, positions + sign * move, cell, pbc).forces @ coefficients for sign in (1, -1)
        )
        values.append(-float(np.sum((ahead - behind) * move)) / (2 * float(np.sum(move * move))))
    return float(np.median(values))
