"""Grades: laws of the novelty grade, the Laplace variance and the extrapolation grade, and their stored form."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.arrays import write_npz
from aiida_mlip.kernel.uncertainty.clusters import SAMPLE, assign_clusters
from aiida_mlip.kernel.uncertainty.elements import robust_threshold
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades

KINDS = ("novelty", "laplace_variance", "extrapolation_grade")


def environments(n: int, d: int = 5, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of two elements, correlated, in two clumps each."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice([14, 6], size=n)
    mixing = np.random.default_rng(7).normal(size=(2, d, d))
    clump = rng.choice([0.0, 12.0], size=n)
    values = np.einsum("nij,nj->ni", mixing[(numbers == 6).astype(int)], rng.normal(size=(n, d)) + clump[:, None])
    return values, numbers


@pytest.fixture(scope="module")
def grades() -> Grades:
    return fit_grades(*environments(2000))


def test_the_border_of_the_training_set_is_one(grades: Grades) -> None:
    """Nearly all environments of the same distribution are below 1, an environment far away is far above."""
    features, numbers = environments(2000, seed=1)
    assert np.mean(grades.novelty(features, numbers) < 1.0) > 0.98
    assert grades.novelty(features + 100.0, numbers).min() > 3.0


def test_novelty_is_the_distance_to_the_nearest_cluster_over_its_threshold() -> None:
    """One cluster: scipy's Mahalanobis distance and the robust threshold of the training distances."""
    from scipy.spatial.distance import mahalanobis

    features = np.random.default_rng(3).normal(size=(400, 4)) @ np.random.default_rng(4).normal(size=(4, 4))
    numbers = np.full(400, 29)
    grades = fit_grades(features, numbers, max_clusters=1)
    covariance = np.cov(features.T, ddof=0)
    covariance += 1e-8 * np.trace(covariance) / 4 * np.eye(4)
    distances = np.array([mahalanobis(z, features.mean(axis=0), np.linalg.inv(covariance)) for z in features])
    median = np.median(distances)
    threshold = median + 3 * 1.4826 * np.median(np.abs(distances - median))
    np.testing.assert_allclose(grades.novelty(features, numbers), distances / threshold, rtol=1e-8)


def test_clusters_are_found_and_a_gap_between_them_is_novel(grades: Grades) -> None:
    features, numbers = environments(4000)
    for number in (14, 6):
        mine = features[numbers == number]
        labels = assign_clusters(mine)
        assert 2 <= labels.max() + 1 <= 4
        middle = (mine.mean(axis=0))[None]  # between the clumps, where no environment is
        assert grades.novelty(middle, np.array([number]))[0] > 1.0
        one = fit_grades(features, numbers, max_clusters=1)
        assert one.novelty(middle, np.array([number]))[0] < 0.1  # what a single Gaussian says


def test_clusters_need_enough_points() -> None:
    points = np.random.default_rng(0).normal(size=(60, 3))
    assert assign_clusters(points, max_clusters=4).max() <= 1
    assert assign_clusters(points[:25], max_clusters=4).max() == 0


def test_clusters_of_many_points_are_those_of_their_clumps() -> None:
    """More points than centres are looked for on, three clumps of unequal size, any order."""
    rng = np.random.default_rng(1)
    clump = rng.choice(3, p=[0.6, 0.3, 0.1], size=2 * SAMPLE)
    points = 10 * np.eye(3)[clump] + rng.normal(size=(2 * SAMPLE, 3))
    labels = assign_clusters(points, max_clusters=3)
    pairs = {(int(a), int(b)) for a, b in zip(clump, labels, strict=True)}
    assert len(pairs) == 3
    order = rng.permutation(len(points))
    np.testing.assert_array_equal(assign_clusters(points[order], max_clusters=3), labels[order])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unseen_element_is_infinitely_novel_and_a_broken_feature_is_nan(grades: Grades, kind: str) -> None:
    features, _ = environments(3)
    features[1] = np.nan
    found = getattr(grades, kind)(features, np.array([14, 14, 29]))
    assert np.isfinite(found[0])
    assert np.isnan(found[1])
    assert found[2] == np.inf


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_training_atoms_and_of_asked_atoms_does_not_matter(grades: Grades, kind: str) -> None:
    features, numbers = environments(2000)
    order = np.random.default_rng(5).permutation(2000)
    other = fit_grades(features[order], numbers[order])
    expected = getattr(grades, kind)(features, numbers)
    np.testing.assert_allclose(getattr(other, kind)(features[order], numbers[order]), expected[order], rtol=1e-6)


