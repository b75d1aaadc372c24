"""``aiida-mlip dataset`` and ``generate``: from files and calculations into the profile and out again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from ase.calculators.emt import EMT
from click.testing import CliRunner

from aiida_mlip.cli.dataset import load_dataset
from aiida_mlip.cli.main import main
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.extxyz import read_extxyz
from aiida_mlip.kernel.frames import id_bytes

pytestmark = pytest.mark.usefixtures("aiida_profile")


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def imported(output: str) -> int:
    return int(output.split("stored dataset ")[1].split()[0])


def n_nodes() -> int:
    return orm.QueryBuilder().append(orm.Node).count()


@pytest.fixture
def silicon_file(data_dir):
    return data_dir / "mlearn" / "Si_test.xyz"


def test_import_show_export(silicon_file, tmp_path):
    output = invoke("dataset", "import", silicon_file, "--fidelity", "pbe", "--group", "group", "--label", "mlearn")
    pk = imported(output)
    assert "25 frames of Si, 25 labelled at pbe" in output
    node = orm.load_node(pk)
    assert node.label == "mlearn"
    assert len(np.unique(node.column("group_id"), axis=0)) == 4
    text = invoke("dataset", "show", pk)
    for word in ("25 rows", "nothing implausible", "user input", "pbe.probe_energy_ratio"):
        assert word in text
    shown = json.loads(invoke("dataset", "show", pk, "--json"))
    assert shown["n_rows"] == 25
    assert shown["plausibility"]["findings"] == []
    invoke("dataset", "export", pk, tmp_path / "out.xyz")
    back = read_extxyz(tmp_path / "out.xyz")
    assert back.ids() == node.frame_ids()
    np.testing.assert_array_equal(back.forces, node.column("forces"))
    assert "--force overwrites it" in invoke("dataset", "export", pk, tmp_path / "out.xyz", code=1)
    invoke("dataset", "export", pk, tmp_path / "out.xyz", "--force", "--nan-missing")


def test_implausible_labels_are_refused_or_accepted_with_a_record(silicon_file, tmp_path):
    images = ase.io.read(silicon_file, ":")
    for atoms in images:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    path = tmp_path / "flipped.xyz"
    ase.io.write(path, images, format="extxyz")
    before = n_nodes()
    output = invoke("dataset", "import", path, "--fidelity", "pbe", code=1)
    assert "flipped.xyz, frame" in output
    assert "opposite sign" in output
    assert n_nodes() == before
    output = invoke("dataset", "import", path, "--fidelity", "pbe", "--accept-implausible")
    assert "accepted although frame" in output
    findings = orm.load_node(imported(output)).base.attributes.get("plausibility")["findings"]
    assert any("opposite sign" in finding["reason"] for finding in findings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give files, or --from-calculations"),
        (["missing.xyz", "--fidelity", "a"], "no such file or directory"),
        (["--from-calculations", "999999", "--fidelity", "a"], "no calculation and no group"),
        (["--from-calculations", "1"], "--fidelity: name the level of theory"),
    ],
)
def test_bad_imports_store_nothing(arguments, message):
    before = n_nodes()
    assert message in invoke("dataset", "import", *arguments, code=1)
    assert n_nodes() == before


def test_labels_need_a_fidelity(silicon_file):
    assert "no fidelity name was given" in invoke("dataset", "import", silicon_file, code=1)


def test_files_that_ase_reads(tmp_path):
    ase.io.write(tmp_path / "si.cif", bulk("Si", cubic=True))
    node = orm.load_node(imported(invoke("dataset", "import", tmp_path / "si.cif", "--group", "file")))
    assert (len(node), node.species, node.fidelities) == (1, ["Si"], [])
    (tmp_path / "broken.cif").write_text("not a cif")
    assert "ASE cannot read it" in invoke("dataset", "import", tmp_path / "broken.cif", code=1)


def test_wrong_nodes_are_named():
    structure = orm.StructureData(ase=bulk("Si")).store()
    assert "is a StructureData, not a dataset" in invoke("dataset", "show", structure.pk, code=1)
    with pytest.raises(InvalidInputError, match="no dataset '999999'"):
        load_dataset("999999")


PW_INPUT = """&control
 calculation='scf', pseudo_dir='{pseudos}', tstress=.true., tprnfor=.true., outdir='{name}'
