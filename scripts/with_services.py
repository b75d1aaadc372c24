#!/usr/bin/env python3
"""Run a command with PostgreSQL, RabbitMQ, a Slurm cluster and an SSH server of its own, which end with it.

    scripts/with_services.py [--only postgresql,rabbitmq] -- COMMAND ...

They live in a temporary folder, on free ports of the loopback interface; services of the machine are not touched. The
command finds them through its environment: PGHOST, PGPORT, PGUSER, PGPASSWORD; AMQP_PORT; SLURM_CONF; HOME, with an
``~/.ssh/config`` that knows the host ``cluster``. Whatever ends the command or this program, nothing is left running.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from services.postgresql import postgresql
from services.process import MARK, sweep
from services.rabbitmq import rabbitmq
from services.slurm import slurm
from services.sshd import sshd

#: In this order: a session of the SSH server knows the Slurm cluster.
SERVICES = {"postgresql": postgresql, "rabbitmq": rabbitmq, "slurm": slurm, "sshd": sshd}


def main() -> int:
    """Start, run, stop; exit status of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(SERVICES), help="services, separated by commas; default: %(default)s"
    )
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(SERVICES):
        parser.error(f"unknown services {sorted(unknown)}; there are {', '.join(SERVICES)}")
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also where the shell has it ignore the first
        signal.signal(each, signal.default_int_handler)
    # short: the path of a socket has at most 107 characters
    folder = Path(tempfile.mkdtemp(prefix="mlip-services-", dir="/tmp"))
    folder.chmod(0o711)
    env = {**os.environ, MARK: str(folder)}
    try:
        with ExitStack() as stack:
            for name, start in SERVICES.items():
                if name in chosen:
                    (folder / name).mkdir(mode=0o711)
                    env |= stack.enter_context(start(folder / name, env))
            return run(arguments.command, env)
    except KeyboardInterrupt:
        print("interrupted: the services are stopped", flush=True)
        return 130
    finally:
        for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)  # what follows is short
        if killed := sweep(folder):
            print(f"{len(killed)} processes were left and are killed", flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str], env: dict[str, str]) -> int:
    """Run the command; interrupted, it has a minute to end."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        print(
            f"{Path(command[0]).name} ended with {process.poll()} after {time.monotonic() - started:.0f} s", flush=True
        )


if __name__ == "__main__":
    sys.exit(main())
