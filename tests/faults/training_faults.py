"""SIGKILL of the training program, or of its whole job, at anything it comes by."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from aiida import orm
from aiida.engine import submit
from emt_frames import emt_frames
from faults.campaign import Campaign, wait
from faults.harness import LIMIT_S, STALLED_S, Harness, slowness
from killed_campaign import Event, events, kill_job, wait_for

from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.workchains.train import TrainWorkChain

FAULTS = ("training killed",)
TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 8,
    "committee": 1,
    "optimizer": {"warmup_epochs": 1},
    "split": {"test": 0.2, "val": 0.2},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
}


_NAMES = {code.status: name for name, code in NequipTrainCalculation.exit_codes.items()}


class Training(Campaign):
    """A training of one potential."""

    def submit(self) -> None:
        codes = {
            "train": orm.load_code("nequip-train@localhost"),
            "evaluate": orm.load_code("aiida-mlip-evaluate@localhost"),
        }
        builder = TrainWorkChain.get_builder_from_protocol(DatasetData.from_frames(self.frames), codes, overrides=TINY)
        self.pks.append(submit(builder).pk)

    @property
    def complete(self) -> bool:
        return bool(self.node.is_finished_ok)

    def jobs(self) -> list[Any]:
        """All its training jobs."""
        called = [node for pk in self.pks for node in orm.load_node(pk).called_descendants]
        return [node for node in called if node.process_class is NequipTrainCalculation]


def run(harness: Harness, names: Sequence[str], per_fault: int) -> None:
    """One after another; the first is undisturbed, and tells what a training comes by."""
    if not names:
        return
    probe = _training(harness, 1000)
    probe.submit()
    if not wait([probe], limit_s=slowness() * LIMIT_S, stalled_s=3 * slowness() * STALLED_S) or not probe.complete:
        raise RuntimeError(f"the undisturbed training failed: {probe.node.exit_message}")
    path = next(event.path for event in events(probe.node) if "train_member" in "/".join(event.path))
    seen = [event for event in events(probe.node) if _is_of_the_job(event, path)]
    for _, number in harness.plan(names, per_fault):
        began = time.monotonic()
        rng = harness.rng(FAULTS[0], number)
        each = _training(harness, number)
        harness.trainings.append(each)
        each.submit()
        event = rng.choice(seen)
        found = wait_for(each.node, event)
        killed = kill_job(found, whole=rng.random() < 0.5) if isinstance(found, orm.CalcJobNode) else []
        harness.bring_home([each])
        each.injected = int(bool(killed))
        each.said = Counter(_NAMES.get(job.exit_status, str(job.exit_status)) for job in each.jobs() if job.exit_status)
        print(f"{FAULTS[0]} {number + 1} of {per_fault}: {event}, {time.monotonic() - began:.0f} s", flush=True)


def _is_of_the_job(event: Event, path: tuple[str, ...]) -> bool:
    return event.path[: len(path)] == path and event.what in ("file", "withscheduler")


def _training(harness: Harness, number: int) -> Training:
    frames = emt_frames(12, seed=1000 * harness.seed + number)
    return Training(FAULTS[0], frames, {})
