"""Rounds of active learning: what each did, and whether another one is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aiida_mlip.errors import InvalidInputError

Verdict = Literal["go_on", "converged", "budget", "stalled"]
VERDICTS: Final[tuple[str, ...]] = ("go_on", "converged", "budget", "stalled")
#: A number must fall, or rise, by so much of itself to count as better.
_BETTER: Final[float] = 0.02


@dataclass(frozen=True)
class Round:
    """What one round did.

    :param number: from 0.
    :param n_frames: labelled rows the potential was trained on.
    :param force_rmse: on held-out frames (eV/Å), None where it was not measured.
    :param steps_asked: of all explorations together.
    :param steps_trusted: of those, steps done before a watch or a limit stopped a run.
    :param stopped: runs that were stopped.
    :param n_candidates: frames, or fragments of them, that the watch found worth a label.
    :param n_selected: of those, chosen under the budget.
    :param n_labelled: labels computed.
    :param n_failed: labels that failed.
    :param n_promoted: frames chosen for the dear label.
    :param dft_core_hours: spent on labels.
    :param training_hours: spent on training, summed over the members.
    :param n_gate: labels computed to measure the embedding error.
    :param missed: properties that miss their thresholds, in words; None where they were not looked at.
    :param embedding_error: of fragments, at the buffer that was chosen (eV/Å); None where it was not measured.
    """

    number: int
    n_frames: int
    force_rmse: float | None = None
    steps_asked: int = 0
    steps_trusted: int = 0
    stopped: int = 0
    n_candidates: int = 0
    n_selected: int = 0
    n_labelled: int = 0
    n_failed: int = 0
    dft_core_hours: float = 0.0
    training_hours: float = 0.0
    n_gate: int = 0
    embedding_error: float | None = None
    missed: tuple[str, ...] | None = None
    n_promoted: int = 0

    @property
    def trusted(self) -> float:
        """Part of the exploration that the potential could be trusted with."""
        return self.steps_trusted / self.steps_asked if self.steps_asked else 1.0


@dataclass(frozen=True)
class Caps:
    """What must not be exceeded.

    :param max_rounds: rounds.
    :param dft_core_hours: for labels in all, None: no limit.
    :param training_hours: of training in all, None: no limit.
    :param stalled_after: rounds without any improvement that end it.
    """

    max_rounds: int
    dft_core_hours: float | None = None
    training_hours: float | None = None
    stalled_after: int = 3

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises InvalidInputError: a limit that is not positive.
        """
        for name in ("max_rounds", "stalled_after"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("dft_core_hours", "training_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"{name}: must be positive, got {value}")


def left_for_labels(rounds: Sequence[Round], caps: Caps) -> float | None:
    """Core-hours of DFT that may still be spent; None: no limit."""
    if caps.dft_core_hours is None:
        return None
    return max(0.0, caps.dft_core_hours - sum(done.dft_core_hours for done in rounds))


def may_train(rounds: Sequence[Round], caps: Caps) -> bool:
    """Whether another training, taken to be as long as the longest so far, stays within the cap."""
    if caps.training_hours is None:
        return True
    spent = [done.training_hours for done in rounds]
    return sum(spent) < caps.training_hours and sum(spent) + max(spent, default=0.0) <= caps.training_hours


def judge(rounds: Sequence[Round], caps: Caps) -> tuple[Verdict, str]:
    """Verdict after the last round, and the evidence in a sentence.

    ``converged``: a full pass of all explorations in which no run was stopped and no frame was worth a label, and the
    properties that were looked at hold.
    ``budget``: a cap is reached. ``stalled``: for some rounds nothing has improved, neither the error on held-out
    frames, nor the part of the exploration that can be trusted, nor the number of frames worth a label.
    """
    if not rounds:
        return "go_on", "no round yet"
    last = rounds[-1]
    if last.n_candidates == 0 and last.stopped == 0:
        calm = f"all {last.steps_asked} steps done, no frame was worth a label"
        if last.missed:
            return "stalled", f"{calm}, but the potential misses {'; '.join(last.missed)}"
        return "converged", calm if last.missed is None else f"{calm}, and the properties hold"
    if last.n_candidates == 0:
        return "stalled", f"{last.stopped} runs were stopped, and all that they found is labelled already"
    if last.n_labelled == 0:
        reason = "could be labelled" if last.n_selected else "was chosen under the budget and the filters"
        exhausted = last.n_candidates > 0 and last.n_selected == 0 and left_for_labels(rounds, caps) is not None
        return ("budget" if exhausted else "stalled"), f"of {last.n_candidates} candidates none {reason}"
    if (left := left_for_labels(rounds, caps)) is not None and left <= 0:
        return "budget", f"all {caps.dft_core_hours:g} core-hours of DFT are spent"
    if not may_train(rounds, caps):
        trained = sum(done.training_hours for done in rounds)
        return "budget", f"{trained:.3g} of {caps.training_hours:g} hours of training are spent, another would not fit"
    if len(rounds) >= caps.max_rounds:
        return "budget", f"{len(rounds)} rounds are done, and {last.n_candidates} frames were still worth a label"
    if len(rounds) > caps.stalled_after and not _improved(rounds, caps.stalled_after):
        return "stalled", f"nothing improved in {caps.stalled_after} rounds"
    return "go_on", f"{last.n_labelled} new labels"


def _improved(rounds: Sequence[Round], span: int) -> bool:
    """Whether anything is better in the last ``span`` rounds than it ever was before."""
    before, recent = rounds[:-span], rounds[-span:]
    old = [done.force_rmse for done in before if done.force_rmse is not None]
    new = [done.force_rmse for done in recent if done.force_rmse is not None]
    if old and new and min(new) < (1 - _BETTER) * min(old):
        return True
    if max(done.trusted for done in recent) > (1 + _BETTER) * max(done.trusted for done in before):
        return True
    return min(done.n_candidates for done in recent) < (1 - _BETTER) * min(done.n_candidates for done in before)
