"""Verdicts of the watch at their thresholds, with a real model, and what one bad atom does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.watch import WatchSpec
from aiida_mlip.kernel.calibration import Calibration
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model
from aiida_mlip.workers.watch import Observation, Watch

CALIBRATION = Calibration(
    level=0.9,
    floor_ev_per_ang=1e-6,
    scale={"Si": 2.0, "C": 3.0},
    scale_all=2.5,
    force_rmse_validation=0.1,
    n_atoms=100,
    metrics={},
)


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


class Off:
    """A member of the committee that is wrong about one atom (a model's call, with an error added)."""

    def __init__(self, model: LoadedModel, atom: int, error: float) -> None:
        self.model, self.atom, self.error, self.count = model, atom, error, 0

    def __call__(self, data):
        self.count += 1
        output = dict(self.model.call(data))
        forces = output["forces"].detach().clone()
        forces[self.atom, 0] += self.error
        return {**output, "forces": forces}


def committee(model: LoadedModel, *, atom: int = 3, error: float = 0.0) -> tuple[list[PotentialCalculator], Off]:
    off = Off(model, atom, error)
    return [PotentialCalculator(replace(model, call=off), shifts={}), PotentialCalculator(model, shifts={})], off


@pytest.fixture(scope="module")
def calculator(model: LoadedModel, grades: Grades) -> PotentialCalculator:
    return PotentialCalculator(model, shifts={}, grades=grades)


# -- novelty ---------------------------------------------------------------------------------------------------


@pytest.mark.nequip
def test_verdicts_at_the_thresholds(calculator: PotentialCalculator) -> None:
    atoms = rattled(1, 0.15)
    gamma = float(calculator.novelty(atoms).max())

    def observe(**thresholds) -> Observation:
        return Watch(WatchSpec(**thresholds), calculator).observe(atoms, 7)

    calm = observe(novelty_select=gamma * 1.001, novelty_stop=gamma * 2)
    assert (calm.step, calm.selected, calm.stop, calm.message) == (7, False, "", "")
    assert calm.max_novelty == pytest.approx(gamma)
    np.testing.assert_allclose(calm.novelty, calculator.novelty(atoms))
    assert calm.error is None
    assert calm.closest[0] > 1
    chosen = observe(novelty_select=gamma * 0.999, novelty_stop=gamma * 2)
    assert (chosen.selected, chosen.stop) == (True, "")
    stopped = observe(novelty_select=gamma * 0.5, novelty_stop=gamma * 0.999)
    assert (stopped.selected, stopped.stop) == (True, "novelty")
    worst = int(np.argmax(calculator.novelty(atoms)))
    assert f"at atom {worst} ({atoms.symbols[worst]})" in stopped.message
    quiet = observe(novelty_select=None, novelty_stop=None)
    assert (quiet.selected, quiet.stop, quiet.novelty) == (False, "", None)


@pytest.mark.nequip
def test_one_bad_atom_stops_a_large_cell(calculator: PotentialCalculator) -> None:
    watch = Watch(WatchSpec(), calculator)
    atoms = rattled(2, 0.03).repeat(3)
    assert watch.observe(atoms, 0).stop == ""
    atoms.positions[50] += [0.5, 0.4, 0.0]
    seen = watch.observe(atoms, 1)
    assert seen.stop == "novelty"
    assert np.median(seen.novelty) < 1.5  # a mean would not have seen it
    again = Watch(WatchSpec(), calculator).observe(atoms, 1)
    np.testing.assert_array_equal(again.novelty, seen.novelty)
    assert again.message == seen.message


@pytest.mark.nequip
def test_element_that_was_never_seen_stops(model: LoadedModel, grades: Grades) -> None:
    only_silicon = PotentialCalculator(model, shifts={}, grades=Grades({14: grades.elements[14]}))
    seen = Watch(WatchSpec(), only_silicon).observe(rattled(0, 0.01), 0)
    assert seen.stop == "novelty"
    assert "γ = inf" in seen.message


# -- error -----------------------------------------------------------------------------------------------------


@pytest.mark.nequip
def test_error_is_the_calibrated_deviation(model: LoadedModel, calculator: PotentialCalculator) -> None:
    members, _ = committee(model, error=0.3)
    atoms = rattled(3)
    spec = WatchSpec(error_where="always", novelty_stop=100.0, novelty_select=None, error_select=3.0, error_stop=50.0)
    seen = Watch(spec, calculator, committee=members, calibration=CALIBRATION).observe(atoms, 0)
    forces = np.array([PotentialCalculator(model, shifts={}).forces(atoms)] * 3)
    forces[1, 3, 0] += 0.3
    np.testing.assert_allclose(seen.error, CALIBRATION.bound(force_deviation(forces), atoms.numbers), atol=1e-9)
    scale = 2.0 if atoms.numbers[3] == 14 else 3.0
    assert seen.max_error == pytest.approx(scale * 0.3 / np.sqrt(3))  # one of three is off by 0.3
    assert (seen.selected, seen.stop) == (True, "")  # above 3 · 0.1, below 50 · 0.1
    strict = spec.model_copy(update={"error_stop": 3.0})
    stopped = Watch(strict, calculator, committee=members, calibration=CALIBRATION).observe(atoms, 0)
    assert (stopped.selected, stopped.stop) == (True, "error")
    assert "at atom 3" in stopped.message
    lenient = spec.model_copy(update={"error_select": 40.0})
    assert not Watch(lenient, calculator, committee=members, calibration=CALIBRATION).observe(atoms, 0).selected


@pytest.mark.nequip
def test_committee_is_asked_only_where_something_is_novel(model: LoadedModel, calculator: PotentialCalculator) -> None:
    atoms = rattled(4)
    gamma = float(calculator.novelty(atoms).max())
    for gate, asked in ((gamma * 1.001, 0), (gamma * 0.999, 1)):
        members, off = committee(model)
        spec = WatchSpec(novelty_gate=gate, novelty_select=None, novelty_stop=100.0)
        seen = Watch(spec, calculator, committee=members, calibration=CALIBRATION).observe(atoms, 0)
        assert off.count == asked
        assert (seen.error is not None) == bool(asked)


@pytest.mark.nequip
def test_member_that_fails_stops(model: LoadedModel, calculator: PotentialCalculator) -> None:
    def crash(data):
        raise RuntimeError("boom")

    broken = PotentialCalculator(replace(model, call=crash), shifts={})
    spec = WatchSpec(error_where="always", novelty_stop=100.0)
    seen = Watch(spec, calculator, committee=[broken], calibration=CALIBRATION).observe(rattled(0), 0)
    assert seen.stop == "error"
    assert "member 1" in seen.message
    assert "boom" in seen.message


class Springs(Calculator):
    """Einstein crystal, a force field for any number of atoms; ``error`` (eV/Å) is added to one atom."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's way

    def __init__(self, sites: np.ndarray, *, atom: int = 0, error: float = 0.0) -> None:
        super().__init__()
        self.sites, self.atom, self.error = sites, atom, error

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        moved = self.atoms.positions - self.sites
        forces = -2.0 * moved
        forces[self.atom, 2] += self.error
        self.results = {"energy": float((moved**2).sum()), "forces": forces}


@pytest.mark.parametrize("repeats", [(5, 5, 2), (8, 8, 8), (17, 17, 18), (46, 46, 48)])  # 50 to 1e5 atoms
def test_one_atom_off_in_one_of_four_is_flagged_in_any_system(repeats: tuple[int, int, int]) -> None:
    atoms = bulk("Cu").repeat(repeats)
    sites = atoms.positions.copy()
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, sites.shape)
    spec = WatchSpec(novelty_select=None, novelty_stop=None, error_where="always")
    right, wrong = Springs(sites), Springs(sites, atom=len(atoms) // 3, error=5.0)
    calm = Watch(spec, right, committee=[right, right, right], calibration=CALIBRATION).observe(atoms, 0)
    assert (calm.selected, calm.stop) == (False, "")
    for driving, others in ((right, [right, wrong, right]), (wrong, [right, right, right])):
        seen = Watch(spec, driving, committee=others, calibration=CALIBRATION).observe(atoms, 0)
        assert seen.stop == "error"
        assert f"at atom {len(atoms) // 3}" in seen.message
        assert seen.max_error == pytest.approx(2.5 * 2.5)  # u = 5 / √4, times the scale over all elements
    assert calm.novelty is None


# -- geometry and failures -------------------------------------------------------------------------------------


@pytest.mark.nequip
@given(distance=st.floats(0.5, 3.0))
def test_pair_distance(calculator: PotentialCalculator, distance: float) -> None:
    atoms = Atoms("SiC", [[0, 0, 0], [distance, 0, 0]], cell=[9, 9, 9], pbc=True)
    spec = WatchSpec(min_distance_ang=1.5, novelty_select=None, novelty_stop=1e12)
    seen = Watch(spec, calculator).observe(atoms, 0)
    assert (seen.stop == "pair_distance") == (distance < 1.5)
    if seen.stop:
        assert not seen.selected  # no geometry for a label
        assert f"{distance:.3f} Å apart, allowed are 1.500 Å" in seen.message


@pytest.mark.nequip
def test_limit_beyond_the_cutoff_of_the_model(calculator: PotentialCalculator) -> None:
    atoms = Atoms("SiC", [[0, 0, 0], [4.5, 0, 0]])  # the model sees 4 Å
    spec = WatchSpec(min_distance_ang=5.0, novelty_select=None, novelty_stop=1e12)
    assert Watch(spec, calculator).observe(atoms, 0).stop == "pair_distance"


@pytest.mark.nequip
def test_forces_that_fail(model: LoadedModel, grades: Grades) -> None:
    def nonsense(data):
        output = model.call(data)
        return {**output, "forces": output["forces"] * float("nan")}

    watch = Watch(WatchSpec(), PotentialCalculator(replace(model, call=nonsense), shifts={}, grades=grades))
    seen = watch.observe(rattled(0), 5)
    assert (seen.stop, seen.selected, seen.novelty) == ("forces_failed", False, None)
    assert "implausible" in seen.message
    clash = rattled(0)
    clash.positions[1] = clash.positions[0] + [0.2, 0, 0]
    assert watch.observe(clash, 5).stop == "pair_distance"  # the reason, not the symptom
    clash.positions[1, 0] = np.inf
    assert watch.observe(clash, 5).stop == "forces_failed"


class Broken(Springs):
    """Gives forces that are not finite, and does not say so."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"][0] = np.nan


