"""``aiida-mlip storage`` on jobs that were run: what is shown, what is removed, and what never is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import WorkChain, run_get_node
from aiida.manage.caching import enable_caching
from aiida.plugins import CalculationFactory
from aiida.tools import delete_nodes
from ase.build import bulk
from click.testing import CliRunner
from emt_frames import emt_frames

from aiida_mlip.cli.main import main
from aiida_mlip.data.audit_findings import findings
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.lineage import lineage
from aiida_mlip.data.provenance import audit
from aiida_mlip.data.storage import repository, storage
from aiida_mlip.data.work_directories import REASONS, work_directories
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.label import LabelWorkChain

Add = CalculationFactory("core.arithmetic.add")
WORKCHAINS = Path(sys.modules[LabelWorkChain.__module__].__file__).parent


@pytest.fixture
def bash(localhost):
    """A job of bash: it adds two numbers."""
    return orm.InstalledCode(label="bash", computer=localhost, filepath_executable="/bin/bash").store()


def call(*arguments, answer=None):
    done = CliRunner().invoke(main, ["storage", *map(str, arguments)], input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def clean(*arguments):
    """What ``storage clean --json`` says; the exit code is that of the command."""
    done = call("clean", "--json", *arguments)
    assert done.exit_code in (0, 1), done.output
    return {**json.loads(done.output), "exit_code": done.exit_code}


def add(bash, x=1, y=2, **options):
    """A job; a sum below zero is a failure."""
    inputs = {"x": orm.Int(x), "y": orm.Int(y), "code": bash}
    return run_get_node(Add, metadata={"options": options}, **inputs).node


def folder(job):
    return Path(job.get_remote_workdir())


def kept(process):
    """Path -> why it stays, of the jobs of a process."""
    return {Path(each.path): each.kept for each in work_directories(process.pk).there}


class Caller(WorkChain):
    """Runs a job and, before it ends, lets the test look."""

    look = staticmethod(lambda _: None)

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode)
        spec.input("x", valid_type=orm.Int, default=lambda: orm.Int(1))
        spec.input("folder", valid_type=orm.RemoteData, required=False)
        spec.outline(cls.compute, cls.do_look)

    def compute(self):
        inputs = {"x": self.inputs.x, "y": orm.Int(2).store(), "code": self.inputs.code}
        return self.to_context(job=self.submit(Add, **inputs))

    def do_look(self):
        type(self).look(self.node)


class Training(Caller):
    """Goes on from the folders of its jobs."""

    @classmethod
    def build_process_type(cls):
        return "aiida.workflows:aiida_mlip.nequip_base"


class Labelling(Caller):
    """Does not."""

    @classmethod
    def build_process_type(cls):
        return "aiida.workflows:aiida_mlip.label"


def test_what_is_removed_and_that_provenance_stays(label_code):
    frames = DatasetData.from_frames(emt_frames(3))
    level = orm.Dict({"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}})
    results, labelling = run_get_node(
        LabelWorkChain, dataset=frames, fidelities=level, codes={"ase": label_code}, reuse=orm.Bool(False)
    )
    (job,) = [each for each in labelling.called if isinstance(each, orm.CalcJobNode)]
    dataset = results["dataset"]

    def told():
        traced = lineage(dataset).as_dict()
        return audit(dataset).as_dict(), [asdict(each) for each in findings(dataset)], traced

    before, retrieved = told(), job.outputs.retrieved.list_object_names()
    files = sum(path.stat().st_size for path in folder(job).rglob("*") if path.is_file())
    planned = clean("--workchain", labelling.pk, "--dry-run")
    assert [entry["path"] for entry in planned["can_go"]] == [str(folder(job))]
    assert planned["n_bytes"] >= files > 0
    assert (planned["removed"], planned["dry_run"]) == ([], True)
    assert folder(job).is_dir()
    asked = call("clean", "--workchain", labelling.uuid, answer="n\n")
    assert asked.exit_code == 1
    assert "Remove 1 work directories?" in asked.output
    assert folder(job).is_dir()
    young = clean("--workchain", labelling.pk, "--older-than", 1, "--yes")
    assert (young["removed"], young["stay"]) == ([], {"recent": 1})
    done = call("clean", "--workchain", labelling.pk, answer="y\n")
    assert done.exit_code == 0, done.output
    assert "1 work directories removed" in done.output
    assert not folder(job).exists()
    assert job.outputs.remote_folder.is_cleaned
    assert told() == before
    assert job.outputs.retrieved.list_object_names() == retrieved
    again = clean("--workchain", labelling.pk, "--yes")
    assert (again["can_go"], again["removed"], again["exit_code"]) == ([], [], 0)


def test_a_directory_that_is_gone_already_is_marked(bash):
    job = add(bash)
    shutil.rmtree(folder(job))
    assert clean("--workchain", job.pk, "--yes")["removed"] == [str(folder(job))]
    assert job.outputs.remote_folder.is_cleaned


def test_what_runs_and_what_a_process_may_go_on_from_stays(bash):
    seen = {}
    for process in (Caller, Training, Labelling):
        process.look = staticmethod(lambda node, process=process: seen.update({process: kept(node)}))
        _, node = run_get_node(process, code=bash)
        assert node.is_finished_ok
        (job,) = node.called
        assert seen[process] == {folder(job): "" if process is Labelling else "needed"}, process
        assert kept(node) == {folder(job): ""}
    job = add(bash)
    Caller.look = staticmethod(lambda _: seen.update(used=kept(job), result=clean("--workchain", job.pk, "--yes")))
    run_get_node(Caller, code=bash, folder=job.outputs.remote_folder)
    assert seen["used"] == {folder(job): "needed"}
    assert seen["result"]["stay"] == {"needed": 1}
    inside = orm.RemoteData(str(folder(job) / "out"), computer=job.computer).store()
    Caller.look = staticmethod(lambda _: seen.update(inside=kept(job)))
    run_get_node(Caller, code=bash, folder=inside)
    assert seen["inside"] == {folder(job): "needed"}
    assert folder(job).is_dir()


def test_only_what_goes_on_from_work_directories_is_listed():
    """Workflows that are not in the list must not look into remote folders."""
    mention = {path.stem for path in WORKCHAINS.glob("*.py") if "remote_folder" in path.read_text()}
    assert mention == {"nequip_base"}


def test_failed_jobs_stay_unless_something_made_up_for_them(bash):
    failed = add(bash, x=-9)
    assert failed.exit_status == 410
    assert kept(failed) == {folder(failed): "failed"}
    assert clean("--workchain", failed.pk, "--yes")["removed"] == []
    _, caller = run_get_node(Caller, code=bash, x=orm.Int(-9))
    assert caller.is_finished_ok
    (job,) = caller.called
    assert job.exit_status == 410
    assert kept(caller) == {folder(job): ""}
    assert clean("--workchain", failed.pk, "--failed", "--yes")["removed"] == [str(folder(failed))]
    assert not folder(failed).exists()
    assert folder(job).exists()


def test_a_folder_of_several_jobs(bash):
    first = add(bash, x=31)
    with enable_caching(identifier="aiida.calculations:core.arithmetic.add"):
        second = add(bash, x=31)
    assert second.base.caching.is_created_from_cache
    remotes = [job.outputs.remote_folder for job in (first, second)]
    assert remotes[0].get_remote_path() == remotes[1].get_remote_path()
    seen = {}
    Caller.look = staticmethod(lambda _: seen.update(kept(first)))
    run_get_node(Caller, code=bash, folder=remotes[1])
    assert seen == {folder(first): "needed"}
    assert clean("--workchain", second.pk, "--yes")["removed"] == [str(folder(first))]
    assert all(remote.is_cleaned for remote in remotes)


def stored_job(computer, path, state, **attributes):
    """A job as the database may have it, with its remote folder."""
    job = orm.CalcJobNode(computer=computer, process_type="aiida.calculations:core.arithmetic.add")
    job.set_option("resources", {"num_machines": 1})
    job.base.attributes.set_many({"process_state": state, **attributes})
    job.store()
    remote = orm.RemoteData(str(path(job.uuid)), computer=computer)
    remote.base.links.add_incoming(job, link_type=LinkType.CREATE, link_label="remote_folder")
    remote.store()
    return job


def placed(root):
    return lambda uuid: root / uuid[:2] / uuid[2:4] / uuid[4:]


def test_nothing_but_work_directories_goes(localhost, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    paths = {"a folder of a person": lambda _: precious, "not quite": lambda uuid: placed(tmp_path)(uuid).parent}
    for path in paths.values():
        job = stored_job(localhost, path, "finished", exit_status=0)
        assert list(kept(job).values()) == ["foreign"]
        assert clean("--workchain", job.pk, "--failed", "--yes")["removed"] == []
    job = stored_job(localhost, placed(tmp_path), "finished", exit_status=0)
    link = placed(tmp_path)(job.uuid)
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    done = clean("--workchain", job.pk, "--yes")
    assert list(done["not_removed"]) == [str(link)]
    assert done["exit_code"] == 1
    assert precious.is_dir()
    assert not job.outputs.remote_folder.is_cleaned


def test_a_job_that_is_still_in_the_queue_keeps_its_folder(localhost, tmp_path):
    with subprocess.Popen(["sleep", "600"]) as program:
        job = stored_job(localhost, placed(tmp_path), "killed", job_id=str(program.pid), scheduler_state="running")
        path = placed(tmp_path)(job.uuid)
        path.mkdir(parents=True)
        try:
            done = clean("--workchain", job.pk, "--failed", "--yes")
        finally:
            program.kill()
    assert "scheduler" in done["not_removed"][str(path)]
    assert path.is_dir()
    assert clean("--workchain", job.pk, "--failed", "--yes")["removed"] == [str(path)]
    assert not path.exists()
    alive = stored_job(localhost, placed(tmp_path), "waiting")
    assert list(kept(alive).values()) == ["running"]


def test_a_computer_that_cannot_be_reached(tmp_path):
    label = "elsewhere"
    computer = orm.Computer(
        label=label, hostname=label, transport_type="core.local", scheduler_type="core.direct", workdir=str(tmp_path)
    ).store()
    job = stored_job(computer, placed(tmp_path), "finished", exit_status=0)
    done = clean("--workchain", job.pk, "--yes")
    (why,) = done["not_removed"].values()
    assert "verdi computer configure core.local elsewhere" in why
    assert label in done["problems"]
    assert done["n_bytes"] is None
    assert done["exit_code"] == 1
    assert "could not be asked" in call().output
    assert f"  {label}" in call("--no-sizes").output
    assert "could not be asked" not in call("--no-sizes").output


def test_what_is_stashed_stays_and_is_shown(bash, tmp_path):
    target = tmp_path / "kept"
    stash = {"source_list": ["aiida.*"], "target_base": str(target), "stash_mode": "copy"}
    job = add(bash, x=17, stash=stash)
    (copy,) = target.glob("*/*/*/aiida.out")
    assert copy.read_text().strip() == "19"
    assert clean("--workchain", job.pk, "--yes")["removed"] == [str(folder(job))]
    assert copy.read_text().strip() == "19"
    shown = [each for each in storage().stashed if each.what == "copy"]
    assert sum(each.n for each in shown) >= 1
    assert sum(each.n_bytes for each in shown) > 0
    assert "stashed on purpose" in call().output
    other = add(bash)
    add(bash, x=18, stash={**stash, "target_base": str(folder(other) / "kept")})
    assert kept(other) == {folder(other): "stash"}


def test_files_by_kind_and_those_of_deleted_nodes(bash, tmp_path):
    before = repository()
    path = tmp_path / "some.bin"
    path.write_bytes(tmp_path.name.encode() * 10_000)
    n = path.stat().st_size
    node, same = (orm.SinglefileData(path).store() for _ in range(2))
    dataset = DatasetData.from_frames(emt_frames(4, seed=90)).store()
    job = add(bash, x=23)
    after = repository()

    def grown(name):
        kinds = [{kind.name: kind for kind in each.kinds} for each in (before, after)]
        old = kinds[0].get(name)
        return kinds[1][name].n_bytes - (old.n_bytes if old else 0), kinds[1][name].n_nodes - (
            old.n_nodes if old else 0
        )

    assert grown("others") == (n, 2)
    assert grown("datasets")[1] == 1
    assert grown("datasets")[0] > 0
    assert grown("retrieved files")[1] == 1
    assert job.pk
    assert after.n_loose > before.n_loose
    delete_nodes([node.pk], dry_run=False)
    assert repository().n_unreferenced == after.n_unreferenced  # the other one still has the file
    delete_nodes([same.pk], dry_run=False)
    gone = repository()
    assert gone.n_unreferenced == after.n_unreferenced + 1
    assert gone.unreferenced_bytes == after.unreferenced_bytes + n
    content = json.loads(call("--json").output)
    assert content["repository"]["n_bytes"] == sum(kind["n_bytes"] for kind in content["repository"]["kinds"]) + (
        content["repository"]["unreferenced_bytes"] + content["repository"]["gap_bytes"]
    )
    (gain,) = [each for each in content["can_go"] if "deleted" in each["what"]]
    assert gain["command"].endswith("storage maintain")
    assert dataset.pk
    assert content["database"]["n_processes"] > 0
    assert {each["what"] for each in content["work"]} <= {"", *REASONS}
    assert "datasets" in call("--no-sizes").output


def test_bad_arguments(aiida_profile):
    assert "needs --yes or --dry-run" in call("clean", "--json").output
    assert "no process '999999999'" in call("clean", "--workchain", "999999999").output
    number = orm.Int(3).store()
    assert "not a process" in call("clean", "--workchain", number.pk).output


@pytest.mark.qe
def test_the_charge_density_of_a_label_is_kept(pw_code, pseudo_family, tmp_path):
    level = {"engine": "qe", "protocol": "fast", "pseudo_family": pseudo_family, "ecutwfc_ry": 8, "bundle_size": 1}
    level |= {"occupations": "fixed", "kpoints_distance_inv_ang": 3.0}
    stash = {"source_list": ["out/aiida.save/charge-density.*"], "target_base": str(tmp_path), "stash_mode": "copy"}
    results, labelling = run_get_node(
        LabelWorkChain,
        dataset=DatasetData.from_frames(from_ase([bulk("Si", a=5.4)])),
        fidelities=orm.Dict({"lda": level}),
        codes={"pw": pw_code},
        options=orm.Dict({"qe": {"stash": stash}}),
    )
    assert np.isfinite(results["dataset"].frames().energy).all()
    (job,) = [each for each in labelling.called_descendants if isinstance(each, orm.CalcJobNode)]
    kept_at = Path(job.outputs.remote_stash.target_basepath)
    assert not folder(job).exists(), "labels of single jobs are cleaned by their workchain"
    assert (kept_at / "out" / "aiida.save" / "charge-density.dat").stat().st_size > 1000
