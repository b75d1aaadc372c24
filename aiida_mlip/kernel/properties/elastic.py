"""Elastic constants of relaxed ions from stresses of strained cells, and whether the crystal is stable."""

from __future__ import annotations

from typing import Final

import numpy as np
from ase import Atoms
from jaxtyping import Float

from aiida_mlip.kernel.properties.crystal import Crystal
from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Property, Results
from aiida_mlip.kernel.units import GPA

#: Components of Voigt's notation.
VOIGT: Final[tuple[tuple[int, int], ...]] = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
#: A constant below this (GPa) is zero by symmetry or noise, and not listed.
_NEGLIGIBLE_GPA: Final[float] = 0.05
_CUBIC: Final[tuple[tuple[int, int], ...]] = ((0, 0), (0, 1), (3, 3))
DEFINITION: Final[str] = (
    "relaxed ions, at the own equilibrium volume, standard setting: central differences of the stress, "
    "internal relaxation by linear response, averaged over the point group"
)
SUMMARY: Final[tuple[tuple[str, str, str], ...]] = (
    ("elastic_bulk_modulus_gpa", "moduli", "GPa"),
    ("shear_modulus_gpa", "moduli", "GPa"),
    ("youngs_modulus_gpa", "moduli", "GPa"),
    ("smallest_elastic_eigenvalue_gpa", "elastic_stability", "GPa"),
)


def elastic_cells(crystal: Crystal, *, strain: float, displacement: float) -> list[Atoms]:
    """Frames in order: + and - of each of six strains, then + and - of every atom along x, y, z.

    Cells of one atom have no internal coordinates, and no displacements.
    """
    cell = crystal.primitive
    cells = []
    for i, j in VOIGT:
        for sign in (1, -1):
            deformation = np.eye(3)
            deformation[i, j] += 0.5 * sign * strain
            deformation[j, i] += 0.5 * sign * strain
            copy = cell.copy()
            copy.set_cell(cell.cell.array @ deformation, scale_atoms=True)
            cells.append(copy)
    for atom in range(len(cell) if len(cell) > 1 else 0):
        for axis in range(3):
            for sign in (1, -1):
                copy = cell.copy()
                copy.positions[atom, axis] += sign * displacement
                cells.append(copy)
    return cells


def elastic_constants(crystal: Crystal, results: Results, *, strain: float, displacement: float) -> Outcome:
    r"""Elastic constants, moduli and stability.

    .. math:: C_{IJ} = \partial\sigma_I/\partial\varepsilon_J - \Lambda_I K^{+} \Lambda_J / V

    with the internal strain Λ = ∂F/∂ε and the force constants K of the cell at Γ (doi:10.1103/PhysRevB.72.035105).
    Moduli are Voigt-Reuss-Hill averages (doi:10.1088/0370-1298/65/5/307). The crystal is stable if all eigenvalues of
    C are positive, the general form of Born's criteria (doi:10.1103/PhysRevB.90.224104).

    :raises NotComputableError: a stress or force is missing.
    """
    results.part(0, 12).check("stress", "forces")
    results.check("forces")
    constants, relaxation = _clamped(results, strain), np.zeros((6, 6))
    if len(crystal.primitive) > 1:
        internal = np.array([(results.forces[2 * k] - results.forces[2 * k + 1]).ravel() for k in range(6)])
        internal /= 2.0 * strain
        rows = results.forces[12:]
        stiffness = -np.array([(rows[2 * k] - rows[2 * k + 1]).ravel() for k in range(len(rows) // 2)])
        stiffness /= 2.0 * displacement
        relaxation = internal @ _inverse(stiffness) @ internal.T / crystal.primitive.get_volume()
    tensor = _symmetrised(0.5 * (constants + constants.T) - relaxation, crystal.rotations) / GPA
    values = {**_listed(tensor, crystal), **_moduli(tensor)}
    units = {name: family for name, family, _ in SUMMARY}
    properties = tuple(
        Property(name, units.get(name, "elastic_constants"), value, "GPa", DEFINITION) for name, value in values.items()
    )
    return Outcome(properties, {"elastic_tensor_gpa": tensor, "elastic_tensor_clamped_gpa": constants / GPA})


def _clamped(results: Results, strain: float) -> Float[np.ndarray, "6 6"]:
    """∂σ_I/∂ε_J (eV/Å³) at fixed fractional coordinates; a shear strain counts as engineering strain."""
    slopes = [(results.stress[2 * k] - results.stress[2 * k + 1]) / (2.0 * strain) for k in range(6)]
    return np.array([[slope[i, j] for i, j in VOIGT] for slope in slopes]).T


def _inverse(stiffness: np.ndarray) -> np.ndarray:
    """Pseudo-inverse of the force constants without the three translations."""
    symmetric = 0.5 * (stiffness + stiffness.T)
    n = len(symmetric) // 3
    uniform = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    projector = np.eye(3 * n) - uniform @ uniform.T
    values, vectors = np.linalg.eigh(projector @ symmetric @ projector)
    order = np.argsort(np.abs(values))[3:]
    if (np.abs(values[order]) < 1e-6).any():
        raise NotComputableError("the atoms of the cell move freely against one another: no internal relaxation")
    return np.asarray((vectors[:, order] / values[order]) @ vectors[:, order].T)


def _symmetrised(tensor: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Mean over the point group."""
    from matscipy.elasticity import rotate_elastic_constants

    return np.asarray(np.mean([rotate_elastic_constants(tensor, rotation) for rotation in rotations], axis=0))


def _listed(tensor: np.ndarray, crystal: Crystal) -> dict[str, float]:
    """Constants by name: three of a cubic crystal, all that are not zero of others."""
    pairs = _CUBIC if crystal.is_cubic else [(i, j) for i in range(6) for j in range(i, 6)]
    return {
        f"c{i + 1}{j + 1}_gpa": float(tensor[i, j])
        for i, j in pairs
        if crystal.is_cubic or abs(tensor[i, j]) > _NEGLIGIBLE_GPA
    }


def _moduli(tensor: np.ndarray) -> dict[str, float]:
    """Hill's averages and the smallest eigenvalue, in the unit of the tensor."""
    smallest = float(np.linalg.eigvalsh(tensor * np.outer(*(2 * [np.sqrt([1, 1, 1, 2, 2, 2])]))).min())
    if abs(smallest) < 1e-9:
        raise NotComputableError("the elastic tensor is singular")
    s, c = np.linalg.inv(tensor), tensor
    bulk = 0.5 * (c[:3, :3].sum() / 9.0 + 1.0 / s[:3, :3].sum())
    voigt = (np.trace(c[:3, :3]) - (c[0, 1] + c[1, 2] + c[0, 2]) + 3.0 * np.trace(c[3:, 3:])) / 15.0
    reuss = 15.0 / (4.0 * np.trace(s[:3, :3]) - 4.0 * (s[0, 1] + s[1, 2] + s[0, 2]) + 3.0 * np.trace(s[3:, 3:]))
    shear = 0.5 * (voigt + reuss)
    return {
        "elastic_bulk_modulus_gpa": float(bulk),
        "shear_modulus_gpa": float(shear),
        "youngs_modulus_gpa": float(9.0 * bulk * shear / (3.0 * bulk + shear)),
        "smallest_elastic_eigenvalue_gpa": smallest,
    }
