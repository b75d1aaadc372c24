"""Select frames to label: sanity, duplicates, then the batch that teaches most within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.descriptors import atomic_descriptors
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.frames import Frames, id_keys
from aiida_mlip.kernel.metadynamics.whitening import Whitening
from aiida_mlip.kernel.sanity import SanityLimits, count_reasons, sift
from aiida_mlip.kernel.selection.clusters import largest_cluster
from aiida_mlip.kernel.selection.costs import CostModel
from aiida_mlip.kernel.selection.duplicates import DEFAULT_EDGE, duplicates, pool_whitening
from aiida_mlip.kernel.selection.greedy import farthest_points, greedy_maxdet, selection_of
from aiida_mlip.kernel.selection.maxvol import maxvol
from aiida_mlip.kernel.selection.pool import Budget, Candidates, Projected, Selection, Subset, blocks

Method: TypeAlias = Literal["maxdet", "farthest", "largest_cluster", "maxvol", "random"]

#: An environment counts at most this many times the error threshold.
WEIGHT_CAP: Final[float] = 3.0
#: Environments of the reference that distances are measured to.
_MAX_KNOWN: Final[int] = 500


@dataclass(frozen=True)
class SelectSettings:
    """How to select.

    :param method: ``maxdet`` (what a linear readout knows least about), ``farthest`` (farthest points),
        ``largest_cluster`` (LCMD), ``maxvol`` (rows of maximal volume), ``random`` (the baseline).
    :param max_frames: most frames to choose.
    :param core_hours: most core-hours to spend; None: no limit.
    :param sanity: frames that break these limits are dropped.
    :param duplicate_edge: see :func:`~aiida_mlip.kernel.selection.duplicates.duplicates`; None: only identical frames.
    :param error_threshold: eV/Å at which an environment has weight 1; None: the median of the errors.
    :param cost: of a label; None: one core-hour each.
    :param seed: of ``random``.
    """

    method: Method = "maxdet"
    max_frames: int = 50
    core_hours: float | None = None
    sanity: SanityLimits = field(default_factory=SanityLimits)
    duplicate_edge: float | None = DEFAULT_EDGE
    error_threshold: float | None = None
    cost: CostModel | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        Budget(self.max_frames, np.inf if self.core_hours is None else self.core_hours)
        if self.error_threshold is not None and not self.error_threshold > 0:
            raise InvalidInputError(f"error_threshold: must be positive, got {self.error_threshold}")


@dataclass(frozen=True)
class Known:
    """What is labelled already.

    :param frames: labelled frames; those among the candidates are duplicates.
    :param precision: (d, d) of the features of the training set, see
        :func:`~aiida_mlip.kernel.selection.greedy.known_precision`.
    :param environments: (r, d) features of environments of the training set, for methods that measure distances.
    """

    frames: Frames | None = None
    precision: Float[np.ndarray, "d d"] | None = None
    environments: Float[np.ndarray, "r d"] | None = None


@dataclass(frozen=True)
class Choice:
    """Frames that were selected, and why the others were not.

    :param rows: (k,) rows of the candidates, in order of choice.
    :param atoms: (k,) the atom of that frame that decided.
    :param scores: (k,) as the method defines them.
    :param core_hours: (k,) forecast for each.
    :param reasons: how many frames were left out for what; with ``not_chosen`` for those beyond the budget.
    :param details: what the sanity filters found, one sentence per frame they dropped.
    """

    rows: Int[np.ndarray, "k"]
    atoms: Int[np.ndarray, "k"]
    scores: Float[np.ndarray, "k"]
    core_hours: Float[np.ndarray, "k"]
    reasons: Mapping[str, int]
    details: tuple[str, ...]


def select_frames(
    frames: Frames,
    settings: SelectSettings,
    *,
    features: Float[np.ndarray, "a d"] | None = None,
    errors: Float[np.ndarray, "a"] | None = None,
    known: Known | None = None,
    required: Bool[np.ndarray, "n"] | None = None,
) -> Choice:
    """Choose frames to label.

    :param frames: candidates.
    :param features: of each of their atoms, from a potential; None: element by element the descriptors of
        :mod:`~aiida_mlip.kernel.descriptors`, with those of ``known.frames`` as what is known.
    :param errors: estimated error of each atom's force (eV/Å): an environment weighs min(error / threshold, 3).
    :param known: what is labelled already.
    :param required: frames to be taken before all others, in their order, as far as they are sane, new and within the
        budget; the others are then chosen beside them.
    :returns: possibly no frames at all, with the reasons.
    :raises InvalidInputError: shapes that do not fit, or values that are not finite or negative.
    """
    known = known or Known()
    _, dropped = sift(frames, settings.sanity)
    alive = np.ones(len(frames), dtype=bool)
    alive[[entry.row for entry in dropped]] = False
    fresh = alive & ~_repeated(frames, alive, known.frames)
    reasons = {**count_reasons(dropped), "duplicate": int((alive & ~fresh).sum())}
    details = tuple(f"frame {entry.row}: {entry.detail}" for entry in dropped)
    empty = np.zeros(0, dtype=np.int64)
    if not fresh.any():
        return Choice(empty, empty, empty.astype(float), empty.astype(float), reasons | {"not_chosen": 0}, details)
    rows = np.flatnonzero(fresh)
    atoms = np.flatnonzero(fresh[frames.atom_rows()])
    if features is not None and (len(features) != frames.n_atoms or features.ndim != 2):
        raise InvalidInputError(f"features: expected {frames.n_atoms} rows, got shape {features.shape}")
    pool, space = _spaces(frames, rows, atoms, features, known)
    weights = _weights(errors, frames.n_atoms, settings)[atoms]
    groups = np.repeat(np.arange(len(rows)), frames.natoms[rows])
    if settings.duplicate_edge is not None:
        weights = weights * ~duplicates(pool, frames.numbers[atoms], edge=settings.duplicate_edge)
        told = np.bincount(groups, weights=weights, minlength=len(rows)) > 0
        reasons["duplicate"] += int((~told).sum())
    cost = np.ones(len(rows)) if settings.cost is None else settings.cost(frames.natoms[rows])
    candidates = Candidates(space.pool, groups=groups, weights=weights, costs=cost)
    first = np.zeros(len(rows), dtype=bool) if required is None else _checked(required, len(frames))[rows]
    chosen = _choose_with(candidates, settings, space, first)
    reasons["not_chosen"] = len(frames) - len(chosen) - sum(reasons.values())
    starts = np.concatenate([[0], np.cumsum(frames.natoms[rows])])
    return Choice(
        rows=rows[chosen.groups],
        atoms=chosen.rows - starts[chosen.groups],
        scores=chosen.scores,
        core_hours=cost[chosen.groups],
        reasons=reasons,
        details=details,
    )


@dataclass(frozen=True)
class _Space:
    """Coordinates in which a method works, and what is known in them."""

    pool: Projected | Subset | np.ndarray
    precision: np.ndarray
    environments: np.ndarray | None


def _repeated(frames: Frames, alive: np.ndarray, reference: Frames | None) -> np.ndarray:
    """(n,) frames that are among the reference, or earlier among the living."""
    keys = id_keys(frames.frame_id)
    again = np.ones(len(frames), dtype=bool)
    again[np.flatnonzero(alive)[np.unique(keys[alive], return_index=True)[1]]] = False
    if reference is not None:
        again |= np.isin(keys, id_keys(reference.frame_id))
    return again


def _weights(errors: np.ndarray | None, n_atoms: int, settings: SelectSettings) -> np.ndarray:
    """(a,) min(error / threshold, 3)."""
    if errors is None:
        return np.ones(n_atoms)
    if errors.shape != (n_atoms,) or np.isnan(errors).any() or (errors < 0).any():
        raise InvalidInputError(f"errors: expected {n_atoms} numbers, none negative or NaN, got shape {errors.shape}")
    finite = errors[np.isfinite(errors)]
    typical = float(np.median(finite)) if len(finite) else 0.0
    threshold = settings.error_threshold or typical or 1.0
    return np.minimum(errors / threshold, WEIGHT_CAP)


def _spaces(
    frames: Frames, rows: np.ndarray, atoms: np.ndarray, features: np.ndarray | None, known: Known
) -> tuple[Subset | np.ndarray, _Space]:
    """Features as they are (to find duplicates in), and the space of the method."""
    if features is not None:
        pool: Subset | np.ndarray = Subset(features, atoms)
        white = pool_whitening(pool)
        environments = None if known.environments is None else white(known.environments)
        if known.precision is not None:
            return pool, _Space(pool, known.precision, environments)
        return pool, _whitened(pool, white, environments)
    pool = descriptors_by_element(frames.take(rows), frames)
    white = pool_whitening(pool)
    environments = None if known.frames is None else white(descriptors_by_element(known.frames, frames))
    return pool, _whitened(pool, white, environments)


def _whitened(pool: Subset | np.ndarray, white: Whitening, environments: np.ndarray | None) -> _Space:
    precision = np.eye(white.n_dim)
    if environments is not None:
        precision += sum(block.T @ block for _, block in blocks(environments))
    return _Space(Projected(pool, white.matrix.T, white.mean), precision, environments)


def descriptors_by_element(frames: Frames, elements_of: Frames) -> Float[np.ndarray, "a s"]:
    """Descriptors with columns of their own for each element, and a column that says which it is.

    :param elements_of: frames whose elements have columns; atoms of others are left out.
    """
    elements = np.unique(elements_of.numbers)
    parts = []
    for row in range(len(frames)):
        part = geometry(frames, row)
        mine = np.isin(part[0], elements)
        values = np.concatenate([atomic_descriptors(*part)[mine], np.ones((int(mine.sum()), 1))], axis=1)
        wide = np.zeros((len(values), len(elements), values.shape[1]))
        wide[np.arange(len(values)), np.searchsorted(elements, part[0][mine])] = values
        parts.append(wide.reshape(len(values), -1))
    return np.concatenate(parts)


def _checked(required: np.ndarray, n_frames: int) -> np.ndarray:
    if required.shape != (n_frames,):
        raise InvalidInputError(f"required: expected {n_frames} truth values, got shape {required.shape}")
    return np.asarray(required, dtype=bool)


def _choose_with(candidates: Candidates, settings: SelectSettings, space: _Space, first: np.ndarray) -> Selection:
    """Required groups as far as the budget goes, then others that go well with them: what they teach is known then."""
    budget = Budget(settings.max_frames, np.inf if settings.core_hours is None else settings.core_hours)
    picks: list[tuple[int, int, float]] = []
    left = budget.cost
    weights = candidates.row_weights()
    for group in np.flatnonzero(first):
        members, cost = candidates.rows_of(int(group)), candidates.cost_of(int(group))
        if len(picks) < budget.groups and cost <= left * (1 + 1e-12):
            worst = members[0 if weights is None else int(np.argmax(weights[members]))]
            picks.append((int(group), int(worst), np.inf))
            left -= cost
    if not picks:
        return _choose(candidates, budget, settings, space)
    if len(picks) == budget.groups or not left > 0:
        return selection_of(candidates, picks)
    taken = np.concatenate([candidates.rows_of(group) for group, _, _ in picks])
    rest = np.ones(candidates.pool.shape[0]) if candidates.weights is None else candidates.weights.copy()
    rest[taken] = 0.0
    here = np.concatenate([block for _, block in blocks(Subset(space.pool, taken))])
    white = here if isinstance(space.pool, Projected) else pool_whitening(space.pool)(here)
    known = _Space(
        space.pool,
        space.precision + here.T @ here,
        white if space.environments is None else np.concatenate([space.environments, white]),
    )
    others = _choose(
        Candidates(candidates.pool, candidates.groups, rest, candidates.costs),
        Budget(budget.groups - len(picks), left),
        settings,
        known,
    )
    return selection_of(
        candidates,
        [*picks, *zip(others.groups.tolist(), others.rows.tolist(), others.scores.tolist(), strict=True)],
    )


def _choose(candidates: Candidates, budget: Budget, settings: SelectSettings, space: _Space) -> Selection:
    if settings.method == "maxdet":
        return greedy_maxdet(candidates, budget, precision=space.precision)
    if settings.method == "random":
        return _at_random(candidates, budget, settings.seed)
    if settings.method == "maxvol":
        return rows_of_maximal_volume(candidates, budget)
    known = None if space.environments is None else _thinned(space.environments)
    white = candidates
    if not isinstance(space.pool, Projected):
        whitening = pool_whitening(space.pool)
        pool = Projected(space.pool, whitening.matrix.T, whitening.mean)
        white = Candidates(pool, candidates.groups, candidates.weights, candidates.costs)
    method = farthest_points if settings.method == "farthest" else largest_cluster
    return method(white, budget, known=known)


def rows_of_maximal_volume(candidates: Candidates, budget: Budget) -> Selection:
    """Groups of the rows that span the largest volume, then of those that do so among the rest, and so on.

    Within a round, rows come in their order in the pool. Scores count down the rounds.
    """
    weights = candidates.row_weights()
    open_rows = np.ones(candidates.pool.shape[0], dtype=bool) if weights is None else weights > 0
    picks: list[tuple[int, int, float]] = []
    left, turn = budget.cost, 0
    while open_rows.any() and len(picks) < budget.groups:
        turn += 1
        index = np.flatnonzero(open_rows)
        part = Subset(candidates.pool, index)
        if not any(np.any(block) for _, block in blocks(part)):
            break
        for row in np.sort(index[maxvol(part).rows]):
            group = candidates.group_of(int(row))
            affordable = candidates.cost_of(group) <= left * (1 + 1e-12) and len(picks) < budget.groups
            if open_rows[row] and affordable:
                picks.append((group, int(row), 1.0 / turn))
                left -= candidates.cost_of(group)
            open_rows[candidates.rows_of(group)] = False
    return selection_of(candidates, picks)


def _at_random(candidates: Candidates, budget: Budget, seed: int) -> Selection:
    weights = candidates.row_weights()
    picks: list[tuple[int, int, float]] = []
    left = budget.cost
    for group in np.random.default_rng(seed).permutation(candidates.n_groups):
        members = candidates.rows_of(int(group))
        wanted = members if weights is None else members[weights[members] > 0]
        fits = candidates.cost_of(int(group)) <= left * (1 + 1e-12)
        if len(wanted) and fits and len(picks) < budget.groups:
            picks.append((int(group), int(wanted[0]), 1.0))
            left -= candidates.cost_of(int(group))
    return selection_of(candidates, picks)


def _thinned(environments: np.ndarray) -> np.ndarray:
    """At most 500 of them, far apart."""
    if len(environments) <= _MAX_KNOWN:
        return environments
    return np.asarray(environments[farthest_points(Candidates(environments), Budget(_MAX_KNOWN)).rows])
