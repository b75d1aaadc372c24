"""``aiida-mlip doctor``: break something for real, and it says so, with the command that mends it."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.cli.checks import Finding, perform
from aiida_mlip.cli.mpi import PwBanner, read_rank_count
from aiida_mlip.data.task_queue import read_tasks

#: What the launcher of another MPI does to an OpenMPI pw.x: N serial copies, exit status of the last.
WRONG_LAUNCHER = """#!/bin/bash
[ "$1" = --version ] && echo "HYDRA build details:" && exit 0
[ "$1" = -np ] && copies=$2 && shift 2
for _ in $(seq "$copies"); do env -i PATH="$PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$@" & done
wait
"""

ADD = """
from aiida import orm
from aiida.engine import submit
from aiida.plugins import WorkflowFactory
bash = orm.InstalledCode(label='bash', computer=orm.load_computer('localhost'), filepath_executable='/bin/bash',
                         default_calc_job_plugin='core.arithmetic.add', with_mpi=False).store()
chain = WorkflowFactory('core.arithmetic.multiply_add')
print(submit(chain, x=orm.Int(1), y=orm.Int(2), z=orm.Int(3), code=bash).pk)
"""


@pytest.mark.slow
@pytest.mark.qe
def test_a_healthy_installation_has_nothing_to_fix(machine):
    code, found = machine.doctor()
    assert code == 0, found
    assert found["database"][0]["message"] == "SQLite, WAL journal"
    assert "runs on 2 ranks with /usr/bin/mpirun.openmpi" in found["pw.x pw@localhost"][0]["message"]
    assert "Si" in found["pseudo family"][0]["message"]
    assert found["daemon"][0]["state"] == "note"
    assert found["daemon"][0]["cure"] == "verdi daemon start"
    assert {finding["state"] for findings in found.values() for finding in findings} == {"ok", "note"}


@pytest.mark.slow
@pytest.mark.qe
def test_what_is_broken_is_found_and_the_cure_it_names_mends_it(machine, tmp_path):
    launcher = tmp_path / "mpirun"
    launcher.write_text(WRONG_LAUNCHER)
    launcher.chmod(0o755)
    gone = tmp_path / "gone"
    gone.write_text("#!/bin/sh\n")
    (database,) = machine.folder.glob(".aiida/repository/*/database.sqlite")
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA journal_mode=delete").fetchone()[0] == "delete"
    connection.close()
    machine.shell(
        "from aiida import orm\n"
        "computer = orm.load_computer('localhost')\n"
        f"computer.set_mpirun_command([{str(launcher)!r}, '-np', '{{tot_num_mpiprocs}}'])\n"
        f"orm.InstalledCode(label='gone', computer=computer, filepath_executable={str(gone)!r}).store()\n"
        "orm.Computer(label='new', hostname='localhost', transport_type='core.local',\n"
        "             scheduler_type='core.direct', workdir='/tmp').store()\n"
        "code = orm.load_code('nequip-train@localhost')\n"
        "code.is_hidden = True\n"
        "family = orm.load_group('mlip')\n"
        "family.clear()\n"
    )
    code, found = machine.doctor()
    assert code == 1
    wrong = {subject: finding for subject, (finding, *_) in found.items() if finding["state"] == "fix"}
    assert "journal mode is `delete`" in wrong["database"]["message"]
    assert "got 2 copies of 1 rank" in wrong["pw.x pw@localhost"]["message"]
    assert wrong["pw.x pw@localhost"]["cure"] == "aiida-mlip setup --mpirun /usr/bin/mpirun.openmpi"
    assert str(gone) in wrong["code gone@localhost"]["message"]
    assert wrong["computer new"]["cure"] == "verdi computer configure core.local new"
    assert "aiida_mlip.nequip_train" in wrong["code nequip-train"]["message"]
    assert "it is empty" in wrong["pseudo family"]["message"]

    done = machine.call("aiida-mlip", "setup", "--mpirun", "/usr/bin/mpirun.openmpi")
    assert done.returncode == 0, done.stdout + done.stderr
    _, after = machine.doctor()
    assert after["database"][0]["state"] == "ok"
    assert after["pw.x pw@localhost"][0]["state"] == "ok"


@pytest.mark.slow
def test_without_a_profile_it_says_which_command_makes_one(bare_machine):
    code, found = bare_machine.doctor()
    assert code == 1
    assert found["profile"][0]["cure"] == "aiida-mlip -p mine setup"
    assert "computer localhost" not in found


@pytest.mark.slow
def test_the_namesake_and_a_gpu_that_torch_cannot_use(bare_machine, tmp_path):
    site = tmp_path / "site" / "aiida_mlip-1.0.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: aiida-mlip\nVersion: 1.0.0\n")
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho NVIDIA Test\n")
    driver.chmod(0o755)
    bare_machine.environment = {
        "PYTHONPATH": str(site.parent),
        "PATH": f"{driver.parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    code, found = bare_machine.doctor("--only", "packages", "--only", "training")
    assert code == 1
    assert "pip uninstall aiida-mlip" in found["packages"][0]["cure"]
    assert found["gpu"][0]["state"] == "fix"
    assert "NVIDIA Test" in found["gpu"][0]["message"]


@pytest.mark.slow
def test_a_machine_without_ps(machine, tmp_path):
    """A minimal Debian has none, and AiiDA's direct scheduler then takes every running job for finished."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "mkdir", "whoami"):
        (programs / name).symlink_to(Path("/usr/bin", name))
    assert machine.doctor("--only", "computers")[0] == 0
    machine.environment = {"PATH": str(programs)}
    code, found = machine.doctor("--only", "computers")
    assert code == 1
    assert found["computer localhost"][0]["cure"] == "apt-get install procps"


