"""The programs without start-up behave like programs: exit status, output, limits, an end when they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.nequip


def test_they_fail_as_the_installed_ones_do(preloaded_programs: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [preloaded_programs / "nequip-train", "-cn", "nothing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"provider=main, path=file://{tmp_path}" in done.stderr
    done = subprocess.run([preloaded_programs / "nequip-package", "-h"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: nequip-package")


def test_limits_of_the_caller_hold(preloaded_programs: Path, tmp_path: Path) -> None:
    limit = 10**11  # bytes: the kernel's own record of it is read, whatever the process has in its memory already
    with waiting_program(preloaded_programs, tmp_path, f"ulimit -v {limit // 1000}; ") as (caller, program):
        for pid in program:
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (memory,) = (line for line in limits if line.startswith("Max address space"))
            assert memory.split()[3:5] == [str(limit // 1000 * 1024)] * 2
        caller.kill()


def test_whoever_kills_the_caller_ends_the_program(preloaded_programs: Path, tmp_path: Path) -> None:
    with waiting_program(preloaded_programs, tmp_path) as (caller, program):
        caller.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 100
    while working_in(tmp_path) & program:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextlib.contextmanager
def waiting_program(
    programs: Path, folder: Path, before: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], set[int]]]:
    """A training that waits for ever for its input: who called it, and the process that does the work."""
    os.mkfifo(folder / "config.yaml")
    command = f"{before}exec {programs}/nequip-train -cn config"
    with subprocess.Popen(["bash", "-c", command], cwd=folder) as caller:
        deadline = time.monotonic() + 100
        while not (program := working_in(folder) - {caller.pid}):
            assert time.monotonic() < deadline
            assert caller.poll() is None
            time.sleep(0.1)
        yield caller, program


def working_in(folder: Path) -> set[int]:
    """Processes with that working directory."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() == folder.resolve():
                found.add(int(entry.name))
        except OSError:  # gone meanwhile, or another's
            continue
    return found
