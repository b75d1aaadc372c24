"""A Slurm cluster of one node and two partitions, ``cpu`` and ``gpu``, with a munge daemon of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.process import free_ports, server, succeeds

#: Processors and memory (MB) that the node claims whatever the machine has: a few small jobs fit everywhere.
CPUS, MEMORY = 16, 16000


@contextmanager
def slurm(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd; the GPU of the partition ``gpu`` is /dev/null.

    :returns: ``SLURM_CONF``, with which sbatch, squeue and scancel find the cluster.
    """
    path = {"PATH": f"{env.get('PATH', '')}:/usr/sbin:/sbin"}
    with _munge(folder / "munge", {**env, **path}) as secret:
        configuration = _configure(folder, secret)
        found = {**env, **path, "SLURM_CONF": str(configuration)}
        with (
            _daemon("slurmctld", folder, configuration, found, ready=["scontrol", "ping"]),
            _daemon("slurmd", folder, configuration, found, ready=["sh", "-c", "sinfo -h -o %t | grep -qw idle"]),
        ):
            try:
                yield {"SLURM_CONF": str(configuration)}
            finally:
                user = pwd.getpwuid(os.geteuid()).pw_name
                subprocess.run(["scancel", "-u", user], env=found, capture_output=True, timeout=60, check=False)


@contextmanager
def _munge(folder: Path, env: Mapping[str, str]) -> Iterator[Path]:
    folder.mkdir(mode=0o711)
    key, secret = folder / "key", folder / "socket"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    program = shutil.which("munged", path=env["PATH"]) or "munged"
    # --force: a temporary folder is writable by all; --foreground: a child, not a daemon
    command = [program, "--foreground", "--force", f"--key-file={key}", f"--socket={secret}"]
    files = [f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--num-threads=2"]
    ready = ["munge", f"--socket={secret}", "-n"]
    with server([*command, *files], log=folder / "output", env=env, ready=lambda: succeeds(ready, env)):
        yield secret


@contextmanager
def _daemon(
    name: str, folder: Path, configuration: Path, env: Mapping[str, str], *, ready: list[str]
) -> Iterator[None]:
    program = shutil.which(name, path=env["PATH"]) or name
    command = [program, "-D", "-f", str(configuration)]
    with server(command, log=folder / f"{name}.log", env=env, ready=lambda: succeeds(ready, env)):
        yield


def _configure(folder: Path, secret: Path) -> Path:
    user = pwd.getpwuid(os.geteuid()).pw_name
    host = socket.gethostname().split(".")[0]
    control, compute = free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n", encoding="ascii")
    configuration = folder / "slurm.conf"
    configuration.write_text(
        f"""\
ClusterName=mlip
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={compute}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={secret}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=300
SlurmdTimeout=0
InactiveLimit=0
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0
DefMemPerCPU=100
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY} Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=NO
PartitionName=gpu Nodes={host} MaxTime=60 State=UP OverSubscribe=NO
""",
        encoding="ascii",
    )
    return configuration
