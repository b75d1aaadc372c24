"""What a campaign of active learning may take, before it starts: labels, core-hours and trainings at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.data.label_costs import MeasuredLabels, measured_labels
from aiida_mlip.kernel.label_cost import fit_label_cost
from aiida_mlip.protocols.active_learning import ActiveLearningSettings, active_learning_settings
from aiida_mlip.protocols.explore import parse_explore
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.promote import parse_promote
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.workchains.label_inputs import settings_hashes

_HOUR: Final[float] = 3600.0


@dataclass(frozen=True)
class Forecast:
    """What a campaign may take.

    :param rounds: at most.
    :param labels: at most, those that measure the embedding error apart.
    :param largest: atoms of the largest frame that may be labelled.
    :param core_hours: of all labels if every one is of the largest frame, by level of theory (of the dear one its part
        of the frames); without those of which no cost is known.
    :param measured_in: pks of the datasets that the costs come from.
    :param core_hours_cap: what will not be exceeded; None: nothing was said.
    :param trainings: of one potential each, at most.
    :param training_hours: of one of them, as the given potentials took; None where none was given.
    :param training_hours_cap: what will not be exceeded.
    :param atom_steps: atoms times steps of one full pass of all explorations.
    """

    rounds: int
    labels: int
    largest: int
    core_hours: Mapping[str, float]
    measured_in: tuple[int, ...]
    core_hours_cap: float | None
    trainings: int
    training_hours: float | None
    training_hours_cap: float | None
    atom_steps: int

    def lines(self) -> list[str]:
        """The same in words."""
        costs = ", ".join(f"{hours:.3g} core-hours of {name}" for name, hours in self.core_hours.items())
        source = f" (as measured in DatasetData<{', '.join(map(str, self.measured_in))}>)" if costs else ""
        each = "" if self.training_hours is None else f" of about {self.training_hours:.2g} h (as the last one took)"
        return [
            f"at most {self.rounds} rounds, {self.labels} labels of up to {self.largest} atoms: "
            + (f"at most {costs}{source}" if costs else "no label of this level of theory has a known cost yet")
            + ("" if self.core_hours_cap is None else f"; hard cap {self.core_hours_cap:g} core-hours"),
            f"at most {self.trainings} trainings{each}"
            + ("" if self.training_hours_cap is None else f"; hard cap {self.training_hours_cap:g} h"),
            f"one pass of all explorations: {self.atom_steps:.3g} atom-steps",
        ]


def forecast(inputs: Mapping[str, Any]) -> Forecast:
    """Forecast of a campaign.

    :param inputs: of :class:`~aiida_mlip.workchains.active_learning.ActiveLearningWorkChain`, or its builder;
        ``dataset`` may be left out, then the costs are those of any labels in the profile with the same settings.
    :raises ProtocolError: settings that cannot be used.
    """
    settings = active_learning_settings(inputs["settings"].get_dict())
    explorations = inputs["explorations"]
    largest = _largest(settings, explorations)
    labels = settings.max_rounds * settings.labels_per_round
    hashes = settings_hashes(inputs["label"]["fidelities"].get_dict())
    part = dict.fromkeys(hashes, 1.0)
    if settings.promote is not None:
        dear = parse_promote(settings.promote, list(hashes))
        part[dear.fidelity] = dear.fraction
    known = [each for each in measured_labels() if hashes.get(each.fidelity) == each.settings]
    members = train_settings(inputs["train"]["settings"].get_dict()).committee
    given = list((inputs.get("potentials") or {}).values())
    return Forecast(
        rounds=settings.max_rounds,
        labels=labels,
        largest=largest,
        core_hours={each.fidelity: part[each.fidelity] * labels * _core_hours(each, largest) for each in known},
        measured_in=tuple(sorted({each.pk for each in known})),
        core_hours_cap=settings.dft_core_hours,
        trainings=members * (settings.max_rounds + (0 if given else 1)),
        training_hours=_training_hours(given),
        training_hours_cap=settings.training_hours,
        atom_steps=sum(_atom_steps(exploration) for exploration in explorations.values()),
    )


def _largest(settings: ActiveLearningSettings, explorations: Mapping[str, Any]) -> int:
    if settings.mode == "fragments" and settings.fragment is not None:
        return FragmentSettings.model_validate(settings.fragment).max_atoms
    return max(int(each["structures"].column("natoms").max()) for each in explorations.values())


def _core_hours(labels: MeasuredLabels, natoms: int) -> float:
    cost = fit_label_cost(labels.natoms, labels.core_seconds)
    return float(cost.core_seconds(np.array([natoms]))[0]) / _HOUR


def _training_hours(potentials: list[orm.Data]) -> float | None:
    """Of the longest training among those that made some potentials."""
    seconds = []
    for potential in potentials:
        job = potential.creator
        if isinstance(job, orm.CalcJobNode) and "summary" in job.outputs:
            seconds.append(job.outputs.summary.get_dict().get("wall_seconds") or 0.0)
    return max(seconds) / _HOUR if seconds and max(seconds) > 0 else None


def _atom_steps(exploration: Mapping[str, Any]) -> int:
    spec = parse_explore(exploration["spec"].get_dict())
    return int(exploration["structures"].column("natoms").sum()) * spec.n_steps * spec.replicas
