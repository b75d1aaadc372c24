"""Rounds of active learning and what is left of the budgets, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from aiida import orm

    from aiida_mlip.data.budget import Budget, Spending


def history_table(history: orm.Dict, *, candidates: str = "candidates") -> Table:
    """Rounds of a campaign that has ended, one line each, with the verdict and the node it comes from.

    :param history: output of that name of an active learning.
    :param candidates: what people call the frames that were worth a label.
    """
    table = Table(title=f"{history['verdict']}: {history['evidence']}", caption=f"from Dict<{history.pk}>")
    for name in ("round", "rows", "force RMSE\neV/Å", "steps\ntrusted", candidates, "labelled"):
        table.add_column(name, justify="right")
    for done in history["rounds"]:
        rmse = "" if done["force_rmse"] is None else f"{done['force_rmse']:.3f}"
        trusted = f"{done['steps_trusted']} of {done['steps_asked']}"
        numbers = (done["number"], done["n_frames"], rmse, trusted, done["n_candidates"], done["n_labelled"])
        table.add_row(*map(str, numbers))
    return table


def render_budget(budget: Budget) -> Group:
    """Rounds that are complete, what is spent of each budget, and what is going on."""
    table = Table(title=f"active learning {budget.pk}", title_justify="left")
    for column in ("round", "frames", "force RMSE\neV/Å", "candidates", "labelled", "failed"):
        table.add_column(column, justify="right")
    for column in ("core-hours\nof DFT", "hours of\ntraining"):
        table.add_column(column, justify="right")
    for row in budget.table:
        error = "" if row.force_rmse_ev_per_ang is None else f"{row.force_rmse_ev_per_ang:.4f}"
        counts = (row.n_candidates, row.n_labelled, row.n_failed)
        table.add_row(
            str(row.number),
            str(row.n_frames),
            error,
            *(str(count) for count in counts),
            f"{row.dft_core_hours:.3g}",
            f"{row.training_hours:.3g}",
        )
    lines = [
        "spent in complete rounds: "
        + ", ".join(
            (
                _spent(budget.rounds, "rounds"),
                _spent(budget.dft_core_hours, "core-hours of DFT"),
                _spent(budget.training_hours, "hours of training"),
            )
        )
    ]
    if budget.current:
        lines.append(f"now: {budget.current}")
    if budget.verdict:
        lines.append(f"after the last complete round: {budget.verdict} ({budget.evidence}) [from Dict {budget.source}]")
    return Group(*([table] if budget.table else []), *lines)


def _spent(spending: Spending, what: str) -> str:
    cap = "no limit" if spending.cap is None else f"at most {spending.cap:.4g}"
    return f"{spending.spent:.4g} {what} ({cap})"
