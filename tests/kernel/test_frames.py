"""Laws of frames: identity, selection, concatenation, round trip through ASE; what importing the kernel loads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import FrameError, InvalidInputError
from aiida_mlip.kernel import frames as fr


def random_frames(seed: int, n: int = 5, *, fidelity: str = "a") -> fr.Frames:
    rng = np.random.default_rng(seed)
    natoms = rng.integers(1, 7, n)
    a = int(natoms.sum())
    return fr.from_arrays(
        natoms=natoms,
        numbers=rng.integers(1, 90, a),
        positions=rng.normal(size=(a, 3)) * 3,
        cell=rng.normal(size=(n, 3, 3)) * 5,
        pbc=rng.integers(0, 2, (n, 3)),
        energy=np.where(rng.random(n) < 0.7, rng.normal(size=n), np.nan),
        forces=rng.normal(size=(a, 3)),
        fidelity=rng.integers(-1, 1, n),
        generator=rng.integers(-1, 2, n),
        fidelities=(fidelity,),
        generators=("rattle", f"g{seed % 3}"),
    )


def same(a: fr.Frames, b: fr.Frames) -> bool:
    names = ("natoms", *fr.ROW_COLUMNS, *fr.ATOM_COLUMNS)
    equal_nan = {"energy", "stress", "forces", "cost"}
    return (a.fidelities, a.generators) == (b.fidelities, b.generators) and all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name in equal_nan) for name in names
    )


@given(st.integers(0, 10_000), st.data())
def test_take_picks_the_rows_asked_for(seed, data):
    frames = random_frames(seed)
    rows = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=8))
    taken = frames.take(rows)
    assert taken.ids() == [frames.ids()[row] for row in rows]
    for new, old in enumerate(rows):
        assert np.array_equal(taken.positions[taken.atom_slice(new)], frames.positions[frames.atom_slice(old)])
        assert np.array_equal(taken.forces[taken.atom_slice(new)], frames.forces[frames.atom_slice(old)])
    mask = np.isin(np.arange(len(frames)), rows)
    assert same(frames.take(mask), frames.take(np.flatnonzero(mask)))


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_concatenation_is_associative_and_keeps_names(x, y, z):
    a, b, c = random_frames(x, fidelity="a"), random_frames(y, fidelity="b"), random_frames(z, fidelity="a")
    left = fr.concatenate([fr.concatenate([a, b]), c])
    right = fr.concatenate([a, fr.concatenate([b, c])])
    assert same(left, right)

    def names(frames):
        return [frames.fidelities[i] if i >= 0 else None for i in frames.fidelity]

    assert names(left) == names(a) + names(b) + names(c)


@given(st.integers(0, 10_000), st.floats(-3e-9, 3e-9))
def test_identity_survives_text_precision_but_not_a_real_change(seed, noise):
    frames = random_frames(seed)
    rounded = frames.with_columns(positions=np.round(frames.positions, 8))
    assert rounded.ids() == frames.ids()
    rounded_again = rounded.with_columns(positions=rounded.positions + noise)
    assert rounded_again.ids() == rounded.ids()
    moved = frames.positions.copy()
    moved[-1, 0] += 1e-6
    changed = frames.with_columns(positions=moved)
    assert changed.ids()[:-1] == frames.ids()[:-1]
    assert changed.ids()[-1] != frames.ids()[-1]


def test_identity_depends_on_species_cell_and_periodicity():
    base = bulk("Si")
    variants = [base.copy() for _ in range(4)]
    variants[1].numbers[0] = 32
    variants[2].cell[0, 0] += 1e-3
    variants[3].pbc = (True, True, False)
    assert len(set(fr.from_ase(variants).ids())) == 4


def test_negative_zero_is_zero():
    atoms = [Atoms("H", positions=[[0.0, 0, 0]]), Atoms("H", positions=[[-0.0, 0, 0]])]
    first, second = fr.from_ase(atoms).ids()
    assert first == second


def test_round_trip_through_ase_keeps_labels_and_signs():
    atoms = bulk("Cu", cubic=True) * (1, 1, 2)
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    frames = fr.from_ase([atoms], fidelity="emt")
    back = frames.to_ase(0)
    assert back.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    np.testing.assert_allclose(back.get_forces(), atoms.get_forces(), atol=1e-12)
    np.testing.assert_allclose(back.get_stress(), atoms.get_stress(), atol=1e-12)
    assert back.info["fidelity"] == "emt"


def test_labels_without_a_fidelity_name_are_refused():
    atoms = bulk("Cu")
    atoms.calc = EMT()
    atoms.get_potential_energy()
    with pytest.raises(FrameError, match=r"frame 1.*no fidelity name"):
        fr.from_ase([bulk("Si"), atoms])


def test_a_frame_without_atoms_is_refused():
    with pytest.raises(FrameError, match="frame 1: has no atoms"):
        fr.from_ase([bulk("Si"), Atoms()])


def test_columns_of_wrong_shape_or_index_are_refused():
    frames = random_frames(1)
    with pytest.raises(InvalidInputError, match="'energy' has shape"):
        frames.with_columns(energy=np.zeros(len(frames) + 1))
    with pytest.raises(InvalidInputError, match="'fidelity' has indices"):
        frames.with_columns(fidelity=np.full(len(frames), 3))
    with pytest.raises(InvalidInputError, match="unknown columns"):
        frames.with_columns(colour=np.zeros(len(frames)))


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=5))
def test_identifiers_round_trip_as_text(raw):
    ids = np.frombuffer(b"".join(raw), dtype=np.uint8).reshape(-1, 16)
    np.testing.assert_array_equal(fr.id_bytes(fr.id_hex(ids)), ids)


@pytest.mark.parametrize("text", ["xyz", "00ff"])
def test_malformed_identifiers_are_refused(text):
    with pytest.raises(InvalidInputError):
        fr.id_bytes([text])


def test_reference_energies_come_from_isolated_atoms_only():
    images = [Atoms("Cu"), bulk("Cu"), Atoms("Al")]
    for atoms in images:
        atoms.calc = EMT()
        atoms.get_potential_energy()
    frames = fr.from_ase(images, fidelity="emt")
    found = fr.reference_energies(frames)
    assert set(found["emt"]) == {"Cu", "Al"}
    assert found["emt"]["Cu"] == pytest.approx(images[0].get_potential_energy())


@pytest.mark.parametrize("module", ["aiida_mlip", "aiida_mlip.kernel.frames", "aiida_mlip.io.shards"])
def test_import_loads_neither_aiida_nor_torch(module):
    code = f"import sys, {module}; print([m for m in ('aiida', 'torch', 'nequip') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
