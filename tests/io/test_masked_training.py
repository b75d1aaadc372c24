"""Missing labels teach nothing: the gradient of the loss that the configuration asks for is that of what is known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from emt_levels import HIGH, LOW, two_levels

from aiida_mlip.io.extxyz import write_extxyz
from aiida_mlip.io.nequip_config import LEVEL, TrainingData, nequip_config
from aiida_mlip.protocols.train import train_settings

pytestmark = pytest.mark.nequip

SETTINGS = {
    "protocol": "fast",
    "model": {
        "cutoff_ang": 3.5,
        "num_features": 4,
        "num_layers": 1,
        "l_max": 1,
        "radial_mlp_width": 4,
        "dtype": "float64",
    },
    "loss": {"energy": 3.0, "forces": 1.0},
    "multi_fidelity": {"fidelities": [LOW, HIGH], "num_features": 2},
}


@pytest.fixture(scope="module")
def config():
    data = TrainingData(("Cu",), {"Cu": 0.1}, 1.1, with_energy=True, with_forces=True, with_stress=False)
    return nequip_config(train_settings(SETTINGS).model_dump(), data, seed=3)


@pytest.fixture(scope="module")
def model(config):
    """The joint model of the configuration."""
    from hydra.utils import get_method
    from nequip.utils.global_state import set_global_state

    section = {
        **config["training_module"]["model"],
        "avg_num_neighbors": 12.0,
        "type_names": ["Cu"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_global_state()
        return get_method(section.pop("_target_"))(**section)


def loader_batch(config, frames, folder):
    """All frames as one batch, as the training loader makes it of the file that a job writes."""
    from hydra.utils import instantiate
    from nequip.data import AtomicDataDict

    index = [[LOW, HIGH].index(frames.fidelities[i]) for i in frames.fidelity]
    write_extxyz(frames, folder / "train.xyz", nan_missing=True, lineage=False, info={LEVEL: index})
    transforms = [dict(each) for each in config["data"]["transforms"]]
    transforms[0]["model_type_names"] = ["Cu"]
    dataset = instantiate(
        {
            "_target_": "nequip.data.dataset.ASEDataset",
            "file_path": str(folder / "train.xyz"),
            "ase_args": config["data"]["ase_args"],
            "include_keys": config["data"]["include_keys"],
            "transforms": transforms,
        }
    )
    return AtomicDataDict.batched_from_list([dataset[i] for i in range(len(dataset))])


def gradients(model, loss):
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        g if g is not None else torch.zeros_like(p)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
    ]


def masked(frames, rng):
    """Energies alone at the high level, and atoms without a force at the low one."""
    forces = frames.forces.copy()
    atoms = frames.atom_rows()
    forces[frames.fidelity[atoms] == frames.fidelity_index(HIGH)] = np.nan
    forces[rng.random(len(forces)) < 0.3] = np.nan
    energy = frames.energy.copy()
    energy[0] = np.nan  # a cluster: forces alone
    return frames.with_columns(forces=forces, energy=energy)


def run(config, model, batch):
    """Loss by name, predicted energies per atom and forces."""
    from hydra.utils import instantiate

    manager = instantiate(config["training_module"]["loss"])
    output = model({key: value.clone() for key, value in batch.items()})
    return manager(output, batch), output


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_is_that_of_the_known_components(config, model, tmp_path, seed):
    import torch

    frames = masked(two_levels(4, 2, seed=seed), np.random.default_rng(seed))
    batch = loader_batch(config, frames, tmp_path)
    assert batch[LEVEL].reshape(-1).tolist() == [0, 0, 0, 0, 1, 1]
    losses, output = run(config, model, batch)
    found = gradients(model, losses["weighted_sum"])

    # the same loss on what is known, by hand
    _, output = run(config, model, batch)
    n_atoms = torch.as_tensor(frames.natoms, dtype=torch.float64)
    known_energy = torch.as_tensor(np.isfinite(frames.energy))
    known_forces = torch.as_tensor(np.isfinite(frames.forces))
    per_atom = (output["total_energy"].reshape(-1) - torch.as_tensor(frames.energy)) / n_atoms
    force_error = output["forces"] - torch.as_tensor(frames.forces)
    by_hand = 0.75 * (per_atom[known_energy] ** 2).mean() + 0.25 * (force_error[known_forces] ** 2).mean()
    expected = gradients(model, by_hand)
    assert losses["weighted_sum"].item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert any(float(g.abs().max()) > 1e-6 for g in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_masked_atoms_get_exactly_nothing(config, model, tmp_path):
    """The derivative of the loss by the predicted force of an atom without a label is exactly zero."""
    import torch
    from hydra.utils import instantiate

    frames = masked(two_levels(4, 2), np.random.default_rng(0))
    batch = loader_batch(config, frames, tmp_path)
    _, output = run(config, model, batch)
    predicted = {
        **{key: value.detach() for key, value in output.items()},
        "forces": output["forces"].detach().requires_grad_(),
    }
    loss = instantiate(config["training_module"]["loss"])(predicted, batch)["weighted_sum"]
    (derivative,) = torch.autograd.grad(loss, predicted["forces"])
    known = np.isfinite(frames.forces)
    assert (derivative.numpy()[~known] == 0.0).all()
    assert (derivative.numpy()[known] != 0.0).all()


def test_a_batch_without_any_force_has_the_gradient_of_its_energies(config, model, tmp_path):
    """Its loss is logged as NaN, but what is learned from it is right: hence validation decides, not the loss."""
    import torch

    frames = two_levels(3, 2).with_columns()
    frames = frames.take(frames.fidelity == frames.fidelity_index(HIGH))
    frames = frames.with_columns(forces=np.full_like(frames.forces, np.nan))
    batch = loader_batch(config, frames, tmp_path)
    losses, _ = run(config, model, batch)
    found = gradients(model, losses["weighted_sum"])
    _, output = run(config, model, batch)
    per_atom = (output["total_energy"].reshape(-1) - torch.as_tensor(frames.energy)) / torch.as_tensor(frames.natoms)
    expected = gradients(model, 0.75 * (per_atom**2).mean())
    assert torch.isnan(losses["weighted_sum"])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_model_is_told_the_level(config, model, tmp_path):
    """One frame at both levels: two energies, from one model."""
    frames = two_levels(1, 1)
    _, output = run(config, model, loader_batch(config, frames, tmp_path))
    low, high = output["total_energy"].reshape(-1).tolist()
    assert abs(low - high) > 1e-4
