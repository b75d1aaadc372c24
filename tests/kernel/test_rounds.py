"""Verdicts of active learning: success, caps and standstill, each with its evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.rounds import Caps, Round, judge, left_for_labels, may_train

BUSY = Round(0, 100, 0.2, 1000, 400, 1, 10, 5, 5, 0, 1.0, 0.1)
CAPS = Caps(max_rounds=10, dft_core_hours=20.0, training_hours=5.0, stalled_after=2)


def better(i: int) -> Round:
    return replace(BUSY, number=i, force_rmse=0.2 * 0.9**i, steps_trusted=400 + 20 * i)


def test_a_pass_without_candidates_is_success():
    verdict, evidence = judge([BUSY, replace(BUSY, n_candidates=0, stopped=0, steps_trusted=1000)], CAPS)
    assert verdict == "converged"
    assert "1000 steps" in evidence
    # stopped by a limit: not converged, even if nothing was selected
    verdict, evidence = judge([replace(BUSY, n_candidates=0, n_selected=0, n_labelled=0)], CAPS)
    assert verdict == "stalled"
    assert "all that they found is labelled already" in evidence


@pytest.mark.parametrize(
    ("rounds", "caps", "verdict", "evidence"),
    [
        ([], CAPS, "go_on", "no round"),
        ([BUSY], CAPS, "go_on", "5 new labels"),
        ([better(i) for i in range(10)], CAPS, "budget", "10 rounds are done, and 10 frames"),
        ([replace(BUSY, dft_core_hours=21.0)], CAPS, "budget", "all 20 core-hours"),
        ([replace(BUSY, training_hours=5.0)], CAPS, "budget", "5 of 5 hours of training"),
        ([replace(BUSY, training_hours=3.0)], CAPS, "budget", "another would not fit"),
        ([replace(BUSY, n_selected=0, n_labelled=0)], CAPS, "budget", "none was chosen"),
        ([replace(BUSY, n_labelled=0, n_failed=5)], CAPS, "stalled", "none could be labelled"),
        ([BUSY, BUSY, BUSY], CAPS, "stalled", "nothing improved in 2 rounds"),
        ([better(0), better(1), better(2)], CAPS, "go_on", "new labels"),
        ([BUSY, BUSY, replace(BUSY, n_candidates=3)], CAPS, "go_on", "new labels"),
        ([replace(BUSY, force_rmse=None)] * 2 + [replace(BUSY, steps_trusted=500)], CAPS, "go_on", "new labels"),
    ],
)
def test_verdicts(rounds, caps, verdict, evidence):
    found, said = judge(rounds, caps)
    assert (found, evidence in said) == (verdict, True), said


def test_properties_have_a_say():
    calm = replace(BUSY, n_candidates=0, stopped=0, steps_trusted=1000)
    assert judge([replace(calm, missed=())], CAPS) == (
        "converged",
        "all 1000 steps done, no frame was worth a label, and the properties hold",
    )
    verdict, evidence = judge([replace(calm, missed=("a0 by 2 %", "C44"))], CAPS)
    assert verdict == "stalled"
    assert evidence.endswith("but the potential misses a0 by 2 %; C44")


@given(st.lists(st.floats(0.01, 3.0), max_size=8))
def test_trainings_keep_within_their_cap(hours):
    """As long as none takes longer than the longest before it, the cap is never exceeded."""
    done: list[Round] = []
    for spent in sorted(hours, reverse=True):
        if not may_train(done, CAPS):
            break
        done.append(replace(BUSY, training_hours=spent))
    assert sum(each.training_hours for each in done) <= CAPS.training_hours
    assert may_train(done, Caps(max_rounds=1))


@given(st.lists(st.floats(0, 50), max_size=8))
def test_the_budget_never_goes_below_nothing(costs):
    rounds = [replace(BUSY, dft_core_hours=cost) for cost in costs]
    left = left_for_labels(rounds, CAPS)
    assert left == pytest.approx(max(0.0, 20.0 - sum(costs)))
    assert left_for_labels(rounds, Caps(max_rounds=1)) is None


@pytest.mark.parametrize(
    "change", [{"max_rounds": 0}, {"stalled_after": 0}, {"dft_core_hours": 0.0}, {"training_hours": -1.0}]
)
def test_caps_must_be_positive(change):
    with pytest.raises(InvalidInputError, match=f"{next(iter(change))}: must be"):
        Caps(**{"max_rounds": 3, **change})
