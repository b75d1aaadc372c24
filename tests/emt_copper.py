"""Copper with EMT as the teacher: a training domain at 300 K, frames far outside of it, and a committee trained on it.

The benchmark of uncertainties: what a potential of rattled bulk copper says of surfaces, compressed and hot copper.
All structures come from fixed seeds; the trainings go the way the package goes, by the configuration that it writes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from filelock import FileLock

from aiida_mlip.io.extxyz import write_extxyz
from aiida_mlip.io.nequip_config import CONFIG_FILE, TRAIN_FILE, VAL_FILE, TrainingData, config_text, nequip_config
from aiida_mlip.io.nequip_script import PACKAGE_FILE, after_training, before_training
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.reference_energies import fit_reference_energies, rms_force
from aiida_mlip.kernel.splits import Part, split_frames
from aiida_mlip.protocols.model import deep_merge
from aiida_mlip.protocols.train import train_settings

FIDELITY = "emt"
LATTICE_ANG = 3.61
#: The parts of the test set, in the order of their index.
REGIONS = ("bulk", "surface", "compressed", "hot")
MEMBERS = 4
#: Folder of nequip-train and nequip-package.
PROGRAMS = Path(sys.executable).parent
#: Two layers, vectors, eight features: what separates the methods, not what gives the smallest error.
TRAINING: dict[str, Any] = {
    "protocol": "fast",
    "seed": 11,
    "device": "cpu",
    "model": {
        "cutoff_ang": 4.5,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 16,
        "num_bessels": 6,
        "radial_mlp_width": 16,
        "dtype": "float32",
    },
    "loss": {"energy": 10.0, "forces": 1.0},
    "optimizer": {"learning_rate": 0.02, "schedule": "cosine", "final_fraction": 0.02},
    "batch_size": 5,
    "max_epochs": 20,
    "ema_decay": 0.95,
}


# -- structures ------------------------------------------------------------------------------------------------


def bulk_frames(n: int, *, seed: int) -> Frames:
    """n labelled bulk cells of 16 to 36 atoms as they look at 300 K: strained by 1.5 %, rattled by 0.04-0.09 Å."""
    rng = np.random.default_rng(seed)
    return _labelled([_thermal(_cell(rng), rng, strain=0.015, rattle=rng.uniform(0.04, 0.09)) for _ in range(n)])


def surface_frames(n: int, *, seed: int) -> Frames:
    """n labelled slabs of the (100), (110) and (111) surfaces, four to six layers, as they look at 300 K."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(n):
        make, size = [(fcc100, (2, 2, 5)), (fcc111, (2, 2, 5)), (fcc110, (2, 2, 6))][index % 3]
        slab = make("Cu", size, a=LATTICE_ANG, vacuum=6.0, periodic=True)
        images.append(_thermal(slab, rng, strain=0.015, rattle=rng.uniform(0.04, 0.09)))
    return _labelled(images)


