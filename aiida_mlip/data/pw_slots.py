"""How the frames of a bundle share the cores of its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiida import orm

from aiida_mlip.errors import InvalidInputError


@dataclass(frozen=True)
class Slots:
    """Shares of a job.

    :param side_by_side: frames that run at once.
    :param with_mpi: whether pw.x is started by the launcher of the computer.
    :param cores: that each frame runs on.
    :param launcher: what the placeholders of the launcher stand for, for one frame.
    """

    side_by_side: int
    with_mpi: bool
    cores: float
    launcher: Mapping[str, Any]


def slots_of(node: orm.CalcJobNode, n_frames: int) -> Slots:
    """How a job of a bundle is shared, from its options and its code.

    :param node: the job, with its inputs.
    :param n_frames: frames in the bundle.
    :raises InvalidInputError: more frames at once than the job has processes or cores, or frames without MPI on
        several machines.
    """
    resources = dict(node.get_option("resources") or {})
    scheduler = node.computer.get_scheduler()
    scheduler.preprocess_resources(resources, node.computer.get_default_mpiprocs_per_machine())
    job = scheduler.create_job_resource(**resources)
    processes = int(job.get_tot_num_mpiprocs())
    threads = int(getattr(job, "num_cores_per_mpiproc", None) or 1)
    machines = int(getattr(job, "num_machines", None) or 1)
    code = node.inputs.code.with_mpi
    with_mpi = bool(node.get_option("withmpi") if code is None else code)
    wanted = node.get_option("side_by_side")
    if not with_mpi and machines > 1:
        raise InvalidInputError(f"resources: {machines} machines, but without MPI all frames run on the first of them")
    most = processes if with_mpi else processes * threads
    if wanted is not None and wanted > most:
        raise InvalidInputError(f"side_by_side: {wanted} frames at once, but the job has room for {most}")
    at_once = min(wanted or (1 if with_mpi else processes), n_frames)
    if not with_mpi:
        return Slots(at_once, with_mpi=False, cores=max(1, processes * threads // (wanted or processes)), launcher={})
    ranks = processes // at_once
    per_machine = min(int(getattr(job, "num_mpiprocs_per_machine", None) or ranks), ranks)
    own = {
        "tot_num_mpiprocs": ranks,
        "num_machines": -(-ranks // per_machine),
        "num_mpiprocs_per_machine": per_machine,
    }
    return Slots(at_once, with_mpi=True, cores=ranks * threads, launcher=dict(job) | own)
