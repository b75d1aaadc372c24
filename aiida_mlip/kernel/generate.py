"""Run a list of generator steps: each takes its parents from the seeds or from earlier steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, concatenate, digest, id_keys
from aiida_mlip.kernel.generators import GENERATORS, empty_frames

#: Name under which steps refer to the frames given from outside.
SEEDS: Final[str] = "seeds"
#: More frames than this in one specification is taken for a slip of the keyboard.
MAX_FRAMES: Final[int] = 2_000_000
_REACH_ANG: Final[float] = 6.0


@dataclass(frozen=True)
class Step:
    """One step of a specification.

    :param name: what later steps call its frames.
    :param generator: key of :data:`~aiida_mlip.kernel.generators.GENERATORS`.
    :param parameters: its parameter dataclass.
    :param parents: names of earlier steps, or ``"seeds"``; not used by generators that take no parents.
    :param keep: whether its frames are in the result, or only parents of others.
    :param seed: changes this step's random numbers only.
    """

    name: str
    generator: str
    parameters: Any
    parents: tuple[str, ...] = (SEEDS,)
    keep: bool = True
    seed: int = 0


@dataclass(frozen=True)
class StepSummary:
    """What one step made.

    :param frames: frames kept in the result; 0 for a step with ``keep: false``.
    :param made: frames made.
    :param duplicates: frames left out because an equal one was there already.
    :param natoms: smallest and largest number of atoms.
    :param volume_ang3_per_atom: smallest and largest volume; None without three periodic directions.
    :param smallest_distance_ang: smallest distance between two atoms; None when all are beyond 6 Å.
    """

    name: str
    generator: str
    parents: tuple[str, ...]
    frames: int
    made: int
    duplicates: int
    natoms: tuple[int, int]
    volume_ang3_per_atom: tuple[float, float] | None
    smallest_distance_ang: float | None


def generate(
    seeds: Frames | None, steps: Sequence[Step], *, seed: int, keep_seeds: bool = False
) -> tuple[Frames, tuple[StepSummary, ...]]:
    """Frames of all kept steps in order, equal frames once, and what each step made.

    Random numbers of a step depend on ``seed``, the step's name and its own seed only: a step that is added, dropped or
    moved leaves the others' frames as they were (unless they are its parents).

    :param seeds: frames given from outside; their labels and lineage are kept when they are part of the result.
    :param keep_seeds: put the seeds first in the result.
    :raises InvalidInputError: unusable steps (see :func:`check_steps`), or limits that cannot be kept.
    """
    check_steps(steps, n_seeds=0 if seeds is None else len(seeds))
    made: dict[str, Frames] = {SEEDS: empty_frames() if seeds is None else seeds}
    kept: list[Frames] = [made[SEEDS]] if keep_seeds and len(made[SEEDS]) else []
    seen = [id_keys(made[SEEDS].frame_id)]
    table = []
    for step in steps:
        generator = GENERATORS[step.generator]
        parents = concatenate([made[name] for name in step.parents]) if generator.needs_parents else empty_frames()
        try:
            frames = generator(parents, step.parameters, _rng(seed, step))
        except InvalidInputError as error:
            raise InvalidInputError(f"steps.{step.name}: {error}") from error
        made[step.name] = frames
        new = _first_seen(frames, seen) if step.keep else np.zeros(len(frames), dtype=bool)
        if new.any():
            kept.append(frames.take(new))
            seen.append(id_keys(kept[-1].frame_id))
        table.append(_summarise(step, frames, new))
    if not kept:
        raise InvalidInputError("steps: nothing is kept, every step has keep: false or made only known frames")
    return concatenate(kept), tuple(table)


def check_steps(steps: Sequence[Step], *, n_seeds: int) -> dict[str, int]:
    """Frames each step will make, before anything is computed.

    :raises InvalidInputError: no steps, unknown generator, parents that are missing or come later, a name used twice,
        seeds that are needed but not given, or more than :data:`MAX_FRAMES` frames.
    """
    if not steps:
        raise InvalidInputError("steps: there are none")
    counts = {SEEDS: n_seeds}
    for step in steps:
        where = f"steps.{step.name}"
        if step.generator not in GENERATORS:
            raise InvalidInputError(f"{where}: unknown generator {step.generator!r}; there are {sorted(GENERATORS)}")
        if step.name in counts:
            raise InvalidInputError(f"{where}: the name is used twice")
        if GENERATORS[step.generator].needs_parents:
            if missing := [name for name in step.parents if name not in counts]:
                raise InvalidInputError(f"{where}.parents: {missing} is no earlier step; there are {sorted(counts)}")
            n_parents = sum(counts[name] for name in step.parents)
            if n_parents == 0:
                raise InvalidInputError(f"{where}.parents: {list(step.parents)} has no frames: give seed structures")
            counts[step.name] = n_parents * step.parameters.per_parent
        else:
            counts[step.name] = step.parameters.count
    if sum(counts.values()) > MAX_FRAMES:
        raise InvalidInputError(f"steps: {sum(counts.values())} frames asked for; the most allowed is {MAX_FRAMES}")
    return {name: count for name, count in counts.items() if name != SEEDS}


def _rng(seed: int, step: Step) -> np.random.Generator:
    if seed < 0 or step.seed < 0:
        raise InvalidInputError(f"steps.{step.name}: a seed must not be negative, got {seed} and {step.seed}")
    name = int.from_bytes(digest(step.name).tobytes(), "little")
    return np.random.default_rng(np.random.SeedSequence([seed, step.seed, name]))


def _first_seen(frames: Frames, seen: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) rows whose frame is not among the earlier ones, nor earlier among themselves."""
    keys = id_keys(frames.frame_id)
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first & ~np.isin(keys, np.concatenate(seen))


def _summarise(step: Step, frames: Frames, new: np.ndarray) -> StepSummary:
    distance = float(smallest_distances(frames, cutoff=_REACH_ANG).min())
    periodic = frames.pbc.all(axis=1)
    volumes = np.abs(np.linalg.det(frames.cell[periodic])) / frames.natoms[periodic]
    return StepSummary(
        name=step.name,
        generator=step.generator,
        parents=step.parents if GENERATORS[step.generator].needs_parents else (),
        frames=int(new.sum()),
        made=len(frames),
        duplicates=int((~new).sum()) if step.keep else 0,
        natoms=(int(frames.natoms.min()), int(frames.natoms.max())),
        volume_ang3_per_atom=(float(volumes.min()), float(volumes.max())) if len(volumes) else None,
        smallest_distance_ang=distance if np.isfinite(distance) else None,
    )
