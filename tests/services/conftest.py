"""Fixtures of the tests against real services, which ``scripts/with_services.py`` starts (``make test-services``).

A profile on PostgreSQL and RabbitMQ in place of the one that the other tests have, a daemon with two workers, and this
machine as a Slurm cluster, reached directly or through SSH. Without the services nothing here is collected.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import uuid
import warnings
from pathlib import Path

import pytest
from aiida import orm
from aiida.engine.daemon.client import get_daemon_client
from aiida.manage import get_manager
from service_jobs import psql

from aiida_mlip.cli.installation import ensure_pseudo_family

BIN = Path(sys.executable).parent
MPIRUN = "/usr/bin/mpirun.openmpi"

collect_ignore_glob = [] if "MLIP_SERVICES" in os.environ else ["test_*.py"]


def pytest_configure(config):
    """AiiDA leaves connections to collect as garbage, of which PostgreSQL's driver complains."""
    if not collect_ignore_glob:
        config.addinivalue_line("filterwarnings", "ignore:<psycopg.Connection object:ResourceWarning")


@pytest.fixture(scope="session", autouse=True)
def aiida_profile(aiida_config, aiida_profile_factory, tmp_path_factory):
    """Temporary profile on PostgreSQL and RabbitMQ."""
    name = f"mlip_{uuid.uuid4().hex[:8]}"
    psql(f"CREATE DATABASE {name}")
    storage = {
        "database_engine": "postgresql_psycopg",
        "database_hostname": os.environ["PGHOST"],
        "database_port": int(os.environ["PGPORT"]),
        "database_username": os.environ["PGUSER"],
        "database_password": os.environ["PGPASSWORD"],
        "database_name": name,
        "repository_uri": tmp_path_factory.mktemp("repository").as_uri(),
    }
    broker = {
        "broker_protocol": "amqp",
        "broker_username": "guest",
        "broker_password": "guest",
        "broker_host": "127.0.0.1",
        "broker_port": int(os.environ["AMQP_PORT"]),
        "broker_virtual_host": "",
    }
    with aiida_profile_factory(
        aiida_config,
        storage_backend="core.psql_dos",
        storage_config=storage,
        broker_backend="core.rabbitmq",
        broker_config=broker,
    ) as profile:
        profile.set_option("daemon.timeout", 120)
        # RabbitMQ 3.8.15 and later: the timeout AiiDA warns of is off, see scripts/services/rabbitmq.py
        profile.set_option("warnings.rabbitmq_version", False)
        aiida_config.update_profile(profile)
        aiida_config.store()
        yield profile
    get_manager().reset_profile_storage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def workers(aiida_profile):
    """Client of a daemon with two workers."""
    client = get_daemon_client()
    client.start_daemon(number_workers=2, timeout=120)
    yield client
    client.stop_daemon(wait=True, timeout=120)


def slurm_computer(label: str, transport: str, workdir: Path) -> orm.Computer:
    """The Slurm cluster as a computer of AiiDA, polled every second."""
    computer = orm.Computer(
        label=label,
        hostname="cluster" if transport == "core.ssh_async" else "localhost",
        transport_type=transport,
        scheduler_type="core.slurm",
        workdir=str(workdir),
    )
    computer.set_mpirun_command([MPIRUN, "-np", "{tot_num_mpiprocs}"])
    computer.set_default_mpiprocs_per_machine(1)
    computer.set_minimum_job_poll_interval(1)
    computer.set_prepend_text(
        "export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
        "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none"
    )
    computer.store()
    options = {"host": "cluster"} if transport == "core.ssh_async" else {}
    computer.configure(safe_interval=0, use_login_shell=False, **options)
    return computer


@pytest.fixture(scope="session")
def clusters(workers, tmp_path_factory) -> dict[str, orm.Computer]:
    """The cluster, directly and through SSH."""
    transports = ["core.local", "core.ssh_async"]
    return {
        name: slurm_computer(name.removeprefix("core."), name, tmp_path_factory.mktemp("work")) for name in transports
    }


@pytest.fixture(scope="session")
def codes(clusters) -> dict[str, dict[str, orm.InstalledCode]]:
    """Codes on the cluster: by transport, by what they do."""
    programs = {
        "pw": (shutil.which("pw.x"), "quantumespresso.pw"),
        "train": (BIN / "nequip-train", "aiida_mlip.nequip_train"),
        "evaluate": (BIN / "aiida-mlip-evaluate", "aiida_mlip.evaluate"),
        "explore": (BIN / "aiida-mlip-explore", "aiida_mlip.explore"),
    }
    return {
        transport: {
            name: orm.InstalledCode(
                label=name, computer=computer, filepath_executable=str(path), default_calc_job_plugin=plugin
            ).store()
            for name, (path, plugin) in programs.items()
        }
        for transport, computer in clusters.items()
    }


@pytest.fixture(scope="session")
def pseudo_family(aiida_profile) -> str:
    """Label of a pseudopotential family with Debian's LDA silicon."""
    ensure_pseudo_family("debian-lda", {"Si": Path("/usr/share/espresso/pseudo/Si.pz-vbc.UPF")})
    return "debian-lda"
