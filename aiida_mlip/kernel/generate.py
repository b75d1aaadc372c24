"""Run a list of generator steps: each takes its parents from the seeds or from earlier steps.

Frames come in blocks, so that a specification of any size needs the memory of a block, of the frames that later steps
start from (up to :data:`CACHE_ROWS` a step; more are made again when they are needed), and of what tells duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Final, Protocol

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


class PlannedStep(Protocol):
    """What is known of any step before it runs, whoever makes its frames: a generator here or a program elsewhere."""

    @property
    def name(self) -> str:
        """What later steps call its frames."""

    @property
    def generator(self) -> str:
        """Word of the specification."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of earlier steps, or ``"seeds"``."""

    @property
    def n_parents(self) -> int | None:
        """Most frames taken from the parents; None: all."""

    @property
    def needs_parents(self) -> bool:
        """Whether it starts from existing frames."""

    def expected(self, n_parents: int) -> int:
        """Frames it makes, or may make at most, from so many parents."""


@dataclass(frozen=True)
class Step:
    """One step of a specification that a generator makes.

    :param name: what later steps call its frames.
    :param generator: key of :data:`~aiida_mlip.kernel.generators.GENERATORS`.
    :param parameters: its parameter dataclass.
    :param parents: names of earlier steps, or ``"seeds"``; not used by generators that take no parents.
    :param keep: whether its frames are in the result, or only parents of others.
    :param seed: changes this step's random numbers only.
    :param n_parents: start from so many frames of the parents, drawn by seed, at most; None: from all.
    """

    name: str
    generator: str
    parameters: Any
    parents: tuple[str, ...] = (SEEDS,)
    keep: bool = True
    seed: int = 0
    n_parents: int | None = None

    @property
    def needs_parents(self) -> bool:
        """Whether it changes existing frames."""
        return self.generator in GENERATORS and GENERATORS[self.generator].needs_parents

    def expected(self, n_parents: int) -> int:
        """Frames it makes of so many parents."""
        return int(n_parents * self.parameters.per_parent if self.needs_parents else self.parameters.count)


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
    :param natoms: smallest and largest number of atoms; None when no frame was made.
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
    natoms: tuple[int, int] | None
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
    :param sources: frames of earlier steps that were made elsewhere, by name; only parents here.
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
        sources: Mapping[str, Frames] | None = None,
    ) -> None:
        self._seeds = empty_frames() if seeds is None else seeds
        self._sources = dict(sources or {})
        self._steps = {step.name: step for step in steps}
        given = {name: len(frames) for name, frames in self._sources.items()}
        self._counts = {SEEDS: len(self._seeds), **given, **check_steps(steps, n_seeds=len(self._seeds), given=given)}
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
                summaries.append(summarise(step, block, len(kept), duplicates, dropped))
                if len(kept):
                    n_kept += len(kept)
                    yield kept
            self._table.append(unite(summaries))
        if n_kept == 0:
            raise InvalidInputError(
                "steps: nothing is kept: every step has keep: false, or made only frames that were known or left out"
            )

    def frames_of(self, name: str) -> Iterator[Frames]:
        """All frames that a step makes, kept or not, block by block.

        :raises InvalidInputError: limits that cannot be kept, by the step or by one that it starts from.
        """
        return self._blocks(self._steps[name])

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
        blocks = chain.from_iterable(self._pool(name) for name in step.parents)
        total = sum(self._counts[name] for name in step.parents)
        if step.n_parents is None or step.n_parents >= total:
            yield from blocks
            return
        chosen = chosen_parents(total, step.n_parents, name=step.name, seed=self._seed, step_seed=step.seed)
        first = 0
        for block in blocks:
            inside = chosen[(chosen >= first) & (chosen < first + len(block))] - first
            first += len(block)
            if len(inside):
                yield block.take(inside)

    def _pool(self, name: str) -> Iterator[Frames]:
        if name in self._steps:
            return self._blocks(self._steps[name])
        return iter((self._seeds if name == SEEDS else self._sources[name],))


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


