"""What pw.x printed of an scf, to be compared with what it wrote into its XML file.

Both come from the same numbers, so where they differ one of the files was damaged: a digit that flips makes a label
that nobody would ever find again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from aiida_mlip.io.pw_md import BOHR, RYDBERG

#: Largest difference of an energy (eV) and of a force component (eV/Å) that is put down to printing: eight decimals are
#: printed, of Ry and Ry/bohr.
ENERGY_TOLERANCE: Final[float] = 1e-5 * RYDBERG
FORCE_TOLERANCE: Final[float] = 1e-5 * RYDBERG / BOHR
_ENERGY: Final[re.Pattern[str]] = re.compile(r"^!+\s+total energy\s*=\s*(\S+)\s+Ry", re.MULTILINE)
_FORCES: Final[re.Pattern[str]] = re.compile(r"Forces acting on atoms \([^)\n]*Ry/au\):")
_FORCE: Final[re.Pattern[str]] = re.compile(r"atom\s+([0-9]{1,9})\s+type\s+[0-9]{1,9}\s+force\s*=(.*)")


@dataclass(frozen=True)
class Printed:
    """Numbers of the last scf that was printed.

    :param energy: eV, NaN where there is none.
    :param forces: (a, 3) eV/Å, NaN where a number does not fit its columns; None where there are none.
    """

    energy: float
    forces: np.ndarray | None

    def contradicts(self, energy: float, forces: np.ndarray | None) -> str:
        """How these numbers differ from what was printed; nothing where they agree, or nothing was printed.

        :param energy: eV.
        :param forces: (a, 3) eV/Å or None.
        """
        if abs(energy - self.energy) > ENERGY_TOLERANCE:
            return f"a damaged file: the energy is {energy:.8f} eV, but pw.x printed {self.energy:.8f} eV"
        if forces is None or self.forces is None:
            return ""
        if self.forces.shape != forces.shape:
            return f"a damaged file: forces of {len(forces)} atoms, but pw.x printed those of {len(self.forces)}"
        difference = np.nan_to_num(np.abs(forces - self.forces)).max(axis=1)
        if (largest := difference.max()) <= FORCE_TOLERANCE:
            return ""
        atom = int(difference.argmax())
        return f"a damaged file: the force on atom {atom} differs by {largest:.2e} eV/Å from what pw.x printed"


def printed_scf(text: str) -> Printed:
    """Energy and forces of the last scf in what pw.x printed."""
    energies = _ENERGY.findall(text)
    energy = _number(energies[-1]) * RYDBERG if energies else float("nan")
    heads = list(_FORCES.finditer(text))
    rows: list[list[float]] = []
    for line in text[heads[-1].end() :].splitlines() if heads else ():
        match = _FORCE.match(line.strip())
        if match is None or int(match[1]) != len(rows) + 1:
            if rows:
                break  # contributions to the forces, line by line like these, come after
            continue
        words = match[2].split()
        rows.append([_number(word) for word in words] if len(words) == 3 else [float("nan")] * 3)
    return Printed(energy, np.array(rows) * RYDBERG / BOHR if rows else None)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")
