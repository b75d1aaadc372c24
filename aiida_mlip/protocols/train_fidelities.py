"""Ways to learn from labels of several fidelities: their names, the trainings each consists of, and their settings.

========== ==========================================================================================================
embedding  one model that is told the fidelity, baked at the target; NequIP only
types      one model with a type of its own for every element and fidelity, baked at the target; what Allegro offers
pooled     one model that is not told the fidelity
high_only  a model of the target's labels alone
fine_tune  a model of the fidelity with most labels (training ``pretrain``), trained further at the target
delta      a model of the differences (training ``difference``), which corrects the cheap labels; then a model of these
           and of the target's
========== ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any, Final

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.model import check_name, deep_merge
from aiida_mlip.protocols.train import TrainSettings, train_settings

#: Trainings of each method, in order; the last one gives its potentials.
TRAININGS: Final[dict[str, tuple[str, ...]]] = {
    "embedding": ("embedding",),
    "types": ("types",),
    "pooled": ("pooled",),
    "high_only": ("high_only",),
    "fine_tune": ("pretrain", "fine_tune"),
    "delta": ("difference", "delta"),
}
METHODS: Final[tuple[str, ...]] = tuple(TRAININGS)
#: Those that train on rows of all fidelities at once.
JOINT: Final[tuple[str, ...]] = ("embedding", "types", "pooled")


def check_methods(names: Sequence[Any]) -> tuple[str, ...]:
    """Names of methods, the first of which gives the result.

    :raises ProtocolError: none, one twice, or an unknown one; names the nearest.

    >>> check_methods(["embedding", "high_only"])
    ('embedding', 'high_only')
    """
    if not names:
        raise ProtocolError(f"methods: none given; valid are {', '.join(METHODS)}")
    for name in names:
        check_name("method", str(name), list(METHODS), where="methods")
    if len(set(names)) < len(names):
        raise ProtocolError(f"methods: each at most once, got {', '.join(names)}")
    return tuple(str(name) for name in names)


def joint_settings(spec: Mapping[str, Any]) -> tuple[TrainSettings, tuple[str, ...], str]:
    """Settings of a training, the fidelities that it is about, cheap ones first, and the one that counts.

    :raises ProtocolError: wrong settings, or no ``multi_fidelity`` among them.
    """
    full = train_settings(spec)
    if full.multi_fidelity is None:
        raise ProtocolError(
            "train.multi_fidelity: missing; it names the fidelities, cheap ones first, e.g. "
            "{'fidelities': ['lda', 'pbe']}"
        )
    fidelities = tuple(full.multi_fidelity.fidelities)
    return full, fidelities, full.target or fidelities[-1]


def difference_name(low: str, high: str) -> str:
    """Fidelity of E_high − E_low.

    >>> difference_name("lda", "pbe")
    'pbe_minus_lda'
    """
    return f"{high}_minus_{low}"


def fidelity_of(training: str, target: str, low: Mapping[str, str]) -> str:
    """Fidelity that a training is about.

    :param training: one of the values of :data:`TRAININGS`.
    :param low: the cheap fidelity of ``fine_tune`` and of ``delta``.
    """
    if training == "pretrain":
        return low["fine_tune"]
    return difference_name(low["delta"], target) if training == "difference" else target


def settings_of(
    training: str,
    spec: Mapping[str, Any],
    *,
    low: Mapping[str, str],
    fine_tune: Mapping[str, Any] | None = None,
    stretch: Fraction = Fraction(1),
) -> dict[str, Any]:
    """Settings of one training; nothing is held out, since what all methods are measured on is held out before.

    :param training: one of the values of :data:`TRAININGS`.
    :param spec: settings with ``multi_fidelity``.
    :param low: the cheap fidelity of ``fine_tune`` and of ``delta``.
    :param fine_tune: what differs in the second training of ``fine_tune``, e.g. a lower learning rate.
    :param stretch: all numbers of epochs times this, rounded up (a fraction: 30 * 31/15 is 62, not a hair more).
    :raises ProtocolError: wrong settings.
    """
    full, _, target = joint_settings(spec)
    own = {
        "fidelity": fidelity_of(training, target, low),
        "multi_fidelity": {"method": training} if training in JOINT else None,
        "split": {"test": 0.0},
        "checkpoint": _checkpoint(full),
        **_stretched(full, stretch),
    }
    result = deep_merge(deep_merge(spec, own), fine_tune or {} if training == "fine_tune" else {})
    train_settings(result)
    return result


def _checkpoint(settings: TrainSettings) -> str | None:
    """Which weights are kept: the same for all methods, so that none is chosen by validation frames alone."""
    return "last" if settings.checkpoint is None and settings.anneals else settings.checkpoint


def _stretched(settings: TrainSettings, factor: Fraction) -> dict[str, Any]:
    """All that counts epochs, times a factor."""
    return {
        "max_epochs": ceil(settings.max_epochs * factor),
        "stop_after": None if settings.stop_after is None else ceil(settings.stop_after * factor),
        "optimizer": {
            "warmup_epochs": ceil(settings.optimizer.warmup_epochs * factor),
            "patience": ceil(settings.optimizer.patience * factor),
        },
    }
