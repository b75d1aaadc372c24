"""Rows of several fidelities side by side: what is held out, differences of labels, labels corrected by a difference.

A *dear* and a *cheap* fidelity label some of the same frames. E_dear − E_cheap is smoother than either, so that a few
common frames are enough to learn it (Δ-learning, doi:10.1021/acs.jctc.5b00099); added to the labels of the frames that
only the cheap one knows it makes labels of the dear one of them, as good as the learned difference is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from aiida_mlip.errors import InvalidInputError, SpeciesError
from aiida_mlip.kernel.frames import Frames, concatenate, id_keys
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.reference_energies import compositions, fit_reference_energies
from aiida_mlip.kernel.splits import Part, group_rows, split_frames, usable_rows


def rows_at(frames: Frames, fidelity: str) -> Bool[np.ndarray, " n"]:
    """(n,) rows that are labelled at a fidelity, isolated atoms among them; none where no row has it."""
    if fidelity not in frames.fidelities:
        return np.zeros(len(frames), dtype=bool)
    mine = frames.fidelity == frames.fidelities.index(fidelity)
    return np.asarray(mine & frames.labelled & (frames.failure == 0))


def count_labels(frames: Frames, fidelities: Sequence[str]) -> dict[str, int]:
    """Rows labelled at each fidelity that can be trained on: no isolated atoms."""
    return {name: int(usable_rows(frames, name).sum()) if name in frames.fidelities else 0 for name in fidelities}


def check_labelled(frames: Frames, fidelities: Sequence[str]) -> dict[str, int]:
    """:func:`count_labels` of fidelities that all have labels.

    :raises InvalidInputError: fewer than two fidelities, or one without labels; names it.
    """
    if len(set(fidelities)) < 2:
        raise InvalidInputError(f"methods of several fidelities need at least two, got {list(fidelities)}")
    counts = count_labels(frames, fidelities)
    if missing := [name for name, count in counts.items() if not count]:
        known = sorted({frames.fidelities[i] for i in frames.fidelity[frames.labelled] if i >= 0})
        raise InvalidInputError(
            f"no row that could be trained on is labelled at {', '.join(map(repr, missing))}; there are labels at "
            f"{', '.join(known) or 'no fidelity at all'}"
        )
    return counts


# -- held out --------------------------------------------------------------------------------------------------


def hold_out(
    frames: Frames, target: str, split: Mapping[str, Any], *, test: Frames | None = None
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Rows that all methods may learn from, and rows at the target that all are measured on.

    Whatever shares its lineage with a row that is measured on is left out of the training, at every fidelity.

    :param frames: n rows.
    :param target: the fidelity that counts.
    :param split: ``test``, ``val``, ``seed``, ``group_by``, ..., see
        :func:`~aiida_mlip.kernel.splits.split_frames`; ``test`` of the rows at the target are held out.
    :param test: rows to measure on instead; then none of ``frames`` is held out but relatives of these.
    :returns: (n,) rows to train on, (n,) rows held out; the latter is empty where ``test`` is given.
    :raises InvalidInputError: nothing to measure on, no labels at the target, too few groups, or nothing left.
    """
    if test is None:
        if split["test"] == 0.0:
            raise InvalidInputError("nothing to measure the methods on: split.test is 0, and there is no test_dataset")
        chosen = split_frames(frames, members=1, fidelity=target, **split).parts[0] == Part.TEST
        chosen &= usable_rows(frames, target)
        group = group_rows(frames, group_by=split["group_by"])
        tested = group[chosen]
    else:
        chosen = np.zeros(len(frames), dtype=bool)
        measured = usable_rows(test, target)
        if not measured.any():
            raise InvalidInputError(f"test_dataset: none of its {len(test)} rows is labelled at {target!r}")
        group = group_rows(concatenate([frames, test]), group_by=split["group_by"])
        tested, group = group[len(frames) :][measured], group[: len(frames)]
    isolated = (frames.natoms == 1) & ~frames.pbc.any(axis=1)
    training = ~np.isin(group, tested) | isolated
    if not (training & usable_rows(frames)).any():
        raise InvalidInputError("every labelled row shares its lineage with one that is held out: nothing to train on")
    return training, chosen


def check_species(test: Frames, train: Frames, *, method: str) -> None:
    """Make sure that a method sees all species that it is measured on.

    :raises SpeciesError: names those that it does not.
    """
    if missing := sorted(set(test.species) - set(train.species)):
        raise SpeciesError(
            f"{method}: the rows to measure on have {', '.join(missing)}, those to learn from only "
            f"{', '.join(train.species)}"
        )


# -- differences -----------------------------------------------------------------------------------------------


