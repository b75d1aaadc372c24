"""Trainings of the multi-fidelity benchmarks, as the package does them, with as many optimizer steps for each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiida import orm
from aiida.manage import get_manager
from emt_pair import Labels

from aiida_mlip.calculations.functions.train import plan_training
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.splits import repetition
from aiida_mlip.protocols.model import deep_merge
from aiida_mlip.protocols.train import MultiFidelitySettings
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model

#: Which labels a method learns from: the cheap ones too, and all frames at the dear level or the chosen ones.
METHODS = ("embedding", "high_only", "pooled", "full")
#: Steps of the optimizer and frames in each, of the test and of the benchmark beside it.
SHORT: dict[str, int] = {"steps": 600, "batch_size": 12}
#: Methods that see labels of both levels.
JOINT = ("embedding", "pooled")
SETTINGS: dict[str, Any] = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "model": {"cutoff_ang": 4.5, "l_max": 1, "num_features": 16, "num_bessels": 6, "radial_mlp_width": 16},
    "optimizer": {"learning_rate": 0.03, "schedule": "cosine", "final_fraction": 0.02},
    "ema_decay": 0.95,
    "checkpoint": "last",  # for every method: a few validation frames would choose by chance
    "split": {"test": 0.0, "group_by": "frame"},
}


@dataclass(frozen=True)
class Learned:
    """A trained model, and the index by which it knows the dear level, if it is told."""

    potential: PotentialData
    model: LoadedModel
    index: int | None

    def predict(self, frames: Frames) -> Predictions:
        level = None if self.index is None else np.full(len(frames), self.index)
        return predict(self.model, frames, fidelity=level)

    def force_rmse(self, frames: Frames) -> float:
        """Of the components, eV/Å."""
        return float(np.sqrt(np.mean((self.predict(frames).forces - frames.forces) ** 2)))

    def energy_rmse(self, frames: Frames) -> float:
        """In eV per atom."""
        return float(np.sqrt(np.mean(((self.predict(frames).energy - frames.energy) / frames.natoms) ** 2)))


@dataclass(frozen=True)
class Job:
    """A training that is to be done.

    :param steps: of the optimizer, about.
    :param batch_size: fewer where there are few frames: three batches to an epoch at least.
    :param validation: dear labels that are validated on, of those there are.
    :param changes: of :data:`SETTINGS`.
    """

    method: str
    labels: Labels
    steps: int
    batch_size: int
    seed: int = 1
    validation: int = 4
    changes: Mapping[str, Any] = field(default_factory=dict)

    def frames(self) -> Frames:
        """What the method learns from."""
        if self.method in JOINT:
            return concatenate([self.labels.cheap, self.labels.dear])
        return self.labels.dear if self.method == "high_only" else self.labels.all_dear

    def settings(self) -> dict[str, Any]:
        """Settings of the training."""
        result = deep_merge(SETTINGS, {**self.changes, "seed": self.seed})
        result["split"]["val"] = self.validation / self.frames_at_target()
        n = n_dear = self.frames_at_target() - self.validation
        if self.method in JOINT:
            levels = [self.labels.cheap.fidelities[0], self.labels.dear.fidelities[0]]
            result["multi_fidelity"] = {"fidelities": levels, "method": self.method}
            share = MultiFidelitySettings.model_fields["target_share"].default
            n = len(self.labels.cheap) + n_dear * repetition(n_dear, len(self.labels.cheap), share)
        result["batch_size"] = max(1, min(self.batch_size, n // 3))
        result["max_epochs"] = max(1, round(self.steps / np.ceil(n / result["batch_size"])))
        return result

    def frames_at_target(self) -> int:
        """Rows at the dear level."""
        return len(self.labels.all_dear if self.method == "full" else self.labels.dear)

    def inputs(self) -> dict[str, orm.Data]:
        """Inputs of its job, from the package's own plan."""
        dataset = DatasetData.from_frames(self.frames())
        plan, node = plan_training.run_get_node(dataset, orm.Dict(self.settings()))
        if not node.is_finished_ok:
            raise RuntimeError(node.exit_message)
        return {"dataset": dataset, "split": plan["split"], "settings": plan["settings_0"]}


def learn(jobs: Sequence[Job], code: orm.AbstractCode) -> list[Learned]:
    """Do trainings, all at once, in this process."""
    runner = get_manager().create_runner(communicator=None)
    running = [runner.instantiate_process(NequipTrainCalculation, code=code, **job.inputs()) for job in jobs]
    tasks = [runner.loop.create_task(process.step_until_terminated()) for process in running]
    runner.run_until_complete(asyncio.gather(*tasks))
    return [_learned(job, process.node) for job, process in zip(jobs, running, strict=True)]


def _learned(job: Job, node: orm.CalcJobNode) -> Learned:
    if not node.is_finished_ok:
        raise RuntimeError(f"{job.method}: {node.exit_status} {node.exit_message}")
    potential = node.outputs.potential
    index = potential.fidelities.index(job.labels.dear.fidelities[0]) if potential.joint else None
    with potential.base.repository.as_path(PotentialData.PACKAGE_NAME) as path:
        model = load_model(path, device="cpu", expected_sha256=potential.sha256)
    return Learned(potential, model, index)