def check_steps(
    steps: Sequence[PlannedStep], *, n_seeds: int, given: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Frames each step will make (of a step that a program makes: may make at most), before anything is computed.

    :param n_seeds: frames given from outside.
    :param given: number of frames of earlier steps that exist already, by name.
    :raises InvalidInputError: no steps, unknown generator, parents that are missing or come later, a name used twice,
        seeds that are needed but not given, or more than :data:`MAX_FRAMES` frames.
    """
    if not steps:
        raise InvalidInputError("steps: there are none")
    counts = {SEEDS: n_seeds, **(given or {})}
    for index, step in enumerate(steps):
        where = f"steps[{index}]"
        if isinstance(step, Step) and step.generator not in GENERATORS:
            raise InvalidInputError(
                f"{where}.generator: unknown generator {step.generator!r}; there are {sorted(GENERATORS)}"
            )
        if step.name in counts:
            raise InvalidInputError(f"{where}.name: the name {step.name!r} is used twice")
        n_parents = 0
        if step.needs_parents:
            if missing := [name for name in step.parents if name not in counts]:
                raise InvalidInputError(f"{where}.parents: {missing} is no earlier step; there are {sorted(counts)}")
            n_parents = sum(counts[name] for name in step.parents)
            if n_parents == 0:
                raise InvalidInputError(f"{where}.parents: {list(step.parents)} has no frames: give seed structures")
            n_parents = min(n_parents, step.n_parents or n_parents)
        counts[step.name] = step.expected(n_parents)
    made = {step.name: counts[step.name] for step in steps}
    if (total := n_seeds + sum(made.values())) > MAX_FRAMES:
        raise InvalidInputError(f"steps: {total} frames asked for; the most allowed is {MAX_FRAMES}")
    return made


def chosen_parents(total: int, count: int, *, name: str, seed: int, step_seed: int) -> np.ndarray:
    """(min(count, total),) rows that a step starts from, drawn without repeats from ``total``, in order.

    :param name: of the step: like its other random numbers, they depend on it and on both seeds only.
    """
    word = int.from_bytes(digest(name, "parents").tobytes(), "little")
    rng = np.random.default_rng(np.random.SeedSequence([seed, step_seed, word]))
    return np.sort(rng.choice(total, size=min(count, total), replace=False))


def _rng(seed: int, step: Step, block: int) -> np.random.Generator:
    if seed < 0 or step.seed < 0:
        raise InvalidInputError(f"steps.{step.name}: a seed must not be negative, got {seed} and {step.seed}")
    name = int.from_bytes(digest(step.name).tobytes(), "little")
    return np.random.default_rng(np.random.SeedSequence([seed, step.seed, name, *([block] if block else [])]))


def summarise(
    step: PlannedStep, frames: Frames, n_kept: int, duplicates: int, dropped: Mapping[str, int]
) -> StepSummary:
    """Summary of frames that a step made, of which ``n_kept`` are kept."""
    size: tuple[int, int] | None = None
    distance, volumes = np.inf, np.zeros(0)
    if len(frames):
        size = (int(frames.natoms.min()), int(frames.natoms.max()))
        distance = float(smallest_distances(frames, cutoff=_REACH_ANG).min())
        periodic = frames.pbc.all(axis=1)
        volumes = np.abs(np.linalg.det(frames.cell[periodic])) / frames.natoms[periodic]
    return StepSummary(
        name=step.name,
        generator=step.generator,
        parents=step.parents if step.needs_parents else (),
        frames=n_kept,
        made=len(frames),
        duplicates=duplicates,
        natoms=size,
        volume_ang3_per_atom=(float(volumes.min()), float(volumes.max())) if len(volumes) else None,
        smallest_distance_ang=distance if np.isfinite(distance) else None,
        dropped=dict(dropped),
    )


def unite(parts: Sequence[StepSummary]) -> StepSummary:
    """Summary of a step from those of its blocks."""
    sizes = [part.natoms for part in parts if part.natoms is not None]
    volumes = [part.volume_ang3_per_atom for part in parts if part.volume_ang3_per_atom is not None]
    distances = [part.smallest_distance_ang for part in parts if part.smallest_distance_ang is not None]
    dropped: Counter[str] = sum((Counter(part.dropped) for part in parts), Counter())
    return replace(
        parts[0],
        frames=sum(part.frames for part in parts),
        made=sum(part.made for part in parts),
        duplicates=sum(part.duplicates for part in parts),
        natoms=(min(low for low, _ in sizes), max(high for _, high in sizes)) if sizes else None,
        volume_ang3_per_atom=(min(v[0] for v in volumes), max(v[1] for v in volumes)) if volumes else None,
        smallest_distance_ang=min(distances) if distances else None,
        dropped=dict(dropped),
    )
