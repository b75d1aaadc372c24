"""The specification of a selection."""

import pytest

from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.selection.costs import CostModel
from aiida_mlip.kernel.selection.frames import SelectSettings
from aiida_mlip.protocols.select import parse_select


def test_an_empty_specification_is_the_default():
    assert parse_select({}) == SelectSettings()


def test_every_key_arrives():
    settings = parse_select(
        {
            "method": "farthest",
            "max_frames": 7,
            "core_hours": 12.5,
            "cost": {"core_hours": 0.5, "natoms": 64},
            "filters": {"min_distance_ang": {"Si-O": 1.3}, "max_force_ev_per_ang": 30.0},
            "duplicate_edge": None,
            "error_threshold_ev_per_ang": 0.2,
            "seed": 4,
        }
    )
    assert (settings.method, settings.max_frames, settings.core_hours, settings.seed) == ("farthest", 7, 12.5, 4)
    assert settings.cost == CostModel(0.5, 64, 2.0)
    assert settings.sanity.min_distance_ang == {"Si-O": 1.3}
    assert settings.duplicate_edge is None
    assert settings.error_threshold == 0.2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"methd": "maxdet"}, "method"),
        ({"method": "greedy"}, "spec.method"),
        ({"max_frames": 0}, "must be positive, got 0 groups"),
        ({"core_hours": -1}, "must be positive"),
        ({"cost": {"core_hours": -1}}, "core_hours and natoms must be positive"),
        ({"cost": {"hours": 1}}, "spec.cost"),
        ({"filters": {"min_distance_ang": -1}}, "a distance must be positive"),
        ({"duplicate_edge": 0}, "spec.duplicate_edge: must be positive"),
        ({"error_threshold_ev_per_ang": 0}, "error_threshold: must be positive"),
        ({"seed": -1}, "spec.seed: must not be negative"),
        ([], "expected a mapping"),
    ],
)
def test_what_is_wrong_is_named(data, message):
    with pytest.raises(ProtocolError, match=message):
        parse_select(data)
