"""Labels of pw.x in bundles against jobs of their own: time and database beyond pw.x itself, and cores kept busy.

Run: ``python benchmarks/bench_bundles.py [--frames 200] [--alone 10] [--busy 12]``. Prints the table of
``docs/benchmarks.md``. The same inputs are run by hand in the same session, two at a time; for the efficiency of the
cores at the same time. On a machine that does other
work besides, seconds on the clock say little: CPU seconds (of Python, the shell of the job, and all that it starts,
less those of pw.x by hand) are given too.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_label_overhead import ROOT_MPI, make_code_and_family, silicon
from profile_here import temporary_profile

#: Two silicon atoms, 8 k-points: pw.x takes a tenth of a second.
TINY = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "bench",
    "ecutwfc_ry": 8,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.2,
}
#: The same cells at a mesh and cutoff of production: seconds.
REAL = TINY | {"ecutwfc_ry": 24, "kpoints_distance_inv_ang": 0.41}
CORES = 2


@dataclass(frozen=True)
class Run:
    """One labelling: seconds on the clock and of the CPU, nodes and bytes that it added, and its root."""

    wall: float
    cpu: float
    nodes: int
    database: int
    node: Any


def database_bytes(root: Path) -> int:
    """Size of the database of the profile, what is in its log included."""
    (path,) = root.glob(".aiida/repository/sqlite_dos_*/database.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int((pages - free) * size)


def label(n: int, fidelity: dict[str, Any], code: Any, root: Path) -> Run:
    """Label n frames with both cores."""
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.workchains.label import LabelWorkChain

    before, bytes_before = orm.QueryBuilder().append(orm.Node).count(), database_bytes(root)
    start, cpu = time.perf_counter(), time.process_time()
    results, node = run_get_node(
        LabelWorkChain,
        dataset=DatasetData.from_frames(silicon(n)),
        fidelities=orm.Dict({"lda": fidelity}),
        codes={"pw": code},
        max_concurrent=orm.Int(CORES),
        reuse=orm.Bool(False),
        options=orm.Dict(
            {
                "qe": {"additional_retrieve_list": ["cpu"]},
                "bundle": {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": CORES}},
            }
        ),
    )
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    if not node.is_finished_ok or results["summary"].get_dict()["fidelities"]["lda"]["computed"] != n:
        raise SystemExit(f"labelling failed: {node.exit_message}")
    jobs = [job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)]
    cpu += sum(shell_seconds(job.outputs.retrieved.get_object_content("cpu")) for job in jobs)
    added = orm.QueryBuilder().append(orm.Node).count() - before
    return Run(wall, cpu, added, database_bytes(root) - bytes_before, node)


def shell_seconds(text: str) -> float:
    """CPU seconds that the shell's ``times`` tells: its own and those of what it started."""
    words = [word.removesuffix("s").split("m") for word in text.split()]
    return sum(60 * float(minutes) + float(seconds) for minutes, seconds in words)


def inputs_of(node: Any) -> list[str]:
    """Inputs of pw.x of all frames of the bundles of a labelling."""
    from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
    from aiida_mlip.io.pw_bundle import INPUTS_FILE, unpack_input

    texts = []
    for job in node.called:
        if job.process_class is PwBundleCalculation:
            content = job.base.repository.get_object_content(INPUTS_FILE, mode="rb")
            texts += [unpack_input(content, i) for i in range(len(job.inputs.batch["rows"]))]
    return texts


def by_hand(texts: list[str], root: Path) -> tuple[float, float]:
    """Seconds on the clock, and of the CPU, of pw.x alone, as many at a time as there are cores."""
    upf = next((root / "pseudos").iterdir())
    folders = []
    for i, text in enumerate(texts):
        folder = root / f"hand-{time.monotonic_ns()}-{i}"
        (folder / "pseudo").mkdir(parents=True)
        (folder / "out").mkdir()
        (folder / "aiida.in").write_text(text)
        os.link(upf, folder / "pseudo" / upf.name)
        folders.append(folder)

    def run(folder: Path) -> None:
        subprocess.run(["bash", "-c", f"{ROOT_MPI}; exec pw.x -in aiida.in > aiida.out"], cwd=folder, check=True)

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    start, cpu = time.perf_counter(), used()
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(run, folders))
    return time.perf_counter() - start, used() - cpu


