"""Training: errors of the potentials and their learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from aiida_mlip.report.content import Fact, Figure, Number, Section, Table
from aiida_mlip.report.sections.expected import is_expected, reason
from aiida_mlip.report.sections.training_results import TrainingResults, last_with
from aiida_mlip.report.tree import ProcessTree

#: Parts of an error table in the order shown.
PARTS: Final[Mapping[str, str]] = {
    "test": "held out", "val": "validation", "train": "training", "external": "separate test set"
}  # fmt: skip
#: Columns of an error table: key -> heading and factor.
_ERRORS: Final[Mapping[str, tuple[str, float]]] = {
    "n_frames": ("frames", 1),
    "energy_rmse_ev_per_atom": ("energy RMSE (meV/atom)", 1000),
    "energy_mae_ev_per_atom": ("energy MAE (meV/atom)", 1000),
    "force_rmse_ev_per_ang": ("force RMSE (eV/Å)", 1),
    "force_mae_ev_per_ang": ("force MAE (eV/Å)", 1),
    "force_rms_ev_per_ang": ("rms force (eV/Å)", 1),
    "force_rmse_relative": ("force RMSE / rms force (%)", 100),
    "stress_rmse_gpa": ("stress RMSE (GPa)", 1),
}
_MOST_POINTS: Final[int] = 400


def section(tree: ProcessTree) -> Section:
    """Errors, potentials and curves of the last training that has any."""
    title = "Training"
    results = last_with(tree, "errors") or last_with(tree, "curves") or last_with(tree, "summaries")
    if results is None:
        none = (f"no training: {reason(tree, 'training')}",) if is_expected(tree, "training") else ()
        return Section("training", title, missing=none)
    missing: list[str] = []
    if results.errors is None:
        missing.append(f"no errors: {reason(tree, 'training')}")
    later = [one for one in tree.find("TrainWorkChain") if one.pk > results.process.pk]
    missing += [f"the training {one.name} (process {one.pk}) left no errors: {one.outcome}" for one in later]
    several = len(tree.find("TrainWorkChain")) > 1
    return Section(
        "training",
        title,
        intro=f"Of the last training, {results.process.name}." if several else "",
        figures=tuple(_figures(results)),
        tables=tuple(_tables(results)),
        missing=tuple(missing),
    )


def error_facts(results: TrainingResults) -> list[Fact]:
    """Held-out errors for the head of the report; of the validation frames where nothing was held out."""
    if results.errors is None:
        return []
    table, source = results.errors.get_dict(), (results.errors.uuid,)
    part = next((name for name in ("test", "val", "train") if name in table), None)
    if part is None:
        return []
    row, where = table[part], PARTS[part]
    facts = []
    if row.get("force_rmse_ev_per_ang") is not None:
        facts.append(Fact(f"force RMSE, {where}", Number(row["force_rmse_ev_per_ang"], "eV/Å", source)))
    if row.get("force_rmse_relative") is not None:
        facts.append(Fact(f"… of the rms force, {where}", Number(100 * row["force_rmse_relative"], "%", source)))
    if row.get("energy_rmse_ev_per_atom") is not None:
        facts.append(Fact(f"energy RMSE, {where}", Number(1000 * row["energy_rmse_ev_per_atom"], "meV/atom", source)))
    return facts


def _tables(results: TrainingResults) -> list[Table]:
    tables = []
    if results.errors is not None:
        content, source = results.errors.get_dict(), (results.errors.uuid,)
        columns = ("frames of", *(heading for heading, _ in _ERRORS.values()))
        rows = tuple(_row(name, content[key], source) for key, name in PARTS.items() if key in content)
        tables.append(Table(f"Errors, mean over {content['n_members']} potential(s)", columns, rows))
        per_member = tuple(
            _row(f"{member}, {PARTS[key]}", parts[key], source)
            for member, parts in content.get("members", {}).items()
            for key in PARTS
            if key in parts
        )
        if content["n_members"] > 1:
            tables.append(Table("Errors of each potential", columns, per_member, collapsed=True))
    tables += _potentials(results)
    return tables


def _row(name: str, errors: Mapping[str, Any], source: tuple[str, ...]) -> tuple[Number, ...]:
    values = [(errors.get(key), factor) for key, (_, factor) in _ERRORS.items()]
    return (
        Number(name),
        *(Number(None if value is None else value * factor, uuids=source) for value, factor in values),
    )


def _potentials(results: TrainingResults) -> list[Table]:
    rows = []
    for name in sorted({*results.potentials, *results.summaries}):
        potential, summary = results.potentials.get(name), results.summaries.get(name)
        of_summary = () if summary is None else (summary.uuid,)
        told = {} if summary is None else summary.get_dict()
        of_potential = () if potential is None else (potential.uuid,)
        rows.append(
            (
                Number(name),
                Number("none" if potential is None else potential.engine, uuids=of_potential),
                Number(None if potential is None else potential.cutoff_ang, uuids=of_potential),
                Number(told.get("frames_train"), uuids=of_summary),
                Number(told.get("frames_val"), uuids=of_summary),
                Number(told.get("epochs"), uuids=of_summary),
                Number(told.get("best_epoch"), uuids=of_summary),
                Number(told.get("ending"), uuids=of_summary),
                Number(told.get("wall_seconds"), uuids=of_summary),
            )
        )
    columns = ("potential", "engine", "cutoff (Å)", "training frames", "validation frames", "epochs", "best epoch",
               "ended", "time (s)")  # fmt: skip
    return [Table("Potentials", columns, tuple(rows))] if rows else []


def _figures(results: TrainingResults) -> list[Figure]:
    figures = []
    for quantity, heading, unit, factor in (
        ("force_rmse_ev_per_ang", "force RMSE", "eV/Å", 1.0),
        ("energy_rmse_ev_per_atom", "energy RMSE", "meV/atom", 1000.0),
    ):
        series = []
        for place, (name, node) in enumerate(results.curves.items()):
            for part, style in (("train", "dotted"), ("val", "solid")):
                key = f"{part}_{quantity}"
                if key in node.get_arraynames():
                    x, y = thinned(node.get_array("epoch"), node.get_array(key) * factor)
                    shown = "training" if part == "train" else "validation"
                    line = {"name": f"{name}, {shown}", "x": x, "y": y, "style": style, "colour": place}
                    series.append({**line, "label": "" if part == "train" else name})
        if series:
            figures.append(
                Figure(
                    key=f"curve-{quantity}",
                    title=f"Learning curve: {heading}",
                    kind="lines",
                    data={"x_label": "epoch", "y_label": f"{heading} ({unit})", "y_log": True, "series": series},
                    alt=f"{heading} on training and validation frames against the epoch, two lines per potential.",
                    uuids=tuple(node.uuid for node in results.curves.values()),
                    caption="Dotted: training frames; solid: validation frames.",
                )
            )
    return figures


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite points, at most a few hundred of them, the last one included."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x)[known], np.asarray(y)[known]
    if len(x) <= _MOST_POINTS:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int))
    return x[keep], y[keep]
