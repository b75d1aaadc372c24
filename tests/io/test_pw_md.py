"""The output of molecular dynamics of pw.x: read from a real run, cut off anywhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.pw_md import BOHR, RYDBERG, read_md_output

pytestmark = pytest.mark.qe

N_STEPS = 6
START = np.array([[0.0, 0.0, 0.0], [1.40, 1.35, 1.30]])


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    """Standard output of a real run: two silicon atoms, Γ only."""
    listing = subprocess.run(["dpkg", "-L", "quantum-espresso-data"], capture_output=True, text=True, check=True)
    pseudos = next(Path(line).parent for line in listing.stdout.splitlines() if line.endswith("Si.pz-vbc.UPF"))
    folder = tmp_path_factory.mktemp("md")
    (folder / "md.in").write_text(
        f"""&CONTROL
 calculation='md', tprnfor=.true., tstress=.true., pseudo_dir='{pseudos}', outdir='{folder}', nstep={N_STEPS}, dt=20
/
&SYSTEM
 ibrav=0, nat=2, ntyp=1, ecutwfc=10, occupations='fixed', nosym=.true.
/
&ELECTRONS
 conv_thr=1e-8
/
&IONS
 ion_velocities='from_input'
/
ATOMIC_SPECIES
Si 28.0855 Si.pz-vbc.UPF
ATOMIC_POSITIONS angstrom
Si {" ".join(map(str, START[0]))}
Si {" ".join(map(str, START[1]))}
K_POINTS gamma
CELL_PARAMETERS angstrom
0 2.7 2.7
2.7 0 2.7
2.7 2.7 0
ATOMIC_VELOCITIES
Si 0.0001 0.0002 -0.0001
Si -0.0001 -0.0002 0.0001
"""
    )
    run = subprocess.run(["pw.x", "-in", "md.in"], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert "JOB DONE" in run.stdout, run.stdout[-2000:]
    return run.stdout


def test_every_step_is_there_with_its_label(output):
    run = read_md_output(output, START)
    assert len(run) == N_STEPS
    assert run.completed
    assert not run.scf_failed
    assert run.seconds > 0
    energies = [float(x) * RYDBERG for x in re.findall(r"^!.*=(.*)Ry", output, re.MULTILINE)]
    np.testing.assert_allclose(run.energy, energies, rtol=1e-14)
    forces = re.findall(r"type +1 +force = (.*)", output)
    values = np.array([line.split() for line in forces], dtype=float).reshape(N_STEPS, 2, 3)
    np.testing.assert_allclose(run.forces, values * RYDBERG / BOHR, rtol=1e-14)
    np.testing.assert_array_equal(run.positions[0], START)
    # pw.x prints P = tr(σ)/3 in kbar, compression positive; ours is tension positive
    pressure = [float(x) for x in re.findall(r"P= *(\S+)", output)]
    np.testing.assert_allclose(-np.trace(run.stress, axis1=1, axis2=2) / 3 * 1602.1766, pressure, atol=0.01)


def test_units_are_those_of_the_labels_of_single_calculations():
    constants = pytest.importorskip("qe_tools").CONSTANTS
    assert constants.ry_to_ev == RYDBERG
    assert constants.bohr_to_ang == BOHR


def test_positions_energies_and_forces_belong_to_one_another(output):
    # Newton: successive positions are those of the Verlet recursion with the forces of the same step
    run = read_md_output(output, START)
    timestep, mass = 20 * 0.04837768653, 28.0855 * 103.642696
    second = (run.positions[2:] - 2 * run.positions[1:-1] + run.positions[:-2]) / timestep**2
    np.testing.assert_allclose(second, run.forces[1:-1] / mass, atol=2e-7)
    total = run.energy + run.kinetic
    assert np.ptp(total) < 0.05 * np.ptp(run.energy)


def test_an_output_cut_off_anywhere_gives_the_same_steps_only_fewer(output):
    whole = read_md_output(output, START)
    last = 0
    for length in range(0, len(output), 97):
        run = read_md_output(output[:length], START)
        assert last <= len(run) <= N_STEPS
        last = len(run)
        for name in ("positions", "energy", "forces", "stress"):
            np.testing.assert_array_equal(getattr(run, name), getattr(whole, name)[:last])
        known = np.isfinite(run.kinetic)
        np.testing.assert_array_equal(run.kinetic[known], whole.kinetic[:last][known])
    assert last == N_STEPS


def test_an_unconverged_scf_is_no_label_whatever_is_printed_with_it(output):
    marks = [match.start() for match in re.finditer("convergence has been achieved in", output)]
    broken = output[: marks[3]] + output[marks[3] :].replace(
        "convergence has been achieved in", "convergence NOT achieved after", 1
    )
    run = read_md_output(broken, START)
    assert len(run) == 3
    assert run.scf_failed
    np.testing.assert_array_equal(run.unlabelled, read_md_output(output, START).positions[3])


@pytest.mark.parametrize("number", ["NaN", "**************", "Infinity"])
def test_numbers_that_are_none_end_the_run(output, number):
    marks = [match.end() for match in re.finditer(r"type +1 +force = ", output)]
    broken = output[: marks[4]] + re.sub(r"\S+", number, output[marks[4] :], count=1)
    run = read_md_output(broken, START)
    assert len(run) == 2
    assert not run.completed


def test_without_stress_the_label_needs_none(output):
    text = re.sub(r"Computing stress.*?Entering", "Entering", output, flags=re.DOTALL)
    assert len(read_md_output(text.replace("Entering", " Entering"), START)) == 0
    run = read_md_output(text.replace("Entering", "  Entering"), START, stress=False)
    assert len(run) == N_STEPS
    assert np.isnan(run.stress).all()


def test_no_output_and_an_output_of_something_else():
    assert len(read_md_output("", START)) == 0
    with pytest.raises(FileFormatError, match="not an output"):
        read_md_output("total nonsense\n", START)
