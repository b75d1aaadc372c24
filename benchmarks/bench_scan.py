"""Scan of a large frame: atoms/s against the bare model's energies on the same slab, and memory of the whole.

Run: ``python benchmarks/bench_scan.py model.nequip.zip [--cells 63] [--max-atoms 100000]`` with a package that covers
copper (the committee of tests/emt_copper.py: 2 layers, l_max 1, 16 features, 4.5 Å). Compiles it, first time. For the
ratios both are called in turns on one slab, and the fastest call of each counts: what else the machine does only slows.
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
import torch
from ase.build import bulk

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.scan import ScanRequest, write_scan_request
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.slabs import Slab, SlabDecomposition
from aiida_mlip.kernel.uncertainty.grades import fit_grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model
from aiida_mlip.workers.slab_model import SlabModel, message_passing_layers, neighbours_of_centres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--cells", type=int, default=63, help="cubic copper cells along each edge; 63: 1e6 atoms")
    parser.add_argument("--max-atoms", type=int, default=100_000, help="of a slab, halo included")
    parser.add_argument("--repeats", type=int, default=5, help="calls for the ratios, of which the fastest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        positions, edge = write_frame(folder / "frame.xyz", options.cells)
        write_grades(folder, options.package)
        ratios(options.package, folder, positions, edge, options)
        whole(folder, options.package, options.max_atoms)


def write_frame(path: Path, cells: int) -> tuple[np.ndarray, float]:
    """Rattled copper with a void; its positions and the edge of its box."""
    atoms = bulk("Cu", a=3.61, cubic=True) * (cells, cells, cells)
    edge = float(atoms.cell[0, 0])
    positions = atoms.positions + np.random.default_rng(0).normal(0.0, 0.06, atoms.positions.shape)
    positions = positions[np.linalg.norm(positions - edge / 2, axis=1) > 8.0]
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f'{len(positions)}\nLattice="{edge} 0 0 0 {edge} 0 0 0 {edge}" Properties=species:S:1:pos:R:3\n')
        stream.writelines(f"Cu {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in positions)
    return positions, edge


def write_grades(folder: Path, package: Path) -> None:
    """Grades of rattled copper: how they were fitted does not change what a scan costs."""
    images = []
    for seed in range(20):
        atoms = bulk("Cu", a=3.61, cubic=True) * (3, 3, 3)
        atoms.rattle(0.06, seed=seed)
        images.append(atoms)
    frames = from_ase(images)
    model = load_model(package, device="cpu", features=True, derivatives=False)
    grades = fit_grades(predict(model, frames, features=True).features, frames.numbers)
    (folder / "statistics.npz").write_bytes(write_npz(grades.arrays()))


def ratios(package: Path, folder: Path, positions: np.ndarray, edge: float, options: argparse.Namespace) -> None:
    from aiida_mlip.io.evaluation import read_grades

    settings = {"device": "cpu", "mode": "compiled", "frames": "one", "derivatives": False}
    model, bare = load_model(package, features=True, **settings), load_model(package, **settings)
    layers = message_passing_layers(package)
    slabs = SlabDecomposition(
        positions, edge * np.eye(3), np.ones(3, bool), cutoff=model.cutoff_ang, layers=layers,
        max_atoms=options.max_atoms,
    )  # fmt: skip
    graded = SlabModel(model, read_grades(folder / "statistics.npz"))
    slab = next(iter(slabs))
    types = np.zeros(len(slab.atoms), dtype=np.int64)
    full = Slab(slab.atoms, slab.positions, slab.n_core, len(slab.atoms))  # edges of all atoms, as without pruning
    seconds = []
    for _ in range(options.repeats + 1):
        started = time.perf_counter()
        graded(slab, types)
        scan_s = time.perf_counter() - started
        list_s, call_s = bare_seconds(bare, full, types)
        seconds.append((scan_s, list_s, call_s))
    scan_s, list_s, call_s = np.min(seconds[1:], axis=0)  # the first call warms up; the least is least disturbed
    own, size = slab.n_core, len(slab.atoms)
    scan, same, same_call, crystal = own / scan_s, own / (list_s + call_s), own / call_s, size / (list_s + call_s)
    inner, outer = own / slab.n_centres, own / size
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, slabs of {len(slab.atoms)} atoms\n")
    print("| on the same slab | atoms/s | scan / this |\n|---|---|---|")
    print(f"| scan: neighbours, features, grades | {scan:.0f} | |")
    print(f"| bare energies of the slab, own atoms counted | {same:.0f} | {scan / same:.2f} |")
    print(f"| the same without its neighbour list | {same_call:.0f} | {scan / same_call:.2f} |")
    print(f"| bare energies, halo atoms counted as if they were wanted | {crystal:.0f} | {scan / crystal:.2f} |")
    print(f"\nown atoms / atoms with edges {inner:.2f}, own atoms / all {outer:.2f}\n", flush=True)


def bare_seconds(bare, slab: Slab, types: np.ndarray) -> tuple[float, float]:
    """Seconds for the neighbour list and for the energies of a slab with the edges of all its atoms."""
    started = time.perf_counter()
    i, j, box = neighbours_of_centres(slab, bare.cutoff_ang)
    data = {
        "pos": torch.as_tensor(slab.positions), "cell": torch.as_tensor(box)[None],
        "edge_index": torch.as_tensor(np.stack([i, j]).astype(np.int64)),
        "edge_cell_shift": torch.zeros((len(i), 3), dtype=torch.float64), "atom_types": torch.as_tensor(types),
    }  # fmt: skip
    listed = time.perf_counter()
    with torch.no_grad():
        bare.call(data)
    return listed - started, time.perf_counter() - listed


def whole(folder: Path, package: Path, max_atoms: int) -> None:
    request = ScanRequest(file="frame.xyz", model=str(package.resolve()), device="cpu", max_atoms=max_atoms)
    write_scan_request(folder / "input.json", request)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "aiida_mlip.workers.evaluate", "--scan", str(folder)], check=True)
    wall = time.perf_counter() - started
    answer = json.loads((folder / "output.json").read_text())
    written = sum(
        (folder / name).stat().st_size
        for name in ("candidates.npz", "environments.npz", "output.json")
        if (folder / name).exists()
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print("\n| whole frame | |\n|---|---|")
    print(f"| atoms | {answer['n_atoms']} |")
    print(f"| slabs | {answer['n_slabs']} |")
    print(f"| wall, with reading and loading, s | {wall:.0f} |")
    print(f"| scan, s | {answer['seconds']['scan']} |")
    print(f"| atoms/s | {answer['atoms_per_s']} |")
    print(f"| seconds | {answer['seconds']} |")
    print(f"| peak memory (with the compiler, if it ran), GiB | {peak:.2f} |")
    print(f"| peak memory of the scan, GiB | {answer['peak_memory_mb'] / 1024:.2f} |")
    print(f"| written, MiB | {written / 1024**2:.2f} |")


if __name__ == "__main__":
    main()
