"""What the uncertainties of a trained committee are worth: copper with EMT as the teacher, fixed seeds.

The same quantities as ``benchmarks/bench_uncertainty.py`` prints for all methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import emt_copper
import numpy as np
import pytest
from emt_copper import CopperCommittee

from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.kernel.uncertainty.scores import auroc, spearman
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

pytestmark = [pytest.mark.nequip, pytest.mark.slow]

#: Force errors (length of the vector, eV/Å) that an uncertainty must find.
BAD_EV_PER_ANG = 0.3


@dataclass(frozen=True)
class Judged:
    """Predictions of all members for the frames of the benchmark, and the grades of each."""

    committee: CopperCommittee
    val: list[Predictions]
    test: list[Predictions]
    grades: list[Grades]

    def deviation(self, part: str) -> np.ndarray:
        return force_deviation(np.array([one.forces for one in getattr(self, part)]))

    def error(self, part: str) -> np.ndarray:
        """(a, 3) of the mean of the members."""
        frames = getattr(self.committee.data, part)
        return np.mean([one.forces for one in getattr(self, part)], axis=0) - frames.forces

    def novelty(self, member: int) -> np.ndarray:
        return self.grades[member].novelty(self.test[member].features, self.committee.data.test.numbers)


@pytest.fixture(scope="module")
def judged(emt_copper_committee) -> Judged:
    data = emt_copper_committee.data
    val, test, grades = [], [], []
    for package in emt_copper_committee.packages:
        model = load_model(package, device="cpu", features=True)

        def ask(frames: Frames, model=model) -> Predictions:
            return predict(model, frames, features=True)

        grades.append(fit_grades(ask(data.train).features, data.train.numbers))
        val.append(ask(data.val))
        test.append(ask(data.test))
    return Judged(emt_copper_committee, val, test, grades)


def test_the_committee_has_learnt_its_domain(judged):
    """Otherwise everything below would be measured on noise."""
    inside = judged.committee.data.atom_region == 0
    errors = np.linalg.norm(judged.error("test"), axis=1)
    assert np.sqrt(np.mean(errors[inside] ** 2)) < 0.12
    assert (errors[inside] > BAD_EV_PER_ANG).mean() < 0.02
    assert (errors[~inside] > BAD_EV_PER_ANG).mean() > 0.2


def test_the_deviation_of_the_committee_finds_errors(judged):
    u, errors = judged.deviation("test"), np.linalg.norm(judged.error("test"), axis=1)
    assert auroc(u, errors > BAD_EV_PER_ANG) >= 0.90
    assert spearman(u, errors) >= 0.75


@pytest.mark.parametrize("member", range(emt_copper.MEMBERS))
def test_the_novelty_of_one_potential_finds_its_errors(judged, member):
    frames = judged.committee.data.test
    errors = np.linalg.norm(judged.test[member].forces - frames.forces, axis=1)
    assert auroc(judged.novelty(member), errors > BAD_EV_PER_ANG) >= 0.85


@pytest.mark.parametrize("member", range(emt_copper.MEMBERS))
def test_the_novelty_of_one_potential_tells_a_surface_from_the_bulk(judged, member):
    data = judged.committee.data
    surface = emt_copper.at_surface(data.test) & (data.atom_region == 1)
    chosen = surface | (data.atom_region == 0)
    novelty = judged.novelty(member)
    assert auroc(novelty[chosen], surface[chosen]) >= 0.90
    assert np.median(novelty[surface]) > 1.0  # beyond the border
    assert (novelty[data.atom_region == 0] > 1.0).mean() < 0.1  # and what was trained on is within


def test_bounds_cover_nine_in_ten_of_exchangeable_atoms(judged):
    """Held-out atoms dealt at random into a part to calibrate on and a part to judge: exchangeable by construction."""
    u, errors = judged.deviation("val"), np.linalg.norm(judged.error("val"), axis=1)
    numbers = judged.committee.data.val.numbers
    first = np.random.default_rng(8).permutation(len(u)) < len(u) // 2
    bound = calibrate(u[first], errors[first], numbers[first]).bound(u[~first], numbers[~first])
    coverage = (errors[~first] <= bound).mean()
    # both parts are samples: of the quantile, and of what it is compared with
    assert abs(coverage - 0.9) <= 3 * np.sqrt(0.09 * (1 / first.sum() + 1 / (~first).sum()))


def test_coverage_is_reported_per_region_and_falls_outside_of_the_domain(judged):
    """Frames of the same distribution are covered about as promised; a calibration promises nothing elsewhere."""
    data = judged.committee.data
    calibration = calibrate(judged.deviation("val"), judged.error("val"), data.val.numbers, group=data.val.atom_rows())
    assert calibration.metrics["coverage"]["element"]["Cu"]["n"] == data.val.n_atoms
    inside = data.atom_region == 0
    errors = np.linalg.norm(judged.error("test"), axis=1)
    covered = errors <= calibration.bound(judged.deviation("test"), data.test.numbers)
    # whole frames: their atoms are not independent, so a frame counts like a few of its atoms
    frames = int((data.region == 0).sum())
    assert abs(covered[inside].mean() - 0.9) <= 3 * np.sqrt(0.09 / frames)

    names = np.array(emt_copper.REGIONS)[data.atom_region]
    reported = calibrate(
        judged.deviation("test"), judged.error("test"), data.test.numbers, group=data.test.atom_rows(), region=names
    ).metrics["coverage"]["region"]
    assert set(reported) == set(emt_copper.REGIONS)
    assert {name: entry["n"] for name, entry in reported.items()} == {
        name: int((names == name).sum()) for name in emt_copper.REGIONS
    }
