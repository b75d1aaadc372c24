"""One potential of the EMT copper committee with the grades of its training frames, and warm copper with vacancies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from emt_copper import LATTICE_ANG, CopperCommittee

from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

COPPER = bulk("Cu", a=LATTICE_ANG, cubic=True)


@dataclass(frozen=True)
class GradedPotential:
    """A package, its grades, and a calculator of both."""

    package: Path
    grades: Grades
    calculator: PotentialCalculator


def graded(committee: CopperCommittee) -> GradedPotential:
    """The first member, graded on its training frames."""
    package, train = committee.packages[0], committee.data.train
    model = load_model(package, device="cpu", features=True)
    grades = fit_grades(predict(model, train, features=True).features, train.numbers)
    single = load_model(package, device="cpu", features=True, frames="one")
    return GradedPotential(package, grades, PotentialCalculator(single, shifts={}, grades=grades))


def warm_copper(repeat: tuple[int, int, int] = (5, 5, 5), *, without: list[int], seed: int = 0) -> Atoms:
    """A crystal at 300 K (0.08 Å) that lacks some atoms."""
    atoms = COPPER * repeat
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.08, atoms.positions.shape)
    del atoms[without]
    return atoms
