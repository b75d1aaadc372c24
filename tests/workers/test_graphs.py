"""The graphs made here are those of NequIP's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from aiida_mlip.errors import SpeciesError
from aiida_mlip.io.level_types import type_indices
from aiida_mlip.workers.graphs import batched, graph, pair_cutoffs

TYPES = ["C", "Si", "H", "O", "Cu"]
CUTOFF = 4.2
PER_PAIR = {name: {other: 2.0 + 0.3 * i + 0.1 * j for j, other in enumerate(TYPES)} for i, name in enumerate(TYPES)}


def silicon_carbide(seed: int) -> Atoms:
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.positions += 30.0  # outside of the cell
    return atoms


GEOMETRIES = {
    "crystal": silicon_carbide(1),
    "skewed": bulk("Si", a=5.4),
    "slab": fcc111("Cu", (1, 1, 3), vacuum=5.0),
    "molecule": molecule("CH3CH2OH"),
    "alone": Atoms("H", positions=[[0.0, 0.0, 0.0]]),
}


def of_nequip(atoms: Atoms, fidelity: int | None, per_pair: dict | None):
    from nequip.data import from_dict
    from nequip.integrations.utils import basic_transforms

    values = {"pos": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc, "atomic_numbers": atoms.numbers}
    if fidelity is not None:
        values["dataset"] = np.array([[fidelity]])
    data = from_dict(values)
    metadata = {"per_edge_type_cutoff": per_pair}
    for transform in basic_transforms(metadata, CUTOFF, TYPES, {name: name for name in TYPES}):
        data = transform(data)
    return data


def of_us(atoms: Atoms, fidelity: int | None, cutoffs: np.ndarray | None):
    types = type_indices(TYPES, atoms.numbers)
    return graph(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc,
        types=types, cutoff_ang=CUTOFF, cutoffs=cutoffs, fidelity=fidelity,
    )  # fmt: skip


def assert_same(ours, theirs) -> None:
    import torch

    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name
        assert ours[name].is_contiguous(), name  # models look at it in other shapes


@pytest.fixture(autouse=True)
def double_precision():
    import torch

    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("fidelity", [None, 1])
@pytest.mark.parametrize("per_pair", [None, PER_PAIR])
def test_graph_is_that_of_nequip(name: str, fidelity: int | None, per_pair: dict | None) -> None:
    atoms = GEOMETRIES[name]
    ours = of_us(atoms, fidelity, pair_cutoffs({"per_edge_type_cutoff": per_pair}, TYPES))
    assert_same(ours, of_nequip(atoms, fidelity, per_pair))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_batch_is_that_of_nequip(n: int) -> None:
    from nequip.data import AtomicDataDict

    chosen = [silicon_carbide(seed) for seed in range(n - 1)] + [GEOMETRIES["molecule"]]
    theirs = AtomicDataDict.batched_from_list([of_nequip(atoms, 0, None) for atoms in chosen])
    assert_same(batched([of_us(atoms, 0, None) for atoms in chosen]), theirs)


def test_cutoffs_of_a_package_and_of_a_compiled_file_agree() -> None:
    text = " ".join(str(PER_PAIR[i][j]) for i in TYPES for j in TYPES)
    expected = [[PER_PAIR[i][j] for j in TYPES] for i in TYPES]
    for given in (text, PER_PAIR):
        assert pair_cutoffs({"per_edge_type_cutoff": given}, TYPES).tolist() == expected
    for nothing in ({}, {"per_edge_type_cutoff": None}, {"per_edge_type_cutoff": ""}):
        assert pair_cutoffs(nothing, TYPES) is None


def test_unknown_elements_are_named() -> None:
    with pytest.raises(SpeciesError, match="does not cover Ge, Sn; it covers C, Si"):
        type_indices(TYPES, np.array([50, 14, 32, 32]))
