"""Report of a campaign of twenty rounds: how long it takes, and how large it is. Prints a Markdown table.

Run: ``python benchmarks/bench_report.py [--rounds 20] [--labels 30] [--start 400] [--keep FOLDER]``. The campaign is
stored, not run: tests/stored_campaign.py makes its nodes, in a profile of its own in a temporary folder. One thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--labels", type=int, default=30, help="per round, each a PwBaseWorkChain with its job")
    parser.add_argument("--start", type=int, default=400, help="labelled frames to begin with")
    parser.add_argument("--keep", type=Path, help="folder to leave report.html and report.json in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".aiida").mkdir()
        os.environ["AIIDA_PATH"] = folder
        measure(given, given.keep or Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    profile()
    from aiida import orm
    from stored_campaign import campaign

    from aiida_mlip.report.write import write_report

    made = campaign(
        rounds=given.rounds, members=given.members, labels=given.labels, start=given.start, cells=(2, 2, 2), epochs=300
    )
    frames = made.root.outputs.dataset
    n_processes = orm.QueryBuilder().append(orm.ProcessNode).count()
    wall, cpu = time.perf_counter(), time.process_time()
    report = write_report(made.root, folder / "report.html", json_path=folder / "report.json")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    html, plain = ((folder / f"report.{kind}").stat().st_size / 2**20 for kind in ("html", "json"))
    n_figures = sum(len(section.figures) for section in report.sections)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    heads = ("rounds", "processes", "rows", "atoms", "members", "figures", "wall (s)", "CPU (s)", "HTML (MiB)")
    print(f"| {' | '.join((*heads, 'JSON (MiB)', 'memory (GiB)'))} |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {given.rounds} | {n_processes} | {len(frames)} | {frames.base.attributes.get('n_atoms')} | {given.members} "
        f"| {n_figures} | {wall:.1f} | {cpu:.1f} | {html:.1f} | {plain:.1f} | {memory:.2f} |"
    )


def profile() -> None:
    """A profile of this run's own."""
    from aiida import load_profile
    from aiida.manage.configuration import create_profile, get_config

    config = get_config(create=True)
    create_profile(
        config,
        name="bench",
        email="bench@localhost",
        storage_backend="core.sqlite_dos",
        storage_config={},
        broker_backend=None,
    )
    load_profile("bench", allow_switch=True)


if __name__ == "__main__":
    main()
