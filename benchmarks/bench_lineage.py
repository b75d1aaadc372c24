"""How long lineage, taint and audit take on a large graph. Prints a Markdown table.

Run: ``python benchmarks/bench_lineage.py`` (writes a campaign of 52 rounds with 970 labels each into a profile of its
own: 1e5 process nodes, a few minutes; ``--rounds 3 --labels 100`` for a look). ``--keep FOLDER`` leaves the profile
there, and asks one that is there already. Wall and CPU time of each question, the fastest of some repeats: the CPU time
is what the wall time of a quiet machine would be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
#: Bars: seconds for lineage and taint of anything, and for the lineage of one frame.
GRAPH_SECONDS, FRAME_SECONDS = 2.0, 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=52)
    parser.add_argument("--labels", type=int, default=970, help="of each round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder of the profile")
    options = parser.parse_args()
    if options.keep is None:
        from profile_here import temporary_profile

        with temporary_profile() as root:
            ask(written(root, options), options.repeats)
    else:
        ask(written(profile_in(options.keep), options), options.repeats)


def profile_in(root: Path) -> Path:
    """The profile in a folder, made where there is none."""
    os.environ["AIIDA_PATH"] = str(root)
    if not (root / ".aiida" / "config.json").exists():
        (root / ".aiida").mkdir(parents=True, exist_ok=True)
        subprocess.run([str(BIN / "verdi"), "presto", "--profile-name", "bench"], check=True, capture_output=True)
    from aiida import load_profile

    load_profile("bench")
    return root


def written(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What can be asked about: uuids of nodes, frame ids."""
    known = root / "known.json"
    if not known.exists():
        from synthetic_campaign import write_campaign

        start = time.process_time()
        made = write_campaign(options.rounds, options.labels)
        sketch = made["sketch"]
        questions = {
            "root": sketch.uuids[made["root"]],
            "first dataset": sketch.uuids[made["dataset_0"]],
            "last potential": sketch.uuids[made["last_potential"]],
            "first label": sketch.uuids[made["labels"][0]],
            "last label": sketch.uuids[made["labels"][-1]],
            "first fragment": made["fragments"][0],
            "last fragment": made["fragments"][-1],
        }
        known.write_text(json.dumps({"questions": questions, "n_links": len(sketch.links)}))
        print(f"written in {time.process_time() - start:.0f} s of CPU time")
    return json.loads(known.read_text())


def ask(known: dict[str, Any], repeats: int) -> None:
    from aiida import orm

    from aiida_mlip.data.audit_findings import findings
    from aiida_mlip.data.frame_index import FrameIndex
    from aiida_mlip.data.lineage import frame_lineage, lineage
    from aiida_mlip.data.provenance import audit
    from aiida_mlip.data.taint import taint, taint_frame

    uuids = known["questions"]
    nodes = {name: orm.load_node(uuid) for name, uuid in uuids.items() if "fragment" not in name}
    n_processes = orm.QueryBuilder().append(orm.ProcessNode).count()
    n_nodes = orm.QueryBuilder().append(orm.Node).count()
    print(f"{n_processes} processes, {n_nodes} nodes, {known['n_links']} links; load {os.getloadavg()[0]:.1f}\n")
    print("| question | wall s | CPU s | bar | ok | answer |\n|---|---|---|---|---|---|")
    with FrameIndex.open() as index:
        row("index: all datasets, once", index.refresh, lambda n: f"{n} datasets", repeats=1)
        row("index: nothing new", index.refresh, lambda n: f"{n} datasets", bar=FRAME_SECONDS, repeats=repeats)
        for name in ("first fragment", "last fragment"):
            row(
                f"lineage of one atom, {name}",
                lambda name=name: frame_lineage(uuids[name], atom=3, index=index),
                lambda found: f"{len(found.places)} datasets, {len(found.potentials)} trainings",
                bar=FRAME_SECONDS,
                repeats=repeats,
            )
        for name, node in nodes.items():
            row(
                f"lineage of the {name}",
                lambda node=node: lineage(node),
                lambda found: f"{found.n_behind} nodes behind, {found.n_ahead} ahead",
                bar=GRAPH_SECONDS,
                repeats=repeats,
            )
        asked: dict[str, Callable[[], Any]] = {
            f"taint of the {name}": lambda node=node: taint(node, index=index) for name, node in nodes.items()
        }
        asked["taint of the first fragment's label"] = lambda: taint_frame(
            uuids["first fragment"], fidelity="dft", index=index
        )
        for name, question in asked.items():
            row(name, question, lambda found: f"{found.n_nodes} nodes", bar=GRAPH_SECONDS, repeats=repeats)
        for name in ("root", "last potential"):
            node = nodes[name]
            row(
                f"audit of the {name}: origins",
                lambda node=node: audit(node),
                lambda found: f"{found.created} made, {len(found.orphans)} orphans",
                repeats=1,
            )
            row(
                f"audit of the {name}: findings",
                lambda node=node: findings(node, index=index),
                lambda found: f"{len(found)} findings",
                repeats=1,
            )
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


def row(
    name: str, question: Callable[[], Any], said: Callable[[Any], str], *, bar: float | None = None, repeats: int
) -> None:
    """One line of the table: fastest of the repeats."""
    wall, cpu, answer = float("inf"), float("inf"), None
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        answer = question()
        wall, cpu = min(wall, time.perf_counter() - started), min(cpu, time.process_time() - used)
    verdict = "| | |" if bar is None else f"| {bar} | {'yes' if cpu <= bar else 'NO'} |"
    print(f"| {name} | {wall:.2f} | {cpu:.3f} {verdict} {said(answer)} |", flush=True)


if __name__ == "__main__":
    main()