/
&system
 ibrav=0, nat=2, ntyp=1, ecutwfc=10
/
&electrons
 conv_thr=1e-8, electron_maxstep={steps}
/
ATOMIC_SPECIES
Si 28.0855 Si.pz-vbc.UPF
CELL_PARAMETERS angstrom
0 2.6 2.6
2.6 0 2.6
2.6 2.6 0
ATOMIC_POSITIONS angstrom
Si {x} 0 0
Si 1.3 1.3 1.3
K_POINTS gamma
"""


@pytest.mark.qe
def test_a_directory_of_pw_outputs(tmp_path):
    from tests.conftest import debian_pseudo_folder

    for name, x, steps in (("a", 0.0, 50), ("b", 0.1, 50), ("c", 0.2, 2)):
        text = PW_INPUT.format(pseudos=debian_pseudo_folder(), name=name, x=x, steps=steps)
        done = subprocess.run(
            [shutil.which("pw.x")], input=text, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        (tmp_path / f"{name}.out").write_text(done.stdout)
    output = invoke("dataset", "import", tmp_path, "--fidelity", "lda")
    assert "c.out: 1 frame(s) whose SCF did not converge: no label" in output
    node = orm.load_node(imported(output))
    frames = node.frames()
    assert node.base.attributes.get("failures") == {"scf_not_converged": 1}
    assert frames.labelled.tolist() == [True, True, False]
    assert np.trace(frames.stress[0]) < 0  # a compressed cell pushes outwards: negative, tension positive
    assert frames.forces[frames.atom_slice(1)][0, 0] < 0  # the displaced atom is pulled back
    np.testing.assert_allclose(frames.positions[2, 0], 0.1, atol=1e-6)


@pytest.mark.qe
def test_finished_calculations_keep_their_provenance(pw_code, pseudo_family):
    from aiida_quantumespresso.calculations.pw import PwCalculation

    pks = []
    family = orm.load_group(pseudo_family)
    for x in (0.0, 0.1):
        atoms = bulk("Si")
        atoms.positions[0, 0] += x
        structure = orm.StructureData(ase=atoms)
        kpoints = orm.KpointsData()
        kpoints.set_kpoints_mesh([1, 1, 1])
        control = {"calculation": "scf", "tprnfor": True, "tstress": True}
        _, node = run_get_node(
            PwCalculation,
            code=pw_code,
            structure=structure,
            kpoints=kpoints,
            pseudos=family.get_pseudos(structure=structure),
            parameters=orm.Dict({"CONTROL": control, "SYSTEM": {"ecutwfc": 10}}),
            metadata={"options": {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": 1}}},
        )
        assert node.is_finished_ok, node.exit_message
        pks.append(node.pk)
    arguments = [part for pk in pks for part in ("--from-calculations", pk)]
    dataset = orm.load_node(imported(invoke("dataset", "import", *arguments, "--fidelity", "lda")))
    frames = dataset.frames()
    jobs = [orm.load_node(pk) for pk in pks]
    np.testing.assert_array_equal(frames.label_uuid, id_bytes([job.uuid for job in jobs]))
    np.testing.assert_allclose(frames.energy, [job.outputs.output_parameters["energy"] for job in jobs])
    assert frames.forces[0, 0] == pytest.approx(0.0, abs=1e-3)
    assert frames.forces[2, 0] < -0.1
    inputs = dataset.creator.base.links.get_incoming().all_nodes()
    assert {job.outputs.output_trajectory.pk for job in jobs} <= {node.pk for node in inputs}
    group = orm.Group(label="finished").store()
    group.add_nodes(jobs)
    assert "2 labelled at lda" in invoke("dataset", "import", "--from-calculations", "finished", "--fidelity", "lda")


SPEC = """
steps:
  - {generator: strain, per_parent: 2, keep: false}
  - {generator: rattle, parents: strain, per_parent: 3, amplitude_ang: 0.05}
