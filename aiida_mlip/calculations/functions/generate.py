"""Generate frames: the calcfunction around :func:`aiida_mlip.kernel.generate.generate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase, id_bytes
from aiida_mlip.kernel.generate import StepSummary
from aiida_mlip.kernel.generate import generate as generate_frames
from aiida_mlip.protocols.generate import parse_generate


@calcfunction
def generate(
    spec: orm.Dict,
    seed: orm.Int,
    structures: DatasetData | None = None,
    **cells: orm.StructureData,
) -> dict[str, orm.Data] | ExitCode:
    """Make frames from a specification (see :mod:`aiida_mlip.protocols.generate`).

    :param spec: ``steps`` and ``keep_seeds``.
    :param seed: of all random numbers.
    :param structures: seed frames.
    :param cells: further seeds, one structure each; they follow those of ``structures``, by name.
    :returns: ``dataset`` and ``summary``, or exit code 310 with the reason.
    """
    try:
        steps, keep_seeds = parse_generate(spec.get_dict())
        seeds = seed_frames(structures, cells)
        frames, table = generate_frames(seeds, steps, seed=seed.value, keep_seeds=keep_seeds)
    except InvalidInputError as error:
        return ExitCode(310, f"frames could not be generated: {error}")
    n_seeds = len(seeds) if keep_seeds and seeds is not None else 0
    uuids = frames.geometry_uuid.copy()
    uuids[n_seeds:] = id_bytes([Process.current().node.uuid])
    dataset = DatasetData.from_frames(
        frames.with_columns(geometry_uuid=uuids), settings=structures.settings if structures is not None else None
    )
    return {"dataset": dataset, "summary": orm.Dict(summary_dict(table, n_seeds=n_seeds))}


def seed_frames(structures: DatasetData | None, cells: Mapping[str, orm.StructureData]) -> Frames | None:
    """Seeds of both kinds as frames; None when there are none."""
    parts = [] if structures is None else [structures.frames()]
    if cells:
        parts.append(from_ase([cells[name].get_ase() for name in sorted(cells)]))
    return concatenate(parts) if parts else None


def summary_dict(table: tuple[StepSummary, ...], *, n_seeds: int) -> dict[str, Any]:
    """Plain JSON of what each step made; ``n_frames`` counts the kept seeds, too."""
    steps = [{key: _plain(value) for key, value in asdict(step).items()} for step in table]
    return {"steps": steps, "n_seeds": n_seeds, "n_frames": n_seeds + sum(step.frames for step in table)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
