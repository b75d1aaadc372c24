"""Run a list of generator steps: each takes its parents from the seeds or from earlier steps.

Frames come in blocks, so that a specification of any size needs the memory of a block, of the frames that later steps
start from (up to :data:`CACHE_ROWS` a step; more are made again when they are needed), and of what tells duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.fingerprints import DuplicateFinder
from aiida_mlip.kernel.frames import Frames, concatenate, digest, id_keys
from aiida_mlip.kernel.generators import GENERATORS, empty_frames
from aiida_mlip.kernel.sanity import SanityLimits, count_reasons, sift

#: Name under which steps refer to the frames given from outside.
SEEDS: Final[str] = "seeds"
#: More frames than this in one specification is taken for a slip of the keyboard.
MAX_FRAMES: Final[int] = 2_000_000
#: Frames made at a time; a multiple of small numbers, so that lists of compositions come around whole.
BLOCK_ROWS: Final[int] = 5040
#: Frames of a step that are kept for the steps that start from them.
CACHE_ROWS: Final[int] = 20_000
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
class Filters:
    """What kept frames must pass; steps start from all frames of their parents, kept or not.

    :param sanity: pair distances, volumes and forces; None: not looked at.
    :param duplicate_tolerance: leave out frames whose structure (see :mod:`~aiida_mlip.kernel.fingerprints`) is there
        already, within this distance of fingerprints; None: leave out identical frames only.
    """

    sanity: SanityLimits | None = None
    duplicate_tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.duplicate_tolerance is not None and not 0.0 <= self.duplicate_tolerance < np.inf:
            raise InvalidInputError(f"duplicate_tolerance: must not be negative, got {self.duplicate_tolerance}")


@dataclass(frozen=True)
class StepSummary:
    """What one step made.

    :param frames: frames kept in the result; 0 for a step with ``keep: false``.
    :param made: frames made.
    :param duplicates: frames left out because an equal one was there already.
    :param natoms: smallest and largest number of atoms.
    :param volume_ang3_per_atom: smallest and largest volume; None without three periodic directions.
    :param smallest_distance_ang: smallest distance between two atoms; None when all are beyond 6 Å.
    :param dropped: frames left out by each filter that left out any (see :data:`~aiida_mlip.kernel.sanity.REASONS`).
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
    dropped: dict[str, int] = field(default_factory=dict)


def generate(
    seeds: Frames | None,
    steps: Sequence[Step],
    *,
    seed: int,
    keep_seeds: bool = False,
    filters: Filters | None = None,
) -> tuple[Frames, tuple[StepSummary, ...]]:
    """Frames of all kept steps in order, equal frames once, and what each step made: a :class:`Generation` at once.

    :raises InvalidInputError: as :class:`Generation`.
    """
    run = Generation(seeds, steps, seed=seed, keep_seeds=keep_seeds, filters=filters)
    return concatenate(list(run)), run.table


