"""Targets: limits are met or named; typing errors are refused."""

import pytest

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.model import validate_spec
from aiida_mlip.protocols.targets import Targets


def test_met_missed_and_unmeasured_targets():
    targets = validate_spec(
        Targets, {"force_rmse_relative": 0.15, "energy_rmse_ev_per_atom": 0.01, "stress_mae_gpa": 1.0}, where="targets"
    )
    missed = targets.missed({"force_rmse_relative": 0.15, "energy_rmse_ev_per_atom": 0.0101, "stress_mae_gpa": None})
    assert missed == [
        "energy_rmse_ev_per_atom 0.0101 > 0.01",
        "stress_mae_gpa was not measured (no such labels among the test frames)",
    ]


def test_nan_never_meets_a_target():
    assert Targets(force_rmse_relative=0.15).missed({"force_rmse_relative": float("nan")})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"force_rmse": 0.1}, "did you mean 'force_rmse_relative'|did you mean 'force_rmse_ev_per_ang'"),
        ({"force_rmse_relative": -1}, "targets.force_rmse_relative"),
        ({}, "no target given"),
        ("0.1", "expected a mapping"),
    ],
)
def test_bad_targets_are_refused(given, message):
    with pytest.raises(ProtocolError, match=message):
        validate_spec(Targets, given, where="targets")
