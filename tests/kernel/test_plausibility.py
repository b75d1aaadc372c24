"""Plausibility: real data passes, wrong units, signs and mix-ups of it do not."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from aiida_mlip.errors import FrameError
from aiida_mlip.io.extxyz import read_extxyz
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.generators.rattle import Rattle, rattle
from aiida_mlip.kernel.label_tests import work_test
from aiida_mlip.kernel.linear_probe import Probe
from aiida_mlip.kernel.plausibility import Plausibility, check_labels, slip
from aiida_mlip.kernel.units import BOHR, GPA, HARTREE, RYDBERG


@pytest.fixture(scope="module", params=["Si_test", "Cu_test"])
def real(request, data_dir) -> Frames:
    return read_extxyz(data_dir / "mlearn" / f"{request.param}.xyz", fidelity="pbe")


@pytest.fixture(scope="module")
def silicon(data_dir) -> Frames:
    return read_extxyz(data_dir / "mlearn" / "Si_test.xyz", fidelity="pbe")


def scaled(frames: Frames, *, energy: float = 1, forces: float = 1, stress: float = 1, length: float = 1) -> Frames:
    return frames.with_columns(
        energy=frames.energy * energy,
        forces=frames.forces * forces,
        stress=frames.stress * stress,
        positions=frames.positions * length,
        cell=frames.cell * length,
    )


def checks(verdict: Plausibility) -> set[str]:
    return {finding.check for finding in verdict.findings}


def test_real_data_passes_with_its_numbers(real):
    verdict = check_labels(real)
    assert verdict.findings == ()
    assert verdict.measures["pbe.probe_energy_ratio"] == pytest.approx(1.0, abs=0.25)
    assert verdict.measures["pbe.probe_stress_ratio"] == pytest.approx(1.0, abs=0.25)
    verdict.refuse(source="nothing happens")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Si_train", "Cu_train"])
def test_real_training_data_passes(data_dir, name):
    assert check_labels(read_extxyz(data_dir / "mlearn" / f"{name}.xyz", fidelity="pbe")).findings == ()


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({"forces": -1}, "opposite sign"),
        ({"energy": 1 / HARTREE}, "energies in hartree"),
        ({"energy": 1 / RYDBERG}, "energies in rydberg"),
        ({"forces": BOHR / HARTREE}, "forces in hartree/bohr"),
        ({"energy": 1 / HARTREE, "forces": BOHR / HARTREE}, "atomic units"),
        ({"energy": 1 / HARTREE, "forces": 1 / HARTREE, "stress": 1 / HARTREE}, "hartree or rydberg"),
        ({"energy": 23.06, "forces": 23.06, "stress": 23.06}, "kcal/mol"),
        ({"energy": 1 / HARTREE, "forces": BOHR / HARTREE, "length": 1 / BOHR}, "in bohr"),
        ({"length": BOHR}, "0.529 once too often"),
        ({"stress": -1}, "compression positive"),
        ({"stress": 1 / GPA}, "kbar, GPa or eV"),
    ],
)
def test_wrong_units_and_signs_are_refused(silicon, factors, reason):
    verdict = check_labels(scaled(silicon, **factors))
    assert any(reason in finding.reason for finding in verdict.findings), verdict.findings
    with pytest.raises(FrameError, match=r"^file\.xyz, frame \d+: .*") as caught:
        verdict.refuse(source="file.xyz")
    assert caught.value.index == verdict.findings[0].frame


@pytest.mark.parametrize(
    ("column", "factor", "reason"),
    [
        ("forces", -1.0, "wrong way"),
        ("forces", BOHR / HARTREE, "times what the other frames say"),
        ("energy", 1 / HARTREE, "eV/atom off"),
        ("forces", np.inf, "infinite"),
        ("energy", np.nan, "missing or NaN"),
    ],
)
def test_one_wrong_frame_is_found_by_its_number(silicon, column, factor, reason):
    values = getattr(silicon, column).copy()
    values[11 if column == "energy" else silicon.atom_slice(11)] *= factor
    verdict = check_labels(silicon.with_columns(**{column: values}))
    assert [finding.frame for finding in verdict.findings] == [11]
    assert reason in verdict.findings[0].reason


def test_a_nan_among_the_forces_is_found_unless_it_is_a_mask(silicon):
    forces = silicon.forces.copy()
    forces[silicon.atom_slice(4)][7, 1] = np.nan
    frames = silicon.with_columns(forces=forces)
    assert [(f.frame, f.reason) for f in check_labels(frames).findings] == [(4, "has a force that is NaN (atom 7)")]
    fragment = frames.with_columns(region=np.zeros(frames.n_atoms, dtype=np.uint8))
    assert check_labels(fragment).findings == ()


def emt(frames: Frames) -> Frames:
    images = []
    for atoms in frames.iter_ase():
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return from_ase(images, fidelity="emt")


@pytest.fixture(scope="module")
def rattled() -> Frames:
    """Few small frames, too few for the probe: the work between them must do."""
    return emt(rattle(from_ase([bulk("Cu", cubic=True)]), Rattle(12, 0.05), np.random.default_rng(0)))


def test_the_work_between_frames_is_the_difference_of_their_energies(rattled):
    test = work_test(rattled)
    assert test is not None
    assert test.ratio == pytest.approx(1.0, abs=0.05)
    assert check_labels(rattled).findings == ()


def test_the_work_of_strain_is_counted():
    images = []
    for scale in np.linspace(0.98, 1.02, 9):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        images.append(atoms)
    frames = emt(from_ase(images))
    assert work_test(frames).ratio == pytest.approx(1.0, abs=0.02)
    assert checks(check_labels(scaled(frames, stress=-1))) == {"work"}


@pytest.mark.parametrize("factors", [{"forces": -1}, {"energy": 1 / HARTREE}, {"forces": 0}, {"energy": 1 / BOHR}])
def test_wrong_work_is_refused(rattled, factors):
    assert "work" in checks(check_labels(scaled(rattled, **factors)))


def test_one_frame_with_two_labels_is_refused(rattled):
    again = rattled.take([3])
    assert check_labels(concatenate([rattled, again])).findings == ()
    shifted = concatenate([rattled, again.with_columns(energy=again.energy + 0.1)])
    finding = next(f for f in check_labels(shifted).findings if f.check == "duplicate")
    assert finding.frame == 12
    assert "frame 3 again" in finding.reason


def test_species_in_another_order_are_found_but_alloys_are_not():
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    salt = salt[np.argsort(salt.numbers, kind="stable")]
    frames = rattle(from_ase([salt]), Rattle(4, 0.05), np.random.default_rng(0))
    numbers = frames.numbers.copy()
    numbers[frames.atom_slice(2)] = numbers[frames.atom_slice(2)][::-1]
    found = check_labels(frames.with_columns(numbers=numbers)).findings
    assert [(f.frame, f.check) for f in found] == [(2, "species order"), (3, "species order")]
    alloy = [bulk("Cu", cubic=True) * (2, 1, 1) for _ in range(4)]
    for seed, atoms in enumerate(alloy):
        atoms.numbers = np.random.default_rng(seed).permutation([29, 29, 29, 29, 79, 79, 79, 79])
    assert check_labels(from_ase(alloy)).findings == ()


def test_energies_per_atom_are_found():
    frames = emt(from_ase([bulk("Cu", cubic=True) * (n, 1, 1) for n in (1, 2, 3, 4)]))
    assert check_labels(frames).findings == ()
    assert checks(check_labels(frames.with_columns(energy=-3.5 + frames.energy / frames.natoms))) == {"totals"}


def test_geometries_are_looked_at_first():
    overlapping = from_ase([bulk("Cu"), Atoms("Cu2", [[0, 0, 0], [0, 0, 0.1]], cell=[5, 5, 5], pbc=True)])
    assert [(f.frame, f.check) for f in check_labels(overlapping).findings] == [(1, "geometry")]


def test_slips_have_names():
    assert "opposite sign" in slip(-1.1)
    assert "energies in hartree" in slip(0.04)
    assert "not the derivative" in slip(5.0)
    assert "per atom" in slip(0.001)


def test_probe_forces_and_stress_are_derivatives_of_its_energy():
    atoms = bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    probe = Probe(5.0, (11, 17))
    design = probe.design_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    predicted = probe.predict(from_ase([atoms]), 0, c := np.random.default_rng(0).normal(size=len(design.energy)))
    np.testing.assert_allclose(predicted.energy, design.energy @ c, rtol=1e-10)
    np.testing.assert_allclose(predicted.forces, design.forces @ c, atol=1e-9)
    np.testing.assert_allclose(predicted.stress, design.stress @ c, atol=1e-10)
    c, h = np.random.default_rng(0).normal(size=len(design.energy)), 1e-5

    def energy(positions: np.ndarray, cell: np.ndarray) -> float:
        return float(probe.design_of(atoms.numbers, positions, cell, atoms.pbc).energy @ c)

    step = np.zeros_like(atoms.positions)
    step[1, 2] = h
    cell = atoms.cell.array
    slope = (energy(atoms.positions + step, cell) - energy(atoms.positions - step, cell)) / (2 * h)
    assert design.forces[1, 2] @ c == pytest.approx(-slope, abs=1e-5)
    for a, b in ((0, 0), (0, 1), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = h
        ahead, behind = (energy(atoms.positions @ g.T, cell @ g.T) for g in (np.eye(3) + strain, np.eye(3) - strain))
        assert design.stress[a, b] @ c == pytest.approx((ahead - behind) / (2 * h) / atoms.get_volume(), abs=1e-5)
