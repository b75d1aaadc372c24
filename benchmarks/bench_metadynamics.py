"""Biased dynamics: cost per step over time, how far it explores, the barrier of a double well with real statistics."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from aiida_mlip.io.colvars import read_pmf
from aiida_mlip.io.metadynamics import MetadynamicsRequest, MetadynamicsSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.metadynamics.descriptor import EnvironmentDescriptor
from aiida_mlip.kernel.metadynamics.environment_bias import descriptors, fit_environment_bias
from aiida_mlip.kernel.metadynamics.whitening import explored_volume, fit_whitening
from aiida_mlip.workers.metadynamics import main

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from double_well import DoubleWell, molecule


def run(folder: Path, structure, **keys) -> Frames:
    spec = MetadynamicsSpec.model_validate({"temperature_k": 300, "timestep_fs": 4, "friction_per_ps": 10, **keys})
    folder.mkdir()
    (folder / "input.json").write_text(MetadynamicsRequest(spec=spec).model_dump_json())
    (folder / "structures.npz").write_bytes(write_shard(from_ase([structure])))
    assert main([str(folder)]) == 0
    with (folder / "trajectory.npz").open("rb") as handle:
        return read_shard(handle)


def test_cost_per_step_is_flat_in_time(benchmark):
    """Evaluation of the bias after 50 and after 5000 depositions on 64 atoms; they wander, so new hills keep coming."""
    atoms = bulk("Cu", cubic=True).repeat((4, 2, 2))
    rng = np.random.default_rng(0)
    images = []
    for _ in range(40):
        image = atoms.copy()
        image.rattle(0.15, rng=rng)
        images.append(image)
    bias = fit_environment_bias(from_ase(images), cutoff_ang=4.5, n_radial=4, components=3, width=0.5)
    geometries = [(i.numbers, i.positions, i.cell.array, i.pbc) for i in images]

    def lay(count: int) -> None:
        for k in range(count):
            at = bias.evaluate(*geometries[k % len(geometries)])
            # a random walk of all points through the space stands for long dynamics
            moved = at.coordinates + rng.normal(size=at.coordinates.shape)
            bias.hills[29].deposit(moved, np.full(len(moved), 1e-3))

    def cost() -> float:
        # the best of several: other people use this machine too
        times = []
        for _ in range(15):
            began = time.perf_counter()
            for geometry in geometries[:5]:
                bias.evaluate(*geometry)
            times.append((time.perf_counter() - began) / 5)
        return min(times)

    lay(50)
    early, points = cost(), bias.n_hills
    lay(4950)
    late = cost()
    benchmark.extra_info |= {"early_ms": 1e3 * early, "late_ms": 1e3 * late, "points": [points, bias.n_hills]}
    print(f"\n64 atoms, 3 coordinates: {1e3 * early:.2f} ms with {points} points of 50 depositions, ", end="")
    print(f"{1e3 * late:.2f} ms with {bias.n_hills} points of 5000 depositions: ratio {late / early:.2f}")
    benchmark.pedantic(bias.evaluate, args=geometries[0], rounds=5)
    assert late < 1.5 * early


def test_explored_volume(benchmark, tmp_path):
    """32 copper atoms at 300 K, EMT, 2000 steps of 4 fs: cubes of descriptor space visited, biased over unbiased."""
    copper = bulk("Cu", cubic=True).repeat(2)
    common = {
        "engine": "environment",
        "forces": {"calculator": "ase.calculators.emt.EMT"},
        "n_steps": 2000,
        "record_every": 10,
        "environment": {"cutoff_ang": 4.5, "components": 2},
        "walls": {"min_distance_ang": 1.9, "max_temperature_k": 3000},
    }

    def both() -> dict[str, Frames]:
        return {
            "biased": run(tmp_path / "biased", copper, hills={"height_ev": 0.02, "every": 20}, **common),
            "unbiased": run(tmp_path / "unbiased", copper, hills={"height_ev": 1e-9, "every": 2000}, **common),
        }

    frames = benchmark.pedantic(both, rounds=1)
    descriptor = EnvironmentDescriptor(species=(29,), cutoff_ang=4.5)
    values = {name: descriptors(descriptor, part) for name, part in frames.items()}
    space = fit_whitening(values["unbiased"], components=2)
    volume = {name: explored_volume(space(value), edge=0.5) for name, value in values.items()}
    closest = smallest_distances(frames["biased"], cutoff=5).min()
    print(f"\nvolume {volume}, ratio {volume['biased'] / volume['unbiased']:.1f}, closest pair {closest:.2f} Å")
    print(f"frames { ({name: len(part) for name, part in frames.items()}) }")
    assert volume["biased"] >= 2 * volume["unbiased"]
    assert closest >= 1.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_barrier(benchmark, tmp_path, seed):
    """Two atoms in a double well of 0.25 eV at 300 K, 100 000 steps of COLVARS metadynamics."""
    variable = {"name": "d", "kind": "distance", "group1": [0], "group2": [1], "lower": 1.7, "upper": 3.3, "width": 0.1}
    benchmark.pedantic(
        run,
        args=(tmp_path / "run", molecule(cell=np.eye(3) * 20)),
        kwargs={
            "engine": "colvars",
            "forces": {"calculator": "double_well.DoubleWell"},
            "n_steps": 100_000,
            "record_every": 2000,
            "seed": seed,
            "hills": {"height_ev": 0.006, "every": 100, "bias_factor": 10},
            "walls": {"min_distance_ang": 1.0},
            "collective_variables": [variable],
        },
        rounds=1,
    )
    distance, energy = read_pmf((tmp_path / "run" / "bias" / "bias.pmf").read_text())
    distance, well = distance[:, 0], DoubleWell()
    barrier = energy[np.abs(distance - well.c) < 0.15].max() - energy[distance < well.c - 0.2].min()
    cost = json.loads((tmp_path / "run" / "output.json").read_text())["seconds_per_step"]
    print(f"\nbarrier {barrier:.4f} eV, exact {well.barrier(300):.4f}, {1e3 * cost:.2f} ms per step")
    assert barrier == pytest.approx(well.barrier(300), rel=0.10)
