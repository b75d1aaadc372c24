"""How long `aiida-mlip storage` takes on a large profile. Prints a Markdown table.

Run: ``python benchmarks/bench_lineage.py --keep FOLDER`` writes a campaign of 1e5 processes; then
``python benchmarks/bench_storage.py FOLDER`` gives every job of a copy of it a work directory on a computer, some of
them failed or not ended, and asks. Wall and CPU time, the fastest of some repeats.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Of so many jobs one failed, of so many one has not ended.
FAILED_EVERY, ALIVE_EVERY = 50, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of bench_lineage.py --keep; it is left as it is")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        copied(options.folder, Path(root))
        ask(options.repeats)


def copied(source: Path, root: Path) -> None:
    """Load a copy of the profile, with work directories."""
    shutil.copytree(source / ".aiida", root / ".aiida")
    config = root / ".aiida" / "config.json"
    config.write_text(config.read_text().replace(str(source), str(root)))
    os.environ["AIIDA_PATH"] = str(root)
    from aiida import load_profile, orm

    profile = load_profile("bench")
    computer = orm.Computer(
        label="cluster",
        hostname="cluster",
        transport_type="core.local",
        scheduler_type="core.direct",
        workdir="/scratch",
    ).store()
    give_work_directories(Path(profile.storage_config["filepath"]) / "database.sqlite", computer.pk)


def give_work_directories(database: Path, computer: int) -> None:
    connection = sqlite3.connect(database)
    jobs = connection.execute(
        "SELECT job.id, job.uuid, link.output_id FROM db_dblink AS link "
        "JOIN db_dbnode AS job ON job.id = link.input_id WHERE link.type = 'create' AND link.label = 'remote_folder'"
    ).fetchall()
    paths = [(f"/scratch/{uuid[:2]}/{uuid[2:4]}/{uuid[4:]}", computer, remote) for _, uuid, remote in jobs]
    connection.executemany(
        "UPDATE db_dbnode SET attributes = json_object('remote_path', ?), dbcomputer_id = ? WHERE id = ?", paths
    )
    for every, name, value in ((FAILED_EVERY, "exit_status", 300), (ALIVE_EVERY, "process_state", "running")):
        connection.executemany(
            f"UPDATE db_dbnode SET attributes = json_set(attributes, '$.{name}', ?) WHERE id = ?",  # noqa: S608
            [(value, job) for job, _, _ in jobs[::every]],
        )
    connection.commit()
    connection.close()


def ask(repeats: int) -> None:
    from aiida import orm

    from aiida_mlip.data.storage import database, repository
    from aiida_mlip.data.work_directories import work_directories

    n_processes = orm.QueryBuilder().append(orm.ProcessNode).count()
    found = work_directories()
    root = (
        orm.QueryBuilder().append(orm.WorkChainNode, project="id").order_by({orm.WorkChainNode: "id"}).first(flat=True)
    )
    questions: dict[str, Callable[[], Any]] = {
        f"judge {len(found.there)} work directories": work_directories,
        "the same of one workchain": lambda: work_directories(root),
        "files of nodes by kind": repository,
        "database": database,
    }
    print(f"{n_processes} processes\n\n| question | wall s | CPU s |\n|---|---|---|")
    for name, question in questions.items():
        wall, cpu = zip(*(timed(question) for _ in range(repeats)), strict=True)
        print(f"| {name} | {min(wall):.2f} | {min(cpu):.2f} |")
    kept: dict[str, int] = {}
    for each in found.there:
        kept[each.kept or "may go"] = kept.get(each.kept or "may go", 0) + 1
    print(f"\n{kept}")


def timed(question: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    question()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(main())
