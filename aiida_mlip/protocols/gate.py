"""How the embedding error of a campaign is measured, as a person writes it.

::

    n_fragments: 2               # whose core forces are computed at every buffer
    buffers_ang: [0, 1, 2, 3, 4, 5, 6]     # tried in this order; one that changes no fragment is passed over
    core_hours: 20               # for its labels, by the measured costs of others; left out: no limit
    cost: {core_hours: 0.5, natoms: 64, exponent: 2}       # of a label; left out: as measured
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field

from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.fragments.embedding import FEWEST_BUFFERS
from aiida_mlip.protocols.model import SpecModel, validate_spec
from aiida_mlip.protocols.select import CostSpec


class GateSettings(SpecModel):
    """Settings of the measurement; see the module's text."""

    n_fragments: int = Field(default=2, ge=1)
    buffers_ang: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    core_hours: float | None = Field(default=None, gt=0)
    cost: CostSpec | None = None


def gate_settings(data: object, *, where: str = "gate") -> GateSettings:
    """Settings of a specification.

    :raises ProtocolError: unknown key, fewer than three buffers, or an order that does not grow.
    """
    settings = validate_spec(GateSettings, data, where=where)
    buffers = settings.buffers_ang
    if len(buffers) < FEWEST_BUFFERS:
        raise ProtocolError(
            f"{where}.buffers_ang: at least {FEWEST_BUFFERS} are needed to see a decay, got {len(buffers)}"
        )
    if any(later <= earlier for earlier, later in pairwise(buffers)):
        raise ProtocolError(f"{where}.buffers_ang: must grow, got {list(buffers)}")
    return settings
