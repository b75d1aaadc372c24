"""Active learning, as a person writes it.

::

    mode: fragments              # frames: the selected frames themselves; fragments: their worst surroundings, cut out
    max_rounds: 10
    labels_per_round: 30
    dft_core_hours: 500          # hard cap on labels in all; left out: none
    training_hours: 20           # hard cap on training, summed over the committee; left out: none
    stalled_after: 3             # rounds without improvement that end it
    warm_start: true             # each training starts from the potentials of the round before
    select: {method: maxdet}     # see aiida_mlip.protocols.select; number and core-hours come from above
    fragment: {core_radius_ang: 5.0, buffer_ang: 3.0}     # see aiida_mlip.protocols.fragment
    gate: {n_fragments: 2}       # the embedding error is measured once, see aiida_mlip.protocols.gate; null: it is not
    promote: {fraction: 0.1}     # with several fidelities: which frames get the dear label, see
                                 # aiida_mlip.protocols.promote; left out: every frame is labelled at every fidelity
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.rounds import Caps
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.gate import gate_settings
from aiida_mlip.protocols.model import SpecModel, from_protocol, validate_spec
from aiida_mlip.protocols.promote import PromoteSettings
from aiida_mlip.protocols.select import parse_select

#: Part of the budget that is kept for dear labels.
_PROMOTION_SHARE: Final[float] = 0.5
#: Part of the budget that measuring the embedding error may take, unless the gate says otherwise.
_GATE_SHARE: Final[float] = 0.25


class ActiveLearningSettings(SpecModel):
    """Settings of the loop; see the module's text."""

    mode: Literal["frames", "fragments"] = "frames"
    max_rounds: int
    labels_per_round: int = Field(ge=1)
    dft_core_hours: float | None = None
    training_hours: float | None = None
    stalled_after: int = 3
    warm_start: bool = True
    select: dict[str, Any] = Field(default_factory=dict)
    fragment: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    promote: dict[str, Any] | None = None

    @property
    def caps(self) -> Caps:
        """What must not be exceeded.

        :raises InvalidInputError: a limit that is not positive.
        """
        return Caps(self.max_rounds, self.dft_core_hours, self.training_hours, self.stalled_after)

    def selection(self, core_hours: float | None) -> dict[str, Any]:
        """Specification of a selection under what is left of the budget; half of it is kept for dear labels."""
        if core_hours is not None and self.promote is not None:
            core_hours *= 1.0 - _PROMOTION_SHARE
        return {**self.select, "max_frames": self.labels_per_round, "core_hours": core_hours}

    def promotion(self, core_hours: float | None) -> dict[str, Any]:
        """Specification of the dear labels of a round; ``core_hours`` is what is left for all labels of the round."""
        given = dict(self.promote or {})
        caps = [value for value in (core_hours, given.get("core_hours")) if value is not None]
        return {**given, "core_hours": min(caps, default=None)}

    def measurement(self) -> dict[str, Any]:
        """Specification of the embedding gate: at most a quarter of the budget goes into it."""
        gate = dict(self.gate or {})
        if self.dft_core_hours is not None:
            gate.setdefault("core_hours", _GATE_SHARE * self.dft_core_hours)
            gate.setdefault("cost", self.select.get("cost"))
        return gate


def active_learning_settings(data: Any, *, where: str = "settings") -> ActiveLearningSettings:
    """Settings of a specification, with everything in it checked.

    :param data: plain mapping; ``protocol`` in it names the protocol (default ``moderate``) that the rest overrides.
    :raises ProtocolError: unknown key (with the nearest valid one), or a value that is not allowed.
    """
    values = dict(data)
    protocol = values.pop("protocol", None)
    settings = from_protocol(ActiveLearningSettings, "active_learning", protocol, values)
    try:
        _ = settings.caps
    except InvalidInputError as error:
        raise ProtocolError(f"{where}.{error}") from error
    if settings.promote is not None:  # names of fidelities are checked with the fidelities
        validate_spec(PromoteSettings, {"fidelity": "any", **settings.promote}, where=f"{where}.promote")
    for key in ("max_frames", "core_hours"):
        if key in settings.select:
            raise ProtocolError(f"{where}.select.{key}: given by labels_per_round and dft_core_hours, leave it out")
    parse_select(settings.selection(None), where=f"{where}.select")
    if settings.mode == "fragments":
        if settings.fragment is None:
            raise ProtocolError(f"{where}.fragment: missing, the mode fragments needs it")
        validate_spec(FragmentSettings, settings.fragment, where=f"{where}.fragment").limits(where=f"{where}.fragment")
        if settings.gate is not None:
            gate_settings(settings.gate, where=f"{where}.gate")
    return settings
