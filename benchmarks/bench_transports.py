"""What a job costs beyond itself, by how the cluster is reached: jobs that do nothing, through Slurm and two workers.

Run: ``scripts/with_services.py -- python benchmarks/bench_transports.py [--jobs 20]`` (PostgreSQL, RabbitMQ, Slurm and
SSH of their own, as in the tests). One job after another (how long one takes), then all at once (how many a daemon
moves); for comparison the same without a queue. Prints the table of ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from bench_ten_thousand import daemon, look
from profile_here import profile_on_services

CLUSTERS = {
    "here, no queue": ("core.local", "core.direct"),
    "here, Slurm": ("core.local", "core.slurm"),
    "SSH, Slurm": ("core.ssh_async", "core.slurm"),
}


def nothing(root: Path, label: str, transport: str, scheduler: str) -> Any:
    """Code of a job that adds two numbers."""
    from aiida import orm

    over_ssh = transport == "core.ssh_async"
    computer = orm.Computer(
        label=label,
        hostname="cluster" if over_ssh else "localhost",
        transport_type=transport,
        scheduler_type=scheduler,
        workdir=str(root / "work"),
    )
    computer.set_default_mpiprocs_per_machine(1)
    computer.set_minimum_job_poll_interval(0.2)
    computer.store()
    computer.configure(safe_interval=0, use_login_shell=False, **({"host": "cluster"} if over_ssh else {}))
    return orm.InstalledCode(
        label="add", computer=computer, filepath_executable="/bin/bash", default_calc_job_plugin="core.arithmetic.add"
    ).store()


def run(code: Any, n: int) -> float:
    """Seconds for n jobs at once."""
    from aiida import orm
    from aiida.engine import submit
    from aiida.plugins import CalculationFactory

    start = time.monotonic()
    options = {"resources": {"num_machines": 1}}
    nodes = [
        submit(
            CalculationFactory("core.arithmetic.add"),
            code=code,
            x=orm.Int(1),
            y=orm.Int(1),
            metadata={"options": options},
        )
        for _ in range(n)
    ]
    while not all(node.is_terminated for node in nodes):
        time.sleep(0.05)
    failed = [node.pk for node in nodes if not node.is_finished_ok]
    if failed:
        raise SystemExit(f"failed: {failed}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    n = parser.parse_args().jobs
    with profile_on_services() as root, daemon(2) as client:
        workers = [int(pid) for pid in client.get_worker_info(timeout=60)["info"]]
        print("| | one alone, s | n at once, s/job | CPU of the workers, s/job |")
        print("|---|---|---|---|")
        for label, (transport, scheduler) in CLUSTERS.items():
            code = nothing(root, label, transport, scheduler)
            run(code, 2)  # imports, the first connection
            alone = sorted(run(code, 1) for _ in range(5))[2]
            before = look(workers)[1]
            at_once = run(code, n) / n
            print(f"| {label} | {alone:.2f} | {at_once:.2f} | {(look(workers)[1] - before) / n:.2f} |", flush=True)
        print(f"\nn = {n}, median of 5 for one alone, two workers, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
