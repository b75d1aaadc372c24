"""A profile of its own with a daemon, as `aiida-mlip setup` makes it, and the commands of a person who uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PROFILE = "faults"
FAMILY = "faults"
PSEUDOS = Path("/usr/share/espresso/pseudo")
#: Stands before `ps`, by which AiiDA's direct scheduler knows its jobs: it forgets some, knows none, or talks nonsense.
PS = """#!/bin/bash
[ -e '{folder}/nonsense' ] && echo "try again later" && exit 0
[ -e '{folder}/knows-nothing' ] && exit 0
if [ -s '{folder}/lost' ]; then
    {ps} "$@" | grep -v -E "^ *($(paste -s -d '|' '{folder}/lost')) "
    exit 0
fi
exec {ps} "$@"
"""


class Place:
    """Folder, profile, daemon, codes."""

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        self.folder = folder
        self._n_codes = 0
        (folder / ".aiida").mkdir(parents=True)
        os.environ["AIIDA_PATH"] = str(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        shim = folder / "bin" / "ps"
        shim.parent.mkdir()
        shim.write_text(PS.format(folder=folder, ps=shutil.which("ps")))
        shim.chmod(0o755)
        os.environ["PATH"] = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
        given = ["--programs", str(programs)] if programs else []
        self.call("aiida-mlip", "setup", "--workdir", str(folder / "work"), "--pseudos", str(PSEUDOS),
                  "--select", "Si.pz-vbc.UPF", "--family", FAMILY, *given)  # fmt: skip
        from aiida import load_profile, orm
        from aiida.manage import get_config

        load_profile(PROFILE)
        for option, value in (("transport.task_retry_initial_interval", 1), ("transport.task_maximum_attempts", 4)):
            get_config().set_option(option, value, scope=PROFILE)
        get_config().store()
        computer = orm.load_computer("localhost")
        computer.set_minimum_job_poll_interval(1)
        computer.configure(safe_interval=0, use_login_shell=False)

    def call(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run a program of this environment with the profile; what it printed."""
        command = [str(BIN / program), "-p", PROFILE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def mend(self) -> list[str]:
        """`aiida-mlip recover --yes`; subjects of what it found, which is what `aiida-mlip doctor` finds."""
        said = self.call("aiida-mlip", "recover", "--yes")
        print("    " + "\n    ".join(said.splitlines()), flush=True)
        lines = [line.removeprefix("found ").strip() for line in said.splitlines() if line.startswith("found ")]
        return [line.partition(":")[0] for line in lines]

    def recover(self, *pks: int) -> list[int]:
        """`aiida-mlip recover --yes PK...`; pks of what began again."""
        said = self.call("aiida-mlip", "recover", "--yes", *map(str, pks))
        return [int(line.split("again:")[1].split()[0]) for line in said.splitlines() if "again:" in line]

    def code(self, program: Path, append_text: str = "") -> Any:
        """A code for a program in the place of pw.x."""
        from aiida import orm

        self._n_codes += 1
        return orm.InstalledCode(
            label=f"pw-{self._n_codes}", computer=orm.load_computer("localhost"), filepath_executable=str(program),
            default_calc_job_plugin="quantumespresso.pw", with_mpi=False, append_text=append_text,
        ).store()  # fmt: skip

    # -- daemon ------------------------------------------------------------------------------------------------

    def client(self) -> Any:
        from aiida.engine.daemon.client import get_daemon_client

        return get_daemon_client()

    def start_daemon(self) -> None:
        self.client().start_daemon()
        self.await_listening()

    def stop_daemon(self) -> None:
        from aiida.engine.daemon.client import DaemonException

        try:
            self.client().stop_daemon(wait=True)
        except DaemonException as error:
            print(f"the daemon had stopped: {error}", file=sys.stderr)

    def await_listening(self, timeout_s: float = 60) -> None:
        """Wait until the workers listen to the broker."""
        from aiida_mlip.cli.checks.daemon import read_daemon_state

        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            state = read_daemon_state()
            if state.workers and int(state.status.get("task_subscribers", 0)) >= len(state.workers):
                return
            time.sleep(0.5)
        raise TimeoutError("the workers do not listen")

    def worker_pids(self) -> list[int]:
        return [int(pid) for pid in self.client().get_worker_info(timeout=60).get("info", {})]

    def broker_pid(self, *, timeout_s: float = 60) -> int:
        """Of the broker that runs: one that was begun again says so a moment later."""
        end = time.monotonic() + timeout_s
        while True:
            (status,) = self.folder.glob(".aiida/broker/*/broker.status")
            pid = int(json.loads(status.read_text())["pid"])
            if Path(f"/proc/{pid}").exists():
                return pid
            if time.monotonic() > end:
                raise TimeoutError(f"no broker: the last one was {pid}")
            time.sleep(0.5)

    def end_orphans(self) -> None:
        """End the `orted` that OpenMPI starts beside a serial pw.x: it spins for ever once that was killed."""
        import psutil

        for process in psutil.process_iter():
            try:
                if process.name() == "orted" and process.cwd().startswith(str(self.folder)):
                    process.kill()
            except psutil.Error:
                continue

    def close(self) -> None:
        """Stop the daemon and remove everything."""
        from aiida.manage import get_manager

        from aiida_mlip.cli.recover import end_leftovers

        self.stop_daemon()
        self.end_orphans()
        end_leftovers(get_manager().get_profile())
        shutil.rmtree(self.folder, ignore_errors=True)
