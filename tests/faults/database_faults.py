"""Faults of the database: locked for a while, wedged by a reader without WAL; two campaigns at once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faults.campaign import Campaign, inputs
from faults.harness import Harness, reconnect
from faults.place import FAMILY
from killed_campaign import calls

FAULTS = ("database locked", "SQLite wedged", "two campaigns at once")
PAUSE_S = 0.15


def run(harness: Harness, names: Sequence[str], per_fault: int) -> None:
    """One after another."""
    for name, number in harness.plan(names, per_fault):
        began = time.monotonic()
        group = _two_at_once(harness, number) if name == FAULTS[2] else _locked(harness, name, number)
        harness.bring_home(group)
        group[0].injected = 1
        print(f"{name} {number + 1} of {per_fault}, {time.monotonic() - began:.0f} s", flush=True)


def database(harness: Harness) -> Path:
    (path,) = harness.place.folder.glob(".aiida/repository/sqlite_dos_*/database.sqlite")
    return path


def _locked(harness: Harness, name: str, number: int) -> list[Campaign]:
    rng = harness.rng(name, number)
    wedge = name == FAULTS[1]
    if wedge:
        _set_journal(harness, "delete")
    pair = [harness.campaign(name, number, bundle=bundle, pause_s=PAUSE_S, tag=tag)
            for tag, bundle in enumerate((True, number % 3 != 2))]  # fmt: skip
    for each in pair:
        each.submit()
    n_processes = rng.randrange(1, 8)
    end = time.monotonic() + 60
    while time.monotonic() < end and sum(len(list(calls(each.node))) for each in pair) < n_processes:
        time.sleep(0.05)
    holder = threading.Thread(
        target=_hold, args=(database(harness), rng.uniform(7, 12), wedge and rng.random() < 0.5), daemon=True
    )
    holder.start()
    holder.join()
    return pair


def _hold(path: Path, seconds: float, reads: bool) -> None:
    """Hold the database: as a writer, or as a reader that is slow (which matters without WAL)."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    if reads:
        cursor = connection.execute("SELECT * FROM db_dbnode")
        cursor.fetchone()
        time.sleep(seconds)
        cursor.close()
    else:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    connection.close()


def _set_journal(harness: Harness, mode: str) -> None:
    from aiida.manage import get_manager

    from aiida_mlip.cli.installation import set_journal_mode

    harness.place.stop_daemon()
    get_manager().reset_profile_storage()
    set_journal_mode(database(harness), mode)
    harness.place.start_daemon()
    reconnect()


def _two_at_once(harness: Harness, number: int) -> list[Campaign]:
    """Two or three campaigns with frames in common, in bundles or one by one."""
    rng = harness.rng(FAULTS[2], number)
    first = harness.campaign(FAULTS[2], number, bundle=rng.random() < 0.5, pause_s=0.1)
    code = first.inputs["codes"]["pw"]
    group = [first]
    for _ in range(rng.choice([1, 2])):
        chosen = sorted(rng.sample(range(len(first.frames)), len(first.frames) - 1))
        frames = first.frames.take(np.array(chosen))
        given = inputs(code, frames, family=FAMILY, bundle=rng.random() < 0.5)
        group.append(Campaign(FAULTS[2], frames, given))
        harness.campaigns.append(group[-1])
    for each in group:
        each.submit()
        time.sleep(rng.choice([0, 0, 1, 2]))
    return group
