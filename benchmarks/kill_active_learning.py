"""Kill an active learning at random points, and compare what comes out with an undisturbed run.

Run: ``python benchmarks/kill_active_learning.py --points 3 --seed 0 [--fragments]``. One run goes undisturbed. Each of
the others comes by an event drawn from those of the first (a process begins or ends, a job changes its state or writes
a file), and the daemon's worker, the job, or both get SIGKILL. Each run has a profile of its own, so that none finds
the labels of another. Prints a table for ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from preloaded import Preloaded  # noqa: E402 - the folder of the tests is no package

PROFILE = "kill"
LABELS = {
    "explore": "aiida-mlip-explore",
    "train": "nequip-train",
    "evaluate": "aiida-mlip-evaluate",
    "ase": "aiida-mlip-label",
}


def call(program: str, *arguments: str) -> None:
    """Run a program of this environment with the profile."""
    done = subprocess.run([str(BIN / program), "-p", PROFILE, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program} {' '.join(arguments)}:\n{done.stdout}{done.stderr}")


def one_run(kill: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    """One run in the profile of this process, with its kill; its outcome as plain values."""
    from aiida import load_profile, orm
    from aiida.engine import submit
    from aiida.engine.daemon.client import get_daemon_client
    from killed_campaign import Event, campaign, events, kill_job, kill_workers, outcome, wait_for, workers

    from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain

    load_profile(PROFILE)
    client = get_daemon_client()
    codes = {name: orm.load_code(f"{label}@localhost") for name, label in LABELS.items()}
    start = time.monotonic()
    node = submit(ActiveLearningWorkChain, **campaign(codes, **options))
    killed: list[str] = []
    if kill is not None:
        event, pids = Event(tuple(kill["path"]), kill["what"], kill["name"]), workers(client)
        found = wait_for(node, event)
        if kill["target"] in ("job", "both") and isinstance(found, orm.CalcJobNode):
            killed += kill_job(found, whole=kill["whole"])
        if kill["target"] in ("worker", "both"):
            kill_workers(pids)
            killed.append("worker")
    while not node.is_terminated:
        if time.monotonic() - start > options.get("limit_s", 1500):
            break
        time.sleep(0.5)
    seen = [] if kill is not None else [asdict(event) for event in events(node)]
    result = {"seconds": time.monotonic() - start, "killed": killed, "events": seen, "pk": node.pk}
    return {**result, **asdict(outcome(node)), "message": node.exit_message or str(node.process_state)}


def programs_of(preloaded: Path, folder: Path) -> Path:
    """Folder of all programs, the trainings' those that need no start-up (``tests/preloaded.py``)."""
    for name in ("nequip-train", "nequip-package"):
        (folder / name).symlink_to(preloaded / name)
    for path in BIN.glob("aiida-mlip-*"):
        (folder / path.name).symlink_to(path)
    return folder


def in_profile(
    kill: dict[str, Any] | None, options: dict[str, Any], *, keep: Path | None, programs: Path
) -> dict[str, Any]:
    """One run in a new profile, in a process of its own."""
    root = Path(tempfile.mkdtemp(prefix="aiida-mlip-kill-", dir=keep))
    (root / ".aiida").mkdir()
    os.environ["AIIDA_PATH"] = str(root)
    try:
        call("aiida-mlip", "setup", "--workdir", str(root / "work"), "--programs", str(programs))
        call("verdi", "daemon", "start")
        try:
            command = [sys.executable, __file__, "--one", json.dumps([kill, options])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            call("verdi", "daemon", "stop")
        return {**json.loads(done.stdout.splitlines()[-1]), "folder": str(root)}
    finally:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)


def draw(seen: list[dict[str, Any]], points: int, seed: int) -> list[dict[str, Any]]:
    """Kills at random events: the worker, the job where there is one, or both; the program alone, or all of a job."""
    rng = random.Random(seed)  # noqa: S311 - where to kill is no secret
    jobs = {tuple(event["path"]) for event in seen if event["what"] == "withscheduler"}
    kills = []
    for _ in range(points):
        event = rng.choice(seen)
        running = tuple(event["path"]) in jobs and event["what"] not in ("finished", "parsing")
        target = rng.choice(["worker", "job", "both"]) if running else "worker"
        kills.append({**event, "target": target, "whole": rng.random() < 0.5})
    return kills


def judge(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """What differs from the undisturbed run."""
    ours, theirs = set(run["frame_ids"]), set(reference["frame_ids"])
    return {
        "same": run["frame_ids"] == reference["frame_ids"],
        "lost": len(theirs - ours),
        "other": len(ours - theirs),
        "labelled_twice": sum(count > 1 for count in run["times_labelled"].values()),
        "more_jobs": sum(run["jobs"].values()) - sum(reference["jobs"].values()),
        "calls_twice": len(run["twice"]),
        "unfinished": len(run["unfinished"]),
        "status": run["status"] == reference["status"],
    }


def main() -> int:
    """Undisturbed once, then killed; the exit status says whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fragments", action="store_true", help="label fragments of 256 atoms instead of frames of 8")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--committee", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--keep", type=Path, help="folder that keeps the profiles")
    parser.add_argument("--reference", type=Path, help="file with the undisturbed run; written if it does not exist")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_run(*json.loads(given.one))))
        return 0
    options = {name: getattr(given, name) for name in ("rounds", "committee", "epochs", "fragments")}
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    preloaded = Preloaded()
    try:
        with tempfile.TemporaryDirectory(prefix="programs-") as folder:
            return compare(given, options, programs_of(preloaded.folder, Path(folder)))
    finally:
        preloaded.close()


def compare(given: argparse.Namespace, options: dict[str, Any], programs: Path) -> int:
    """Run undisturbed, then with kills; print the table."""
    if given.reference is not None and given.reference.exists():
        reference = json.loads(given.reference.read_text())
    else:
        reference = in_profile(None, options, keep=given.keep, programs=programs)
        if given.reference is not None:
            given.reference.write_text(json.dumps(reference))
    print(
        f"undisturbed: {reference['seconds']:.0f} s, {len(reference['frame_ids'])} rows, "
        f"{sum(reference['jobs'].values())} jobs, {len(reference['events'])} events, {reference['message']}"
    )
    print(
        "| killed at | target | s | same frame ids | lost | labelled twice | further jobs | calls made twice | stuck |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    good = True
    for kill in draw(reference["events"], given.points, given.seed):
        run = in_profile(kill, options, keep=given.keep, programs=programs)
        verdict = judge(run, reference)
        good &= verdict["same"] and verdict["status"] and not (verdict["labelled_twice"] or verdict["unfinished"])
        where = f"{'/'.join(kill['path'])}: {kill['what']} {kill['name']}".strip()
        print(
            f"| {where} | {kill['target']} ({', '.join(run['killed']) or 'had ended'}) | {run['seconds']:.0f} | "
            f"{'yes' if verdict['same'] else 'NO'} | {verdict['lost']} | {verdict['labelled_twice']} | "
            f"{verdict['more_jobs']} | {verdict['calls_twice']} | {verdict['unfinished']} |",
            flush=True,
        )
        if not verdict["same"] or not verdict["status"]:
            print(f"  {run['message']} {run.get('folder')} {verdict}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
