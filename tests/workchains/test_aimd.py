"""AimdWorkChain with real pw.x: labels, continuation after a kill, failures that are kept, refusals before any job."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from aiida.plugins import WorkflowFactory
from ase.build import bulk

from aiida_mlip.calculations.functions.aimd import prepare_aimd
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.io.pw_md import read_md_output
from aiida_mlip.kernel.frames import NONE, Failure, from_ase, id_bytes
from aiida_mlip.kernel.units import GPA
from aiida_mlip.protocols.aimd import parse_aimd
from aiida_mlip.protocols.model import PROTOCOLS, merged_protocol
from aiida_mlip.workchains.aimd import AimdWorkChain
from aiida_mlip.workchains.label import LabelWorkChain

LDA = {
    "pseudo_family": "debian-lda",
    "protocol": "fast",
    "ecutwfc_ry": 12,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.3,
    "conv_thr_ry_per_atom": 1e-10,
}
NVE = {
    "temperatures_kelvin": [300],
    "timestep_fs": 1.0,
    "n_steps": 5,
    "thermostat": {"kind": "nve"},
    "thinning": {"mode": "every"},
}


def silicon2() -> DatasetData:
    """Two atoms, off their sites."""
    atoms = bulk("Si", a=5.40)
    atoms.positions[1] += [0.06, 0.01, -0.04]
    return DatasetData.from_frames(from_ase([atoms]))


def run_aimd(code, seeds, *, fidelity=LDA, seed=1, max_concurrent=4, **settings):
    return run_get_node(
        AimdWorkChain,
        structures=seeds,
        fidelities=orm.Dict({"lda": fidelity}),
        settings=orm.Dict({**NVE, **settings}),
        seed=orm.Int(seed),
        codes={"pw": code},
        max_concurrent=orm.Int(max_concurrent),
    )


@pytest.fixture
def code_with_kill(localhost, tmp_path):
    """pw.x behind a script that ends its first run with SIGKILL after eight steps."""
    script = tmp_path / "pw_killed.sh"
    script.write_text(
        f"""#!/bin/bash
if mkdir {tmp_path}/killed 2>/dev/null; then
    {shutil.which("pw.x")} "$@" &
    until [ "$(grep -c 'Entering Dynamics' aiida.out)" -ge 8 ]; do sleep 0.02; done
    kill -9 $!
    wait
    exit 137
