"""Joining what many steps made: filters, duplicates, and labels that are worth more than bare geometries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fingerprints import DuplicateFinder
from aiida_mlip.kernel.frames import NONE, Frames, id_keys
from aiida_mlip.kernel.generate import Filters, PlannedStep, StepSummary, summarise, unite
from aiida_mlip.kernel.generators import empty_frames
from aiida_mlip.kernel.labelling import BARE, RowStates, row_states, surviving_rows
from aiida_mlip.kernel.sanity import sift

_DUPLICATE: Final[str] = "duplicate"


@dataclass(frozen=True)
class Part:
    """Frames of one step.

    :param step: which.
    :param blocks: its frames, block by block, from the start at every call; all that it made.
    :param keep: whether they are part of the result.
    """

    step: PlannedStep
    blocks: Callable[[], Iterable[Frames]]
    keep: bool = True


class Joining:
    """Frames of several steps as one stream in the order of the steps, with what was left out and why.

    Of several labels of one frame at one fidelity the first is kept; an unlabelled frame that is labelled anywhere, in
    a kept step, is left out. Filters and the search for equal structures look at labelled rows first, so that a label
    is never dropped for a bare geometry. As in :class:`~aiida_mlip.kernel.generate.Generation`, frames that equal a
    seed are left out whether or not the seeds are part of the result, unless they bring a label.

    :param seeds: frames given from outside.
    :param parts: the steps in order.
    :param keep_seeds: put the seeds first, unfiltered.
    :param filters: what the others must pass.
    :param allow_nothing: no error when nothing is kept, e.g. because some steps have not run.
    :raises InvalidInputError: nothing is kept, in the end of the iteration.
    """

    def __init__(
        self,
        seeds: Frames | None,
        parts: Sequence[Part],
        *,
        keep_seeds: bool = False,
        filters: Filters | None = None,
        allow_nothing: bool = False,
    ) -> None:
        self._allow_nothing = allow_nothing
        self._seeds = empty_frames() if seeds is None else seeds
        self._parts = tuple(parts)
        self._keep_seeds = keep_seeds
        self._filters = filters or Filters()
        self._finder: _Structures | None = None
        self._table: list[StepSummary] = []
        self._n_seeds = 0

    @property
    def table(self) -> tuple[StepSummary, ...]:
        """What each step made, once the iteration is over."""
        return tuple(self._table)

    @property
    def n_seeds(self) -> int:
        """Seeds in the result, once the iteration is over."""
        return self._n_seeds

    def __iter__(self) -> Iterator[Frames]:
        """Kept rows, block by block."""
        self._table, self._n_seeds = [], 0
        tolerance = self._filters.duplicate_tolerance
        self._finder = None if tolerance is None else _Structures(tolerance)
        of_seeds, *masks = surviving_rows([self._seed_states(), *map(self._states, self._parts)])
        if self._keep_seeds and of_seeds.any():
            self._n_seeds = int(of_seeds.sum())
            yield self._seeds.take(of_seeds)
        n_kept = self._n_seeds
        if self._finder is not None and self._keep_seeds:
            self._finder.novel(self._seeds.take(self._seeds.fidelity != NONE))
        labelled = [self._judge_labelled(part, mask) for part, mask in zip(self._parts, masks, strict=True)]
        if self._finder is not None:
            self._finder.novel(self._seeds)
        for part, mask, (good, faults) in zip(self._parts, masks, labelled, strict=True):
            for block in self._take(part, mask, good, faults):
                n_kept += len(block)
                yield block
        if n_kept == 0 and not self._allow_nothing:
            raise InvalidInputError(
                "steps: nothing is kept: every step has keep: false, or made only frames that were known or left out"
            )

    def _seed_states(self) -> RowStates:
        if self._keep_seeds:
            return row_states(self._seeds)
        frame, key, _ = row_states(self._seeds)
        return frame, key, np.full(len(frame), BARE)

    @staticmethod
    def _states(part: Part) -> RowStates:
        columns = [row_states(block) for block in part.blocks()] if part.keep else []
        frame, key, state = (
            zip(*columns, strict=True) if columns else [(part_,) for part_ in row_states(empty_frames())]
        )
        return np.concatenate(frame), np.concatenate(key), np.concatenate(state)

    def _judge_labelled(self, part: Part, mask: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
        """(n,) rows with a label, or a failed one, that pass, and how many the filters dropped."""
        good, faults = np.zeros(len(mask), dtype=bool), Counter[str]()
        first = 0
        for block in part.blocks() if mask.any() else ():
            inside = slice(first, first + len(block))
            first += len(block)
            candidates = mask[inside] & (block.fidelity != NONE)
            if candidates.any():
                good[inside] = self._passes(block, candidates, faults)
        return good, faults

    def _take(self, part: Part, mask: np.ndarray, good: np.ndarray, faults: Counter[str]) -> Iterator[Frames]:
        """Kept rows of a step; adds its summary to the table."""
        summaries = [summarise(part.step, empty_frames(), 0, 0, faults)]
        first = 0
        for block in part.blocks():
            inside = slice(first, first + len(block))
            first += len(block)
            if not part.keep:
                summaries.append(summarise(part.step, block, 0, 0, {}))
                continue
            dropped = Counter[str]()
            keep = good[inside] | self._passes(block, mask[inside] & (block.fidelity == NONE), dropped)
            summaries.append(summarise(part.step, block, int(keep.sum()), int((~mask[inside]).sum()), dict(dropped)))
            if keep.any():
                yield block.take(keep)
        self._table.append(unite(summaries))

    def _passes(self, block: Frames, candidates: np.ndarray, faults: Counter[str]) -> np.ndarray:
        """(n,) which candidates of a block pass the filters; counts the others."""
        keep = candidates.copy()
        rows = np.flatnonzero(candidates)
        if self._filters.sanity is not None and len(rows):
            _, dropped = sift(block.take(rows), self._filters.sanity)
            keep[rows[[entry.row for entry in dropped]]] = False
            faults.update(Counter[str](entry.reason for entry in dropped))
            rows = np.flatnonzero(keep)
        if self._finder is not None and len(rows):
            novel = self._finder.novel(block.take(rows))
            keep[rows[~novel]] = False
            if not novel.all():
                faults[_DUPLICATE] += int((~novel).sum())
        return keep


class _Structures:
    """Which frames are structures not seen before; further labels of a frame share its verdict."""

    def __init__(self, tolerance: float) -> None:
        self._finder = DuplicateFinder(tolerance=tolerance)
        self._rows = 0
        self._verdicts: dict[object, bool] = {}

    def novel(self, frames: Frames) -> np.ndarray:
        """(n,) whether each row is a new structure, or another label of a frame that was."""
        keys = id_keys(frames.frame_id).tolist()
        unseen = np.array([row for row, key in enumerate(keys) if key not in self._verdicts], dtype=int)
        _, where = np.unique(id_keys(frames.frame_id)[unseen], return_index=True)
        fresh = unseen[np.sort(where)]
        first = self._finder.add(frames.take(fresh))
        for row, found, number in zip(fresh, first, self._rows + np.arange(len(fresh)), strict=True):
            self._verdicts[keys[row]] = bool(found == number)
        self._rows += len(fresh)
        return np.array([self._verdicts[key] for key in keys], dtype=bool)
