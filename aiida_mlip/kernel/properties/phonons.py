"""Phonons by finite displacements, with phonopy (doi:10.1088/1361-648X/acd831)."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any, Final

import numpy as np
from ase import Atoms

from aiida_mlip.kernel.properties.crystal import Crystal, repeats
from aiida_mlip.kernel.properties.results import Outcome, Property, Results

DEFINITION: Final[str] = "harmonic, at the own equilibrium volume, without LO-TO splitting; imaginary ones negative"
LOWEST: Final[tuple[str, str, str]] = ("lowest_frequency_thz", "lowest_frequency", "THz")
_DOS_POINTS: Final[int] = 401


class PhononCells:
    """Displaced supercells of a crystal, and what follows from their forces.

    :param crystal: at its own equilibrium volume.
    :param min_length: distance (Å) of the supercell's faces.
    :param displacement: of the atoms (Å).
    """

    def __init__(self, crystal: Crystal, *, min_length: float, displacement: float) -> None:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms

        cell = crystal.primitive
        unit = PhonopyAtoms(
            symbols=cell.get_chemical_symbols(), cell=cell.cell.array, scaled_positions=cell.get_scaled_positions()
        )
        self.repeats = repeats(cell.cell.array, min_length, even=True)
        self._phonopy: Any = Phonopy(unit, np.diag(self.repeats), primitive_matrix=np.eye(3))
        self._phonopy.generate_displacements(distance=displacement, is_plusminus=True)

    def cells(self) -> list[Atoms]:
        """The displaced supercells."""
        return [
            Atoms(numbers=cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
            for cell in self._phonopy.supercells_with_displacements
        ]

    def outcome(self, results: Results, *, mesh: int, points_per_path: int) -> Outcome:
        """Frequencies (THz) at the special points and on a mesh, bands and density of states.

        :raises NotComputableError: a force is missing.
        """
        results.check("forces")
        phonopy = self._phonopy
        phonopy.forces = np.array([forces - forces.mean(axis=0) for forces in results.forces])
        phonopy.produce_force_constants()
        phonopy.symmetrize_force_constants()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", DeprecationWarning)  # seekpath, of spglib's older interface
            phonopy.auto_band_structure(npoints=points_per_path)
        curves, labels = _bands(phonopy)
        properties = [
            Property(f"phonons_{name}_thz", "phonons", tuple(np.sort(frequencies).tolist()), "THz", DEFINITION)
            for name, frequencies in labels.items()
        ]
        phonopy.run_mesh([mesh] * 3, is_gamma_center=True)
        frequencies = phonopy.mesh.frequencies
        phonopy.run_total_dos(freq_pitch=float(np.ptp(frequencies) / _DOS_POINTS) or 0.01, use_tetrahedron_method=True)
        dos = phonopy.total_dos
        curves |= {"dos_frequency_thz": dos.frequency_points, "dos_per_thz": dos.dos}
        lowest = min(float(frequencies.min()), float(curves["bands_frequency_thz"].min()))
        properties.append(
            Property(*LOWEST[:2], lowest, LOWEST[2], f"lowest on a {mesh}x{mesh}x{mesh} mesh and the bands")
        )
        return Outcome(tuple(properties), curves)


def _bands(phonopy: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Curves of the bands, and the frequencies at each special point by its name.

    Curves: ``bands_distance`` (p,), ``bands_q`` (p, 3), ``bands_frequency_thz`` (p, b); ``bands_piece_lengths`` (k,)
    and ``bands_labels`` (2k,): points of each piece, and the names of its ends.
    """
    structure = phonopy.band_structure
    points: dict[str, np.ndarray] = {}
    ends: list[str] = []
    names = iter(structure.labels)
    connected = list(structure.path_connections)
    # phonopy names the ends of every piece, but those shared with the piece before only once
    shared = False
    last = ""
    for piece, goes_on in enumerate(connected):
        first = last if shared else next(names)
        last = next(names)
        ends += [_plain(first), _plain(last)]
        points.setdefault(_plain(first), structure.frequencies[piece][0])
        points.setdefault(_plain(last), structure.frequencies[piece][-1])
        shared = goes_on
    lengths = [len(part) for part in structure.distances]
    return {
        "bands_distance": np.concatenate(structure.distances),
        "bands_q": np.concatenate(structure.qpoints),
        "bands_frequency_thz": np.concatenate(structure.frequencies),
        "bands_piece_lengths": np.array(lengths),
        "bands_labels": np.array(ends, dtype="U16"),
    }, points


def _plain(label: str) -> str:
    """Name of a special point without TeX: ``gamma``, ``X``, ``U2``."""
    text = label.replace("$", "").replace("\\mathrm", "").replace("\\Gamma", "gamma").replace("GAMMA", "gamma")
    return "".join(character for character in text if character.isalnum())
