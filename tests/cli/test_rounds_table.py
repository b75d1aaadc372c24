"""The table of rounds says what the history says."""

from __future__ import annotations

import io

import pytest
from aiida import orm
from rich.console import Console

from aiida_mlip.cli.rounds_table import history_table

ROUND = {"number": 0, "n_frames": 40, "force_rmse": None, "steps_trusted": 60, "steps_asked": 400}


@pytest.mark.usefixtures("aiida_profile")
def test_one_line_for_each_round():
    rounds = [
        {**ROUND, "n_candidates": 7, "n_labelled": 5},
        {**ROUND, "number": 1, "n_frames": 45, "force_rmse": 0.08765, "n_candidates": 1, "n_labelled": 3},
    ]
    history = orm.Dict({"verdict": "converged", "evidence": "nothing uncertain was met", "rounds": rounds}).store()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(history_table(history, candidates="fragments"))
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["0", "40", "60", "of", "400", "7", "5"] in lines
    assert ["1", "45", "0.088", "60", "of", "400", "1", "3"] in lines
    assert any("converged:" in line for line in lines)
    assert any(f"Dict<{history.pk}>" in line for line in lines)
    assert any("fragments" in line for line in lines)
