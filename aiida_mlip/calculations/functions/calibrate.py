"""Calculation functions that judge potentials: calibration of a committee, and potentials with what judges them."""

from __future__ import annotations

from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.data.potential import PotentialData, jsonable
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.kernel.held_out import Parity, calibrate_members
from aiida_mlip.kernel.splits import PART_NAMES

#: Arrays of a parity node that a calibration needs.
_PARITY = ("frame_id", "part", "natoms", "numbers", "forces_reference", "forces_predicted")


@calcfunction
def calibrate(settings: orm.Dict, **parity: orm.ArrayData) -> dict[str, orm.Dict] | ExitCode:
    """Calibration of each member of a committee on held-out frames; again in every round, with its new labels.

    :param settings: ``level`` and ``seed``.
    :param parity: ``member_<i>``: output ``parity`` of an evaluation of that member. All of the same dataset: one with
        a split (its test part is what counts), or one that no member was trained on.
    :returns: Dict per member, see :class:`aiida_mlip.kernel.calibration.Calibration`.
    """
    try:
        members = {name: parity_of(node) for name, node in sorted(parity.items())}
        found = calibrate_members(members, **settings.get_dict())
    except MlipError as error:
        return ExitCode(400, str(error))
    return {name: orm.Dict(jsonable(value.as_dict())) for name, value in found.items()}


@calcfunction
def judge_potential(potential: PotentialData, **evidence: orm.Data) -> PotentialData | ExitCode:
    """The same potential with what is known about it; the package itself is stored once.

    :param evidence: any of ``errors`` and ``external`` (outputs ``errors`` of its evaluations), ``grades`` (output of
        its evaluation), ``calibration`` (of its committee).
    """
    try:
        metrics = {}
        if "errors" in evidence:
            errors = evidence["errors"].get_dict()
            metrics = {part: errors[part] for part in PART_NAMES if part in errors}
        if "external" in evidence:
            metrics["external"] = evidence["external"].get_dict()["all"]
        grades, calibration = evidence.get("grades"), evidence.get("calibration")
        return potential.judged(
            metrics=metrics,
            statistics=None if grades is None else {name: grades.get_array(name) for name in grades.get_arraynames()},
            calibration=None if calibration is None else calibration.get_dict(),
        )
    except MlipError as error:
        return ExitCode(400, str(error))


def parity_of(node: orm.ArrayData) -> Parity:
    """Labels and predictions of an evaluation.

    :raises InvalidInputError: arrays that are missing; names them.
    """
    names = node.get_arraynames()
    if missing := [name for name in _PARITY if name not in names]:
        raise InvalidInputError(f"ArrayData<{node.pk}> is no parity data: arrays {missing} are missing")
    novelty = node.get_array("novelty") if "novelty" in names else None
    return Parity(**{name: node.get_array(name) for name in _PARITY}, novelty=novelty)