class Generation:
    """A specification as an iterator over blocks of kept frames, in the order of the steps, equal frames once.

    Random numbers of a step depend on ``seed``, the step's name and its own seed only: a step that is added, dropped or
    moved leaves the others' frames as they were (unless they are its parents).

    :param seeds: frames given from outside; their labels and lineage are kept when they are part of the result.
    :param keep_seeds: put the seeds first in the result, unfiltered.
    :param filters: what kept frames must pass; None: identical frames once.
    :raises InvalidInputError: unusable steps (see :func:`check_steps`), at once; limits that cannot be kept, or nothing
        kept in the end, while iterating.
    """

    def __init__(
        self,
        seeds: Frames | None,
        steps: Sequence[Step],
        *,
        seed: int,
        keep_seeds: bool = False,
        filters: Filters | None = None,
    ) -> None:
        self._seeds = empty_frames() if seeds is None else seeds
        self._steps = {step.name: step for step in steps}
        self._counts = check_steps(steps, n_seeds=len(self._seeds))
        self._seed = seed
        self._keep_seeds = keep_seeds
        self._filters = filters or Filters()
        self._cache: dict[str, list[Frames]] = {}
        self._table: list[StepSummary] = []

    @property
    def table(self) -> tuple[StepSummary, ...]:
        """What each step made, once the iteration is over."""
        return tuple(self._table)

    def __iter__(self) -> Iterator[Frames]:
        """Kept frames, block by block; each iteration makes them anew, and the same ones."""
        self._cache, self._table = {}, []
        keeper = _Keeper(self._seeds, self._filters)
        n_kept = 0
        if self._keep_seeds and len(self._seeds):
            n_kept += len(self._seeds)
            yield self._seeds
        for step in self._steps.values():
            summaries = []
            for block in self._blocks(step):
                kept, duplicates, dropped = keeper.keep(block) if step.keep else (block.take([]), 0, {})
                summaries.append(_summarise(step, block, len(kept), duplicates, dropped))
                if len(kept):
                    n_kept += len(kept)
                    yield kept
            self._table.append(_unite(summaries))
        if n_kept == 0:
            raise InvalidInputError(
                "steps: nothing is kept: every step has keep: false, or made only frames that were known or left out"
            )

    def _blocks(self, step: Step) -> Iterator[Frames]:
        """All frames of a step, block by block: from memory, or made."""
        if step.name in self._cache:
            yield from self._cache[step.name]
            return
        small = self._counts[step.name] <= CACHE_ROWS
        made = []
        for number, (parents, parameters) in enumerate(self._work(step)):
            try:
                frames = GENERATORS[step.generator](parents, parameters, _rng(self._seed, step, number))
            except InvalidInputError as error:
                raise InvalidInputError(f"steps.{step.name}: {error}") from error
            if small:
                made.append(frames)
            yield frames
        if small:
            self._cache[step.name] = made

    def _work(self, step: Step) -> Iterator[tuple[Frames, Any]]:
        """Parents and parameters of each block of a step."""
        parameters = step.parameters
        if not GENERATORS[step.generator].needs_parents:
            for part in _portions(parameters, "count"):
                yield empty_frames(), part
            return
        per_parent = max(parameters.per_parent, 1)
        for parents in self._parents(step):
            rows = max(BLOCK_ROWS // per_parent, 1)
            for start in range(0, len(parents), rows):
                chunk = parents.take(np.arange(start, min(start + rows, len(parents))))
                for part in _portions(parameters, "per_parent") if per_parent > BLOCK_ROWS else (parameters,):
                    yield chunk, part

    def _parents(self, step: Step) -> Iterator[Frames]:
        for name in step.parents:
            yield from (self._seeds,) if name == SEEDS else self._blocks(self._steps[name])


class _Keeper:
    """Decides which frames are kept; remembers the ids (and fingerprints) of those that were."""

    def __init__(self, seeds: Frames, filters: Filters) -> None:
        self._seen = set(id_keys(seeds.frame_id).tolist())
        self._sanity = filters.sanity
        self._finder: DuplicateFinder | None = None
        self._rows = len(seeds)
        if filters.duplicate_tolerance is not None:
            self._finder = DuplicateFinder(tolerance=filters.duplicate_tolerance)
            self._finder.add(seeds)

    def keep(self, frames: Frames) -> tuple[Frames, int, dict[str, int]]:
        """Frames that are kept, how many were known (identical), and how many each filter dropped."""
        new = np.zeros(len(frames), dtype=bool)
        for row, key in enumerate(id_keys(frames.frame_id).tolist()):
            new[row] = key not in self._seen
            self._seen.add(key)
        kept, dropped = frames.take(new), Counter[str]()
        if self._sanity is not None:
            kept, faults = sift(kept, self._sanity)
            dropped.update({reason: n for reason, n in count_reasons(faults).items() if n})
        if self._finder is not None and len(kept):
            first = self._finder.add(kept)
            novel = first == self._rows + np.arange(len(kept))
            self._rows += len(kept)
            if not novel.all():
                dropped["duplicate"] += int((~novel).sum())
            kept = kept.take(novel)
        return kept, int((~new).sum()), dict(dropped)


def _portions(parameters: Any, name: str) -> Iterator[Any]:
    """The parameters with ``name`` (a field of theirs) cut into blocks; unchanged when it is derived or small."""
    total = getattr(parameters, name)
    if total <= BLOCK_ROWS or name not in {entry.name for entry in fields(parameters)}:
        yield parameters
        return
    for start in range(0, total, BLOCK_ROWS):
        yield replace(parameters, **{name: min(BLOCK_ROWS, total - start)})


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


def _rng(seed: int, step: Step, block: int) -> np.random.Generator:
    if seed < 0 or step.seed < 0:
        raise InvalidInputError(f"steps.{step.name}: a seed must not be negative, got {seed} and {step.seed}")
    name = int.from_bytes(digest(step.name).tobytes(), "little")
    return np.random.default_rng(np.random.SeedSequence([seed, step.seed, name, *([block] if block else [])]))


def _summarise(step: Step, frames: Frames, n_kept: int, duplicates: int, dropped: dict[str, int]) -> StepSummary:
    distance = float(smallest_distances(frames, cutoff=_REACH_ANG).min())
    periodic = frames.pbc.all(axis=1)
    volumes = np.abs(np.linalg.det(frames.cell[periodic])) / frames.natoms[periodic]
    return StepSummary(
        name=step.name,
        generator=step.generator,
        parents=step.parents if GENERATORS[step.generator].needs_parents else (),
        frames=n_kept,
        made=len(frames),
        duplicates=duplicates,
        natoms=(int(frames.natoms.min()), int(frames.natoms.max())),
        volume_ang3_per_atom=(float(volumes.min()), float(volumes.max())) if len(volumes) else None,
        smallest_distance_ang=distance if np.isfinite(distance) else None,
        dropped=dropped,
    )


def _unite(parts: Sequence[StepSummary]) -> StepSummary:
    """Summary of a step from those of its blocks."""
    volumes = [part.volume_ang3_per_atom for part in parts if part.volume_ang3_per_atom is not None]
    distances = [part.smallest_distance_ang for part in parts if part.smallest_distance_ang is not None]
    dropped: Counter[str] = sum((Counter(part.dropped) for part in parts), Counter())
    return replace(
        parts[0],
        frames=sum(part.frames for part in parts),
        made=sum(part.made for part in parts),
        duplicates=sum(part.duplicates for part in parts),
        natoms=(min(part.natoms[0] for part in parts), max(part.natoms[1] for part in parts)),
        volume_ang3_per_atom=(min(v[0] for v in volumes), max(v[1] for v in volumes)) if volumes else None,
        smallest_distance_ang=min(distances) if distances else None,
        dropped=dict(dropped),
    )
