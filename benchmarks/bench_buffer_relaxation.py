"""What a relaxation of the buffer does to a fragment: γ of its centre, strangeness of its buffer, forces against EMT.

Run: ``PYTHONPATH=tests python benchmarks/bench_buffer_relaxation.py [--committees FOLDER]``: three minutes of one core
with a committee of tests/emt_copper.py at hand, which is trained otherwise. The survival of γ refuses nothing here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from emt_copper import LATTICE_ANG, committee
from graded_copper import COPPER, GradedPotential, graded, warm_copper

from aiida_mlip.io.fragments import FragmentKeys
from aiida_mlip.kernel.fragments.carve import carve
from aiida_mlip.kernel.fragments.fragment import FragmentLimits
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.workers.fragment_judge import FragmentJudge
from aiida_mlip.workers.model_loading import load_model

HOST = Host(COPPER.numbers.astype(np.uint8), COPPER.positions, COPPER.cell.array)
#: Parent, how its fragments are completed.
CASES = (("vacancy", "crystal"), ("surface", "crystal"), ("melt", "disordered"), ("vacancy", "disordered"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--committees", type=Path, default=Path("committees"), help="where committees are kept")
    parser.add_argument("--core", type=float, default=4.5)
    parser.add_argument("--buffer", type=float, default=3.0)
    options = parser.parse_args()
    source = graded(committee(options.committees))
    parents = {"vacancy": warm_copper((8, 8, 8), without=[1000]), "surface": surface(), "melt": melt()}
    print(
        "| parent | completion | relax | steps | moved | γ parent | γ fragment | buffer γ | F error centre | r < 3 Å |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, completion in CASES:
        for mode in ("never", "auto", "always"):
            study(source, parents[name], name, completion, mode, options)


def surface() -> Atoms:
    slab = fcc111("Cu", (10, 10, 10), a=LATTICE_ANG, vacuum=8.0, periodic=True)
    slab.positions += np.random.default_rng(0).normal(0.0, 0.08, slab.positions.shape)
    return slab


def melt() -> Atoms:
    """864 atoms of copper after 1 ps at 3000 K."""
    rng = np.random.default_rng(0)
    atoms = COPPER * (6, 6, 6)
    atoms.set_cell(atoms.cell.array * 3.8 / LATTICE_ANG, scale_atoms=True)
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=6000, rng=rng)
    Langevin(atoms, 4 * units.fs, temperature_K=3000, friction=0.05, rng=rng).run(250)
    atoms.calc = None
    return atoms


def study(
    source: GradedPotential, atoms: Atoms, name: str, completion: str, mode: str, options: argparse.Namespace
) -> None:
    grades = source.calculator.novelty(atoms)
    truth = atoms.copy()
    truth.calc = EMT()
    forces = truth.get_forces()
    limits = FragmentLimits(core_radius=options.core, buffer=options.buffer, max_atoms=700)
    keys = FragmentKeys(core_radius_ang=options.core, max_atoms=700, relax=mode, survival=1e3)
    judge = FragmentJudge(loader(source), source.grades, keys)
    shape = atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array, np.array(atoms.pbc)
    for centre in np.argsort(-grades)[[0, 10, 40]]:
        fragment = carve(*shape, int(centre), limits, completion=completion, host=HOST)
        judged = judge.judge(fragment.to_frames(np.zeros(16, np.uint8)), fragment.parent_values(grades))
        record = judged.record
        told = f"| {name} | {completion} | {mode} | {record.steps} | {record.n_moved} | {record.novelty_parent:.2f} | "
        told += f"{record.novelty_fragment:.2f} | {record.largest_buffer_novelty:.1f} |"
        if judged.frames is None:
            print(f"{told} {record.reason} | |")
            continue
        alone = judged.frames.to_ase(0)
        alone.calc = EMT()
        error = np.linalg.norm(alone.get_forces() - forces[fragment.parent_atom], axis=1)
        near = np.linalg.norm(fragment.positions, axis=1) < 3.0
        print(f"{told} {error[0]:.1e} | {np.sqrt((error[near] ** 2).mean()):.1e} |", flush=True)


def loader(source: GradedPotential) -> Callable:
    return lambda derivatives: load_model(
        source.package, device="cpu", features=True, frames="one", derivatives=derivatives
    )


if __name__ == "__main__":
    main()