"""


def test_preview_says_what_filters_leave_out(tmp_path):
    bulk("Si", cubic=True).write(tmp_path / "si.cif")
    (tmp_path / "spec.yaml").write_text(
        "steps:\n  - {generator: vacancy, per_parent: 3, min_image_distance_ang: 7}\n"
        "filters: {duplicate_tolerance: 0.005, volume_ang3_per_atom: [5, 50]}\n"
    )
    preview = invoke("generate", tmp_path / "si.cif", "--spec", tmp_path / "spec.yaml", "--preview")
    assert "1 frames" in preview
    assert "duplicate" in preview


def test_generate_previews_then_runs(tmp_path):
    ase.io.write(tmp_path / "si.cif", bulk("Si", cubic=True))
    (tmp_path / "spec.yaml").write_text(SPEC)
    before = n_nodes()
    arguments = ["generate", tmp_path / "si.cif", "--spec", tmp_path / "spec.yaml", "--seed", 3]
    preview = invoke(*arguments, "--preview")
    assert "6 frames" in preview
    assert n_nodes() == before
    output = invoke(*arguments, "--label", "cells")
    assert "6 frames" in output
    node = orm.load_node(int(output.split("DatasetData<")[1].split(">")[0]))
    assert (len(node), node.label) == (6, "cells")
    structure = orm.StructureData(ase=bulk("Si", cubic=True)).store()
    assert "6 frames" in invoke("generate", structure.pk, "--spec", tmp_path / "spec.yaml")


def test_generate_refuses_bad_specifications(tmp_path):
    (tmp_path / "spec.yaml").write_text("steps: [{generator: ratle}]")
    assert "did you mean 'rattle'" in invoke("generate", "--spec", tmp_path / "spec.yaml", code=1)
    (tmp_path / "spec.yaml").write_text("just words")
    assert "expected a mapping" in invoke("generate", "--spec", tmp_path / "spec.yaml", code=1)
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert "give seed structures" in invoke("generate", "--spec", tmp_path / "spec.yaml", code=1)
    assert "not both" in invoke("generate", "--spec", tmp_path / "spec.yaml", "--protocol", "fast", code=1)
    assert "unknown protocol 'quick'" in invoke("generate", "--protocol", "quick", code=1)
    assert "cannot be read" in invoke("generate", "--spec", tmp_path / "none.yaml", code=1)


def test_cost_estimate_comes_from_measured_labels(silicon_file, tmp_path):
    ase.io.write(tmp_path / "si.cif", bulk("Si", cubic=True))
    frames = read_extxyz(silicon_file, fidelity="pbe").take([0])
    from aiida_mlip.data.dataset import DatasetData

    n = int(frames.natoms[0])
    node = DatasetData.from_frames(frames.with_columns(cost=np.array([3600.0 * n**2], dtype="<f4"))).store()
    (tmp_path / "spec.yaml").write_text("steps: [{generator: rattle, per_parent: 2}]")
    arguments = ["generate", tmp_path / "si.cif", "--spec", tmp_path / "spec.yaml", "--preview", "--cost-from"]
    assert "about 128 core-hours" in invoke(*arguments, node.pk)  # 2 frames of 8 atoms, one core-hour per atom squared
    bare = imported(invoke("dataset", "import", tmp_path / "si.cif"))
    assert "holds no measured costs" in invoke(*arguments, bare, code=1)


STAGED = """
structures: [cu.xyz]
codes: {explore: aiida-mlip-explore@localhost}
fidelities:
  emt: {engine: ase, calculator: ase.calculators.emt.EMT, arguments: {asap_cutoff: true}} # nobody else's settings
  two: {engine: qe, pseudo_family: nobody, ecutwfc_ry: 12, occupations: fixed}
steps:
  - {generator: strain, per_parent: 3}
  - generator: monte_carlo
    parents: {of: [strain, seeds], count: 2}
    temperature_k: 500
    n_steps: 40
    record_every: 10
    forces: {calculator: ase.calculators.emt.EMT}
  - {generator: rattle, parents: monte_carlo, per_parent: 2}
  - {generator: import, dataset: known}
