"""Parity: predictions against labels, per level of theory and element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from ase.data import chemical_symbols

from aiida_mlip.kernel.metrics import deviation
from aiida_mlip.kernel.splits import Part
from aiida_mlip.kernel.units import GPA
from aiida_mlip.report.content import Fact, Figure, Number, Section
from aiida_mlip.report.sections.expected import is_expected, reason
from aiida_mlip.report.sections.training_results import TrainingResults, last_with
from aiida_mlip.report.tree import ProcessTree

#: Points of one part that are drawn one by one; of more than these a density is drawn, and the worst one by one.
MOST_POINTS: Final[int] = 3000
_BINS: Final[int] = 120
_WORST: Final[int] = 100
#: Levels of theory, and elements of each, that get a panel.
_MOST_LEVELS: Final[int] = 4
_MOST_ELEMENTS: Final[int] = 8
_PARTS: Final[Mapping[str, tuple[int, ...]]] = {
    "training and validation": (Part.TRAIN, Part.VAL), "held out": (Part.TEST,)
}  # fmt: skip


def section(tree: ProcessTree) -> Section:
    """Panels of one potential of the last training that was evaluated."""
    title = "Parity"
    results = last_with(tree, "parity")
    if results is None:
        missing = (f"no predictions: {reason(tree, 'parity')}",) if is_expected(tree, "parity") else ()
        return Section("parity", title, missing=missing)
    member, node = next(iter(results.parity.items()))
    figures = tuple(_figures(tree, results, member, node))
    missing = () if figures else ("none of the labels could be compared with a prediction",)
    several = (
        f" {member} of {len(results.parity)} potentials: the one that explores." if len(results.parity) > 1 else ""
    )
    intro = f"Predictions of {results.process.name} against labels.{several}"
    return Section("parity", title, intro=intro, figures=figures, missing=missing)


def _figures(tree: ProcessTree, results: TrainingResults, member: str, node: Any) -> Iterator[Figure]:  # Any: ArrayData
    arrays = {name: node.get_array(name) for name in node.get_arraynames() if name != "frame_id"}
    levels = _levels(tree, results, len(arrays["part"]))
    source = (node.uuid,)
    rows_of_atoms = np.repeat(np.arange(len(arrays["natoms"])), arrays["natoms"])
    for level in _by_count(levels)[:_MOST_LEVELS]:
        rows = levels == level
        at = f" ({level})" if level else ""
        yield from _panel(
            f"parity-energy-{level}", f"Energy{at}", "energy", "meV/atom", source, member,
            *_relative(arrays["energy_reference"][rows], arrays["energy_predicted"][rows]), arrays["part"][rows],
        )  # fmt: skip
        atoms = rows[rows_of_atoms]
        for number in _by_count(arrays["numbers"][atoms])[:_MOST_ELEMENTS]:
            mine = atoms & (arrays["numbers"] == number)
            symbol = chemical_symbols[int(number)]
            yield from _panel(
                f"parity-force-{level}-{symbol}", f"Forces on {symbol}{at}", "force component", "eV/Å", source, member,
                arrays["forces_reference"][mine].reshape(-1), arrays["forces_predicted"][mine].reshape(-1),
                np.repeat(arrays["part"][rows_of_atoms[mine]], 3),
            )  # fmt: skip
        yield from _panel(
            f"parity-stress-{level}", f"Stress{at}", "stress component", "GPa", source, member,
            arrays["stress_reference"][rows].reshape(-1) / GPA, arrays["stress_predicted"][rows].reshape(-1) / GPA,
            np.repeat(arrays["part"][rows], 9),
        )  # fmt: skip


def _levels(tree: ProcessTree, results: TrainingResults, n_rows: int) -> np.ndarray:
    """(n,) level of theory of each row that was evaluated."""
    node = tree.input(results.process, "dataset")
    if node is None or len(node) != n_rows:
        return np.full(n_rows, "", dtype=object)
    return np.asarray(node.column("fidelity"))


def _by_count(values: np.ndarray) -> list[Any]:
    names, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [names[i] for i in order if names[i] != "" or len(names) == 1]


def _relative(reference: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies in meV/atom from the mean of the references: their zero is a convention."""
    known = np.isfinite(reference)
    zero = float(reference[known].mean()) if known.any() else 0.0
    return 1000 * (reference - zero), 1000 * (predicted - zero)


def _panel(
    key: str, title: str, quantity: str, unit: str, source: tuple[str, ...], member: str,
    reference: np.ndarray, predicted: np.ndarray, part: np.ndarray,
) -> Iterator[Figure]:  # fmt: skip
    known = np.isfinite(reference) & np.isfinite(predicted)
    clouds, facts = [], []
    for name, codes in _PARTS.items():
        mine = known & np.isin(part, codes)
        if not mine.any():
            continue
        clouds.append({"name": name, **cloud(reference[mine], predicted[mine])})
        error = deviation(predicted[mine], reference[mine])
        facts.append(Fact(f"RMSE, {name}", Number(error.rmse, unit, source)))
    if clouds:
        yield Figure(
            key=key,
            title=title,
            kind="parity",
            data={
                "x_label": f"label: {quantity} ({unit})",
                "y_label": f"prediction of {member} ({unit})",
                "clouds": clouds,
            },
            alt=f"{title}: prediction of {member} against the label, in {unit}; the diagonal is perfect agreement.",
            uuids=source,
            caption="From the mean of the labels." if quantity == "energy" else "",
            facts=tuple(facts),
        )


def cloud(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Points, or where there are too many their density on a grid and the worst of them.

    :returns: ``n``, ``x`` and ``y``; with a density ``density`` of ``x_range``, ``y_range``, ``bins`` and ``cells``,
        triples of column, row and count.
    """
    if len(x) <= MOST_POINTS:
        return {"n": len(x), "x": x, "y": y}
    worst = np.argsort(-np.abs(y - x), kind="stable")[:_WORST]
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=_BINS)
    column, row = np.nonzero(counts)
    return {
        "n": len(x),
        "x": x[worst],
        "y": y[worst],
        "density": {
            "x_range": [x_edges[0], x_edges[-1]],
            "y_range": [y_edges[0], y_edges[-1]],
            "bins": _BINS,
            "cells": np.stack([column, row, counts[column, row]], axis=1).astype(int),
        },
    }
