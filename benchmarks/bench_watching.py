"""What it costs to watch dynamics, and LAMMPS against ASE with the same potential. Prints Markdown tables.

Run: ``python benchmarks/bench_watching.py`` (trains four small potentials of copper first, a few minutes, or
takes them from ``--committee FOLDER``, where an earlier run or a test session left them). One thread. Ratios are of
blocks of steps that take turns, so that a machine shared with others slows all sides alike; the median of the blocks
counts. The verdict is on CPU time, which with one thread is what the wall time of a quiet machine would be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

#: fcc supercells of four atoms per cell.
CELLS = {108: (3, 3, 3), 500: (5, 5, 5), 1008: (6, 6, 7)}
TEMPERATURE_K = 300.0
BLOCK = 10
Advance = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--committee", type=Path, help="folder with model_0.nequip.zip ... and the frames")
    parser.add_argument("--atoms", type=int, nargs="+", default=[108, 1008], choices=sorted(CELLS))
    parser.add_argument("--modes", nargs="+", default=["compiled", "eager"])
    parser.add_argument("--blocks", type=int, default=15, help=f"of {BLOCK} steps for every variant")
    parser.add_argument("--seeds", type=int, default=20, help="heated runs of the last table")
    parser.add_argument("--only", nargs="+", default=["watch", "explore", "lammps", "heating"], help="which tables")
    options = parser.parse_args()
    folder = options.committee or Path(tempfile.mkdtemp(prefix="bench-watching-"))
    packages, data = committee(folder)
    print(f"load {os.getloadavg()[0]:.1f} at the start")
    if "watch" in options.only:
        bench_watch(packages, data, options)
    if "explore" in options.only:
        bench_explore(packages, data, options)
    if "lammps" in options.only:
        bench_lammps(packages, data, options)
    if "heating" in options.only:
        bench_heating(packages, data, options.seeds)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def committee(folder: Path):
    """Packages and frames: those in the folder, or newly made there."""
    import emt_copper

    found = sorted(folder.glob("model_*.nequip.zip"))
    if found:
        return found, emt_copper.load(folder)
    made = emt_copper.committee(folder)
    return list(made.packages), made.data


# -- the cost of watching --------------------------------------------------------------------------------------


def bench_watch(packages: Sequence[Path], data, options) -> None:
    print("\n| atoms | mode | ms/step unwatched | watched | ratio (wall) | ratio (CPU) | bar | ok |")
    print("|---|---|---|---|---|---|---|---|")
    for mode in options.modes:
        parts = Parts(packages, data, mode)
        for natoms in options.atoms:
            variants = {"": parts.dynamics(natoms)}
            variants["γ every step"] = parts.dynamics(natoms, every=1)
            variants["γ every 10 steps"] = parts.dynamics(natoms, every=10)
            variants["γ and û (4 members) every 10 steps"] = parts.dynamics(natoms, every=10, error=True)
            wall, cpu = take_turns(list(variants.values()), options.blocks)
            bars = {"γ every step": 1.15, "γ every 10 steps": 1.03}
            for k, name in enumerate(variants):
                if k == 0:
                    continue
                ratio = float(np.median(wall[k] / wall[0]))
                of_cpu = float(np.median(cpu[k] / cpu[0]))
                bar = bars.get(name)
                verdict = "" if bar is None else of_cpu <= bar
                base = f"{1e3 * float(np.median(wall[0])) / BLOCK:.2f}"
                row = [natoms, mode, base, name, f"{ratio:.3f}", f"{of_cpu:.3f}", bar or "", verdict]
                print(f"| {' | '.join(map(str, row))} |", flush=True)


class Parts:
    """Loaded models, grades and calibration of one mode."""

    def __init__(self, packages: Sequence[Path], data, mode: str) -> None:
        from aiida_mlip.kernel.calibration import calibrate
        from aiida_mlip.kernel.committee import force_deviation
        from aiida_mlip.kernel.uncertainty.grades import fit_grades
        from aiida_mlip.workers.inference import predict
        from aiida_mlip.workers.model_loading import load_model

        self.models = [
            load_model(path, device="cpu", mode=mode, features=k == 0, frames="one") for k, path in enumerate(packages)
        ]
        train = predict(self.models[0], data.train, features=True)
        self.grades = fit_grades(train.features, data.train.numbers)
        forces = np.array([predict(model, data.val).forces for model in self.models])
        self.calibration = calibrate(
            force_deviation(forces), forces[0] - data.val.forces, data.val.numbers, group=data.val.atom_rows()
        )

    def calculator(self, member: int = 0):
        from aiida_mlip.workers.force_source import PotentialCalculator

        return PotentialCalculator(self.models[member], shifts={}, grades=self.grades if member == 0 else None)

    def watch(self, calculator, *, error: bool, **thresholds):
        from aiida_mlip.io.watch import WatchSpec
        from aiida_mlip.workers.watch import Watch

        others = [self.calculator(member) for member in range(1, len(self.models))] if error else []
        spec = WatchSpec(error_where="always" if error else "novel", **thresholds)
        return Watch(spec, calculator, committee=others, calibration=self.calibration if error else None)

    def dynamics(self, natoms: int, *, every: int | None = None, error: bool = False) -> Advance:
        """ASE at constant energy, watched or not."""
        atoms, calculator = crystal(natoms), self.calculator()
        atoms.calc = calculator
        integrator = VelocityVerlet(atoms, 2.0 * units.fs)
        watch = None if every is None else self.watch(calculator, error=error, every=every)
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            for _ in range(n):
                integrator.step()
                done += 1
                if watch is not None and watch.due(done):
                    seen = watch.observe(atoms, done)
                    if seen.stop:
                        raise SystemExit(f"the benchmark left the domain of its potential: {seen.message}")

        return advance


def crystal(natoms: int, *, temperature_k: float = TEMPERATURE_K, seed: int = 1) -> Atoms:
    """fcc copper with velocities."""
    atoms = bulk("Cu", "fcc", a=3.61, cubic=True).repeat(CELLS[natoms])
    rng = np.random.default_rng(seed)
    atoms.set_momenta(
        rng.normal(size=(natoms, 3)) * np.sqrt(2 * units.kB * temperature_k * atoms.get_masses())[:, None]
    )
    return atoms


def take_turns(variants: Sequence[Advance], blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """(variants, blocks) seconds of wall and of CPU per block, after one block each that does not count."""
    wall, cpu = np.zeros((2, len(variants), blocks))
    for block in range(-1, blocks):
        for k in np.roll(np.arange(len(variants)), block):
            began = time.perf_counter(), time.process_time()
            variants[k](BLOCK)
            if block >= 0:
                wall[k, block], cpu[k, block] = time.perf_counter() - began[0], time.process_time() - began[1]
    return wall, cpu


# -- the program -----------------------------------------------------------------------------------------------


def bench_explore(packages: Sequence[Path], data, options) -> None:
    """What ``aiida-mlip-explore`` runs, whole: walls, records, checkpoints; start and end of a run included."""
    print("\n| kind of `explore` | atoms | mode | ms/step unwatched | γ every | ratio (wall) | ratio (CPU) |")
    print("|---|---|---|---|---|---|---|")
    natoms, mode, steps = max(options.atoms), options.modes[0], 4 * BLOCK
    parts = Parts(packages[:2], data, mode)
    for kind in ("md", "lammps"):
        times = np.array([[explore(parts, kind, natoms, steps, every) for every in (0, 1, 10)] for _ in range(5)])
        ratio = np.median(times / times[:, :1], axis=0)
        base = 1e3 * np.median(times[:, 0, 0]) / steps
        for k, every in ((1, 1), (2, 10)):
            wall, cpu = ratio[k]
            print(f"| {kind} | {natoms} | {mode} | {base:.2f} | {every} | {wall:.3f} | {cpu:.3f} |", flush=True)


def explore(parts: Parts, kind: str, natoms: int, steps: int, every: int) -> tuple[float, float]:
    """Seconds of wall and CPU of one run; ``every`` 0: not watched."""
    from aiida_mlip.io.explore import ExploreRequest, ExploreSpec
    from aiida_mlip.kernel.frames import from_ase
    from aiida_mlip.workers.explore_simulation import Simulation

    section = {"timestep_fs": 2.0}
    if kind == "md":
        segment = {"ensemble": "langevin", "n_steps": steps, "temperature_k": TEMPERATURE_K}
        section["schedule"] = [segment]
    else:
        section |= {"n_steps": steps, "temperature_k": TEMPERATURE_K}
    request = ExploreRequest(spec=ExploreSpec(kind=kind, record_every=steps, **{kind: section}))
    calculator = parts.calculator()
    watch = parts.watch(calculator, error=False, every=every) if every else None
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        simulation = Simulation(Path(folder), request, calculator, from_ase([crystal(natoms)]), watch)
        began = time.perf_counter(), time.process_time()
        simulation.run()
        return time.perf_counter() - began[0], time.process_time() - began[1]


# -- LAMMPS ----------------------------------------------------------------------------------------------------


def bench_lammps(packages: Sequence[Path], data, options) -> None:
    from aiida_mlip.workers.lammps_driver import LammpsDynamics

    print("\n| atoms | mode | steps/s ASE | steps/s LAMMPS | ratio (wall) | ratio (CPU) | bar | ok |")
    print("|---|---|---|---|---|---|---|---|")
    for mode in options.modes:
        parts = Parts(packages[:2], data, mode)
        for natoms in options.atoms:
            calculator, atoms = parts.calculator(), crystal(natoms)

            def forces(image: Atoms, calculator=calculator) -> tuple[float, np.ndarray]:
                found = calculator.get_property("forces", image)
                return calculator.results["energy"], found

            with LammpsDynamics(
                atoms, forces, timestep_fs=2.0, temperature_k=TEMPERATURE_K, friction_per_ps=0.0, seed=1
            ) as dynamics:
                wall, cpu = take_turns([parts.dynamics(natoms), dynamics.run], options.blocks)
            rates = BLOCK / np.median(wall, axis=1)
            ratio = float(np.median(wall[0] / wall[1]))
            of_cpu = float(np.median(cpu[0] / cpu[1]))
            bar = 0.9 if natoms >= 1000 else None
            verdict = "" if bar is None else of_cpu >= bar
            print(
                f"| {natoms} | {mode} | {rates[0]:.2f} | {rates[1]:.2f} | {ratio:.3f} | {of_cpu:.3f} | {bar or ''} | "
                f"{verdict} |",
                flush=True,
            )


# -- out of the domain -----------------------------------------------------------------------------------------


def bench_heating(packages: Sequence[Path], data, seeds: int) -> None:
    """300 K to 6000 K in 4 ps: which comes first, the watch's stop or a pair below its limit?"""
    from ase.md.langevin import Langevin

    parts = Parts(packages[:2], data, "compiled")
    stops: list[str] = []
    temperatures: list[float] = []
    for seed in range(seeds):
        calculator, atoms = parts.calculator(), crystal(108, seed=seed)
        atoms.calc = calculator
        watch = parts.watch(calculator, error=False, every=10)
        thermostat = Langevin(
            atoms,
            timestep=2.0 * units.fs,
            temperature_K=TEMPERATURE_K,
            friction=0.02 / units.fs,
            fixcm=False,
            rng=np.random.default_rng(seed),
        )
        stop = "none"
        for step in range(1, 2001):
            thermostat.set_temperature(temperature_K=TEMPERATURE_K + 5700.0 * step / 2000)
            thermostat.step()
            closest = calculator.closest_pair(atoms, watch.limits)[0]
            if closest < 1:
                stop = "pair_distance"
            elif watch.due(step):
                stop = watch.observe(atoms, step).stop or stop
            if stop != "none":
                temperatures.append(TEMPERATURE_K + 5700.0 * step / 2000)
                break
        stops.append(stop)
    counts = {name: stops.count(name) for name in sorted(set(stops))}
    before = stops.count("novelty")
    print(
        "\n| heated runs, 108 atoms | stopped by | before any pair below its limit | bar | ok | thermostat then (K) |"
    )
    print("|---|---|---|---|---|---|")
    span = f"{min(temperatures):.0f} to {max(temperatures):.0f}" if temperatures else ""
    print(f"| {seeds} | {counts} | {before / seeds:.0%} | 95% | {before >= 0.95 * seeds} | {span} |")


if __name__ == "__main__":
    main()
