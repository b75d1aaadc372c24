"""What ``nequip-train`` leaves behind, read back: learning curves, statistics of the data it saw, why it stopped."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief

#: Column of the metrics file of the logger -> name of the curve; RMSE of the moving average of the weights.
CURVES: Final[dict[str, str]] = {
    "lr-Adam": "learning_rate",
    "train_loss_epoch/weighted_sum": "train_loss",
    "train_metric_epoch/energy_per_atom": "train_energy_rmse_ev_per_atom",
    "train_metric_epoch/forces": "train_force_rmse_ev_per_ang",
    "train_metric_epoch/stress": "train_stress_rmse_ev_per_ang3",
    "train_metric_epoch/weighted_sum": "train_objective",
    "val0_epoch/energy_per_atom": "val_energy_rmse_ev_per_atom",
    "val0_epoch/forces": "val_force_rmse_ev_per_ang",
    "val0_epoch/stress": "val_stress_rmse_ev_per_ang3",
    "val0_epoch/weighted_sum": "val_objective",
}
#: Largest count that a log can mean.
_MOST_COUNT: Final[float] = 1e15
#: Epochs of a training; a table that says more is none.
_MOST_EPOCHS: Final[int] = 10**9
OBJECTIVE: Final[str] = "val_objective"
_STATISTIC: Final[re.Pattern[str]] = re.compile(
    r"stats_manager\].*\b(num_frames(?:_\d+)?|num_atoms|num_neighbors_mean): (\S+)"
)
_OUT_OF_MEMORY: Final[re.Pattern[str]] = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|Cannot allocate memory|\bMemoryError\b|oom-kill|"
    r"std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED|Exceeded .*memory limit",
    re.IGNORECASE,
)
_WALLTIME: Final[re.Pattern[str]] = re.compile(
    r"Time limit reached\. Elapsed time|DUE TO TIME LIMIT|CPU time limit exceeded|exceeded.*walltime", re.IGNORECASE
)


class Ending(Enum):
    """Why a training ended."""

    COMPLETED = "completed"
    STOPPED_EARLY = "stopped_early"
    NOT_FINITE = "not_finite"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    WALLTIME = "walltime"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Curves:
    """Learning curves, one value per epoch; NaN where a value was not logged.

    :param epoch: (k,) numbers of the epochs, ascending, counted from 0.
    :param values: name -> (k,) floats; names and units as in :data:`CURVES`.
    """

    epoch: np.ndarray
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.epoch)

    @property
    def objective(self) -> np.ndarray:
        """(k,) validation error that is monitored; empty when none was logged."""
        return np.asarray(self.values.get(OBJECTIVE, np.zeros(0)))

    @property
    def best(self) -> int | None:
        """Index of the epoch with the smallest finite validation error."""
        finite = np.flatnonzero(np.isfinite(self.objective))
        return int(finite[np.argmin(self.objective[finite])]) if len(finite) else None

    def index_of(self, epoch: int) -> int | None:
        """Index of an epoch by its number."""
        found = np.flatnonzero(self.epoch == epoch)
        return int(found[-1]) if len(found) else None

    def at(self, index: int) -> dict[str, float]:
        """Finite values of one epoch."""
        return {name: float(value[index]) for name, value in self.values.items() if math.isfinite(value[index])}


def read_metrics(texts: Sequence[str], *, source: str) -> Curves:
    """Curves from the metrics files of a training and of those it continues, oldest first.

    An epoch that appears twice (its run was interrupted and it was repeated) counts as last computed. A last line that
    was cut off is left out.

    :raises FileFormatError: a file is not such a table.
    """
    table: dict[int, dict[str, float]] = {}
    for text in texts:
        fresh: dict[int, dict[str, float]] = {}
        announced: dict[str, float] = {}  # the rate is logged before the number of its epoch
        for row in _rows(text, source):
            try:
                found = {name: float(row[column]) for column, name in CURVES.items() if row.get(column)}
                epoch = int(float(row["epoch"])) if row.get("epoch") else None
            except (ValueError, OverflowError) as error:
                raise FileFormatError(f"{source}: not a table of metrics ({brief(error)})") from error
            if epoch is None:
                announced = found
                continue
            if not 0 <= epoch <= _MOST_EPOCHS:
                raise FileFormatError(f"{source}: epoch {epoch}")
            fresh.setdefault(epoch, {}).update({**announced, **found})
            announced = {}
        if fresh and not any(name.startswith("val") for name in fresh[max(fresh)]):
            del fresh[max(fresh)]  # begun, not finished
        table.update(fresh)
    epochs = sorted(table)
    names = [name for name in CURVES.values() if any(name in table[epoch] for epoch in epochs)]
    values = {name: np.array([table[epoch].get(name, math.nan) for epoch in epochs]) for name in names}
    return Curves(epoch=np.array(epochs, dtype=np.int64), values=values)


def _rows(text: str, source: str) -> list[dict[str, str]]:
    lines = text.splitlines()
    if not lines:
        return []
    if "epoch" not in lines[0].split(","):
        raise FileFormatError(f"{source}: no table of metrics with a column 'epoch', but {lines[0][:80]!r}")
    complete = text if text.endswith(("\n", "\r")) else "\n".join(lines[:-1])
    try:
        return list(csv.DictReader(io.StringIO(complete)))
    except csv.Error as error:
        raise FileFormatError(f"{source}: not a table of metrics ({error})") from error


def is_diverged(objective: Sequence[float] | np.ndarray, *, factor: float, epochs: int) -> bool:
    """Whether the last ``epochs`` validation errors are all non-finite or more than ``factor`` times the best before.

    >>> is_diverged([1.0, 0.1, 50.0, 60.0], factor=100.0, epochs=2)
    True
    >>> is_diverged([1.0, 0.1, 50.0, 0.2], factor=100.0, epochs=2)
    False
    """
    values = np.asarray(objective, dtype=float)
    if len(values) < epochs:
        return False
    tail = values[-epochs:]
    before = values[:-epochs]
    if not np.isfinite(tail).any():
        return True
    best = np.min(before[np.isfinite(before)], initial=np.inf)
    return bool(np.all(~np.isfinite(tail) | (tail > factor * best)))


def data_statistics(log: str) -> dict[str, float]:
    """What ``nequip-train`` printed of its training data: ``num_frames``, ``num_atoms``, ``num_neighbors_mean``.

    With several levels of theory also ``num_frames_<index>`` for each.
    """
    found: dict[str, float] = {}
    for name, text in _STATISTIC.findall(log):
        try:
            value = float(text)
        except ValueError:
            continue  # half a line
        if abs(value) < _MOST_COUNT:  # neither NaN nor infinite
            found[name] = value
    return found


def says_out_of_time(log: str) -> bool:
    """Whether trainer, shell or scheduler say in their output that time was up."""
    return _WALLTIME.search(log) is not None


def why_ended(log: str, curves: Curves, *, max_epochs: int, factor: float, epochs: int) -> Ending:
    """Why a training ended, from its output (both streams and the scheduler's) and its curves.

    :param log: text of all output together.
    :param curves: what was logged.
    :param max_epochs: passes asked for.
    :param factor: see :func:`is_diverged`.
    :param epochs: see :func:`is_diverged`.
    """
    objective = curves.objective
    done = len(curves) > 0 and int(curves.epoch[-1]) + 1 >= max_epochs
    if len(objective) and not math.isfinite(objective[-1]):
        return Ending.NOT_FINITE
    if is_diverged(objective, factor=factor, epochs=epochs):
        return Ending.DIVERGED
    if done:
        return Ending.COMPLETED
    if _OUT_OF_MEMORY.search(log):
        return Ending.OUT_OF_MEMORY
    if says_out_of_time(log):
        return Ending.WALLTIME
    return Ending.STOPPED_EARLY if "TRAIN RUN END" in log else Ending.INTERRUPTED
