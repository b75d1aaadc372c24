"""Inject faults into campaigns that run, and see whether anything is lost, computed twice, or hangs.

Run: ``make test-faults``, or ``PYTHONPATH=tests python -m faults [--seed 0] [--per-fault 6] [--only NAME ...]``.
Everything happens in a profile of its own with a daemon of its own; pw.x, nequip-train, the daemon, the broker, the
database and the direct scheduler are real. Prints the table of ``docs/benchmarks.md``; exit status 1 if anything was
lost, computed twice, or hung.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.place import FAMILY, Place

if TYPE_CHECKING:
    from faults.harness import Harness


def main() -> int:
    """Run the families, label everything once more undisturbed, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-fault", type=int, default=6, metavar="N")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a fault, or the begin of its name")
    parser.add_argument("--minutes", type=float, help="begin no further fault after so long")
    parser.add_argument("--keep", action="store_true", help="leave the profile there, and say where")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    from preloaded import Preloaded

    folder = Path(tempfile.mkdtemp(prefix="aiida-mlip-faults-")) / "place"
    trains = not given.only or any("training killed".startswith(name) for name in given.only)
    programs = Preloaded() if trains else None
    try:
        place = Place(folder, _programs(programs.folder, folder.parent / "programs") if programs else None)
        try:
            place.start_daemon()
            return _run(place, given)
        finally:
            if given.keep:
                place.stop_daemon()
                print(f"the profile is in AIIDA_PATH={folder}")
            else:
                place.close()
    finally:
        if programs is not None:
            programs.close()


def _programs(preloaded: Path, folder: Path) -> Path:
    """All programs, the trainings' those that need no start-up (``preloaded.py``)."""
    folder.mkdir()
    quick = {"nequip-train", "nequip-package", "aiida-mlip-evaluate"}
    for name in quick:
        (folder / name).symlink_to(preloaded / name)
    for path in Path(sys.executable).parent.glob("aiida-mlip-*"):
        if path.name not in quick:
            (folder / path.name).symlink_to(path)
    return folder


def _run(place: Place, given: argparse.Namespace) -> int:
    from faults import daemon_faults, database_faults, program_faults, scheduler_faults, training_faults
    from faults.harness import Harness

    families = (program_faults, training_faults, scheduler_faults, daemon_faults, database_faults)
    harness = Harness(place, given.seed)
    start, load = time.monotonic(), os.getloadavg()[0]
    broken: list[str] = []
    chosen = [(family, names) for family in families if (names := _chosen(family.FAULTS, given.only))]
    for number, (family, names) in enumerate(chosen):
        if given.minutes:
            harness.until = start + 60 * given.minutes * (number + 1) / len(chosen)
        try:
            family.run(harness, names, given.per_fault)
        except KeyboardInterrupt:
            print("interrupted: faults that were not judged yet are left out")
            harness.leave_out_unfinished()
            broken.append(family.__name__)
            break
        except Exception:  # noqa: BLE001 - what the others found is to be reported too
            traceback.print_exc()
            broken.append(family.__name__)
    code = _report(harness, f"seed {given.seed}, load {load:.1f} to {os.getloadavg()[0]:.1f}", start)
    if broken:
        print(f"the harness itself broke in {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else code


def _stop(*_: object) -> None:
    """A signal to end: what is judged so far is reported, and the daemon stopped; once only."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _chosen(faults: Sequence[str], only: Sequence[str]) -> list[str]:
    return [name for name in faults if not only or any(name.startswith(begin) for begin in only)]


def _report(harness: Harness, about: str, start: float) -> int:
    from faults.campaign import lost, times_labelled

    apart = _undisturbed(harness) if harness.campaigns else ""
    counts = times_labelled(apart)
    print("| fault | injected | how it was named | cured by | lost | computed twice | hung | s |")
    print("|---|---|---|---|---|---|---|---|")
    totals: Counter[str] = Counter()
    everything = [*harness.campaigns, *harness.trainings]
    for fault in dict.fromkeys(each.fault for each in everything):
        mine = [each for each in everything if each.fault == fault]
        row: Counter[str] = Counter(injected=sum(each.injected for each in mine), hung=sum(each.hung for each in mine))
        said: Counter[str] = Counter()
        for each in mine:
            said.update(each.said)
            if any(each is training for training in harness.trainings):
                row["lost"] += not each.complete
                row["twice"] += max(sum(job.exit_status == 0 for job in each.jobs()) - 1, 0)
            else:
                row["lost"] += lost(each, harness.reference)
                row["twice"] += sum(counts[name] > 1 for name in each.frames.ids())
            if row["lost"] or row["twice"] or each.hung:
                print(f"    {each.fault}: {each.pks} {dict(row)}", file=sys.stderr)
        cures = Counter(each.cured_by for each in mine if each.injected or each.cured_by != "itself")
        totals.update(row)
        print(
            f"| {fault} | {row['injected']} | {_counted(said)} | {_counted(cures)} | {row['lost']} | {row['twice']} | "
            f"{row['hung']} | {sum(each.seconds for each in mine):.0f} |"
        )
    print(
        f"\n{totals['injected']} faults, {totals['lost']} lost, {totals['twice']} computed twice, "
        f"{totals['hung']} hung; {len(everything)} campaigns, {time.monotonic() - start:.0f} s, {about}"
    )
    return 1 if totals["lost"] or totals["twice"] or totals["hung"] else 0


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in names.most_common()) or "-"


def _undisturbed(harness: Harness) -> str:
    """Label all frames once more with nothing in the way, under settings of their own; their hash."""
    from aiida import orm
    from aiida.engine import run_get_node
    from faults.campaign import inputs, labels

    from aiida_mlip.kernel.frames import concatenate
    from aiida_mlip.workchains.label import LabelWorkChain
    from aiida_mlip.workchains.label_inputs import settings_hashes

    frames = concatenate([each.frames for each in harness.campaigns])
    given = inputs(orm.load_code("pw@localhost"), frames, family=FAMILY, bundle=True, apart=True)
    options = {"bundle": {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": os.cpu_count() or 1}}}
    results, node = run_get_node(LabelWorkChain, **given, options=orm.Dict(options))
    if not node.is_finished_ok:
        raise RuntimeError(f"the undisturbed labelling failed: {node.exit_message}")
    if (taken_over := results["summary"]["fidelities"]["lda"]["reused"]) != 0:
        raise RuntimeError(f"{taken_over} labels to compare with are those of the campaigns themselves")
    harness.reference = labels(results["dataset"])
    return settings_hashes(given["fidelities"].get_dict())["lda"]


if __name__ == "__main__":
    sys.exit(main())
