"""What one training is given: frames of both parts, reference energies, and what it takes over from earlier weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.training_jobs import config_of, joint_method_of, levels_of
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.level_types import species_of_types, type_indices
from aiida_mlip.io.training_levels import TrainingLevels
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.reference_energies import (
    fit_level_references,
    fit_reference_energies,
    in_energies_of_one,
    isolated_energies,
    level_shifts,
)
from aiida_mlip.kernel.splits import Part
from aiida_mlip.kernel.training import check_labels, joint_parts, repeated
from aiida_mlip.protocols.train import TrainSettings


@dataclass(frozen=True)
class TrainingSet:
    """Frames and energies of one training.

    :param train: frames of the training file: rows at the target of a training on several levels as often as they are
        seen in an epoch, energies in those that the model predicts.
    :param val: frames of the validation file.
    :param species: chemical symbols in the order of the model's types.
    :param reference_energies: eV per symbol: the energy shifts of the model.
    :param new_references: those replace the shifts of the package that the weights come from.
    :param levels: of a training on several levels of theory.
    """

    train: Frames
    val: Frames
    species: tuple[str, ...]
    reference_energies: Mapping[str, float]
    new_references: bool = False
    levels: TrainingLevels | None = None

    def level_indices(self, frames: Frames) -> list[int]:
        """Index of the level of theory of each row, in the model's order."""
        order = list(self.levels.fidelities) if self.levels is not None else []
        return [order.index(frames.fidelities[index]) for index in frames.fidelity]

    def type_indices(self, frames: Frames) -> np.ndarray:
        """(a,) the model's type of each atom, where every level of theory has types of its own."""
        level = np.asarray(self.level_indices(frames))[frames.atom_rows()]
        return type_indices(self.species, frames.numbers, level)


def training_set(inputs: Mapping[str, Any], settings: TrainSettings) -> TrainingSet:
    """Frames and energies of a training.

    :param inputs: of a ``NequipTrainCalculation``: ``dataset``, ``split``, and where the weights come from.
    :param settings: of this member.
    :raises InvalidInputError: the split belongs to another dataset, lacks the member or leaves a part empty; labels or
        isolated atoms are missing; earlier weights that do not go with the levels of theory asked for.
    :raises SpeciesError: earlier weights that do not cover the dataset.
    """
    dataset, initial = inputs["dataset"], inputs.get("initial_potential")
    frames, parts = dataset.frames(), parts_of_member(dataset, inputs["split"], settings)
    species = tuple(dataset.species)
    check_initial_potential(initial, settings)
    if initial is not None:
        initial.check_species(species)
        species = tuple(initial.species)
    elif (earlier := earlier_job(inputs)) is not None:
        _check_earlier(earlier, settings)
        species, _ = species_of_types(config_of(earlier)["model_type_names"])
    if settings.multi_fidelity is None:
        return _single(frames, parts, dataset, species, settings, initial)
    return _joint(frames, parts, inputs, species, settings)


def check_initial_potential(potential: PotentialData | None, settings: TrainSettings) -> None:
    """Make sure that weights go with the levels of theory asked for.

    :raises InvalidInputError: a joint model where one for a single level is wanted, or the reverse; other levels.
    """
    if potential is None:
        return
    wanted = settings.multi_fidelity
    name = f"initial potential <{potential.uuid}>"
    if potential.joint and not settings.joint:
        raise InvalidInputError(
            f"{name}: a joint model of {', '.join(potential.fidelities)}; make one for a single fidelity of it first "
            "(aiida_mlip.bake)"
        )
    if settings.joint and wanted is not None and set(potential.fidelities) != set(wanted.fidelities):
        raise InvalidInputError(
            f"{name}: trained on {', '.join(potential.fidelities) or 'unknown fidelities'}, but multi_fidelity names "
            f"{', '.join(wanted.fidelities)}; a joint training starts from a joint model of the same fidelities or anew"
        )
    if settings.joint and not potential.joint:
        raise InvalidInputError(f"{name}: no joint model, it is not told the fidelity of a frame")
    if settings.joint and potential.joint_method != settings.method:
        raise InvalidInputError(
            f"{name}: tells its fidelities apart by {potential.joint_method!r}, but multi_fidelity.method is "
            f"{settings.method!r}"
        )


def parts_of_member(dataset: DatasetData, split: orm.ArrayData, settings: TrainSettings) -> np.ndarray:
    """(n,) part of every row for the member that the settings name.

    :raises InvalidInputError: the split belongs to another dataset, or lacks the member.
    """
    name = f"member_{settings.member}"
    if name not in split.get_arraynames():
        raise InvalidInputError(f"the split has no {name}; it has {sorted(split.get_arraynames())}")
    if not np.array_equal(split.get_array("frame_id"), dataset.column("frame_id")):
        raise InvalidInputError(
            f"the split <{split.uuid}> is not one of this dataset <{dataset.uuid}>: its frame ids differ"
        )
    return np.asarray(split.get_array(name))


def earlier_job(inputs: Mapping[str, Any]) -> orm.CalcJobNode | None:
    """The training whose weights this one starts from, if that was one of ours."""
    for port in ("restart_folder", "initial_folder"):
        if port in inputs and isinstance(job := inputs[port].creator, orm.CalcJobNode):
            return job
    return None


