"""What a finished training or development has to say: labels, errors, and the node each number comes from."""

from __future__ import annotations

from typing import Any

from aiida import orm
from rich.console import Console
from rich.table import Table

#: Parts of the error table, in the order shown: key -> what people call it.
PARTS = {"train": "training", "val": "validation", "test": "held out", "external": "test dataset"}


def print_results(node: orm.ProcessNode, *, console: Console | None = None) -> None:
    """Print what a ``develop``, ``train`` or ``train_fidelities`` workchain reached, complete or not."""
    if console is None:
        console = Console(highlight=False)
        console = console if console.is_terminal else Console(highlight=False, width=120)  # a log file does not wrap
    outputs = node.outputs
    if "label_summary" in outputs:
        _print_labels(outputs.label_summary, console)
    if "allocation" in outputs:
        _print_allocation(outputs.allocation, console)
    if "errors" in outputs:
        console.print(errors_table(outputs.errors))
    if "table" in outputs:
        console.print(methods_table(outputs.table))
    for name, potential in outputs.potentials.items() if "potentials" in outputs else ():
        console.print(f"potential {name}: PotentialData<{potential.pk}> {potential.uuid}", soft_wrap=True)
    if "dataset" in outputs:
        console.print(f"dataset: DatasetData<{outputs.dataset.pk}> {outputs.dataset.uuid}", soft_wrap=True)


def errors_table(errors: orm.Dict) -> Table:
    """Errors per part, with the node they come from."""
    content = errors.get_dict()
    table = Table(
        title=f"errors against DFT, mean over {content['n_members']} member(s)",
        caption=f"from Dict<{errors.pk}> {errors.uuid}",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("frames", "n", "energy RMSE\nmeV/atom", "energy MAE\nmeV/atom", "force RMSE\neV/Å"):
        table.add_column(column, justify="left" if column == "frames" else "right")
    for column in ("force MAE\neV/Å", "rms force\neV/Å", "force RMSE\n/ rms force", "stress RMSE\nGPa"):
        table.add_column(column, justify="right")
    for part, name in PARTS.items():
        if part not in content:
            continue
        row = content[part]
        table.add_row(
            name,
            str(row["n_frames"]),
            _number(row["energy_rmse_ev_per_atom"], 1000, ".2f"),
            _number(row["energy_mae_ev_per_atom"], 1000, ".2f"),
            _number(row["force_rmse_ev_per_ang"], 1, ".4f"),
            _number(row["force_mae_ev_per_ang"], 1, ".4f"),
            _number(row["force_rms_ev_per_ang"], 1, ".3f"),
            _number(row["force_rmse_relative"], 100, ".1f", " %"),
            _number(row["stress_rmse_gpa"], 1, ".3f"),
        )
    return table


def methods_table(node: orm.Dict) -> Table:
    """Methods of learning from several fidelities side by side, and the gap between the labels, with their node."""
    content = node.get_dict()
    gaps = [
        f"labels at {low} and {content['target']} differ by {_number(gap['force_rms_ev_per_ang'], 1, '.4f', ' eV/Å')} "
        f"and {_number(gap['energy_rms_ev_per_atom'], 1000, '.2f', ' meV/atom')} rms on {gap['n_frames']} frames"
        for low, gap in content["gap"].items()
        if gap["n_frames"]
    ]
    missing = [f"without a result: {', '.join(content['missing'])}"] if content["missing"] else []
    table = Table(
        title=f"errors at {content['target']} on {content['held_out']['rows']} rows that no method has seen",
        caption="\n".join([*gaps, *missing, f"from Dict<{node.pk}> {node.uuid}"]),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method")
    for column in ("labels", "energy RMSE\nmeV/atom", "energy MAE\nmeV/atom", "force RMSE\neV/Å", "force MAE\neV/Å"):
        table.add_column(column, justify="right")
    table.add_column("training\ns", justify="right")
    for method, row in content["methods"].items():
        table.add_row(
            method + (" (result)" if method == content["result"] else ""),
            ", ".join(f"{count} {name}" for name, count in row["labels"].items()),
            _number(row["energy_rmse_ev_per_atom"], 1000, ".2f"),
            _number(row["energy_mae_ev_per_atom"], 1000, ".2f"),
            _number(row["force_rmse_ev_per_ang"], 1, ".4f"),
            _number(row["force_mae_ev_per_ang"], 1, ".4f"),
            _number(row["training_seconds"], 1, ".0f"),
        )
    return table


def _print_labels(summary: orm.Dict, console: Console) -> None:
    for name, entry in summary.get_dict()["fidelities"].items():
        text = f"labels at {name}: {entry['computed']} computed, {entry['reused']} reused, {entry['failed']} failed"
        if entry["computed"] == 0 and entry["reused"]:
            text += " (nothing had to be computed again)"
        if entry["failures"]:
            text += f"; failures: {', '.join(f'{count} {kind}' for kind, count in entry['failures'].items())}"
        if entry["core_seconds"]:
            text += f"; {entry['core_seconds']:.0f} core-seconds"
        console.print(f"{text}  [from Dict<{summary.pk}>]", markup=False, soft_wrap=True)


def _print_allocation(report: orm.Dict, console: Console) -> None:
    content = report.get_dict()
    cost = "" if content["core_hours"] is None else f", forecast {content['core_hours']:.3g} core-hours"
    text = f"{content['n_selected']} of {content['n_candidates']} frames chosen for {content['target']}"
    console.print(f"{text} by {content['method']}{cost}  [from Dict<{report.pk}>]", markup=False, soft_wrap=True)


def _number(value: Any, factor: float, form: str, unit: str = "") -> str:
    return "" if value is None else format(value * factor, form) + unit
