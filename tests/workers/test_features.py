"""Per-atom features in the same call as energies and forces, eager and compiled."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model

pytestmark = pytest.mark.nequip


@pytest.fixture(scope="module")
def model(toy_package: Path) -> LoadedModel:
    return load_model(toy_package, device="cpu", features=True)


def rattled(seed: int = 0) -> Atoms:
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def frames() -> Frames:
    silicon = bulk("Si", cubic=True)
    silicon.rattle(0.05, seed=3)
    molecule = Atoms("SiC2", [[0, 0, 0], [1.7, 0, 0], [0, 1.8, 0]])
    return from_ase([*(rattled(seed) for seed in range(6)), silicon, molecule])


def test_features_come_with_the_same_numbers(model: LoadedModel, frames: Frames) -> None:
    with_features, without = predict(model, frames, features=True), predict(model, frames)
    assert without.features is None
    assert with_features.features is not None
    assert with_features.features.shape == (frames.n_atoms, 4)
    assert with_features.features.dtype == np.float64
    np.testing.assert_array_equal(with_features.energy, without.energy)
    np.testing.assert_array_equal(with_features.forces, without.forces)


def test_energy_is_linear_in_the_features(model: LoadedModel, frames: Frames) -> None:
    # what makes them last-layer features: the readout is linear, so sums over atoms fix the energy
    found = predict(model, frames, features=True)
    shifts = np.where(frames.numbers == 14, -1.0, -2.0)
    rows = frames.atom_rows()
    sums = np.stack([np.bincount(rows, weights=column) for column in found.features.T], axis=1)
    interaction = found.energy - np.bincount(rows, weights=shifts)
    weights = np.linalg.lstsq(sums, interaction, rcond=None)[0]
    assert np.ptp(interaction / frames.natoms) > 1e-3
    np.testing.assert_allclose(sums @ weights, interaction, atol=1e-9)


@pytest.mark.parametrize("atoms_per_batch", [1, 20, 10_000])
def test_batches_do_not_matter(model: LoadedModel, frames: Frames, atoms_per_batch: int) -> None:
    together = predict(model, frames, features=True, atoms_per_batch=atoms_per_batch).features
    alone = [predict(model, frames.take([row]), features=True).features for row in range(len(frames))]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-12)


def test_features_are_invariant(model: LoadedModel) -> None:
    atoms = rattled()
    reference = predict(model, from_ase([atoms]), features=True).features

    def features(changed: Atoms) -> np.ndarray:
        return predict(model, from_ase([changed]), features=True).features

    turned = atoms.copy()
    matrix = Rotation.random(random_state=1).as_matrix()
    turned.set_cell(atoms.cell.array @ matrix.T)
    turned.positions = atoms.positions @ matrix.T
    moved = atoms.copy()
    moved.translate([0.3, -1.2, 7.7])
    order = np.random.default_rng(0).permutation(len(atoms))
    big = make_supercell(atoms, [[1, 1, 0], [0, 1, 0], [0, 0, 2]], order="cell-major")
    np.testing.assert_allclose(features(turned), reference, rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(features(moved), reference, rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(features(atoms[order]), reference[order], rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(features(big), np.tile(reference, (2, 1)), rtol=1e-5, atol=1e-10)
    stretched = atoms.copy()
    stretched.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    assert abs(features(stretched) - reference).max() > 1e-3  # they do see the geometry


def test_failed_frame_has_no_features(model: LoadedModel, frames: Frames) -> None:
    def crash(data):
        if 3 in data["num_atoms"]:
            raise RuntimeError("molecules are not for me")
        return model.call(data)

    found = predict(replace(model, call=crash), frames, features=True)
    assert found.failure.tolist() == [0] * 7 + [found.failure[-1]]
    assert found.failure[-1] != 0
    assert np.isnan(found.features[-3:]).all()
    assert np.isfinite(found.features[:-3]).all()


def test_energies_alone(toy_package: Path, model: LoadedModel, frames: Frames) -> None:
    light = load_model(toy_package, device="cpu", features=True, derivatives=False)
    found, reference = predict(light, frames, features=True), predict(model, frames, features=True)
    assert not found.failure.any()
    np.testing.assert_allclose(found.energy, reference.energy, atol=1e-12)
    np.testing.assert_allclose(found.features, reference.features, atol=1e-12)
    assert np.isnan(found.forces).all()
    assert np.isnan(found.stress).all()


def test_edge_features_are_summed_over_the_edges_of_a_centre(model: LoadedModel) -> None:
    # what Allegro ends with; here on the edges of a graph by hand
    import torch

    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    inputs = {"pos": torch.zeros(4, 3), "edge_index": edges}
    pooled = replace(model, feature_field="edge_features").features(inputs, {"edge_features": values})
    assert pooled.tolist() == [[3.0, 30.0], [3.0, 30.0], [4.0, 40.0], [0.0, 0.0]]


def test_model_without_features_says_so(model: LoadedModel, frames: Frames, toy_package: Path) -> None:
    with pytest.raises(InvalidInputError, match="features=True"):
        predict(replace(model, feature_field=None), frames, features=True)
    with pytest.raises(InvalidInputError, match="unknown frames 'two'"):
        load_model(toy_package, frames="two")


@pytest.mark.slow
def test_compiled_model_gives_the_same_features(
    toy_package: Path, model: LoadedModel, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIIDA_MLIP_COMPILED", str(tmp_path / "kept"))
    shutil.copy(toy_package, tmp_path / "m.nequip.zip")
    (tmp_path / "other_job").mkdir()
    shutil.copy(toy_package, tmp_path / "other_job" / "m.nequip.zip")
    reference = predict(model, frames, features=True)
    compiled = load_model(tmp_path / "m.nequip.zip", device="cpu", mode="compiled", features=True, frames="one")
    found = predict(compiled, frames, features=True)
    assert not found.failure.any()
    np.testing.assert_allclose(found.features, reference.features, atol=1e-9)
    np.testing.assert_allclose(found.forces, reference.forces, atol=1e-9)
    np.testing.assert_allclose(found.energy, reference.energy, atol=1e-9)
    (made,) = tmp_path.rglob("*.pt2")
    assert made.parent.name == "kept"
    assert made.name.startswith("m-cpu-one-features-")
    stamp = made.stat().st_mtime_ns
    load_model(tmp_path / "other_job" / "m.nequip.zip", device="cpu", mode="compiled", features=True, frames="one")
    assert list(tmp_path.rglob("*.pt2")) == [made]
    assert made.stat().st_mtime_ns == stamp