fi
exec {shutil.which("pw.x")} "$@"
"""
    )
    script.chmod(0o755)
    return orm.InstalledCode(
        label=f"pw-{tmp_path.name}",
        computer=localhost,
        filepath_executable=str(script),
        default_calc_job_plugin="quantumespresso.pw",
        with_mpi=False,
    ).store()


# -- real runs -------------------------------------------------------------------------------------------------


@pytest.mark.qe
@pytest.mark.slow
def test_labels_are_those_of_single_points_and_every_frame_knows_its_origin(pw_code, pseudo_family, si8):
    # a perfect crystal: pw.x would keep its symmetry for the whole run if we let it
    seeds = DatasetData.from_frames(si8)
    results, node = run_aimd(
        pw_code, seeds, temperatures_kelvin=[1500], timestep_fs=3.0, n_steps=6, equilibration_fs=6.0
    )
    assert node.is_finished_ok, node.exit_message
    frames = results["dataset"].frames()
    assert len(frames) == 4
    spread = np.ptp(np.linalg.norm(frames.forces[frames.atom_slice(3)], axis=1))
    assert spread > 0.1  # no two atoms are equivalent any more

    # to the labelling these frames are labelled already
    bare = DatasetData.from_frames(from_ase(list(frames.iter_ase()), fidelity="other"))
    labels, label = run_get_node(LabelWorkChain, dataset=bare, fidelities=orm.Dict({"lda": LDA}), codes={"pw": pw_code})
    assert labels["summary"].get_dict()["fidelities"]["lda"]["reused"] == 4
    assert not [job for job in label.called_descendants if isinstance(job, orm.CalcJobNode)]
    assert np.array_equal(labels["dataset"].filter(fidelity="lda").forces, frames.forces)

    # the last frame, farthest from the start, as a plain scf of its own
    md = frames.take([3])
    bare = DatasetData.from_frames(from_ase([atoms := frames.to_ase(3)], fidelity="other"))
    assert len(atoms) == 8
    labels, label = run_get_node(
        LabelWorkChain, dataset=bare, fidelities=orm.Dict({"lda": LDA}), codes={"pw": pw_code}, reuse=orm.Bool(False)
    )
    assert label.is_finished_ok
    single = labels["dataset"].filter(fidelity="lda")
    assert np.array_equal(single.frame_id, md.frame_id)
    np.testing.assert_allclose(single.energy / 8, md.energy / 8, atol=1e-6)  # the bar is 1e-4
    np.testing.assert_allclose(single.forces, md.forces, atol=1e-3)
    np.testing.assert_allclose(single.stress, md.stress, atol=0.05 * GPA)

    assert results["dataset"].settings == labels["dataset"].settings
    assert frames.generators == ("aimd",)
    assert (frames.group_id == frames.group_id[0]).all()
    assert frames.group_id.any()
    assert (frames.parent_id == si8.frame_id).all()
    jobs = [job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)]
    assert len(jobs) == 1
    assert (frames.geometry_uuid == id_bytes([jobs[0].uuid])).all()
    assert (frames.label_uuid == frames.geometry_uuid).all()
    assert frames.label_row.tolist() == [2, 3, 4, 5]
    assert (frames.cost > 0).all()
    assert audit(node).passed
    children = {link.link_label for link in node.base.links.get_outgoing().all() if "call" in link.link_type.value}
    assert children == {"prepare_aimd", "run_0000_segment_000", "collect_0000", "assemble_aimd"}


@pytest.mark.qe
@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(code_with_kill, pseudo_family, tmp_path):
    n = 16
    results, node = run_aimd(code_with_kill, silicon2(), n_steps=n)
    assert node.is_finished_ok, node.exit_message
    (report,) = results["summary"].get_dict()["runs"]
    first, second = report["segments"]
    assert first["end"] == "crashed"
    assert 8 <= first["steps"] < n
    assert second["steps"] == n - first["steps"] + 1
    assert (report["steps"], report["steps_lost"], report["steps_repeated"]) == (n, 0, 1)
    assert report["restart_mismatch_ev_per_atom"] < 1e-5
    assert report["checks"] == {"restarts_consistent": True, "energy_conserved": True}
    assert report["failure"] == "none"
    assert audit(node).passed

    # the same input, by hand, not interrupted
    job = orm.load_node(first["uuid"])
    (tmp_path / "aiida.in").write_text(job.base.repository.get_object_content("aiida.in"))
    (tmp_path / "pseudo").mkdir()
    upf = job.inputs.pseudos["Si"]
    (tmp_path / "pseudo" / upf.filename).write_text(upf.get_content())
    with (tmp_path / "aiida.in").open() as stdin:
        text = subprocess.run(["pw.x"], stdin=stdin, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    whole = read_md_output(text, np.array([site.position for site in job.inputs.structure.sites]))
    trajectory = results["trajectories"]["run_0000"]
    assert len(whole) == n
    np.testing.assert_allclose(trajectory.get_positions(), whole.positions, atol=1e-5)
    np.testing.assert_allclose(trajectory.get_array("energy"), whole.energy, atol=2e-5)
    np.testing.assert_allclose(trajectory.get_array("forces"), whole.forces, atol=2e-4)
    np.testing.assert_allclose(trajectory.get_array("kinetic_energy"), whole.kinetic, atol=2e-5)
    assert trajectory.get_array("segment").tolist() == [0] * first["steps"] + [1] * (n - first["steps"])
    np.testing.assert_allclose(trajectory.get_times(), np.arange(n) * 1e-3)


@pytest.mark.qe
@pytest.mark.slow
def test_what_a_run_had_at_the_last_walltime_is_returned(pw_code, pseudo_family):
    fidelity = {**LDA, "parameters": {"CONTROL": {"max_seconds": 1}}}
    results, node = run_aimd(
        pw_code,
        silicon2(),
        fidelity=fidelity,
        n_steps=4000,
        max_restarts=1,
        thermostat={"kind": "andersen", "time_fs": 20},
        thinning={"max_frames": 3},
    )
    assert node.exit_status == 410, node.exit_message
    assert "1 walltime" in node.exit_message
    (report,) = results["summary"].get_dict()["runs"]
    assert [segment["end"] for segment in report["segments"]] == ["walltime", "walltime"]
    assert report["steps"] == sum(segment["steps"] for segment in report["segments"]) - 1
    assert report["steps_lost"] == 4000 - report["steps"] > 0
    # goes on where it broke off: no jump in the positions
    positions = results["trajectories"]["run_0000"].get_positions()
    assert np.abs(np.diff(positions, axis=0)).max() < 0.1
    assert 1 <= len(results["dataset"]) <= 3
    assert report["forces_time_fs"]["integrated"] >= 0.5


@pytest.mark.qe
@pytest.mark.slow
def test_an_unconverged_scf_in_the_middle_is_a_failed_row_not_a_label(pw_code, pseudo_family):
    # atoms flung across the cell: the second scf needs more steps than it is given
    fidelity = {**LDA, "electron_maxstep": 9, "kpoints_distance_inv_ang": 1.0, "conv_thr_ry_per_atom": 5e-9}
    results, node = run_aimd(
        pw_code, silicon2(), fidelity=fidelity, temperatures_kelvin=[15000], timestep_fs=9.7, n_steps=8
    )
    assert node.exit_status == 410, node.exit_message
    frames = results["dataset"].frames()
    failed = frames.failure == Failure.SCF_NOT_CONVERGED
    assert failed.sum() == 1
    assert np.isnan(frames.energy[failed]).all()
    assert np.isnan(frames.forces[frames.atom_slice(int(np.flatnonzero(failed)[0]))]).all()
    assert np.isfinite(frames.energy[~failed]).all()
    assert (~failed).sum() >= 1
    (report,) = results["summary"].get_dict()["runs"]
    assert report["failure"] == "scf_not_converged"
    assert report["frames"] == (~failed).sum()
    # the next attempt mixed less
    mixing = [
        job.inputs.parameters["ELECTRONS"]["mixing_beta"]
        for job in sorted(node.called_descendants, key=lambda node: node.pk)
        if isinstance(job, orm.CalcJobNode)
    ]
    assert mixing[1] == pytest.approx(mixing[0] / 2)


@pytest.mark.qe
def test_a_run_that_never_starts_gives_no_frames_but_a_reason(pw_code, pseudo_family):
    fidelity = {**LDA, "parameters": {"SYSTEM": {"nbnd": 1}}}  # fewer bands than electrons
    results, node = run_aimd(pw_code, silicon2(), fidelity=fidelity, max_restarts=0)
    assert node.exit_status == 310, node.exit_message
    assert "dataset" not in results
    (report,) = results["summary"].get_dict()["runs"]
    assert report["failure"] == "crashed"
    assert "too few bands" in report["message"]
    assert report["steps_lost"] == 5


@pytest.mark.qe
@pytest.mark.slow
def test_a_ladder_whose_energy_drifts_returns_its_frames_and_says_so(pw_code, pseudo_family):
    results, node = run_aimd(
        pw_code,
        silicon2(),
        temperatures_kelvin=[400, 500, 600],
        timestep_fs=12.0,
        n_steps=10,
        checks={"energy_drift_ev_per_atom_per_ps": 1e-6},
        max_concurrent=2,
    )
    assert node.exit_status == 500, node.exit_message
    assert node.exit_message.count("energy_conserved") == 3
    summary = results["summary"].get_dict()
    assert [run["checks"] for run in summary["runs"]] == [{"energy_conserved": False}] * 3
    assert sorted(results["trajectories"]) == ["run_0000", "run_0001", "run_0002"]
    # the first step is the seed in every run: the merged dataset has it once
    frames = results["dataset"].frames()
    assert len(frames) == 28
    assert len(np.unique(frames.group_id, axis=0)) == 3
    assert summary["n_frames"] == 28
    # a third run starts when a place becomes free, not when both are
    jobs = [job for job in node.called_descendants if isinstance(job, orm.WorkChainNode)]
    assert len(jobs) == 3


@pytest.mark.qe
def test_labels_with_too_few_bands_are_none_and_the_run_starts_anew_with_more(pw_code, pseudo_family):
    fidelity = {**LDA, "occupations": "smearing", "degauss_ry": 0.02, "parameters": {"SYSTEM": {"nbnd": 4}}}
    results, node = run_aimd(
        pw_code,
        silicon2(),
        fidelity=fidelity,
        n_steps=4,
        thermostat={"kind": "rescale-v", "time_fs": 2.0},
        checks={"temperature_fraction": 1e3},
    )
    assert node.is_finished_ok, node.exit_message
    (report,) = results["summary"].get_dict()["runs"]
    assert [(segment["steps"], segment["end"]) for segment in report["segments"]] == [(0, "implausible"), (4, "none")]
    last = orm.load_node(report["segments"][1]["uuid"])
    assert last.inputs.parameters["SYSTEM"]["nbnd"] == 8


# -- before any job --------------------------------------------------------------------------------------------


def test_atoms_pressed_into_one_another_are_refused_before_any_job(pw_code, pseudo_family):
    _, node = run_aimd(pw_code, silicon2(), volume_scales=[1.0, 0.05])
    assert node.exit_status == 201
    assert "overlap" in node.exit_message
    assert "V/V0 0.05" in node.exit_message
    assert not [job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"temperatures_kelvin": [-300]}}, ["temperatures_kelvin.0", "greater than 0", "-300"]),
        ({"settings": {"temperatures_kelvin": []}}, ["temperatures_kelvin", "at least 1"]),
        ({"settings": {"timestep_fs": 0}}, ["timestep_fs", "greater than 0"]),
        ({"settings": {"n_steps": 0}}, ["n_steps", "greater than or equal to 1"]),
        ({"settings": {"thermostat": {"kind": "anderson"}}}, ["thermostat.kind", "did you mean 'andersen'"]),
        ({"settings": {"thermostat": {"kind": "svr"}}}, ["thermostat.kind", "NaN", "andersen"]),
        ({"settings": {"thermostat": {"kind": "rescale-v", "time_fs": 1.0}}}, ["time_fs", "two timesteps"]),
        ({"settings": {"temperature_kelvin": [300]}}, ["did you mean 'temperatures_kelvin'"]),
        ({"settings": {"equilibration_fs": 5.0}}, ["equilibration_fs", "leaves nothing"]),
        ({"settings": {"volume_scales": [0.0]}}, ["volume_scales.0", "greater than 0"]),
        ({"settings": {"strains": [[0.1, 0.1]]}}, ["strains.0", "at least 6"]),
        ({"settings": {"supercell": [1, 0, 1]}}, ["supercell.1", "greater than or equal to 1"]),
        ({"settings": {"thinning": {"every": 0}}}, ["thinning.every", "greater than or equal to 1"]),
        ({"fidelities": {"a": LDA, "b": LDA}}, ["exactly one", "a, b"]),
        ({"fidelities": {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}}, ["engine qe", "ase"]),
        ({"fidelities": {"lda": {**LDA, "ecutwfc_ry": -12}}}, ["ecutwfc_ry", "greater than 0"]),
        ({"fidelities": {"lda": {**LDA, "pseudo_family": "nowhere"}}}, ["nowhere", "debian-lda"]),
        ({"species": "Cu"}, ["no pseudopotential for Cu"]),
        ({"options": {"wallclock": 3}}, ["unknown option 'wallclock'"]),
        ({"seed": -1}, ["seed", "negative"]),
        ({"max_concurrent": 0}, ["max_concurrent", "at least 1"]),
    ],
)
def test_impossible_input_is_refused_by_name_and_nothing_is_stored(pw_code, pseudo_family, change, words):
    seeds = silicon2()
    if "species" in change:
        seeds = DatasetData.from_frames(from_ase([bulk(change["species"])]))
    inputs = {
        "structures": seeds,
        "fidelities": orm.Dict(change.get("fidelities", {"lda": LDA})),
        "settings": orm.Dict({**NVE, **change.get("settings", {})}),
        "seed": orm.Int(change.get("seed", 0)),
        "codes": {"pw": pw_code},
    }
    if "options" in change:
        inputs["options"] = orm.Dict(change["options"])
    if "max_concurrent" in change:
        inputs["max_concurrent"] = orm.Int(change["max_concurrent"])
    before = orm.QueryBuilder().append(orm.Node).count()
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        run_get_node(AimdWorkChain, **inputs)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_runs_are_the_same_for_the_same_seed_and_others_for_another(pseudo_family):
    def prepared(seed: int, **settings):
        nodes = prepare_aimd(silicon2(), orm.Dict({"lda": LDA}), orm.Dict({**NVE, **settings}), orm.Int(seed))
        return {name: node.get_dict() for name, node in nodes.items() if isinstance(node, orm.Dict)}

    first = prepared(7)
    assert first == prepared(7)
    assert first["settings_0000"] != prepared(8)["settings_0000"]
    more = prepared(7, temperatures_kelvin=[100, 300])
    assert more["settings_0001"] == first["settings_0000"]
    assert more["run_0001"]["group"] == first["run_0000"]["group"] != more["run_0000"]["group"]


def test_pw_runs_without_symmetry_from_our_velocities_at_the_settings_of_the_labels(pseudo_family):
    nodes = prepare_aimd(
        silicon2(),
        orm.Dict({"lda": LDA}),
        orm.Dict({**NVE, "thermostat": {"kind": "andersen", "time_fs": 40}, "volume_scales": [0.9, 1.0]}),
        orm.Int(0),
    )
    namelists = nodes["parameters_0001"].get_dict()
    assert namelists["SYSTEM"]["nosym"] is True
    assert namelists["IONS"]["ion_velocities"] == "from_input"
    assert (namelists["IONS"]["ion_temperature"], namelists["IONS"]["tempw"], namelists["IONS"]["nraise"]) == (
        "andersen",
        300,
        40,
    )
    assert namelists["ELECTRONS"]["conv_thr"] == pytest.approx(2e-10)
    assert namelists["CONTROL"]["dt"] * 0.0483776865 == pytest.approx(1.0)
    assert nodes["structure_0000"].get_cell_volume() == pytest.approx(0.9 * nodes["structure_0001"].get_cell_volume())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_builder_states_every_default_of_the_protocol(pw_code, pseudo_family, protocol):
    structure = orm.StructureData(ase=bulk("Si", a=5.4))
    builder = AimdWorkChain.get_builder_from_protocol(
        pw_code, structure, {"lda": {**LDA, "protocol": protocol}}, protocol=protocol, overrides={"n_steps": 321}
    )
    settings = builder.settings.get_dict()
    assert settings["n_steps"] == 321
    assert settings == parse_aimd(merged_protocol("aimd", protocol, {"n_steps": 321})).model_dump(mode="json")
    assert builder.structures.frames().label_row.tolist() == [NONE]


def test_the_entry_point_names_the_workchain():
    assert WorkflowFactory("aiida_mlip.aimd") is AimdWorkChain
