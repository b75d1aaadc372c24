"""A potential that can be driven to where it is uncertain: E_b = E − τ Σ_i u_i, with forces and stress by autodiff.

Uncertainty-biased dynamics (Zaverkin et al. 2024, doi:10.1038/s41524-024-01254-1; van der Oord et al. 2023,
doi:10.1038/s41524-023-01104-6). Energy and features come from one call of the energy model, without the derivatives it
takes itself: those would free the graph that the uncertainty is differentiated on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Float64

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.kernel.frames import Failure
from aiida_mlip.kernel.metadynamics.environment_bias import BiasEvaluation
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.model_loading import LoadedModel
from aiida_mlip.workers.step_forces import Step, StepForces
from aiida_mlip.workers.uncertainty_measures import Measure, UncertaintyMeasure


@dataclass(frozen=True)
class UncertainStep(Step):
    """A potential's word on one geometry, and how its uncertainty U = Σ_i u_i changes with it.

    :param per_atom: (a,) u.
    :param gradient: (a, 3) ∂U/∂r, 1/Å.
    :param strain_derivative: (3, 3) ∂U/∂ε.
    """

    per_atom: Float64[np.ndarray, "a"]
    gradient: Float64[np.ndarray, "a 3"]
    strain_derivative: Float64[np.ndarray, "3 3"]


class UncertainForces(StepForces):
    """Energy, forces, stress, and uncertainty with its derivatives: one forward and two backward passes.

    :param model: an eager one without derivatives of its own, see
        :func:`aiida_mlip.workers.model_loading.load_model`.
    :param measure: uncertainty of the atoms.
    :param fidelity: index of the level of theory, for a model of several.
    :raises InvalidInputError: a model with derivatives, or without features.
    """

    def __init__(self, model: LoadedModel, measure: UncertaintyMeasure, *, fidelity: int | None = None) -> None:
        super().__init__(model, fidelity=fidelity)
        if model.derivatives or model.feature_field is None:
            raise InvalidInputError("the model must be loaded with derivatives=False and features=True")
        self._measure = measure

    def evaluate(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> UncertainStep:
        """All of it at one geometry; parameters as in :meth:`StepForces.evaluate`.

        :raises ExternalProgramError: the model fails, or gives numbers that are not finite.
        :raises SpeciesError: an element that the model does not cover.
        :raises InvalidInputError: an element without training environments.
        """
        import torch

        inputs, pairs = self._graph(numbers, positions, cell, pbc)
        place, strain = inputs["pos"].requires_grad_(), inputs["pos"].new_zeros(3, 3).requires_grad_()
        symmetric = (strain + strain.T) / 2
        inputs["pos"] = place + place @ symmetric
        inputs["cell"] = inputs["cell"] + inputs["cell"] @ symmetric
        outputs = self._call(inputs)
        energy = outputs["total_energy"].sum()
        features = self._model.features(inputs, outputs, keep_graph=True)
        per_atom = self._measure(features, inputs["atom_types"])
        slopes = torch.autograd.grad(energy, [place, strain], retain_graph=True)
        rises = torch.autograd.grad(per_atom.sum(), [place, strain])
        values = [x.detach().cpu().double().numpy() for x in (*slopes, *rises, per_atom, energy)]
        if not all(np.isfinite(value).all() for value in values):
            raise ExternalProgramError(f"the potential gave no forces: {Failure.IMPLAUSIBLE.label} (not finite)")
        volume = abs(float(np.linalg.det(cell)))
        return UncertainStep(
            energy=float(values[5]),
            forces=-values[0],
            stress=values[1] / volume if bool(np.all(pbc)) and volume > 0 else None,
            features=features.detach(),
            types=inputs["atom_types"],
            pairs=pairs,
            per_atom=values[4],
            gradient=values[2],
            strain_derivative=values[3],
        )


class UncertainPotential(PotentialCalculator):
    """ASE calculator of a potential that also knows the slope of its uncertainty.

    :param model: see :class:`UncertainForces`.
    :param shifts: eV per atom to add, by chemical symbol.
    :param grades: of the potential's training set.
    :param measure: ``novelty`` or ``laplace``, see :mod:`aiida_mlip.workers.uncertainty_measures`.
    :param saturation: uncertainty of an atom beyond which it is hardly pushed any further.
    :param fidelity: index of the level of theory, for a model of several.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        shifts: Mapping[str, float],
        grades: Grades,
        measure: Measure,
        saturation: float,
        fidelity: int | None = None,
    ) -> None:
        super().__init__(model, shifts=shifts, fidelity=fidelity, grades=grades)
        smooth = UncertaintyMeasure(grades, model.type_names, model.device, measure=measure, saturation=saturation)
        self._source = UncertainForces(model, smooth, fidelity=fidelity)

    def uncertain_step(self, atoms: Atoms) -> UncertainStep:
        """Everything known of this geometry; no new call of the model where the last one was for it.

        :raises ExternalProgramError: the model fails.
        """
        step = self._current_step(atoms)
        if not isinstance(step, UncertainStep):
            raise InvalidInputError("the calculator's source of forces was exchanged")
        return step


class UncertaintyBias:
    """Bias −τ U of an uncertain potential, as :class:`~aiida_mlip.workers.guarded_calculator.Bias` wants it.

    :param potential: that is biased; when it has just computed the forces of a geometry, the bias there is free.
    :param tau_ev: τ; may be changed at any time.
    """

    def __init__(self, potential: UncertainPotential, tau_ev: float = 0.0) -> None:
        self._potential = potential
        self.tau_ev = tau_ev
        #: Of the last geometry evaluated.
        self.last: UncertainStep | None = None

    def evaluate(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> BiasEvaluation:
        """Energy (eV), forces (eV/Å), virial (eV); the coordinates are the uncertainties of the atoms."""
        step = self._potential.uncertain_step(Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc))
        self.last = step
        return BiasEvaluation(
            energy=-self.tau_ev * float(step.per_atom.sum()),
            forces=self.tau_ev * step.gradient,
            virial=-self.tau_ev * step.strain_derivative,
            coordinates=step.per_atom[:, None],
            per_atom=-self.tau_ev * step.per_atom,
        )
