"""Calibration: the synthetic laws, the guarantee on exchangeable splits, and its stored form."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.kernel.calibration import DEVIATION_FLOOR, Calibration, calibrate, conformal_scale
from aiida_mlip.kernel.uncertainty.scores import auroc, ence, miscalibration_area, normal_nll, spearman

N = 100_000
COPPER = np.full(N, 29)


def synthetic(n: int, *, seed: int, components: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Deviations and errors r = u ε with ε normal."""
    rng = np.random.default_rng(seed)
    u = rng.lognormal(-2.0, 0.8, size=n)
    return u, u[:, None] * rng.normal(size=(n, components))


def test_scale_area_and_coverage_of_the_synthetic_law() -> None:
    """r = u ε, one component: the scale is the normal quantile; all scores are those of a perfect uncertainty."""
    u, error = synthetic(N, seed=0, components=1)
    found = calibrate(u, np.abs(error[:, 0]), COPPER, components=1)
    assert found.scale["Cu"] == pytest.approx(norm.ppf(0.95), rel=0.02)
    assert found.metrics["miscalibration_area"] <= 0.01
    assert found.metrics["coverage"]["all"] == pytest.approx(0.90, abs=0.01)
    assert found.metrics["ence"] <= 0.03
    best = np.mean(0.5 * np.log(2 * np.pi * u**2) + error[:, 0] ** 2 / (2 * u**2))
    assert found.metrics["nll"] == pytest.approx(best, abs=0.001)


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.0])
def test_an_overconfident_committee_is_set_right(factor: float) -> None:
    """Vectors, deviations off by a factor: û covers 90 % of fresh errors all the same."""
    u, error = synthetic(N, seed=1)
    found = calibrate(factor * u, error, COPPER)
    assert found.metrics["miscalibration_area"] <= 0.01
    fresh, fresh_error = synthetic(N, seed=2)
    bound = found.bound(factor * fresh, COPPER)
    assert np.mean(np.linalg.norm(fresh_error, axis=1) <= bound) == pytest.approx(0.90, abs=0.01)


@pytest.mark.parametrize("n", [200, 2000, 20_000])
def test_exchangeable_split_keeps_its_promise(n: int) -> None:
    """Errors that are neither normal nor well ranked: coverage 0.90 ± 3 sqrt(0.09/n) on the other part of a split.

    One split in 400 is outside by chance; the mean over splits is held to its own, smaller deviation.
    """
    rng = np.random.default_rng(n + 1)
    u = rng.lognormal(size=21 * n)
    error = np.abs(rng.standard_cauchy(size=21 * n)) * (0.1 + u**0.3)
    coverage = []
    for _ in range(20):
        part = rng.permutation(21 * n)
        held, test = part[n:], part[:n]
        scale = conformal_scale(error[held] / u[held], level=0.9)
        coverage.append(np.mean(error[test] <= scale * u[test]))
    found = calibrate(u[held], error[held], np.full(20 * n, 14))
    assert found.bound(u[test], np.full(n, 14)).tolist() == (scale * u[test]).tolist()
    assert abs(coverage[0] - 0.9) <= 3 * np.sqrt(0.09 / n)
    assert abs(np.mean(coverage) - 0.9) <= 3 * np.sqrt(0.09 / n / 20 * 1.05)


