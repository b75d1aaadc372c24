"""What a person writes about a watch."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from aiida_mlip.io.watch import WatchSpec


def test_defaults_are_those_of_the_documentation() -> None:
    spec = WatchSpec()
    assert (spec.every, spec.novelty_select, spec.novelty_stop) == (10, 1.5, 4.0)
    assert (spec.error_select, spec.error_stop, spec.error_where, spec.novelty_gate) == (2.0, 5.0, "novel", 1.0)
    assert WatchSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.needs_novelty
    assert not WatchSpec(novelty_select=None, novelty_stop=None).needs_novelty
    assert WatchSpec(novelty_select=None).needs_novelty


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"every": 0}, "greater than or equal to 1"),
        ({"novelty_select": -1.0}, "greater than 0"),
        ({"novelty_select": 5.0}, r"novelty_select \(5\) is above novelty_stop \(4\)"),
        ({"error_select": 7.0}, r"error_select \(7\) is above error_stop \(5\)"),
        ({"error_where": "sometimes"}, "'novel' or 'always'"),
        ({"min_distance_ang": {"Si-Si": 0}}, "greater than 0"),
        ({"evry": 3}, "Extra inputs"),
        ({"novelty_stop": float("nan")}, "finite"),
    ],
)
def test_nonsense_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        WatchSpec(**values)
