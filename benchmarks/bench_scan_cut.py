"""A frame of a million atoms scanned and cut in one job: wall time, memory, and what the fragments are worth.

Run: ``OMP_NUM_THREADS=2 python benchmarks/bench_scan_cut.py model.nequip.zip [--cells 63]`` with a package that covers
copper (a member of the committee of tests/emt_copper.py). The frame is warm copper with vacancies, a void, a crack and
a dipole of screw dislocations. The truth about a fragment's forces is that of EMT, which made the potential's labels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from bench_scan import write_grades

from aiida_mlip.io.fragments import FragmentKeys, HostCrystal
from aiida_mlip.io.scan import FRAGMENTS, ScanRequest, write_scan_request
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.fragments.neighbourhood import neighbourhood

LATTICE_ANG = 3.61
PERIODIC = np.ones(3, dtype=bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--cells", type=int, default=63, help="cubic copper cells along each edge; 63: 1e6 atoms")
    parser.add_argument("--max-atoms", type=int, default=100_000, help="of a slab, halo included")
    parser.add_argument("--fragments", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        positions, edge = write_frame(folder / "frame.xyz", options.cells)
        write_grades(folder, options.package)
        answer = run(folder, options)
        report(folder, answer, positions, edge)


def write_frame(path: Path, cells: int) -> tuple[np.ndarray, float]:
    """Warm copper with defects of all kinds; its positions and the edge of its box."""
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", a=LATTICE_ANG, cubic=True) * (cells, cells, cells)
    edge = float(atoms.cell[0, 0])
    positions = atoms.positions
    x, y, z = positions.T / edge
    gone = np.linalg.norm(positions - edge / 2, axis=1) < 8.0  # a void
    gone |= (np.abs(y - 0.25) < 2.5 / edge) & (np.abs(x - 0.25) < 0.1) & (np.abs(z - 0.25) < 0.1)  # a crack
    gone[rng.choice(len(gone), len(gone) // 5000, replace=False)] = True  # vacancies
    burgers = LATTICE_ANG  # a lattice vector along z, so that the plane between the two is no fault
    turns = np.arctan2(y - 0.75, x - 0.6) - np.arctan2(y - 0.75, x - 0.9)
    positions = positions + rng.normal(0.0, 0.06, positions.shape)
    positions[:, 2] += burgers / (2 * np.pi) * turns  # screw dislocations along z
    positions = positions[~gone]
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f'{len(positions)}\nLattice="{edge} 0 0 0 {edge} 0 0 0 {edge}" Properties=species:S:1:pos:R:3\n')
        stream.writelines(f"Cu {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in positions)
    return positions, edge


def run(folder: Path, options: argparse.Namespace) -> dict:
    cell = bulk("Cu", a=LATTICE_ANG, cubic=True)
    host = HostCrystal(numbers=cell.numbers.tolist(), positions=cell.positions.tolist(), cell=cell.cell.array.tolist())
    request = ScanRequest(
        file="frame.xyz",
        model=str(options.package.resolve()),
        device="cpu",
        max_atoms=options.max_atoms,
        fragments=FragmentKeys(
            core_radius_ang=4.5, buffer_ang=1.6, max_atoms=250, max_fragments=options.fragments, threshold=2.0
        ),
        hosts=(host,),
    )
    write_scan_request(folder / "input.json", request)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "aiida_mlip.workers.evaluate", "--scan", str(folder)], check=True)
    answer = json.loads((folder / "output.json").read_text())
    return answer | {"wall_s": time.perf_counter() - started}


def report(folder: Path, answer: dict, positions: np.ndarray, edge: float) -> None:
    cut = answer["fragments"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nload {os.getloadavg()[0]:.1f}\n\n| scanned and cut | |\n|---|---|")
    print(f"| atoms | {answer['n_atoms']} in {answer['n_slabs']} slabs |")
    print(f"| wall, all in all, s | {answer['wall_s']:.0f} |")
    print(f"| of it scan / cutting / relaxing and judging, s | {answer['seconds']['scan']:.0f} (with the next two) / "
          f"{cut['seconds']['carve']:.1f} / {cut['seconds']['judge']:.1f} |")  # fmt: skip
    print(f"| processor time of both cores, s | {used.ru_utime + used.ru_stime:.0f} |")
    print(f"| peak memory, GiB | {used.ru_maxrss / 1024**2:.2f} |")
    print(f"| atoms above the threshold | {answer['above_threshold']} |")
    print(f"| fragments cut / accepted / relaxed | {cut['n_fragments']} / {cut['n_accepted']} / {cut['n_relaxed']} |")
    kinds = [record["completion"] for record in cut["fragments"]]
    print(f"| completion | {', '.join(f'{kinds.count(kind)} {kind}' for kind in sorted(set(kinds)))} |")
    for record in [*cut["fragments"], *cut["refused"]]:
        if not record.get("accepted"):
            print(f"| refused, atom {record.get('centre', record.get('atom'))} | {record['reason'][:140]} |")
    done = [record for record in cut["fragments"] if record["accepted"]]
    if not done:
        print("| accepted | none: nothing to judge |")
        return
    change = [abs(record["novelty_fragment"] / record["novelty_parent"] - 1) for record in done]
    print(f"| change of the centre's γ, mean / largest | {np.mean(change):.2%} / {np.max(change):.2%} |")
    print("| EMT force error (eV/Å), rms over fragments: centre / within 3 Å | "
          + " / ".join(f"{value:.1e}" for value in embedding(folder, positions, edge)) + " |")  # fmt: skip


def embedding(folder: Path, positions: np.ndarray, edge: float) -> tuple[float, float]:
    """EMT forces in the accepted fragments against those in the frame, of which 14 Å around each centre are enough."""
    with (folder / FRAGMENTS).open("rb") as stream:
        frames = read_shard(stream, source=FRAGMENTS)
    numbers = np.full(len(positions), 29, dtype=np.uint8)
    centre, near = [], []
    for row in range(len(frames)):
        part = frames.atom_slice(row)
        index = frames.parent_atom[part]
        around = neighbourhood(numbers, positions, edge * np.eye(3), PERIODIC, positions[index[0]], 14.0)
        truth = Atoms(numbers=around.numbers, positions=around.vectors, calculator=EMT()).get_forces()
        place = {atom: row_ for row_, atom in enumerate(around.atoms.tolist())}
        atoms = frames.to_ase(row)
        atoms.calc = EMT()
        inner = np.flatnonzero(np.linalg.norm(frames.positions[part] - frames.positions[part][0], axis=1) < 3.0)
        error = atoms.get_forces()[inner] - truth[[place[int(index[k])] for k in inner]]
        squared = (error**2).sum(axis=1)
        centre.append(squared[0])
        near.append(squared.mean())
    return float(np.sqrt(np.mean(centre))), float(np.sqrt(np.mean(near)))


if __name__ == "__main__":
    main()
