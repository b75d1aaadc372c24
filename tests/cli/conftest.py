"""A machine of one's own: ``aiida-mlip`` and ``verdi`` as a person calls them, in a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent
PSEUDOS = Path("/usr/share/espresso/pseudo")


@dataclass
class Machine:
    """An AiiDA folder, and the commands of a person who uses it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, with the profile ``mine``."""
        environment = {
            **os.environ,
            "AIIDA_PATH": str(self.folder),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **self.environment,
        }
        command = [str(BIN / program), "-p", "mine", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``aiida-mlip setup`` with Debian's pw.x and its LDA silicon."""
        standard = ("--workdir", str(self.folder / "work"), "--pseudos", str(PSEUDOS), "--select", "Si.pz-vbc.UPF")
        return self.call("aiida-mlip", "setup", *standard, *arguments)

    def verdi(self, *arguments: str) -> str:
        """Run verdi; it has to succeed."""
        done = self.call("verdi", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, code: str) -> str:
        """Run a few lines of Python with the profile loaded."""
        return self.verdi("run", str(self._script(code)))

    def _script(self, code: str) -> Path:
        path = self.folder / "script.py"
        path.write_text(code)
        return path

    def doctor(self, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        """Exit status of ``aiida-mlip doctor``, and its findings by subject."""
        done = self.call("aiida-mlip", "doctor", "--json", *arguments)
        try:
            findings = json.loads(done.stdout)["findings"]
        except ValueError:
            pytest.fail(done.stdout + done.stderr)
        by_subject: dict[str, list[dict[str, Any]]] = {}
        for finding in findings:
            by_subject.setdefault(finding["subject"], []).append(finding)
        return done.returncode, by_subject

    def doctor_until(
        self, accept: Callable[[dict[str, Any]], bool], subject: str, *, timeout_s: float
    ) -> dict[str, Any]:
        """Examine the daemon until a finding on ``subject`` is accepted: daemon and broker take seconds to notice."""
        deadline = time.monotonic() + timeout_s
        found: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            found = self.doctor("--only", "daemon")[1].get(subject, [])
            for finding in found:
                if accept(finding):
                    return finding
            time.sleep(1)
        pytest.fail(f"{subject}: not seen within {timeout_s} s; last: {found}")

    def broker_pid(self) -> int:
        """Pid of the embedded broker."""
        (status,) = self.folder.glob(".aiida/broker/*/broker.status")
        return int(json.loads(status.read_text())["pid"])


@pytest.fixture
def bare_machine(tmp_path) -> Machine:
    """Nothing set up yet."""
    (tmp_path / ".aiida").mkdir()
    return Machine(tmp_path)


@pytest.fixture
def machine(bare_machine) -> Machine:
    """After ``aiida-mlip setup``."""
    done = bare_machine.setup()
    assert done.returncode == 0, done.stdout + done.stderr
    return bare_machine


@pytest.fixture
def daemon_machine(machine) -> Iterator[Machine]:
    """With a daemon, whatever the test does to it."""
    machine.verdi("daemon", "start")
    yield machine
    machine.call("verdi", "daemon", "stop")
    shutil.rmtree(machine.folder, ignore_errors=True)
