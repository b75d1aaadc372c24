"""Jobs in a real queue, handed over by two daemon workers: labels, trainings, simulations; killed, out of time."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from aiida import orm
from aiida.engine import submit
from ase.build import bulk
from emt_frames import emt_frames
from service_jobs import by_daemon, slurm_says, squeue, verdi, wait_until

from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.train import TrainWorkChain

pytestmark = [pytest.mark.qe, pytest.mark.daemon, pytest.mark.timeout(1800)]

TINY = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "debian-lda",
    "ecutwfc_ry": 8,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.2,
}
CPU = {"queue_name": "cpu", "account": "materials", "max_wallclock_seconds": 1800}
GPU = CPU | {"queue_name": "gpu", "custom_scheduler_commands": "#SBATCH --gres=gpu:1"}
SERIAL = {"num_machines": 1, "num_mpiprocs_per_machine": 1}
TWO = {"num_machines": 1, "num_mpiprocs_per_machine": 2}
FOUR = {"num_machines": 1, "num_mpiprocs_per_machine": 4}


def silicon(n: int, *, seed: int) -> DatasetData:
    """Rattled two-atom cells; another seed, other frames."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Si", a=5.4)
        atoms.positions += rng.normal(scale=0.03, size=(2, 3))
        images.append(atoms)
    return DatasetData.from_frames(from_ase(images))


def label(pw, dataset, *, bundle_size=1, bundle=None, **qe):
    return LabelWorkChain.get_builder_from_protocol(
        {"pw": pw},
        dataset,
        {"lda": TINY | {"bundle_size": bundle_size}},
        options={"qe": {**CPU, "resources": SERIAL, **qe}, **({"bundle": bundle} if bundle else {})},
        reuse=orm.Bool(False),
    )


def jobs(node):
    return sorted((job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)), key=lambda job: job.pk)


def test_the_profile_is_on_postgresql_and_rabbitmq_with_two_workers(aiida_profile, workers):
    assert aiida_profile.storage_backend == "core.psql_dos"
    assert aiida_profile.process_control_backend == "core.rabbitmq"
    assert workers.get_numprocesses()["numprocesses"] == 2


def test_labels_one_by_one_and_in_a_bundle(codes, pseudo_family):
    """Every pw.x on two ranks; in the bundle two of them at once. The same numbers, in the partition asked for."""
    dataset = silicon(2, seed=1)
    single = submit(label(codes["pw"], dataset, resources=TWO, withmpi=True))
    node = by_daemon(
        label(codes["pw"], dataset, bundle_size=10, bundle={"resources": FOUR, "side_by_side": 2, "withmpi": True})
    )
    wait_until(lambda: single.is_terminated, "single labels")
    assert node.is_finished_ok, node.exit_message
    assert single.is_finished_ok, single.exit_message
    (bundle,) = jobs(node)
    assert isinstance(bundle, orm.CalcJobNode)
    assert bundle.process_class is PwBundleCalculation
    for job in [bundle, *jobs(single)]:
        said = slurm_says(job)
        assert (said["JobState"], said["Partition"], said["Account"]) == ("COMPLETED", "cpu", "materials")
        assert said["NumTasks"] == ("4" if job == bundle else "2")
        assert said["TimeLimit"] == "00:30:00"
    assert len(jobs(single)) == 2
    for job in jobs(single):
        assert "running on     2 processors" in job.outputs.retrieved.base.repository.get_object_content("aiida.out")
    out, expected = node.outputs.dataset.frames(), single.outputs.dataset.frames()
    np.testing.assert_allclose(out.energy, expected.energy, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out.forces, expected.forces, rtol=0, atol=1e-6)


@pytest.mark.nequip
def test_a_training_with_a_gpu_asked_for(codes):
    options = {"resources": SERIAL, "withmpi": False}
    builder = TrainWorkChain.get_builder_from_protocol(
        DatasetData.from_frames(emt_frames(10)),
        {name: codes[name] for name in ("train", "evaluate")},
        overrides={
            "protocol": "fast",
            "device": "cpu",
            "threads": 1,
            "max_epochs": 2,
            "optimizer": {"warmup_epochs": 1},
            "split": {"test": 0.2, "val": 0.2},
            "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
        },
        options={"train": {**GPU, **options}, "evaluate": {**CPU, **options}},
    )
    node = by_daemon(builder)
    assert node.is_finished_ok, node.exit_message
    assert node.outputs.potentials.member_0.species == ["Cu"]
    of_kind = {job.process_type.rpartition(".")[2]: slurm_says(job) for job in jobs(node)}
    assert of_kind["nequip_train"]["Partition"] == "gpu"
    assert of_kind["nequip_train"]["TresPerNode"] == "gres:gpu:1"
    assert of_kind["evaluate"]["Partition"] == "cpu"


