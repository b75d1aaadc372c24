"""Generate frames: the calcfunction around :class:`aiida_mlip.kernel.generate.Generation`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.coverage import coverage, reference_space
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase, id_bytes
from aiida_mlip.kernel.generate import Generation, StepSummary
from aiida_mlip.protocols.generate import kernel_steps, parse_filters, parse_generate


@calcfunction
def generate(
    spec: orm.Dict,
    seed: orm.Int,
    structures: DatasetData | None = None,
    reference: DatasetData | None = None,
    **cells: orm.StructureData,
) -> dict[str, orm.Data] | ExitCode:
    """Make frames from a specification (see :mod:`aiida_mlip.protocols.generate`), block by block.

    :param spec: ``steps`` (of generators only), ``keep_seeds`` and ``filters``.
    :param seed: of all random numbers.
    :param structures: seed frames.
    :param reference: the summary says which part of this dataset's environments the frames reach.
    :param cells: further seeds, one structure each; they follow those of ``structures``, by name.
    :returns: ``dataset`` and ``summary``, or exit code 310 with the reason.
    """
    try:
        steps, keep_seeds = parse_generate(spec.get_dict())
        seeds = seed_frames(structures, cells)
        n_seeds = len(seeds) if keep_seeds and seeds is not None else 0
        filters = parse_filters(spec.get_dict())
        run = Generation(seeds, kernel_steps(steps), seed=seed.value, keep_seeds=keep_seeds, filters=filters)
        dataset = DatasetData.from_blocks(
            _stamped(run, n_seeds), settings=structures.settings if structures is not None else None
        )
    except InvalidInputError as error:
        return ExitCode(310, f"frames could not be generated: {error}")
    summary = summary_dict(run.table, n_seeds=n_seeds)
    for step in summary["steps"]:
        step["process"] = Process.current().node.uuid
    if reference is not None:
        reached = coverage(dataset.iter_shards(), reference_space(reference.iter_shards))
        summary["coverage"] = asdict(reached)
    return {"dataset": dataset, "summary": orm.Dict(summary)}


def _stamped(blocks: Iterable[Frames], n_seeds: int) -> Iterator[Frames]:
    """Blocks whose frames, but for the seeds in front, say that this process made them."""
    made = id_bytes([Process.current().node.uuid])
    first = 0
    for block in blocks:
        uuids = block.geometry_uuid.copy()
        uuids[max(n_seeds - first, 0) :] = made
        first += len(block)
        yield block.with_columns(geometry_uuid=uuids)


def seed_frames(structures: DatasetData | None, cells: Mapping[str, orm.StructureData]) -> Frames | None:
    """Seeds of both kinds as frames; None when there are none."""
    parts = [] if structures is None else [structures.frames()]
    if cells:
        parts.append(from_ase([cells[name].get_ase() for name in sorted(cells)]))
    return concatenate(parts) if parts else None


def summary_dict(table: tuple[StepSummary, ...], *, n_seeds: int) -> dict[str, Any]:
    """Plain JSON of what each step made; ``n_frames`` counts the kept seeds, too."""
    steps = [{key: plain(value) for key, value in asdict(step).items()} for step in table]
    return {"steps": steps, "n_seeds": n_seeds, "n_frames": n_seeds + sum(step.frames for step in table)}


def plain(value: Any) -> Any:
    """A value of a summary as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
