"""What many cheap labels are worth beside a few dear ones: hot alloys, 200 cheap labels and 20 dear ones, a fixed seed.

Other seeds, methods and domains, and real DFT: ``docs/benchmarks.md``.
"""

from __future__ import annotations

import pytest
from emt_pair import DOMAINS
from fidelity_trainings import METHODS, SHORT, Job, learn

pytestmark = [pytest.mark.nequip, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_tenth_of_the_dear_labels_is_nearly_as_good_as_all_of_them(train_code):
    """As many steps of the optimizer for each; errors of dear forces on frames that nobody has trained on."""
    labels = DOMAINS["alloy"].labels(seed=2)
    _, test = DOMAINS["alloy"].held_out(seed=2)
    learned = learn([Job(method, labels, seed=2, **SHORT) for method in METHODS], train_code)
    error = {method: one.force_rmse(test) for method, one in zip(METHODS, learned, strict=True)}
    assert error["embedding"] <= 0.75 * error["high_only"], error
    assert error["embedding"] <= 1.35 * error["full"], error
    assert error["embedding"] < error["pooled"], error
