"""A throw-away AiiDA profile with this machine as its computer, for benchmarks that run real jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


@contextmanager
def temporary_profile() -> Iterator[Path]:
    """Own AIIDA_PATH with a fresh `verdi presto` profile, loaded; everything is removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="aiida-mlip-bench-"))
    (root / ".aiida").mkdir()
    os.environ["AIIDA_PATH"] = str(root)
    try:
        command = [str(BIN / "verdi"), "presto", "--profile-name", "bench"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "AIIDA_PATH": str(root)})
        from aiida import load_profile

        load_profile("bench")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def profile_on_services() -> Iterator[Path]:
    """The same on the PostgreSQL and RabbitMQ that ``scripts/with_services.py`` has started."""
    root = Path(tempfile.mkdtemp(prefix="aiida-mlip-bench-"))
    (root / ".aiida").mkdir()
    os.environ["AIIDA_PATH"] = str(root)
    database = root.name.replace("-", "_").lower()
    storage = {
        "hostname": os.environ["PGHOST"],
        "port": os.environ["PGPORT"],
        "username": os.environ["PGUSER"],
        "password": os.environ["PGPASSWORD"],
        "name": database,
    }
    person = ["--email=a@b.org", "--first-name=A", "--last-name=B", "--institution=C", "--broker=none"]
    setup = [f"--database-{key}={value}" for key, value in storage.items()] + [f"--repository-uri=file://{root}/files"]
    verdi = str(BIN / "verdi")
    broker = ["core.rabbitmq", "-f", "-n", "--broker-host=127.0.0.1", f"--broker-port={os.environ['AMQP_PORT']}"]
    try:
        for command in (
            ["psql", "-d", "postgres", "-c", f"CREATE DATABASE {database}"],
            [verdi, "profile", "setup", "core.psql_dos", "-n", "--profile-name=bench", *person, *setup],
            [verdi, "profile", "configure-broker", *broker, "bench"],
            [verdi, "config", "set", "warnings.rabbitmq_version", "false"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        from aiida import load_profile

        load_profile("bench")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def kept_profile(root: Path) -> Iterator[Path]:
    """The profile in a folder, made on first use, loaded; it stays, for what is in it need not be computed again."""
    fresh = not (root / ".aiida" / "config.json").exists()
    (root / ".aiida").mkdir(parents=True, exist_ok=True)
    os.environ["AIIDA_PATH"] = str(root)
    if fresh:
        command = [str(BIN / "verdi"), "presto", "--profile-name", "bench"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "AIIDA_PATH": str(root)})
    from aiida import load_profile

    load_profile("bench")
    yield root


#: Programs of this environment: console script, and calculation that runs it.
PROGRAMS = {
    "train": ("nequip-train", "nequip_train"),
    "evaluate": ("aiida-mlip-evaluate", "evaluate"),
    "ase": ("aiida-mlip-label", "ase_label"),
}


def codes(root: Path, *, threads: int, names: tuple[str, ...] = ("train", "evaluate")) -> dict[str, Any]:
    """Programs of this environment on a computer without login shell, polled every second."""
    from aiida import orm

    computer = orm.Computer(
        label="here",
        hostname="localhost",
        transport_type="core.local",
        scheduler_type="core.direct",
        workdir=str(root / "work"),
    )
    computer.set_default_mpiprocs_per_machine(1)
    computer.set_minimum_job_poll_interval(1)
    computer.set_prepend_text(f"export OMP_NUM_THREADS={threads}")
    computer.store()
    computer.configure(safe_interval=0, use_login_shell=False)
    return {
        name: orm.InstalledCode(
            label=program,
            computer=computer,
            filepath_executable=str(BIN / program),
            default_calc_job_plugin=f"aiida_mlip.{plugin}",
            with_mpi=False,
        ).store()
        for name, (program, plugin) in PROGRAMS.items()
        if name in names
    }
