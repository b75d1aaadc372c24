"""Calibration of a whole committee from the predictions of its members on frames that none of them was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.calibration import Calibration, Reliability, calibrate, reliability
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import id_keys
from aiida_mlip.kernel.splits import Part

#: Regions of a calibration: environments like those trained on (novelty γ <= 1), and others.
INSIDE: Final[str] = "inside"
OUTSIDE: Final[str] = "outside"


@dataclass(frozen=True)
class Parity:
    """Labels and predictions of one member.

    :param frame_id: (n, 16) of the frames.
    :param part: (n,) :class:`~aiida_mlip.kernel.splits.Part` of each frame for this member.
    :param natoms: (n,) atoms of each frame.
    :param numbers: (a,) atomic numbers.
    :param forces_reference: (a, 3) labels, eV/Å; NaN: none.
    :param forces_predicted: (a, 3) eV/Å; NaN: none.
    :param novelty: (a,) γ by the member's own grades, if it has some.
    """

    frame_id: np.ndarray
    part: Int[np.ndarray, "n"]
    natoms: Int[np.ndarray, "n"]
    numbers: Int[np.ndarray, "a"]
    forces_reference: Float[np.ndarray, "a 3"]
    forces_predicted: Float[np.ndarray, "a 3"]
    novelty: Float[np.ndarray, "a"] | None = None


def held_out_rows(members: Mapping[str, Parity]) -> Bool[np.ndarray, "n"]:
    """(n,) frames that no member has seen: the test part of all; in a dataset without a test part those of no part.

    A frame that one member validates on is trained on by others, so it is not held out.
    """
    parts = np.stack([member.part for member in members.values()])
    tested = (parts == Part.TEST).all(axis=0)
    rows: np.ndarray = tested if tested.any() else (parts == Part.UNUSED).all(axis=0)
    return rows


def calibrate_members(members: Mapping[str, Parity], *, level: float = 0.9, seed: int = 0) -> dict[str, Calibration]:
    """Calibration of each member's errors by the deviation of all, on the frames held out from all.

    Frames of one atom do not count: symmetry makes their force zero. Coverage per region ``inside`` and ``outside``
    of the training set, where the members have grades.

    :param members: at least two, for the same frames in the same order.
    :param level: of the bounds.
    :param seed: of the cross-fit, see :func:`aiida_mlip.kernel.calibration.calibrate`.
    :raises InvalidInputError: one member, different frames, or too few labelled atoms held out.
    """
    held = _held_out(members)
    return {
        name: calibrate(
            held.deviation,
            _errors(member)[held.atoms],
            member.numbers[held.atoms],
            level=level,
            group=held.group,
            region=None if member.novelty is None else np.where(member.novelty[held.atoms] <= 1.0, INSIDE, OUTSIDE),
            seed=seed,
        )
        for name, member in members.items()
    }


def reliability_of_member(
    members: Mapping[str, Parity], name: str, *, level: float = 0.9, seed: int = 0, points: int = 21
) -> Reliability:
    """Reliability diagram of one member's errors, of the same frames and folds as :func:`calibrate_members`.

    :param members: at least two, for the same frames in the same order.
    :param name: the member whose errors are looked at.
    :param points: of the diagram.
    :raises InvalidInputError: as :func:`calibrate_members`.
    """
    held = _held_out(members)
    member = members[name]
    return reliability(
        held.deviation,
        _errors(member)[held.atoms],
        member.numbers[held.atoms],
        level=level,
        group=held.group,
        seed=seed,
        points=points,
    )


@dataclass(frozen=True)
class _HeldOut:
    """Atoms held out from all members.

    :param atoms: (a,) mask.
    :param deviation: (h,) of the committee, eV/Å.
    :param group: (h,) row of each.
    """

    atoms: np.ndarray
    deviation: np.ndarray
    group: np.ndarray


def _held_out(members: Mapping[str, Parity]) -> _HeldOut:
    if len(members) < 2:
        raise InvalidInputError(f"a deviation needs at least two members, got {len(members)}: {list(members)}")
    first = next(iter(members.values()))
    for name, member in members.items():
        same = np.array_equal(id_keys(member.frame_id), id_keys(first.frame_id))
        if not same or member.forces_predicted.shape != first.forces_predicted.shape:
            raise InvalidInputError(f"{name} was evaluated on other frames than {next(iter(members))}")
    deviation = force_deviation(np.stack([member.forces_predicted for member in members.values()]))
    rows = np.repeat(np.arange(len(first.natoms)), first.natoms)
    atoms = (held_out_rows(members) & (first.natoms > 1))[rows]
    return _HeldOut(atoms=atoms, deviation=deviation[atoms], group=rows[atoms])


def _errors(member: Parity) -> np.ndarray:
    return member.forces_predicted - member.forces_reference
