"""Hyperparameters of a training, in the words of the architecture that it is a training of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's configuration that depends on its architecture.

    :param model: a :class:`aiida_mlip.protocols.train.ModelSettings`, dumped to plain values.
    """
    return _allegro(model) if model["architecture"] == "allegro" else _nequip(model)


def _nequip(model: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a NequIP model."""
    other = ("architecture", "cutoff_ang", "dtype", "num_tensor_features")
    own = {key: value for key, value in model.items() if key not in other}
    return {"_target_": "nequip.model.NequIPGNNModel", **own}


def _allegro(model: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of an Allegro model: its networks are as wide as its scalars."""
    width = model["num_features"]
    return {
        "_target_": "allegro.model.AllegroModel",
        "l_max": model["l_max"],
        "parity": model["parity"],
        "num_layers": model["num_layers"],
        "num_scalar_features": width,
        "num_tensor_features": model["num_tensor_features"] or max(1, width // 2),
        "radial_chemical_embed": {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": model["num_bessels"],
            "polynomial_cutoff_p": model["polynomial_cutoff_p"],
        },
        "radial_chemical_embed_dim": width + width % 2,
        "scalar_embed_mlp_hidden_layers_depth": model["radial_mlp_depth"],
        "scalar_embed_mlp_hidden_layers_width": model["radial_mlp_width"],
        "allegro_mlp_hidden_layers_width": width,
        "readout_mlp_hidden_layers_width": width,
    }
