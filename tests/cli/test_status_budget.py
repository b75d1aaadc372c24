"""``aiida-mlip status`` of active learning: rounds, and what is spent of the budgets."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from stored_campaign import campaign as stored_campaign

from aiida_mlip.cli.main import main
from aiida_mlip.data.budget import budget, budgets


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("aiida_profile")
def test_status_shows_rounds_and_what_is_spent():
    root = stored_campaign(rounds=3, alive=True).root
    (found,) = budgets(root.pk)
    assert found == budget(root.pk)
    assert (found.rounds.spent, found.rounds.cap, found.rounds.left) == (2, 3, 1)
    assert [row.number for row in found.table] == [0, 1]
    assert found.current == "round 2: train"
    assert found.dft_core_hours.spent == pytest.approx(sum(row.dft_core_hours for row in found.table))
    assert found.dft_core_hours.left == pytest.approx(100 - found.dft_core_hours.spent)
    assert found.training_hours.cap is found.training_hours.left is None
    shown = call("status", root.pk)
    assert shown.exit_code == 0, shown.output
    assert "spent in complete rounds" in shown.output
    content = json.loads(call("status", root.pk, "--json").output)
    assert content["active_learning"][0]["source"] == found.source
