"""Watched molecular dynamics driven out of its domain: does it stop before two atoms come too close?

Copper that EMT labelled at 300 K trains a committee (``tests/emt_copper.py``); its first member drives a crystal of
32 atoms from 300 K up to 3000 K within four picoseconds, once per seed. Counted is how many runs the watch ends before
any pair falls below the limit, which is looked at in every force call. A control without thresholds shows what happens
to a run that nobody stops.

    python benchmarks/bench_explore.py --seeds 20 --control 5 --committee FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from ase.build import bulk

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import emt_copper
from watched_copper import Watched, prepare_watched, watched

from aiida_mlip.io.explore import ExploreReport, RunReport
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workers.explore import main as explore

LIMIT_ANG = 1.7  # EMT copper: 17 eV per pair; the training data have none below 2.1 Å
UNWATCHED = {"novelty_stop": None, "error_stop": None}


def heat(source: Watched, *, seed: int, members: int, watch: dict, steps: int) -> RunReport:
    """One run from 300 K to 3000 K."""
    folder = Path(tempfile.mkdtemp(prefix="bench-explore-"))
    schedule = [
        {"n_steps": 200, "temperature_k": 300},
        {"n_steps": steps, "temperature_k": 300, "end_temperature_k": 3000},
    ]
    crystal = from_ase([bulk("Cu", cubic=True, a=emt_copper.LATTICE_ANG).repeat(2)])
    try:
        prepare_watched(
            folder,
            source,
            crystal,
            members=members,
            kind="md",
            seed=seed,
            record_every=50,
            md={"timestep_fs": 2.0, "schedule": schedule},
            limits={"min_distance_ang": LIMIT_ANG},
            watch=watch,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            explore([str(folder)])
        return ExploreReport.model_validate_json((folder / "output.json").read_text()).runs[0]
    finally:
        shutil.rmtree(folder)


def table(source: Watched, name: str, n_seeds: int, *, members: int, watch: dict, steps: int) -> str:
    """Row of the table: how the runs ended."""
    runs = []
    for seed in range(n_seeds):
        began = time.perf_counter()
        run = heat(source, seed=seed, members=members, watch=watch, steps=steps)
        seconds = time.perf_counter() - began
        print(f"{name}, seed {seed}: {run.stopped_by} at {run.stopped_at}, {seconds:.0f} s", flush=True)
        runs.append(run)
    ends = Counter(run.stopped_by for run in runs)
    safe = sum(run.stopped_by in ("novelty", "error") for run in runs)
    stops = [run.stopped_at for run in runs if run.stopped_at is not None]
    closest = min(run.smallest_distance_ang or np.inf for run in runs)
    novelty = max(run.largest_novelty or 0.0 for run in runs)
    selected = np.mean([run.selected for run in runs])
    return (
        f"| {name} | {n_seeds} | {safe} | {', '.join(f'{k} {v}' for k, v in ends.items())} | "
        f"{np.median(stops) if stops else float('nan'):.0f} | {closest:.2f} | {novelty:.1f} | {selected:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--control", type=int, default=5, help="seeds of the control")
    parser.add_argument("--with-error", type=int, default=5, help="seeds with the whole committee")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--committee", type=Path, default=Path(tempfile.gettempdir()) / "emt-copper-committee")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # torch and e3nn about themselves
    source = watched(emt_copper.committee(arguments.committee))
    keys = {"steps": arguments.steps}
    rows = [
        table(source, "γ", arguments.seeds, members=0, watch={}, **keys),
        table(source, "γ and û (4 members)", arguments.with_error, members=3, watch={}, **keys),
        table(source, "not stopped", arguments.control, members=0, watch=UNWATCHED, **keys),
    ]
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, limit {LIMIT_ANG} Å\n")
    print("| watch | seeds | stopped in time | how the runs ended | median stop | closest, Å | largest γ | selected |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
