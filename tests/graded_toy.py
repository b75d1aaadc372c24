"""The toy potential with grades of slightly rattled silicon carbide, as files of a dynamics program."""

from __future__ import annotations

import shutil
from pathlib import Path

from ase import Atoms
from ase.build import bulk

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model


def carbide(seed: int, rattle: float = 0.05) -> Atoms:
    """Eight atoms of silicon carbide at the lattice constant of the toy potential."""
    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def grades_of(package: Path, frames: Frames | None = None) -> Grades:
    """Grades of a package on some frames (default: 40 cells of silicon carbide)."""
    frames = from_ase([carbide(seed) for seed in range(40)]) if frames is None else frames
    model = load_model(package, device="cpu", features=True)
    return fit_grades(predict(model, frames, features=True).features, frames.numbers)


def graded_folder(folder: Path, package: Path, frames: Frames | None = None) -> Path:
    """Folder with the package and its grades under the names that the programs look for."""
    (folder / "statistics.npz").write_bytes(write_npz(grades_of(package, frames).arrays()))
    shutil.copy(package, folder / "model.nequip.zip")
    return folder
