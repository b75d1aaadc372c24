"""What labelling through the workchain costs beyond pw.x itself, per frame, for 1 and for many frames.

Run: ``python benchmarks/bench_label_overhead.py [number of frames] [--concurrent N]``. Prints a row of a table for
``docs/benchmarks.md``. The same pw.x inputs are run by hand in the same session, one after another and with as many at
once as the machine has cores, so that the ratio compares like with like.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from profile_here import temporary_profile

FIDELITY = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "bench",
    "ecutwfc_ry": 12,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 0.4,
}
ROOT_MPI = "export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"


def silicon(n: int) -> Any:
    """Rattled two-atom silicon cells."""
    from ase.build import bulk

    from aiida_mlip.kernel.frames import from_ase

    rng = np.random.default_rng(n)
    images = [bulk("Si", a=5.4) for _ in range(n)]
    for atoms in images:
        atoms.positions[1] += rng.normal(scale=0.05, size=3)
    return from_ase(images)


def make_code_and_family(root: Path) -> Any:
    """pw.x on this machine without a login shell, and a family of one LDA silicon pseudopotential."""
    from aiida import orm
    from aiida_pseudo.data.pseudo.upf import UpfData
    from aiida_pseudo.groups.family import PseudoPotentialFamily

    computer = orm.Computer(
        label="here",
        hostname="localhost",
        transport_type="core.local",
        scheduler_type="core.direct",
        workdir=str(root / "work"),
    )
    computer.set_default_mpiprocs_per_machine(1)
    computer.set_minimum_job_poll_interval(0)
    computer.set_prepend_text(ROOT_MPI)
    computer.store()
    computer.configure(safe_interval=0, use_login_shell=False)
    listing = subprocess.run(["dpkg", "-L", "quantum-espresso-data"], capture_output=True, text=True, check=True).stdout
    source = next(Path(line) for line in listing.splitlines() if line.endswith("Si.pz-vbc.UPF"))
    folder = root / "pseudos"
    folder.mkdir()
    (folder / source.name).write_bytes(source.read_bytes())
    PseudoPotentialFamily.create_from_folder(folder, "bench", pseudo_type=UpfData)
    executable = subprocess.run(["which", "pw.x"], capture_output=True, text=True, check=True).stdout.strip()
    return orm.InstalledCode(
        label="pw",
        computer=computer,
        filepath_executable=executable,
        default_calc_job_plugin="quantumespresso.pw",
        with_mpi=False,
    ).store()


def by_hand(node: Any, root: Path, workers: int) -> float:
    """Wall time (s) of the same inputs of pw.x, ``workers`` at a time."""
    from aiida import orm

    jobs = [job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)]
    folders = []
    for job in jobs:
        folder = root / f"hand-{workers}-{job.pk}"
        (folder / "pseudo").mkdir(parents=True)
        (folder / "aiida.in").write_text(job.base.repository.get_object_content("aiida.in"))
        for upf in job.inputs.pseudos.values():
            (folder / "pseudo" / upf.filename).write_bytes(upf.get_content().encode())
        folders.append(folder)

    def run(folder: Path) -> None:
        command = f"{ROOT_MPI}; exec pw.x -in aiida.in > aiida.out"
        subprocess.run(["bash", "-c", command], cwd=folder, check=True)

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, folders))
    return time.perf_counter() - start


def measure(n: int, code: Any, concurrent: int, root: Path) -> str:
    """Label n frames and run the same inputs by hand; a row of the table."""
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.workchains.label import LabelWorkChain

    start = time.perf_counter()
    results, node = run_get_node(
        LabelWorkChain,
        dataset=DatasetData.from_frames(silicon(n)),
        fidelities=orm.Dict({"lda": FIDELITY}),
        codes={"pw": code},
        max_concurrent=orm.Int(concurrent),
        reuse=orm.Bool(False),
    )
    wall = time.perf_counter() - start
    if not node.is_finished_ok or results["summary"].get_dict()["fidelities"]["lda"]["computed"] != n:
        raise SystemExit(f"labelling failed: {node.exit_message}")
    one, many = by_hand(node, root, 1), by_hand(node, root, os.cpu_count() or 1)
    best = min(one, many)
    return (
        f"| label overhead | {n} | {concurrent} | {wall:.1f} | {one:.1f} | {many:.1f} | {(wall - best) / n:.2f} | "
        f"{wall / best:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=int, nargs="?", default=50)
    parser.add_argument("--concurrent", type=int, default=50)
    arguments = parser.parse_args()
    with temporary_profile() as root:
        from aiida import get_profile

        get_profile().set_option("runner.poll.interval", 0)
        code = make_code_and_family(root)
        rows = [measure(n, code, arguments.concurrent, root) for n in (1, arguments.frames)]
    print(
        "| what | frames | at once | workchain s | pw.x in a row s | pw.x on all cores s | overhead s/frame | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