def race(texts: list[str], root: Path) -> tuple[float, float]:
    """Seconds of the script of a bundle, and of the same inputs by hand, both two at a time and both at the same time.

    So that whatever else the machine does hits both alike.
    """
    from aiida_mlip.io.pw_bundle import INPUTS_FILE, SCRIPT_FILE, bundle_script, pack_inputs

    folder = root / "race"
    (folder / "pseudo").mkdir(parents=True)
    upf = next((root / "pseudos").iterdir())
    os.link(upf, folder / "pseudo" / upf.name)
    (folder / INPUTS_FILE).write_bytes(pack_inputs(texts))
    (folder / SCRIPT_FILE).write_text(bundle_script("pw.x -in aiida.in", side_by_side=CORES))

    def bundle() -> float:
        start = time.perf_counter()
        subprocess.run(["bash", "-c", f"{ROOT_MPI}; . ./{SCRIPT_FILE}"], cwd=folder, check=True)
        return time.perf_counter() - start

    with ThreadPoolExecutor(2) as pool:
        script, hand = pool.submit(bundle), pool.submit(by_hand, texts, root)
        return script.result(), hand.result()[0]


def real_inputs(n: int) -> list[str]:
    """Inputs of pw.x that take a second or two."""
    from aiida_mlip.data.pw_inputs import pw_input
    from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities
    from aiida_mlip.workchains.label_inputs import family_of

    spec = parse_fidelities({"lda": REAL})["lda"]
    assert isinstance(spec, QeFidelity)  # the engine is qe
    frames = silicon(n)
    pseudos = {"Si": family_of("bench").get_pseudo("Si")}
    return [pw_input(frames.take([i]), spec, pseudos)[0] for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200, help="of the bundle; 0: leave that out")
    parser.add_argument("--alone", type=int, default=10, help="frames with a job of their own")
    parser.add_argument("--busy", type=int, default=12, help="frames of seconds each, for the cores kept busy")
    arguments = parser.parse_args()
    with temporary_profile() as root:
        from aiida import get_profile, orm

        get_profile().set_option("runner.poll.interval", 0)
        base = make_code_and_family(root)
        code = orm.InstalledCode(
            label="pw-timed",
            computer=base.computer,
            filepath_executable=str(base.filepath_executable),
            default_calc_job_plugin="quantumespresso.pw",
            with_mpi=False,
            append_text="times > cpu",
        ).store()
        if arguments.frames:
            report(arguments, code, root)
        if arguments.busy:
            script, hand = race(real_inputs(arguments.busy), root)
            print(
                f"cores kept busy: {arguments.busy} frames, bundle {script:.1f} s, by hand, meanwhile, {hand:.1f} s: "
                f"efficiency {hand / script:.2f}; load {os.getloadavg()[0]:.1f}"
            )


def report(arguments: argparse.Namespace, code: Any, root: Path) -> None:
    """Measure, and print the table."""
    load = os.getloadavg()[0]
    bundled = label(arguments.frames, TINY | {"bundle_size": arguments.frames}, code, root)
    texts = inputs_of(bundled.node)
    hand_wall, hand_cpu = by_hand(texts, root)
    alone = label(arguments.alone, TINY | {"bundle_size": 1}, code, root)
    share_wall, share_cpu = (value * arguments.alone / arguments.frames for value in (hand_wall, hand_cpu))
    print("| labels | | wall s | pw.x by hand, 2 at once, s | overhead s/label | CPU overhead s/label | nodes/label |")
    print("|---|---|---|---|---|---|---|")
    costs = {}
    for name, run, n, wall, cpu in (
        ("in a bundle", bundled, arguments.frames, hand_wall, hand_cpu),
        ("one by one", alone, arguments.alone, share_wall, share_cpu),
    ):
        costs[name] = ((run.wall - wall) / n, (run.cpu - cpu) / n, run.database / n)
        print(
            f"| {name} | {n} | {run.wall:.1f} | {wall:.1f} | {costs[name][0]:.3f} | {costs[name][1]:.3f} | "
            f"{run.nodes / n:.2f} |"
        )
    ratios = [b / a for a, b in zip(costs["in a bundle"], costs["one by one"], strict=True)]
    print(
        f"\nratio: wall {ratios[0]:.0f}, CPU {ratios[1]:.0f}; database {costs['in a bundle'][2] / 1e3:.1f} and "
        f"{costs['one by one'][2] / 1e3:.1f} kB per label, ratio {ratios[2]:.0f}; load {load:.1f} at the start"
    )


if __name__ == "__main__":
    main()
