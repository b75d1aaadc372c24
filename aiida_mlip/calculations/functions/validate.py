"""Calculation functions of a validation: frames to compute, values from the results, comparison and verdict."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.calculations.property_frames import (
    crystals_of,
    eos_cells,
    flat,
    plain_layout,
    property_frames,
    results_from,
)
from aiida_mlip.calculations.property_values import source_values
from aiida_mlip.calculations.validate_comparison import comparison
from aiida_mlip.calculations.validate_plan import planned
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.protocols.validate import parse_validate

INVALID: Final[int] = 201


@calcfunction
def plan_validation(
    structures: orm.Data,
    settings: orm.Dict,
    subject: orm.Dict | None = None,
    reference: orm.Dict | None = None,
) -> dict[str, orm.Data] | ExitCode:
    """Frames of the equations of state, and settings of every job.

    :param subject: the level of theory that is validated; None: a potential.
    :param reference: the level of theory that it is compared with, if any.
    :returns: ``eos``; ``evaluation``; per role (``subject``, ``reference``) ``settings_<role>``, and the specifications
        ``relax_<role>``, ``dynamics_<role>_<i>``, ``expansion_<role>_<i>``, ``order_<role>_<i>`` of its runs.
    """
    try:
        full = parse_validate(settings.get_dict())
        frames = flat(eos_cells(crystals_of(structures, full), full))
        levels = {"subject": subject, "reference": reference}
        plain = planned(full, {name: None if node is None else node.get_dict() for name, node in levels.items()})
    except MlipError as error:
        return ExitCode(INVALID, str(error))
    return {"eos": DatasetData.from_frames(frames), **{name: orm.Dict(content) for name, content in plain.items()}}


@calcfunction
def make_property_frames(
    structures: orm.Data, settings: orm.Dict, eos: DatasetData, eos_result: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Frames at a source's own equilibrium volume.

    :param settings: ``settings_<role>`` of :func:`plan_validation`.
    :param eos_result: of the frames ``eos``: labelled rows, or the parity arrays of an evaluation.
    :returns: ``static``; ``relax``, ``dynamics``, ``expansion``, ``order`` as far as needed; ``layout`` (rows).
    """
    try:
        full = parse_validate(settings.get_dict())
        made = property_frames(crystals_of(structures, full), full, results_from(eos.frames(), eos_result))
    except MlipError as error:
        return ExitCode(INVALID, str(error))
    groups = {"static": made.static, "relax": made.relax, **made.runs}
    datasets = {name: DatasetData.from_frames(from_ase(group.cells)) for name, group in groups.items() if group.cells}
    return {**datasets, "layout": orm.Dict(jsonable(plain_layout(made)))}


@calcfunction
def transfer_relaxed(
    relax: DatasetData, relaxed: DatasetData, series: orm.ArrayData
) -> dict[str, DatasetData] | ExitCode:
    """Cells of ``relax`` with the fractional coordinates that another source has relaxed to.

    :param relaxed: frames of an exploration of the kind ``relax``, of the same structures in the same order.
    :param series: of it.
    """
    start, found = relax.frames(), relaxed.frames()
    runs = series.get_array("run").astype(int)
    cells = []
    for row in range(len(start)):
        mine = np.flatnonzero(runs == row)
        if not len(mine):
            return ExitCode(INVALID, f"structure {row} was not relaxed")
        source, target = found.to_ase(int(mine[-1])), start.to_ase(row)
        if len(source) != len(target):
            return ExitCode(INVALID, f"structure {row} has {len(target)} atoms, the relaxed one {len(source)}")
        target.set_scaled_positions(source.get_scaled_positions(wrap=False))
        cells.append(target)
    return {"relaxed_frames": DatasetData.from_frames(_unlabelled(cells))}


@calcfunction
def property_values(structures: orm.Data, settings: orm.Dict, **nodes: orm.Data) -> dict[str, orm.Data] | ExitCode:
    """Values of all properties of one source.

    :param settings: ``settings_<role>`` of :func:`plan_validation`.
    :param nodes: ``eos``, ``eos_result``, and what else there is of
        :func:`aiida_mlip.calculations.property_values.source_values`.
    :returns: ``values`` (``entries``: name, family, structure, value, unit, definition, reason, uuids); ``curves``.
    """
    try:
        full = parse_validate(settings.get_dict())
        crystals = crystals_of(structures, full)
        made = property_frames(crystals, full, results_from(nodes["eos"].frames(), nodes["eos_result"]))
        found = source_values(crystals, full, made, nodes)
    except MlipError as error:
        return ExitCode(INVALID, str(error))
    outputs: dict[str, orm.Data] = {"values": orm.Dict({"entries": found.entries})}
    if found.curves:
        outputs["curves"] = orm.ArrayData(found.curves)
    return outputs


@calcfunction
def compare(
    settings: orm.Dict, reference_values: orm.Dict | None = None, **sources: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Judge every property.

    :param reference_values: by name of the property, or ``<structure>:<name>``; before what the reference computed.
    :param sources: ``subject_<i>`` (values), ``curves_<i>`` of the committee; ``reference`` and ``curves_reference``.
    :returns: ``properties`` (``entries``) and ``verdict``.
    """
    try:
        full = parse_validate(settings.get_dict())
        given: dict[str, Any] = {} if reference_values is None else reference_values.get_dict()
        entries, summary = comparison(full, sources, given, None if reference_values is None else reference_values.uuid)
    except MlipError as error:
        return ExitCode(INVALID, str(error))
    return {"properties": orm.Dict({"entries": entries}), "verdict": orm.Dict(summary)}


def _unlabelled(cells: list[Any]) -> Frames:
    for atoms in cells:
        atoms.calc = None
    return from_ase(cells)
