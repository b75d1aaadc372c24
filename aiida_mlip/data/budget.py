"""Rounds and budget of active learning: what is spent of what may be spent, read from its process node.

>>> from aiida_mlip.data.budget import budgets
>>> [budget] = budgets(PK)  # doctest: +SKIP
>>> budget.dft_core_hours.spent, budget.dft_core_hours.cap  # doctest: +SKIP
(212.4, 500.0)
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.graph import CALLS, Wanted, neighbours, walk
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.rounds import Round
from aiida_mlip.protocols.active_learning import active_learning_settings

_CAPS: Final[tuple[str, ...]] = ("max_rounds", "dft_core_hours", "training_hours")
#: Process type of active learning.
LOOP: Final[str] = "aiida.workflows:aiida_mlip.active_learning"
_RECORD: Final[re.Pattern[str]] = re.compile(r"round_\d+_record")
_ROUND: Final[re.Pattern[str]] = re.compile(r"round_(\d+)_(\w+)")


@dataclass(frozen=True)
class Spending:
    """What is spent of one thing; ``cap`` is None where there is no limit."""

    spent: float
    cap: float | None

    @property
    def left(self) -> float | None:
        """What may still be spent; None: no limit."""
        return None if self.cap is None else max(0.0, self.cap - self.spent)


@dataclass(frozen=True)
class RoundRow:
    """One round that is complete, for people: see :class:`~aiida_mlip.kernel.rounds.Round`."""

    number: int
    n_frames: int
    force_rmse_ev_per_ang: float | None
    n_candidates: int
    n_labelled: int
    n_failed: int
    dft_core_hours: float
    training_hours: float


@dataclass(frozen=True)
class Budget:
    """Rounds and budget of one active learning.

    :param pk: of the workchain.
    :param rounds: spent are those that are complete.
    :param dft_core_hours: of labels, in complete rounds.
    :param training_hours: summed over the committee, in complete rounds.
    :param current: what the round that is not complete called last, such as ``round 2: label``; empty: none.
    :param verdict: ``go_on``, ``converged``, ``budget`` or ``stalled`` after the last complete round; empty: none yet.
    :param source: uuid of the record that the numbers come from; None before the first.
    """

    pk: int
    uuid: str
    rounds: Spending
    dft_core_hours: Spending
    training_hours: Spending
    table: tuple[RoundRow, ...]
    current: str
    verdict: str
    evidence: str
    source: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def budgets(pk: int) -> tuple[Budget, ...]:
    """Budgets of the active learning with this pk, or of those that it called: one for a ``develop``."""
    found = walk([pk], CALLS, direction="forward", wanted=Wanted(types=(orm.WorkChainNode.class_node_type,))).nodes
    return tuple(_budget(node.pk, node.uuid) for node in found if node.process_type == LOOP)


def budget(pk: int) -> Budget | None:
    """The first of :func:`budgets`; None where there was no active learning."""
    return next(iter(budgets(pk)), None)


def _budget(pk: int, uuid: str) -> Budget:
    calls = neighbours([pk], CALLS, direction="forward")
    record = _last_record([node.pk for _, label, node in calls if _RECORD.fullmatch(label)])
    content = {} if record is None else record.get_dict()
    rounds = [Round(**entry) for entry in content.get("rounds", ())]
    caps = _caps(pk)
    verdict = content.get("verdict", "")
    return Budget(
        pk=pk,
        uuid=uuid,
        rounds=Spending(len(rounds), caps.get("max_rounds")),
        dft_core_hours=Spending(sum(each.dft_core_hours for each in rounds), caps.get("dft_core_hours")),
        training_hours=Spending(sum(each.training_hours for each in rounds), caps.get("training_hours")),
        table=tuple(_row(each) for each in rounds),
        current=_current([label for _, label, _ in calls], len(rounds)),
        verdict=verdict,
        evidence=content.get("evidence", ""),
        source=None if record is None else record.uuid,
    )


def _row(each: Round) -> RoundRow:
    return RoundRow(
        number=each.number,
        n_frames=each.n_frames,
        force_rmse_ev_per_ang=each.force_rmse,
        n_candidates=each.n_candidates,
        n_labelled=each.n_labelled,
        n_failed=each.n_failed,
        dft_core_hours=each.dft_core_hours,
        training_hours=each.training_hours,
    )


def _last_record(functions: list[int]) -> orm.Dict | None:
    """What the last of these calculation functions left."""
    made = neighbours(functions, (LinkType.CREATE,), direction="forward")
    pks = [node.pk for _, _, node in made if node.node_type == orm.Dict.class_node_type]
    return orm.load_node(max(pks)) if pks else None


def _caps(pk: int) -> dict[str, float | None]:
    """What a workchain may spend, by the keys of its settings."""
    for _, label, node in neighbours([pk], (LinkType.INPUT_WORK,), direction="backward"):
        if label == "settings":
            given = orm.load_node(node.pk).get_dict()
            try:
                settings = active_learning_settings(given).model_dump()
            except MlipError:  # the workchain refused them, or another version wrote them
                settings = given
            return {key: settings.get(key) for key in _CAPS}
    return {}


def _current(labels: list[str], n_complete: int) -> str:
    """What the round that is not complete called last."""
    found = [match for match in map(_ROUND.fullmatch, labels) if match is not None]
    if not found or int(found[-1][1]) < n_complete:
        return ""
    return f"round {int(found[-1][1])}: {found[-1][2]}"
