"""Calibration: whether the error bounds of the committee hold, on frames that no member has seen."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.calculations.functions.calibrate import parity_of
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.calibration import Reliability
from aiida_mlip.kernel.held_out import reliability_of_member
from aiida_mlip.report.content import Fact, Figure, Number, Section, Table
from aiida_mlip.report.sections.parity import cloud
from aiida_mlip.report.sections.training_results import TrainingResults, last_with
from aiida_mlip.report.tree import ProcessTree

#: Scores of a calibration: key -> what people call it, unit.
_SCORES: Final[dict[str, tuple[str, str]]] = {
    "spearman": ("rank correlation of bound and error", ""),
    "auroc": ("AUROC of finding large errors", ""),
    "bad_ev_per_ang": ("errors called large, from", "eV/Å"),
    "miscalibration_area": ("miscalibration area", ""),
    "ence": ("expected normalised calibration error", ""),
    "nll": ("negative log likelihood per component", ""),
}
#: Coverage so far below its level is a warning.
_SLACK: Final[float] = 0.05


def section(tree: ProcessTree) -> Section:
    """Scores, coverage and reliability of the first member of the last committee that was calibrated."""
    title = "Calibration of the uncertainty"
    results = last_with(tree, "calibrations")
    if results is None:
        last = last_with(tree, "potentials")
        single = last is not None and len(last.potentials) < 2
        text = "a single potential has no committee to calibrate" if single else "the committee was not calibrated"
        return Section("calibration", title, notes=(f"No calibration: {text}.",) if last is not None else ())
    member, node = next(iter(results.calibrations.items()))
    content, source = node.get_dict(), (node.uuid,)
    figures, missing = _figures(tree, results, member, content)
    return Section(
        "calibration",
        title,
        intro=f"An error bound holds with a probability of {content['level']:.0%} for atoms like those held out. "
        f"Scores are cross-fitted; of {member}, {results.process.name}.",
        facts=_facts(content, source),
        figures=figures,
        tables=_tables(content, source),
        missing=missing,
    )


def coverage_fact(results: TrainingResults) -> Fact | None:
    """Coverage of all held-out atoms, for the head of the report."""
    for node in results.calibrations.values():
        content = node.get_dict()
        covered = content["metrics"]["coverage"]["all"]
        number = Number(100 * covered, "%", (node.uuid,), _tone(covered, content["level"]))
        return Fact(f"bounds that hold (level {content['level']:.0%})", number)
    return None


def _tone(covered: float, level: float) -> Any:  # Any: a literal
    return "good" if covered >= level - _SLACK else "warn"


def _facts(content: dict[str, Any], source: tuple[str, ...]) -> tuple[Fact, ...]:
    covered = content["metrics"]["coverage"]["all"]
    facts = [
        Fact("level", Number(100 * content["level"], "%", source)),
        Fact("coverage, all held-out atoms", Number(100 * covered, "%", source, _tone(covered, content["level"]))),
        Fact("held-out atoms", Number(content["n_atoms"], uuids=source)),
        Fact("rms length of their force errors", Number(content["force_rmse_validation"], "eV/Å", source)),
    ]
    for key, (name, unit) in _SCORES.items():
        if content["metrics"].get(key) is not None:
            facts.append(Fact(name, Number(content["metrics"][key], unit, source)))
    return tuple(facts)


def _tables(content: dict[str, Any], source: tuple[str, ...]) -> tuple[Table, ...]:
    rows = []
    for kind, word in (("element", "element"), ("region", "environments")):
        for name, entry in content["metrics"]["coverage"].get(kind, {}).items():
            shown = f"{name} the training set" if kind == "region" else name
            covered = Number(100 * entry["coverage"], uuids=source, tone=_tone(entry["coverage"], content["level"]))
            scale = content["scale"].get(name, content["scale_all"]) if kind == "element" else None
            rows.append(
                (Number(f"{word}: {shown}"), Number(entry["n"], uuids=source), covered, Number(scale, uuids=source))
            )
    columns = ("of", "atoms", "coverage (%)", "scale of the deviation")
    return (Table("Coverage of the bounds", columns, tuple(rows)),) if rows else ()


def _figures(
    tree: ProcessTree, results: TrainingResults, member: str, content: dict[str, Any]
) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    maker = next(iter(tree.find("calibrate", below=results.process)), None)
    settings = {} if maker is None else _settings(tree.input(maker, "settings"))
    given = (
        {}
        if maker is None
        else {k.removeprefix("parity__"): u for k, u in tree.inputs(maker).items() if k != "settings"}
    )
    nodes = {name: orm.load_node(uuid) for name, uuid in sorted(given.items())} or results.parity
    if member not in nodes:
        return (), ("no reliability diagram: the predictions that were calibrated are not at hand",)
    try:
        found = reliability_of_member({name: parity_of(node) for name, node in nodes.items()}, member, **settings)
    except MlipError as error:
        return (), (f"no reliability diagram: {error}",)
    source = (results.calibrations[member].uuid, *(node.uuid for node in nodes.values()))
    return (_diagram(found, content, source), _scatter(found, content, source)), ()


def _settings(node: Any | None) -> dict[str, Any]:  # Any: a Dict
    values = {} if node is None else node.get_dict()
    return {key: values[key] for key in ("level", "seed") if key in values}


def _diagram(found: Reliability, content: dict[str, Any], source: tuple[str, ...]) -> Figure:
    level = content["level"]
    return Figure(
        key="reliability",
        title="Reliability diagram",
        kind="lines",
        data={
            "x_label": "claimed probability",
            "y_label": "fraction of errors inside",
            "x_range": [0, 1],
            "y_range": [0, 1],
            "diagonal": True,
            "series": [{"name": "held-out atoms", "x": found.expected, "y": found.observed, "markers": True}],
            "verticals": [{"name": f"level of the bounds, {level:g}", "x": level}],
        },
        alt="Fraction of held-out force errors inside the claimed interval against the probability claimed for it. "
        "On the diagonal claims are true, below it they are too bold.",
        uuids=source,
        caption="On the diagonal claims are true; below it too bold, above it too cautious.",
    )


def _scatter(found: Reliability, content: dict[str, Any], source: tuple[str, ...]) -> Figure:
    inside = found.error <= found.bound
    shown = found.bound > 0
    return Figure(
        key="bounds",
        title="Errors and their bounds",
        kind="parity",
        data={
            "x_label": "bound of the force error (eV/Å)",
            "y_label": "force error (eV/Å)",
            "log": True,
            "clouds": [
                {
                    "name": "bound holds",
                    **cloud(np.log10(found.bound[shown & inside]), _log(found.error[shown & inside])),
                },
                {
                    "name": "exceeded",
                    **cloud(np.log10(found.bound[shown & ~inside]), _log(found.error[shown & ~inside])),
                },
            ],
        },
        alt="Length of the force error of each held-out atom against its bound, logarithmic; above the diagonal "
        "the bound is exceeded.",
        uuids=source,
        caption=f"Each held-out atom; above the diagonal its bound is exceeded, as {1 - content['level']:.0%} may be.",
    )


def _log(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.log10(np.maximum(values, 1e-6)))
