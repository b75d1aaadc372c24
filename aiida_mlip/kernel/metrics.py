"""Errors of a potential: predictions against labels, over frames, force components, stresses and species.

Conventions, those of the benchmark tables of the field (e.g. doi:10.1021/acs.jpca.9b08723): energies per atom, one
number per frame; forces over Cartesian *components* of all atoms; stresses over the nine components of the tensor.
A label or prediction that is NaN is not counted. A number that does not exist (no labels) is ``None``, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Failure, Frames
from aiida_mlip.kernel.splits import PART_NAMES, Part
from aiida_mlip.kernel.units import GPA


@dataclass(frozen=True)
class Predictions:
    """What a potential says about frames, row by row and atom by atom as in :class:`Frames`.

    :param energy: (n,) eV, total; NaN where the frame failed.
    :param forces: (a, 3) eV/Å.
    :param stress: (n, 3, 3) eV/Å³, tension positive; NaN where not periodic in three directions.
    :param failure: (n,) :class:`~aiida_mlip.kernel.frames.Failure` of the prediction.
    :param features: (a, d) per-atom features after the potential's last layer, where asked for; NaN in failed frames.
    """

    energy: Float64[np.ndarray, " n"]
    forces: Float64[np.ndarray, "a 3"]
    stress: Float64[np.ndarray, "n 3 3"]
    failure: UInt8[np.ndarray, " n"]
    features: Float64[np.ndarray, "a d"] | None = None

    def __post_init__(self) -> None:
        """Check the shapes against one another."""
        n = len(self.energy)
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != len(self.forces)):
            raise InvalidInputError(
                f"predicted features have shape {self.features.shape}, expected ({len(self.forces)}, d)"
            )
        expected = {"energy": (n,), "forces": (len(self.forces), 3), "stress": (n, 3, 3), "failure": (n,)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InvalidInputError(f"predicted {name} has shape {getattr(self, name).shape}, expected {shape}")


@dataclass(frozen=True)
class Deviation:
    """Statistics of predicted minus reference numbers; ``None`` where there is none.

    :param n: numbers compared.
    :param mae: mean of the absolute deviations.
    :param rmse: root of the mean squared deviation.
    :param bias: mean deviation.
    :param largest: largest absolute deviation.
    :param rms: root mean square of the reference numbers.
    """

    n: int
    mae: float | None
    rmse: float | None
    bias: float | None
    largest: float | None
    rms: float | None


@dataclass(frozen=True)
class SpeciesErrors:
    """Force errors on the atoms of one element; components, eV/Å."""

    n_atoms: int
    force_mae_ev_per_ang: float | None
    force_rmse_ev_per_ang: float | None
    force_rms_ev_per_ang: float | None


@dataclass(frozen=True)
class ErrorReport:
    """Errors over a set of frames. The unit is in the name; ``None``: no labels of that kind.

    :param n_frames: frames in the set; ``n_failed`` of them have no prediction and enter no error.
    :param n_energies: energies compared; ``n_force_components`` and ``n_stresses`` (tensors) likewise.
    :param energy_bias_ev_per_atom: mean of predicted minus reference energy.
    :param energy_max_frame: number of the frame of the largest energy error, ``force_max_frame`` and
        ``stress_max_frame`` likewise.
    :param force_max_ev_per_ang: largest length of a force error *vector*.
    :param force_rms_ev_per_ang: root mean square of the reference force components.
    :param force_rmse_relative: ``force_rmse_ev_per_ang / force_rms_ev_per_ang``.
    :param species: force errors per element.
    """

    n_frames: int
    n_failed: int
    n_energies: int
    n_force_components: int
    n_stresses: int
    energy_mae_ev_per_atom: float | None
    energy_rmse_ev_per_atom: float | None
    energy_bias_ev_per_atom: float | None
    energy_max_ev_per_atom: float | None
    energy_max_frame: int | None
    force_mae_ev_per_ang: float | None
    force_rmse_ev_per_ang: float | None
    force_max_ev_per_ang: float | None
    force_max_frame: int | None
    force_rms_ev_per_ang: float | None
    force_rmse_relative: float | None
    stress_mae_ev_per_ang3: float | None
    stress_rmse_ev_per_ang3: float | None
    stress_mae_gpa: float | None
    stress_rmse_gpa: float | None
    stress_max_gpa: float | None
    stress_max_frame: int | None
    species: Mapping[str, SpeciesErrors]

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "species": {symbol: asdict(value) for symbol, value in self.species.items()}}


def deviation(predicted: np.ndarray, reference: np.ndarray) -> Deviation:
    """Statistics of ``predicted - reference`` over all entries that are finite in both.

    :param predicted: any shape, any unit.
    :param reference: same shape and unit.
    :raises InvalidInputError: the shapes differ.

    >>> deviation(np.array([1.0, 3.0]), np.array([1.0, 1.0])).mae
    1.0
    """
    if predicted.shape != reference.shape:
        raise InvalidInputError(f"predictions have shape {predicted.shape}, labels {reference.shape}")
    known = np.isfinite(predicted) & np.isfinite(reference)
    truth = reference[known]
    delta = predicted[known] - truth
    if delta.size == 0:
        return Deviation(0, None, None, None, None, None)
    return Deviation(
        n=int(delta.size),
        mae=float(np.abs(delta).mean()),
        rmse=_rms(delta),
        bias=float(delta.mean()),
        largest=float(np.abs(delta).max()),
        rms=_rms(truth),
    )


def compare(frames: Frames, predictions: Predictions, rows: Bool[np.ndarray, " n"] | None = None) -> ErrorReport:
    """Errors of predictions against the labels of frames.

    :param frames: n labelled frames; missing labels are NaN.
    :param predictions: for the same frames.
    :param rows: (n,) the frames to count; all by default. Frame numbers in the result count all frames.
    :raises InvalidInputError: the predictions are not for these frames.
    """
    n = len(frames)
    if (len(predictions.energy), len(predictions.forces)) != (n, frames.n_atoms):
        raise InvalidInputError(
            f"predictions for {len(predictions.energy)} frames of {len(predictions.forces)} atoms in all, "
            f"but there are {n} of {frames.n_atoms}"
        )
    use = np.ones(n, dtype=bool) if rows is None else np.asarray(rows, dtype=bool)
    if use.shape != (n,):
        raise InvalidInputError(f"the selection of rows has shape {use.shape}, expected {(n,)}")
    row_of_atom = frames.atom_rows()
    atoms = use[row_of_atom]

    energy = deviation((predictions.energy / frames.natoms)[use], (frames.energy / frames.natoms)[use])
    force = deviation(predictions.forces[atoms], frames.forces[atoms])
    stress = deviation(predictions.stress[use], frames.stress[use])

    energy_error = np.abs(predictions.energy - frames.energy) / frames.natoms
    force_error = np.sqrt(np.nansum((predictions.forces - frames.forces) ** 2, axis=1))
    force_error[np.isnan(predictions.forces - frames.forces).all(axis=1)] = np.nan
    stress_error = np.abs(predictions.stress - frames.stress).reshape(n, 9).max(axis=1, initial=-np.inf)
    worst_atom = _argmax(np.where(atoms, force_error, np.nan))
    return ErrorReport(
        n_frames=int(use.sum()),
        n_failed=int((predictions.failure[use] != Failure.NONE).sum()),
        n_energies=energy.n,
        n_force_components=force.n,
        n_stresses=stress.n // 9,
        energy_mae_ev_per_atom=energy.mae,
        energy_rmse_ev_per_atom=energy.rmse,
        energy_bias_ev_per_atom=energy.bias,
        energy_max_ev_per_atom=energy.largest,
        energy_max_frame=_argmax(np.where(use, energy_error, np.nan)),
        force_mae_ev_per_ang=force.mae,
        force_rmse_ev_per_ang=force.rmse,
        force_max_ev_per_ang=None if worst_atom is None else float(force_error[worst_atom]),
        force_max_frame=None if worst_atom is None else int(row_of_atom[worst_atom]),
        force_rms_ev_per_ang=force.rms,
        force_rmse_relative=force.rmse / force.rms if force.rms and force.rmse is not None else None,
        stress_mae_ev_per_ang3=stress.mae,
        stress_rmse_ev_per_ang3=stress.rmse,
        stress_mae_gpa=_times(stress.mae, 1 / GPA),
        stress_rmse_gpa=_times(stress.rmse, 1 / GPA),
        stress_max_gpa=_times(stress.largest, 1 / GPA),
        stress_max_frame=_argmax(np.where(use, stress_error, np.nan)),
        species=_per_species(frames, predictions, atoms),
    )


def compare_parts(frames: Frames, predictions: Predictions, part: np.ndarray | None = None) -> dict[str, ErrorReport]:
    """:func:`compare` for all frames (``"all"``) and for every part of a split that has frames.

    :param part: (n,) code of the part of each frame, see :class:`~aiida_mlip.kernel.splits.Part`.
    :raises InvalidInputError: a code that is no part.
    """
    reports = {"all": compare(frames, predictions)}
    if part is None:
        return reports
    codes = np.asarray(part)
    if codes.shape != (len(frames),):
        raise InvalidInputError(f"the split has shape {codes.shape}, expected {(len(frames),)}")
    if unknown := sorted(set(np.unique(codes).tolist()) - set(Part)):
        raise InvalidInputError(
            f"the split has codes {unknown}; allowed are {[f'{p.value} {p.name.lower()}' for p in Part]}"
        )
    for name in PART_NAMES:
        mine = codes == Part[name.upper()]
        if mine.any():
            reports[name] = compare(frames, predictions, mine)
    return reports


def labels_at(frames: Frames, fidelities: Sequence[str]) -> Frames:
    """Frames whose labels at other levels of theory than these are hidden (NaN); none named: nothing is hidden."""
    if not fidelities:
        return frames
    table = np.array([name in fidelities for name in frames.fidelities] + [False])
    keep = table[frames.fidelity]
    return frames.with_columns(
        energy=np.where(keep, frames.energy, np.nan),
        forces=np.where(keep[frames.atom_rows()][:, None], frames.forces, np.nan),
        stress=np.where(keep[:, None, None], frames.stress, np.nan),
    )


def _per_species(frames: Frames, predictions: Predictions, atoms: np.ndarray) -> dict[str, SpeciesErrors]:
    from ase.data import chemical_symbols

    result = {}
    for number in np.unique(frames.numbers[atoms]):
        mine = atoms & (frames.numbers == number)
        error = deviation(predictions.forces[mine], frames.forces[mine])
        result[chemical_symbols[number]] = SpeciesErrors(int(mine.sum()), error.mae, error.rmse, error.rms)
    return result


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _argmax(values: np.ndarray) -> int | None:
    """Index of the largest finite entry, ``None`` where there is none."""
    known = np.isfinite(values)
    return int(np.argmax(np.where(known, values, -np.inf))) if known.any() else None