def test_a_seed_decides_everything() -> None:
    """The same again is the same bytes; another seed gives the border somewhere near."""
    features, numbers = environments(3000)
    one, same, other = (fit_grades(features, numbers, seed=seed) for seed in (3, 3, 4))
    assert write_npz(one.arrays()) == write_npz(same.arrays())
    ratio = other.novelty(features, numbers) / one.novelty(features, numbers)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["novelty", "laplace_variance"])
def test_units_and_mixtures_of_features_do_not_matter(kind: str) -> None:
    """Both are invariant under z -> z M (one cluster; the ridge is small)."""
    features, numbers = environments(1000)
    mixing = np.random.default_rng(8).normal(size=(5, 5)) + 3 * np.eye(5)
    one = getattr(fit_grades(features, numbers, max_clusters=1), kind)(features, numbers)
    other = getattr(fit_grades(features @ mixing, numbers, max_clusters=1), kind)(features @ mixing, numbers)
    np.testing.assert_allclose(other, one, rtol=1e-3)


def test_laplace_variance_is_that_of_linear_regression() -> None:
    """Summed over the training set it is the number of parameters; repeating the data halves it."""
    features = np.random.default_rng(1).normal(size=(300, 6)) + 2.0
    numbers = np.full(300, 13)
    variance = fit_grades(features, numbers).laplace_variance(features, numbers)
    assert variance.sum() == pytest.approx(6.0, rel=1e-4)
    doubled = fit_grades(np.tile(features, (2, 1)), np.tile(numbers, 2)).laplace_variance(features, numbers)
    np.testing.assert_allclose(doubled, variance / 2, rtol=1e-6)


def test_extrapolation_grade_is_one_at_most_inside(grades: Grades) -> None:
    """On the training set max |B| <= 1.01; along a ray it grows linearly."""
    features, numbers = environments(2000)
    inside = grades.extrapolation_grade(features, numbers)
    assert inside.max() <= 1.01 + 1e-9
    np.testing.assert_allclose(grades.extrapolation_grade(5 * features, numbers), 5 * inside, rtol=1e-9)


def test_a_direction_never_seen_is_far_outside() -> None:
    """Fewer environments than features: the grades exist, and leave the span of the training set at once."""
    features = np.zeros((3, 4))
    features[:, :2] = [[1.0, 0.2], [0.3, 1.0], [0.5, 0.4]]
    numbers = np.full(3, 8)
    grades = fit_grades(features, numbers)
    elsewhere = np.array([[0.5, 0.5, 0.1, 0.0]])
    for kind in KINDS:
        assert getattr(grades, kind)(features, numbers).max() < 1.5, kind
        assert getattr(grades, kind)(elsewhere, numbers[:1])[0] > 100.0, kind


@pytest.mark.parametrize("n", [1, 2, 100])
def test_equal_environments_are_not_novel_and_others_are(n: int) -> None:
    """A perfect crystal alone as training set; noise of single precision is no novelty."""
    features = np.tile([0.3, -1.0, 2.0], (n, 1))
    grades = fit_grades(features, np.full(n, 14))
    noisy = features.astype(np.float32).astype(np.float64)
    assert grades.novelty(noisy, np.full(n, 14)).max() <= 1.0
    assert grades.novelty(features + 1e-3, np.full(n, 14)).min() > 10.0


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_moving_away_from_one_cluster_only_increases_novelty(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(80, 3))
    grades = fit_grades(features, np.full(80, 1), max_clusters=1)
    ray = features.mean(axis=0) + np.linspace(0, 10, 30)[:, None] * rng.normal(size=3)
    assert (np.diff(grades.novelty(ray, np.full(30, 1))) > 0).all()