@pytest.mark.slow
@pytest.mark.daemon
def test_a_broker_that_came_back_alone_is_seen_and_a_restart_cures_it(daemon_machine):
    machine = daemon_machine
    machine.doctor_until(lambda finding: finding["state"] == "ok", "broker", timeout_s=60)
    os.kill(machine.broker_pid(), signal.SIGKILL)
    finding = machine.doctor_until(lambda finding: finding["state"] == "fix", "broker", timeout_s=60)
    assert finding["cure"] == "aiida-mlip recover"
    done = machine.call("aiida-mlip", "recover", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "they listen to the broker" in done.stdout
    machine.doctor_until(lambda finding: finding["state"] == "ok", "broker", timeout_s=60)


@pytest.mark.slow
@pytest.mark.daemon
def test_slots_that_parents_hold_while_their_children_wait(machine):
    machine.verdi("config", "set", "daemon.worker_process_slots", "1")
    machine.verdi("daemon", "start")
    try:
        machine.doctor_until(lambda finding: finding["state"] == "ok", "broker", timeout_s=60)
        pk = machine.shell(ADD).split()[-1]
        finding = machine.doctor_until(lambda finding: finding["state"] == "fix", "worker slots", timeout_s=60)
        assert "1 of 1 taken, 1 process(es) wait" in finding["message"]
        assert finding["cure"] == "aiida-mlip recover"
        done = machine.call("aiida-mlip", "recover", "--yes")
        assert "more worker(s)" in done.stdout, done.stdout + done.stderr
        deadline = time.monotonic() + 60
        while "Finished [0]" not in machine.verdi("process", "show", pk) and time.monotonic() < deadline:
            time.sleep(1)
        assert "Finished [0]" in machine.verdi("process", "show", pk)
    finally:
        machine.call("verdi", "daemon", "stop")


@pytest.mark.slow
@pytest.mark.daemon
def test_no_worker_then_no_daemon_then_a_process_that_nobody_runs(daemon_machine):
    machine = daemon_machine
    machine.doctor_until(lambda finding: finding["state"] == "ok", "broker", timeout_s=60)
    machine.verdi("daemon", "decr", "1")
    none = machine.doctor_until(lambda finding: finding["state"] == "fix", "daemon", timeout_s=60)
    assert "none of its workers is alive" in none["message"]
    pk = machine.shell(ADD).split()[-1]
    machine.verdi("daemon", "stop")
    stopped = machine.doctor_until(lambda finding: finding["state"] == "fix", "daemon", timeout_s=60)
    assert (stopped["message"], stopped["cure"]) == ("stopped, and 1 process(es) wait for it", "aiida-mlip recover")

    # A wedge leaves a process that is not finished, and in no queue.
    (task,) = machine.folder.glob(".aiida/broker/*/storage/tasks/*/*.json")
    task.unlink()
    machine.verdi("daemon", "start")
    stranded = machine.doctor_until(lambda finding: finding["state"] == "fix", "processes", timeout_s=60)
    assert f"pk {pk}" in stranded["message"]
    assert stranded["cure"] == "aiida-mlip recover"
    done = machine.call("aiida-mlip", "recover", "--yes")
    assert "1 process(es) that nobody ran put back into the queue" in done.stdout, done.stdout + done.stderr
    machine.doctor_until(lambda finding: finding["state"] == "ok", "processes", timeout_s=90)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=6), st.booleans())
def test_rank_counts_are_those_of_the_banners(ranks, threads):
    kind = "(MPI & OpenMP)" if threads else "(MPI)"
    cores = "processor cores" if threads else "processors"
    banner = "\n     Program PWSCF v.7.2 starts on 21Nov2026\n     Parallel version {}, running on  {:5d} {}\n"
    output = "".join(banner.format(kind, count, cores) for count in ranks)
    assert read_rank_count(output) == PwBanner("7.2", tuple(ranks))


def test_serial_copies_count_one_each():
    output = "Program PWSCF v.6.7MaX starts\n     Serial version\n" * 3
    assert read_rank_count(output) == PwBanner("6.7MaX", (1, 1, 1))
    assert read_rank_count("bash: pw.x: command not found") is None


@pytest.mark.parametrize(("version", "release"), [("6.7MaX", (6, 7)), ("7.3.1", (7, 3)), ("develop", (0, 0))])
def test_release(version, release):
    assert PwBanner(version, (1,)).release == release


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on():
    def breaks():
        yield Finding("first", "ok", "fine")
        raise OSError("the disk is on fire")

    found = list(perform({"storage": breaks, "other": lambda: iter([Finding("other", "ok", "fine")])}))
    assert [(finding.subject, finding.state) for finding in found] == [
        ("first", "ok"),
        ("storage", "fix"),
        ("other", "ok"),
    ]
    assert "OSError: the disk is on fire" in found[1].message


def test_reading_the_queue_moves_nothing(tmp_path):
    for folder, name, text in (
        ("pending", "1", '{"body": {"args": {"pid": 7}}}'),
        ("processing", "2", '{"body": {"args": {"pid": 8}}}'),
        ("processing", "3", "half a mess"),
        ("pending", "4", '{"body": {"task": "other"}}'),
    ):
        path = Path(tmp_path, folder, f"{name}.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert sorted(read_tasks(tmp_path)) == [7, 8]
    assert len(list(tmp_path.glob("processing/*.json"))) == 2
