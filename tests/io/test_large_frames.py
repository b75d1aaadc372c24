"""Large frames: every format gives what ASE gives, any frame of a file, and a malformed line is named."""

import gzip

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import Trajectory

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io import line_reader
from aiida_mlip.io.large_frames import count_frames, detect_format, read_large_frame


def images(n: int = 3, *, tilted: bool = False) -> list[Atoms]:
    made = []
    for seed in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 1, 1)
        if tilted:
            cell = atoms.cell.array.copy()
            cell[1, 0], cell[2, 0], cell[2, 1] = 1.3, -0.7, 0.4
            atoms.set_cell(cell, scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
        atoms.pbc = (True, True, seed != 1)
        made.append(atoms)
    return made


def write_dump(path, frames, columns="id type xu yu zu"):
    lines = []
    for step, atoms in enumerate(frames):
        cell = atoms.cell.array
        xy, xz, yz = cell[1, 0], cell[2, 0], cell[2, 1]
        low = np.array([10.0, -3.0, 0.5])
        high = low + np.diag(cell)
        bounds = np.stack([low, high], axis=1)
        bounds[0] += [min(0, xy, xz, xy + xz), max(0, xy, xz, xy + xz)]
        bounds[1] += [min(0, yz), max(0, yz)]
        flags = " ".join("pp" if p else "ff" for p in atoms.pbc)
        lines += ["ITEM: TIMESTEP", str(step), "ITEM: NUMBER OF ATOMS", str(len(atoms))]
        lines += [f"ITEM: BOX BOUNDS xy xz yz {flags}"]
        lines += [f"{a:.12f} {b:.12f} {t:.12f}" for (a, b), t in zip(bounds, (xy, xz, yz), strict=True)]
        lines += [f"ITEM: ATOMS {columns}"]
        scaled = atoms.get_scaled_positions(wrap=False)
        for i, atom in enumerate(atoms):
            values = {"id": i + 1, "type": 1 if atom.symbol == "Na" else 2, "element": atom.symbol, "q": 0.5}
            values |= dict(zip(("xu", "yu", "zu"), atom.position + low, strict=True))
            values |= dict(zip(("x", "y", "z"), atom.position + low, strict=True))
            values |= dict(zip(("xs", "ys", "zs"), scaled[i], strict=True))
            lines.append(" ".join(str(values[name]) for name in columns.split()))
    path.write_text("\n".join(lines) + "\n")
    return path


def agrees(found, atoms):
    np.testing.assert_array_equal(found.numbers, atoms.numbers)
    np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(found.cell, atoms.cell.array, atol=1e-7)
    np.testing.assert_array_equal(found.pbc, atoms.pbc)


@pytest.mark.parametrize("block", [1, 5, 50_000])
@pytest.mark.parametrize("frame", [0, 1, 2, -1, -3])
def test_extxyz(tmp_path, monkeypatch, frame, block):
    monkeypatch.setattr(line_reader, "_BLOCK", block)
    ase.io.write(tmp_path / "all.xyz", images(tilted=True), format="extxyz")
    agrees(read_large_frame(tmp_path / "all.xyz", frame=frame), images(tilted=True)[frame])
    assert count_frames(tmp_path / "all.xyz") == 3


@pytest.mark.parametrize("columns", ["id type xu yu zu", "element x y z", "q id element xs ys zs", "type id zs ys xs"])
@pytest.mark.parametrize("tilted", [False, True])
def test_lammps_dump(tmp_path, columns, tilted):
    path = write_dump(tmp_path / "run.lammpstrj", images(tilted=tilted), columns)
    for frame in (0, 2, -2):
        found = read_large_frame(path, frame=frame, species=("Na", "Cl"))
        agrees(found, images(tilted=tilted)[frame])
        if "id" in columns.split():
            np.testing.assert_array_equal(found.ids, np.arange(1, 17))
    assert count_frames(path) == 3


@pytest.mark.parametrize("style", ["atomic", "charge", "full"])
def test_lammps_data(tmp_path, style):
    atoms = images(tilted=True)[0]
    path = tmp_path / "box.data"
    ase.io.write(path, atoms, format="lammps-data", atom_style=style, masses=True, specorder=["Na", "Cl"])
    agrees(read_large_frame(path), atoms)
    bare = path.read_text().replace(f"Atoms # {style}", "Atoms")
    path.write_text(bare)
    agrees(read_large_frame(path, atom_style=style), atoms)
    if style == "charge":
        with pytest.raises(FileFormatError, match=r"frame 0, line \d+: 6 columns can mean several atom styles"):
            read_large_frame(path)
    swapped = read_large_frame(path, atom_style=style, species=("Cl", "Na"))
    np.testing.assert_array_equal(swapped.numbers == 17, atoms.numbers == 11)


def test_lammps_data_as_ase_reads_it(tmp_path):
    path = tmp_path / "box.lmp"
    path.write_text(
        "a title\n\n2 atoms\n3 atom types\n\n-1.0 4.0 xlo xhi\n0 5 ylo yhi\n0 6 zlo zhi\n\nMasses\n\n"
        "1 63.546\n2 58.69 # Ni\n3 999.0\n\nAtoms\n\n7 1 0.0 1.0 2.0 0 0 1\n9 2 1.0 1.0 2.0 0 0 0\n\n"
        "Velocities\n\n7 0 0 0\n"
    )
    found = read_large_frame(path)
    assert found.numbers.tolist() == [29, 28]
    assert found.ids.tolist() == [7, 9]
    np.testing.assert_allclose(found.positions, [[1, 1, 2], [2, 1, 2]])
    np.testing.assert_allclose(found.cell, np.diag([5, 5, 6]))


def test_ase_trajectory_and_compressed_text(tmp_path):
    with Trajectory(tmp_path / "run.traj", "w") as out:
        for atoms in images():
            out.write(atoms)
    agrees(read_large_frame(tmp_path / "run.traj", frame=1), images()[1])
    assert count_frames(tmp_path / "run.traj") == 3
    ase.io.write(tmp_path / "all.xyz", images(), format="extxyz")
    (tmp_path / "all.xyz.gz").write_bytes(gzip.compress((tmp_path / "all.xyz").read_bytes()))
    agrees(read_large_frame(tmp_path / "all.xyz.gz", frame=2), images()[2])
    with pytest.raises(InvalidInputError, match="no such frame"):
        read_large_frame(tmp_path / "run.traj", frame=7)


def test_the_content_tells_the_format(tmp_path):
    ase.io.write(tmp_path / "a", images(), format="extxyz")
    write_dump(tmp_path / "b", images())
    ase.io.write(tmp_path / "c", images()[0], format="lammps-data")
    (tmp_path / "d.traj").touch()
    ase.io.write(tmp_path / "d.traj", images())
    (tmp_path / "d.traj").rename(tmp_path / "d")
    assert [detect_format(tmp_path / name) for name in "abcd"] == ["extxyz", "lammps-dump", "lammps-data", "ase"]
    (tmp_path / "e").write_text("nothing that is known\n")
    with pytest.raises(FileFormatError, match="neither its name nor its content"):
        detect_format(tmp_path / "e")


def test_a_frame_becomes_a_row(tmp_path):
    ase.io.write(tmp_path / "all.xyz", images(), format="extxyz")
    frames = read_large_frame(tmp_path / "all.xyz", frame=0).to_frames()
    assert len(frames) == 1
    assert frames.species == ("Na", "Cl")


def edited(tmp_path, name, change):
    ase.io.write(tmp_path / "all.xyz", images(), format="extxyz")
    write_dump(tmp_path / "run.dump", images())
    lines = (tmp_path / name).read_text().splitlines()
    change(lines)
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path / name


def put(line, text):
    return lambda lines: lines.__setitem__(line, text)


def cut(line):
    return lambda lines: lines.__delitem__(slice(line, None))


# frames of 18 lines in extended XYZ, of 25 in the dump
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("all.xyz", put(18 + 7, "Na 0.0 x1 0.0"), r"all.xyz, frame 1, line 26: column 3 is no number: 'x1'"),
        ("all.xyz", put(18 + 7, "Na 0.0 1.0"), r"all.xyz, frame 1, line 26: expected 4 columns, got 3"),
        ("all.xyz", put(18 + 7, ""), r"all.xyz, frame 1, line 26: expected 4 columns, got 0"),
        ("all.xyz", put(18 + 7, "Na 0.0 nan 0.0"), r"all.xyz, frame 1, line 26: the position of atom 5 is not finite"),
        ("all.xyz", put(18 + 7, "Qq 0.0 1.0 0.0"), r"all.xyz, frame 1, line \d+: unknown chemical symbol 'Qq'"),
        ("all.xyz", put(18, "sixteen"), r"all.xyz, frame 1, line 19: expected a number of atoms, got 'sixteen'"),
        ("all.xyz", put(19, 'Lattice="1 2 3"'), r"all.xyz, frame 1, line 20: malformed comment"),
        ("all.xyz", cut(30), r"all.xyz, frame 1, line 30: truncated: 10 of 16 rows are there"),
        ("all.xyz", cut(19), r"all.xyz, frame 1, line 19: the file ends where a comment is expected"),
        ("run.dump", put(25 + 9 + 3, "4 1 0.0 oops 0.0"), r"run.dump, frame 1, line 38: column 4 is no number: 'oops'"),
        ("run.dump", put(25 + 3, "-4"), r"run.dump, frame 1, line 29: expected at least one atom"),
        ("run.dump", put(25 + 5, "0.0 a 0.0"), r"run.dump, frame 1, line 31: column 2 is no number"),
        ("run.dump", put(25 + 5, "5.0 4.0 0.0"), r"run.dump, frame 1, line 33: the box has no volume"),
        ("run.dump", put(25 + 8, "ITEM: ATOMS id type vx"), r"run.dump, frame 1, line 34: no columns of positions"),
        ("run.dump", put(25 + 8, "ITEM: ATOMS id q x y z"), r"frame 1, line 34: no column 'element' or 'type'"),
        ("run.dump", put(25, "TIMESTEP"), r"run.dump, frame 1, line 26: expected 'ITEM: ...', got 'TIMESTEP'"),
        ("run.dump", cut(25 + 4), r"run.dump, frame 1, line 29: truncated in the head of a frame"),
        ("run.dump", cut(25 + 14), r"run.dump, frame 1, line 39: truncated: 5 of 16 rows are there"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(tmp_path, name, change, message):
    path = edited(tmp_path, name, change)
    agrees(read_large_frame(path, frame=0, species=("Na", "Cl")), images()[0])  # what comes before is fine
    with pytest.raises(FileFormatError, match=message):
        read_large_frame(path, frame=1, species=("Na", "Cl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t\n\n2 atoms\n\nVelocities\n", r"line 5: section 'Velocities' before 'Atoms'"),
        ("t\n\n2 atoms\n0 1 xlo xhi\n", r"the file has no section 'Atoms'"),
        ("t\n\n0 1 xlo xhi\n\nAtoms\n\n1 1 0 0 0\n", r"line 5: the head has no line '... atoms'"),
        ("t\n\n1 atoms\n0 1 xlo xhi\n\nAtoms # atomic\n\n1 1 0 0 0\n", r"no line '... ylo yhi'"),
        ("t\n\n1 atoms\n0 1 xlo xhi\n\nAtoms # full\n\n1 1 0 0 0\n", r"line 7: 5 columns are too few"),
        ("t\n\n2 atoms\n0 1 xlo xhi\n\nAtoms # atomic\n\n1 1 0 0 0\n2 1 0 0\n", r"line 9: expected 5 columns, got 4"),
        ("t\n\n1 atoms\n1 atom types\nMasses\n\none 63.5\n", r"line 7: expected a type and its mass"),
        ("t\n\n2 3\n", r"line 3: expected a head such as"),
    ],
)
def test_malformed_data_files(tmp_path, text, message):
    path = tmp_path / "box.data"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_large_frame(path, species=("Cu",))


def test_questions_without_an_answer(tmp_path):
    path = write_dump(tmp_path / "run.dump", images())
    cases = [
        (lambda: read_large_frame(path), r"give the species of the atom types \[1, 2\]"),
        (lambda: read_large_frame(path, species=("Na",)), r"atom types \[2\]"),
        (lambda: read_large_frame(path, frame=3, species=("Na", "Cl")), "there is no frame 3, it has 3"),
        (lambda: read_large_frame(path, frame=-4, species=("Na", "Cl")), "there is no frame -4, it has 3"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()
    with pytest.raises(FileFormatError, match="no such file"):
        read_large_frame(tmp_path / "absent.xyz")
    (tmp_path / "binary.xyz").write_bytes(bytes(range(256)))
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_large_frame(tmp_path / "binary.xyz", frame=0)
