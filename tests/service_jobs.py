"""What the tests against real services share: jobs that the daemon runs, and what Slurm and PostgreSQL say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiida import orm
from aiida.cmdline.utils.common import get_workchain_report
from aiida.engine import submit
from faults.campaign import silicon as cells

from aiida_mlip.data.dataset import DatasetData

#: Seconds that a job may take before a test gives up: no statement about speed.
PATIENCE_S = 900
BIN = Path(sys.executable).parent


def silicon(n: int, *, seed: int) -> DatasetData:
    """Rattled two-atom cells; another seed, other frames."""
    return DatasetData.from_frames(cells([seed], n))


def verdi(*arguments: str, profile: str) -> str:
    """Output of a verdi command."""
    command = [str(BIN / "verdi"), "-p", profile, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def psql(statement: str) -> str:
    """What PostgreSQL answers."""
    command = ["psql", "-d", "postgres", "-At", "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wait_until(check, what: str, patience_s: float = PATIENCE_S):
    """Ask until the answer is not false, and return it."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if answer := check():
            return answer
        time.sleep(0.5)
    pytest.fail(f"{what}: not within {patience_s} s\n" + squeue("--all", "--long"))


def finished(*nodes: orm.ProcessNode) -> list[orm.ProcessNode]:
    """The nodes once the daemon has run them to their end."""
    for node in nodes:
        wait_until(lambda node=node: node.is_terminated, f"the end of {node.process_label}<{node.pk}>")
    return list(nodes)


def by_daemon(*builders: Any) -> list[orm.ProcessNode]:
    """Nodes of processes that the daemon has run to their end, side by side."""
    return finished(*[submit(builder) for builder in builders])


def story(node: orm.ProcessNode) -> str:
    """How a process ended and what it has reported, for people."""
    below = [(child.process_label, child.exit_status, child.exception) for child in node.called_descendants]
    return f"{node.process_state} {node.exit_message} {node.exception} {below}\n{get_workchain_report(node, 'REPORT')}"


def jobs(node: orm.ProcessNode) -> list[orm.CalcJobNode]:
    """Jobs below a process, in the order in which they were made."""
    return sorted((job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)), key=lambda job: job.pk)


def squeue(*options: str) -> str:
    """What the queue says."""
    return subprocess.run(["squeue", *options], capture_output=True, text=True, check=False).stdout


def slurm_says(job: orm.CalcJobNode) -> dict[str, str]:
    """What Slurm knows of a job, e.g. ``JobState``, ``Partition``, ``TresPerNode``."""
    text = subprocess.run(
        ["scontrol", "-o", "show", "job", str(job.get_job_id())], capture_output=True, text=True, check=True
    ).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)
