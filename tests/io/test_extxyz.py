"""Extended XYZ: round trips, readers of others, and files whose conventions would have to be guessed."""

from __future__ import annotations

import contextlib
import io

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError, FrameError, InvalidInputError
from aiida_mlip.io.extxyz import LabelKeys, read_extxyz, write_extxyz
from aiida_mlip.kernel.frames import ATOM_COLUMNS, ROW_COLUMNS, Failure, Frames, digest, from_arrays, from_ase


@st.composite
def frames(draw) -> Frames:
    natoms = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    n, a = len(natoms), sum(natoms)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-9, 3))
    labelled = rng.random(n) < 0.7
    rows = np.repeat(labelled, natoms)
    mask = rng.random((a, 3)) < draw(st.sampled_from([0.0, 0.3]))
    stress = rng.normal(size=(n, 3, 3))
    failed = ~labelled & (rng.random(n) < 0.5)
    columns = {
        "energy": np.where(labelled, rng.normal(size=n) * scale, np.nan),
        "forces": np.where(rows[:, None] & ~mask, rng.normal(size=(a, 3)) * scale, np.nan),
        "stress": np.where(labelled[:, None, None], stress + stress.transpose(0, 2, 1), np.nan),
        "fidelity": np.where(labelled | failed, 0, -1),
        "failure": np.where(failed, Failure.OUT_OF_MEMORY, 0),
        "generator": rng.integers(-1, 2, n),
        "cost": np.where(labelled, rng.random(n), np.nan),
        "parent_id": rng.integers(0, 256, (n, 16)),
        "group_id": rng.integers(0, 256, (n, 16)),
        "label_uuid": rng.integers(0, 256, (n, 16)),
        "label_row": rng.integers(-1, 5, n),
    }
    if draw(st.booleans()):
        columns |= {"region": rng.integers(0, 4, a), "parent_atom": rng.integers(-1, 9, a)}
    return from_arrays(
        natoms=np.array(natoms),
        numbers=rng.integers(1, 100, a),
        positions=rng.normal(size=(a, 3)) * scale,
        cell=rng.normal(size=(n, 3, 3)) * draw(st.sampled_from([0.0, 1.0, 10.0])),
        pbc=rng.random((n, 3)) < 0.5,
        fidelities=("pbe sol",),
        generators=("rattle", "strain"),
        **columns,
    )


def text_of(value: Frames, **options) -> str:
    stream = io.StringIO()
    write_extxyz(value, stream, **options)
    return stream.getvalue()


@given(frames())
@settings(max_examples=80, deadline=None)
def test_round_trip_keeps_every_digit_and_the_lineage(value):
    again = read_extxyz(io.StringIO(text_of(value)))
    for name in ("natoms", *ROW_COLUMNS, *ATOM_COLUMNS, "region", "parent_atom"):
        first, second = getattr(value, name), getattr(again, name)
        assert (first is None) == (second is None), name
        if name in ("fidelity", "generator"):
            tables = [(f.fidelities if name == "fidelity" else f.generators) + ("",) for f in (value, again)]
            first, second = ([t[i] for i in column] for t, column in zip(tables, (first, second), strict=True))
        if first is not None:
            np.testing.assert_array_equal(second, first, err_msg=name)


@given(frames())
@settings(max_examples=30, deadline=None)
def test_ase_reads_the_same_geometry_and_labels(value):
    images = ase.io.read(io.StringIO(text_of(value, nan_missing=True)), ":", format="extxyz")
    assert from_ase(images, fidelity="x").ids() == value.ids()
    for row, atoms in enumerate(images):
        np.testing.assert_array_equal(atoms.calc.results["energy"], value.energy[row])
        np.testing.assert_array_equal(atoms.calc.results["forces"], value.forces[value.atom_slice(row)])
        np.testing.assert_array_equal(atoms.calc.results["stress"][[0, 3]], value.stress[row][[0, 1], [0, 2]])


