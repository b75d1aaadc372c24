"""The calculator that a request of a dynamics program asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ase.calculators.calculator import Calculator

from aiida_mlip.io.metadynamics import MODEL_FILE, Forces
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.force_source import calculator_of_package, calculator_of_path


class _Spec(Protocol):
    @property
    def forces(self) -> Forces | None: ...
    @property
    def device(self) -> str: ...
    @property
    def fidelity(self) -> str | None: ...


class ForcesRequest(Protocol):
    """What the requests of all dynamics programs have in common."""

    @property
    def spec(self) -> _Spec: ...  # noqa: D102
    @property
    def sha256(self) -> str | None: ...  # noqa: D102
    @property
    def species(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def fidelities(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def energy_shifts(self) -> Mapping[str, float]: ...  # noqa: D102


def requested_calculator(
    folder: Path, request: ForcesRequest, structures: Frames, *, mode: str = "eager", grades: Grades | None = None
) -> Calculator:
    """ASE calculator of the forces: a potential's package in the folder, or a calculator by import path.

    :param mode: of a potential, ``eager`` or ``compiled``.
    :param grades: of a potential.
    :raises InvalidInputError: a calculator that cannot be imported or built.
    :raises SpeciesError: an element that the potential does not cover.
    :raises ModelNotLoadedError: the package is broken, changed, or cannot be loaded here.
    """
    spec = request.spec
    if spec.forces is not None:
        return calculator_of_path(spec.forces.calculator, spec.forces.arguments)
    return calculator_of_package(
        folder / MODEL_FILE,
        device=spec.device,
        sha256=request.sha256,
        species=request.species,
        wanted=structures.species,
        shifts=request.energy_shifts,
        fidelity=fidelity_index(request),
        mode=mode,
        grades=grades,
    )


def fidelity_index(request: ForcesRequest) -> int | None:
    """Index of the level of theory, for a potential of several."""
    name = request.spec.fidelity
    return request.fidelities.index(name) if len(request.fidelities) > 1 and name is not None else None
