"""Fragments before a real potential: survival on real cuts, minimal relaxation, forces that are slopes of an energy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from emt_copper import LATTICE_ANG
from graded_copper import COPPER, GradedPotential, graded, warm_copper

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.fragments import FragmentKeys, RelaxRequest
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.fragments.carve import carve
from aiida_mlip.kernel.fragments.fragment import Fragment, FragmentLimits, Region
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.metadynamics.walls import PairWall
from aiida_mlip.workers import fragment as program
from aiida_mlip.workers.buffer_forces import BufferCalculator, PenalisedForces
from aiida_mlip.workers.fragment_judge import FragmentJudge
from aiida_mlip.workers.model_loading import load_model

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch, e3nn and lightning about themselves

HOST = Host(COPPER.numbers.astype(np.uint8), COPPER.positions, COPPER.cell.array)
PARENT_ID = np.arange(16, dtype=np.uint8)


@pytest.fixture(scope="module")
def source(emt_copper_committee) -> GradedPotential:
    return graded(emt_copper_committee)


def surface() -> Atoms:
    slab = fcc111("Cu", (7, 8, 8), a=LATTICE_ANG, vacuum=7.0, periodic=True)
    slab.positions += np.random.default_rng(1).normal(0.0, 0.08, slab.positions.shape)
    return slab


def cut(atoms: Atoms, centre: int, *, buffer: float = 3.0, completion: str = "crystal") -> Fragment:
    limits = FragmentLimits(core_radius=4.5, buffer=buffer, max_atoms=300)
    numbers, cell, pbc = atoms.numbers.astype(np.uint8), atoms.cell.array, np.array(atoms.pbc)
    return carve(numbers, atoms.positions, cell, pbc, centre, limits, completion=completion, host=HOST)


def judge_of(source: GradedPotential, **settings) -> FragmentJudge:
    def load(derivatives: bool):
        return load_model(source.package, device="cpu", features=True, frames="one", derivatives=derivatives)

    keys = {"core_radius_ang": 4.5, "max_atoms": 300, **settings}
    return FragmentJudge(load, source.grades, FragmentKeys(**keys))


@pytest.mark.parametrize("case", ["vacancy", "surface"])
def test_the_surroundings_of_the_centre_survive(source, case):
    """Bar: γ of the centre within 5 %; EMT feels the force of the parent at the centre.

    A cut through a surface leaves steps, stranger than the surface itself: they are allowed for here.
    """
    atoms = warm_copper((6, 6, 6), without=[300]) if case == "vacancy" else surface()
    grades = source.calculator.novelty(atoms)
    judge = judge_of(source, buffer_excess=3.0)
    truth = atoms.copy()
    truth.calc = EMT()
    forces = truth.get_forces()
    for centre in np.argsort(-grades)[[0, 10]]:
        fragment = cut(atoms, int(centre))
        judged = judge.judge(fragment.to_frames(PARENT_ID), fragment.parent_values(grades))
        record = judged.record
        assert record.accepted, record.reason
        assert record.novelty_parent > 1.5
        assert abs(record.novelty_fragment / record.novelty_parent - 1) < 0.05
        assert record.steps == 0, record.relaxed_because
        np.testing.assert_array_equal(judged.frames.positions, fragment.positions)
        alone = judged.frames.to_ase(0)
        alone.calc = EMT()
        np.testing.assert_allclose(alone.get_forces()[0], forces[centre], atol=1e-3)


def test_a_bad_seam_is_mended_and_the_core_stays_bit_for_bit(source):
    """A cube out of a crystal does not fit itself: what is in trouble moves, and is less strange then."""
    atoms = surface()
    grades = source.calculator.novelty(atoms)
    fragment = cut(atoms, int(grades.argmax()), completion="disordered")
    row, before = fragment.to_frames(PARENT_ID), fragment.parent_values(grades)
    settings = {"survival": 9.0, "buffer_excess": 1.0}
    untouched = judge_of(source, relax="never", **settings).judge(row, before).record
    assert "too strange" in untouched.reason
    assert untouched.n_moved == untouched.steps == 0
    judged = judge_of(source, relax="always", **(settings | {"buffer_excess": 99.0}), relax_steps=60).judge(row, before)
    after = judged.record
    assert 0 < after.steps <= 60
    assert after.largest_buffer_novelty < untouched.largest_buffer_novelty
    assert after.fmax_ev_per_ang < untouched.fmax_ev_per_ang
    fixed = fragment.region < Region.BUFFER
    np.testing.assert_array_equal(judged.frames.positions[fixed], fragment.positions[fixed])
    assert after.n_moved == int((~fixed).sum())
    # where it is not always wanted, fewer atoms move, and for a shorter time
    least = judge_of(source, relax="auto", survival=9.0, buffer_excess=1.2).judge(row, before).record
    assert 0 < least.n_moved < after.n_moved
    assert "γ" in least.relaxed_because or "times the least" in least.relaxed_because


def test_what_a_buffer_is_relaxed_on_is_an_energy(source):
    """Forces are its slopes, in core and buffer, with repulsion and penalty switched on."""
    atoms = COPPER * (2, 2, 2)
    atoms.positions += np.random.default_rng(3).normal(0.0, 0.15, atoms.positions.shape)
    atoms.positions[5] += [0.5, 0.2, 0.1]
    model = load_model(source.package, device="cpu", features=True, frames="one", derivatives=False)
    forces = PenalisedForces(model, source.grades, penalty_ev=2.0)
    forces.penalised = np.arange(32) % 2 == 1
    plain = source.calculator.forces(atoms)
    calculator = BufferCalculator(forces, PairWall(pair_limits(2.4), strength=50.0, onset=1.1))
    atoms.calc = calculator
    found = atoms.get_forces()
    assert np.abs(found - plain).max() > 0.5  # the penalty and the wall are felt
    step = 2e-3
    for atom, axis in ((5, 0), (4, 1), (17, 2)):
        energies = []
        for sign in (1, -1):
            atoms.positions[atom, axis] += sign * step
            energies.append(atoms.get_potential_energy())
            atoms.positions[atom, axis] -= sign * step
        slope = (energies[1] - energies[0]) / (2 * step)
        assert found[atom, axis] == pytest.approx(slope, rel=0.02, abs=0.02)


def test_what_is_no_fragment_is_refused(source):
    judge = judge_of(source)
    with pytest.raises(InvalidInputError, match="no regions"):
        judge.judge(from_ase([COPPER]), np.ones(4))
    fragment = cut(warm_copper(without=[0]), 100, buffer=1.5).to_frames(PARENT_ID)
    with pytest.raises(InvalidInputError, match="3 grades of the parent"):
        judge.judge(fragment, np.ones(3))


def test_the_program_keeps_what_it_can_and_says_why(source, tmp_path: Path, capsys):
    """Run without AiiDA: one good fragment, one whose centre did not survive, one with an element nobody knows."""
    atoms = warm_copper(without=[200])
    grades = source.calculator.novelty(atoms)
    fragment = cut(atoms, int(grades.argmax()), buffer=1.5)
    good, values = fragment.to_frames(PARENT_ID), fragment.parent_values(grades)
    other = values.copy()
    other[0] *= 1.2
    numbers = good.numbers.copy()
    numbers[-1] = 79
    frames = concatenate([good, good.with_columns(positions=good.positions + 1.0), good.with_columns(numbers=numbers)])
    (tmp_path / "carved.npz").write_bytes(write_shard(frames))
    np.save(tmp_path / "parent_novelty.npy", np.concatenate([values, other, values]))
    (tmp_path / "statistics.npz").write_bytes(write_npz(source.grades.arrays()))
    shutil.copy(source.package, tmp_path / "model.nequip.zip")
    keys = FragmentKeys(core_radius_ang=4.5, buffer_ang=1.5, device="cpu")
    request = RelaxRequest(fragments=("carved.npz",), settings=keys, species=("Cu",))
    (tmp_path / "input.json").write_text(request.model_dump_json())
    assert program.main([str(tmp_path)]) == 0
    report = json.loads((tmp_path / "output.json").read_text())
    assert [record["accepted"] for record in report["fragments"]] == [True, False, False]
    assert "did not survive" in report["fragments"][1]["reason"]
    assert "does not cover Au" in report["fragments"][2]["reason"]
    assert len(np.load(tmp_path / "novelty.npy")) == len(fragment)
    assert "1 of 3 fragments accepted" in capsys.readouterr().out
    # wrong input: told in the answer and on the screen, nothing half done
    for change, message in (
        ({"species": ("Au",)}, "does not cover Cu"),
        ({"fragments": ("none.npz",)}, "none.npz"),
        ({"fidelities": ("a", "b")}, "the potential knows several: a, b"),
        ({"fidelities": ("a",), "settings": keys.model_copy(update={"fidelity": "b"})}, "'b' is none"),
    ):
        (tmp_path / "input.json").write_text(request.model_copy(update=change).model_dump_json())
        assert program.main([str(tmp_path)]) == 2
        assert message in json.loads((tmp_path / "output.json").read_text())["message"]
        assert message in capsys.readouterr().err
    (tmp_path / "parent_novelty.npy").write_bytes(b"x")
    (tmp_path / "input.json").write_text(request.model_dump_json())
    assert program.main([str(tmp_path)]) == 2
    assert program.main([str(tmp_path / "nowhere")]) == 2
