"""What was computed for some frames, and a property made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, id_keys


class NotComputableError(InvalidInputError):
    """A property that cannot be had from these results; the message is the reason."""


@dataclass(frozen=True)
class Results:
    """Energies, forces and stresses of frames, in their order.

    :param energy: (n,) eV, NaN where missing.
    :param forces: n arrays (a_i, 3) eV/Å.
    :param stress: (n, 3, 3) eV/Å³, tension positive; NaN where missing.
    """

    energy: Float[np.ndarray, "n"]
    forces: tuple[np.ndarray, ...]
    stress: Float[np.ndarray, "n 3 3"]

    def __len__(self) -> int:
        return len(self.energy)

    def part(self, start: int, stop: int) -> Results:
        """Rows ``start`` to ``stop``."""
        return Results(self.energy[start:stop], self.forces[start:stop], self.stress[start:stop])

    def check(self, *names: str) -> None:
        """Refuse results with gaps.

        :param names: of ``energy``, ``forces``, ``stress``.
        :raises NotComputableError: a number is missing; says of which frame.
        """
        for name in names:
            for row, value in enumerate(getattr(self, name)):
                if not np.isfinite(value).all():
                    raise NotComputableError(f"no {name} of frame {row} of {len(self)}")


@dataclass(frozen=True)
class Property:
    """One number (or a few) about one crystal.

    :param name: with its unit at the end where it has one, e.g. ``bulk_modulus_gpa``.
    :param family: what thresholds are given for, see :data:`aiida_mlip.kernel.properties.comparison.FAMILIES`.
    :param value: None if it could not be computed.
    :param unit: as text.
    :param definition: what exactly was computed.
    :param reason: why there is no value.
    """

    name: str
    family: str
    value: float | tuple[float, ...] | None
    unit: str
    definition: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """Properties of one kind, and the curves behind them.

    :param curves: arrays by name.
    """

    properties: tuple[Property, ...]
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)


def failed(properties: Sequence[tuple[str, str, str]], reason: str) -> Outcome:
    """An outcome without values.

    :param properties: (name, family, unit) of each.
    """
    return Outcome(tuple(Property(name, family, None, unit, reason=reason) for name, family, unit in properties))


def results_of(frames: Frames, source: Frames) -> Results:
    """Results of frames from labelled rows in any order, by frame id; what is missing is NaN."""
    keys = id_keys(source.frame_id)
    place: dict[Any, int] = {}
    for row in np.flatnonzero(np.isfinite(source.energy))[::-1]:
        place[keys[row].tobytes()] = int(row)
    energy, forces = np.full(len(frames), np.nan), []
    stress = np.full((len(frames), 3, 3), np.nan)
    for row, key in enumerate(id_keys(frames.frame_id)):
        found = place.get(key.tobytes())
        if found is None:
            forces.append(np.full((int(frames.natoms[row]), 3), np.nan))
            continue
        energy[row], stress[row] = source.energy[found], source.stress[found]
        forces.append(source.forces[source.atom_slice(found)])
    return Results(energy, tuple(forces), stress)
