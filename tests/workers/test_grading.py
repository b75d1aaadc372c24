"""The calculator of a potential: the numbers of `predict`, and novelty grades from the same call of the model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, make_supercell
from ase.md.verlet import VelocityVerlet
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import ExternalProgramError, InvalidInputError, SpeciesError
from aiida_mlip.kernel.distances import closest_pair, pair_limits
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.force_source import PotentialCalculator, calculator_of_package
from aiida_mlip.workers.grading import TorchGrades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model

pytestmark = pytest.mark.nequip


def rattled(seed: int, amplitude: float = 0.08) -> Atoms:
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.rattle(amplitude, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def model(toy_package: Path) -> LoadedModel:
    return load_model(toy_package, device="cpu", features=True, frames="one")


@pytest.fixture(scope="module")
def grades(model: LoadedModel) -> Grades:
    frames = from_ase([rattled(seed) for seed in range(40)])
    return fit_grades(predict(model, frames, features=True).features, frames.numbers)


class Counting:
    """A model that counts its calls."""

    def __init__(self, call) -> None:
        self.call, self.count = call, 0

    def __call__(self, data):
        self.count += 1
        return self.call(data)


# -- grades in torch -------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100.0), clusters=st.integers(1, 4))
def test_torch_gives_the_numbers_of_the_kernel(seed: int, scale: float, clusters: int) -> None:
    import torch

    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 5)) * 10
    numbers = np.repeat([14, 6], 120)
    train = scale * (centres[rng.integers(clusters, size=240)] + rng.normal(size=(240, 5)) @ rng.normal(size=(5, 5)))
    grades = fit_grades(train, numbers)
    probe = scale * rng.normal(scale=10.0, size=(60, 5))
    kinds = rng.integers(3, size=60)
    probe[0] = np.nan
    reference = grades.novelty(probe, np.array([14, 6, 29])[kinds])
    found = TorchGrades(grades, ("Si", "C", "Cu"), torch.device("cpu")).novelty(
        torch.tensor(probe), torch.tensor(kinds)
    )
    np.testing.assert_allclose(found.numpy(), reference, rtol=1e-6)


def test_one_element_and_gradients(grades: Grades) -> None:
    import torch

    only = TorchGrades(Grades({14: grades.elements[14]}), ("Si", "C"), torch.device("cpu"))
    features = torch.tensor(np.random.default_rng(0).normal(size=(6, 4)), requires_grad=True)
    gamma = only.novelty(features, torch.zeros(6, dtype=torch.long))
    np.testing.assert_allclose(gamma.detach(), grades.novelty(features.detach().numpy(), np.full(6, 14)), rtol=1e-6)
    assert torch.autograd.gradcheck(lambda z: only.novelty(z, torch.zeros(6, dtype=torch.long)), features)
    mixed = only.novelty(features, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.isinf(mixed[3:]).all()  # carbon was never seen
    with pytest.raises(InvalidInputError, match="fitted on 4 columns"):
        only.novelty(features[:, :3], torch.zeros(6))


# -- the calculator --------------------------------------------------------------------------------------------


def test_calculator_gives_the_numbers_of_predict(model: LoadedModel, grades: Grades) -> None:
    shifts = {"Si": 0.5, "C": -0.25}
    calculator = PotentialCalculator(model, shifts=shifts, grades=grades)
    wire = Atoms("SiC2", [[0, 0, 0], [1.7, 0, 0], [0, 1.8, 0]], cell=[3.0, 0, 0], pbc=(True, False, False))
    images = [rattled(1), rattled(2, 0.3), Atoms("SiC2", [[0, 0, 0], [1.7, 0, 0], [0, 1.8, 0]]), wire]
    frames = from_ase([image.copy() for image in images])
    reference = predict(model, frames, features=True)
    gamma = grades.novelty(reference.features, frames.numbers)
    for row, atoms in enumerate(images):
        part = frames.atom_slice(row)
        atoms.calc = calculator
        n_c = int((atoms.numbers == 6).sum())
        n_si = len(atoms) - n_c
        assert atoms.get_potential_energy() == pytest.approx(reference.energy[row] + 0.5 * n_si - 0.25 * n_c, abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), reference.forces[part], atol=1e-9)
        np.testing.assert_allclose(calculator.get_property("novelty", atoms), gamma[part], rtol=1e-6)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(voigt=False), reference.stress[row], atol=1e-10)
        else:
            assert "stress" not in calculator.results


def test_grades_cost_no_call_of_the_model(model: LoadedModel, grades: Grades) -> None:
    counting = Counting(model.call)
    calculator = PotentialCalculator(replace(model, call=counting), shifts={}, grades=grades)
    atoms = rattled(3)
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    seen = []
    for _ in dynamics.irun(5):
        limits = pair_limits(None)
        found = calculator.closest_pair(atoms, limits)
        reference = closest_pair(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, limits)
        assert found[0] == pytest.approx(reference[0], abs=1e-9)
        seen.append(calculator.novelty(atoms))
        np.testing.assert_array_equal(calculator.get_property("novelty", atoms), seen[-1])
    assert len(seen) == 6
    assert counting.count == 6  # the start and five steps
    moved = atoms.copy()
    moved.positions += 1e-12  # rounding of another program
    calculator.novelty(moved)
    assert counting.count == 6
    moved.positions[0, 0] += 1e-3
    assert not np.allclose(calculator.novelty(moved), seen[-1], rtol=1e-6)
    assert counting.count == 7


def test_dynamics_is_that_of_a_search_at_every_step(model: LoadedModel) -> None:
    # a kept neighbour list, restarts and other systems in between leave no trace
    def run(disturb: bool) -> np.ndarray:
        calculator = PotentialCalculator(model, shifts={})
        atoms = rattled(4).repeat((2, 1, 1))
        atoms.calc = calculator
        atoms.set_momenta(np.random.default_rng(1).normal(0.0, 1.5, (len(atoms), 3)))
        dynamics = VelocityVerlet(atoms, 2.0 * units.fs)
        for step in range(15):
            dynamics.run(1)
            if disturb and step % 3 == 0:
                calculator.get_potential_energy(Atoms("SiC", [[0, 0, 0], [1.8, 0, 0]]))
                atoms.calc = calculator = PotentialCalculator(model, shifts={})
        return atoms.positions

    np.testing.assert_allclose(run(disturb=True), run(disturb=False), atol=1e-9)


def test_grades_are_invariant(model: LoadedModel, grades: Grades) -> None:
    calculator = PotentialCalculator(model, shifts={}, grades=grades)
    atoms = rattled(5, 0.2)
    gamma = calculator.novelty(atoms)
    turned = atoms.copy()
    matrix = Rotation.random(random_state=2).as_matrix()
    turned.set_cell(atoms.cell.array @ matrix.T)
    turned.positions = atoms.positions @ matrix.T
    shifted = atoms.copy()
    shifted.positions += [2.2, -9.0, 0.1]
    wrapped = atoms.copy()
    wrapped.positions[:4] += atoms.cell.array[1]
    order = np.random.default_rng(0).permutation(len(atoms))
    big = make_supercell(atoms, [[1, 1, 0], [0, 1, 0], [0, 0, 3]], order="cell-major")
    np.testing.assert_allclose(calculator.novelty(turned), gamma, rtol=1e-5)
    np.testing.assert_allclose(calculator.novelty(shifted), gamma, rtol=1e-5)
    np.testing.assert_allclose(calculator.novelty(wrapped), gamma, rtol=1e-5)
    np.testing.assert_allclose(calculator.novelty(atoms[order]), gamma[order], rtol=1e-5)
    np.testing.assert_allclose(calculator.novelty(big), np.tile(gamma, 3), rtol=1e-5)


def test_one_strange_atom_is_seen_in_a_large_cell(model: LoadedModel, grades: Grades) -> None:
    calculator = PotentialCalculator(model, shifts={}, grades=grades)
    quiet = rattled(6, 0.03).repeat(3)
    calm = calculator.novelty(quiet)
    quiet.positions[100] += [0.5, 0.4, 0.0]
    gamma = calculator.novelty(quiet)
    near = quiet.get_distances(100, np.arange(len(quiet)), mic=True) < 8.0  # two layers of 4 Å
    assert calm.max() < 1.5
    assert gamma.max() > 4.0
    assert near[np.argmax(gamma)]
    np.testing.assert_allclose(gamma[~near], calm[~near], rtol=1e-9)  # the others are as they were


# -- what goes wrong -------------------------------------------------------------------------------------------


def test_failures_are_told_apart(model: LoadedModel) -> None:
    def crash(data):
        raise RuntimeError("boom")

    def memory(data):
        raise RuntimeError("CUDA out of memory")

    def nonsense(data):
        return {**model.call(data), "forces": model.call(data)["forces"] * float("nan")}

    for call, words in ((crash, "crashed .*boom"), (memory, "out_of_memory"), (nonsense, "implausible")):
        calculator = PotentialCalculator(replace(model, call=call), shifts={})
        with pytest.raises(ExternalProgramError, match=words):
            calculator.get_potential_energy(rattled(0))
    calculator = PotentialCalculator(model, shifts={})
    lost = rattled(0)
    lost.positions[0, 0] = np.nan
    with pytest.raises(ExternalProgramError, match="not finite"):
        calculator.get_potential_energy(lost)
    with pytest.raises(SpeciesError, match="does not cover Cu"):
        calculator.get_potential_energy(bulk("Cu"))


def test_no_grades_no_novelty(model: LoadedModel, grades: Grades) -> None:
    plain = PotentialCalculator(model, shifts={})
    assert not plain.has_grades
    with pytest.raises(InvalidInputError, match="no grades"):
        plain.novelty(rattled(0))
    with pytest.raises(InvalidInputError, match="features=True"):
        PotentialCalculator(replace(model, feature_field=None), shifts={}, grades=grades)


def test_package_with_grades(toy_package: Path, grades: Grades) -> None:
    calculator = calculator_of_package(
        toy_package,
        device="cpu",
        sha256=None,
        species=("Si", "C"),
        wanted=("Si",),
        shifts={},
        fidelity=None,
        grades=Grades.from_arrays(grades.arrays()),
    )
    assert calculator.has_grades
    assert calculator.get_property("novelty", rattled(0)).shape == (8,)


# -- other models ----------------------------------------------------------------------------------------------


def test_model_that_wants_more_than_one_frame(model: LoadedModel, grades: Grades) -> None:
    # as compiled for many: the frame goes in twice, the first answer counts
    pair = PotentialCalculator(replace(model, smallest_batch=2, largest_batch=None), shifts={}, grades=grades)
    single = PotentialCalculator(model, shifts={}, grades=grades)
    atoms = rattled(7)
    for name in ("energy", "forces", "stress", "novelty"):
        np.testing.assert_allclose(pair.get_property(name, atoms), single.get_property(name, atoms), atol=1e-9)


@pytest.fixture(scope="module")
def two_levels() -> LoadedModel:
    """Untrained model of two levels of theory, with a cutoff per pair of elements."""
    import torch
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    from aiida_mlip.workers.model_loading import assemble

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what NequIP uses of it
        set_global_state()
    model = NequIPGNNModel(
        seed=1,
        model_dtype="float64",
        type_names=["Si", "C"],
        r_max=4.0,
        per_edge_type_cutoff={"Si": {"Si": 4.0, "C": 3.0}, "C": 2.5},
        num_layers=2,
        l_max=1,
        num_features=4,
        num_bessels=4,
        radial_mlp_depth=1,
        radial_mlp_width=8,
        avg_num_neighbors=14.0,
        per_type_energy_shifts={"Si": 0.0, "C": 0.0},
        per_type_energy_scales=1.0,
        categorical_graph_field_embed=[{"field": "dataset", "num_features": 4, "min": 0, "max": 1}],
    )
    model.eval()
    return assemble(model, dict(model.metadata), str(torch.device("cpu")))


def test_level_of_theory_and_cutoffs_per_pair(two_levels: LoadedModel) -> None:
    atoms = rattled(8)
    frames = from_ase([atoms, atoms])
    reference = predict(two_levels, frames, fidelity=np.array([0, 1]))
    assert abs(np.diff(reference.energy)[0]) > 1e-3
    for level in (0, 1):
        calculator = PotentialCalculator(two_levels, shifts={}, fidelity=level)
        assert calculator.get_potential_energy(atoms) == pytest.approx(reference.energy[level], abs=1e-9)
        np.testing.assert_allclose(calculator.forces(atoms), reference.forces[frames.atom_slice(level)], atol=1e-9)