"""


@pytest.fixture
def alloy(tmp_path):
    """A job file with stages, an alloy beside it, and a dataset with labels of three sizes, cost 36 s · N^1.5."""
    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.kernel.frames import from_ase
    from aiida_mlip.workchains.label_inputs import settings_hashes

    atoms = bulk("Cu", cubic=True)
    atoms.symbols[0] = "Au"
    atoms.write(tmp_path / "cu.xyz")
    (tmp_path / "job.yaml").write_text(STAGED)
    images = []
    for repeat in (1, 2, 3):
        cell = atoms * (repeat, 1, 1)
        cell.calc = EMT()
        cell.get_forces()
        images.append(cell)
    frames = from_ase(images, fidelity="emt")
    frames = frames.with_columns(cost=(36.0 * frames.natoms**1.5).astype("<f4"))
    level = {"engine": "ase", "calculator": "ase.calculators.emt.EMT", "arguments": {"asap_cutoff": True}}
    settings = settings_hashes({"emt": level})
    return DatasetData.from_frames(frames, settings=settings).store()


def test_preview_of_stages_estimates_counts_and_cost_at_each_level(alloy, tmp_path):
    before = n_nodes()
    arguments = ["generate", "--spec", tmp_path / "job.yaml", "--import", f"known={alloy.pk}", "--preview"]
    text = invoke(*arguments)
    assert n_nodes() == before
    assert "about 30 frames" in text  # 3 strained, 2 runs of 4 records, each rattled twice, 3 imported
    assert "about 16" in text
    # what is imported has its labels: 27 frames of 4 atoms, at 36 · 8 s each
    assert "DFT at emt: labels of 27 frames about" in text
    hours = float(text.split("27 frames about ")[1].split()[0])
    assert hours == pytest.approx(27 / 30 * (27 * 4**1.5 + 4**1.5 + 8**1.5 + 12**1.5) * 36 / 3600, rel=0.01)
    assert f"3 measured labels of dataset {alloy.pk} (4 to 12 atoms)" in text
    assert "the power 1.50 of the number of atoms, fitted" in text
    assert "DFT at two: labels of 30 frames; no measured label of this fidelity yet" in text
    assert "give a code" not in text
    assert "imports.other: no step imports it" in invoke(*arguments, "--import", f"other={alloy.pk}", code=1)
    (tmp_path / "job.yaml").write_text(STAGED.replace("codes: {explore: aiida-mlip-explore@localhost}\n", ""))
    needed = "to run spec.steps[1] (monte_carlo): give a code, --code explore=LABEL, or `codes`"
    assert needed in invoke(*arguments)
    (tmp_path / "job.yaml").write_text(STAGED)
    assert "give the dataset: --import known=PK" in invoke(
        "generate", "--spec", tmp_path / "job.yaml", "--preview", code=1
    )
    (tmp_path / "job.yaml").write_text(STAGED.replace("seeds]", "sedes]"))
    assert "job.yaml.steps[1].parents: ['sedes'] is no earlier step" in invoke(*arguments, code=1)


def test_stages_run_from_the_command_line(alloy, tmp_path, localhost):
    code = orm.InstalledCode(
        label="explore-here",
        computer=localhost,
        filepath_executable=shutil.which("aiida-mlip-explore", path=str(Path(sys.executable).parent)),
        with_mpi=False,
    ).store()
    arguments = ["generate", "--spec", tmp_path / "job.yaml", "--import", f"known={alloy.pk}"]
    before = orm.QueryBuilder().append(orm.ProcessNode).count()
    assert "codes.explore: no code 'nobody@localhost'" in invoke(
        *arguments, "--code", "explore=nobody@localhost", code=1
    )
    assert "expected NAME=VALUE, got 'explore'" in invoke(*arguments, "--code", "explore", code=1)
    assert orm.QueryBuilder().append(orm.ProcessNode).count() == before
    job = STAGED.replace("  two: {engine: qe, pseudo_family: nobody, ecutwfc_ry: 12, occupations: fixed}\n", "")
    (tmp_path / "job.yaml").write_text(job)
    output = invoke(*arguments, "--code", f"explore={code.full_label}", "--label", "mixed", "--reference", alloy.pk)
    assert "coverage: 100% of the reference's environments (Cu 100%, Au 100%)" in output  # it is imported as well
    node = orm.load_node(int(output.split("DatasetData<")[1].split(">")[0]))
    assert node.label == "mixed"
    assert node.base.attributes.get("fidelities")["emt"]["labelled"] == 3
    assert set(node.base.attributes.get("generators")) == {"strain", "monte_carlo", "rattle", "import"}
    assert "3 emt" in output
    # a step that does not get what it needs is named, and what the others made is shown
    broken = job.replace("n_steps: 40", "n_steps: 40\n    elements: [Cu, Ni]")
    (tmp_path / "job.yaml").write_text(broken)
    output = invoke(*arguments, "--code", f"explore={code.full_label}", code=1)
    assert "a swap needs two elements" in output
    assert "2 of 4 steps failed" in output
    assert "6 frames" in output
