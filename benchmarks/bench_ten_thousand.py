"""Ten thousand labels through the daemon: does it end, does memory stay flat, do checkpoints stay small, is it steady.

Run: ``python benchmarks/bench_ten_thousand.py [--frames 10000] [--batch-size 20] [--workers 2]``. Copper, the EMT of
ASE as the teacher, one job per batch, by the daemon of a fresh `verdi presto` profile; with ``--profile NAME`` by that
of a profile that is there (of AIIDA_PATH), which should be new; with ``--services`` by that of one on PostgreSQL and
RabbitMQ: ``scripts/with_services.py --only postgresql,rabbitmq -- python benchmarks/bench_ten_thousand.py --services``.
Prints the table of ``docs/benchmarks.md``: on a machine that does other work besides, CPU seconds of the workers tell
more than those on the clock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from profile_here import codes, profile_on_services, temporary_profile

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
EMT = {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}
#: Labels of one row of the table.
THOUSAND = 1000


@dataclass
class Watched:
    """What was seen of the daemon while it worked.

    :ivar times: (s) of each look, from the beginning.
    :ivar memory: largest resident memory (MB) of a worker at each look.
    :ivar cpu: CPU seconds of the workers at each look, their own.
    :ivar checkpoints: bytes of the checkpoint of the labelling at each look.
    """

    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)


def copper(n: int, *, seed: int = 0) -> Any:
    """Rattled cells of four atoms."""
    from aiida_mlip.kernel.frames import from_ase

    rng = np.random.default_rng(seed)
    images = [bulk("Cu", cubic=True) for _ in range(n)]
    for atoms in images:
        atoms.positions += rng.normal(scale=0.08, size=(4, 3))
    return from_ase(images)


@contextmanager
def daemon(workers: int) -> Iterator[Any]:
    """The daemon of the loaded profile with so many workers."""
    from aiida.engine.daemon.client import get_daemon_client

    client = get_daemon_client()
    client.start_daemon(number_workers=workers, timeout=120)
    try:
        yield client
    finally:
        client.stop_daemon(wait=True, timeout=120)


def look(pids: list[int]) -> tuple[float, float]:
    """Largest resident memory (MB) of these processes, and their CPU seconds, those of jobs not among them."""
    memory, cpu = 0.0, 0.0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            memory = max(memory, int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6)
        except OSError:
            continue  # ended between the two calls
        cpu += (int(stat[11]) + int(stat[12])) / TICKS
    return memory, cpu


def watch(node: Any, client: Any, every: float) -> Watched:
    """Look at the daemon until the labelling has ended."""
    from aiida.engine.daemon.client import DaemonException
    from aiida.orm import QueryBuilder, WorkChainNode

    seen, start = Watched(), time.monotonic()
    query = QueryBuilder().append(WorkChainNode, filters={"id": node.pk}, project=["attributes.checkpoints"])
    pids: list[int] = []
    while not node.is_terminated:
        with suppress(DaemonException):  # too busy to answer: the workers are those of the last look
            pids = [int(pid) for pid in client.get_worker_info(timeout=30).get("info", {})]
        memory, cpu = look(pids)
        seen.times.append(time.monotonic() - start)
        seen.memory.append(memory)
        seen.cpu.append(cpu)
        seen.checkpoints.append(len(query.all(flat=True)[0] or ""))
        time.sleep(every)
    return seen


def ends(node: Any) -> np.ndarray:
    """When (s after the beginning) the jobs of a labelling ended, in order."""
    from aiida.orm import CalcJobNode, QueryBuilder, WorkChainNode

    query = QueryBuilder().append(WorkChainNode, filters={"id": node.pk}, tag="parent")
    query.append(CalcJobNode, with_incoming="parent", project="mtime")
    return np.sort([(mtime - node.ctime).total_seconds() for mtime in query.all(flat=True)])


def report(node: Any, seen: Watched, arguments: argparse.Namespace) -> None:
    """Print what was measured."""
    from aiida.orm import Node, QueryBuilder

    ended, times, cpu = ends(node), np.array(seen.times), np.array(seen.cpu)
    per_row = max(1, THOUSAND // arguments.batch_size)
    print("| labels | s/label | CPU of the workers, s/label | worker MB | checkpoint kB |")
    print("|---|---|---|---|---|")
    rates = []
    for first in range(0, len(ended) - per_row + 1, per_row):
        begin = ended[first - 1] if first else 0.0
        end = ended[first + per_row - 1]
        now = (times >= begin) & (times <= end)
        spent = np.interp(end, times, cpu) - np.interp(begin, times, cpu)
        n_labels = per_row * arguments.batch_size
        rates.append((end - begin) / n_labels)
        print(
            f"| {first * arguments.batch_size}-{(first + per_row) * arguments.batch_size} | {rates[-1]:.4f} | "
            f"{spent / n_labels:.4f} | {max(np.array(seen.memory)[now], default=np.nan):.0f} | "
            f"{max(np.array(seen.checkpoints)[now], default=0) / 1e3:.1f} |"
        )
    # the first thousand after the workers have loaded everything, and what there is of trend beside the scatter
    steady = ended[ended.size // 20 :]
    after = (steady[per_row] - steady[0]) / (per_row * arguments.batch_size)
    skipped = ended.size // 20 * arguments.batch_size
    trend = np.polyfit(np.linspace(0.0, 1.0, len(rates) - 1), rates[1:], 1)
    summary = node.outputs.summary.get_dict()["fidelities"]["emt"]
    nodes = QueryBuilder().append(Node).count()
    print(
        f"\n{summary['computed']} computed, {summary['failed']} failed, {summary['not_run']} not run, in "
        f"{(node.mtime - node.ctime).total_seconds():.0f} s, {len(ended)} jobs, {arguments.workers} workers; load "
        f"{os.getloadavg()[1]:.1f}; last thousand / first: {rates[-1] / rates[0]:.2f}, / labels {skipped}-"
        f"{skipped + THOUSAND}: {rates[-1] / after:.2f}; straight line through all rows but the first, end / begin: "
        f"{trend.sum() / trend[1]:.2f}; worker at most "
        f"{max(seen.memory):.0f} MB (bar 500); checkpoint at most {max(seen.checkpoints) / 1e3:.1f} kB (bar 100); "
        f"{nodes} nodes in the profile"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=20, help="labels of one job")
    parser.add_argument("--warm-up", type=int, default=500, help="labels before them, which are not counted")
    parser.add_argument("--workers", type=int, default=2, help="of the daemon")
    parser.add_argument(
        "--concurrent",
        type=int,
        default=10,
        help="jobs alive at once; where they end in waves, let whole waves be a row",
    )
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    parser.add_argument("--profile", help="one that is there, instead of a fresh `verdi presto` profile")
    parser.add_argument("--services", action="store_true", help="one on the services of scripts/with_services.py")
    arguments = parser.parse_args()
    if arguments.frames < THOUSAND:
        parser.error(f"--frames: at least {THOUSAND}, a row of the table")
    made = profile_on_services if arguments.services else temporary_profile
    with nullcontext(Path(os.environ.get("AIIDA_PATH", "."))) if arguments.profile else made() as root:
        from aiida import load_profile, orm  # not before AIIDA_PATH is set
        from aiida.engine import submit

        if arguments.profile:
            load_profile(arguments.profile)
        elif not arguments.services:
            from aiida_mlip.cli.installation import set_journal_mode

            (database,) = root.glob(".aiida/repository/sqlite_dos_*/database.sqlite")
            set_journal_mode(database)  # as `aiida-mlip setup` does
        from aiida_mlip.data.dataset import DatasetData
        from aiida_mlip.workchains.label import LabelWorkChain

        code = codes(root, threads=1, names=("ase",))["ase"]

        def labelling(frames: Any) -> Any:
            return submit(
                LabelWorkChain,
                dataset=DatasetData.from_frames(frames).store(),
                fidelities=orm.Dict({"emt": EMT | {"batch_size": arguments.batch_size}}),
                codes={"ase": code},
                max_concurrent=orm.Int(arguments.concurrent),
            )

        with daemon(arguments.workers) as client:
            # labels that are not counted: workers load what they need with the first
            watch(labelling(copper(arguments.warm_up, seed=1)), client, arguments.every)
            node = labelling(copper(arguments.frames))
            seen = watch(node, client, arguments.every)
        if not node.is_finished_ok:
            raise SystemExit(f"{node.process_label}<{node.pk}> ended with {node.exit_status}: {node.exit_message}")
        report(node, seen, arguments)
        shutil.rmtree(root / "work", ignore_errors=True)


if __name__ == "__main__":
    main()
