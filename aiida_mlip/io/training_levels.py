"""What a training on several levels of theory was given, as a file of its job: order, target, reference energies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import parse_json

LEVELS_FILE: Final[str] = "levels.json"


@dataclass(frozen=True)
class TrainingLevels:
    """Levels of theory of one training.

    :param fidelities: names in the order of the model's index.
    :param target: the one that is validated on and repeated.
    :param joint: the model is told the level of each frame.
    :param reference_energies: eV per level and symbol.
    :param energy_shifts: eV per level and symbol: the energies at that level less those that the model predicts.
    :param repetition: how often a training row at the target is seen in an epoch.
    """

    fidelities: tuple[str, ...]
    target: str
    joint: bool
    reference_energies: Mapping[str, Mapping[str, float]]
    energy_shifts: Mapping[str, Mapping[str, float]]
    repetition: int

    def text(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str, *, source: str) -> TrainingLevels:
        """Back from :meth:`text`.

        :param source: what to call the file in messages.
        :raises FileFormatError: not such a text.
        """
        try:
            values = parse_json(text, source=source)
            return cls(**{**values, "fidelities": tuple(values["fidelities"])})
        except (ValueError, TypeError, KeyError) as error:
            raise FileFormatError(f"{source}: not the levels of a training ({error})") from error