def test_a_simulation_with_a_gpu_asked_for(codes):
    builder = ExploreWorkChain.get_builder_from_protocol(
        codes["explore"],
        DatasetData.from_frames(from_ase([bulk("Cu", cubic=True)])),
        protocol="fast",
        overrides={
            "kind": "md",
            "forces": {"calculator": "ase.calculators.emt.EMT"},
            "record_every": 10,
            "md": {"timestep_fs": 2, "schedule": [{"n_steps": 30, "temperature_k": 300}]},
        },
        options={**GPU, "resources": SERIAL, "withmpi": False},
    )
    node = by_daemon(builder)
    assert node.is_finished_ok, node.exit_message
    assert len(node.outputs.dataset) == 3
    (job,) = jobs(node)
    assert (slurm_says(job)["Partition"], slurm_says(job)["TresPerNode"]) == ("gpu", "gres:gpu:1")


def script_around_pw(codes, tmp_path, text: str):
    """pw.x with something done before it."""
    path = tmp_path / "pw.sh"
    path.write_text(f'#!/bin/sh\n{text}\nexec {shutil.which("pw.x")} "$@"\n')
    path.chmod(0o755)
    return orm.InstalledCode(
        label=f"pw-{tmp_path.name}",
        computer=codes["pw"].computer,
        filepath_executable=str(path),
        default_calc_job_plugin="quantumespresso.pw",
    ).store()


@pytest.mark.parametrize("bundle_size", [1, 10], ids=["single", "bundle"])
def test_a_kill_takes_the_jobs_out_of_the_queue(aiida_profile, codes, pseudo_family, tmp_path, bundle_size):
    slow = script_around_pw(codes, tmp_path, "sleep 1000")
    node = submit(label(slow, silicon(2, seed=2), bundle_size=bundle_size))
    expected = 1 if bundle_size > 1 else 2

    def running():
        found = [job for job in jobs(node) if job.get_job_id() and slurm_says(job)["JobState"] == "RUNNING"]
        return found if len(found) == expected else None

    killed = wait_until(running, "running jobs")
    said = verdi("process", "kill", "--timeout", "60", str(node.pk), profile=aiida_profile.name)
    wait_until(lambda: node.is_terminated and all(job.is_terminated for job in killed), said)
    assert node.is_killed
    assert all(job.is_killed for job in killed)
    states = wait_until(
        lambda: [s for s in [{slurm_says(job)["JobState"] for job in killed}] if s == {"CANCELLED"}],
        "cancelled by Slurm",
    )
    assert states
    assert not squeue("-h", "-t", "R,PD", "-j", ",".join(str(job.get_job_id()) for job in killed)).strip()


def test_walltime_keeps_what_has_ended_and_goes_on(codes, pseudo_family, tmp_path):
    """Slurm ends a bundle in its second frame: the first is kept, the others go into the next job."""
    hang = f'case "$PWD" in */work/00001) mkdir "{tmp_path}/hung" && sleep 1000 ;; esac'
    slow = script_around_pw(codes, tmp_path, hang)
    node = by_daemon(label(slow, silicon(3, seed=3), bundle_size=10, max_wallclock_seconds=60))
    assert node.is_finished_ok, node.exit_message
    first, second = jobs(node)
    assert slurm_says(first)["JobState"] == "TIMEOUT"
    assert first.exit_status == PwBundleCalculation.exit_codes.ERROR_INTERRUPTED.status
    assert [failure["class"] for failure in first.outputs.report["failures"]] == ["walltime", "walltime"]
    assert "DUE TO TIME LIMIT" in first.outputs.report["failures"][0]["message"]
    assert np.isfinite(first.outputs.dataset.frames().energy).tolist() == [True, False, False]
    assert second.is_finished_ok
    assert second.inputs.batch["rows"] == [2, 1]
    assert np.isfinite(node.outputs.dataset.frames().energy).all()
