"""The configuration file of ``nequip-train`` (NequIP 0.19) as plain, deterministic YAML.

Facts of NequIP heeded here: only the first training dataset is trained on, so there is exactly one file; labels that
are missing are NaN and every loss and metric ignores NaN; an exponential moving average is validated every epoch, else
its checkpoints are wrong. The number of frames and atoms that the training loader really sees is made a data statistic
(``num_frames``, ``num_atoms``), which ``nequip-train`` prints: :mod:`aiida_mlip.io.nequip_output` reads it back. With
several levels of theory each frame carries the index of its own (``dataset``), and the frames of each level are counted
(``num_frames_<index>``); where each level has types of its own, the file carries them too (``atom_types``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.architectures import architecture
from aiida_mlip.io.level_types import level_types

#: Quantity of a validation that decides which checkpoint is the best one.
MONITOR: Final[str] = "val0_epoch/weighted_sum"
CONFIG_FILE: Final[str] = "config.yaml"
TRAIN_FILE: Final[str] = "train.xyz"
VAL_FILE: Final[str] = "val.xyz"
CHECKPOINT_DIR: Final[str] = "checkpoints"
METRICS_FILE: Final[str] = "logs/metrics.csv"
#: Info key of a frame's level of theory, and the field of NequIP by which a model is told.
LEVEL: Final[str] = "dataset"
#: Column of the atoms' types, where they depend on the level of theory.
TYPES_COLUMN: Final[str] = "atom_types"
LAST_CHECKPOINT: Final[str] = f"{CHECKPOINT_DIR}/last.ckpt"
#: The name of a best checkpoint carries its value of :data:`MONITOR`, so that those of a restart can be compared.
BEST_PATTERN: Final[str] = "best_{val0_epoch/weighted_sum:014.7f}_{epoch:06d}"
#: The same of the last epoch, where that is what is kept.
KEPT_PATTERN: Final[str] = BEST_PATTERN.replace("best_", "kept_")
_TYPES: Final[str] = "${model_type_names}"


@dataclass(frozen=True)
class TrainingData:
    """What the configuration must know of the data of one training.

    :param species: chemical symbols in the order of the model's types.
    :param reference_energies: eV per symbol: the energy shifts of the model.
    :param force_scale_ev_per_ang: rms force of the training frames: the energy scale of the model.
    :param with_energy: training frames have energies.
    :param with_forces: training frames have forces.
    :param with_stress: training frames have stresses.
    :param validated: labels of the validation frames, of ``energy``, ``forces``, ``stress``; nothing: the same ones.
    :param keep_last: the weights of the last epoch are kept, not those with the best validation error.
    :param n_level_types: how many types of its own each element has, one for every level of theory.
    """

    species: tuple[str, ...]
    reference_energies: Mapping[str, float]
    force_scale_ev_per_ang: float
    with_energy: bool
    with_forces: bool
    with_stress: bool
    validated: frozenset[str] | None = None
    keep_last: bool = False
    n_level_types: int = 1

    @property
    def type_names(self) -> tuple[str, ...]:
        """Names of the model's types."""
        return self.species if self.n_level_types == 1 else level_types(self.species, self.n_level_types)


@dataclass(frozen=True)
class TrainingStart:
    """Where the weights come from; all paths are relative to the job's folder.

    :param checkpoint: go on with exactly this checkpoint (epoch, optimizer, moving average).
    :param initial_checkpoint: new training that starts from the weights of this checkpoint.
    :param initial_package: new training that starts from the weights of this package.
    :param new_references: the energy shifts of that package are replaced: it was trained at another level of theory.
    :param max_time_s: seconds after which training ends by itself, those of the continued run included.
    """

    checkpoint: str | None = None
    initial_checkpoint: str | None = None
    initial_package: str | None = None
    new_references: bool = False
    max_time_s: int | None = None

    def __post_init__(self) -> None:
        """Refuse paths that could leave the job's folder, and two initial models."""
        if self.initial_checkpoint and self.initial_package:
            raise InvalidInputError("a training starts from a checkpoint or from a package, not from both")
        for path in (self.checkpoint, self.initial_checkpoint, self.initial_package):
            if path is not None and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
                raise InvalidInputError(f"checkpoint path {path!r} must be relative to the job's folder")


