"""Labels from the output nodes of pw.x calculations, with units and signs made ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.batches import job_texts, output_text
from aiida_mlip.data.label_costs import job_core_seconds
from aiida_mlip.data.outcomes import UNCONVERGED, Outcome, judged
from aiida_mlip.io.pw_printed import printed_scf
from aiida_mlip.kernel.failures import classify, summary_line
from aiida_mlip.kernel.frames import Failure, Frames
from aiida_mlip.kernel.units import GPA

#: Failures of which something from outside may be the cause, and what pw.x or the shell say if it is not.
_CUT_OFF: Final[frozenset[Failure]] = frozenset({Failure.CRASHED, Failure.PARSE, Failure.INTERRUPTED})
_SAYS_WHY: Final[re.Pattern[str]] = re.compile(r"Error in routine|command not found|could not find or execute")


def kpoints_label(mesh: Sequence[int]) -> str:
    """Output label of a mesh in :func:`~aiida_mlip.calculations.functions.label.prepare_labels`."""
    return "kpoints_" + "_".join(str(int(n)) for n in mesh)


def parameters_label(symbols: Sequence[str], n_atoms: int) -> str:
    """Output label of the parameters of frames of these species and size."""
    return f"parameters_{n_atoms}_{'_'.join(sorted(symbols))}"


def outcome_of(
    children: Mapping[str, orm.Data], index: int, frame: Frames, labels: Sequence[str], *, batch: orm.Dict
) -> Outcome:
    """Outcome of the ``index``-th frame of a batch from the nodes that its process left.

    :param children: see :func:`~aiida_mlip.calculations.functions.label.collect_labels`.
    :param frame: the frame itself, one row.
    :param labels: which labels are kept.
    :param batch: the batch, which was the input of a job that left nothing at all.
    """
    prefix = "reused_" if f"reused_parameters_{index:04d}" in children else ""
    found = {
        kind: children.get(f"{prefix}{kind}_{index:04d}")
        for kind in ("structure", "parameters", "trajectory", "retrieved")
    }
    if found["parameters"] is not None and found["trajectory"] is not None:
        return _success(found["parameters"], found["trajectory"], frame, labels, reused=bool(prefix))
    if found["retrieved"] is not None:
        return _failure(found["retrieved"].creator)
    return _vanished(found["structure"] or batch)


def _success(
    parameters: orm.Dict, trajectory: orm.TrajectoryData, frame: Frames, labels: Sequence[str], *, reused: bool
) -> Outcome:
    calculation = parameters.creator
    known: dict[str, Any] = {"uuid": calculation.uuid, "cost": _core_seconds(calculation), "reused": reused}
    content = parameters.get_dict()
    if not _converged(content):
        return Outcome(failure=Failure.SCF_NOT_CONVERGED, message=UNCONVERGED, **known)
    try:
        energy = float(content["energy"])
        forces = np.array(trajectory.get_array("forces")[-1], dtype="<f8") if "forces" in labels else None
        names = trajectory.get_arraynames()
        # pw.x prints what the material exerts: compression positive
        stress = -np.array(trajectory.get_array("stress")[-1], dtype="<f8") * GPA if "stress" in names else None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return Outcome(failure=Failure.PARSE, message=f"no energy or forces in the output: {error}", **known)
    if contradiction := printed_scf(output_text(calculation)).contradicts(energy, forces):
        return Outcome(failure=Failure.PARSE, message=contradiction, again=True, **known)
    return judged(energy, forces, stress, frame, labels, **known)


def _failure(calculation: orm.CalcJobNode) -> Outcome:
    """Class of a calculation that ran and failed, from its exit code and all it printed."""
    texts = job_texts(calculation)
    again = False
    if calculation.exit_status == 0:
        # pw.x was content, the workchain around it was not: too few bands, say
        failure = Failure.IMPLAUSIBLE
        message = str(calculation.caller.exit_message) if calculation.caller is not None else ""
    else:
        failure = Failure.KILLED if calculation.is_killed else classify(calculation.exit_status, *texts)
        message = summary_line(*texts) or str(calculation.exit_message or calculation.exception or "")
        again = failure in _CUT_OFF and not any(_SAYS_WHY.search(text) for text in texts)
    cost = _core_seconds(calculation)
    return Outcome(failure=failure, uuid=calculation.uuid, cost=cost, message=message, again=again)


def may_come_again(process: orm.ProcessNode) -> bool:
    """Whether what ended a label process that failed came from outside: a kill, damaged files, an exception."""
    jobs = [job for job in process.called if isinstance(job, orm.CalcJobNode)]
    last = max(jobs, key=lambda job: job.pk) if jobs else process
    if isinstance(last, orm.CalcJobNode) and "retrieved" in last.outputs:
        return _failure(last).again
    return bool(last.is_excepted or process.is_excepted)


def _vanished(node: orm.Data) -> Outcome:
    """Class of a process that left no files: never submitted, killed before it ran, or an exception."""
    process = _consumer(node)
    if process is None:
        return Outcome(failure=Failure.SUBMISSION, message="no process was started")
    jobs = [job for job in process.called_descendants if isinstance(job, orm.CalcJobNode)]
    last = max(jobs, key=lambda job: job.pk) if jobs else process
    killed = last.is_killed or process.is_killed
    message = str(last.exception or last.exit_message or process.exception or process.exit_message or "")
    return Outcome(
        failure=Failure.KILLED if killed else Failure.SUBMISSION,
        uuid=last.uuid,
        message=message.strip()[-200:],
        again=not killed and bool(last.is_excepted or process.is_excepted),
    )


def _consumer(node: orm.Data) -> orm.ProcessNode | None:
    """Latest workchain, or job, that took a node as input."""
    for link in (LinkType.INPUT_WORK, LinkType.INPUT_CALC):
        consumers = [
            process
            for process in node.base.links.get_outgoing(link_type=link).all_nodes()
            if isinstance(process, orm.WorkChainNode | orm.CalcJobNode)
        ]
        if consumers:
            return max(consumers, key=lambda process: process.pk)
    return None


def _converged(parameters: Mapping[str, Any]) -> bool:
    convergence = parameters.get("convergence_info") or {}
    return bool((convergence.get("scf_conv") or {}).get("convergence_achieved", True))


def _core_seconds(calculation: orm.CalcJobNode) -> float:
    """Wall time times cores of all runs of the frame, NaN when none is known."""
    runs = calculation.caller.called if calculation.caller is not None else [calculation]
    times = [job_core_seconds(run) for run in runs if isinstance(run, orm.CalcJobNode)]
    known = [seconds for seconds in times if np.isfinite(seconds)]
    return sum(known) if known else np.nan
