"""Metadynamics in the space of atomic environments: every atom fills the environments it has visited.

E_b = Σ_i V_{Z_i}(s_i), with s_i = W_{Z_i} (G_i − mean) the whitened descriptor of atom i and V_Z a sum of hills laid at
the environments that atoms of element Z had before (doi:10.1038/s41524-021-00595-5). Atoms of one element share their
hills, so equal environments are filled once for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.metadynamics.descriptor import EnvironmentDescriptor
from aiida_mlip.kernel.metadynamics.hills import HillGrid, well_tempered
from aiida_mlip.kernel.metadynamics.whitening import Whitening, fit_whitening


@dataclass(frozen=True)
class BiasEvaluation:
    """Bias at one geometry.

    :param energy: E_b in eV.
    :param forces: (a, 3) −∂E_b/∂r in eV/Å.
    :param virial: (3, 3) ∂E_b/∂ε in eV; divided by the volume it is the stress (tension positive).
    :param coordinates: (a, d) whitened coordinates; NaN beyond those an element has.
    :param per_atom: (a,) V of each atom, eV.
    """

    energy: float
    forces: Float[np.ndarray, "a 3"]
    virial: Float[np.ndarray, "3 3"]
    coordinates: Float[np.ndarray, "a d"]
    per_atom: Float[np.ndarray, "a"]


@dataclass
class EnvironmentBias:
    """Hills in the environment space of each element; :meth:`deposit` is the only thing that changes it.

    :param descriptor: of the environments.
    :param whitenings: coordinates of each element's environments, by atomic number.
    :param width: of a hill, in standard deviations of the reference.
    """

    descriptor: EnvironmentDescriptor
    whitenings: Mapping[int, Whitening]
    width: float
    hills: dict[int, HillGrid] = field(init=False)

    def __post_init__(self) -> None:
        """Start without hills."""
        self.hills = {z: HillGrid(w.n_dim, self.width) for z, w in sorted(self.whitenings.items())}

    @property
    def n_hills(self) -> int:
        """Grid points that carry a hill, all elements together."""
        return sum(len(grid) for grid in self.hills.values())

    def coordinates(
        self, numbers: Int[np.ndarray, "a"], positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> Float[np.ndarray, "a d"]:
        """(a, d) whitened coordinates of every atom; NaN beyond those an element has."""
        return self._whiten(numbers, self.descriptor.evaluate(numbers, positions, cell, pbc).values)

    def evaluate(
        self, numbers: Int[np.ndarray, "a"], positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> BiasEvaluation:
        """Energy, forces and virial of the bias.

        :param numbers: (a,) atomic numbers.
        :param positions: (a, 3) Å.
        :param cell: (3, 3) Å, rows are lattice vectors.
        :param pbc: (3,) periodicity.
        :raises InvalidInputError: an element without reference environments.
        """
        invariants = self.descriptor.evaluate(numbers, positions, cell, pbc)
        points = self._whiten(numbers, invariants.values)
        per_atom = np.zeros(len(numbers))
        gradient = np.zeros_like(invariants.values)
        for z, grid in self.hills.items():
            of_z = numbers == z
            if not of_z.any() or not len(grid):
                continue
            per_atom[of_z], slope = grid.evaluate(points[of_z, : grid.n_dim])
            gradient[of_z] = slope @ self.whitenings[z].matrix
        derivative, virial = self.descriptor.pull_back(invariants, gradient)
        return BiasEvaluation(float(per_atom.sum()), -derivative, virial, points, per_atom)

    def deposit(
        self,
        numbers: Int[np.ndarray, "a"],
        at: BiasEvaluation,
        *,
        height_ev: float,
        boltzmann_temperature_ev: float,
        bias_factor: float | None = None,
    ) -> None:
        """Lay one hill at the environment of every atom.

        :param at: the bias at the geometry where the hills go.
        :param height_ev: of each atom's hill, before tempering.
        :param boltzmann_temperature_ev: k_B·T in eV.
        :param bias_factor: γ of well-tempered metadynamics; None: heights stay as they are.
        """
        heights = well_tempered(
            height_ev, at.per_atom, boltzmann_temperature=boltzmann_temperature_ev, bias_factor=bias_factor
        )
        for z, grid in self.hills.items():
            of_z = numbers == z
            if of_z.any():
                grid.deposit(at.coordinates[of_z, : grid.n_dim], heights[of_z])

    def _whiten(self, numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
        points = np.full((len(numbers), max(w.n_dim for w in self.whitenings.values())), np.nan)
        for z in np.unique(numbers):
            if int(z) not in self.whitenings:
                raise InvalidInputError(f"no reference environments of atomic number {z}; there are {list(self.hills)}")
            whitening = self.whitenings[int(z)]
            points[numbers == z, : whitening.n_dim] = whitening(values[numbers == z])
        return points


def fit_environment_bias(
    reference: Frames, *, cutoff_ang: float, n_radial: int, components: int, width: float
) -> EnvironmentBias:
    """Bias without hills, whitened on the environments of reference frames.

    :param reference: thermal or rattled frames that hold every element of the dynamics.
    :param cutoff_ang: of the environments.
    :param n_radial: radial functions of the descriptor.
    :param components: coordinates per element, at most 4.
    :param width: of a hill, in standard deviations of the reference.
    :raises InvalidInputError: too few environments of an element, or all equal.
    """
    from ase.data import chemical_symbols

    species = tuple(int(z) for z in np.unique(reference.numbers))
    descriptor = EnvironmentDescriptor(species=species, cutoff_ang=cutoff_ang, n_radial=n_radial)
    values = descriptors(descriptor, reference)
    whitenings = {
        z: fit_whitening(
            values[reference.numbers == z], components=components, where=f"reference, {chemical_symbols[z]}"
        )
        for z in species
    }
    return EnvironmentBias(descriptor, whitenings, width)


def descriptors(descriptor: EnvironmentDescriptor, frames: Frames) -> Float[np.ndarray, "a f"]:
    """(a, f) descriptors of all atoms of all rows."""
    parts: Sequence[np.ndarray] = [
        descriptor.evaluate(frames.numbers[part], frames.positions[part], frames.cell[row], frames.pbc[row]).values
        for row, part in ((row, frames.atom_slice(row)) for row in range(len(frames)))
    ]
    return np.concatenate(parts)


def to_arrays(bias: EnvironmentBias) -> dict[str, np.ndarray]:
    """Everything about a bias as plain arrays; equal biases give equal arrays."""
    arrays: dict[str, np.ndarray] = {
        "species": np.array(bias.descriptor.species, dtype=np.int64),
        "cutoff_ang": np.array(bias.descriptor.cutoff_ang),
        "n_radial": np.array(bias.descriptor.n_radial),
        "width": np.array(bias.width),
    }
    for z, grid in bias.hills.items():
        arrays[f"mean_{z}"] = bias.whitenings[z].mean
        arrays[f"matrix_{z}"] = bias.whitenings[z].matrix
        arrays[f"points_{z}"], arrays[f"heights_{z}"] = grid.export()
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> EnvironmentBias:
    """Inverse of :func:`to_arrays`.

    :raises InvalidInputError: an array is missing or of the wrong shape.
    """
    try:
        species = tuple(int(z) for z in arrays["species"])
        descriptor = EnvironmentDescriptor(species, float(arrays["cutoff_ang"]), int(arrays["n_radial"]))
        whitenings = {z: Whitening(arrays[f"mean_{z}"], arrays[f"matrix_{z}"]) for z in species}
        bias = EnvironmentBias(descriptor, whitenings, float(arrays["width"]))
        for z in species:
            bias.hills[z].load(arrays[f"points_{z}"], arrays[f"heights_{z}"])
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidInputError(f"not a stored environment bias: {error!r}") from error
    return bias
