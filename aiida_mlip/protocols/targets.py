"""Targets: errors on held-out frames that a potential must not exceed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from aiida_mlip.protocols.model import SpecModel

Positive = Annotated[float, Field(gt=0)]


class Targets(SpecModel):
    """Upper limits of errors on the held-out (test) frames; each key is the error of the same name.

    :param energy_mae_ev_per_atom: eV/atom, likewise ``energy_rmse_ev_per_atom``.
    :param force_mae_ev_per_ang: eV/Å over components, likewise ``force_rmse_ev_per_ang``.
    :param force_rmse_relative: force RMSE over the rms force of the same frames.
    :param stress_mae_gpa: GPa over components, likewise ``stress_rmse_gpa``.
    """

    energy_mae_ev_per_atom: Positive | None = None
    energy_rmse_ev_per_atom: Positive | None = None
    force_mae_ev_per_ang: Positive | None = None
    force_rmse_ev_per_ang: Positive | None = None
    force_rmse_relative: Positive | None = None
    stress_mae_gpa: Positive | None = None
    stress_rmse_gpa: Positive | None = None

    @model_validator(mode="after")
    def _check_any(self) -> Targets:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"no target given; valid are {', '.join(type(self).model_fields)}")
        return self

    def missed(self, errors: dict[str, float | None]) -> list[str]:
        """Targets that these errors miss, as sentences; an error that was not measured misses its target."""
        found = []
        for name, limit in self.model_dump(exclude_none=True).items():
            value = errors.get(name)
            if value is None:
                found.append(f"{name} was not measured (no such labels among the test frames)")
            elif not value <= limit:
                found.append(f"{name} {value:.4g} > {limit:.4g}")
        return found
