"""Settings of a validation: which properties, how they are computed, and what decides about them.

::

    eos: {strain: 0.04, points: 9}
    elastic: {}
    phonons: {min_length_ang: 15}
    vacancy: null                        # not wanted
    thresholds:
      a0: {absolute: 0.03}               # Å, against the reference
      elastic_constants: {relative: 0.1}
      lowest_frequency: {at_least: -0.1} # THz: needs no reference

Lengths in Å, strains and fractions without unit, temperatures in K, times in ps. A section that is ``null`` is not
computed; the equation of state always is, because every other property is one of the crystal at *its own* lattice
constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from aiida_mlip.kernel.properties.comparison import FAMILIES
from aiida_mlip.protocols.model import SpecModel, from_protocol, validate_spec

Positive = Annotated[float, Field(gt=0)]
Strain = Annotated[float, Field(gt=0, le=0.1)]
Steps = Annotated[int, Field(ge=1)]
Temperatures = Annotated[tuple[Positive, ...], Field(min_length=1)]
STAGE: Final[str] = "validate"


class EquationOfStateSettings(SpecModel):
    """Isotropic strains of the primitive cell.

    :param strain: largest strain of the lattice constant, to either side.
    :param points: number of volumes.
    :param fit_strain: the fit is repeated with the points so close to the minimum.
    """

    strain: Strain
    points: Annotated[int, Field(ge=5, le=101)]
    fit_strain: Strain


class ElasticSettings(SpecModel):
    """Small strains of the primitive cell, and displacements for the relaxation of its atoms.

    :param strain: of each of the six components, to either side.
    :param displacement_ang: of the atoms.
    """

    strain: Strain
    displacement_ang: Positive = 0.01


class PhononSettings(SpecModel):
    """Finite displacements in a supercell.

    :param min_length_ang: the supercell is an even repetition whose faces are at least so far apart; 1 if the cell is.
    :param displacement_ang: of the atoms.
    :param mesh: q-points along each reciprocal vector, for the density of states and the lowest frequency.
    :param points_per_path: q-points of each piece of the band path.
    """

    min_length_ang: Positive
    displacement_ang: Positive = 0.01
    mesh: Annotated[int, Field(ge=2, le=60)]
    points_per_path: Annotated[int, Field(ge=2, le=301)] = 51


class RelaxedSettings(SpecModel):
    """How atoms around defects relax.

    :param optimizer: ``fire`` or ``lbfgs``.
    :param fmax_ev_per_ang: largest force left.
    :param max_steps: of the optimizer.
    """

    optimizer: Literal["fire", "lbfgs"] = "lbfgs"
    fmax_ev_per_ang: Positive
    max_steps: Steps


class VacancySettings(SpecModel):
    """One atom taken out of a supercell.

    :param min_length_ang: distance of the supercell's faces, at least.
    :param inward: the neighbours start displaced towards the vacancy by this part of their distance, so that a
        relaxation finds the minimum behind a saddle of high symmetry.
    """

    min_length_ang: Positive
    inward: Annotated[float, Field(ge=0, lt=0.5)] = 0.2


class SurfaceSettings(SpecModel):
    """Slabs.

    :param miller: indices with respect to the conventional cell.
    :param min_thickness_ang: of the slab.
    :param vacuum_ang: between the slab and its image.
    """

    miller: Annotated[tuple[tuple[int, int, int], ...], Field(min_length=1)]
    min_thickness_ang: Positive
    vacuum_ang: Positive = 12.0

    @field_validator("miller")
    @classmethod
    def _check_miller(cls, value: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        if any(not any(indices) for indices in value):
            raise ValueError("indices must not all be zero")
        return value


class DimerSettings(SpecModel):
    """Two atoms alone.

    :param shortest: distance in units of the sum of the covalent radii; at half of it atoms overlap, and no level of
        theory is asked to label them.
    :param longest: likewise.
    :param points: number of distances.
    :param reference: also by the reference (two open-shell atoms in a box are no easy task for DFT).
    """

    shortest: Annotated[float, Field(gt=0.5)] = 0.51
    longest: Positive = 2.0
    points: Annotated[int, Field(ge=5, le=501)]
    reference: bool = False

    @model_validator(mode="after")
    def _check_together(self) -> DimerSettings:
        if self.shortest >= self.longest:
            raise ValueError(f"shortest ({self.shortest:g}) must be below longest ({self.longest:g})")
        return self


class DynamicsSettings(SpecModel):
    """Runs of a supercell: equilibration with a thermostat, then constant energy.

    :param temperatures_k: the ladder; one run each.
    :param min_length_ang: distance of the supercell's faces, at least.
    :param timestep_fs: of the integrator.
    :param equilibration_ps: with the thermostat.
    :param production_ps: at constant energy; drift, pair and angle distributions and diffusion are from here.
    :param record_every: steps between frames.
    :param reference: also by the reference, if that is an ASE calculator.
    :param seed: of all random numbers.
    """

    temperatures_k: Temperatures
    min_length_ang: Positive
    timestep_fs: Annotated[float, Field(gt=0, le=10)]
    equilibration_ps: Positive
    production_ps: Positive
    record_every: Steps
    reference: bool = True
    seed: Annotated[int, Field(ge=0)] = 0


class ExpansionSettings(SpecModel):
    """Runs at zero pressure; the second half of each counts.

    :param temperatures_k: at least two.
    """

    temperatures_k: Annotated[tuple[Positive, ...], Field(min_length=2)]
    min_length_ang: Positive
    timestep_fs: Annotated[float, Field(gt=0, le=10)]
    duration_ps: Positive
    record_every: Steps
    reference: bool = True
    seed: Annotated[int, Field(ge=0)] = 0


class OrderSettings(SpecModel):
    """Swaps of atoms on the lattice of an alloy; the second half of each run counts.

    :param temperature_k: of the swaps.
    :param n_steps: attempted swaps.
    :param n_shells: shells of neighbours.
    """

    temperature_k: Positive
    min_length_ang: Positive
    n_steps: Steps
    record_every: Steps
    n_shells: Annotated[int, Field(ge=1, le=10)] = 2
    reference: bool = True
    seed: Annotated[int, Field(ge=0)] = 0


class Threshold(SpecModel):
    """What a value must keep; all bounds that are given count.

    :param absolute: largest distance from the reference, in the unit of the property.
    :param relative: largest distance from the reference, as a part of it.
    :param at_least: of the value itself.
    :param at_most: of the value itself.
    """

    absolute: Annotated[float, Field(ge=0)] | None = None
    relative: Annotated[float, Field(ge=0)] | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Threshold:
        if all(value is None for value in (self.absolute, self.relative, self.at_least, self.at_most)):
            raise ValueError("a threshold needs one of absolute, relative, at_least, at_most")
        return self


class ValidateSettings(SpecModel):
    """Everything that a validation does.

    :param symprec_ang: atoms that miss a symmetry by less are symmetric.
    :param fidelity: level of theory to ask for, of a potential of several.
    :param device: where a potential runs.
    :param max_residual_force_ev_per_ang: larger forces at the equilibrium volume: the atoms are not relaxed, and
        elastic constants and phonons are not computed.
    """

    symprec_ang: Positive = 1e-3
    fidelity: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_residual_force_ev_per_ang: Positive = 0.05
    eos: EquationOfStateSettings
    elastic: ElasticSettings | None = None
    phonons: PhononSettings | None = None
    relaxed: RelaxedSettings
    vacancy: VacancySettings | None = None
    surface: SurfaceSettings | None = None
    dimer: DimerSettings | None = None
    dynamics: DynamicsSettings | None = None
    expansion: ExpansionSettings | None = None
    order: OrderSettings | None = None
    thresholds: dict[str, Threshold | None] = Field(default_factory=dict)

    @field_validator("thresholds")
    @classmethod
    def _check_families(cls, value: dict[str, Threshold | None]) -> dict[str, Threshold | None]:
        for name in value:
            if name not in FAMILIES:
                raise ValueError(f"unknown property {name!r}; valid are {', '.join(FAMILIES)}")
        return value


def parse_validate(data: Any, *, where: str = "settings") -> ValidateSettings:
    """Validated settings.

    :raises ProtocolError: an unknown key (with the nearest valid one), a missing one, or a value that is not allowed.
    """
    return validate_spec(ValidateSettings, data, where=where)


def resolved_validate(overrides: Mapping[str, Any] | None = None, *, protocol: str | None = None) -> dict[str, Any]:
    """Plain values of a protocol with overrides merged in.

    :raises ProtocolError: unknown protocol, key or value.
    """
    return from_protocol(ValidateSettings, STAGE, protocol, overrides).model_dump(mode="json")
