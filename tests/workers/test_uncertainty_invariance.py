"""Novelty γ and committee deviation u of a real model do not depend on how a structure is written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch and e3nn about themselves

TOLERANCE = 1e-5  # relative


def rattled(seed: int, stdev: float = 0.1) -> Atoms:
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.rattle(stdev, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def committee(toy_package: Path) -> list[LoadedModel]:
    """Three double-precision models: the toy, and the toy with its weights moved at random."""
    import torch

    models = [load_model(toy_package, device="cpu", features=True) for _ in range(3)]
    for seed, model in enumerate(models[1:]):
        generator = torch.Generator().manual_seed(seed)
        for weights in model.call.parameters():
            noise = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
            weights.data += 0.1 * weights.abs().mean() * noise
    return models


@pytest.fixture(scope="module")
def grades(committee: list[LoadedModel]) -> Grades:
    frames = from_ase([rattled(seed, 0.05) for seed in range(12)])
    return fit_grades(predict(committee[0], frames, features=True).features, frames.numbers)


def novelty_and_deviation(committee: list[LoadedModel], grades: Grades, atoms: Atoms) -> np.ndarray:
    """(2, a) γ and u."""
    frames: Frames = from_ase([atoms])
    found = [predict(model, frames, features=True) for model in committee]
    gamma = grades.novelty(found[0].features, frames.numbers)
    return np.stack([gamma, force_deviation(np.stack([one.forces for one in found]))])


def rotated(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    turn = Rotation.random(random_state=4).as_matrix()
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ turn.T)
    copy.positions = atoms.positions @ turn.T
    return copy, np.arange(len(atoms))


def translated(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    copy = atoms.copy()
    copy.positions += [0.7, -3.1, 12.3]
    copy.wrap()
    return copy, np.arange(len(atoms))


def permuted(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    order = np.random.default_rng(5).permutation(len(atoms))
    return atoms[order], order


def supercell(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    return atoms.repeat((2, 1, 2)), np.tile(np.arange(len(atoms)), 4)


def other_cell(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    copy = atoms.copy()
    copy.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell.array)
    return copy, np.arange(len(atoms))


@pytest.mark.parametrize("change", [rotated, translated, permuted, supercell, other_cell])
def test_novelty_and_deviation_are_invariant(committee: list[LoadedModel], grades: Grades, change) -> None:
    atoms = rattled(100)
    expected = novelty_and_deviation(committee, grades, atoms)
    assert expected.min() > 1e-3  # neither is zero
    assert np.ptp(expected[0]) > 0.1
    changed, order = change(atoms)
    found = novelty_and_deviation(committee, grades, changed)
    np.testing.assert_allclose(found, expected[:, order], rtol=TOLERANCE)


def test_novelty_grows_away_from_the_training_set(committee: list[LoadedModel], grades: Grades) -> None:
    medians = [
        np.median(novelty_and_deviation(committee[:2], grades, rattled(200, stdev))[0]) for stdev in (0.05, 0.2, 0.4)
    ]
    assert medians[0] < 1.0 < medians[1] < medians[2]