def compressed_frames(n: int, *, seed: int) -> Frames:
    """n labelled bulk cells at 0.68 to 0.82 of the volume, rattled by 0.04-0.09 Å."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = _cell(rng)
        atoms.set_cell(atoms.cell.array * rng.uniform(0.68, 0.82) ** (1 / 3), scale_atoms=True)
        images.append(_thermal(atoms, rng, strain=0.015, rattle=rng.uniform(0.04, 0.09)))
    return _labelled(images)


def hot_frames(n: int, *, seed: int) -> Frames:
    """n labelled bulk cells rattled by 0.15-0.22 Å: twice what the training knows at most, no pair below 1.7 Å."""
    rng = np.random.default_rng(seed)
    images: list[Atoms] = []
    while len(images) < n:
        atoms = _thermal(_cell(rng), rng, strain=0.02, rattle=rng.uniform(0.15, 0.22))
        if not len(neighbor_list("i", atoms, 1.7)):  # no collision: those are for a watch on pair distances
            images.append(atoms)
    return _labelled(images)


def ood_frames(n: int, *, seed: int) -> Frames:
    """About n labelled frames outside of the training domain: surfaces, compressed, hot, one third each."""
    third = n // 3
    makers = (surface_frames, compressed_frames, hot_frames)
    return concatenate([make(third, seed=seed + offset) for offset, make in enumerate(makers)])


def at_surface(frames: Frames) -> np.ndarray:
    """(a,) atoms with fewer than eleven neighbours within 1.22 nearest-neighbour distances."""
    reach = 1.22 * LATTICE_ANG / np.sqrt(2)
    images = [frames.to_ase(row) for row in range(len(frames))]
    counts = [np.bincount(neighbor_list("i", atoms, reach), minlength=len(atoms)) for atoms in images]
    return np.concatenate(counts) < 11


def _cell(rng: np.random.Generator) -> Atoms:
    kind = rng.integers(4)
    if kind == 3:  # a hexagonal one: other directions along the axes
        return fcc111("Cu", (2, 3, 6), a=LATTICE_ANG, periodic=True, vacuum=None)
    return bulk("Cu", "fcc", a=LATTICE_ANG, cubic=True).repeat([(2, 2, 1), (2, 2, 2), (3, 2, 1)][kind])


def _thermal(atoms: Atoms, rng: np.random.Generator, *, strain: float, rattle: float) -> Atoms:
    tensor = rng.normal(0.0, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (tensor + tensor.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(0.0, rattle, (len(atoms), 3))
    atoms.pbc = True
    return atoms


def _labelled(images: Sequence[Atoms]) -> Frames:
    done = []
    for atoms in images:
        plain = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        plain.calc = EMT()
        plain.get_forces()
        plain.get_stress()
        done.append(plain)
    return from_ase(done, fidelity=FIDELITY)


# -- the data set ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopperData:
    """Labelled frames of the benchmark.

    :param train: what the committee is trained and validated on.
    :param val: held out, of the same distribution: for the calibration.
    :param test: of the same distribution and outside of it.
    :param region: (n,) index into :data:`REGIONS` of each test frame.
    """

    train: Frames
    val: Frames
    test: Frames
    region: np.ndarray

    @property
    def atom_region(self) -> np.ndarray:
        """(a,) region of each test atom."""
        return self.region[self.test.atom_rows()]


def copper_data() -> CopperData:
    """The data set: 200 frames to train on, 60 to calibrate with, 60 + 3 × 30 to test on."""
    parts = [
        bulk_frames(60, seed=3),
        surface_frames(30, seed=4),
        compressed_frames(30, seed=5),
        hot_frames(30, seed=6),
    ]
    return CopperData(
        train=bulk_frames(200, seed=1),
        val=bulk_frames(60, seed=2),
        test=concatenate(parts),
        region=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
    )


# -- training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopperCommittee:
    """Packages of a trained committee (``packages``) and the frames that belong to it (``data``)."""

    packages: tuple[Path, ...]
    data: CopperData


def train_committee(
    folder: Path,
    frames: Frames,
    *,
    members: int = MEMBERS,
    overrides: Mapping[str, Any] | None = None,
    programs: Path = PROGRAMS,
) -> list[Path]:
    """Train a committee, two at a time, each member on nine tenths of the frames in its own choice and order."""
    split = split_frames(frames, test=0.0, val=0.1, bag=0.9, seed=5, members=members, group_by="frame")

    def train(member: int) -> Path:
        parts = [frames.take(split.parts[member] == part) for part in (Part.TRAIN, Part.VAL)]
        package = train_one(folder / f"member_{member}", *parts, member=member, overrides=overrides, programs=programs)
        return package.rename(folder / f"model_{member}.nequip.zip")

    with ThreadPoolExecutor(2) as pool:  # each training is a process of one thread
        return list(pool.map(train, range(members)))


def train_one(
    folder: Path,
    train: Frames,
    val: Frames,
    *,
    member: int = 0,
    overrides: Mapping[str, Any] | None = None,
    programs: Path = PROGRAMS,
) -> Path:
    """One training with ``nequip-train`` and ``nequip-package`` by the files of the package; returns its package.

    :param programs: folder where they are.
    """
    settings = train_settings(deep_merge(TRAINING, overrides or {}))
    data = TrainingData(
        species=train.species,
        reference_energies=fit_reference_energies(train, train.species, prior={}),
        force_scale_ev_per_ang=rms_force(train),
        with_energy=True,
        with_forces=True,
        with_stress=True,
    )
    folder.mkdir(parents=True)
    config = nequip_config(settings.model_dump(), data, seed=settings.seed + member)
    (folder / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")
    for name, frames in ((TRAIN_FILE, train), (VAL_FILE, val)):
        with (folder / name).open("w", encoding="utf-8") as handle:
            write_extxyz(frames, handle, nan_missing=True, lineage=False)
    script = "\n".join(
        [
            before_training(threads=1, initial=None),
            f"{programs}/nequip-train -cn config hydra.run.dir=. hydra.output_subdir=null > train.out 2> train.err",
            after_training(str(programs / "nequip-package")),
        ]
    )
    subprocess.run(["bash", "-c", script], cwd=folder, check=False)
    package = folder / PACKAGE_FILE
    if not package.is_file():
        logs = [folder / name for name in ("train.err", "package.out") if (folder / name).is_file()]
        raise RuntimeError("\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs))
    return package


# -- files, for other processes --------------------------------------------------------------------------------


def committee(shared: Path, programs: Callable[[], Path] = lambda: PROGRAMS) -> CopperCommittee:
    """The committee kept in a folder; the first process that asks for it trains it, the others wait.

    :param programs: gives the folder of nequip-train and nequip-package, where they are needed.

    The name of its folder is a hash of this file and of the version of NequIP: a change of either trains a new one.
    """
    recipe = Path(__file__).read_bytes() + version("nequip").encode()
    folder = shared / f"emt-copper-{hashlib.sha256(recipe).hexdigest()[:12]}"
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "region.npy").exists():  # the last thing written
            shutil.rmtree(folder, ignore_errors=True)  # of a session that was ended
            data = copper_data()
            train_committee(folder, data.train, programs=programs())
            save(folder, data)
    return CopperCommittee(tuple(folder / f"model_{member}.nequip.zip" for member in range(MEMBERS)), load(folder))


def save(folder: Path, data: CopperData) -> None:
    """Write the frames as shards, and where each test frame comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val", "test"):
        (folder / f"{name}.npz").write_bytes(write_shard(getattr(data, name)))
    np.save(folder / "region.npy", data.region)


def load(folder: Path) -> CopperData:
    """Read what :func:`save` wrote."""
    parts = {}
    for name in ("train", "val", "test"):
        with (folder / f"{name}.npz").open("rb") as handle:
            parts[name] = read_shard(handle, source=name)
    return CopperData(**parts, region=np.load(folder / "region.npy"))