def common_rows(frames: Frames, low: str, high: str) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
    """Rows of the frames labelled at both fidelities: (c,) those at ``low``, in order, and (c,) those at ``high``."""
    cheap, dear = np.flatnonzero(rows_at(frames, low)), np.flatnonzero(rows_at(frames, high))
    keys = id_keys(frames.frame_id)
    cheap = cheap[np.sort(np.unique(keys[cheap], return_index=True)[1])]
    known, first = np.unique(keys[dear], return_index=True)
    cheap = cheap[np.isin(keys[cheap], known)]
    return cheap, dear[first[np.searchsorted(known, keys[cheap])]] if len(cheap) else dear[:0]


def difference_frames(frames: Frames, low: str, high: str, *, name: str) -> Frames:
    """Frames labelled at both, with the differences E_high − E_low, F_high − F_low, σ_high − σ_low as their labels.

    A number that one of them lacks is NaN. Isolated atoms give the reference energies of the difference.

    >>> from ase.build import bulk
    >>> from aiida_mlip.kernel.frames import concatenate, from_ase
    >>> silicon = from_ase([bulk("Si")])
    >>> rows = [silicon.with_columns(energy=np.array([e]), fidelity=np.zeros(1, dtype="<i2"), fidelities=(name,))
    ...         for name, e in (("lda", -10.0), ("pbe", -9.0))]
    >>> difference_frames(concatenate(rows), "lda", "pbe", name="pbe_minus_lda").energy
    array([1.])
    """
    rows_low, rows_high = common_rows(frames, low, high)
    cheap, dear = frames.take(rows_low), frames.take(rows_high)
    return cheap.with_columns(
        energy=dear.energy - cheap.energy,
        forces=dear.forces - cheap.forces,
        stress=dear.stress - cheap.stress,
        cost=np.full(len(cheap), np.nan, dtype="<f4"),
        fidelity=np.zeros(len(cheap), dtype="<i2"),
        fidelities=(name,),
    )


def label_gap(frames: Frames, low: str, high: str) -> dict[str, float | int | None]:
    """How far the labels of two fidelities are apart: the errors that a perfect potential of ``low`` has at ``high``.

    :returns: ``n_frames`` labelled at both; root mean squares ``force_rms_ev_per_ang`` over components, and
        ``energy_rms_ev_per_atom`` after energies per species were fitted away; None: none to compare.
    """
    gap = difference_frames(frames, low, high, name="difference")
    gap = gap.take(usable_rows(gap))
    species = gap.species
    shift = compositions(gap, species) @ np.array(list(fit_reference_energies(gap, species).values()))
    return {
        "n_frames": len(gap),
        "force_rms_ev_per_ang": _rms(gap.forces),
        "energy_rms_ev_per_atom": _rms((gap.energy - shift) / gap.natoms),
    }


# -- corrected labels ------------------------------------------------------------------------------------------


def uncorrected_frames(frames: Frames, low: str, high: str) -> Frames:
    """Rows labelled at ``low`` whose frame has no label at ``high``; no isolated atoms, each frame once."""
    cheap = np.flatnonzero(rows_at(frames, low) & usable_rows(frames))
    keys = id_keys(frames.frame_id)
    cheap = cheap[np.sort(np.unique(keys[cheap], return_index=True)[1])]
    return frames.take(cheap[~np.isin(keys[cheap], keys[rows_at(frames, high)])])


def mean_prediction(members: Sequence[Predictions]) -> Predictions:
    """Mean over the members of a committee; NaN where one of them failed.

    :raises InvalidInputError: no member, or members for different frames.
    """
    if not members:
        raise InvalidInputError("no predictions to average")
    if len(shapes := {(member.energy.shape, member.forces.shape) for member in members}) > 1:
        raise InvalidInputError(f"predictions of different frames: shapes {sorted(shapes)}")
    return Predictions(
        energy=np.mean([member.energy for member in members], axis=0),
        forces=np.mean([member.forces for member in members], axis=0),
        stress=np.mean([member.stress for member in members], axis=0),
        failure=np.max([member.failure for member in members], axis=0),
    )


def corrected_frames(frames: Frames, difference: Predictions, *, fidelity: str) -> Frames:
    """Frames whose labels are theirs plus a predicted difference, as labels of ``fidelity``.

    A number that the label or the prediction lacks is NaN; a frame without any number left is dropped.

    :param frames: n labelled rows, e.g. of :func:`uncorrected_frames`.
    :param difference: for the same rows.
    :raises InvalidInputError: the predictions are not for these frames.
    """
    if (len(difference.energy), len(difference.forces)) != (len(frames), frames.n_atoms):
        raise InvalidInputError(
            f"differences for {len(difference.energy)} frames of {len(difference.forces)} atoms in all, but there "
            f"are {len(frames)} of {frames.n_atoms}"
        )
    corrected = frames.with_columns(
        energy=frames.energy + difference.energy,
        forces=frames.forces + difference.forces,
        stress=frames.stress + difference.stress,
        fidelity=np.zeros(len(frames), dtype="<i2"),
        fidelities=(fidelity,),
    )
    return corrected.take(corrected.labelled)


def _rms(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if known.size else None
