"""What the buffer of a fragment is relaxed on: E_model + short-range repulsion + a penalty on the buffer's novelty.

E = E_model + Σ_pairs ½ k (NEAR·d_min − r)² + κ Σ_buffer h(u_i − 1), with h(x) = x²/2 below x = 1 and x − 1/2 above. The
smooth novelty u (:mod:`aiida_mlip.workers.uncertainty_measures`) is 1 at the border of what the potential knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.kernel.frames import Failure
from aiida_mlip.kernel.metadynamics.walls import PairWall
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.model_loading import LoadedModel
from aiida_mlip.workers.step_forces import Step, StepForces
from aiida_mlip.workers.uncertainty_measures import UncertaintyMeasure

#: κ in eV: what a buffer atom one unit of γ beyond the border costs.
PENALTY_EV: Final[float] = 0.1
#: k in eV/Å².
REPULSION: Final[float] = 50.0
#: The penalty is there to bring strange atoms back, however strange they are: it does not saturate.
_NO_SATURATION: Final[float] = 1e6


class PenalisedForces(StepForces):
    """Energy and forces of a model with a penalty on the novelty of some atoms: one forward, one backward pass.

    :param model: an eager one with features, without derivatives of its own.
    :param grades: of the potential's training set; of every element that is met.
    :param penalty_ev: κ.
    :param fidelity: index of the level of theory, for a model of several.
    :raises InvalidInputError: a model with derivatives, or without features.
    """

    def __init__(
        self, model: LoadedModel, grades: Grades, *, penalty_ev: float = PENALTY_EV, fidelity: int | None = None
    ) -> None:
        super().__init__(model, fidelity=fidelity)
        if model.derivatives or model.feature_field is None:
            raise InvalidInputError("the model must be loaded with derivatives=False and features=True")
        self._measure = UncertaintyMeasure(
            grades, model.type_names, model.device, measure="novelty", saturation=_NO_SATURATION
        )
        self._penalty_ev = penalty_ev
        #: (a,) mask of the atoms that the penalty is on; set before a system is evaluated.
        self.penalised = np.zeros(0, dtype=bool)

    def evaluate(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Step:
        """Energy (eV) with the penalty and its forces (eV/Å); no stress. Parameters as in the base class.

        :raises ExternalProgramError: the model fails, or gives numbers that are not finite.
        :raises SpeciesError: an element that the model does not cover.
        :raises InvalidInputError: an element without training environments.
        """
        import torch

        inputs, pairs = self._graph(numbers, positions, cell, pbc)
        place = inputs["pos"].requires_grad_()
        outputs = self._call(inputs)
        features = self._model.features(inputs, outputs, keep_graph=True)
        mine = torch.as_tensor(np.flatnonzero(self.penalised), device=self._model.device)
        beyond = (self._measure(features, inputs["atom_types"])[mine] - 1).clamp(min=0)
        penalty = torch.where(beyond < 1, beyond.square() / 2, beyond - 0.5).sum()
        energy = outputs["total_energy"].double().sum() + self._penalty_ev * penalty
        (slope,) = torch.autograd.grad(energy, [place])
        forces, value = -slope.cpu().double().numpy(), float(energy.detach())
        if not (np.isfinite(forces).all() and np.isfinite(value)):
            raise ExternalProgramError(f"the potential gave no forces: {Failure.IMPLAUSIBLE.label} (not finite)")
        return Step(value, forces, None, features.detach(), inputs["atom_types"], pairs)


class BufferCalculator(Calculator):  # type: ignore[misc]  # ASE ships no types
    """ASE calculator of what a buffer is relaxed on.

    :param source: the model with the penalty.
    :param wall: repulsion of atoms that are too near.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]

    def __init__(self, source: PenalisedForces, wall: PairWall) -> None:
        super().__init__()
        self._source, self._wall = source, wall

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Energy (eV) and forces (eV/Å).

        :raises ExternalProgramError: the model fails, or gives numbers that are not finite.
        """
        super().calculate(atoms, properties, system_changes)
        geometry = (self.atoms.numbers, self.atoms.positions, self.atoms.cell.array, self.atoms.pbc)
        step = self._source.evaluate(*geometry)
        repulsion, push, _, _ = self._wall.evaluate(*geometry)
        energy = step.energy + repulsion
        self.results = {"energy": energy, "free_energy": energy, "forces": step.forces + push}
