"""What a watch of running dynamics looks at, and when it selects a frame or stops: as a person writes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aiida_mlip.io.metadynamics import Positive, Settings


class WatchSpec(Settings):
    """Thresholds of a watch. A frame is judged by its worst atom, never by a mean.

    :param every: steps between observations.
    :param novelty_select: a frame with γ above it is worth a label; null: γ selects nothing.
    :param novelty_stop: the dynamics stops there; null: γ stops nothing.
    :param error_select: like ``novelty_select`` for the calibrated committee error û, in units of the validation force
        error that the calibration holds (root mean square length of the error vectors).
    :param error_stop: like ``novelty_stop``, in the same unit.
    :param error_where: ``novel``: the committee is evaluated when some atom has γ above ``novelty_gate``; ``always``:
        at every observation.
    :param novelty_gate: see ``error_where``.
    :param min_distance_ang: smallest allowed distance of two atoms, for all pairs or by pair ({'Si-O': 1.4}); a pair
        not named: 0.7 times the sum of the covalent radii. The dynamics stops below it.
    """

    every: Annotated[int, Field(ge=1)] = 10
    novelty_select: Positive | None = 1.5
    novelty_stop: Positive | None = 4.0
    error_select: Positive | None = 2.0
    error_stop: Positive | None = 5.0
    error_where: Literal["novel", "always"] = "novel"
    novelty_gate: Positive = 1.0
    min_distance_ang: Positive | dict[str, Positive] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> WatchSpec:
        for name in ("novelty", "error"):
            select, stop = getattr(self, f"{name}_select"), getattr(self, f"{name}_stop")
            if select is not None and stop is not None and select > stop:
                raise ValueError(
                    f"{name}_select ({select:g}) is above {name}_stop ({stop:g}): nothing would be selected"
                )
        return self

    @property
    def needs_novelty(self) -> bool:
        """Whether γ is looked at."""
        return self.novelty_select is not None or self.novelty_stop is not None
