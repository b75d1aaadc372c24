"""Whatever ends the tests, the services end with them, and nothing that was started with them is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from services.process import marked, sweep  # noqa: E402 - of the folder above

pytestmark = pytest.mark.timeout(900)


def started(command: str) -> tuple[subprocess.Popen, Path]:
    """PostgreSQL and Slurm, with a command that says where they are."""
    program = [sys.executable, SCRIPTS / "with_services.py", "--only", "postgresql,slurm", "--"]
    shell = ["sh", "-c", f"echo in $MLIP_SERVICES; {command}"]
    process = subprocess.Popen([*program, *shell], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("in "):
            return process, Path(line.removeprefix("in ").strip())
    pytest.fail(f"the services did not start: exit status {process.wait()}")


@pytest.mark.parametrize(
    ("command", "sent", "status"),
    [
        ("sbatch -o /dev/null --wrap 'sleep 1000' && exit 3", None, 3),
        ("exec sleep 1000", signal.SIGINT, 130),
        ("setsid sleep 1000 & exec sleep 1000", signal.SIGTERM, 130),
    ],
    ids=["a test fails", "interrupted", "terminated"],
)
def test_nothing_is_left(command, sent, status):
    process, folder = started(command)
    if sent is not None:
        assert len(marked(folder)) > 4
        os.kill(process.pid, sent)
    with process:
        process.stdout.read()
    assert process.returncode == status
    assert marked(folder) == []
    assert not folder.exists()


def test_servers_do_not_outlive_the_program_that_started_them():
    """Killed without a chance to clean up: servers end with it; the command, which it only waits for, does not."""
    process, folder = started("exec sleep 1000")
    process.kill()
    with process:
        process.stdout.close()
    for _ in range(600):
        names = {comm.read_text().strip() for pid in marked(folder) if (comm := Path(f"/proc/{pid}/comm")).exists()}
        if not names & {"postgres", "slurmctld", "slurmd", "munged"}:
            break
        time.sleep(0.5)
    assert names == {"sleep"}
    sweep(folder)
    shutil.rmtree(folder)
