"""Which frames get the dear label, as a person writes it.

::

    target: hse                  # level of theory to label at
    cheap: pbe                   # the one that candidates are labelled at already
    n_frames: 30                 # budget in labels, in core-hours, or both
    core_hours: 200
    cost: {core_hours: 6.5, natoms: 64, exponent: 2}    # of a dear label; left out: as measured in the datasets
    method: difference           # or diversity, random (the baseline)
    batch: maxdet                # what keeps the frames of one batch unlike: or farthest, largest_cluster
    duplicate_edge: 0.05         # see aiida_mlip.protocols.select
    seed: 0                      # of random
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.allocation import AllocateMethod, AllocateSettings, BatchMethod
from aiida_mlip.kernel.selection.costs import CostModel
from aiida_mlip.kernel.selection.duplicates import DEFAULT_EDGE
from aiida_mlip.protocols.model import SpecModel, validate_spec
from aiida_mlip.protocols.select import CostSpec


class AllocateSpec(SpecModel):
    """Top level of the specification; see the module's text."""

    target: str = Field(min_length=1)
    cheap: str = Field(min_length=1)
    n_frames: int | None = Field(default=None, ge=1)
    core_hours: float | None = Field(default=None, gt=0)
    cost: CostSpec | None = None
    method: AllocateMethod = "difference"
    batch: BatchMethod = "maxdet"
    duplicate_edge: float | None = Field(default=DEFAULT_EDGE, gt=0)
    seed: int = Field(default=0, ge=0)

    def settings(self, measured: CostModel | None = None) -> AllocateSettings:
        """Settings of the kernel.

        :param measured: cost of a dear label where the specification states none.
        :raises InvalidInputError: a budget in core-hours, and nothing that says what a label costs.
        """
        cost = measured if self.cost is None else CostModel(**self.cost.model_dump())
        if self.core_hours is not None and cost is None:
            raise InvalidInputError(
                f"core_hours: no label at {self.target!r} has a measured cost; state it as cost, or give the budget as "
                f"n_frames"
            )
        return AllocateSettings(
            method=self.method,
            batch=self.batch,
            n_frames=self.n_frames,
            core_hours=self.core_hours,
            cost=cost,
            duplicate_edge=self.duplicate_edge,
            seed=self.seed,
        )


def allocate_spec(data: Any, *, where: str = "allocate") -> AllocateSpec:
    """Specification with everything in it checked.

    :param data: plain mapping, see the module's example.
    :raises ProtocolError: unknown key (with the nearest valid one), or values that are not allowed or do not go
        together.

    >>> allocate_spec({"target": "hse", "cheap": "pbe", "n_frames": 5}).method
    'difference'
    """
    spec = validate_spec(AllocateSpec, data, where=where)
    if spec.target == spec.cheap:
        raise ProtocolError(f"{where}: target and cheap are both {spec.target!r}")
    if spec.n_frames is None and spec.core_hours is None:
        raise ProtocolError(f"{where}: there is no budget; give n_frames, core_hours, or both")
    try:
        spec.settings(CostModel(core_hours=1.0))
    except InvalidInputError as error:
        raise ProtocolError(f"{where}.{error}") from error
    return spec
