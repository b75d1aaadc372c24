"""Forces for dynamics: any ASE calculator by import path, or a packaged potential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from aiida_mlip.errors import ExternalProgramError, FileFormatError, InvalidInputError, SpeciesError
from aiida_mlip.kernel.frames import Failure, from_arrays
from aiida_mlip.workers.inference import energy_shifts, predict
from aiida_mlip.workers.label import load_calculator
from aiida_mlip.workers.model_loading import LoadedModel, load_model


class PotentialCalculator(Calculator):  # type: ignore[misc]  # ASE ships no types
    """ASE calculator of a loaded package.

    :param model: see :func:`aiida_mlip.workers.model_loading.load_model`.
    :param shifts: eV per atom to add, by chemical symbol.
    :param fidelity: index of the level of theory, for a model of several.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, model: LoadedModel, *, shifts: Mapping[str, float], fidelity: int | None = None) -> None:
        super().__init__()
        self._model = model
        self._shifts = shifts
        self._fidelity = None if fidelity is None else np.array([fidelity])

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
        frame = from_arrays(
            natoms=np.array([len(self.atoms)]),
            numbers=self.atoms.numbers,
            positions=self.atoms.positions,
            cell=self.atoms.cell.array[None],
            pbc=self.atoms.pbc[None],
        )
        result = predict(self._model, frame, fidelity=self._fidelity)
        if result.failure[0]:
            raise ExternalProgramError(f"the potential gave no forces: {Failure(int(result.failure[0])).label}")
        energy = float(result.energy[0] + energy_shifts(frame, self._shifts)[0])
        self.results = {"energy": energy, "free_energy": energy, "forces": result.forces}
        if np.isfinite(result.stress).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(result.stress[0])


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
) -> PotentialCalculator:
    """Calculator of a packaged potential; executes code from the package.

    :param species: chemical symbols that the potential is said to cover; empty: not known.
    :param wanted: chemical symbols of the structures.
    :raises SpeciesError: an element that is not covered; raised before anything is loaded.
    :raises ModelNotLoadedError: the package is broken, changed, or cannot be loaded here.
    """
    if species and (missing := [symbol for symbol in wanted if symbol not in species]):
        raise SpeciesError(f"the potential does not cover {', '.join(missing)}; it covers {', '.join(species)}")
    try:
        model = load_model(package, device=device, expected_sha256=sha256)
    except (FileFormatError, ExternalProgramError) as error:
        raise ModelNotLoadedError(str(error)) from error
    return PotentialCalculator(model, shifts=shifts, fidelity=fidelity)