@pytest.mark.nequip
def test_nequip_reads_masked_labels_and_extra_info(tmp_path):
    from nequip.data.dataset import ASEDataset

    value = from_arrays(
        natoms=np.array([2, 2]),
        numbers=np.full(4, 14),
        positions=np.array([[0.0, 0, 0], [1.3, 1.3, 1.3]] * 2),
        cell=np.tile(5.0 * np.eye(3), (2, 1, 1)),
        pbc=np.ones((2, 3), dtype=bool),
        energy=np.array([-1.0, np.nan]),
        forces=np.array([[0.1, 0, 0], [np.nan] * 3, [np.nan] * 3, [np.nan] * 3]),
        fidelity=np.array([0, -1]),
        fidelities=("a",),
    )
    write_extxyz(value, tmp_path / "train.xyz", nan_missing=True, info={"dataset": [1, 0]}, lineage=False)
    data = ASEDataset(file_path=str(tmp_path / "train.xyz"), include_keys=["dataset"])[:]
    assert [int(d["dataset"]) for d in data] == [1, 0]
    assert float(data[0]["total_energy"]) == -1.0
    assert bool(np.isnan(data[1]["total_energy"].item()))
    np.testing.assert_array_equal(np.isnan(data[0]["forces"].numpy()), [[False] * 3, [True] * 3])
    assert data[0]["stress"].reshape(3, 3).shape == (3, 3)


def one(comment: str, *, properties: str = "species:S:1:pos:R:3", atoms: str = "Cu 0 0 0") -> io.StringIO:
    return io.StringIO(f'1\nLattice="3 0 0 0 3 0 0 0 3" Properties={properties} {comment}\n{atoms}\n')


