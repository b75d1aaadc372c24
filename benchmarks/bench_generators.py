"""Generators: throughput of each, 100 random crystals against their promises, and many frames in bounded memory.

Run: ``python benchmarks/bench_generators.py [--frames 100000]`` (one core; prints Markdown tables; times are CPU time).
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import spglib
from ase.build import bulk

from aiida_mlip.kernel.coverage import coverage, reference_space
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits
from aiida_mlip.kernel.fingerprints import equal_structures
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.generate import Generation, Step
from aiida_mlip.kernel.generators import GENERATORS, empty_frames
from aiida_mlip.kernel.generators.assembly import formula
from aiida_mlip.kernel.generators.random_crystal import RandomCrystal, compatible_groups
from aiida_mlip.kernel.generators.rattle import Rattle
from aiida_mlip.kernel.generators.strain import Strain
from aiida_mlip.kernel.monte_carlo import swap_monte_carlo
from aiida_mlip.kernel.sanity import SanityLimits, sift

SI64 = from_ase([bulk("Si", cubic=True) * (2, 2, 2)])
SIC = from_ase([bulk("SiC", "zincblende", a=4.36, cubic=True)])
CU = from_ase([bulk("Cu", a=3.61)])

#: generator: parents and parameters of the measured run.
CASES: dict[str, tuple[Frames, dict[str, object]]] = {
    "rattle": (SI64, {"per_parent": 300}),
    "strain": (SI64, {"per_parent": 300, "volume": (0.9, 1.1)}),
    "random_structure": (empty_frames(), {"composition": "Si8", "count": 100}),
    "random_crystal": (empty_frames(), {"composition": "SiO2", "count": 50, "formula_units": (2, 4)}),
    "supercell": (SIC, {"min_image_distance_ang": 12.0}),
    "vacancy": (SIC, {"per_parent": 100, "min_image_distance_ang": 8.5}),
    "interstitial": (SIC, {"per_parent": 50, "species": "Li", "min_image_distance_ang": 8.5}),
    "antisite": (SIC, {"per_parent": 100, "min_image_distance_ang": 8.5}),
    "surface": (SIC, {"per_parent": 60}),
    "stacking_fault": (CU, {"per_parent": 60}),
    "grain_boundary": (CU, {"per_parent": 20, "plane": (0, 1, 2)}),
    "isolated_atom": (empty_frames(), {"species": ("H", "C", "N", "O", "Si", "Cu")}),
    "dimer": (empty_frames(), {"species": ("Si", "O", "H"), "per_pair": 100}),
    "trimer": (empty_frames(), {"species": ("Si", "O"), "per_triple": 100}),
    "cluster": (empty_frames(), {"composition": "Si13", "count": 100}),
    "nanoparticle": (SIC, {"per_parent": 30}),
    "decoration": (CU, {"species": ("Cu", "Au"), "grid": 4, "per_composition": 30, "min_image_distance_ang": 8.0}),
    "sqs": (CU, {"fractions": {"Cu": 0.5, "Au": 0.5}, "n_atoms": 16, "cutoffs_ang": (6.9,), "n_steps": 1000}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000, help="frames of the memory run")
    arguments = parser.parse_args()
    throughput()
    tools()
    crystals(100)
    memory(arguments.frames)


def throughput() -> None:
    print("\n| generator | frames | atoms | frames/s |\n|---|---|---|---|")
    for name, generator in GENERATORS.items():
        parents, keys = CASES[name]
        parameters = generator.parameters(**keys)
        warm = dict(generator.example)  # imports and tables that are loaded once
        generator(SIC if generator.needs_parents else empty_frames(), generator.parameters(**warm), _rng(0))
        start = time.process_time()
        frames = generator(parents, parameters, _rng(1))
        spent = max(time.process_time() - start, 1e-9)
        low, high = frames.natoms.min(), frames.natoms.max()
        print(f"| {name} | {len(frames)} | {low if low == high else f'{low}-{high}'} | {len(frames) / spent:.3g} |")


def tools() -> None:
    """What follows generation: filters, duplicates, coverage, Monte-Carlo steps."""
    frames = GENERATORS["rattle"](SI64, Rattle(200), _rng(0))
    numbers = np.array([29, 79] * 128, dtype=np.uint8)
    print("\n| tool (64 atoms a frame) | per second |\n|---|---|")
    for name, work, size in (
        ("sanity filters", lambda: sift(frames, SanityLimits()), 200),
        ("fingerprints and duplicates", lambda: equal_structures(frames), 200),
        ("coverage, fit and use", lambda: coverage([frames], reference_space([frames])), 600),
        (
            "Monte-Carlo swaps (without the energy)",
            lambda: swap_monte_carlo(numbers, lambda _: 0.0, temperature=300.0, n_steps=2000, rng=_rng(0)),
            2000,
        ),
    ):
        start = time.process_time()
        work()
        print(f"| {name} | {size / (time.process_time() - start):.3g} |")


def crystals(count: int) -> None:
    """Random crystals, each of a space group drawn beforehand, against composition, distances and symmetry."""
    limits = {"Si-Si": 2.4, "Si-O": 1.4, "O-O": 2.1}
    rng, kept = _rng(7), {"composition": 0, "distances": 0, "volume": 0, "symmetry": 0, "equal": 0, "higher": 0}
    start = time.process_time()
    for k in range(count):
        units = (1, 2, 3, 4)[k % 4]
        groups = compatible_groups("SiO2", units, RandomCrystal("SiO2", formula_units=units))
        # at these distances a few groups hold no crystal: another is drawn
        for group in rng.permutation(groups[groups > 1]):
            keys = {"space_groups": int(group), "min_distance_ang": limits, "volume_ang3_per_atom": (11.0, 20.0)}
            try:
                parameters = RandomCrystal("SiO2", formula_units=units, max_attempts=5, **keys)
                frames = GENERATORS["random_crystal"](empty_frames(), parameters, rng)
                break
            except ValueError:
                continue
        part = geometry(frames, 0)
        kept["composition"] += formula(part[0]) == f"O{2 * units}Si{units if units > 1 else ''}"
        kept["distances"] += closest_pair(*part, pair_limits(limits))[0] >= 1.0
        kept["volume"] += 11.0 <= abs(np.linalg.det(part[2])) / len(part[0]) <= 20.0
        found, at_least = _symmetry(part, int(group))
        kept["symmetry"] += at_least
        kept["equal"] += found == group
        kept["higher"] += found != group and at_least
    spent = time.process_time() - start
    print(f"\n| {count} random SiO2 crystals, 1 to 4 units, a group each | crystals |\n|---|---|")
    print(f"| composition as asked | {kept['composition']} |")
    print(f"| every pair at its minimum distance or more | {kept['distances']} |")
    print(f"| volume within the window | {kept['volume']} |")
    print(f"| space group at least the one asked for (spglib) | {kept['symmetry']} |")
    print(f"| ... equal / a supergroup | {kept['equal']} / {kept['higher']} |")
    print(f"| crystals/s, groups that fail included | {count / spent:.2g} |")


def _symmetry(part: tuple[np.ndarray, ...], group: int) -> tuple[int, bool]:
    """Space group that spglib finds, and whether it holds the one asked for.

    The operations spglib finds in the cell (translations within it included) are a group that contains the one asked
    for only if their number is a multiple of that group's (Lagrange), and each of its rotation types is there as often.
    """
    numbers, positions, cell, _ = part
    crystal = (cell, positions @ np.linalg.inv(cell), numbers)
    found = spglib.get_symmetry(crystal, symprec=1e-3)
    hall = next(h for h in range(1, 531) if spglib.get_spacegroup_type(h).number == group)
    asked = spglib.get_symmetry_from_database(hall)
    kinds = [{(round(np.trace(w)), round(np.linalg.det(w))): 0 for w in asked["rotations"]} for _ in (0, 1)]
    for counts, rotations in zip(kinds, (asked["rotations"], found["rotations"]), strict=True):
        for w in rotations:
            kind = (round(np.trace(w)), round(np.linalg.det(w)))
            counts[kind] = counts.get(kind, 0) + 1
    multiple = len(found["rotations"]) % len(asked["rotations"]) == 0
    enough = all(kinds[1].get(kind, 0) >= n for kind, n in kinds[0].items())
    return int(spglib.get_symmetry_dataset(crystal, symprec=1e-3).number), multiple and enough


def memory(count: int) -> None:
    """Peak memory of a specification of two sizes: strained and rattled cells of 8 atoms, filtered, 40 a parent."""
    print("\n| frames made | kept | peak memory above the start, MB | arrays of all frames, MB | frames/s |")
    print("|---|---|---|---|---|")
    for total in (count // 10, count):
        # a process of its own: the peak must not be that of what ran before
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            made, size, spent, peak = pool.submit(_measure, total).result()
        print(f"| {made[0]} | {made[1]} | {peak:.0f} | {size:.0f} | {made[0] / spent:.3g} |", flush=True)


def _measure(total: int) -> tuple[tuple[int, int], float, float, float]:
    silicon = from_ase([bulk("Si", cubic=True)])
    cells = max(total // 40, 1)
    steps = [
        Step("strain", "strain", Strain(cells, 0.05), keep=False),
        Step("rattle", "rattle", Rattle(40), parents=("strain",)),
    ]
    before = _memory_mb("VmRSS")
    start, size, kept = time.process_time(), 0.0, 0
    run = Generation(silicon, steps, seed=0)
    for block in run:
        size += sum(value.nbytes for value in vars(block).values() if isinstance(value, np.ndarray)) / 1e6
        kept += len(block)
    made = sum(step.made for step in run.table)
    return (made, kept), size, time.process_time() - start, _memory_mb("VmHWM") - before


def _memory_mb(field: str) -> float:
    """Current (VmRSS) or largest (VmHWM) memory of this process; ``ru_maxrss`` would carry over that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1e3


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


if __name__ == "__main__":
    main()
