"""The specification of a selection, as a person writes it.

::

    method: maxdet              # or farthest, largest_cluster, maxvol, random
    max_frames: 50
    core_hours: 200             # budget; null: no limit
    cost: {core_hours: 0.5, natoms: 64, exponent: 2}    # of a label; null: as measured in the reference
    filters:                    # as in a generation
      min_distance_ang: 1.8
      volume_ang3_per_atom: [10, 40]
      max_force_ev_per_ang: 30
    duplicate_edge: 0.05        # cell of the duplicate grid in standard deviations; null: only identical frames
    error_threshold_ev_per_ang: 0.3    # weight: min(error / threshold, 3); null: twice the validation RMSE
    seed: 0                     # of random
"""

from __future__ import annotations

from typing import Any

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.label_cost import DEFAULT_POWER
from aiida_mlip.kernel.sanity import SanityLimits
from aiida_mlip.kernel.selection.costs import CostModel
from aiida_mlip.kernel.selection.duplicates import DEFAULT_EDGE
from aiida_mlip.kernel.selection.frames import Method, SelectSettings
from aiida_mlip.protocols.model import SpecModel, validate_spec


class CostSpec(SpecModel):
    """Cost of a label, see :class:`~aiida_mlip.kernel.selection.costs.CostModel`."""

    core_hours: float
    natoms: int = 1
    exponent: float = DEFAULT_POWER


class SelectFilters(SpecModel):
    """Limits of sane frames, see :class:`~aiida_mlip.kernel.sanity.SanityLimits`."""

    min_distance_ang: float | dict[str, float] | None = None
    volume_ang3_per_atom: tuple[float, float] | None = None
    max_force_ev_per_ang: float | None = None


class SelectSpec(SpecModel):
    """Top level of the specification."""

    method: Method = "maxdet"
    max_frames: int = 50
    core_hours: float | None = None
    cost: CostSpec | None = None
    filters: SelectFilters = SelectFilters()
    duplicate_edge: float | None = DEFAULT_EDGE
    error_threshold_ev_per_ang: float | None = None
    seed: int = 0


def parse_select(data: Any, *, where: str = "spec") -> SelectSettings:
    """Settings of a specification.

    :param data: plain mapping, see the module's example.
    :raises ProtocolError: unknown key (with the nearest valid one), or a value that is not allowed.
    """
    spec = validate_spec(SelectSpec, data, where=where)
    if spec.seed < 0:
        raise ProtocolError(f"{where}.seed: must not be negative, got {spec.seed}")
    if spec.duplicate_edge is not None and not spec.duplicate_edge > 0:
        raise ProtocolError(f"{where}.duplicate_edge: must be positive, got {spec.duplicate_edge}")
    try:
        return SelectSettings(
            method=spec.method,
            max_frames=spec.max_frames,
            core_hours=spec.core_hours,
            sanity=SanityLimits(**spec.filters.model_dump()),
            duplicate_edge=spec.duplicate_edge,
            error_threshold=spec.error_threshold_ev_per_ang,
            cost=None if spec.cost is None else CostModel(**spec.cost.model_dump()),
            seed=spec.seed,
        )
    except InvalidInputError as error:
        raise ProtocolError(f"{where}: {error}") from error
