"""The program aiida-mlip-explore, run for real: physics of each kind, exact resumes, limits, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from aiida_mlip.io.explore import ExploreReport, ExploreRequest, ExploreSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.workers.explore import main

TESTS = Path(__file__).parents[1]
EMT_FORCES = {"calculator": "ase.calculators.emt.EMT"}


def prepare(folder: Path, structures, engine_input=None, **keys) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {
        name: keys.pop(name) for name in ("max_seconds", "checkpoint_seconds", "restart_stopped") if name in keys
    }
    spec = ExploreSpec.model_validate({"forces": EMT_FORCES, "record_every": 10, **keys})
    request = ExploreRequest(spec=spec, engine_input="commands.in" if engine_input else None, **settings)
    (folder / "input.json").write_text(request.model_dump_json())
    frames = structures if isinstance(structures, Frames) else from_ase(structures)
    (folder / "structures.npz").write_bytes(write_shard(frames))
    if engine_input:
        (folder / "commands.in").write_text(engine_input)
    return folder


def report(folder: Path) -> ExploreReport:
    return ExploreReport.model_validate_json((folder / "output.json").read_text())


def frames(folder: Path, name: str = "trajectory.npz") -> Frames:
    with (folder / name).open("rb") as handle:
        return read_shard(handle)


def series(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "series.npz") as arrays:
        return dict(arrays)


def copper(repeat=2, rattle=0.05):
    atoms = bulk("Cu", cubic=True).repeat(repeat)
    atoms.rattle(rattle, seed=0)
    return atoms


def md(*segments, timestep_fs=4.0, **keys):
    return {"kind": "md", "md": {"timestep_fs": timestep_fs, "schedule": list(segments)}, **keys}


WELLS = {"calculator": "exact_models.HarmonicWells"}


def total_energies(folder: Path, n_atoms: int) -> np.ndarray:
    numbers = series(folder)
    return numbers["potential_energy_ev"] + 1.5 * n_atoms * units.kB * numbers["temperature_k"]


# -- molecular dynamics ----------------------------------------------------------------------------------------


def test_constant_energy_stays_constant(tmp_path):
    run = prepare(
        tmp_path, [copper()], **md({"ensemble": "nve", "n_steps": 300, "temperature_k": 500}, timestep_fs=2.0)
    )
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert abs(found.numbers["energy_drift_ev_per_atom_ps"]) < 1e-4
    energies = total_energies(run, 32)
    assert np.ptp(energies) / 32 < 2e-4  # while kinetic and potential energy swap a hundred times as much
    assert np.ptp(series(run)["potential_energy_ev"]) / 32 > 5e-3


def test_drift_is_that_of_the_last_segment_at_constant_energy(tmp_path):
    constant = {"ensemble": "nve", "n_steps": 60}
    heating = {"n_steps": 60, "temperature_k": 1500, "friction_per_ps": 100}
    segments = ({**constant, "temperature_k": 100}, heating, constant)
    run = prepare(tmp_path, [copper(1)], limits={"max_temperature_k": 9e4}, **md(*segments, timestep_fs=2.0))
    assert main([str(run)]) == 0
    # the energy differs by tenths of an eV between the two, not within them
    assert abs(report(run).runs[0].numbers["energy_drift_ev_per_atom_ps"]) < 5e-3
    assert np.ptp(total_energies(run, 4)) > 0.2


def test_temperature_of_the_thermostat_and_its_fluctuations(tmp_path):
    """Canonical: the kinetic energy has mean 3/2 N kT and variance 3/2 N (kT)²; in wells the potential energy too."""
    atoms = copper(1, 0.0)
    forces = {"forces": {**WELLS, "arguments": {"stiffness": 2.0}}}
    segment = {"n_steps": 5000, "temperature_k": 300, "friction_per_ps": 50}
    run = prepare(tmp_path, [atoms], **forces, **md(segment))
    assert main([str(run)]) == 0
    numbers = series(run)
    n = 3 * len(atoms)
    energy = units.kB * 300
    for values in (0.5 * n * units.kB * numbers["temperature_k"], numbers["potential_energy_ev"]):
        assert values[50:].mean() == pytest.approx(0.5 * n * energy, rel=0.1)
        assert values[50:].var() == pytest.approx(0.5 * n * energy**2, rel=0.35)


def test_crystal_at_pressure_and_temperature(tmp_path):
    """A ramp heats, the crystal expands; a strong pressure compresses it as its bulk modulus says."""
    atoms = copper(2, 0.0)
    hot = {"ensemble": "npt", "n_steps": 250, "temperature_k": 300, "end_temperature_k": 900, "friction_per_ps": 50}
    run = prepare(tmp_path / "hot", [atoms], **md(hot))
    assert main([str(run)]) == 0
    numbers = series(run)
    # equipartition takes a while: the temperature follows the target
    assert numbers["temperature_k"][-5:].mean() > numbers["temperature_k"][:5].mean() + 250
    cold = hot | {"temperature_k": 10, "end_temperature_k": None, "pressure_gpa": 10.0}
    run = prepare(tmp_path / "pressed", [atoms], **md(cold))
    assert main([str(run)]) == 0
    twin = atoms.copy()
    twin.calc = EMT()
    volume = series(run)["volume_ang3_per_atom"][-1]
    twin.set_cell(twin.cell.array * (volume / (twin.get_volume() / 32)) ** (1 / 3), scale_atoms=True)
    assert -np.trace(twin.get_stress(voigt=False)) / 3 / units.GPa == pytest.approx(10, abs=1.5)


def order(frames_: Frames, row: int) -> float:
    """|S(G)|²/N² of the first Bragg peak of the starting crystal: 1 in a crystal, 1/N in a liquid."""
    atoms = frames_.to_ase(row)
    peaks = [(2, 2, 2), (-2, 2, 2), (2, -2, 2), (2, 2, -2)]
    return float(np.mean([abs(np.exp(2j * np.pi * atoms.get_scaled_positions() @ m).mean()) ** 2 for m in peaks]))


@pytest.mark.slow
def test_melt_quench_makes_a_glass_of_the_right_density(tmp_path):
    settings = {
        "melt_temperature_k": 3500,
        "heat_ps": 0.4,
        "melt_ps": 1.6,
        "quench_rate_k_per_ps": 2000,
        "hold_ps": 1.5,
        "friction_per_ps": 20,
    }
    melt = {"kind": "md", "md": {"timestep_fs": 5.0, "melt_quench": settings}, "record_every": 20}
    run = prepare(tmp_path, [copper()], limits={"min_distance_ang": 1.2}, **melt)
    assert main([str(run)]) == 0
    assert report(run).runs[0].stopped_by == "finished"
    found = frames(run)
    assert found.generators == ("melt_quench",)
    assert order(found, 0) > 0.6
    assert order(found, len(found) - 1) < 0.25
    assert series(run)["temperature_k"][-4:].mean() < 700
    # EMT's crystal has 11.6 Å³ per atom, metallic glasses a few per cent more
    assert 11.4 < series(run)["volume_ang3_per_atom"][-1] < 13.2
    settings["keep"] = "glass"
    spec = ExploreSpec.model_validate({**melt, "forces": EMT_FORCES, "limits": {}})
    assert spec.n_steps == 80 + 320 + 320 + 300


def test_melt_quench_keeps_only_the_glass(tmp_path):
    settings = {"melt_temperature_k": 400, "heat_ps": 0.04, "melt_ps": 0.04, "hold_ps": 0.2, "ensemble": "langevin"}
    settings |= {"quench_rate_k_per_ps": 1000, "keep": "glass"}
    run = prepare(tmp_path, [copper(1)], kind="md", md={"timestep_fs": 4.0, "melt_quench": settings}, record_every=10)
    assert main([str(run)]) == 0
    assert series(run)["step"].tolist() == [50, 60, 70, 80, 90]  # 10 + 10 + 25 steps come before


# -- relaxation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_relaxation_finds_the_lattice_constant(tmp_path, optimizer):
    atoms = copper(1, 0.15)
    strained = np.array([[1.04, 0.02, 0], [0.02, 0.98, 0], [0, 0, 1.03]])
    atoms.set_cell(atoms.cell.array @ strained, scale_atoms=True)
    settings = {"optimizer": optimizer, "cell": "free", "fmax_ev_per_ang": 0.01, "frame_displacement_ang": 0.05}
    run = prepare(tmp_path, [atoms], kind="relax", relax=settings)
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert found.stopped_by == "converged"
    assert found.numbers["fmax_ev_per_ang"] < 0.01
    assert found.numbers["volume_ang3_per_atom"] == pytest.approx(11.565, rel=2e-3)  # EMT copper, 0 K
    assert found.frames == len(frames(run)) > 3
    assert (np.diff(series(run)["potential_energy_ev"]) < 0.01).all()
    moved = np.linalg.norm(np.diff(frames(run).positions.reshape(-1, 4, 3), axis=0), axis=2).max(axis=1)
    assert (moved[:-1] >= 0.05).all()  # the last frame is where it ended


def test_relaxation_under_pressure_keeps_the_shape(tmp_path):
    atoms = copper(1, 0.0)
    settings = {"cell": "isotropic", "pressure_gpa": 10.0, "fmax_ev_per_ang": 0.002}
    run = prepare(tmp_path, [atoms], kind="relax", relax=settings)
    assert main([str(run)]) == 0
    last = frames(run).to_ase(len(frames(run)) - 1)
    last.calc = EMT()
    assert -np.trace(last.get_stress(voigt=False)) / 3 / units.GPa == pytest.approx(10, abs=0.1)
    np.testing.assert_allclose(last.cell.lengths(), last.cell.lengths()[0], rtol=1e-6)


def test_search_of_many_structures(tmp_path):
    starts = [copper(1, 0.15), copper(1, 0.0), copper(1, 0.05)]
    run = prepare(tmp_path, starts, kind="relax", relax={"max_steps": 6, "fmax_ev_per_ang": 0.02}, fixed_atoms=[0])
    assert main([str(run)]) == 0
    ends = [each.stopped_by for each in report(run).runs]
    assert ends[:2] == ["not_converged", "converged"]
    assert report(run).runs[1].steps == 0
    parents = [bytes(parent) for parent in frames(run).parent_id]
    assert set(parents) == {bytes(one) for one in from_ase(starts).frame_id}
    first = frames(run).to_ase(0)
    np.testing.assert_allclose(first.positions[0], starts[0].positions[0], atol=1e-9)


# -- Monte Carlo -----------------------------------------------------------------------------------------------


def test_arrangements_follow_the_boltzmann_distribution(tmp_path):
    """One gold atom on four sites with known energies, watched one attempt at a time."""
    atoms = copper(1, 0.0)
    atoms.numbers[0] = 79
    field = [0.0, 0.02, 0.05, 0.1]
    forces = {"calculator": "exact_models.FieldOfSites", "arguments": {"field": field}}
    settings = {"temperature_k": 400, "n_steps": 2400, "n_shells": 0}
    run = prepare(tmp_path, [atoms], forces=forces, kind="monte_carlo", monte_carlo=settings, record_every=2)
    assert main([str(run)]) == 0
    where = np.argmax(frames(run).numbers.reshape(-1, 4) == 79, axis=1)
    expected = np.exp(-np.array(field) / (units.kB * 400))
    np.testing.assert_allclose(np.bincount(where, minlength=4) / 1200, expected / expected.sum(), atol=0.05)
    np.testing.assert_allclose(series(run)["potential_energy_ev"], np.array(field)[where], atol=1e-12)
    assert 0.3 < report(run).runs[0].numbers["accepted_swaps"] < 0.9


def test_a_swap_below_the_pair_limit_is_refused(tmp_path):
    """Gold may not be next to gold here: two gold atoms in a row of six keep apart in every frame."""
    row = Atoms("AuCu2AuCu2", positions=[[2.6 * i, 0, 0] for i in range(6)], cell=[15.6, 12, 12], pbc=True)
    settings = {"temperature_k": 5000, "n_steps": 300, "n_shells": 0}
    forces = {"calculator": "exact_models.FieldOfSites", "arguments": {"field": [0.0] * 6}}
    limits = {"min_distance_ang": {"Au-Au": 3.0, "Au-Cu": 1.0, "Cu-Cu": 1.0}}
    run = prepare(
        tmp_path, [row], forces=forces, kind="monte_carlo", monte_carlo=settings, record_every=3, limits=limits
    )
    assert main([str(run)]) == 0
    gold = frames(run).numbers.reshape(-1, 6) == 79
    assert len({bytes(each) for each in gold}) > 3
    assert not (gold & np.roll(gold, 1, axis=1)).any()


def test_order_and_disorder_of_an_alloy(tmp_path):
    """Copper-gold by EMT, hybrid moves: unlike neighbours attract (α < 0), and a fixed atom stays where it is."""
    atoms = copper(2, 0.0)
    atoms.numbers[np.random.default_rng(1).permutation(32)[:16]] = 79
    atoms.set_cell(atoms.cell.array * 1.05, scale_atoms=True)
    settings = {"moves": "hybrid", "temperature_k": 600, "n_steps": 14, "n_shells": 1, "md_steps": 5}
    run = prepare(
        tmp_path, [atoms], kind="monte_carlo", monte_carlo=settings, record_every=2, fixed_atoms=[3], replicas=1
    )
    assert main([str(run)]) == 0
    found = report(run).runs[0].numbers
    assert found["accepted_moves"] > 0.5
    assert 0 < found["accepted_swaps"] < 1
    assert found["warren_cowley"]["Cu-Au"][0] < -0.02
    counts = np.bincount(frames(run).numbers, minlength=80)[[29, 79]]
    assert counts.tolist() == [16 * 7, 16 * 7]  # nothing was lost
    positions = frames(run).positions.reshape(-1, 32, 3)
    assert np.abs(positions[:, 3] - atoms.positions[3]).max() == 0
    assert np.abs(positions[-1] - atoms.positions).max() > 0.01


# -- LAMMPS ----------------------------------------------------------------------------------------------------

SKEW = np.array([[1.0, 0.9, 0], [0.2, 1, -0.8], [0.7, 0.1, 1]])


def skewed_copper():
    atoms = copper(1, 0.1)
    atoms.set_cell(atoms.cell.array @ SKEW, scale_atoms=True)
    atoms.numbers[1] = 79
    return atoms


def lammps(n_steps, **settings):
    return {"kind": "lammps", "lammps": {"timestep_fs": 2.0, "temperature_k": 300, "n_steps": n_steps, **settings}}


def test_lammps_integrates_like_ase_on_a_skewed_cell(tmp_path):
    limits = {"limits": {"max_temperature_k": 9e4, "min_distance_ang": 0.5}}
    ours = prepare(tmp_path / "lammps", [skewed_copper()], **lammps(40, integrate="nve"), **limits)
    theirs = {"ensemble": "nve", "n_steps": 40, "temperature_k": 300}
    ase = prepare(tmp_path / "ase", [skewed_copper()], **md(theirs, timestep_fs=2.0), **limits)
    assert main([str(ours)]) == main([str(ase)]) == 0
    np.testing.assert_allclose(frames(ours).positions, frames(ase).positions, atol=2e-6)
    np.testing.assert_allclose(
        series(ours)["potential_energy_ev"], series(ase)["potential_energy_ev"], rtol=0, atol=1e-5
    )
    assert frames(ours).generators == ("lammps",)


def test_a_deformation_of_ones_own(tmp_path):
    """From the specification and from a file; the cells of the frames are those of the deformation."""
    atoms = copper(1, 0.02)
    command = "fix pull all deform 1 x erate 1.0 remap x"
    run = prepare(tmp_path / "spec", [atoms], **lammps(40, commands=[command]))
    assert main([str(run)]) == 0
    strains = frames(run).cell[:, 0, 0] / atoms.cell.array[0, 0] - 1
    np.testing.assert_allclose(strains, [0.02, 0.04, 0.06, 0.08], atol=1e-9)
    assert np.abs(frames(run).cell[:, 1, 1] - atoms.cell.array[1, 1]).max() < 1e-9
    text = "# pulled\nfix pull all deform 1 x erate &\n   1.0 remap x  # along x\n"
    file = prepare(tmp_path / "file", [atoms], engine_input=text, **lammps(40))
    assert main([str(file)]) == 0
    np.testing.assert_array_equal(frames(file).cell, frames(run).cell)


def test_barostat_of_lammps_feels_the_stress(tmp_path):
    """Without an integrator of ours: LAMMPS' own, at the pressure that the calculator's stress makes."""
    command = "fix own mobile npt temp ${temperature} ${temperature} 0.1 iso 100000 100000 0.2"
    run = prepare(tmp_path, [copper(2, 0.0)], **lammps(300, integrate="none", commands=[command], temperature_k=30))
    assert main([str(run)]) == 0
    last = frames(run).to_ase(len(frames(run)) - 1)
    last.calc = EMT()
    volumes = series(run)["volume_ang3_per_atom"]
    assert volumes[-1] < volumes[0]
    assert 4 < -np.trace(last.get_stress(voigt=False)) / 3 / units.GPa < 16


def test_pair_style_of_lammps_itself(tmp_path):
    argon = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    pair = ["pair_style lj/cut 8.0", "pair_coeff * * 0.0104 3.4"]
    run = prepare(tmp_path, [argon], forces=None, **lammps(40, pair_commands=pair, temperature_k=20))
    assert main([str(run)]) == 0
    assert report(run).runs[0].stopped_by == "finished"
    assert -0.09 < series(run)["potential_energy_ev"][-1] / 32 < -0.05


def test_what_lammps_says_no_to_is_refused(tmp_path):
    run = prepare(tmp_path, [copper(1)], **lammps(40, commands=["fix f all no_such_fix 1"]))
    assert main([str(run)]) == 2
    assert "no_such_fix" in report(run).message


# -- going on --------------------------------------------------------------------------------------------------

RESUMED = {
    "schedule": md(
        {"n_steps": 25, "temperature_k": 300},
        {"ensemble": "npt", "n_steps": 35, "temperature_k": 300, "end_temperature_k": 500},
        {"ensemble": "nve", "n_steps": 20},
        replicas=2,
    ),
    "relax": {"kind": "relax", "relax": {"cell": "free", "frame_displacement_ang": 0.03, "fmax_ev_per_ang": 0.02}},
    "lammps": lammps(80, commands=["fix f all deform 1 x erate 0.5 xy erate 0.2 remap x", "velocity mobile scale 400"]),
    "monte_carlo": {
        "kind": "monte_carlo",
        "monte_carlo": {"moves": "hybrid", "temperature_k": 500, "n_steps": 8, "md_steps": 2, "swaps_per_cycle": 3},
        "record_every": 2,
    },
}


@pytest.mark.parametrize("kind", list(RESUMED))
def test_resumed_run_equals_the_undisturbed_one(tmp_path, kind):
    """Each job is stopped after its first chunk of steps: as many jobs as chunks, and nothing changes."""
    atoms = copper((2, 1, 1), 0.08)
    atoms.numbers[[0, 3, 5]] = 79
    keys = RESUMED[kind] | {"seed": 5, "limits": {"max_temperature_k": 9e4}}
    whole = prepare(tmp_path / "whole", [atoms], **keys)
    assert main([str(whole)]) == 0
    parts, pieces, steps = tmp_path / "parts", [], []
    prepare(parts, [atoms], max_seconds=1e-6, **keys)
    for _ in range(100):
        for name in ("trajectory.npz", "series.npz"):
            (parts / name).unlink(missing_ok=True)
        assert main([str(parts)]) == 0
        if (parts / "trajectory.npz").exists():
            pieces.append(frames(parts).positions)
            steps.append(series(parts)["step"])
        if report(parts).status == "finished":
            break
        assert (parts / "checkpoint.npz").exists()
    assert report(parts).status == "finished"
    assert len(pieces) > 2
    assert not (parts / "checkpoint.npz").exists()
    np.testing.assert_array_equal(np.concatenate(steps), series(whole)["step"])
    # equal but for the order in which EMT adds up its neighbours, which depends on when it began
    np.testing.assert_allclose(np.concatenate(pieces), frames(whole).positions, rtol=0, atol=2e-6)
    ours, theirs = (
        [
            run.model_dump(exclude={"numbers", "mean_temperature_k", "smallest_distance_ang", "energy_ev"})
            for run in runs
        ]
        for runs in (report(parts).runs, report(whole).runs)
    )
    assert ours == theirs
    assert report(parts).runs[0].energy_ev == pytest.approx(report(whole).runs[0].energy_ev, abs=1e-4)


def test_same_inputs_give_the_same_bytes(tmp_path):
    outputs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = prepare(tmp_path / name, [copper(1)], seed=seed, **md({"n_steps": 30, "temperature_k": 300}))
        assert main([str(run)]) == 0
        outputs.append(tuple((run / file).read_bytes() for file in ("trajectory.npz", "series.npz")))
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[2][0]


def test_killed_run_goes_on(tmp_path):
    """What kill -9 leaves: a report that says 'running', and a checkpoint that a second start goes on from."""
    slow = {"calculator": "double_well.DoubleWell", "arguments": {"delay_s": 0.002}}
    keys = {"forces": slow, "limits": {"min_distance_ang": 1.0}, **md({"n_steps": 60, "temperature_k": 200})}
    run = prepare(tmp_path / "killed", [double_molecule()], checkpoint_seconds=0.0, **keys)
    program = Path(sys.executable).parent / "aiida-mlip-explore"
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([program, run], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (run / "checkpoint.npz").exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    seen = frames(run) if (run / "trajectory.npz").exists() else None
    assert main([str(run)]) == 0
    assert report(run).runs[0].stopped_by == "finished"
    whole = prepare(tmp_path / "whole", [double_molecule()], **keys)
    assert main([str(whole)]) == 0
    np.testing.assert_allclose(frames(run).positions[-2:], frames(whole).positions[-2:], rtol=0, atol=1e-9)
    if seen is not None:  # killed early enough: what there was is what the undisturbed run has
        np.testing.assert_allclose(seen.positions, frames(whole).positions[: len(seen.positions)], rtol=0, atol=1e-9)


def test_signal_ends_it_cleanly(tmp_path):
    slow = {"calculator": "double_well.DoubleWell", "arguments": {"delay_s": 0.002}}
    keys = {"forces": slow, "limits": {"min_distance_ang": 1.0}, **md({"n_steps": 1_000_000, "temperature_k": 200})}
    run = prepare(tmp_path, [double_molecule()], checkpoint_seconds=0.0, **keys)
    program = Path(sys.executable).parent / "aiida-mlip-explore"
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([program, run], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (run / "output.json").exists() and process.poll() is None:
            time.sleep(0.01)
        assert report(run).status == "running"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0
    assert report(run).status == "walltime"
    assert report(run).runs[0].steps == 10 * len(frames(run))


@pytest.mark.parametrize("damage", ["nonsense", "other structures", "other kind"])
def test_checkpoint_of_another_run(tmp_path, damage):
    run = prepare(tmp_path / "first", [copper(1)], max_seconds=1e-6, **md({"n_steps": 30, "temperature_k": 300}))
    assert main([str(run)]) == 0
    checkpoint = b"nonsense" if damage == "nonsense" else (run / "checkpoint.npz").read_bytes()
    keys = RESUMED["relax"] if damage == "other kind" else md({"n_steps": 30, "temperature_k": 300})
    other = prepare(tmp_path / "other", [copper(1)] * (2 if damage == "other structures" else 1), **keys)
    (other / "checkpoint.npz").write_bytes(checkpoint)
    assert main([str(other)]) == 2
    assert "checkpoint: not one of" in report(other).message


# -- limits ----------------------------------------------------------------------------------------------------


def double_molecule():
    return Atoms("Ar2", positions=[[0.0, 0, 0], [2.0, 0, 0]])


def test_a_run_that_is_too_hot_goes_back_and_can_be_taken_up_again(tmp_path):
    segment = {"n_steps": 400, "temperature_k": 300, "end_temperature_k": 1500, "friction_per_ps": 50}
    limits = {"max_temperature_k": 700}
    run = prepare(tmp_path / "stopped", [copper(1)], limits=limits, **md(segment))
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert (report(run).status, found.stopped_by) == ("finished", "temperature")
    assert "limit of 700 K" in found.message
    assert found.stopped_at == found.steps + 10  # the frame that was looked at before
    assert series(run)["step"][-1] == found.steps
    assert series(run)["temperature_k"].max() <= 700
    # as it is, it stays stopped; with another limit and the word to restart it ends well
    again = prepare(tmp_path / "again", [copper(1)], **md(segment))
    (again / "checkpoint.npz").write_bytes((run / "checkpoint.npz").read_bytes())
    assert main([str(again)]) == 0
    assert report(again).runs[0].stopped_by == "temperature"
    assert not (again / "trajectory.npz").exists()
    prepare(again, [copper(1)], limits={"max_temperature_k": 9e4}, restart_stopped=True, **md(segment))
    assert main([str(again)]) == 0
    assert report(again).runs[0].stopped_by == "finished"
    assert report(again).runs[0].frames == 40
    assert series(again)["step"][0] == found.steps + 10
    whole = prepare(tmp_path / "whole", [copper(1)], limits={"max_temperature_k": 9e4}, **md(segment))
    assert main([str(whole)]) == 0
    np.testing.assert_allclose(frames(again).positions[-4:], frames(whole).positions[-4:], rtol=0, atol=1e-4)


def test_atoms_that_come_too_close_end_a_run(tmp_path):
    keys = {"forces": {"calculator": "double_well.DoubleWell"}, "record_every": 2}
    limits = {"min_distance_ang": 1.9}
    run = prepare(tmp_path, [double_molecule()], limits=limits, **keys, **md({"n_steps": 600, "temperature_k": 300}))
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert found.stopped_by == "pair_distance"
    assert smallest_distances(frames(run), cutoff=6).min() >= 1.9
    assert found.steps == series(run)["step"][-1]


@pytest.mark.parametrize("kind", ["md", "lammps", "relax"])
def test_calculator_that_breaks_down_leaves_its_frames(tmp_path, kind):
    forces = {"calculator": "double_well.DoubleWell", "arguments": {"fail_after": 31}}
    sections = {
        "md": md({"n_steps": 400, "temperature_k": 100}),
        "lammps": lammps(400),
        "relax": {"kind": "relax", "relax": {"frame_displacement_ang": 1e-3, "fmax_ev_per_ang": 1e-6}},
    }
    start = double_molecule()
    start.positions[1, 0] = 2.2
    limits = {"min_distance_ang": 1.0, "max_temperature_k": 9e4}
    run = prepare(tmp_path, [start], forces=forces, limits=limits, **sections[kind])
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert found.stopped_by == "forces_failed"
    assert "the calculator broke down" in found.message
    assert len(frames(run)) == found.frames >= 2
    assert (run / "checkpoint.npz").exists()


@pytest.mark.parametrize("pbc", [True, False])
def test_timestep_that_is_too_long_is_a_result(tmp_path, pbc):
    """Atoms that fly apart: whatever happens first ends the run, nothing raises, and no frame is garbage."""
    atoms = copper(1, 0.0)
    atoms.pbc = pbc
    run = prepare(tmp_path, [atoms], **md({"n_steps": 3000, "temperature_k": 900}, timestep_fs=10.0))
    spec = json.loads((run / "input.json").read_text())
    spec["spec"]["forces"] = {"calculator": "exact_models.HarmonicWells", "arguments": {"stiffness": 4000.0}}
    (run / "input.json").write_text(json.dumps(spec))
    assert main([str(run)]) == 0
    assert report(run).runs[0].stopped_by in ("temperature", "pair_distance", "forces_failed")
    if (run / "trajectory.npz").exists():
        assert np.isfinite(frames(run).positions).all()


def test_structure_below_the_limit_is_not_started(tmp_path):
    keys = {"forces": {"calculator": "double_well.DoubleWell"}, "limits": {"min_distance_ang": 2.5}}
    run = prepare(tmp_path, [double_molecule()], **keys, **md({"n_steps": 60, "temperature_k": 300}))
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert (found.stopped_by, found.frames, found.steps) == ("pair_distance", 0, 0)
    assert "to start from: Ar (atom 0) and Ar (atom 1) are 2.000 Å apart" in found.message


def test_refusals(tmp_path):
    run = prepare(
        tmp_path, [copper(1)], forces={"calculator": "no_such_module.T"}, **md({"n_steps": 30, "temperature_k": 300})
    )
    assert main([str(run)]) == 2
    assert (report(run).status, report(run).reason) == ("refused", "invalid_input")
    assert "no_such_module" in report(run).message
    (run / "input.json").write_text(json.dumps({"spec": {"kind": "mdd"}}))
    assert main([str(run)]) == 2


def test_lineage_of_the_frames(tmp_path):
    start = from_ase([copper(1), copper(1, 0.02)])
    run = prepare(tmp_path, start, replicas=2, **md({"n_steps": 20, "temperature_k": 300}))
    assert main([str(run)]) == 0
    found = frames(run)
    assert found.generators == ("md",)
    assert [start.ids().index(parent.hex()) for parent in map(bytes, found.parent_id)] == [0] * 4 + [1] * 4
    groups = [bytes(group) for group in found.group_id]
    assert len(set(groups)) == 4
    assert groups[0] == groups[1]
    assert not found.labelled.any()
