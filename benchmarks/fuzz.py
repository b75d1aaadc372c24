"""Damaged and hostile files, a hundred thousand of them: does any reader or parser crash, hang, or take all memory?

    python benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--processes 2] [--only NAME] [--keep FOLDER]

Each reader of tests/fuzz_readers.py must take a mutated file or refuse it with an error of this package that names it;
each parser of tests/fuzz_parsers.py must give an exit code of its job and outputs that can be stored (every fiftieth
time they are). Twenty seconds of the processor for one file count as a hang, and a process gets four gigabytes. Inputs
follow from the seed; one that fails is kept, with its number. Prints the counts; the exit status is 1 where one failed.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

MEMORY = 4 * 1024**3
#: One parsed job costs as much as fifty files read.
PARSED_SHARE = 0.02
#: Readers whose files take milliseconds get a third of the inputs of the others.
SLOW = frozenset(
    {"shard.npz", "columns.npz", "grades.npz", "predictions.npz", "checkpoint.npz", "model.nequip.zip", "frame.cif",
     "frames.traj", "large.traj", "frames.pdb", "pw.out", "train.out", "job.yaml", "generate.yaml"}
)  # fmt: skip
STORED_EVERY = 50


@dataclass
class Tally:
    """What became of the inputs of one reader or parser."""

    name: str
    inputs: int = 0
    results: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    cpu_s: float = 0.0
    stored: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    given = parser.parse_args()
    tasks = tasks_of(given.inputs, given.only)
    tallies = []
    with ProcessPoolExecutor(given.processes, max_tasks_per_child=None) as pool:
        for tally in pool.map(work, [(kind, name, count, given.seed, given.keep) for kind, name, count in tasks]):
            tallies.append(tally)
            print(row(tally), flush=True)
            for failure in tally.failures[:5]:
                print(f"    {failure}", flush=True)
    failed = sum(len(tally.failures) for tally in tallies)
    inputs, stored, cpu = (sum(getattr(tally, name) for tally in tallies) for name in ("inputs", "stored", "cpu_s"))
    print(f"{inputs} inputs, {failed} failed, {stored} nodes stored, {cpu:.0f} s of the processor")
    return 1 if failed else 0


def tasks_of(inputs: int, only: list[str]) -> list[tuple[str, str, int]]:
    """Kind, name and number of inputs of every reader and parser."""
    from fuzz_parsers import JOBS
    from fuzz_readers import TARGETS

    kinds = {
        "parser": [job.entry_point for job in JOBS if not only or job.entry_point in only],
        "reader": [target.name for target in TARGETS if not only or target.name in only],
    }
    shares = {"parser": PARSED_SHARE, "reader": 1 - PARSED_SHARE}
    shares = shares if all(kinds.values()) else {"parser": 1.0, "reader": 1.0}
    tasks = []
    for kind, names in kinds.items():
        weights = [1 if name in SLOW else 3 for name in names]
        tasks += [
            (kind, name, math.ceil(shares[kind] * inputs * weight / sum(weights)))
            for name, weight in zip(names, weights, strict=True)
        ]
    return tasks


def work(task: tuple[str, str, int, int, Path]) -> Tally:
    """All inputs of one reader or parser."""
    kind, name, count, seed, keep = task
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return (read_all if kind == "reader" else parse_all)(name, count, seed, keep, Path(folder))


def read_all(name: str, count: int, seed: int, keep: Path, folder: Path) -> Tally:
    from fuzz_readers import TARGETS, watched

    (target,) = (target for target in TARGETS if target.name == name)
    tally = Tally(name)
    for number in range(count):
        data = target.mutant(source(seed, number))
        began = time.process_time()
        try:
            with watched():
                tally.results["taken" if target.accepts(folder / name, data) else "refused"] += 1
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            note(tally, number, {name: data}, keep)
        count_time(tally, began)
    return tally


def parse_all(name: str, count: int, seed: int, keep: Path, folder: Path) -> Tally:
    from fuzz_parsers import JOBS, check, contents, node_of, parse
    from fuzz_readers import watched

    (job,) = (job for job in JOBS if job.entry_point == name)
    node = node_of(job, computer_of_a_profile())
    tally = Tally(name)
    for number in range(count):
        given = contents(job, source(seed, number))
        began = time.process_time()
        shutil.rmtree(folder / "temporary", ignore_errors=True)
        (folder / "temporary").mkdir()
        try:
            with watched():
                outputs, code = parse(job, node, given, folder / "temporary")
                tally.results[str(check(job, node, outputs, code))] += 1
                if number % STORED_EVERY == 0:
                    tally.stored += len([output.store() for output in outputs.values()])
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            note(tally, number, given, keep)
        count_time(tally, began)
    return tally


def source(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed} {number}")  # noqa: S311 - no secret


def count_time(tally: Tally, began: float) -> None:
    spent = time.process_time() - began
    tally.inputs += 1
    tally.cpu_s += spent
    tally.slowest_s = max(tally.slowest_s, spent)


def note(tally: Tally, number: int, given: dict, keep: Path) -> None:
    """Keep an input that failed, with the end of the traceback."""
    folder = keep / f"{tally.name}-{number}"
    for name, data in given.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data or b"")
    tally.failures.append(f"input {number}: " + " | ".join(traceback.format_exc().strip().splitlines()[-3:])[:300])


def computer_of_a_profile():
    """A computer in a profile that lives as long as the process."""
    home = tempfile.mkdtemp(prefix="fuzz-aiida-")
    (Path(home) / ".aiida").mkdir()
    os.environ["AIIDA_PATH"] = home
    from aiida import load_profile, orm
    from aiida.common.exceptions import NotExistent
    from aiida.manage import get_manager
    from aiida.storage.sqlite_temp import SqliteTempBackend

    if get_manager().get_profile() is None:
        load_profile(SqliteTempBackend.create_profile("fuzz"))
    try:
        return orm.load_computer("localhost")
    except NotExistent:
        made = orm.Computer(
            label="localhost",
            hostname="localhost",
            transport_type="core.local",
            scheduler_type="core.direct",
            workdir=home,
        )
        return made.store()


def row(tally: Tally) -> str:
    results = ", ".join(f"{name}: {count}" for name, count in sorted(tally.results.items()))
    times = f"{tally.slowest_s:.2f} | {tally.cpu_s:.0f}"
    return f"| {tally.name} | {tally.inputs} | {results} | {len(tally.failures)} | {times} |"


if __name__ == "__main__":
    sys.exit(main())
