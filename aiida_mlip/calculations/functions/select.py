"""Select frames to label: the calcfunction around :func:`aiida_mlip.kernel.selection.frames.select_frames`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.kernel.frames import Frames, id_hex
from aiida_mlip.kernel.selection.costs import measured_cost
from aiida_mlip.kernel.selection.frames import Choice, Known, SelectSettings, select_frames
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.protocols.select import parse_select

#: More environments than this do not belong into a node: scan them where they are, and select among the candidates.
MAX_ENVIRONMENTS: Final[int] = 1_000_000
#: Arrays of ``environments``.
_ENVIRONMENTS: Final[tuple[str, ...]] = ("features", "errors", "required")
#: Sentences about dropped frames that a summary quotes.
_MAX_DETAILS: Final[int] = 100


@calcfunction
def select(
    spec: orm.Dict,
    candidates: DatasetData,
    reference: DatasetData | None = None,
    potential: PotentialData | None = None,
    environments: orm.ArrayData | None = None,
) -> dict[str, orm.Data] | ExitCode:
    """Choose frames to label from candidates (see :mod:`aiida_mlip.protocols.select`).

    :param spec: method, budget, filters.
    :param candidates: frames to choose from.
    :param reference: labelled frames: those are not chosen again, and their measured costs forecast those of others.
    :param potential: its grades say what it was trained on, where ``environments`` has features of it.
    :param environments: per atom of the candidates, in order: ``features`` (a, d) of the potential (else descriptors
        are computed) and ``errors`` (a,), estimated errors of the forces (eV/Å); and ``required`` (n,), frames to be
        taken before all others.
    :returns: ``dataset``, in order of choice, and ``summary``; exit code 313 for input that does not fit, 314 when no
        candidate is left, with the reasons.
    """
    try:
        settings = complete_settings(parse_select(spec.get_dict()), reference, potential)
        if candidates.base.attributes.get("n_atoms") > MAX_ENVIRONMENTS:
            return ExitCode(313, f"candidates: more than {MAX_ENVIRONMENTS} atoms; scan them where they are")
        frames = candidates.frames()
        given = {} if environments is None else dict(environments.get_iterarrays())
        arrays = {name: given[name] for name in _ENVIRONMENTS if name in given}
        known = known_environments(reference, potential if "features" in arrays else None)
        choice = select_frames(frames, settings, known=known, **arrays)
    except (InvalidInputError, FileFormatError) as error:
        return ExitCode(313, f"frames could not be selected: {error}")
    if not len(choice.rows):
        return ExitCode(314, f"no frame is left to label: {_counts(choice)}")
    dataset = DatasetData.from_frames(frames.take(choice.rows), settings=candidates.settings)
    return {"dataset": dataset, "summary": orm.Dict(selection_summary(frames, choice, settings))}


def complete_settings(
    settings: SelectSettings, reference: DatasetData | None, potential: PotentialData | None
) -> SelectSettings:
    """Settings with the cost and the error threshold that other nodes know, where the specification says nothing.

    :raises InvalidInputError: a budget in core-hours, and nothing that says what a label costs.
    """
    if settings.cost is None and reference is not None:
        settings = replace(settings, cost=measured_cost(reference.column("cost"), reference.column("natoms")))
    if settings.core_hours is not None and settings.cost is None:
        raise InvalidInputError("spec.core_hours: give spec.cost, or a reference whose labels have measured costs")
    calibration = potential.calibration() if potential is not None else None
    if settings.error_threshold is None and calibration is not None:
        settings = replace(settings, error_threshold=2.0 * calibration.force_rmse_validation)
    return settings


def known_environments(reference: DatasetData | None, potential: PotentialData | None) -> Known:
    """What is labelled: frames of the reference, and what the grades of a potential say of its training set."""
    frames = reference.frames() if reference is not None else None
    grades = potential.grades() if potential is not None else None
    if grades is None:
        return Known(frames=frames)
    return Known(frames=frames, precision=precision_of(grades), environments=means_of(grades))


def precision_of(grades: Grades) -> np.ndarray:
    """(d, d) sum over elements of Σ z zᵀ + ridge: all of them share the linear readout."""
    factors = (np.linalg.inv(element.laplace) for element in grades.elements.values())
    return np.asarray(sum((factor @ factor.T for factor in factors), np.zeros((grades.n_features,) * 2)))


def means_of(grades: Grades) -> np.ndarray:
    """(k, d) centres of the clusters of the training environments of all elements."""
    return np.concatenate([element.means for element in grades.elements.values()])


def selection_summary(frames: Frames, choice: Choice, settings: SelectSettings) -> dict[str, Any]:
    """Plain JSON of what was chosen, at which cost, and why the others were not."""
    ids = id_hex(frames.frame_id[choice.rows])
    return {
        "method": settings.method,
        "n_candidates": len(frames),
        "n_selected": len(choice.rows),
        "dropped": dict(choice.reasons),
        "details": list(choice.details[:_MAX_DETAILS]),
        "core_hours": float(choice.core_hours.sum()) if settings.cost is not None else None,
        "core_hours_budget": settings.core_hours,
        "error_threshold_ev_per_ang": settings.error_threshold,
        "selected": [
            {
                "frame_id": name,
                "row": int(row),
                "atom": int(atom),
                "score": float(score) if np.isfinite(score) else None,  # none: it was required
                "core_hours": float(cost),
            }
            for name, row, atom, score, cost in zip(
                ids, choice.rows, choice.atoms, choice.scores, choice.core_hours, strict=True
            )
        ],
    }


def _counts(choice: Choice) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in choice.reasons.items() if count)
