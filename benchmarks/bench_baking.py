"""How exact baking is, and what it costs. Prints a Markdown table.

Run: ``python benchmarks/bench_baking.py`` (about five minutes of one core, most of it compiling; ``--no-compile`` for a
look). A joint model of three levels of theory is trained for one epoch on labels of Lennard-Jones, so that the vectors
of the levels are as far apart as they are drawn. For each level the baked package is held against the joint model, told
the level, on 20 distorted crystals; then the same through ``nequip-compile``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import ase.io
import numpy as np
import yaml
from ase.build import bulk
from ase.calculators.lj import LennardJones

from aiida_mlip.io.bake import BAKED, BakeRequest
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.workers.bake import bake
from aiida_mlip.workers.inference import energy_shifts, predict
from aiida_mlip.workers.model_loading import load_model

BIN = Path(sys.executable).parent
TYPES = ["Si", "C"]
#: Energies of isolated atoms (eV) of each level of theory; the joint model has those of the last one.
LEVELS = {
    "lda": {"Si": -107.01, "C": -149.23},
    "pbe": {"Si": -108.66, "C": -151.87},
    "hse": {"Si": -109.42, "C": -152.94},
}
MODEL = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 3,
    "type_names": TYPES,
    "r_max": 4.5,
    "num_bessels": 8,
    "num_layers": 2,
    "l_max": 1,
    "num_features": 16,
    "radial_mlp_width": 32,
    "avg_num_neighbors": 30.0,
    "per_type_energy_shifts": LEVELS["hse"],
    "per_type_energy_scales": 1.0,
    "categorical_graph_field_embed": [{"field": "dataset", "num_features": 8, "min": 0, "max": len(LEVELS) - 1}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--precisions", nargs="+", default=["float32", "float64"])
    options = parser.parse_args()
    frames = from_ase(crystals(20), fidelity="lj")
    print("| precision | level | run | baking (s) | max. energy difference (eV/atom) | max. force difference (eV/Å) |")
    print("|---|---|---|---|---|---|")
    for dtype in options.precisions:
        with tempfile.TemporaryDirectory() as name:
            compare(trained(Path(name), dtype), frames, dtype, compiled=not options.no_compile)


def crystals(n: int, level: int = 0) -> list:
    """Cells of silicon and silicon carbide, distorted more and more, with labels."""
    images = []
    for seed in range(n):
        atoms = bulk("Si", cubic=True) if seed % 2 else bulk("SiC", "zincblende", a=4.4, cubic=True)
        atoms.set_cell(atoms.cell * (1.0 + 0.01 * (seed % 5 - 2)), scale_atoms=True)
        atoms.rattle(0.02 + 0.01 * seed, seed=seed)
        atoms.calc = LennardJones(sigma=1.8, epsilon=0.5 + 0.1 * level, rc=4.0)
        atoms.get_forces()
        atoms.info["dataset"] = level
        images.append(atoms)
    return images


def trained(folder: Path, dtype: str) -> Path:
    """Package of a joint model."""
    ase.io.write(folder / "frames.xyz", [image for level in range(len(LEVELS)) for image in crystals(4, level)])
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 3}
    config = {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "include_keys": ["dataset"],
            "split_dataset": {"file_path": "frames.xyz", "train": 9, "val": 3},
            "transforms": [
                {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": TYPES},
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": MODEL["r_max"]},
            ],
            "train_dataloader": loader,
            "val_dataloader": loader,
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": ".", "filename": "best"}
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 1.0}},
            "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_rmse": 1.0}},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "model": {**MODEL, "model_dtype": dtype},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    package = folder / "joint.nequip.zip"
    for command in (["nequip-train", "-cn", "config.yaml"], ["nequip-package", "build", "best.ckpt", package.name]):
        subprocess.run([BIN / command[0], *command[1:]], cwd=folder, check=True, capture_output=True)
    return package


def compare(package: Path, frames: Frames, dtype: str, *, compiled: bool) -> None:
    with redirect_stdout(sys.stderr):  # they say that they execute code
        rows = compared(package, frames, dtype, compiled=compiled)
        for row in rows:
            print(f"| {' | '.join(row)} |", file=sys.__stdout__, flush=True)


def compared(package: Path, frames: Frames, dtype: str, *, compiled: bool) -> Iterator[tuple[str, ...]]:
    joint = load_model(package, device="cpu")
    for index, (level, shifts) in enumerate(LEVELS.items()):
        began = time.process_time()
        bake(package.parent, BakeRequest(model=package.name, fidelity=level, index=index, shifts=shifts))
        seconds = time.process_time() - began
        baked = (package.parent / BAKED).rename(package.parent / f"{level}.nequip.zip")
        told = predict(joint, frames, fidelity=np.full(len(frames), index))
        change = energy_shifts(frames, {name: shifts[name] - LEVELS["hse"][name] for name in TYPES})
        for mode in ("eager", "compiled") if compiled else ("eager",):
            found = predict(load_model(baked, device="cpu", mode=mode), frames)
            yield dtype, level, mode, f"{seconds:.1f}", *differences(found, told, change, frames)


def differences(found: Predictions, told: Predictions, change: np.ndarray, frames: Frames) -> tuple[str, str]:
    energy = np.abs(found.energy - told.energy - change) / frames.natoms
    return f"{energy.max():.1e}", f"{np.abs(found.forces - told.forces).max():.1e}"


if __name__ == "__main__":
    main()
