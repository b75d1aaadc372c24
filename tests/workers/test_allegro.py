"""Allegro models: their edge features, summed per atom, grade environments as those of NequIP do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from scipy.spatial.transform import Rotation

from aiida_mlip.io.evaluation import read_grades, read_novelty
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers import evaluate
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch and e3nn about themselves

MODEL = {
    "_target_": "allegro.model.AllegroModel",
    "seed": 3,
    "model_dtype": "float64",
    "type_names": ["Si", "C"],
    "r_max": 4.0,
    "l_max": 1,
    "num_layers": 1,
    "num_scalar_features": 4,
    "num_tensor_features": 2,
    "allegro_mlp_hidden_layers_depth": 1,
    "allegro_mlp_hidden_layers_width": 8,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
    "radial_chemical_embed_dim": 4,
    "scalar_embed_mlp_hidden_layers_depth": 1,
    "scalar_embed_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_depth": 1,
    "readout_mlp_hidden_layers_width": 8,
    "avg_num_neighbors": 14.0,
    "per_type_energy_shifts": {"Si": -1.0, "C": -2.0},
    "per_type_energy_scales": 1.0,
}
LOADER = {"_target_": "torch.utils.data.DataLoader", "batch_size": 1}
CONFIG = {
    "run": ["train"],
    "data": {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 1,
        "split_dataset": {"file_path": "frames.xyz", "train": 2, "val": 1},
        "transforms": [
            {
                "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                "model_type_names": MODEL["type_names"],
            },
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": MODEL["r_max"]},
        ],
        "train_dataloader": LOADER,
        "val_dataloader": LOADER,
    },
    "trainer": {
        "_target_": "lightning.Trainer",
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "callbacks": [{"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": ".", "filename": "best"}],
    },
    "training_module": {
        "_target_": "nequip.train.EMALightningModule",
        "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 1.0}},
        "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_rmse": 1.0}},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
        "model": MODEL,
    },
}


def rattled(seed: int, stdev: float = 0.05) -> Atoms:
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.rattle(stdev, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def package(tmp_path_factory, preloaded_programs: Path) -> Path:
    """A tiny Allegro model trained for one epoch."""
    folder = tmp_path_factory.mktemp("allegro")
    images = [rattled(seed) for seed in range(3)]
    for atoms in images:
        atoms.calc = LennardJones(sigma=1.8, epsilon=0.5, rc=4.0)
        atoms.get_forces()
    ase.io.write(folder / "frames.xyz", images)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    for command in (
        ["nequip-train", "-cn", "config.yaml"],
        ["nequip-package", "build", "best.ckpt", "allegro.nequip.zip"],
    ):
        program = preloaded_programs / command[0]
        run = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, check=False)
        if run.returncode:
            pytest.fail(f"{' '.join(command)} failed:\n{(run.stdout + run.stderr)[-3000:]}")
    return folder / "allegro.nequip.zip"


@pytest.fixture(scope="module")
def model(package: Path) -> LoadedModel:
    return load_model(package, device="cpu", features=True)


@pytest.fixture(scope="module")
def grades(model: LoadedModel) -> Grades:
    frames = from_ase([rattled(seed) for seed in range(12)])
    return fit_grades(predict(model, frames, features=True).features, frames.numbers)


def novelty(model: LoadedModel, grades: Grades, atoms: Atoms) -> np.ndarray:
    frames = from_ase([atoms])
    return grades.novelty(predict(model, frames, features=True).features, frames.numbers)


def test_novelty_is_invariant_and_grows_away_from_the_training_set(model: LoadedModel, grades: Grades) -> None:
    atoms = rattled(50, 0.2)
    expected = novelty(model, grades, atoms)
    turn = Rotation.random(random_state=4).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn.T)
    turned.positions = atoms.positions @ turn.T + [0.3, -7.0, 2.0]
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(novelty(model, grades, turned[order]), expected[order], rtol=1e-5)
    np.testing.assert_allclose(novelty(model, grades, atoms.repeat((1, 2, 1))), np.tile(expected, 2), rtol=1e-5)
    medians = [np.median(novelty(model, grades, rattled(99, stdev))) for stdev in (0.05, 0.2, 0.4)]
    assert medians[0] < 1.0 < medians[1] < medians[2]


def test_features_are_continuous_where_a_neighbour_leaves(model: LoadedModel) -> None:
    """Summed over edges: an edge at the cutoff must count nothing."""
    values = []
    for distance in (4.0 - 1e-4, 4.0 + 1e-4):
        frames = from_ase([Atoms("Si3", [[0, 0, 0], [2.2, 0, 0], [-distance, 0, 0]])])
        values.append(predict(model, frames, features=True).features[0])
    np.testing.assert_allclose(values[0], values[1], atol=1e-7)
    assert np.abs(values[0]).max() > 1e-3


def test_the_program_fits_grades(package: Path, tmp_path: Path) -> None:
    frames = from_ase([rattled(seed) for seed in range(4)])
    (tmp_path / "frames.npz").write_bytes(write_shard(frames))
    shutil.copy(package, tmp_path / "model.nequip.zip")
    (tmp_path / "input.json").write_text(json.dumps({"fit_grades": True, "device": "cpu"}))
    assert evaluate.main([str(tmp_path)]) == 0
    assert {number: entry.n_train for number, entry in read_grades(tmp_path / "grades.npz").elements.items()} == {
        6: 16,
        14: 16,
    }
    assert read_novelty(tmp_path / "predictions.npz").shape == (32,)
