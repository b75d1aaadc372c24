"""The programs without start-up behave like programs: exit status, output, limits, an end when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
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
    config = "run: []\nbytes: ${int_mul:1,1}\n"
    (tmp_path / "config.yaml").write_text(config)
    command = f"ulimit -v 100000; exec {preloaded_programs}/nequip-train -cn config"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "memory" in done.stderr.lower()


def test_whoever_kills_the_caller_ends_the_program(preloaded_programs: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "config.yaml"  # reading it waits for ever
    os.mkfifo(fifo)
    with subprocess.Popen([preloaded_programs / "nequip-train", "-cn", "config"], cwd=tmp_path) as caller:
        deadline = time.monotonic() + 100
        while not (program := working_in(tmp_path) - {caller.pid}):
            assert time.monotonic() < deadline
            assert caller.poll() is None
            time.sleep(0.1)
        caller.send_signal(signal.SIGKILL)
    while working_in(tmp_path) & program:
        assert time.monotonic() < deadline
        time.sleep(0.1)


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
