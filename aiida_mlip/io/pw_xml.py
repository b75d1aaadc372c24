"""Numbers of one scf of pw.x from its XML file, ``data-file-schema.xml`` (Quantum ESPRESSO 6.2 to 7.x).

aiida-quantumespresso reads the same file through its XML schema, which takes a second a file: nothing beside a job of
its own, too much for a bundle of hundreds. The numbers are the same to the last digit, which a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

import numpy as np

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.pw_md import BOHR, RYDBERG
from aiida_mlip.kernel.units import GPA

#: GPa per atomic unit of stress as aiida-quantumespresso converts it (energy CODATA 2018, length CODATA 2006).
_AU_GPA: Final[float] = 4.3597447222071e-18 / (BOHR * 1e-10) ** 3 / 1e9
#: Occupation of the highest band from which on there are too few bands, as aiida-quantumespresso has it.
_EMPTY: Final[float] = 0.005


@dataclass(frozen=True)
class ScfOutput:
    """What one scf gave.

    :param converged: whether the scf converged.
    :param energy: eV, the free energy if smeared; NaN if not there.
    :param forces: (a, 3) eV/Å or None.
    :param stress: (3, 3) eV/Å³, tension positive, or None.
    :param wall_seconds: of the run, NaN if not there.
    :param occupations: (bands,) of each k-point and spin: 0 to 1 with two spins, else 0 to 2.
    """

    converged: bool
    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None
    wall_seconds: float
    occupations: tuple[np.ndarray, ...]

    @property
    def has_too_few_bands(self) -> bool:
        """Whether the highest band is occupied somewhere, as ``PwBaseWorkChain`` checks it for smeared occupations."""
        return any(_overfull(row) for row in self.occupations)


def read_scf_xml(content: bytes, *, source: str = "data-file-schema.xml") -> ScfOutput:
    """Numbers of an scf.

    :param content: of the file.
    :param source: what to call it in messages.
    :raises FileFormatError: not XML, cut off, or without an output.
    """
    try:
        root = ElementTree.fromstring(content)  # noqa: S314  # expat refuses exponential entities since 2.4.1
        output = root.find("output")
        if output is None:
            raise ValueError("there is no output in it; the run ended before it wrote any")
        energy = _number(output.findtext("total_energy/etot"))
        with np.errstate(over="ignore"):  # what is no number in the end is no label
            return _converted(root, output, energy)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that nobody knows
        raise FileFormatError(f"{source}: {error}") from error


def _converted(root: ElementTree.Element, output: ElementTree.Element, energy: float) -> ScfOutput:
    """In the units of this package."""
    forces, stress = (_array(output.find(name)) for name in ("forces", "stress"))
    return ScfOutput(
        converged=(output.findtext("convergence_info/scf_conv/convergence_achieved") or "true").strip() == "true",
        energy=energy * 2 * RYDBERG,
        forces=None if forces is None else forces * (2 * RYDBERG) / BOHR,
        # pw.x writes what the material exerts: compression positive
        stress=None if stress is None else -(stress * _AU_GPA).reshape(3, 3) * GPA,
        wall_seconds=_number(root.findtext("timing_info/total/wall")),
        occupations=_occupations(output.find("band_structure")),
    )


def _number(text: str | None) -> float:
    return float(text) if text is not None else float("nan")


def _array(element: ElementTree.Element | None) -> np.ndarray | None:
    """Array of an element, its dimensions (written in Fortran's order) reversed; None if it has no content."""
    if element is None or not (element.text or "").strip():
        return None
    dimensions = [int(word) for word in element.get("dims", "").split()]
    return np.array((element.text or "").split(), dtype=float).reshape(dimensions[::-1])


def _occupations(bands: ElementTree.Element | None) -> tuple[np.ndarray, ...]:
    if bands is None:
        return ()
    n_up = bands.findtext("nbnd_up")
    rows = [np.array((element.text or "").split(), dtype=float) for element in bands.findall("ks_energies/occupations")]
    if n_up is not None:
        return tuple(part for row in rows for part in (row[: int(n_up)], row[int(n_up) :]))
    return tuple(2 * row for row in rows)  # a band holds two electrons, the file counts half of them


def _overfull(occupations: np.ndarray) -> bool:
    if not len(occupations):
        return False
    empty = np.flatnonzero(occupations < _EMPTY)
    return bool(occupations[-1] >= _EMPTY or (len(empty) and (occupations[empty[0] + 1 :] > 2 * _EMPTY).any()))
