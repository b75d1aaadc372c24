"""Laws of the errors: what they must do under scaling, permutation, rotation, selection and masking."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, from_arrays
from aiida_mlip.kernel.metrics import ErrorReport, Predictions, compare, compare_parts, deviation, labels_at
from aiida_mlip.kernel.units import GPA

SEEDS = st.integers(0, 2**32 - 1)


def case(seed: int, n: int = 5, missing: float = 0.0) -> tuple[Frames, Predictions]:
    """Random labels and predictions for frames of 1 to 6 atoms of two elements."""
    rng = np.random.default_rng(seed)
    natoms = rng.integers(1, 7, n)
    a = int(natoms.sum())
    forces, energy, stress = rng.normal(size=(a, 3)), rng.normal(size=n), rng.normal(size=(n, 3, 3))
    forces[rng.random((a, 3)) < missing] = np.nan
    energy[rng.random(n) < missing] = np.nan
    stress[rng.random(n) < missing] = np.nan
    frames = from_arrays(
        natoms=natoms,
        numbers=rng.choice([6, 14], a),
        positions=rng.normal(size=(a, 3)),
        energy=energy,
        forces=forces,
        stress=stress,
        fidelity=rng.integers(0, 2, n),
        fidelities=("pbe", "hse"),
    )
    return frames, Predictions(
        energy=rng.normal(size=n),
        forces=rng.normal(size=(a, 3)),
        stress=rng.normal(size=(n, 3, 3)),
        failure=np.zeros(n, dtype=np.uint8),
    )


def close(one: ErrorReport, other: ErrorReport) -> None:
    """Equal numbers up to rounding, ``None`` only where the other has it too; frame numbers are not compared."""
    a, b = numbers(one), numbers(other)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert (value is None) == (b[key] is None), key
        assert value is None or value == pytest.approx(b[key], rel=1e-9), key


def numbers(report: ErrorReport) -> dict[str, float | None]:
    values = report.as_dict()
    species = {f"{s}.{k}": v for s, table in values.pop("species").items() for k, v in table.items()}
    return {**species, **{key: value for key, value in values.items() if not key.endswith("_frame")}}


def exact(frames: Frames) -> Predictions:
    return Predictions(frames.energy, frames.forces, frames.stress, np.zeros(len(frames), dtype=np.uint8))


@given(SEEDS)
def test_exact_predictions_have_no_error(seed: int) -> None:
    frames, _ = case(seed)
    report = compare(frames, exact(frames))
    for name, value in report.as_dict().items():
        if any(word in name for word in ("mae", "rmse", "bias", "max_ev", "max_gpa")):
            assert value == 0, name


@given(SEEDS, st.floats(0.01, 100))
def test_errors_scale_with_the_deviation(seed: int, factor: float) -> None:
    frames, p = case(seed)
    scaled = Predictions(
        frames.energy + factor * (p.energy - frames.energy),
        frames.forces + factor * (p.forces - frames.forces),
        frames.stress + factor * (p.stress - frames.stress),
        p.failure,
    )
    one, many = compare(frames, p).as_dict(), compare(frames, scaled).as_dict()
    for name in one:
        if any(word in name for word in ("mae", "rmse", "bias", "max_ev", "max_gpa")):
            assert many[name] == pytest.approx(factor * one[name], rel=1e-6), name


@given(SEEDS)
def test_order_of_frames_does_not_matter(seed: int) -> None:
    frames, p = case(seed)
    order = np.random.default_rng(seed).permutation(len(frames))
    atoms = np.concatenate([np.arange(frames.offsets[i], frames.offsets[i + 1]) for i in order])
    moved = Predictions(p.energy[order], p.forces[atoms], p.stress[order], p.failure[order])
    one, other = compare(frames, p), compare(frames.take(order), moved)
    close(one, other)
    assert one.energy_max_frame == order[other.energy_max_frame]
    assert one.force_max_frame == order[other.force_max_frame]
    assert one.stress_max_frame == order[other.stress_max_frame]


@given(SEEDS)
def test_rotation_keeps_root_mean_squares_and_longest_vector(seed: int) -> None:
    frames, p = case(seed)
    turn = Rotation.random(random_state=seed % 2**31).as_matrix()
    turned = frames.with_columns(forces=frames.forces @ turn.T, stress=turn @ frames.stress @ turn.T)
    report = compare(turned, Predictions(p.energy, p.forces @ turn.T, turn @ p.stress @ turn.T, p.failure))
    before = compare(frames, p)
    for name in ("force_rmse_ev_per_ang", "force_rms_ev_per_ang", "force_max_ev_per_ang", "stress_rmse_gpa"):
        assert getattr(report, name) == pytest.approx(getattr(before, name), rel=1e-9)


@given(SEEDS)
def test_mean_below_root_mean_square_below_largest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    result = deviation(rng.normal(size=20), rng.normal(size=20))
    assert abs(result.bias) <= result.mae <= result.rmse <= result.largest


@given(SEEDS)
def test_species_add_up_to_the_whole(seed: int) -> None:
    frames, p = case(seed)
    report = compare(frames, p)
    squares = sum(s.n_atoms * s.force_rmse_ev_per_ang**2 for s in report.species.values())
    assert squares / frames.n_atoms == pytest.approx(report.force_rmse_ev_per_ang**2)
    assert sum(s.n_atoms for s in report.species.values()) == frames.n_atoms


@given(SEEDS, st.floats(0, 1))
def test_a_selection_is_the_error_of_the_selected_frames(seed: int, share: float) -> None:
    frames, p = case(seed, n=8, missing=0.2)
    rows = np.random.default_rng(seed).random(8) < share
    atoms = rows[frames.atom_rows()]
    part = Predictions(p.energy[rows], p.forces[atoms], p.stress[rows], p.failure[rows])
    close(compare(frames, p, rows), compare(frames.take(rows), part))


@given(SEEDS)
def test_missing_labels_are_not_counted_and_json_has_no_nan(seed: int) -> None:
    frames, p = case(seed, missing=0.4)
    report = compare(frames, p)
    known = np.isfinite(frames.forces)
    assert report.n_force_components == known.sum()
    if known.any():
        expected = np.sqrt(np.mean((p.forces[known] - frames.forces[known]) ** 2))
        assert report.force_rmse_ev_per_ang == pytest.approx(expected)
    else:
        assert report.force_rmse_ev_per_ang is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_no_labels_at_all() -> None:
    frames, p = case(1, missing=1.1)
    values = compare(frames, p).as_dict()
    assert values["n_frames"] == 5
    assert (values["n_energies"], values["n_force_components"], values["n_stresses"]) == (0, 0, 0)
    assert all(
        value is None for name, value in values.items() if "_ev_" in name or "gpa" in name or "_frame" in name[-6:]
    )


def test_numbers_by_hand() -> None:
    frames = from_arrays(
        natoms=np.array([2, 1]),
        numbers=np.array([14, 14, 6]),
        positions=np.zeros((3, 3)),
        energy=np.array([2.0, 1.0]),
        forces=np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]),
        stress=np.zeros((2, 3, 3)),
    )
    off = frames.forces.copy()
    off[0] += [0.3, 0.4, 0.0]
    prediction = Predictions(
        np.array([2.2, 1.0]), off, np.stack([GPA * np.eye(3), np.zeros((3, 3))]), np.zeros(2, dtype=np.uint8)
    )
    report = compare(frames, prediction)
    assert report.energy_mae_ev_per_atom == pytest.approx(0.05)  # 0.2 eV on two atoms, 0 on one
    assert report.energy_max_frame == 0
    assert report.force_mae_ev_per_ang == pytest.approx(0.7 / 9)  # over components
    assert report.force_max_ev_per_ang == pytest.approx(0.5)  # length of the vector
    assert report.force_rms_ev_per_ang == pytest.approx(np.sqrt(1 / 3))
    assert report.force_rmse_relative == pytest.approx(np.sqrt(0.25 / 9) / np.sqrt(1 / 3))
    assert report.species["C"].force_rmse_ev_per_ang == 0
    assert report.stress_max_gpa == pytest.approx(1.0)
    assert report.stress_mae_gpa == pytest.approx(3 / 18)


@given(SEEDS)
@settings(max_examples=30)
def test_parts_cover_what_the_split_says(seed: int) -> None:
    frames, p = case(seed, n=9)
    part = np.random.default_rng(seed).integers(-1, 3, 9)
    reports = compare_parts(frames, p, part)
    assert sum(r.n_frames for name, r in reports.items() if name != "all") == (part >= 0).sum()
    for code, name in enumerate(("train", "val", "test")):
        assert (name in reports) == bool((part == code).any())
        if name in reports:
            close(reports[name], compare(frames, p, part == code))


def test_a_failed_frame_counts_as_failed_and_nowhere_else() -> None:
    frames, p = case(3)
    broken = replace(
        p,
        energy=np.where(np.arange(5) == 2, np.nan, p.energy),
        forces=np.where((frames.atom_rows() == 2)[:, None], np.nan, p.forces),
        stress=np.where((np.arange(5) == 2)[:, None, None], np.nan, p.stress),
        failure=np.array([0, 0, 4, 0, 0], dtype=np.uint8),
    )
    report = compare(frames, broken)
    rest = compare(frames, p, np.arange(5) != 2)
    assert report.n_failed == 1
    assert report.force_rmse_ev_per_ang == rest.force_rmse_ev_per_ang
    assert report.energy_mae_ev_per_atom == rest.energy_mae_ev_per_atom


@given(SEEDS)
def test_labels_at_other_levels_are_hidden(seed: int) -> None:
    frames, p = case(seed)
    close(
        replace(compare(labels_at(frames, ["hse"]), p), n_frames=0, species={}),
        replace(compare(frames, p, frames.fidelity == 1), n_frames=0, species={}),
    )
    assert labels_at(frames, []) is frames
    assert not labels_at(frames, ["other"]).labelled.any()


def test_wrong_shapes_are_refused() -> None:
    frames, p = case(1)
    other, _ = case(2, n=6)
    with pytest.raises(InvalidInputError, match="predictions for"):
        compare(other, p)
    with pytest.raises(InvalidInputError, match="selection"):
        compare(frames, p, np.ones(3, dtype=bool))
    with pytest.raises(InvalidInputError, match="split has shape"):
        compare_parts(frames, p, np.zeros(3))
    with pytest.raises(InvalidInputError, match=r"codes \[7\]"):
        compare_parts(frames, p, np.full(5, 7))
    with pytest.raises(InvalidInputError, match="stress"):
        replace(p, stress=np.zeros((5, 6)))
    with pytest.raises(InvalidInputError, match="shape"):
        deviation(np.zeros(3), np.zeros(2))