def test_other_calculators_are_watched_too() -> None:
    atoms = bulk("Cu", cubic=True)
    spec = WatchSpec(novelty_select=None, novelty_stop=None)
    assert Watch(spec, Springs(atoms.positions.copy())).observe(atoms, 0).stop == ""
    assert Watch(spec, Broken(atoms.positions.copy())).observe(atoms, 0).stop == "forces_failed"


# -- settings that do not fit ----------------------------------------------------------------------------------


@pytest.mark.nequip
def test_what_cannot_be_watched_is_refused(model: LoadedModel, calculator: PotentialCalculator) -> None:
    plain = PotentialCalculator(model, shifts={})
    silent = {"novelty_select": None, "novelty_stop": None}
    with pytest.raises(InvalidInputError, match="come without grades"):
        Watch(WatchSpec(), plain)
    with pytest.raises(InvalidInputError, match="without its calibration"):
        Watch(WatchSpec(), calculator, committee=[plain])
    with pytest.raises(InvalidInputError, match="set it to 'always'"):
        Watch(WatchSpec(**silent), plain, committee=[plain], calibration=CALIBRATION)
    with pytest.raises(InvalidInputError, match="needs the other members"):
        Watch(WatchSpec(error_where="always"), calculator)
    with pytest.raises(InvalidInputError, match=r"watch\.min_distance_ang"):
        Watch(WatchSpec(min_distance_ang={"Si": 1.0}), calculator)
    watch = Watch(WatchSpec(every=4), calculator)
    assert [step for step in range(10) if watch.due(step)] == [0, 4, 8]
    assert watch.every == 4
