"""Selection from large pools: time and memory of MaxVol, MaxDet, farthest points, LCMD and duplicate removal.

Run: ``OMP_NUM_THREADS=2 python benchmarks/bench_selection.py [--rows 1000000] [--columns 64] [--picks 100]``. Each
method runs in a process of its own; the pool lies in a file (float32) and is memory-mapped.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

METHODS = ("duplicates", "maxvol", "maxdet", "maxdet, groups of 100", "farthest", "largest cluster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--picks", type=int, default=100)
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--pool", type=Path)
    options = parser.parse_args()
    if options.method:
        one(options.method, options.pool, options.picks)
        return
    print(f"{options.rows} x {options.columns}, K = {options.picks}, load {os.getloadavg()[0]:.1f}\n")
    print("| method | wall s | CPU s | peak memory GiB (pool mapped) | result |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        pool = Path(name) / "pool.npy"
        write_pool(pool, options.rows, options.columns)
        for method in METHODS:
            command = [sys.executable, __file__, "--method", method, "--pool", pool, "--picks", str(options.picks)]
            subprocess.run(command, check=True)


def write_pool(path: Path, rows: int, columns: int) -> None:
    """Correlated rows of unequal scales with a few outliers, block by block; every 20th repeats an earlier one."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(columns, columns)) * np.geomspace(1.0, 1e-2, columns)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
    for first in range(0, rows, 100_000):
        block = rng.normal(size=(min(100_000, rows - first), columns))
        block[::997] *= 3.0
        block[19::20] = block[:-1:20][: len(block[19::20])]
        array[first : first + len(block)] = 1.0 + block @ mixing
    array.flush()


def one(method: str, path: Path, picks: int) -> None:
    from aiida_mlip.kernel.selection.clusters import largest_cluster
    from aiida_mlip.kernel.selection.duplicates import duplicates
    from aiida_mlip.kernel.selection.greedy import farthest_points, greedy_maxdet, known_precision
    from aiida_mlip.kernel.selection.maxvol import maxvol
    from aiida_mlip.kernel.selection.pool import Budget, Candidates

    pool = np.load(path, mmap_mode="r")
    n = len(pool)
    wall, cpu = time.perf_counter(), time.process_time()
    if method == "duplicates":
        result = f"{int(duplicates(pool, np.full(n, 29)).sum())} of {n // 20} repeated rows found"
    elif method == "maxvol":
        active = maxvol(pool)
        result = f"max&#124;B&#124; {active.largest:.4f} after {active.swaps} swaps"
    else:
        groups = np.arange(n) // 100 if "groups" in method else None
        candidates = Candidates(pool, groups=groups)
        if method.startswith("maxdet"):
            chosen = greedy_maxdet(candidates, Budget(picks), precision=known_precision(pool[:5000]))
        else:
            chosen = (farthest_points if method == "farthest" else largest_cluster)(candidates, Budget(picks))
        result = f"{len(chosen)} chosen"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"| {method} | {time.perf_counter() - wall:.1f} | {time.process_time() - cpu:.1f} | {peak:.2f} | {result} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
