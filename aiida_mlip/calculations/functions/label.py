"""Labelling in four calculations: plan what is missing, prepare inputs, collect labels, assemble the dataset.

A *batch* is a Dict: the fidelity's name, its settings and their hash, and rows of a DatasetData. It is what one job of
the ASE engine, or one bundle of pw.x, works on, and what QE labels of jobs of their own are prepared and collected by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.calculations.functions.qe_labels import kpoints_label, outcome_of, parameters_label
from aiida_mlip.data.batches import parse_batch, take_rows
from aiida_mlip.data.bundling import Expectation, bundled_rows, dataset_with_costs, expected_costs, machine_factor
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.outcomes import with_outcomes
from aiida_mlip.data.pw_inputs import frame_structure, mesh_of
from aiida_mlip.kernel.frames import Frames, concatenate, id_bytes, id_hex
from aiida_mlip.kernel.labelling import (
    attach_labels,
    contained,
    first_rows,
    labelled_ids,
    uuid_rows,
)
from aiida_mlip.kernel.labelling import (
    isolated_atoms as isolated_atom_frames,
)
from aiida_mlip.kernel.scheduling import longest_first
from aiida_mlip.protocols.fidelity import AseFidelity, Fidelity, QeFidelity, parse_fidelities, settings_hash

#: Frames prepared and collected together by the QE engine: links per calculation stay few, partial results early.
QE_BATCH: Final[int] = 100
#: Failures described in a summary.
MAX_MESSAGES: Final[int] = 20


@calcfunction
def plan_labels(
    dataset: DatasetData, fidelities: orm.Dict, isolated_atoms: orm.Bool | None = None, **sources: orm.Data
) -> dict[str, orm.Data]:
    """Find the frames without a label at each fidelity and divide them into batches.

    What labels cost is looked up in the profile: it decides about order and jobs, never about a label, and no link is
    made to the campaign that measured it, whose whole history would then be that of these labels. The plan says which
    dataset it was.

    :param dataset: frames to label; a frame that appears twice is labelled once.
    :param fidelities: see :mod:`aiida_mlip.protocols.fidelity`.
    :param isolated_atoms: also label one isolated atom per species.
    :param sources: ``earlier_<i>``: datasets that hold labels already; ``upf_<i>_<symbol>``: all pseudopotentials of
        the family of the i-th fidelity.
    :returns: ``plan`` (what is to be done and expected to cost), ``isolated`` (frames of isolated atoms, if wanted),
        and ``batch_<i>``, the longest first; those of frames that pw.x labels in one job say ``bundle``.
    """
    specs = parse_fidelities(fidelities.get_dict())
    hashes = {name: settings_hash(spec, _md5s(sources, i)) for i, (name, spec) in enumerate(specs.items())}
    earlier = [dataset, *(node for key, node in sources.items() if key.startswith("earlier_"))]
    frame_id = dataset.column("frame_id")
    result: dict[str, orm.Data] = {}
    targets = {"dataset": (frame_id, first_rows(frame_id))}
    if isolated_atoms is not None and isolated_atoms.value:
        atoms = isolated_atom_frames(dataset.column("numbers"))
        result["isolated"] = DatasetData.from_frames(atoms)
        targets["isolated"] = (atoms.frame_id, np.flatnonzero(~contained(atoms.frame_id, frame_id)))
    costs = {name: dataset_with_costs(settings) for name, settings in hashes.items()}
    measured = list({node.uuid: node for node in [*earlier, *costs.values()] if node is not None}.values())
    pseudos = {name: _upfs(sources, i) for i, name in enumerate(specs)}
    other = machine_factor(
        {hashes[name]: spec for name, spec in specs.items() if isinstance(spec, QeFidelity)},
        {hashes[name]: pseudos[name] for name in specs},
        measured,
    )
    batches: list[dict[str, Any]] = []
    forecast: dict[str, Any] = {}
    for name, spec in specs.items():
        known = np.concatenate([_known_ids(node, hashes[name]) for node in earlier])
        for source, (ids, rows) in targets.items():
            todo = rows[~contained(ids[rows], known)]
            expected = Expectation(np.full(len(todo), np.nan), "unknown")
            if source == "dataset":
                expected = expected_costs(
                    dataset, todo, spec, hashes[name], pseudos=pseudos[name], measured=measured, other=other
                )
                forecast[name] = _forecast(expected) | {"costs": getattr(costs[name], "uuid", None)}
            base = {"fidelity": name, "spec": spec.model_dump(mode="json"), "settings": hashes[name], "source": source}
            batches += [
                base | part for part in _parts(todo, ids, expected.core_seconds, spec, bundles=source == "dataset")
            ]
    # of jobs side by side the longest begin first, and those of which nothing is known before them
    order = longest_first(np.array([_longest_job(batch) for batch in batches]))
    result |= {f"batch_{number:04d}": orm.Dict(batches[i]) for number, i in enumerate(order)}
    result["plan"] = orm.Dict(
        {
            "settings": hashes,
            "n_frames": len(targets["dataset"][1]),
            "n_batches": len(batches),
            "n_labels": sum(len(batch["rows"]) for batch in batches),
            "n_jobs": sum(1 if _is_one_job(batch) else len(batch["rows"]) for batch in batches),
            "forecast": forecast,
        }
    )
    return result


@calcfunction
def prepare_labels(frames: DatasetData, batch: orm.Dict) -> dict[str, orm.Data]:
    """Make the inputs of pw.x for the frames of a batch: structures, and each distinct mesh and set of parameters once.

    :returns: ``structure_<i>`` for the i-th row of the batch, ``kpoints_<mesh>``, ``parameters_<...>``, and the
        settings ``max_iterations`` and ``clean_workdir`` of :class:`PwBaseWorkChain`.
    """
    content = batch.get_dict()
    spec = parse_batch(content)
    if not isinstance(spec, QeFidelity):
        raise TypeError(f"only batches of the qe engine are prepared, got {type(spec).__name__}")
    isolated = content["source"] == "isolated"
    result: dict[str, orm.Data] = {
        "max_iterations": orm.Int(spec.max_iterations),
        "clean_workdir": orm.Bool(True),
    }
    for i, row in enumerate(content["rows"]):
        structure = frame_structure(frames[row], spec, isolated=isolated)
        result[f"structure_{i:04d}"] = structure
        mesh = mesh_of(structure, spec)
        if (label := kpoints_label(mesh)) not in result:
            result[label] = kpoints = orm.KpointsData()
            kpoints.set_kpoints_mesh(mesh)
        symbols = sorted(structure.get_symbols_set())
        if (label := parameters_label(symbols, len(structure.sites))) not in result:
            result[label] = orm.Dict(spec.namelists(symbols, len(structure.sites), isolated=isolated))
    return result


@calcfunction
def collect_labels(frames: DatasetData, batch: orm.Dict, **children: orm.Data) -> dict[str, orm.Data]:
    """Turn what the label processes of a batch left into labelled rows, and failed rows with their class.

    :param children: for the i-th row of the batch ``structure_<i>``, and, where they exist, ``parameters_<i>`` and
        ``trajectory_<i>`` of a finished pw.x calculation, or ``retrieved_<i>`` of a failed one. Those of calculations
        of an earlier campaign have the prefix ``reused_``.
    :returns: ``dataset`` and ``report``: counts and what is known about each failure, and under ``again`` the frames of
        the batch that something from outside ended, if they were not tried twice.
    """
    content = batch.get_dict()
    spec = parse_batch(content)
    everything = range(len(content["rows"]))
    # without a structure a frame was never started (qe); a job of many frames that left nothing failed as a whole
    started = [i for i in everything if {f"structure_{i:04d}", f"reused_structure_{i:04d}"} & set(children)]
    started = list(everything) if spec.engine == "ase" or content.get("bundle") else started
    rows = take_rows(frames, [content["rows"][i] for i in started])
    outcomes = [
        outcome_of(children, index, rows.take([row]), spec.labels, batch=batch) for row, index in enumerate(started)
    ]
    labelled = with_outcomes(rows, content["fidelity"], outcomes)
    node = DatasetData.from_frames(labelled, settings={content["fidelity"]: content["settings"]})
    failures = [
        {"frame_id": name, "class": o.failure.label, "uuid": o.uuid, "message": o.message}
        for name, o in zip(rows.ids(), outcomes, strict=True)
        if o.failure
    ]
    report = {
        "fidelity": content["fidelity"],
        "reused": sum(o.reused and not o.failure for o in outcomes),
        "failures": failures,
    }
    if not content.get("tries") and (not isinstance(spec, QeFidelity) or spec.max_iterations > 1):
        report["again"] = [index for index, o in zip(started, outcomes, strict=True) if o.again]
    return {"dataset": node, "report": orm.Dict(report)}


@calcfunction
def rest_of_batch(
    batch: orm.Dict, dataset: DatasetData, report: orm.Dict | None = None
) -> dict[str, orm.Data] | ExitCode:
    """The frames of a batch that its job did not come to.

    :param batch: what the job was given.
    :param dataset: what it left; a frame that it came to has a cost.
    :param report: of a bundle of pw.x: frames it had begun come last, one of them may have ended it.
    :returns: ``batch``, or exit code 320 if nothing is left.
    """
    left = np.flatnonzero(np.isnan(dataset.column("cost"))).tolist()
    if not left:
        return ExitCode(320, "the job came to all frames of its batch")
    begun = set() if report is None else set(report.get_dict().get("begun", []))
    return {"batch": orm.Dict(_part_of(batch.get_dict(), sorted(left, key=lambda i: i in begun)))}


@calcfunction
def divide_batch(batch: orm.Dict, **known: orm.StructureData) -> dict[str, orm.Data]:
    """A bundle without the frames that earlier calculations have labelled.

    :param known: ``structure_<i>`` of a finished calculation of the i-th frame.
    :returns: ``alone``: the known ones, which are collected one by one; ``batch``: the others, if there are any.
    """
    content = batch.get_dict()
    found = sorted(int(key.removeprefix("structure_")) for key in known)
    left = [i for i in range(len(content["rows"])) if i not in set(found)]
    result: dict[str, orm.Data] = {"alone": orm.Dict(_part_of(content, found) | {"bundle": False})}
    if left:
        result["batch"] = orm.Dict(_part_of(content, left))
    return result


@calcfunction
def frames_alone(batch: orm.Dict, report: orm.Dict | None = None) -> dict[str, orm.Data]:
    """Frames that are tried again, those of pw.x each in a job of its own.

    :param batch: what the bundle, or the jobs, were given.
    :param report: what it left: the frames under ``again``; without it all frames.
    :returns: ``batch``.
    """
    content = batch.get_dict()
    chosen = range(len(content["rows"])) if report is None else report.get_dict()["again"]
    return {"batch": orm.Dict(_part_of(content, list(chosen)) | {"bundle": False, "tries": 1})}


@calcfunction
def unlabelled_part(frames: DatasetData, batch: orm.Dict, **earlier: DatasetData) -> dict[str, orm.Data] | ExitCode:
    """The frames of a batch that no other campaign has labelled by now.

    :param frames: what the rows of the batch refer to.
    :param earlier: datasets with labels.
    :returns: ``batch``, or exit code 320 if nothing is left.
    """
    content = batch.get_dict()
    known = np.concatenate([_known_ids(node, content["settings"]) for node in earlier.values()])
    ids = frames.column("frame_id")[np.array(content["rows"], dtype=int)]
    left = np.flatnonzero(~contained(ids, known)).tolist()
    if not left:
        return ExitCode(320, "all frames of the batch are labelled")
    return {"batch": orm.Dict(_part_of(content, left))}


@calcfunction
def assemble_labels(dataset: DatasetData, plan: orm.Dict, **sources: orm.Data) -> dict[str, orm.Data]:
    """Put all labels, computed now or earlier, onto the frames of the dataset, one row per frame and fidelity.

    :param dataset: the frames that were to be labelled.
    :param plan: of :func:`plan_labels`.
    :param sources: ``isolated`` (frames of isolated atoms), ``part_<i>`` and ``report_<i>`` (of the batches),
        ``earlier_<i>`` (datasets that held labels already).
    :returns: ``dataset`` (absent if there is not one row) and ``summary``.
    """
    parts = [node for key, node in sorted(sources.items()) if key.startswith("part_")]
    reports = [node.get_dict() for key, node in sorted(sources.items()) if key.startswith("report_")]
    earlier = [dataset, *(node for key, node in sorted(sources.items()) if key.startswith("earlier_"))]
    targets = _targets(dataset, sources.get("isolated"))
    results, summary = [], {}
    for name, settings in plan.get_dict()["settings"].items():
        old = [
            (node.filter(fidelity=other, labelled=True), other) for node in earlier for other in _names(node, settings)
        ]
        new = [(node.filter(fidelity=name), name) for node in parts if name in node.fidelities]
        frames, tally = attach_labels(targets, name, [*reversed(new), *old])  # what was tried last says why it failed
        results.append(frames)
        mine = [report for report in reports if report["fidelity"] == name]
        failed = set(id_hex(frames.frame_id[~frames.labelled]))  # not those that a later job came to
        last = {failure["frame_id"]: failure for report in mine for failure in report["failures"]}
        failures = [failure for frame_id, failure in last.items() if frame_id in failed]
        computed = sum(int(part.labelled.sum()) for part, _ in new) - sum(report["reused"] for report in mine)
        summary[name] = {
            "settings": settings,
            "frames": len(targets),
            "computed": computed,
            "reused": tally.labelled - computed,
            "failed": tally.failed,
            "not_run": tally.not_run,
            "failures": dict(Counter(failure["class"] for failure in failures)),
            "messages": failures[:MAX_MESSAGES],
            "core_seconds": round(sum(float(np.nansum(part.cost)) for part, _ in new), 3),
        }
    rows = concatenate(results)
    output: dict[str, orm.Data] = {"summary": orm.Dict({"fidelities": summary})}
    if len(rows):
        output["dataset"] = DatasetData.from_frames(rows, settings=plan.get_dict()["settings"])
    return output


def _md5s(sources: Mapping[str, orm.Data], index: int) -> dict[str, str]:
    return {symbol: node.md5 for symbol, node in _upfs(sources, index).items()}


def _upfs(sources: Mapping[str, orm.Data], index: int) -> dict[str, orm.Data]:
    prefix = f"upf_{index}_"
    return {key.removeprefix(prefix): node for key, node in sources.items() if key.startswith(prefix)}


def _forecast(expected: Expectation) -> dict[str, Any]:
    """What the labels of a fidelity are expected to cost, for people."""
    known = np.isfinite(expected.core_seconds)
    return {
        "n_labels": len(known),
        "n_expected": int(known.sum()),
        "core_seconds": float(f"{expected.core_seconds[known].sum():.3g}"),
        "source": expected.source,
        "n_measured": expected.n_labels,
        "spread": float(f"{expected.spread:.3g}") if expected.is_reliable else None,
    }


def _parts(
    todo: np.ndarray, ids: np.ndarray, core_seconds: np.ndarray, spec: Fidelity, *, bundles: bool
) -> list[dict[str, Any]]:
    """Rows of each batch of a fidelity, the longest first, what they are expected to cost, and whether it is a bundle.

    :param todo: (n,) rows to label.
    :param ids: frame ids of all rows.
    :param core_seconds: (n,) expected of ``todo``.
    :param bundles: whether frames may share a job of pw.x.
    """
    order = longest_first(core_seconds)
    todo, core_seconds = todo[order], core_seconds[order]
    together: list[list[int]] = []
    alone = list(range(len(todo)))
    if isinstance(spec, QeFidelity) and bundles and len(todo):
        together, alone = bundled_rows(core_seconds, spec.bundle_size)
    size = spec.batch_size if isinstance(spec, AseFidelity) else QE_BATCH
    parts = [(part, True) for part in together]
    parts += [(alone[start : start + size], False) for start in range(0, len(alone), size)]
    result = []
    for part, bundle in parts:
        content: dict[str, Any] = {
            "rows": todo[part].tolist(),
            "expected": [float(f"{cost:.3g}") if np.isfinite(cost) else None for cost in core_seconds[part]],
        }
        if isinstance(spec, QeFidelity):
            content |= {"frame_ids": id_hex(ids[todo[part]]), "bundle": bundle}
        result.append(content)
    return result


def _is_one_job(batch: Mapping[str, Any]) -> bool:
    return bool(batch.get("bundle")) or batch["spec"]["engine"] == "ase"


def _longest_job(batch: Mapping[str, Any]) -> float:
    """Expected core-seconds of the longest job of a batch; NaN where nothing is known."""
    costs = np.array([np.nan if cost is None else cost for cost in batch["expected"]])
    return float(costs.sum() if _is_one_job(batch) else costs[0])


def _part_of(content: Mapping[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """Content of a batch of some of the frames of another."""
    names = ("rows", "frame_ids", "expected")
    columns = {key: [content[key][i] for i in indices] for key in names if key in content}
    return {**content, **columns}


def _names(node: DatasetData, settings: str) -> list[str]:
    """Fidelities of a dataset that were computed with the given settings, whatever their name."""
    return [name for name, value in node.settings.items() if value == settings]


def _known_ids(node: DatasetData, settings: str) -> np.ndarray:
    found = [labelled_ids(node.filter(fidelity=name, labelled=True), name) for name in _names(node, settings)]
    return np.concatenate([np.zeros((0, 16), dtype=np.uint8), *found])


def _targets(dataset: DatasetData, isolated: DatasetData | None) -> Frames:
    """Frames to label: each frame id once, then the isolated atoms that are not among them."""
    frames = dataset.frames()
    targets = frames.take(first_rows(frames.frame_id))
    if isolated is None:
        return targets
    atoms = uuid_rows(isolated.frames(), "geometry_uuid", id_bytes([isolated.creator.uuid])[0])
    return concatenate([targets, atoms.take(~contained(atoms.frame_id, frames.frame_id))])
