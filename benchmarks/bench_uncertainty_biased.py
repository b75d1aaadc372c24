"""Uncertainty-biased dynamics: what it costs per step, and how far it sees, beside plain and hotter dynamics.

    python benchmarks/bench_uncertainty_biased.py [folder] [--steps 500] [--seeds 2]

One potential of bulk copper at 300 K (trained here, or kept in the folder), 32 atoms, 4 fs. The space is that of the
potential's own features, whitened on the plain run: occupied cells of edge 0.5 standard deviations in two dimensions.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.metadynamics import MetadynamicsReport, MetadynamicsRequest, MetadynamicsSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.metadynamics.whitening import explored_volume, fit_whitening
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.metadynamics import main as program
from aiida_mlip.workers.model_loading import LoadedModel, load_model
from aiida_mlip.workers.uncertain_potential import UncertainPotential, UncertaintyBias

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import emt_copper

RUNS: dict[str, dict[str, Any]] = {
    "plain, 300 K": {"strength": 1e-9},
    "plain, 900 K": {"strength": 1e-9, "temperature_k": 900},
    "biased by 0.25": {"strength": 0.25},
    "biased by 0.5": {"strength": 0.5},
    "biased by 0.5, Laplace": {"strength": 0.5, "measure": "laplace"},
}


def cost(package: Path, grades: Grades) -> None:
    """Milliseconds per force call, eager."""
    print("| atoms | energy and forces, ms | with uncertainty and its slope, ms | ratio |\n|---|---|---|---|")
    plain = PotentialCalculator(load_model(package, device="cpu", features=True, frames="one"), shifts={})
    slope = UncertainPotential(
        load_model(package, device="cpu", features=True, frames="one", derivatives=False),
        shifts={},
        grades=grades,
        measure="novelty",
        saturation=4.0,
    )
    for repeat in ((2, 2, 2), (3, 3, 3), (5, 5, 5)):
        atoms = bulk("Cu", cubic=True, a=emt_copper.LATTICE_ANG).repeat(repeat)
        rng, times = np.random.default_rng(0), {"plain": [], "slope": []}
        bias = UncertaintyBias(slope, 1.0)
        for _ in range(25):  # in turn: the load of the machine changes
            atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
            start = time.perf_counter()
            plain.get_property("forces", atoms)
            middle = time.perf_counter()
            slope.get_property("forces", atoms)
            bias.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
            times["plain"].append(middle - start)
            times["slope"].append(time.perf_counter() - middle)
        one, other = (1e3 * min(values) for values in times.values())
        print(f"| {len(atoms)} | {one:.1f} | {other:.1f} | {other / one:.2f} |", flush=True)


def run(folder: Path, package: Path, grades: Grades, *, seed: int, steps: int, **keys: Any) -> Frames:
    folder.mkdir()
    temperature = keys.pop("temperature_k", 300)
    spec = MetadynamicsSpec.model_validate(
        {
            "engine": "uncertainty",
            "temperature_k": temperature,
            "timestep_fs": 4,
            "n_steps": steps,
            "record_every": 10,
            "friction_per_ps": 10,
            "seed": seed,
            "uncertainty": {"ramp_steps": 50, "memory_steps": 50, "update_every": 5, **keys},
            "walls": {"min_distance_ang": 1.7, "max_temperature_k": 5000},
        }
    )
    (folder / "input.json").write_text(MetadynamicsRequest(spec=spec).model_dump_json())
    copper = bulk("Cu", cubic=True, a=emt_copper.LATTICE_ANG).repeat(2)
    (folder / "structures.npz").write_bytes(write_shard(from_ase([copper])))
    (folder / "statistics.npz").write_bytes(write_npz(grades.arrays()))
    shutil.copy(package, folder / "model.nequip.zip")
    if program([str(folder)]) != 0:
        raise SystemExit((folder / "output.json").read_text())
    report = MetadynamicsReport.model_validate_json((folder / "output.json").read_text())
    print(f"seed {seed}: {report.trajectories[0].stopped_by}, tau {report.tau_ev:.3g} eV", flush=True)
    with (folder / "trajectory.npz").open("rb") as handle:
        return read_shard(handle)


def judge(model: LoadedModel, grades: Grades, frames: Frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, novelty, and length of the force errors of all atoms."""
    found = predict(model, frames, features=True)
    truth = []
    for row in range(len(frames)):
        atoms = frames.to_ase(row)
        atoms.calc = EMT()
        truth.append(atoms.get_forces())
    novelty = grades.novelty(found.features, frames.numbers)
    return found.features, novelty, np.linalg.norm(found.forces - np.concatenate(truth), axis=1)


def explore(package: Path, grades: Grades, work: Path, *, steps: int, seeds: int) -> None:
    model = load_model(package, device="cpu", features=True)
    rows: dict[str, list[list[float]]] = {name: [] for name in RUNS}
    for seed in range(seeds):
        space, base = None, 1.0
        for number, (name, keys) in enumerate(RUNS.items()):
            frames = run(work / f"{number}-{seed}", package, grades, seed=seed, steps=steps, **keys)
            features, novelty, error = judge(model, grades, frames)
            space = space or fit_whitening(features, components=2)
            volume = explored_volume(space(features), edge=0.5)
            base = volume if number == 0 else base
            rows[name].append(
                [
                    volume / base,
                    100 * np.mean(novelty > 1),
                    float(np.median(novelty.reshape(len(frames), -1).max(axis=1))),
                    float(np.sqrt(np.mean(error**2))),
                    float(smallest_distances(frames, cutoff=5).min()),
                ]
            )
    head = ["run", "volume / plain", "atoms with γ > 1, %", "median of largest γ", "rms error, eV/Å", "closest pair, Å"]
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, values in rows.items():
        mean = np.mean(values, axis=0)
        print(f"| {name} | {mean[0]:.1f} | {mean[1]:.1f} | {mean[2]:.2f} | {mean[3]:.3f} | {mean[4]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="keep the committee here (default: temporary)")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        committee = emt_copper.committee(arguments.folder or Path(temporary))
        package, train = committee.packages[0], committee.data.train
        model = load_model(package, device="cpu", features=True)
        grades = fit_grades(predict(model, train, features=True).features, train.numbers)
        cost(package, grades)
        work = Path(temporary) / "runs"
        work.mkdir()
        explore(package, grades, work, steps=arguments.steps, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