def test_stress_conventions():
    six = read_extxyz(one('energy=1 stress="1 2 3 4 5 6"'), fidelity="x").stress[0]
    np.testing.assert_array_equal(six, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    virial = one('energy=1 virial="27 0 0 0 27 0 0 0 54"')
    with pytest.raises(FrameError, match=r"frame 0: has 'virial' but no 'stress'; say whether stress = -virial/V"):
        read_extxyz(virial, fidelity="x")
    for sign, expected in (("negative", -1.0), ("positive", 1.0)):
        virial.seek(0)
        got = read_extxyz(virial, fidelity="x", keys=LabelKeys(virial_sign=sign)).stress[0]
        np.testing.assert_allclose(got, expected * np.diag([1, 1, 2]))
    both = one('energy=1 stress="1 0 0 0 1 0 0 0 2" virial="27 0 0 0 27 0 0 0 54"')
    with pytest.raises(FrameError, match="contradict each other"):
        read_extxyz(both, fidelity="x", keys=LabelKeys(virial_sign="negative"))
    with pytest.raises(FrameError, match="not symmetric"):
        read_extxyz(one('energy=1 stress="1 2 3 4 5 6 7 8 9"'), fidelity="x")
    with pytest.raises(FrameError, match="9 or 6 numbers"):
        read_extxyz(one('energy=1 stress="1 2 3"'), fidelity="x")
    with pytest.raises(InvalidInputError, match="virial_sign 'up'"):
        LabelKeys(virial_sign="up")


def test_labels_under_other_names_are_not_passed_over():
    with pytest.raises(FrameError, match="REF_energy"):
        read_extxyz(one("REF_energy=-3.5"), fidelity="x")
    assert read_extxyz(one("REF_energy=-3.5"), fidelity="x", keys=LabelKeys(energy="REF_energy")).energy[0] == -3.5
    assert not read_extxyz(one("cut_energy=-3.5"), keys=LabelKeys(energy="")).labelled.any()
    dft = {"properties": "species:S:1:pos:R:3:dft_forces:R:3", "atoms": "Cu 0 0 0 1 2 3"}
    with pytest.raises(FrameError, match="dft_forces"):
        read_extxyz(one("energy=1", **dft), fidelity="x")
    got = read_extxyz(one("energy=1 free_energy=2", **dft), fidelity="x", keys=LabelKeys(forces="dft_forces"))
    np.testing.assert_array_equal(got.forces, [[1, 2, 3]])
    assert got.energy[0] == 2.0  # the energy whose derivative the forces are


def test_fidelity_and_groups():
    with pytest.raises(FrameError, match="no fidelity name"):
        read_extxyz(one("energy=1"))
    with pytest.raises(FrameError, match="states fidelity 'lda', asked to import as 'pbe'"):
        read_extxyz(one("energy=1 fidelity=lda"), fidelity="pbe")
    grouped = read_extxyz(one("energy=1 run=7"), fidelity="x", keys=LabelKeys(group="run"))
    np.testing.assert_array_equal(grouped.group_id[0], digest("run", "7"))
    with pytest.raises(FrameError, match="no info key 'run'"):
        read_extxyz(one("energy=1"), fidelity="x", keys=LabelKeys(group="run"))


def test_an_edited_geometry_loses_its_id():
    value = from_arrays(natoms=np.array([1]), numbers=np.array([29]), positions=np.array([[0.123, 0, 0]]))
    with pytest.raises(FrameError, match="edited"):
        read_extxyz(io.StringIO(text_of(value).replace("0.123", "0.124")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no frames"),
        ("hello\n", "expected a number of atoms, got 'hello'"),
        ("3\n\nCu 0 0 0\n", "truncated, 1 of 3 atoms"),
        ("2\n\nCu 0 0 0\nCu 0 0\n", "atom 1: 3 columns, Properties promises 4"),
        ("1\nProperties=pos:R:3\n0 0 0\n", "no species"),
        ("1\nProperties=species:S:x:pos:R:3\nCu 0 0 0\n", "cannot read Properties"),
    ],
)
def test_broken_files(text, message):
    with pytest.raises(FileFormatError, match=message):
        read_extxyz(io.StringIO(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n\n", "has 0 atoms"),
        ("1\n\nQq 0 0 0\n", "unknown chemical symbol 'Qq'"),
        ("1\nProperties=Z:I:1:pos:R:3\n0 0 0 0\n", "atomic numbers must be"),
        ("1\n\nCu 0 0 zero\n", "could not convert"),
        ('1\nLattice="1 2 3"\nCu 0 0 0\n', "expected 9 numbers, got 3"),
        ('1\npbc="T F"\nCu 0 0 0\n', "pbc must be"),
        ("1\nfailure=bored\nCu 0 0 0\n", "unknown failure 'bored'"),
    ],
)
def test_broken_frames(text, message):
    with pytest.raises(FrameError, match=message):
        read_extxyz(io.StringIO(text))


@given(st.text(alphabet='1 Cu\n="0.TF:SR3posLattice', max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_frames_or_an_error_of_ours(text):
    with contextlib.suppress(FileFormatError, InvalidInputError):
        assert len(read_extxyz(io.StringIO(text), fidelity="x")) > 0


def test_binary_files_are_an_error(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(FileFormatError, match="not a text file"):
        read_extxyz(tmp_path / "a.xyz")


def test_further_columns_of_atoms():
    frames = from_ase([bulk("Cu", cubic=True), bulk("Si")])
    stream = io.StringIO()
    write_extxyz(frames, stream, columns={"atom_types": np.arange(6)})
    stream.seek(0)
    found = list(ase.io.iread(stream, format="extxyz"))
    assert [atoms.arrays["atom_types"].tolist() for atoms in found] == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(InvalidInputError, match="column 'atom_types' has 5 values for 6 atoms"):
        write_extxyz(frames, io.StringIO(), columns={"atom_types": np.arange(5)})
    with pytest.raises(InvalidInputError, match="column 'region' is written from the frames"):
        write_extxyz(frames, io.StringIO(), columns={"region": np.arange(6)})


def test_info_columns():
    value = from_arrays(natoms=np.array([1]), numbers=np.array([29]), positions=np.zeros((1, 3)))
    atoms = ase.io.read(
        io.StringIO(text_of(value, info={"a": [True], "b": ["two words"], "c": [2.5]})), format="extxyz"
    )
    assert (atoms.info["a"], atoms.info["b"], atoms.info["c"]) == (True, "two words", 2.5)
    with pytest.raises(InvalidInputError, match="2 values for 1 frames"):
        text_of(value, info={"a": [1, 2]})
    with pytest.raises(InvalidInputError, match="written from the frames"):
        text_of(value, info={"energy": [1]})


def test_real_data(data_dir):
    for name in ("Si_test", "Cu_test"):
        path = data_dir / "mlearn" / f"{name}.xyz"
        value = read_extxyz(path, fidelity="pbe", keys=LabelKeys(group="group") if name == "Si_test" else None)
        images = ase.io.read(path, ":")
        assert value.ids() == from_ase(images, fidelity="pbe").ids()
        assert read_extxyz(io.StringIO(text_of(value))).ids() == value.ids()
