"""What the nodes of a molecular dynamics run of pw.x say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.batches import job_texts
from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.pw_md import read_md_output
from aiida_mlip.kernel.failures import classify, summary_line
from aiida_mlip.kernel.frames import Failure
from aiida_mlip.kernel.trajectory import Segment


def positions_of(structure: orm.StructureData) -> np.ndarray:
    """(a, 3) Å."""
    return np.array([site.position for site in structure.sites], dtype=float)


def masses_of(structure: orm.StructureData) -> np.ndarray:
    """(a,) amu, those that pw.x is given."""
    masses = {kind.name: kind.mass for kind in structure.kinds}
    return np.array([masses[site.kind_name] for site in structure.sites], dtype=float)


def read_segment(
    structure: orm.StructureData, parameters: Mapping[str, Any], retrieved: orm.FolderData | None
) -> Segment:
    """Steps that a job computed; none if it left no output, one of something else, or had too few bands.

    :param structure: where it started.
    :param parameters: namelists it was given.
    """
    start = positions_of(structure)
    text = ""
    if retrieved is not None and not has_too_few_bands(retrieved.creator):
        name = str(retrieved.creator.get_option("output_filename"))
        if name in retrieved.base.repository.list_object_names():
            text = retrieved.base.repository.get_object_content(name, mode="rb").decode(errors="replace")
    stress = bool(parameters.get("CONTROL", {}).get("tstress", False))
    try:
        return read_md_output(text, start, stress=stress, source=f"output of {retrieved}")
    except FileFormatError:
        return read_md_output("", start)


def has_too_few_bands(job: orm.CalcJobNode) -> bool:
    """Whether the highest band of a job with smearing is occupied, as :class:`PwBaseWorkChain` checks it for labels."""
    from aiida_quantumespresso.utils.bands import get_highest_occupied_band

    if job.inputs.parameters.get_dict().get("SYSTEM", {}).get("occupations") == "fixed":
        return False
    if "output_band" not in job.outputs:
        return False  # it broke off before it wrote any
    try:
        get_highest_occupied_band(job.outputs.output_band)
    except ValueError:
        return True
    return False


def failure_of(
    segment: Segment, retrieved: orm.FolderData | None, process: orm.ProcessNode | None
) -> tuple[Failure, str]:
    """Why a segment ended before its last step: class, and the line that says most."""
    if segment.completed:
        return Failure.NONE, ""
    if segment.scf_failed:
        return Failure.SCF_NOT_CONVERGED, f"the scf of step {len(segment) + 1} of the job did not converge"
    if retrieved is None:
        killed = process is not None and process.is_killed
        message = "" if process is None else str(process.exception or process.exit_message or "")
        return (Failure.KILLED if killed else Failure.SUBMISSION), message.strip()[-200:]
    job = retrieved.creator
    if has_too_few_bands(job):
        return Failure.IMPLAUSIBLE, "the highest band is occupied: too few bands"
    texts = job_texts(job)
    failure = Failure.KILLED if job.is_killed else classify(job.exit_status or None, *texts)
    # what pw.x itself says comes first: the launcher only knows that it was aborted
    return failure, summary_line(*texts[1:], texts[0]) or str(job.exit_message or "")


def cores_of(job: orm.CalcJobNode) -> int:
    """Cores a job ran on."""
    resources = job.get_option("resources") or {}
    per_machine = resources.get("num_mpiprocs_per_machine") or 1
    ranks = resources.get("tot_num_mpiprocs") or resources.get("num_machines", 1) * per_machine
    return int(ranks * (resources.get("num_cores_per_mpiproc") or 1))


def consumer_of(structure: orm.StructureData) -> orm.ProcessNode | None:
    """Latest workchain that took a structure as input."""
    consumers = structure.base.links.get_outgoing(node_class=orm.WorkChainNode, link_type=LinkType.INPUT_WORK)
    return max(consumers.all_nodes(), key=lambda node: node.pk, default=None)
