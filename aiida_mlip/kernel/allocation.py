"""Which frames deserve the dear label: those where the *difference* between two levels of theory is known least.

A joint model of both levels of theory m says of a frame how far they are apart, ΔF^m = F_dear^m − F_cheap^m. Members
of a committee share what the cheap labels taught them, and what they get wrong of it they get wrong at both levels:
it cancels in ΔF. What is left to differ between members is what further *dear* labels would teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.committee import force_deviation, largest_per_frame
from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.labelling import contained, first_rows
from aiida_mlip.kernel.selection.costs import CostModel
from aiida_mlip.kernel.selection.duplicates import DEFAULT_EDGE
from aiida_mlip.kernel.selection.frames import WEIGHT_CAP, Known, SelectSettings, select_frames

AllocateMethod: TypeAlias = Literal["difference", "diversity", "random"]
BatchMethod: TypeAlias = Literal["maxdet", "farthest", "largest_cluster"]

#: A deviation this small beside the largest one is rounding.
_ROUNDING: Final[float] = 1e-9
_HOUR: Final[float] = 3600.0


@dataclass(frozen=True)
class AllocateSettings:
    """How dear labels are allotted; at least one of the two budgets is needed.

    :param method: ``difference`` (unlike each other, weighted with the deviation of the difference), ``diversity``
        (unlike each other and what has the dear label), ``random`` (the baseline).
    :param batch: how the frames of one batch are kept unlike each other, see
        :class:`~aiida_mlip.kernel.selection.frames.SelectSettings`.
    :param n_frames: most frames to choose; None: as many as the core-hours allow.
    :param core_hours: most core-hours to spend; None: no limit.
    :param cost: of a dear label; None: not known.
    :param duplicate_edge: see :func:`~aiida_mlip.kernel.selection.duplicates.duplicates`.
    :param seed: of ``random``.
    :raises InvalidInputError: no budget, one that is not positive, or core-hours without a cost.
    """

    method: AllocateMethod = "difference"
    batch: BatchMethod = "maxdet"
    n_frames: int | None = None
    core_hours: float | None = None
    cost: CostModel | None = None
    duplicate_edge: float | None = DEFAULT_EDGE
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the budgets."""
        if self.n_frames is None and self.core_hours is None:
            raise InvalidInputError("budget: give n_frames, core_hours, or both")
        for name, value in (("n_frames", self.n_frames), ("core_hours", self.core_hours)):
            if value is not None and not 0 < value < np.inf:
                raise InvalidInputError(f"{name}: must be positive, got {value}")
        if self.core_hours is not None and self.cost is None:
            raise InvalidInputError("core_hours: nothing says what a dear label costs")


@dataclass(frozen=True)
class Candidates:
    """Frames that could be given the dear label.

    :param rows: (c,) rows of the frames asked about, each frame once, in order: those of the cheap label.
    :param excluded: how many other distinct frames have the dear label (``labelled``), failed to get it (``failed``),
        lack the cheap one (``no_cheap_label``) or are isolated atoms, which come with the labels of any frames.
    """

    rows: Int[np.ndarray, "c"]
    excluded: Mapping[str, int]


@dataclass(frozen=True)
class Allocation:
    """Frames that get the dear label.

    :param method: that chose: ``diversity`` where ``difference`` was asked for and there is no deviation.
    :param rows: (k,) rows of the candidates, in order of choice.
    :param atoms: (k,) the atom of that frame that decided.
    :param scores: (k,) of the method when each was chosen.
    :param deviation: (c,) of every candidate, eV/Å, the largest over its atoms; NaN where it is not known.
    :param core_hours: (k,) forecast of each; NaN where the cost is not known.
    :param dropped: how many candidates were not chosen, by reason.
    """

    method: AllocateMethod
    rows: Int[np.ndarray, "k"]
    atoms: Int[np.ndarray, "k"]
    scores: Float[np.ndarray, "k"]
    deviation: Float[np.ndarray, "c"]
    core_hours: Float[np.ndarray, "k"]
    dropped: Mapping[str, int]

    @property
    def forecast(self) -> float | None:
        """Core-hours of all of them together; None where the cost is not known."""
        return float(self.core_hours.sum()) if np.isfinite(self.core_hours).all() else None


def difference_deviation(dear: Float[np.ndarray, "M a 3"], cheap: Float[np.ndarray, "M a 3"]) -> Float[np.ndarray, "a"]:
    """(a,) deviation between members of the difference of the forces, eV/Å.

    u_i = sqrt(Σ_m |ΔF_i^m − ΔF̄_i|² / (M − 1)) with ΔF^m = F_dear^m − F_cheap^m. A field that a member adds to its
    forces at both levels of theory changes nothing.

    :param dear: (M, a, 3) eV/Å: forces of M >= 2 members at the dear level of theory.
    :param cheap: the same at the cheap one, members in the same order.
    :raises InvalidInputError: shapes that differ, or fewer than two members.

    >>> forces = np.array([[[1.0, 0, 0]], [[0, 1.0, 0]]])
    >>> difference_deviation(forces + 0.5, forces).tolist()
    [0.0]
    """
    if np.shape(dear) != np.shape(cheap):
        raise InvalidInputError(f"forces at the dear level have shape {np.shape(dear)}, at the cheap {np.shape(cheap)}")
    return force_deviation(np.asarray(dear, dtype=float) - np.asarray(cheap, dtype=float))