def nequip_config(
    settings: Mapping[str, Any], data: TrainingData, *, seed: int, start: TrainingStart | None = None
) -> dict[str, Any]:
    """Configuration of one training as plain values.

    :param settings: a validated :class:`aiida_mlip.protocols.train.TrainSettings`, dumped to plain values.
    :param data: species, reference energies and what is labelled.
    :param seed: of weights and batches.
    :param start: checkpoint or package to start from; nothing: from scratch.
    :raises InvalidInputError: nothing to train on is labelled, or overrides that would corrupt the checkpoints.
    """
    start = start or TrainingStart()
    weights = _loss_weights(settings["loss"], data)
    # errors are monitored, their squares minimised: the roots of the weights make the two agree
    errors = {name: math.sqrt(weight) for name, weight in weights.items()}
    monitored = {name: error for name, error in errors.items() if data.validated is None or name in data.validated}
    if not any(monitored.values()):
        raise InvalidInputError(
            f"the validation frames lack every label that the loss {dict(settings['loss'])} asks for"
        )
    config: dict[str, Any] = {
        "run": ["train"],
        "model_type_names": list(data.type_names),
        "data": _data_section(settings, data, seed),
        "trainer": _trainer_section(settings, start, keep_last=data.keep_last),
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": settings["ema_decay"],
            "loss": _metrics(weights, "MeanSquaredError"),
            "val_metrics": _metrics(monitored, "RootMeanSquaredError"),
            "train_metrics": _metrics(errors, "RootMeanSquaredError"),
            **_optimizer_section(settings),
            "model": _model_section(settings, data, seed, start),
        },
    }
    if start.checkpoint:
        config["ckpt_path"] = start.checkpoint
    if "max_time" in settings["nequip"].get("trainer", {}):
        raise InvalidInputError("nequip.trainer.max_time cannot be set: use time_limit_s, which knows about restarts")
    config = _override(config, settings["nequip"])
    _check(config)
    if (included := _included(settings, data)) and config["data"].get("include_keys") != included:
        raise InvalidInputError("nequip.data.include_keys cannot be set: it says of which level of theory a frame is")
    return config


def check_overrides(settings: Mapping[str, Any]) -> None:
    """Find overrides that :func:`nequip_config` refuses before there are any data.

    :raises InvalidInputError: see there.
    """
    levels = settings["multi_fidelity"]
    n_types = len(levels["fidelities"]) if levels and levels["method"] == "types" else 1
    everything = TrainingData(
        ("H",), {"H": 0.0}, 1.0, with_energy=True, with_forces=True, with_stress=True, n_level_types=n_types
    )
    nequip_config(settings, everything, seed=0)


def config_text(config: Mapping[str, Any]) -> str:
    """Configuration as YAML text, keys in a fixed order."""
    text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=False, width=120)
    return text


def cutoff_of(config: Mapping[str, Any]) -> float:
    """Cutoff (Å) of the neighbour list in a configuration."""
    return float(next(item["r_max"] for item in config["data"]["transforms"] if "r_max" in item))


