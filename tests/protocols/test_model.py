"""Specification models: merging, and messages that name the path and the nearest valid key."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.model import SpecModel, deep_merge, merged_protocol, validate_spec


class Inner(SpecModel):
    learning_rate: float = 0.1


class Outer(SpecModel):
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)
    steps: int = 1


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"stesp": 3}, ["spec.stesp", "unknown key 'stesp'", "did you mean 'steps'?"]),
        ({"inner": {"learning_rat": 3}}, ["spec.inner.learning_rat", "did you mean 'learning_rate'?"]),
        ({"many": {"x": {"lerning_rate": 3}}}, ["spec.many.x.lerning_rate", "did you mean 'learning_rate'?"]),
        ({"steps": "many"}, ["spec.steps", "got 'many'"]),
        ({"inner": {"learning_rate": float("nan")}}, ["spec.inner.learning_rate"]),
        ([], ["spec: expected a mapping of keys, got list"]),
    ],
)
def test_messages_name_path_and_nearest_key(data, parts):
    with pytest.raises(ProtocolError) as caught:
        validate_spec(Outer, data, where="spec")
    for part in parts:
        assert part in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ProtocolError) as caught:
        validate_spec(Outer, {"stesp": 1, "inner": {"x": 2}}, where="spec")
    assert len(str(caught.value).splitlines()) == 2


def test_unknown_protocol_names_the_valid_ones():
    with pytest.raises(ProtocolError, match=r"unknown protocol 'fsat' \(did you mean 'fast'\?\)"):
        merged_protocol("fidelity", "fsat")


TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda children: st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(MAPPINGS, MAPPINGS)
def test_merge_keeps_inputs_and_lets_the_second_win(base: dict[str, Any], over: dict[str, Any]):
    before = repr((base, over))
    merged = deep_merge(base, over)
    assert repr((base, over)) == before
    assert deep_merge(merged, over) == merged
    assert set(merged) == set(base) | set(over)
    for key, value in over.items():
        if not isinstance(value, dict):
            assert merged[key] == value