def test_threshold_is_robust_against_outliers() -> None:
    values = np.random.default_rng(0).normal(5, 1, size=10_001)
    assert robust_threshold(values) == pytest.approx(8.0, abs=0.1)
    spoiled = np.concatenate([values, np.full(500, 1e6)])
    assert robust_threshold(spoiled) == pytest.approx(8.0, abs=0.4)


# -- stored form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_a_file(grades: Grades, kind: str) -> None:
    with np.load(io.BytesIO(write_npz(grades.arrays()))) as file:
        back = Grades.from_arrays({name: file[name] for name in file.files})
    features, numbers = environments(50, seed=9)
    np.testing.assert_array_equal(getattr(back, kind)(features, numbers), getattr(grades, kind)(features, numbers))
    assert back.n_features == 5


def damaged(change: str, value: object) -> dict:
    arrays = dict(fit_grades(*environments(200)).arrays())
    if value is None:
        del arrays[change]
    else:
        arrays[change] = value(arrays[change]) if callable(value) else np.asarray(value)
    return arrays


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grades_version", None, "no array 'grades_version', so these are no grades"),
        ("grades_version", 99, "this program reads version 1"),
        ("grades_version", [1], "this program reads version 1"),
        ("grades_numbers", [14, 14], "must list atomic numbers once each"),
        ("grades_numbers", np.zeros(0, dtype=int), "must list atomic numbers once each"),
        ("grades_numbers", [14, 29], "'grades_29_means'"),
        ("grades_14_means", None, "'grades_14_means'.* missing"),
        ("grades_14_means", lambda x: x[0], r"expected \(k, d\)"),
        ("grades_14_means", lambda x: x * np.nan, "'grades_14_means' must hold finite numbers"),
        ("grades_14_means", lambda x: x.astype("U8"), "'grades_14_means' must hold finite numbers"),
        ("grades_14_whitening", lambda x: x[:, :3], r"'grades_14_whitening' has shape .* expected"),
        ("grades_14_whitening", lambda x: -x, "lower triangular with a positive diagonal"),
        ("grades_14_whitening", lambda x: np.swapaxes(x, 1, 2), "lower triangular"),
        ("grades_14_threshold", -1.0, "must be positive"),
        ("grades_14_threshold", lambda x: x[None], r"expected \(\)"),
        ("grades_6_laplace", lambda x: x[:2], "'grades_6_laplace'"),
        ("grades_6_active_inverse", lambda x: x[0], "'grades_6_active_inverse'"),
        ("grades_6_n_train", 0, "must be positive"),
    ],
)
def test_malformed_arrays_are_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Grades.from_arrays(damaged(name, value))


def test_elements_of_different_width_are_refused() -> None:
    arrays = fit_grades(*environments(200)).arrays()
    features, numbers = environments(200, d=3)
    other = fit_grades(features, numbers).arrays()
    arrays.update({name: value for name, value in other.items() if name.startswith("grades_6_")})
    with pytest.raises(FileFormatError, match="numbers of features differ"):
        Grades.from_arrays(arrays)


def test_wrong_input_is_refused(grades: Grades) -> None:
    features, numbers = environments(10)
    with pytest.raises(InvalidInputError, match="features have 3 columns, the grades were fitted on 5"):
        grades.novelty(features[:, :3], numbers)
    with pytest.raises(InvalidInputError, match=r"expected \(a, d\) and \(a,\)"):
        grades.novelty(features, numbers[:4])
    with pytest.raises(InvalidInputError, match="at least one atom"):
        fit_grades(features[:0], numbers[:0])
    with pytest.raises(InvalidInputError, match="max_clusters"):
        fit_grades(features, numbers, max_clusters=0)
    features[2, 0] = np.inf
    with pytest.raises(InvalidInputError, match="features of 1 of 10 atoms are not finite"):
        fit_grades(features, numbers)
