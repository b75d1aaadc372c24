"""Laws of rows at several fidelities: what is held out, differences, corrected labels."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError, SpeciesError
from aiida_mlip.kernel.fidelities import (
    check_labelled,
    check_species,
    common_rows,
    corrected_frames,
    count_labels,
    difference_frames,
    hold_out,
    label_gap,
    mean_prediction,
    rows_at,
    uncorrected_frames,
)
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, digest, from_ase, id_keys
from aiida_mlip.kernel.labelling import isolated_atoms
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.splits import usable_rows

SPLIT = {"test": 0.25, "val": 0.1, "seed": 0, "group_by": "lineage", "bag": 1.0}


def labelled(cells: list[int], fidelity: str, *, energy_per_atom: float = 0.0) -> Frames:
    """Silicon cells by number, with labels that depend on the number and the fidelity."""
    images = []
    for number in cells:
        atoms = bulk("Si", "diamond", a=5.3 + 0.01 * number)
        values = np.random.default_rng([number, len(fidelity)])
        stress = values.normal(size=6)
        energy = float(values.normal()) + 2 * energy_per_atom
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=values.normal(size=(2, 3)), stress=stress)
        images.append(atoms)
    return from_ase(images, fidelity=fidelity)


def pair(low: list[int], high: list[int]) -> Frames:
    return concatenate([labelled(low, "lda"), labelled(high, "pbe0", energy_per_atom=-3.0)])


def exact(frames: Frames) -> Predictions:
    """The labels, as predictions."""
    return Predictions(
        energy=frames.energy, forces=frames.forces, stress=frames.stress, failure=np.zeros(len(frames), dtype=np.uint8)
    )


CELLS = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True)


@given(low=CELLS, high=CELLS)
@settings(max_examples=40, deadline=None)
def test_cheap_label_and_difference_make_the_dear_label(low, high):
    """E_low + (E_high − E_low) = E_high, forces and stress too; a common frame is one that both label."""
    frames = pair(low, high)
    difference = difference_frames(frames, "lda", "pbe0", name="gap")
    cheap, dear = (frames.take(rows) for rows in common_rows(frames, "lda", "pbe0"))
    assert len(difference) == len(set(low) & set(high))
    np.testing.assert_array_equal(id_keys(cheap.frame_id), id_keys(dear.frame_id))
    np.testing.assert_array_equal(id_keys(difference.frame_id), id_keys(dear.frame_id))
    assert set(difference.fidelities) == {"gap"}
    again = corrected_frames(cheap, exact(difference), fidelity="pbe0")
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(again, name), getattr(dear, name), rtol=0, atol=1e-12)
    assert rows_at(again, "pbe0").all()
    rest = uncorrected_frames(frames, "lda", "pbe0")
    assert len(rest) + len(difference) == len(low)
    assert not np.isin(id_keys(rest.frame_id), id_keys(frames.frame_id[rows_at(frames, "pbe0")])).any()


@given(low=CELLS, high=CELLS, seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_differences_do_not_depend_on_the_order_of_rows(low, high, seed):
    frames = pair(low, high)
    shuffled = frames.take(np.random.default_rng(seed).permutation(len(frames)))
    first, second = (difference_frames(one, "lda", "pbe0", name="gap") for one in (frames, shuffled))
    order = [np.argsort(id_keys(one.frame_id)) for one in (first, second)]
    np.testing.assert_array_equal(first.energy[order[0]], second.energy[order[1]])
    assert label_gap(frames, "lda", "pbe0")["force_rms_ev_per_ang"] == pytest.approx(
        label_gap(shuffled, "lda", "pbe0")["force_rms_ev_per_ang"], nan_ok=True
    )


def test_missing_numbers_stay_missing():
    """Energies only at the dear fidelity: no force difference, and no corrected force."""
    dear = labelled([0, 1], "pbe0")
    bare = dear.with_columns(forces=np.full((4, 3), np.nan), stress=np.full((2, 3, 3), np.nan))
    frames = concatenate([labelled([0, 1, 2], "lda"), bare])
    difference = difference_frames(frames, "lda", "pbe0", name="gap")
    assert np.isfinite(difference.energy).all()
    assert np.isnan(difference.forces).all()
    assert label_gap(frames, "lda", "pbe0")["force_rms_ev_per_ang"] is None
    rest = uncorrected_frames(frames, "lda", "pbe0")
    nothing = np.full(1, np.nan)
    lost = Predictions(
        energy=nothing, forces=np.full((2, 3), np.nan), stress=rest.stress, failure=np.ones(1, dtype=np.uint8)
    )
    assert len(corrected_frames(rest, lost, fidelity="pbe0")) == 0


def test_failed_and_isolated_rows():
    """A failed label is none; isolated atoms give reference energies of the difference, and are never corrected."""
    frames = pair([0, 1, 2], [0, 1])
    failed = frames.with_columns(failure=np.where(np.arange(5) == 3, Failure.CRASHED, 0).astype(np.uint8))
    assert len(difference_frames(failed, "lda", "pbe0", name="gap")) == 1
    alone = [
        isolated_atoms([14]).with_columns(
            energy=np.array([energy]), fidelity=np.zeros(1, dtype="<i2"), fidelities=(name,)
        )
        for name, energy in (("lda", -1.0), ("pbe0", -4.0))
    ]
    both = concatenate([frames, *alone])
    difference = difference_frames(both, "lda", "pbe0", name="gap")
    assert difference.energy[difference.natoms == 1].tolist() == [-3.0]
    assert count_labels(both, ["lda", "pbe0", "hse"]) == {"lda": 3, "pbe0": 2, "hse": 0}
    assert (uncorrected_frames(concatenate([frames, alone[0]]), "lda", "pbe0").natoms == 2).all()


def test_gap_is_the_error_of_the_cheap_fidelity():
    """Root mean square by its definition; a shift per species is no error of the energies."""
    frames = pair([0, 1, 2, 3], [1, 2, 3])
    cheap, dear = (frames.take(rows) for rows in common_rows(frames, "lda", "pbe0"))
    gap = label_gap(frames, "lda", "pbe0")
    assert gap["n_frames"] == 3
    assert gap["force_rms_ev_per_ang"] == pytest.approx(np.sqrt(np.mean((dear.forces - cheap.forces) ** 2)))
    per_atom = (dear.energy - cheap.energy) / 2
    assert gap["energy_rms_ev_per_atom"] == pytest.approx(per_atom.std(), rel=1e-6)
    assert abs(per_atom.mean()) > 1.0


@given(
    groups=st.lists(st.integers(0, 6), min_size=12, max_size=12),
    high=st.lists(st.integers(0, 11), min_size=6, max_size=10, unique=True),
    seed=st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_nothing_held_out_is_trained_on_at_any_fidelity(groups, high, seed):
    frames = pair(list(range(12)), high)
    numbers = np.array([*groups, *(groups[cell] for cell in high)])
    ids = np.array([digest(f"group {number}") for number in range(7)])
    frames = frames.with_columns(group_id=ids[numbers])
    split = {**SPLIT, "seed": seed}
    if len(set(numbers[12:].tolist())) < 3:
        with pytest.raises(InvalidInputError, match="group"):
            hold_out(frames, "pbe0", split)
        return
    training, test = hold_out(frames, "pbe0", split)
    assert test.any()
    assert (frames.fidelity[test] == frames.fidelity_index("pbe0")).all()
    assert not set(numbers[test]) & set(numbers[training])
    assert set(numbers[~training]) == set(numbers[test])
    # what is held out, given as a test dataset, leaves the same rows to learn from
    again, none = hold_out(frames, "pbe0", {**split, "test": 0.0}, test=frames.take(test))
    np.testing.assert_array_equal(again, training)
    assert not none.any()


def test_references_are_kept_whatever_is_held_out():
    """An isolated atom in the test dataset is no row to measure on, and takes none away."""
    alone = isolated_atoms([14]).with_columns(
        energy=np.array([-1.0]), fidelity=np.zeros(1, dtype="<i2"), fidelities=("pbe0",)
    )
    frames = concatenate([pair([0, 1], [0, 1]), alone])
    training, _ = hold_out(frames, "pbe0", SPLIT, test=concatenate([labelled([0], "pbe0"), alone]))
    assert training.tolist() == [False, True, False, True, True]


def test_what_cannot_be_compared_is_refused():
    frames = pair([0, 1, 2, 3], [0, 1])
    with pytest.raises(InvalidInputError, match="at least two"):
        check_labelled(frames, ["lda"])
    with pytest.raises(InvalidInputError, match=r"labelled at 'hse'.*labels at lda, pbe0"):
        check_labelled(frames, ["lda", "hse"])
    with pytest.raises(InvalidInputError, match=r"split\.test is 0"):
        hold_out(frames, "pbe0", {**SPLIT, "test": 0.0})
    with pytest.raises(InvalidInputError, match="nothing to train on"):
        hold_out(frames.take([0, 4]), "pbe0", SPLIT, test=frames.take([4]))
    with pytest.raises(InvalidInputError, match="no fidelity 'pbe0'"):
        hold_out(frames, "pbe0", SPLIT, test=labelled([7], "lda"))
    bare = labelled([7], "pbe0")
    bare = bare.with_columns(energy=np.array([np.nan]), forces=np.full((2, 3), np.nan))
    with pytest.raises(InvalidInputError, match="none of its 1 rows is labelled at 'pbe0'"):
        hold_out(frames, "pbe0", SPLIT, test=bare)
    with pytest.raises(SpeciesError, match="delta: the rows to measure on have Cu"):
        check_species(from_ase([bulk("Cu")]), frames, method="delta")


def test_mean_over_the_committee():
    frames = labelled([0, 1], "lda")
    other = exact(frames.with_columns(energy=frames.energy + 2.0, forces=-frames.forces))
    mean = mean_prediction([exact(frames), other])
    np.testing.assert_allclose(mean.energy, frames.energy + 1.0)
    np.testing.assert_allclose(mean.forces, 0.0)
    with pytest.raises(InvalidInputError, match="different frames"):
        mean_prediction([other, exact(frames.take([0]))])
    with pytest.raises(InvalidInputError, match="no predictions"):
        mean_prediction([])
    with pytest.raises(InvalidInputError, match="differences for 2 frames"):
        corrected_frames(frames.take([0]), mean, fidelity="pbe0")


def test_all_rows_of_a_difference_can_be_trained_on():
    difference = difference_frames(pair([0, 1, 2], [2, 1]), "lda", "pbe0", name="gap")
    assert usable_rows(difference, "gap").all()