def _single(
    frames: Frames,
    parts: np.ndarray,
    dataset: DatasetData,
    species: tuple[str, ...],
    settings: TrainSettings,
    initial: PotentialData | None,
) -> TrainingSet:
    """Frames at one level of theory."""
    train, val = (frames.take(parts == part) for part in (Part.TRAIN, Part.VAL))
    _check_not_empty(train, val, settings)
    for part, selected in (("training", train), ("validation", val)):
        if len(np.unique(selected.fidelity)) > 1 or (selected.fidelity < 0).any():
            raise InvalidInputError(
                f"the {part} frames of member_{settings.member} are not all labelled at one fidelity"
            )
    check_labels(train, val, settings.loss.model_dump())
    fidelity = train.fidelities[train.fidelity[0]]
    prior = dataset.reference_energies.get(fidelity, {})
    if settings.reference == "isolated":
        references = isolated_energies(prior, dataset.species, fidelity)
    else:
        references = fit_reference_energies(train, species, prior=prior)
    new = _at_another_level(initial, fidelity)
    if new:
        references = _replacing(initial, references, train)
    return TrainingSet(train, val, species, references, new_references=new)


def _joint(
    frames: Frames, parts: np.ndarray, inputs: Mapping[str, Any], species: tuple[str, ...], settings: TrainSettings
) -> TrainingSet:
    """Frames at several levels of theory, all in the energies of one."""
    target = str(settings.target)
    train, val, times = joint_parts(
        frames, parts, target=target, fidelities=settings.levels, share=settings.target_share
    )
    _check_not_empty(train, val, settings)
    check_labels(train, val, settings.loss.model_dump())
    initial = inputs.get("initial_potential")
    levels = _taken_over(inputs) or _fitted(inputs["dataset"], train, species, settings, initial)
    references, new = levels.reference_energies[target], _at_another_level(initial, target)
    return TrainingSet(
        train=repeated(in_energies_of_one(train, levels.energy_shifts), target, times),
        val=in_energies_of_one(val, levels.energy_shifts),
        species=species,
        reference_energies=_replacing(initial, references, train) if new else references,
        new_references=new,
        levels=replace(levels, target=target, repetition=times),
    )


def _taken_over(inputs: Mapping[str, Any]) -> TrainingLevels | None:
    """Order of the levels and reference energies that earlier weights of a joint model are bound to."""
    if (job := earlier_job(inputs)) is not None:
        return levels_of(job)
    initial = inputs.get("initial_potential")
    if initial is None or not initial.joint:
        return None
    return TrainingLevels(
        fidelities=tuple(initial.fidelities),
        target=initial.fidelities[-1],
        joint=True,
        reference_energies=initial.reference_energies,
        energy_shifts=initial.energy_shifts,
        repetition=1,
    )


def _fitted(
    dataset: DatasetData,
    train: Frames,
    species: tuple[str, ...],
    settings: TrainSettings,
    initial: PotentialData | None,
) -> TrainingLevels:
    """Levels in the order of the settings, with reference energies of isolated atoms or of a fit to the frames."""
    names, target = settings.levels, str(settings.target)
    known = {name: dataset.reference_energies.get(name, {}) for name in names}
    if settings.reference == "isolated":
        references = {name: isolated_energies(known[name], dataset.species, name) for name in names}
    else:
        references = fit_level_references(train, species, names, priors=known)
    shifts = level_shifts(references, references[target])
    own = references[target]
    if initial is not None and not _at_another_level(initial, target):
        own = {**own, **_model_references(initial)}  # the package's shifts are not replaced
    return TrainingLevels(
        fidelities=names,
        target=target,
        joint=settings.joint,
        reference_energies={
            name: {symbol: own[symbol] + shift for symbol, shift in table.items()} for name, table in shifts.items()
        },
        energy_shifts=shifts,
        repetition=1,
    )


def _at_another_level(potential: PotentialData | None, fidelity: str) -> bool:
    """Whether weights come from another level of theory than the one to train for."""
    return potential is not None and bool(potential.fidelities) and fidelity not in potential.fidelities


def _replacing(potential: PotentialData | None, references: Mapping[str, float], train: Frames) -> dict[str, float]:
    """Energy shifts of a package for another level; a species that the training frames lack keeps its own."""
    return {**_model_references(potential), **{symbol: references[symbol] for symbol in train.species}}


def _model_references(potential: PotentialData | None) -> dict[str, float]:
    """Energy shifts (eV per symbol) in the package of a potential for one level of theory, where known."""
    if potential is None or len(potential.fidelities) != 1:
        return {}
    return dict(potential.reference_energies.get(potential.fidelities[0], {}))


def _check_earlier(job: orm.CalcJobNode, settings: TrainSettings) -> None:
    found, method = levels_of(job), joint_method_of(job)
    names = () if found is None else found.fidelities
    if set(names) != set(settings.levels) or method != settings.method:
        before, now = (
            f"{', '.join(levels)} ({how})" if levels else "one fidelity"
            for levels, how in ((names, method), (settings.levels, settings.method))
        )
        raise InvalidInputError(f"NequipTrainCalculation<{job.pk}> trained on {before}, but the settings ask for {now}")


def _check_not_empty(train: Frames, val: Frames, settings: TrainSettings) -> None:
    for part, selected in (("training", train), ("validation", val)):
        if len(selected) == 0:
            raise InvalidInputError(f"member_{settings.member} of the split has no {part} frames")
