"""PotentialData: what it records, what it refuses, and that it notices tampering."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.common.exceptions import ValidationError

from aiida_mlip.data.potential import PotentialData, jsonable
from aiida_mlip.errors import FileFormatError, InvalidInputError, SpeciesError
from aiida_mlip.io.model_package import sha256_of
from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.uncertainty.grades import fit_grades


def tamper(node: PotentialData, data: bytes, name: str = PotentialData.PACKAGE_NAME) -> None:
    """Overwrite the package in the object store, as a broken disk or a person would."""
    key = node.base.repository.get_object(name).key
    with node.backend.get_repository()._container as store:
        path = Path(store._get_loose_path_from_hashkey(key))
        path.chmod(0o600)
        path.write_bytes(data)


def test_attributes_round_trip_through_the_database(toy_package: Path) -> None:
    node = PotentialData.from_package(
        toy_package,
        fidelities=["pbe"],
        reference_energies={"pbe": {"Si": -1.5, "C": -2.5}},
        metrics={"test": {"force_rmse_ev_per_ang": np.float64(0.1), "energy_mae_ev_per_atom": float("nan")}},
        statistics={"mean": np.arange(3.0)},
        versions={"aiida_mlip": "0"},
    ).store()
    again = orm.load_node(node.pk)
    assert isinstance(again, PotentialData)
    assert (again.engine, again.species, again.cutoff_ang) == ("nequip", ["Si", "C"], 4.0)
    assert again.fidelities == ["pbe"]
    assert again.reference_energies == {"pbe": {"Si": -1.5, "C": -2.5}}
    assert again.metrics == {"test": {"force_rmse_ev_per_ang": 0.1, "energy_mae_ev_per_atom": None}}
    assert {"aiida_mlip", "nequip", "torch"} <= set(again.versions)
    assert np.array_equal(again.statistics()["mean"], np.arange(3.0))
    with toy_package.open("rb") as stream:
        assert again.sha256 == sha256_of(stream)
    with again.open_package() as stream:
        assert stream.read() == toy_package.read_bytes()
    assert orm.QueryBuilder().append(PotentialData, filters={"attributes.species": {"contains": ["C"]}}).count() >= 1


def test_path_bytes_and_stream_give_one_content(toy_package: Path) -> None:
    data = toy_package.read_bytes()
    nodes = [PotentialData.from_package(p) for p in (toy_package, str(toy_package), data, io.BytesIO(data))]
    assert len({json.dumps(node.base.attributes.all, sort_keys=True) for node in nodes}) == 1
    assert nodes[0].statistics() == {}


def judgement() -> dict:
    features = np.random.default_rng(0).normal(size=(60, 3))
    deviation = np.random.default_rng(1).lognormal(size=60)
    numbers = np.tile([14, 6, 14], 20)
    return {
        "statistics": fit_grades(features, numbers).arrays(),
        "calibration": calibrate(deviation, features * deviation[:, None], numbers).as_dict(),
    }


def test_grades_and_calibration_round_trip(toy_package: Path) -> None:
    given = judgement()
    node = PotentialData.import_package(toy_package, **given).store()
    again = orm.load_node(node.pk)
    assert again.has_grades
    assert again.grades().n_features == 3
    for name, value in again.grades().arrays().items():
        np.testing.assert_array_equal(value, given["statistics"][name])
    found = again.calibration()
    assert found.scale == pytest.approx(given["calibration"]["scale"])  # AiiDA keeps 14 digits
    assert found.metrics["coverage"]["element"].keys() == {"Si", "C"}
    assert found.bound(np.ones(1), np.array([6]))[0] == pytest.approx(found.scale["C"])
    bare = PotentialData.import_package(toy_package, statistics={"mean": np.zeros(2)})
    assert (bare.has_grades, bare.grades(), bare.calibration()) == (False, None, None)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("statistics", "grades_6_whitening", "'grades_6_whitening'"),
        ("calibration", "scale", "keys \\['scale'\\] are missing"),
    ],
)
def test_malformed_judgements_are_refused(toy_package: Path, name: str, key: str, message: str) -> None:
    given = judgement()
    del given[name][key]
    with pytest.raises(FileFormatError, match=message):
        PotentialData.import_package(toy_package, **given)


def test_damaged_statistics_are_noticed(toy_package: Path) -> None:
    given = judgement()
    given["statistics"]["salt"] = np.array(0.123)  # its own content: equal files are one object of the repository
    node = PotentialData.import_package(toy_package, **given).store()
    data = node.base.repository.get_object_content(node.STATISTICS_NAME, mode="rb")
    tamper(node, data[: len(data) // 2], node.STATISTICS_NAME)
    with pytest.raises(FileFormatError, match=r"statistics\.npz: not a readable archive"):
        node.grades()


def test_check_species(toy_package: Path) -> None:
    node = PotentialData.import_package(toy_package)
    node.check_species(["C", "Si"])
    with pytest.raises(SpeciesError, match=r"does not cover Cu, Ge; it covers Si, C"):
        node.check_species(["Si", "Ge", "Cu"])


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"species": ["Si"]}, "package has"),
        ({"cutoff_ang": -1.0}, "positive length"),
        ({"cutoff_ang": float("nan")}, "positive length"),
        ({"cutoff_ang": 5.0}, "was made with 4"),
        ({"engine": "lammps"}, "unknown engine 'lammps'; known are nequip, allegro"),
        ({"fidelities": ["pbe"], "reference_energies": {"hse": {"Si": 1.0}}}, "reference_energies of"),
        ({"fidelities": ["pbe"], "joint": True}, "joint potential has two fidelities or more"),
        ({"fidelities": ["lda", "pbe", "lda"], "joint": True}, "two fidelities or more, each once"),
        ({"fidelities": ["pbe"], "energy_shifts": {"hse": {"Si": 1.0}}}, "energy_shifts of"),
    ],
)
def test_contradictions_are_refused_and_nothing_is_stored(toy_package: Path, properties: dict, message: str) -> None:
    before = orm.QueryBuilder().append(PotentialData).count()
    with pytest.raises(InvalidInputError, match=message):
        PotentialData.from_package(toy_package, **properties)
    assert orm.QueryBuilder().append(PotentialData).count() == before


def test_a_joint_potential_stays_one_and_does_not_run(toy_package: Path) -> None:
    joint = PotentialData.import_package(toy_package, fidelities=["lda", "pbe"], joint=True).store()
    judged = orm.load_node(joint.pk).judged(metrics={"test": 1.0})
    assert (judged.joint, judged.fidelities) == (True, ["lda", "pbe"])
    with pytest.raises(InvalidInputError, match=r"a joint one of lda, pbe, .* with aiida_mlip\.bake"):
        judged.check_runs()
    old = PotentialData.import_package(toy_package)
    old.base.attributes.delete("joint")  # as nodes made by earlier versions are
    assert not old.joint
    old.check_runs()


def test_truncated_package_names_the_file(toy_package: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.nequip.zip"
    path.write_bytes(toy_package.read_bytes()[:100_000])
    with pytest.raises(FileFormatError, match=r"half\.nequip\.zip: not a readable model package"):
        PotentialData.import_package(path)
    with pytest.raises(FileFormatError, match="no such file"):
        PotentialData.import_package(tmp_path / "none.nequip.zip")


def test_an_empty_node_and_a_foreign_file_cannot_be_stored(toy_package: Path) -> None:
    with pytest.raises(ValidationError, match="holds a model package"):
        PotentialData().store()
    node = PotentialData.import_package(toy_package)
    node.base.repository.delete_object(node.PACKAGE_NAME)
    node.base.repository.put_object_from_filelike(io.BytesIO(b"other"), node.PACKAGE_NAME)
    with pytest.raises(ValidationError, match="SHA-256"):
        node.store()


def test_tampering_after_storing_is_noticed(toy_package: Path, tmp_path: Path) -> None:
    # its own content: equal files are one object of the repository
    with toy_package.open("rb") as stream:
        data = bytearray(stream.read())
    data[10:14] = b"\0\x08\0\0"  # the time stamp of the first member
    node = PotentialData.from_package(bytes(data)).store()
    data[len(data) // 2] ^= 1
    tamper(node, bytes(data))
    with pytest.raises(FileFormatError, match="was changed"), node.open_package():
        pass
    with pytest.raises(FileFormatError, match="was changed"):
        node.export(tmp_path)
    assert not list(tmp_path.iterdir())


def test_export(toy_package: Path, tmp_path: Path) -> None:
    node = PotentialData.import_package(toy_package).store()
    assert node.export(tmp_path).name == f"{node.uuid}.nequip.zip"
    target = node.export(tmp_path / "x.nequip.zip")
    assert target.read_bytes() == toy_package.read_bytes()
    with pytest.raises(InvalidInputError, match="exists"):
        node.export(target)


def test_jsonable_has_no_nan_and_no_numpy() -> None:
    value = {"a": [np.float32(1.5), float("inf")], 3: np.array([[1, 2]]), "b": (np.bool_(True), None, "x")}
    assert jsonable(value) == {"a": [1.5, None], "3": [[1, 2]], "b": [True, None, "x"]}
    json.dumps(jsonable(value), allow_nan=False)


def test_importing_a_package_loads_no_torch(toy_package: Path) -> None:
    program = (
        "import sys\n"
        "from aiida_mlip.io.model_package import read_package\n"
        "import aiida_mlip.data.potential\n"
        f"read_package(open({str(toy_package)!r}, 'rb'), source='x')\n"
        "print([name for name in ('torch', 'nequip') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
