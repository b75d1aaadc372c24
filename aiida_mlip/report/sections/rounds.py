"""Rounds of active learning: what each found, labelled and learned, and how novel what it met was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.kernel.grade_histogram import GradeHistogram
from aiida_mlip.report.content import Fact, Figure, Number, Section, Table
from aiida_mlip.report.sections.costs import core_time
from aiida_mlip.report.sections.expected import is_expected, reason
from aiida_mlip.report.sections.round_history import history
from aiida_mlip.report.tree import Process, ProcessTree

_COLUMNS: Final[Mapping[str, tuple[str, float]]] = {
    "n_frames": ("labelled rows", 1),
    "force_rmse": ("held-out force RMSE (eV/Å)", 1),
    "steps_asked": ("steps asked", 1),
    "steps_trusted": ("steps trusted", 1),
    "stopped": ("runs stopped", 1),
    "n_candidates": ("worth a label", 1),
    "n_selected": ("selected", 1),
    "n_labelled": ("labelled", 1),
    "n_failed": ("failed", 1),
    "dft_core_hours": ("labels (core-h)", 1),
    "training_hours": ("training (h)", 1),
}
#: Of rounds whose embedding error was measured.
_GATE: Final[Mapping[str, tuple[str, float]]] = {
    "n_gate": ("labels of the embedding gate", 1),
    "embedding_error": ("embedding error (eV/Å)", 1),
}
_HOUR: Final[float] = 3600.0
#: Bins of γ, and the largest that is resolved.
_BIN: Final[float] = 0.25
_TOP: Final[float] = 10.0


def section(tree: ProcessTree) -> Section:
    """Table and figures of the rounds."""
    title = "Active learning"
    rounds, last = history(tree)
    novelty = _novelty_figures(tree)
    if last is None:
        missing = (f"no round is complete: {reason(tree, 'rounds')}",) if is_expected(tree, "rounds") else ()
        return Section("rounds", title, figures=novelty, missing=missing)
    incomplete = []
    loop = next(iter(tree.find("ActiveLearningWorkChain")), None)
    if loop is not None and not loop.has_ended:
        incomplete.append(f"round {len(rounds)} is not complete: the process {loop.pk} is {loop.state}")
    return Section(
        "rounds",
        title,
        intro="Each round trains, explores until the potential is uncertain, and labels what it met there.",
        facts=(
            Fact("verdict", Number(last["verdict"], uuids=(last.uuid,))),
            Fact("evidence", Number(last["evidence"], uuids=(last.uuid,))),
        ),
        figures=(*_figures(rounds), *novelty),
        tables=(_table(rounds),),
        missing=tuple(incomplete),
    )


def _table(rounds: list[tuple[dict[str, Any], str]]) -> Table:
    unit, divisor = core_time([_HOUR * (entry.get("dft_core_hours") or 0.0) for entry, _ in rounds])
    columns = {**_COLUMNS, "dft_core_hours": (f"labels ({unit})", _HOUR / divisor)}
    columns |= {key: column for key, column in _GATE.items() if any(entry.get(key) for entry, _ in rounds)}
    rows = tuple(
        (
            Number(entry["number"], uuids=(uuid,)),
            *(Number(_scaled(entry.get(key), factor), uuids=(uuid,)) for key, (_, factor) in columns.items()),
        )
        for entry, uuid in rounds
    )
    return Table("Rounds", ("round", *(heading for heading, _ in columns.values())), rows)


def _scaled(value: Any, factor: float) -> Any:
    return value if factor == 1 or value is None else value * factor


def _figures(rounds: list[tuple[dict[str, Any], str]]) -> list[Figure]:
    uuids = tuple(uuid for _, uuid in rounds)
    numbers = [entry["number"] for entry, _ in rounds]
    figures = []
    measured = [(entry["n_frames"], entry["force_rmse"]) for entry, _ in rounds if entry.get("force_rmse") is not None]
    if measured:
        x, y = zip(*measured, strict=True)
        figures.append(
            Figure(
                key="rounds-error",
                title="Error against the number of labels",
                kind="lines",
                data={
                    "x_label": "labelled rows trained on",
                    "y_label": "held-out force RMSE (eV/Å)",
                    "y_log": True,
                    "series": [{"name": "force RMSE", "label": "", "x": x, "y": y, "markers": True}],
                },
                alt="Held-out force error of each round against the number of labelled rows it was trained on.",
                uuids=uuids,
                caption="Held-out frames grow with the rounds: later ones are harder.",
            )
        )
    trusted = [entry["steps_trusted"] / entry["steps_asked"] if entry["steps_asked"] else None for entry, _ in rounds]
    figures.append(
        Figure(
            key="rounds-trusted",
            title="Exploration that could be trusted",
            kind="lines",
            data={
                "x_label": "round",
                "y_label": "steps trusted / steps asked",
                "y_range": [0, 1],
                "x_whole": True,
                "series": [{"name": "trusted", "label": "", "x": numbers, "y": trusted, "markers": True}],
            },
            alt="Part of the exploration steps that were done before a watch stopped a run, per round.",
            uuids=uuids,
        )
    )
    names = {"n_candidates": "worth a label", "n_selected": "selected", "n_labelled": "labelled", "n_failed": "failed"}
    figures.append(
        Figure(
            key="rounds-counts",
            title="Found, selected, labelled, failed",
            kind="bars",
            data={
                "x_label": "round",
                "y_label": "frames or fragments",
                "categories": numbers,
                "series": [{"name": name, "y": [entry[key] for entry, _ in rounds]} for key, name in names.items()],
            },
            alt="Numbers of frames that were worth a label, selected, labelled and failed, per round.",
            uuids=uuids,
        )
    )
    return figures


def _novelty_figures(tree: ProcessTree) -> tuple[Figure, ...]:
    """Histograms of γ over the atoms that the explorations of each round handed over, and of scanned frames."""
    by_round: dict[str, list[tuple[GradeHistogram, str]]] = {}
    for process in tree.find("ExploreWorkChain", "ScanCalculation"):
        one = _histogram(tree, process)
        if one is not None:
            by_round.setdefault(_round(process), []).append(one)
    if not by_round:
        return ()
    series, uuids = [], []
    edges = np.arange(0.0, _TOP + _BIN, _BIN)
    for name, found in by_round.items():
        counts = sum((_coarse(histogram) for histogram, _ in found), np.zeros(len(edges)))
        total = counts.sum()
        if total:
            series.append({"name": name, "y": counts / total, "atoms": int(total)})
            uuids += [uuid for _, uuid in found]
    if not series:
        return ()
    figure = Figure(
        key="rounds-novelty",
        title="Novelty γ of what was found",
        kind="histograms",
        data={"x_label": "novelty γ (1: edge of the training set)", "y_label": "fraction of atoms", "y_log": True,
              "edges": edges, "overflow": True, "series": series},
        alt="Histogram of the novelty grade of the atoms in the frames that explorations handed over, per round.",
        uuids=tuple(dict.fromkeys(uuids)),
        caption="Atoms of frames worth a label, graded by the potential of that round. The last bin holds all above.",
    )  # fmt: skip
    return (figure,)


def _histogram(tree: ProcessTree, process: Process) -> tuple[GradeHistogram, str] | None:
    """Histogram of an exploration's grades, or of a scan's."""
    grades = tree.output(process, "grades")
    if isinstance(grades, orm.ArrayData) and "novelty" in grades.get_arraynames():
        made = GradeHistogram(top=_TOP, width=_BIN)
        values = np.asarray(grades.get_array("novelty"), dtype=float)
        made.add(values, np.ones(len(values), dtype=int))
        return made, grades.uuid
    summary = tree.output(process, "summary")
    if process.kind == "ScanCalculation" and summary is not None and "histogram" in summary.get_dict():
        return GradeHistogram.from_dict(summary["histogram"]), summary.uuid
    return None


def _coarse(histogram: GradeHistogram) -> np.ndarray:
    """Counts in the bins of the figure; one more for what lies above."""
    edges = np.arange(0.0, _TOP + _BIN, _BIN)
    above = np.array([histogram.above(edge) for edge in edges], dtype=float)
    return np.append(above[:-1] - above[1:], above[-1])


def _round(process: Process) -> str:
    parts = process.name.split("_")
    return f"round {int(parts[1])}" if len(parts) > 1 and parts[0] == "round" and parts[1].isdigit() else process.name