@given(units=st.floats(0.01, 100.0), factor=st.floats(0.1, 10.0), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_units_of_forces_and_of_the_deviation_carry_over(units: float, factor: float, seed: int) -> None:
    """All forces in another unit: the same scales, the error in that unit. A deviation off by a factor: s / factor."""
    u, error = synthetic(300, seed=seed)
    numbers = np.tile([29, 79, 29], 100)
    found = calibrate(u, error, numbers)
    other = calibrate(units * u, units * error, numbers)
    off = calibrate(factor * u, error, numbers)
    assert other.scale == pytest.approx(found.scale)
    assert other.force_rmse_validation == pytest.approx(units * found.force_rmse_validation)
    assert off.scale == pytest.approx({symbol: scale / factor for symbol, scale in found.scale.items()})
    for name in ("spearman", "auroc", "miscalibration_area", "ence"):
        assert other.metrics[name] == pytest.approx(found.metrics[name], abs=1e-6), name
        assert off.metrics[name] == pytest.approx(found.metrics[name], abs=1e-6), name
    assert other.metrics["coverage"] == found.metrics["coverage"]


def test_each_element_has_its_own_scale() -> None:
    """One element three times worse than the other, coverage 0.9 for both; pooled it would not be."""
    u, error = synthetic(N, seed=3)
    numbers = np.where(np.arange(N) % 4 == 0, 8, 14)
    error[numbers == 8] *= 3.0
    found = calibrate(u, error, numbers)
    assert found.scale["O"] / found.scale["Si"] == pytest.approx(3.0, rel=0.03)
    for symbol, count in (("O", N // 4), ("Si", 3 * N // 4)):
        entry = found.metrics["coverage"]["element"][symbol]
        assert entry["n"] == count
        assert entry["coverage"] == pytest.approx(0.9, abs=0.01)
    assert found.scale["Si"] < found.scale_all < found.scale["O"]


def test_an_element_with_too_few_atoms_takes_the_scale_of_all() -> None:
    u, error = synthetic(1000, seed=4)
    numbers = np.full(1000, 14)
    numbers[:8] = 1
    found = calibrate(u, error, numbers)
    assert set(found.scale) == {"Si"}
    np.testing.assert_allclose(found.bound(np.array([1.0, 1.0]), np.array([1, 79])), found.scale_all)


def test_coverage_per_region_shows_where_the_promise_fails() -> None:
    """Errors at the surface three times larger at the same deviation: far below nominal there, and it says so."""
    u, error = synthetic(20_000, seed=5)
    region = np.where(np.arange(20_000) % 10 == 0, "surface", "bulk")
    error[region == "surface"] *= 3.0
    regions = calibrate(u, error, np.full(20_000, 29), region=region).metrics["coverage"]["region"]
    assert regions["surface"]["coverage"] < 0.6
    assert regions["bulk"]["coverage"] > 0.9
    assert regions["surface"]["n"] == 2000


def test_coverage_is_not_that_of_the_frames_it_was_fitted_on() -> None:
    """40 frames whose errors are scaled alike within a frame: folds that cut frames would promise too much."""
    rng = np.random.default_rng(6)
    atoms, frames, gaps = 200, 12, []
    for seed in range(20):
        group = np.repeat(np.arange(frames), atoms)
        quality = np.repeat(rng.lognormal(0, 1.0, size=frames), atoms)
        u = rng.lognormal(size=frames * atoms)
        error = quality * u * np.abs(rng.normal(size=frames * atoms))
        numbers = np.full(frames * atoms, 29)
        by_frame = calibrate(u, error, numbers, group=group, seed=seed).metrics["coverage"]["all"]
        by_atom = calibrate(u, error, numbers, seed=seed).metrics["coverage"]["all"]
        assert by_atom == pytest.approx(0.9, abs=0.01)
        gaps.append(by_frame)
    assert np.mean(gaps) < 0.895  # honest about a new frame


def test_validation_error_is_that_of_vectors() -> None:
    u, error = synthetic(500, seed=7)
    found = calibrate(u, error, np.full(500, 29))
    assert found.force_rmse_validation == pytest.approx(np.sqrt(np.mean((error**2).sum(axis=1))))
    assert found.metrics["bad_ev_per_ang"] == pytest.approx(2 * found.force_rmse_validation)
    assert found == calibrate(u, np.linalg.norm(error, axis=1), np.full(500, 29))


def test_unlabelled_atoms_do_not_count_and_zero_deviation_is_numerical_noise() -> None:
    u, error = synthetic(500, seed=8)
    numbers = np.full(500, 29)
    holes = error.copy()
    holes[::7] = np.nan
    kept = np.isfinite(holes).all(axis=1)
    assert calibrate(u, holes, numbers) == calibrate(u[kept], error[kept], numbers[kept])
    flat = calibrate(np.zeros(500), 1e-8 * np.abs(error), numbers)
    assert flat.bound(np.zeros(1), np.array([29]))[0] <= DEVIATION_FLOOR


def test_perfect_predictions_have_no_scores_but_a_calibration() -> None:
    found = calibrate(np.full(50, 0.1), np.zeros(50), np.full(50, 29))
    assert found.scale["Cu"] == 0.0
    assert found.metrics["coverage"]["all"] == 1.0
    assert [found.metrics[name] for name in ("spearman", "auroc", "nll", "miscalibration_area", "ence")] == [None] * 5
    assert Calibration.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


def test_conformal_scale_is_an_order_statistic() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    assert conformal_scale(scores, level=0.9) == 90.0
    assert conformal_scale(scores, level=0.5) == 50.0
    with pytest.raises(InvalidInputError, match="needs at least 9 held-out atoms with labels, got 8"):
        conformal_scale(np.ones(8), level=0.9)


# -- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_other_libraries() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300).round(1)
    y = x + rng.normal(size=300)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    flags = y > 1.0
    pairs = np.sign(x[flags][:, None] - x[~flags][None]) / 2 + 0.5
    assert auroc(x, flags) == pytest.approx(pairs.mean())
    sigma = rng.uniform(0.5, 2.0, size=300)
    assert normal_nll(np.abs(y), sigma, components=1) == pytest.approx(-norm.logpdf(y, scale=sigma).mean())
    vectors = sigma[:, None] * rng.normal(size=(300, 3))
    found = normal_nll(np.linalg.norm(vectors, axis=1), sigma, components=3)
    assert found == pytest.approx(-norm.logpdf(vectors, scale=sigma[:, None]).mean())


def test_scores_that_do_not_exist() -> None:
    assert spearman(np.ones(5), np.arange(5.0)) is None
    assert auroc(np.arange(5.0), np.zeros(5, dtype=bool)) is None
    assert ence(np.ones(3), np.ones(3), components=3, bins=10) is None


def test_miscalibration_of_a_width_off_by_far() -> None:
    error = np.linalg.norm(np.random.default_rng(1).normal(size=(20_000, 3)), axis=1)
    one = np.ones(20_000)
    assert miscalibration_area(error, one, components=3) < 0.01
    assert miscalibration_area(error, 1e3 * one, components=3) == pytest.approx(0.5, abs=0.01)
    assert miscalibration_area(error, 1e-3 * one, components=3) == pytest.approx(0.5, abs=0.01)
    assert ence(error, one, components=3) < 0.02
    assert ence(error, 2 * one, components=3) == pytest.approx(0.5, abs=0.02)


# -- stored form -----------------------------------------------------------------------------------------------------


def test_round_trip_through_json() -> None:
    u, error = synthetic(300, seed=9)
    found = calibrate(u, error, np.full(300, 29), region=np.full(300, "bulk"))
    assert Calibration.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale", None, "keys \\['scale'\\] are missing"),
        ("scale", [1.0], "must be mappings"),
        ("scale", {"Cu": "large"}, "'scale.Cu' must be a number >= 0"),
        ("scale_all", float("nan"), "'scale_all' must be a number >= 0"),
        ("force_rmse_validation", -0.1, "'force_rmse_validation'"),
        ("level", 1.5, "between 0 and 1"),
    ],
)
def test_malformed_calibrations_are_refused(key: str, value: object, message: str) -> None:
    data = calibrate(*synthetic(50, seed=0), np.full(50, 29)).as_dict()
    data[key] = value
    if value is None:
        del data[key]
    with pytest.raises(FileFormatError, match=message):
        Calibration.from_dict(data)


def test_wrong_input_is_refused() -> None:
    u, error = synthetic(50, seed=0)
    numbers = np.full(50, 29)
    with pytest.raises(InvalidInputError, match="shapes differ"):
        calibrate(u[:40], error, numbers)
    with pytest.raises(InvalidInputError, match="level must be"):
        calibrate(u, error, numbers, level=90)
    with pytest.raises(InvalidInputError, match="cannot be negative"):
        calibrate(u, error[:, 0], numbers)
    with pytest.raises(InvalidInputError, match="needs at least 9 held-out atoms with labels, got 0"):
        calibrate(u, np.full((50, 3), np.nan), numbers)
    with pytest.raises(InvalidInputError, match=r"group has shape \(3,\)"):
        calibrate(u, error, numbers, group=np.arange(3))