def time_limit_of(config: Mapping[str, Any]) -> int:
    """Seconds of training after which a configuration stops it; 0: no limit."""
    limit = config["trainer"].get("max_time")
    if limit is None:
        return 0
    days, hours, minutes, seconds = (int(part) for part in str(limit).split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _loss_weights(loss: Mapping[str, float], data: TrainingData) -> dict[str, float]:
    """Weights of what the training frames have: a label that none has would have an error of NaN."""
    weights = {}
    if data.with_energy:
        weights["energy"] = loss["energy"]
    if data.with_forces:
        weights["forces"] = loss["forces"]
    if data.with_stress and loss["stress"] > 0.0:
        weights["stress"] = loss["stress"]
    if not any(weights.values()):
        raise InvalidInputError(f"the frames lack every label that the loss {dict(loss)} asks for")
    return weights


def _metrics(weights: Mapping[str, float], metric: str) -> dict[str, Any]:
    """Errors of energy per atom, forces and stress; NaN labels are left out component by component."""
    fields: dict[str, Any] = {
        "energy": {"_target_": "nequip.data.PerAtomModifier", "field": "total_energy"},
        "forces": "forces",
        "stress": "stress",
    }
    return {
        "_target_": "nequip.train.MetricsManager",
        "metrics": [
            {
                "name": f"{name}_per_atom" if name == "energy" else name,
                "field": fields[name],
                "coeff": float(weight),
                "metric": {"_target_": f"nequip.train.{metric}"},
                "ignore_nan": True,
            }
            for name, weight in weights.items()
        ],
    }


def _included(settings: Mapping[str, Any], data: TrainingData) -> list[str]:
    """What is read of a frame beside its geometry and labels."""
    return ([LEVEL] if settings["multi_fidelity"] else []) + ([TYPES_COLUMN] if data.n_level_types > 1 else [])


def _data_section(settings: Mapping[str, Any], data: TrainingData, seed: int) -> dict[str, Any]:
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": settings["batch_size"], "num_workers": 0}
    frames = {"_target_": "nequip.data.PerAtomModifier", "field": "num_atoms"}  # one for every frame
    total = {"_target_": "torchmetrics.SumMetric"}
    levels, included = settings["multi_fidelity"], _included(settings, data)
    mapper = {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": _TYPES}
    return {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": seed,
        "train_file_path": TRAIN_FILE,
        "val_file_path": VAL_FILE,
        "ase_args": {"format": "extxyz"},
        **({"include_keys": included} if included else {}),
        "transforms": [
            *([] if data.n_level_types > 1 else [mapper]),
            {
                "_target_": "nequip.data.transforms.NeighborListTransform",
                "r_max": settings["model"]["cutoff_ang"],
            },
        ],
        "train_dataloader": {**loader, "shuffle": True},
        "val_dataloader": loader,
        "stats_manager": {
            "_target_": "nequip.data.DataStatisticsManager",
            "dataloader_kwargs": {"shuffle": False},
            "type_names": _TYPES,
            "metrics": [
                {"name": "num_frames", "field": frames, "metric": total},
                {"name": "num_atoms", "field": "num_atoms", "metric": total},
                {
                    "name": "num_neighbors_mean",
                    "field": {"_target_": "nequip.data.NumNeighbors"},
                    "metric": {"_target_": "nequip.data.Mean"},
                },
                *(_count_of_level(index) for index in range(len(levels["fidelities"]) if levels else 0)),
            ],
        },
    }


def _count_of_level(index: int) -> dict[str, Any]:
    """Statistic: frames at one level of theory that the training loader sees."""
    is_level = {"_target_": "torch.eq", "_partial_": True, "other": index}
    count = {"_target_": "torchmetrics.SumMetric"}
    transformer = "torchmetrics.wrappers.LambdaInputTransformer"
    return {
        "name": f"num_frames_{index}",
        "field": LEVEL,
        "metric": {"_target_": transformer, "wrapped_metric": count, "transform_pred": is_level},
    }


def _trainer_section(settings: Mapping[str, Any], start: TrainingStart, *, keep_last: bool) -> dict[str, Any]:
    checkpoint = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": CHECKPOINT_DIR}
    stop = settings["stop_after"] or settings["max_epochs"] + 1
    trainer: dict[str, Any] = {
        "_target_": "lightning.Trainer",
        "accelerator": {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[settings["device"]],
        "devices": 1,
        "max_epochs": settings["max_epochs"],
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000_000,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "_target_": "lightning.pytorch.loggers.CSVLogger",
            "save_dir": ".",
            "name": "logs",
            "version": "",
            "flush_logs_every_n_steps": 1,
        },
        "callbacks": [
            {
                **checkpoint,
                "monitor": MONITOR,
                "filename": BEST_PATTERN,
                "auto_insert_metric_name": False,
                "save_top_k": 1,
            },
            {**checkpoint, "filename": "last", "save_top_k": 1, "enable_version_counter": False},
            {
                "_target_": "lightning.pytorch.callbacks.EarlyStopping",
                "monitor": MONITOR,
                "patience": stop,
                "check_finite": True,
            },
            {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor", "logging_interval": "epoch"},
        ],
    }
    if keep_last:
        names = {"filename": KEPT_PATTERN, "auto_insert_metric_name": False, "save_top_k": 1}
        trainer["callbacks"].append({**checkpoint, "monitor": "epoch", "mode": "max", **names})
    if settings["grad_clip"] is not None:
        trainer["gradient_clip_val"] = settings["grad_clip"]
    if start.max_time_s is not None:
        hours, seconds = divmod(start.max_time_s, 3600)
        trainer["max_time"] = f"{hours // 24:02d}:{hours % 24:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
    return trainer


def _optimizer_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    chosen = settings["optimizer"]
    section: dict[str, Any] = {
        "optimizer": {
            "_target_": "torch.optim.Adam",
            "lr": chosen["learning_rate"],
            "weight_decay": chosen["weight_decay"],
            "amsgrad": chosen["amsgrad"],
        }
    }
    if chosen["schedule"] == "plateau":
        scheduler: dict[str, Any] = {
            "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
            "factor": 0.5,
            "patience": chosen["patience"],
            "min_lr": chosen["learning_rate"] * chosen["final_fraction"],
        }
        section["lr_scheduler"] = {"scheduler": scheduler, "monitor": MONITOR, "interval": "epoch", "frequency": 1}
    elif chosen["schedule"] == "cosine":
        warmup = min(chosen["warmup_epochs"], settings["max_epochs"] - 1)
        scheduler = {
            "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "T_max": settings["max_epochs"] - warmup,
            "eta_min": chosen["learning_rate"] * chosen["final_fraction"],
        }
        if warmup:
            rise = {
                "_target_": "torch.optim.lr_scheduler.LinearLR",
                "start_factor": 1.0 / (warmup + 1),
                "total_iters": warmup,
            }
            scheduler = {
                "_target_": "torch.optim.lr_scheduler.SequentialLR",
                "schedulers": [rise, scheduler],
                "milestones": [warmup],
            }
        section["lr_scheduler"] = {"scheduler": scheduler, "interval": "epoch", "frequency": 1}
    return section


def _model_section(settings: Mapping[str, Any], data: TrainingData, seed: int, start: TrainingStart) -> dict[str, Any]:
    # types of every level: energies of all levels are in those of one, the shifts too
    of_type = zip(data.type_names, data.species * data.n_level_types, strict=True)
    shifts = {
        name: float(data.reference_energies[symbol]) for name, symbol in of_type if symbol in data.reference_energies
    }
    if start.initial_checkpoint:
        return {"_target_": "nequip.model.ModelFromCheckpoint", "checkpoint_path": start.initial_checkpoint}
    if start.initial_package:
        package = {"_target_": "nequip.model.ModelFromPackage", "package_path": start.initial_package}
        if not start.new_references:
            return package
        change = {"modifier": "modify_PerTypeScaleShift", "shifts": shifts}
        return {"_target_": "nequip.model.modify", "modifiers": [change], "model": package}
    model, levels = settings["model"], settings["multi_fidelity"]
    section = {
        **architecture(model),
        "seed": seed,
        "model_dtype": model["dtype"],
        "type_names": _TYPES,
        "r_max": model["cutoff_ang"],
        "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
        "per_type_energy_scales": float(data.force_scale_ev_per_ang),
        "per_type_energy_shifts": shifts,
    }
    if levels and levels["method"] == "embedding":
        last = len(levels["fidelities"]) - 1
        embed = {"field": LEVEL, "num_features": levels["num_features"], "min": 0, "max": last}
        section["categorical_graph_field_embed"] = [embed]
    return section


def _override(base: Any, over: Mapping[str, Any], *, path: Sequence[str] = ()) -> dict[str, Any]:
    """``over`` merged into ``base``: mappings key by key, callbacks appended, anything else replaced."""
    result = dict(base)
    for key, value in over.items():
        here = (*path, key)
        if here == ("trainer", "callbacks"):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise InvalidInputError(f"nequip.trainer.callbacks must be a list, got {value!r}")
            result[key] = [*result[key], *value]
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and "_target_" not in value:
            result[key] = _override(result[key], value, path=here)
        else:
            result[key] = value
    return result


def _check(config: Mapping[str, Any]) -> None:
    if config["trainer"].get("check_val_every_n_epoch") != 1:
        raise InvalidInputError(
            "nequip.trainer.check_val_every_n_epoch must stay 1: validating less often corrupts the checkpoints of a "
            f"moving average, got {config['trainer'].get('check_val_every_n_epoch')!r}"
        )
    radii = {item["r_max"] for item in config["data"]["transforms"] if "r_max" in item}
    if (radius := config["training_module"]["model"].get("r_max")) is not None and radii != {radius}:
        raise InvalidInputError(
            f"the model's r_max {radius} differs from that of the neighbour list {sorted(radii)}; set model.cutoff_ang"
        )
    for key in ("train_dataset", "split_dataset"):
        if key in config["data"]:
            raise InvalidInputError(f"nequip.data.{key} cannot be set: the training frames are those of the dataset")
    if config["data"]["train_file_path"] != TRAIN_FILE or config["data"]["val_file_path"] != VAL_FILE:
        raise InvalidInputError("nequip.data.train_file_path and val_file_path cannot be set")
