"""The uncertainty of a potential as a bias: its forces and stress are derivatives, and it has the right symmetries."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model
from aiida_mlip.workers.uncertain_potential import UncertainPotential, UncertaintyBias
from aiida_mlip.workers.uncertainty_measures import UncertaintyMeasure

MEASURES = ("novelty", "laplace")


def crystal(seed: int = 0, rattle: float = 0.08) -> Atoms:
    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def grades(toy_package) -> Grades:
    """Of environments that are less disordered than those below; several clusters of each element."""
    frames = from_ase([crystal(seed, 0.05) for seed in range(40)])
    model = load_model(toy_package, device="cpu", features=True)
    return fit_grades(predict(model, frames, features=True).features, frames.numbers, max_clusters=3)


@pytest.fixture(scope="module")
def model(toy_package) -> LoadedModel:
    return load_model(toy_package, device="cpu", features=True, derivatives=False)


def potential(model, grades, measure="novelty", **keys) -> UncertainPotential:
    settings = {"shifts": {"Si": -3.0}, "grades": grades, "measure": measure, "saturation": 4.0, **keys}
    return UncertainPotential(model, **settings)


def total(calculator: UncertainPotential, atoms: Atoms) -> float:
    return float(calculator.uncertain_step(atoms).per_atom.sum())


def test_energy_forces_stress_and_novelty_are_those_of_the_plain_potential(model, toy_package, grades):
    plain = PotentialCalculator(
        load_model(toy_package, device="cpu", features=True), shifts={"Si": -3.0}, grades=grades
    )
    uncertain = potential(model, grades)
    atoms = crystal(3)
    for name in ("energy", "forces", "stress", "novelty"):
        np.testing.assert_allclose(
            uncertain.get_property(name, atoms.copy()), plain.get_property(name, atoms.copy()), atol=1e-10
        )


@pytest.mark.parametrize("measure", MEASURES)
def test_forces_of_the_bias_are_its_derivative(model, grades, measure):
    atoms, tau = crystal(1), 0.7
    bias = UncertaintyBias(potential(model, grades, measure), tau)

    def energy(moved: np.ndarray) -> float:
        return bias.evaluate(atoms.numbers, moved, atoms.cell.array, atoms.pbc).energy

    forces = bias.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc).forces
    step = 1e-4
    for atom, axis in [(0, 0), (2, 1), (5, 2), (7, 0)]:
        shift = np.zeros_like(atoms.positions)
        shift[atom, axis] = step
        numerical = -(energy(atoms.positions + shift) - energy(atoms.positions - shift)) / (2 * step)
        assert forces[atom, axis] == pytest.approx(numerical, rel=1e-3, abs=1e-6)
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_virial_of_the_bias_is_its_derivative_by_strain(model, grades, measure):
    atoms = crystal(2)
    bias = UncertaintyBias(potential(model, grades, measure), 0.7)

    def evaluate(strain: np.ndarray):
        change = np.eye(3) + strain
        return bias.evaluate(atoms.numbers, atoms.positions @ change, atoms.cell.array @ change, atoms.pbc)

    virial = evaluate(np.zeros((3, 3))).virial
    size, step = np.abs(virial).max(), 1e-4
    assert size > 1e-3
    for i, j in [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)]:
        strain = np.zeros((3, 3))
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        numerical = (evaluate(strain).energy - evaluate(-strain).energy) / (2 * step)
        assert virial[i, j] == pytest.approx(numerical, rel=0.01, abs=1e-4 * size)
    np.testing.assert_allclose(virial, virial.T, atol=1e-9 * size)


@pytest.mark.parametrize("measure", MEASURES)
def test_uncertainty_knows_no_frame_of_reference(model, grades, measure):
    calculator, atoms = potential(model, grades, measure), crystal(4)
    reference = calculator.uncertain_step(atoms).per_atom
    rng = np.random.default_rng(1)

    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    np.testing.assert_allclose(calculator.uncertain_step(turned).per_atom, reference, rtol=1e-5)
    moved = atoms.copy()
    moved.positions += rng.normal(size=3)
    moved.wrap()
    np.testing.assert_allclose(calculator.uncertain_step(moved).per_atom, reference, rtol=1e-5)
    order = rng.permutation(len(atoms))
    np.testing.assert_allclose(calculator.uncertain_step(atoms[order]).per_atom, reference[order], rtol=1e-5)
    # twice the crystal is twice as uncertain, atom by atom the same: no atom is diluted by the others
    np.testing.assert_allclose(
        calculator.uncertain_step(atoms.repeat((2, 1, 1))).per_atom, np.tile(reference, 2), rtol=1e-5
    )


def test_smooth_novelty_follows_the_grade_up_to_its_saturation(model, grades):
    calculator = potential(model, grades, saturation=1e6)
    for seed in range(3):
        step = calculator.uncertain_step(crystal(seed, 0.15))
        sharp = grades.novelty(step.features.numpy(), crystal().numbers)
        # the soft minimum over at most three clusters: s² − d² is between 0 and 2 log 3
        thresholds = np.array([grades.elements[z].threshold for z in crystal().numbers])
        excess = (step.per_atom**2 - sharp**2) * thresholds**2
        assert (excess > -1e-4 * thresholds**2).all()
        assert (excess < 2 * np.log(3) + 1e-4 * thresholds**2).all()
    bounded = potential(model, grades, saturation=0.5)
    assert bounded.uncertain_step(crystal(0, 0.3)).per_atom.max() <= 0.5


def test_laplace_uncertainty_is_one_over_the_training_set(toy_package):
    frames = from_ase([crystal(seed) for seed in range(30)])
    model = load_model(toy_package, device="cpu", features=True)
    features = predict(model, frames, features=True).features
    measure = UncertaintyMeasure(
        fit_grades(features, frames.numbers), model.type_names, "cpu", measure="laplace", saturation=1e6
    )
    import torch

    types = torch.tensor([{14: 0, 6: 1}[z] for z in frames.numbers.tolist()])
    values = measure(torch.tensor(features), types).numpy()
    for number in (14, 6):
        assert np.sqrt(np.mean(values[frames.numbers == number] ** 2)) == pytest.approx(1.0, abs=0.02)


def test_a_bias_follows_its_strength_without_a_new_call(model, grades):
    bias, atoms = UncertaintyBias(potential(model, grades)), crystal(5)
    geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    assert bias.evaluate(*geometry).energy == 0.0
    first = bias.last
    bias.tau_ev = 2.0
    found = bias.evaluate(*geometry)
    assert bias.last is first
    assert found.energy == pytest.approx(-2.0 * first.per_atom.sum())
    assert found.per_atom.sum() == pytest.approx(found.energy)


def test_refusals(model, toy_package, grades):
    only_silicon = Grades({14: grades.elements[14]})
    with pytest.raises(InvalidInputError, match="never trained on C"):
        potential(model, only_silicon).uncertain_step(crystal())
    with pytest.raises(InvalidInputError, match="unknown measure 'entropy'; allowed are novelty, laplace"):
        potential(model, grades, "entropy")
    with pytest.raises(InvalidInputError, match="saturation must be positive"):
        potential(model, grades, saturation=0.0)
    with pytest.raises(InvalidInputError, match="derivatives=False"):
        UncertainPotential(
            load_model(toy_package, device="cpu", features=True),
            shifts={},
            grades=grades,
            measure="novelty",
            saturation=4.0,
        )
    other = fit_grades(np.random.default_rng(0).normal(size=(90, 7)), np.full(90, 14))
    with pytest.raises(InvalidInputError, match="belong to another potential"):
        potential(model, other).uncertain_step(bulk("Si", cubic=True))
