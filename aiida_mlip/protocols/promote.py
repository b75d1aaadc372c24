"""Labels at several levels of theory, as a person writes it: all frames cheaply, a few of them dearly.

::

    fidelity: pbe        # the dear one; left out: the last of the fidelities
    fraction: 0.1        # of the frames that are labelled at all others; at least one
    core_hours: 100      # of all labels of a job: the dear ones get what the cheap ones have left; left out: no cap
    cost: {core_hours: 6.5, natoms: 64, exponent: 2}    # of a dear label, for core_hours; left out: as measured
    method: difference   # where the fidelities differ least predictably; or diversity, random
    seed: 0              # of random, and of ties
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.model import SpecModel, check_name, validate_spec
from aiida_mlip.protocols.select import CostSpec
from aiida_mlip.protocols.train import TrainSettings


class PromoteSettings(SpecModel):
    """Which frames get the dear label; see the module's text."""

    fidelity: str
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    core_hours: Annotated[float, Field(gt=0.0)] | None = None
    cost: CostSpec | None = None
    method: Literal["difference", "diversity", "random"] = "difference"
    seed: Annotated[int, Field(ge=0)] = 0


def parse_promote(data: Mapping[str, Any], fidelities: Sequence[str], *, where: str = "promote") -> PromoteSettings:
    """Settings of a specification.

    :param fidelities: names of all levels of theory, cheap first.
    :raises ProtocolError: unknown key (with the nearest valid one), a value that is not allowed, a fidelity that is not
        among them, or only one of them.

    >>> parse_promote({"fraction": 0.2}, ["lda", "pbe"]).fidelity
    'pbe'
    """
    names = list(fidelities)
    if len(names) < 2:
        raise ProtocolError(f"{where}: needs labels at two levels of theory or more, got {', '.join(names) or 'none'}")
    settings = validate_spec(PromoteSettings, {"fidelity": names[-1], **data}, where=where)
    check_name("fidelity", settings.fidelity, names, where=f"{where}.fidelity")
    return settings


def without_dear(fidelities: Mapping[str, Any], settings: PromoteSettings) -> dict[str, Any]:
    """Levels of theory that every frame is labelled at: all but the dear one."""
    return {name: spec for name, spec in fidelities.items() if name != settings.fidelity}


def check_promotion(
    promote: Mapping[str, Any], fidelities: Sequence[str], train: TrainSettings, *, where: str = "promote"
) -> None:
    """Make sure that what is promoted can be learned from: the training knows of all levels of theory.

    :raises ProtocolError: it does not, or see :func:`parse_promote`.
    """
    parse_promote(promote, fidelities, where=where)
    if train.multi_fidelity is None:
        raise ProtocolError(
            f"train.settings.multi_fidelity: missing, {where} gives labels at several levels of theory, of which "
            f"the training would take {train.fidelity or 'one'} only"
        )


def joint_training(train: Mapping[str, Any] | None, fidelities: Sequence[str]) -> dict[str, Any]:
    """Settings of a training that learns from all levels of theory, unless they say something else.

    :param train: what differs from the protocol, see :mod:`aiida_mlip.protocols.train`.
    :param fidelities: names, cheap first.

    >>> joint_training({"committee": 2}, ["lda", "pbe"])
    {'committee': 2, 'multi_fidelity': {'fidelities': ['lda', 'pbe']}}
    >>> joint_training({"fidelity": "pbe"}, ["lda", "pbe"])
    {'fidelity': 'pbe'}
    """
    given = dict(train or {})
    if len(fidelities) < 2 or "fidelity" in given or "multi_fidelity" in given:
        return given
    return {**given, "multi_fidelity": {"fidelities": list(fidelities)}}
