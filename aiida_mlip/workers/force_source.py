"""Forces for dynamics: any ASE calculator by import path, or a packaged potential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

from aiida_mlip.errors import ExternalProgramError, FileFormatError, InvalidInputError, SpeciesError
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.grading import TorchGrades
from aiida_mlip.workers.label import load_calculator
from aiida_mlip.workers.model_loading import LoadedModel, load_model
from aiida_mlip.workers.step_forces import Step, StepForces

#: Geometries that differ by less (Å) are the same for a grade: positions that went through another program and back.
SAME_GEOMETRY: Final[float] = 1e-9


class PotentialCalculator(Calculator):  # type: ignore[misc]  # ASE ships no types
    """ASE calculator of a loaded package, which can grade its atoms.

    Energy, forces, stress and the features of the atoms come from one call of the model. The property ``novelty``,
    (a,) γ, is computed from those features when it is asked for, and costs no further call.

    :param model: see :func:`aiida_mlip.workers.model_loading.load_model`.
    :param shifts: eV per atom to add, by chemical symbol.
    :param fidelity: index of the level of theory, for a model of several.
    :param grades: of the potential's training set; None: no novelty.
    :raises InvalidInputError: grades of another potential, or of a model that gives no features.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress", "novelty"]

    def __init__(
        self,
        model: LoadedModel,
        *,
        shifts: Mapping[str, float],
        fidelity: int | None = None,
        grades: Grades | None = None,
    ) -> None:
        super().__init__()
        self._source = StepForces(model, fidelity=fidelity)
        self._shift_of = np.zeros(256)
        for symbol, value in shifts.items():
            self._shift_of[atomic_numbers[symbol]] = value
        if grades is not None and model.feature_field is None:
            raise InvalidInputError("grades need features: load the model with features=True")
        self._grades = None if grades is None else TorchGrades(grades, model.type_names, model.device)
        self._step: Step | None = None

    @property
    def has_grades(self) -> bool:
        """Whether it can be asked for ``novelty``."""
        return self._grades is not None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Energy (eV), forces (eV/Å) and stress (eV/Å³) of the atoms.

        :raises ExternalProgramError: the model fails, or gives numbers that are not finite.
        :raises SpeciesError: an element that the model does not cover.
        """
        super().calculate(atoms, properties, system_changes)
        self._step = None  # whatever fails below leaves nothing behind
        image = self.atoms
        step = self._source.evaluate(image.numbers, image.positions, image.cell.array, image.pbc)
        energy = step.energy + float(self._shift_of[image.numbers].sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": step.forces}
        if step.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(step.stress)
        self._step = step
        if "novelty" in properties:
            self.results["novelty"] = self._novelty_of(step)

    @property
    def cutoff_ang(self) -> float:
        """Cutoff (Å) of the model."""
        return self._source.cutoff_ang

    def forces(self, atoms: Atoms) -> np.ndarray:
        """(a, 3) eV/Å, from the last call of the model if that was for this geometry.

        :raises ExternalProgramError: the model fails.
        """
        return self._current_step(atoms).forces

    def novelty(self, atoms: Atoms) -> np.ndarray:
        """(a,) γ of the atoms, from the last call of the model if that was for this geometry.

        :raises InvalidInputError: the calculator was made without grades.
        :raises ExternalProgramError: the model fails.
        """
        if "novelty" not in self.results or not self._is_current(atoms):
            self.results["novelty"] = self._novelty_of(self._current_step(atoms))
        return np.asarray(self.results["novelty"])

    def closest_pair(self, atoms: Atoms, limits: np.ndarray) -> tuple[float, int, int, float]:
        """Pair with the smallest ratio of distance to its limit, among those of the model's neighbour list.

        Within the limits only, and those within the model's cutoff; see
        :func:`aiida_mlip.kernel.distances.closest_pair`.
        """
        return self._current_step(atoms).pairs.closest(atoms.numbers, limits)

    def _is_current(self, atoms: Atoms) -> bool:
        mine = self.atoms
        return (
            self._step is not None
            and np.array_equal(mine.numbers, atoms.numbers)
            and np.array_equal(mine.pbc, atoms.pbc)
            and bool(np.abs(mine.positions - atoms.positions).max(initial=0.0) < SAME_GEOMETRY)
            and bool(np.abs(mine.cell.array - atoms.cell.array).max() < SAME_GEOMETRY)
        )

    def _current_step(self, atoms: Atoms) -> Step:
        if not self._is_current(atoms):
            self.calculate(atoms)
        assert self._step is not None  # noqa: S101 - set by `calculate`, for the type checker
        return self._step

    def _novelty_of(self, step: Step) -> np.ndarray:
        if self._grades is None:
            raise InvalidInputError("this potential has no grades: it was trained without them, or they were not given")
        return np.asarray(self._grades.novelty(step.features, step.types).cpu().numpy())


def calculator_of_path(path: str, arguments: Mapping[str, Any]) -> Calculator:
    """ASE calculator named by its import path: this runs the code of that package.

    :raises InvalidInputError: it cannot be imported or built.
    """
    try:
        return load_calculator(path, dict(arguments))
    except Exception as error:  # importing a package, or building its calculator, may raise anything
        raise InvalidInputError(f"forces.calculator {path}: {type(error).__name__}: {error}") from error


class ModelNotLoadedError(FileFormatError):
    """A package of a potential cannot be loaded."""


def calculator_of_package(
    package: Path,
    *,
    device: str,
    sha256: str | None,
    species: Sequence[str],
    wanted: Sequence[str],
    shifts: Mapping[str, float],
    fidelity: int | None,
    mode: str = "eager",
    grades: Grades | None = None,
) -> PotentialCalculator:
    """Calculator of a packaged potential; executes code from the package.

    :param species: chemical symbols that the potential is said to cover; empty: not known.
    :param wanted: chemical symbols of the structures.
    :param mode: ``eager``, or ``compiled`` (a minute to compile once per machine, then several times faster).
    :param grades: of the potential's training set: the calculator then knows the property ``novelty``.
    :raises SpeciesError: an element that is not covered; raised before anything is loaded.
    :raises ModelNotLoadedError: the package is broken, changed, or cannot be loaded here.
    """
    model = load_potential(
        package,
        species=species,
        wanted=wanted,
        device=device,
        mode=mode,
        expected_sha256=sha256,
        features=grades is not None,
    )
    return PotentialCalculator(model, shifts=shifts, fidelity=fidelity, grades=grades)


def load_potential(package: Path, *, species: Sequence[str], wanted: Sequence[str], **options: Any) -> LoadedModel:
    """Model of a packaged potential for one structure at a time; executes code from the package.

    :param options: of :func:`aiida_mlip.workers.model_loading.load_model`.
    :raises SpeciesError: an element that is not covered; raised before anything is loaded.
    :raises ModelNotLoadedError: the package is broken, changed, or cannot be loaded here.
    """
    if species and (missing := [symbol for symbol in wanted if symbol not in species]):
        raise SpeciesError(f"the potential does not cover {', '.join(missing)}; it covers {', '.join(species)}")
    try:
        return load_model(package, frames="one", **options)
    except (FileFormatError, ExternalProgramError) as error:
        raise ModelNotLoadedError(str(error)) from error