def find_candidates(frames: Frames, *, target: str, cheap: str) -> Candidates:
    """Frames with the cheap label that could be given the dear one.

    :param frames: rows of any fidelities; several rows of one frame count once.
    :param target: name of the dear fidelity; no row needs to have it.
    :param cheap: name of the cheap one.
    :raises InvalidInputError: the same name twice.
    """
    if target == cheap:
        raise InvalidInputError(f"target and cheap are both {target!r}: a frame with one label would have the other")
    at_target, at_cheap = (_at(frames, name) for name in (target, cheap))
    ids = frames.frame_id
    distinct = first_rows(ids)
    done = contained(ids, ids[at_target & frames.labelled])
    tried = contained(ids, ids[at_target & (frames.failure != 0)]) & ~done
    known = contained(ids, ids[at_cheap & frames.labelled])
    alone = (frames.natoms == 1) & ~frames.pbc.any(axis=1)
    excluded = {
        "labelled": done,
        "failed": tried,
        "isolated_atom": alone & ~done & ~tried,
        "no_cheap_label": ~known & ~done & ~tried & ~alone,
    }
    rows = np.flatnonzero(at_cheap & frames.labelled & ~done & ~tried & ~alone)
    return Candidates(
        rows=rows[first_rows(ids[rows])],
        excluded={reason: int(mask[distinct].sum()) for reason, mask in excluded.items()},
    )


def allocate(
    frames: Frames,
    settings: AllocateSettings,
    *,
    dear: Frames | None = None,
    deviation: Float[np.ndarray, "a"] | None = None,
) -> Allocation:
    """Choose the frames that get the dear label, never beyond the budget.

    :param frames: candidates, each once.
    :param dear: frames that have the dear label: they are never chosen, and what they show is not shown again.
    :param deviation: (a,) eV/Å of the atoms of the candidates, see :func:`difference_deviation`; None: not known, and
        ``difference`` becomes ``diversity``. Only core and trusted atoms of a fragment count.
    :returns: possibly no frames at all, with the reasons. A frame that no member doubts is not chosen by
        ``difference``, even if budget is left.
    :raises InvalidInputError: shapes that do not fit, or deviations that are not finite or negative.
    """
    counted = None if deviation is None else _counted(frames, deviation)
    method: AllocateMethod = settings.method
    if counted is None and method == "difference":
        method = "diversity"
    weights = counted if method == "difference" else None
    choice = select_frames(
        frames,
        SelectSettings(
            method="random" if method == "random" else settings.batch,
            max_frames=settings.n_frames or max(len(frames), 1),
            core_hours=settings.core_hours,
            cost=settings.cost,
            duplicate_edge=settings.duplicate_edge,
            error_threshold=_threshold(weights),
            seed=settings.seed,
        ),
        errors=weights,
        known=Known(frames=dear if dear is not None and len(dear) else None),
    )
    largest = np.full(len(frames), np.nan) if counted is None else largest_per_frame(counted, frames.natoms)
    return Allocation(
        method=method,
        rows=choice.rows,
        atoms=choice.atoms,
        scores=choice.scores,
        deviation=largest,
        core_hours=choice.core_hours if settings.cost is not None else np.full(len(choice.rows), np.nan),
        dropped=choice.reasons,
    )


@dataclass(frozen=True)
class Spent:
    """What dear labels cost, against the forecast.

    :param forecast_core_hours: of those that were computed or failed; None where the cost was not known.
    :param core_hours: they took.
    :param ratio: of the two; None where either is missing.
    """

    forecast_core_hours: float | None
    core_hours: float
    ratio: float | None


def compare_with_forecast(forecast: Float[np.ndarray, "k"], core_seconds: Float[np.ndarray, "k"]) -> Spent:
    """What labels cost against what was forecast for them.

    :param forecast: (k,) core-hours of each; NaN where not known.
    :param core_seconds: (k,) what each took; NaN where it was not computed (reused, or not started).
    :raises InvalidInputError: lengths that differ.

    >>> compare_with_forecast(np.array([1.0, 2.0, 4.0]), np.array([3600.0, 10800.0, np.nan]))
    Spent(forecast_core_hours=3.0, core_hours=4.0, ratio=1.3333333333333333)
    """
    if np.shape(forecast) != np.shape(core_seconds):
        raise InvalidInputError(f"{len(forecast)} forecasts, but {len(core_seconds)} costs")
    ran = np.isfinite(core_seconds)
    spent = float(core_seconds[ran].sum()) / _HOUR
    expected = float(forecast[ran].sum())
    if not np.isfinite(expected):
        return Spent(None, spent, None)
    return Spent(expected, spent, spent / expected if expected > 0 else None)


def _at(frames: Frames, name: str) -> np.ndarray:
    """(n,) rows at a fidelity."""
    if name not in frames.fidelities:
        return np.zeros(len(frames), dtype=bool)
    return np.asarray(frames.fidelity == frames.fidelities.index(name))


def _counted(frames: Frames, deviation: np.ndarray) -> np.ndarray:
    """(a,) deviations, 0 on atoms of fragments whose surroundings are not those of the parent."""
    if np.shape(deviation) != (frames.n_atoms,) or not np.isfinite(deviation).all() or (deviation < 0).any():
        raise InvalidInputError(
            f"deviation: expected {frames.n_atoms} numbers, finite and not negative, got shape {np.shape(deviation)}"
        )
    counted = np.asarray(deviation, dtype=float)
    if frames.region is not None:
        counted = np.where(frames.region <= Region.TRUST, counted, 0.0)
    return np.where(counted > _ROUNDING * counted.max(initial=0.0), counted, 0.0)


def _threshold(weights: np.ndarray | None) -> float | None:
    """Deviation of weight 1: so that no weight is capped, and the deviations keep their order."""
    largest = 0.0 if weights is None or not len(weights) else float(weights.max())
    return largest / WEIGHT_CAP if largest > 0 else None
