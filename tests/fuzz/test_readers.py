"""Every reader takes its valid files, and refuses damaged ones with an error of ours that names them; never more."""

from __future__ import annotations

import random

import pytest
from fuzz_mutations import mutated
from fuzz_readers import TARGETS, Target, watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on nonsense

each = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@each
def test_valid_files_are_taken(target: Target, tmp_path) -> None:
    for seed in target.seeds():
        assert target.accepts(tmp_path / target.name, seed)


@each
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=15, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_refused_or_harmless(target: Target, tmp_path, rng: random.Random) -> None:
    data = target.mutant(rng)
    with watched():
        target.accepts(tmp_path / target.name, data)


@each
@given(length=st.floats(0, 1, exclude_max=True))
@settings(max_examples=10, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_that_were_cut_off(target: Target, tmp_path, length: float) -> None:
    for seed in target.seeds():
        with watched():
            taken = target.accepts(tmp_path / target.name, seed[: int(length * len(seed))])
        assert not (taken and target.archive), "half an archive is none"


def source(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret


def test_the_mutations_differ_and_repeat() -> None:
    target = next(target for target in TARGETS if target.name == "frames.xyz")
    made = [target.mutant(source(seed)) for seed in range(200)]
    assert made == [target.mutant(source(seed)) for seed in range(200)]
    assert len(set(made)) > 150
    assert isinstance(mutated(source(3), [b""]), bytes), "nothing at all can be damaged too"
