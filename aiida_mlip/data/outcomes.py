"""What became of the frames of a batch, and the rows of a dataset that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiida_mlip.kernel.cells import has_vacuum
from aiida_mlip.kernel.frames import NONE, Failure, Frames, id_bytes
from aiida_mlip.kernel.labelling import without_labels

#: Message of an scf that ended without an error, and without convergence.
UNCONVERGED: Final[str] = "the scf did not converge"
#: Message of a frame that a job of several did not finish, where nothing tells more.
UNFINISHED: Final[str] = "the job ended before this frame was done, and nothing says why"


@dataclass(frozen=True)
class Outcome:
    """What became of one frame.

    :param energy: eV, NaN if failed.
    :param forces: (a, 3) eV/Å or None.
    :param stress: (3, 3) eV/Å³, tension positive, or None.
    :param cost: core-seconds, NaN when not known.
    :param uuid: calculation that made the label or failed, empty if there never was one.
    :param reused: the calculation belongs to an earlier campaign.
    :param message: for people, why it failed.
    :param again: something from outside ended it, and another try may cure it.
    """

    failure: Failure = Failure.NONE
    energy: float = np.nan
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    cost: float = np.nan
    uuid: str = ""
    reused: bool = False
    message: str = ""
    again: bool = False


def judged(
    energy: float,
    forces: np.ndarray | None,
    stress: np.ndarray | None,
    frame: Frames,
    labels: Sequence[str],
    **known: Any,  # the other fields of an outcome, of their types
) -> Outcome:
    """Outcome of a calculation that was content: its numbers, if they are numbers, and a label of this frame.

    A stress is no label where the frame is not periodic, or its cell has vacuum in it.

    :param energy: eV.
    :param forces: (a, 3) eV/Å, or None if there are none.
    :param stress: (3, 3) eV/Å³, tension positive, or None if there is none.
    :param frame: the frame, one row.
    :param labels: which labels are kept.
    :param known: other fields of the outcome.
    """
    if "forces" not in labels:
        forces = None
    if forces is not None and forces.shape != (frame.n_atoms, 3):
        return Outcome(failure=Failure.PARSE, message=f"forces have shape {forces.shape}", **known)
    if not np.isfinite(energy) or (forces is not None and not np.isfinite(forces).all()):
        return Outcome(failure=Failure.IMPLAUSIBLE, message="energy or forces are not finite", **known)
    wanted = "stress" in labels and frame.pbc[0].all() and stress is not None and np.isfinite(stress).all()
    if stress is not None and wanted and not has_vacuum(frame.positions, frame.cell[0]):
        return Outcome(energy=energy, forces=forces, stress=stress.reshape(3, 3), **known)
    return Outcome(energy=energy, forces=forces, **known)


def with_outcomes(rows: Frames, fidelity: str, outcomes: Sequence[Outcome]) -> Frames:
    """Rows with the labels, failures, costs and processes of their outcomes."""
    n = len(rows)
    forces = [
        np.full((int(size), 3), np.nan) if o.forces is None else o.forces
        for size, o in zip(rows.natoms, outcomes, strict=True)
    ]
    return without_labels(rows).with_columns(
        energy=np.array([o.energy for o in outcomes], dtype="<f8"),
        forces=np.concatenate(forces),
        stress=np.array([np.full((3, 3), np.nan) if o.stress is None else o.stress for o in outcomes]),
        failure=np.array([int(o.failure) for o in outcomes], dtype="|u1"),
        cost=np.array([o.cost for o in outcomes], dtype="<f4"),
        label_uuid=id_bytes([o.uuid or "0" * 32 for o in outcomes]),
        label_row=np.full(n, NONE, dtype="<i4"),
        fidelity=np.zeros(n, dtype="<i2"),
        fidelities=(fidelity,),
    )
