"""Jobs in a real queue, handed over by two daemon workers: labels, trainings, simulations; killed, out of time."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.engine import submit
from ase.build import bulk
from emt_frames import emt_frames
from service_jobs import by_daemon, finished, jobs, silicon, slurm_says, story, verdi, wait_until

from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.bundle_files import frame_output
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.train import TrainWorkChain

pytestmark = [pytest.mark.qe, pytest.mark.daemon, pytest.mark.timeout(1800)]

TRANSPORTS = ("core.local", "core.ssh_async")
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


def label(pw, dataset, *, bundle_size=1, bundle=None, **qe):
    return LabelWorkChain.get_builder_from_protocol(
        {"pw": pw},
        dataset,
        {"lda": TINY | {"bundle_size": bundle_size}},
        options={"qe": {**CPU, "resources": SERIAL, **qe}, **({"bundle": bundle} if bundle else {})},
        reuse=orm.Bool(False),
    )


def test_the_profile_is_on_postgresql_and_rabbitmq_with_two_workers(aiida_profile, workers):
    assert aiida_profile.storage_backend == "core.psql_dos"
    assert aiida_profile.process_control_backend == "core.rabbitmq"
    assert workers.get_numprocesses()["numprocesses"] == 2


def test_labels_one_by_one_and_in_a_bundle(codes, pseudo_family):
    """Every pw.x on two ranks; in the bundle two of them at once. The same numbers, in the partition asked for."""
    dataset = silicon(2, seed=1)
    many = {"resources": FOUR, "side_by_side": 2, "withmpi": True}
    nodes = by_daemon(
        *[label(codes[name]["pw"], dataset, resources=TWO, withmpi=True) for name in TRANSPORTS],
        *[label(codes[name]["pw"], dataset, bundle_size=10, bundle=many) for name in TRANSPORTS],
    )
    assert all(node.is_finished_ok for node in nodes), "\n".join(story(node) for node in nodes)
    assert [len(jobs(node)) for node in nodes] == [2, 2, 1, 1]
    for node, ranks in zip(nodes, [2, 2, 4, 4], strict=True):
        for job in jobs(node):
            said = slurm_says(job)
            assert (said["JobState"], said["Partition"], said["Account"]) == ("COMPLETED", "cpu", "materials")
            assert (said["NumTasks"], said["TimeLimit"]) == (str(ranks), "00:30:00")
    for job in [*jobs(nodes[0]), *jobs(nodes[1])]:
        assert "running on     2 processors" in job.outputs.retrieved.base.repository.get_object_content("aiida.out")
    for job in [*jobs(nodes[2]), *jobs(nodes[3])]:
        assert job.process_class is PwBundleCalculation
        assert "running on     2 processors" in frame_output(job, 1).output
    expected = nodes[0].outputs.dataset.frames()
    for node in nodes[1:]:
        out = node.outputs.dataset.frames()
        np.testing.assert_allclose(out.energy, expected.energy, rtol=0, atol=1e-6)
        np.testing.assert_allclose(out.forces, expected.forces, rtol=0, atol=1e-6)


def training(codes):
    options = {"resources": SERIAL, "withmpi": False}
    return TrainWorkChain.get_builder_from_protocol(
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


@pytest.mark.nequip
def test_trainings_with_a_gpu_asked_for(codes):
    for node in by_daemon(*[training(codes[name]) for name in TRANSPORTS]):
        assert node.is_finished_ok, story(node)
        assert node.outputs.potentials.member_0.species == ["Cu"]
        found = {job.process_type.rpartition(".")[2]: slurm_says(job) for job in jobs(node)}
        assert (found["nequip_train"]["Partition"], found["nequip_train"]["TresPerNode"]) == ("gpu", "gres:gpu:1")
        assert found["evaluate"]["Partition"] == "cpu"


def simulation(codes):
    return ExploreWorkChain.get_builder_from_protocol(
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


def test_simulations_with_a_gpu_asked_for(codes):
    for node in by_daemon(*[simulation(codes[name]) for name in TRANSPORTS]):
        assert node.is_finished_ok, story(node)
        assert len(node.outputs.dataset) == 3
        (job,) = jobs(node)
        assert (slurm_says(job)["Partition"], slurm_says(job)["TresPerNode"]) == ("gpu", "gres:gpu:1")


def script_around_pw(pw, folder, text: str):
    """pw.x with something done before it."""
    path = folder / "pw.sh"
    path.write_text(f'#!/bin/sh\n{text}\nexec {pw.filepath_executable} "$@"\n')
    path.chmod(0o755)
    return orm.InstalledCode(
        label=f"pw-{folder.name}",
        computer=pw.computer,
        filepath_executable=str(path),
        default_calc_job_plugin="quantumespresso.pw",
    ).store()


@pytest.mark.parametrize(("transport", "bundle_size", "n_jobs"), [("core.local", 10, 1), ("core.ssh_async", 1, 2)])
def test_a_kill_takes_the_jobs_out_of_the_queue(
    aiida_profile, codes, pseudo_family, tmp_path, transport, bundle_size, n_jobs
):
    slow = script_around_pw(codes[transport]["pw"], tmp_path, "sleep 1000")
    node = submit(label(slow, silicon(2, seed=2), bundle_size=bundle_size))

    def running():
        found = [job for job in jobs(node) if job.get_job_id() and slurm_says(job)["JobState"] == "RUNNING"]
        return found if len(found) == n_jobs else None

    killed = wait_until(running, "running jobs")
    verdi("process", "kill", "--timeout", "60", str(node.pk), profile=aiida_profile.name)
    finished(node, *killed)
    assert node.is_killed
    assert all(job.is_killed for job in killed)
    wait_until(lambda: {slurm_says(job)["JobState"] for job in killed} == {"CANCELLED"}, "cancelled by Slurm")


@pytest.fixture(scope="module", autouse=True)
def hanging_label(codes, pseudo_family, tmp_path_factory):
    """A bundle whose second frame takes far longer than its job may; it waits for Slurm's clock beside the tests."""
    folder = tmp_path_factory.mktemp("hanging")
    hang = f'case "$PWD" in */work/00001) mkdir "{folder}/hung" && sleep 1000 ;; esac'
    slow = script_around_pw(codes["core.ssh_async"]["pw"], folder, hang)
    return submit(label(slow, silicon(3, seed=3), bundle_size=10, max_wallclock_seconds=60))


def test_walltime_keeps_what_has_ended_and_goes_on(hanging_label):
    """Slurm ends a bundle in its second frame: the first is kept, the others go into the next job."""
    (node,) = finished(hanging_label)
    assert node.is_finished_ok, story(node)
    first, second = jobs(node)
    assert slurm_says(first)["JobState"] == "TIMEOUT"
    # AiiDA's own status of a job out of walltime where it sees that state in the queue, the bundle's where not
    assert first.exit_status in {120, PwBundleCalculation.exit_codes.ERROR_INTERRUPTED.status}
    assert [failure["class"] for failure in first.outputs.report["failures"]] == ["walltime", "walltime"]
    assert "DUE TO TIME LIMIT" in first.outputs.report["failures"][0]["message"]
    assert np.isfinite(first.outputs.dataset.frames().energy).tolist() == [True, False, False]
    assert second.is_finished_ok
    assert second.inputs.batch["rows"] == [2, 1]
    assert np.isfinite(node.outputs.dataset.frames().energy).all()
