"""Findings about a result beyond its provenance: seeds, labels that did not converge, calibrations that are outdated.

>>> from aiida_mlip.data.audit_findings import findings
>>> [finding.message for finding in findings(load_node(PK))]  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.frame_index import FrameIndex
from aiida_mlip.data.graph import FEW, NodeRow, neighbours, nodes_of_type, nodes_with, processes_of
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.provenance import inside_and_behind
from aiida_mlip.data.roles import JOB

Kind = Literal["missing_seed", "unconverged_label", "failed_labels", "calibration_out_of_date", "not_calibrated"]
#: Entry points of processes that draw random numbers -> input with the seed.
_SEEDED: Final[dict[str, str]] = {
    "aiida.calculations:aiida_mlip.nequip_train": "settings",
    "aiida.calculations:aiida_mlip.evaluate": "settings",
    "aiida.calculations:aiida_mlip.explore": "spec",
    "aiida.calculations:aiida_mlip.metadynamics": "spec",
}
#: Those of them that draw numbers only where this key of their settings is true, which it is not by default.
_DRAWS_WHERE: Final[dict[str, str]] = {"aiida.calculations:aiida_mlip.evaluate": "fit_grades"}


@dataclass(frozen=True)
class Finding:
    """One finding.

    :param serious: whether a result is wrong or cannot be repeated; else it is something to know.
    :param pk: of the node concerned.
    """

    kind: Kind
    pk: int
    uuid: str
    message: str
    serious: bool


def findings(node: orm.Node, *, index: FrameIndex | None = None) -> tuple[Finding, ...]:
    """What a person should know before using a potential, a dataset, or what a workchain returned.

    - ``missing_seed``: a job that draws random numbers has no seed among its inputs (an evaluation draws them only
      where it fits grades).
    - ``unconverged_label``: a label is used although the calculation that made it failed.
    - ``failed_labels``: labels that are missing in the newest dataset, by class.
    - ``calibration_out_of_date``: a potential was trained and judged on a dataset that has grown since, or judged on
      another one than it was trained on.
    - ``not_calibrated``: a potential without calibration.

    :param index: an index that is open and fresh; None: the profile's, refreshed.
    """
    if index is None:
        with FrameIndex.open() as opened:
            opened.refresh()
            return findings(node, index=opened)
    behind = inside_and_behind(node)
    seeded = np.intersect1d(processes_of(_SEEDED), behind).tolist()
    datasets = np.intersect1d(nodes_of_type(DatasetData.class_node_type), behind).tolist()
    return (
        *_missing_seeds(nodes_with(seeded)),
        *_labels(datasets, index),
        *_calibrations(_results(node)),
    )


def _missing_seeds(processes: Collection[NodeRow]) -> Iterable[Finding]:
    by_pk = {process.pk: process for process in processes}
    given = {
        (process, label): node.pk
        for process, label, node in neighbours(by_pk, (LinkType.INPUT_CALC,), direction="backward")
    }
    settings = {pk: given.get((pk, _SEEDED[process.process_type])) for pk, process in by_pk.items()}
    known = _attributes({node for node in settings.values() if node is not None})
    for pk, node in settings.items():
        process, values = by_pk[pk], known.get(node, {})
        asks = _DRAWS_WHERE.get(process.process_type)
        if "seed" not in values and (asks is None or values.get(asks, False)):
            where = _SEEDED[process.process_type]
            what = f"the input {where!r} has no seed" if node is not None else f"no input {where!r}, so no seed"
            yield Finding("missing_seed", pk, process.uuid, f"{process.ref.kind}<{pk}>: {what}", serious=True)


def _attributes(pks: set[int]) -> dict[int | None, dict[str, Any]]:
    """Pk of each of these dictionaries -> what it holds."""
    query = orm.QueryBuilder().append(orm.Dict, filters={"id": {"in": list(pks)}}, project=["id", "attributes"])
    return dict(query.all()) if pks else {}


def _labels(datasets: Collection[int], index: FrameIndex) -> Iterable[Finding]:
    """Labels in use whose calculation failed; and those that are missing from the newest dataset."""
    if not datasets:
        return
    failed = _not_ok(index.single_labels(datasets))
    for pk, (uuid, status, message) in sorted(failed.items()):
        kind = nodes_with([pk])[0].ref.kind
        text = f"{kind}<{pk}> failed with exit status {status} ({message}), yet its label is used"
        yield Finding("unconverged_label", pk, uuid, text, serious=True)
    newest = orm.load_node(max(datasets))
    if failures := newest.base.attributes.get("failures", None):
        text = ", ".join(f"{count} {name}" for name, count in sorted(failures.items()))
        yield Finding(
            "failed_labels", newest.pk, newest.uuid, f"DatasetData<{newest.pk}>: labels missing: {text}", serious=False
        )


def _not_ok(uuids: Collection[str]) -> dict[int, tuple[str, int | None, str]]:
    """Pk of each of these processes that failed -> uuid, exit status, message."""
    asked = set(uuids)
    few = {"uuid": {"in": list(asked)}} if len(asked) <= FEW else {}
    query = orm.QueryBuilder().append(
        orm.ProcessNode,
        filters={**few, "attributes.exit_status": {"!==": 0}},
        project=["id", "uuid", "attributes.exit_status", "attributes.exit_message"],
    )
    rows = query.all() if asked else []
    return {pk: (uuid, status, message or "no message") for pk, uuid, status, message in rows if uuid in asked}


def _results(node: orm.Node) -> list[PotentialData]:
    """Potentials that a node is, or that a process returned."""
    if isinstance(node, PotentialData):
        return [node]
    if not isinstance(node, orm.ProcessNode):
        return []
    links = (LinkType.RETURN, LinkType.CREATE)
    found = {
        each.pk: each for _, _, each in neighbours([node.pk], links, direction="forward") if each.role == "potential"
    }
    return [orm.load_node(pk) for pk in sorted(found)]


def _calibrations(potentials: Iterable[PotentialData]) -> Iterable[Finding]:
    largest: dict[int, int | None] = {}  # several potentials were trained on each dataset
    for potential in potentials:
        name = f"PotentialData<{potential.pk}>"

        def finding(kind: Kind, message: str, *, of: Any = potential, name: str = name) -> Finding:
            return Finding(kind, of.pk, of.uuid, f"{name}: {message}", serious=False)

        if not potential.base.attributes.get("calibration", {}):
            yield finding("not_calibrated", "its error bars were never calibrated")
        trained, judged = _trained_and_judged(potential.pk)
        if trained is None:
            continue
        if judged and trained not in judged:
            others = ", ".join(f"DatasetData<{pk}>" for pk in sorted(judged))
            yield finding("calibration_out_of_date", f"trained on DatasetData<{trained}>, but judged on {others}")
        if trained not in largest:
            largest[trained] = _grown(trained)
        if (grown := largest[trained]) is not None:
            yield finding(
                "calibration_out_of_date",
                f"trained and judged on DatasetData<{trained}> ({_n_labelled(trained)} labels), which has grown to "
                f"DatasetData<{grown}> ({_n_labelled(grown)})",
            )


def _trained_and_judged(potential: int) -> tuple[int | None, set[int]]:
    """Dataset that a potential was trained on, and those that it was evaluated on with their labels held out."""
    seen = {potential}
    level = [potential]
    trained: int | None = None
    judged: set[int] = set()
    while level:
        makers = [node for _, _, node in neighbours(level, (LinkType.CREATE,), direction="backward")]
        inputs = neighbours([node.pk for node in makers], (LinkType.INPUT_CALC,), direction="backward")
        jobs = {node.pk for node in makers if node.node_type.startswith(JOB)}
        trained = next((node.pk for job, _, node in inputs if job in jobs and node.role == "dataset"), trained)
        evidence = [node.pk for job, label, node in inputs if job not in jobs and label in ("errors", "grades")]
        for evaluation in {node.pk for _, _, node in neighbours(evidence, (LinkType.CREATE,), direction="backward")}:
            given = neighbours([evaluation], (LinkType.INPUT_CALC,), direction="backward")
            judged |= {node.pk for _, _, node in given if node.role == "dataset"}
        level = [
            node.pk for job, _, node in inputs if job not in jobs and node.role == "potential" and node.pk not in seen
        ]
        seen |= set(level)
    return trained, judged


def _grown(dataset: int) -> int | None:
    """The largest dataset that functions made of this one with more labels; None where there is none."""
    largest, size = None, _n_labelled(dataset)
    seen, level = {dataset}, [dataset]
    while level:
        functions = {
            node.pk
            for _, _, node in neighbours(level, (LinkType.INPUT_CALC,), direction="forward")
            if not node.node_type.startswith(JOB)
        }
        made = neighbours(functions, (LinkType.CREATE,), direction="forward")
        level = [node.pk for _, _, node in made if node.role == "dataset" and node.pk not in seen]
        seen |= set(level)
        for pk in level:
            if (n := _n_labelled(pk)) > size:
                largest, size = pk, n
    return largest


def _n_labelled(dataset: int) -> int:
    fidelities = orm.load_node(dataset).base.attributes.get("fidelities", {})
    return sum(entry["labelled"] for entry in fidelities.values())
