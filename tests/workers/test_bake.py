"""Baking: what a joint model predicts at a level of theory, exactly, from a package that is not told the level."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.bake import BAKED, BakeRequest
from aiida_mlip.io.explore import ExploreRequest, ExploreSpec
from aiida_mlip.io.model_package import read_package, sha256_of
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.workers.bake import NotExactError, bake, fold
from aiida_mlip.workers.explore import main as explore
from aiida_mlip.workers.inference import energy_shifts, predict
from aiida_mlip.workers.model_loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, e3nn and lightning about themselves

PROGRAM = Path(sys.executable).parent / "aiida-mlip-evaluate"
NAMES = ("lda", "pbe", "hse")
#: Shifts of the joint model (see `_toy_config` of conftest), and those of each level of theory.
JOINT = {"Si": -1.0, "C": -2.0}
SHIFTS = ({"Si": -106.5, "C": -154.25}, JOINT, {"Si": -108.75, "C": -157.5})


def crystals(n: int) -> Frames:
    """Crystals of silicon and silicon carbide, distorted more and more."""
    images = []
    for seed in range(n):
        atoms = bulk("Si", cubic=True) if seed % 2 else bulk("SiC", "zincblende", a=4.4, cubic=True)
        atoms.set_cell(atoms.cell * (1.0 + 0.01 * (seed % 5 - 2)), scale_atoms=True)
        atoms.rattle(0.02 + 0.01 * seed, seed=seed)
        images.append(atoms)
    return from_ase(images)


def baked_package(folder: Path, joint: Path, index: int) -> Path:
    change = {name: SHIFTS[index][name] - JOINT[name] for name in JOINT}
    request = BakeRequest(model=str(joint), fidelity=NAMES[index], index=index, shifts=SHIFTS[index], change=change)
    bake(folder, request)
    return folder / BAKED


def baked_at_each_level(folder: Path, joint: Path) -> list[Path]:
    found = []
    for index, name in enumerate(NAMES):
        (folder / name).mkdir()
        found.append(baked_package(folder / name, joint, index))
    return found


@pytest.fixture(scope="module")
def packages(joint_toy_package: Path, tmp_path_factory) -> list[Path]:
    """The joint model baked at each level of theory."""
    return baked_at_each_level(tmp_path_factory.mktemp("baked"), joint_toy_package)


def check_exact(joint_package: Path, packages: list[Path]) -> None:
    frames = crystals(20)
    joint = load_model(joint_package, device="cpu", features=True)
    seen = []
    for index, package in enumerate(packages):
        told = predict(joint, frames, fidelity=np.full(len(frames), index), features=True)
        found = predict(load_model(package, device="cpu", features=True), frames, features=True)
        expected = told.energy + energy_shifts(frames, {name: SHIFTS[index][name] - JOINT[name] for name in JOINT})
        assert np.abs(found.energy - expected).max() / frames.natoms.min() <= 1e-6
        assert np.abs(found.forces - told.forces).max() <= 1e-5
        np.testing.assert_allclose(found.stress, told.stress, rtol=0, atol=1e-7)
        np.testing.assert_allclose(found.features, told.features, rtol=0, atol=1e-6)
        seen.append(told)
    # the levels differ: equality above means something
    assert min(np.abs(seen[i].forces - seen[i - 1].forces).max() for i in (1, 2)) > 1e-3


def test_each_level_is_exact(joint_toy_package: Path, packages: list[Path]) -> None:
    check_exact(joint_toy_package, packages)


def test_each_level_is_exact_in_single_precision(joint_toy_package_32: Path, tmp_path: Path) -> None:
    check_exact(joint_toy_package_32, baked_at_each_level(tmp_path, joint_toy_package_32))


def test_the_package_is_an_ordinary_one(joint_toy_package: Path, packages: list[Path]) -> None:
    with packages[1].open("rb") as stream, joint_toy_package.open("rb") as other:
        found, joint = read_package(stream, source="baked"), read_package(other, source="joint")
    same = ("type_names", "cutoff_ang", "model_dtype", "versions", "available_models", "format_version")
    assert {name: getattr(found, name) for name in same} == {name: getattr(joint, name) for name in same}
    model = load_model(packages[1], device="cpu").call
    assert "dataset" not in model.model_input_fields
    for module in model.modules():
        for fields in ("irreps_in", "irreps_out"):
            names = getattr(module, fields, None)
            assert not isinstance(names, dict) or "dataset" not in names, module
    text = zipfile.ZipFile(packages[1])
    (name,) = (name for name in text.namelist() if name.endswith("package_metadata.txt"))
    assert yaml.safe_load(text.read(name))["baked"] == {
        "from_sha256": joint.sha256, "field": "dataset", "index": 1, "fidelity": "pbe"
    }  # fmt: skip


def test_code_is_that_of_the_joint_package(joint_toy_package: Path, packages: list[Path]) -> None:
    def code(package: Path) -> dict[str, bytes]:
        """Without stand-ins for libraries that nothing needs."""
        with zipfile.ZipFile(package) as archive:
            found = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
        return {name: text for name, text in found.items() if not text.startswith(b"from _mock")}

    before, after = code(joint_toy_package), code(packages[0])
    assert set(after) <= set(before)
    assert all(after[name] == before[name] for name in after)


def test_nequip_packages_and_loads_it(packages: list[Path]) -> None:
    """NequIP's own loader takes it, every variant, and its example data, and finds its modifiers."""
    from nequip.model.modify_utils import get_all_modifiers
    from nequip.model.saved_models.package import ModelFromPackage, data_dict_from_package

    for mode in ("eager", "compile"):
        model = ModelFromPackage(str(packages[2]), compile_mode=mode)["sole_model"]
        assert "modify_PerTypeScaleShift" in get_all_modifiers(model)
        np.testing.assert_allclose(
            [value for module in model.modules() if hasattr(module, "shifts") for value in module.shifts.view(-1)],
            list(SHIFTS[2].values()),
        )
    assert "dataset" not in data_dict_from_package(str(packages[2]))


def test_ase_runs_it(joint_toy_package: Path, packages: list[Path]) -> None:
    from nequip.integrations.ase import NequIPCalculator

    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True)
    atoms.rattle(0.1, seed=1)
    told = predict(load_model(joint_toy_package, device="cpu"), from_ase([atoms]), fidelity=np.array([0]))
    atoms.calc = NequIPCalculator._from_saved_model(str(packages[0]), chemical_species_to_atom_type_map=True)
    shift = 4 * (SHIFTS[0]["Si"] - JOINT["Si"] + SHIFTS[0]["C"] - JOINT["C"])
    assert atoms.get_potential_energy() == pytest.approx(told.energy[0] + shift, abs=8e-6)
    np.testing.assert_allclose(atoms.get_forces(), told.forces, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lammps", "md"])
def test_dynamics_of_the_explore_program(
    joint_toy_package: Path, packages: list[Path], tmp_path: Path, kind: str
) -> None:
    """LAMMPS and ASE move atoms as the joint model tells them to at that level."""
    shutil.copy(packages[2], tmp_path / "model.nequip.zip")
    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True)
    atoms.rattle(0.03, seed=2)
    (tmp_path / "structures.npz").write_bytes(write_shard(from_ase([atoms])))
    run = {"n_steps": 6, "temperature_k": 300}
    how = {
        "lammps": {"timestep_fs": 0.5, "integrate": "nve", **run},
        "md": {"timestep_fs": 0.5, "schedule": [{"ensemble": "nve", **run}]},
    }
    spec = {"kind": kind, kind: how[kind], "fidelity": "hse", "device": "cpu", "mode": "eager", "record_every": 2}
    request = ExploreRequest(spec=ExploreSpec.model_validate(spec), species=("Si", "C"), fidelities=("hse",))
    (tmp_path / "input.json").write_text(request.model_dump_json())
    assert explore([str(tmp_path)]) == 0
    with (tmp_path / "trajectory.npz").open("rb") as stream:
        moved = read_shard(stream, source="trajectory")
    assert len(moved) >= 3
    energies = np.load(tmp_path / "series.npz")["potential_energy_ev"]
    told = predict(load_model(joint_toy_package, device="cpu"), moved, fidelity=np.full(len(moved), 2))
    shift = 4 * sum(SHIFTS[2][name] - JOINT[name] for name in JOINT)
    np.testing.assert_allclose(energies[-len(moved) :], told.energy + shift, rtol=0, atol=1e-4)
    assert np.ptp(moved.positions.reshape(len(moved), -1), axis=0).max() > 1e-3


def test_it_cannot_be_baked_again(packages: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a joint model"):
        baked_package(tmp_path, packages[0], 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": 3}, "index 3: the model knows 3 levels"),
        ({"shifts": {"Si": -1.0}}, r"shifts: given for \['Si'\], but the model's types are \['Si', 'C'\]"),
        ({"shifts": {"Si": -1.0, "C": 0.0, "Ge": 0.0}}, "but the model's types are"),
        ({"shifts": {"Si": -1.0, "C": -2.5}, "change": {"Si": 0.0, "C": -0.6}}, r"mixed reference energies: .* -0\.6"),
    ],
)
def test_requests_that_do_not_fit_the_model(
    joint_toy_package: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    values = {"model": str(joint_toy_package), "fidelity": "pbe", "index": 1, "shifts": JOINT, **changes}
    with pytest.raises(InvalidInputError, match=message):
        bake(tmp_path, BakeRequest(**values))
    assert list(tmp_path.iterdir()) == []


def test_trained_shifts_are_not_replaced(joint_toy_package: Path) -> None:
    model = load_model(joint_toy_package, device="cpu").call
    (module,) = (module for module in model.modules() if hasattr(module, "shifts_trainable"))
    module.shifts_trainable = True
    with pytest.raises(InvalidInputError, match="the shifts of the joint model were trained"):
        fold(model, 0, JOINT)


def test_an_ordinary_package_is_no_joint_one(toy_package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a joint model: expected one embedding of the field 'dataset'"):
        baked_package(tmp_path, toy_package, 0)


def spoiled(joint: Path, target: Path) -> Path:
    """The same package with NaN for every number that is as large as the embedding of the levels (3 x 3 doubles)."""
    with zipfile.ZipFile(joint) as archive, zipfile.ZipFile(target, "w") as other:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith(".storage") and len(data) == 72:
                data = np.full(9, np.nan).tobytes()
            other.writestr(info, data)
    return target


def test_what_is_not_exact_is_not_kept(joint_toy_package: Path, tmp_path: Path) -> None:
    package = spoiled(joint_toy_package, tmp_path / "model.nequip.zip")
    with pytest.raises(NotExactError, match=r"differs by nan eV/atom and nan eV/Å from the joint model"):
        baked_package(tmp_path, package, 0)
    assert list(tmp_path.iterdir()) == [package]


def test_a_changed_package_is_not_loaded(joint_toy_package: Path, tmp_path: Path, capsys) -> None:
    request = BakeRequest(model=str(joint_toy_package), sha256="0" * 64, fidelity="a", index=0, shifts=JOINT)
    with pytest.raises(FileFormatError, match="was changed"):
        bake(tmp_path, request)
    assert "executes code" not in capsys.readouterr().out


def test_program(joint_toy_package: Path, tmp_path: Path) -> None:
    shutil.copy(joint_toy_package, tmp_path / "model.nequip.zip")
    with joint_toy_package.open("rb") as stream:
        digest = sha256_of(stream)
    request = BakeRequest(sha256=digest, fidelity="hse", index=2, shifts=SHIFTS[2])
    (tmp_path / "input.json").write_text(request.model_dump_json())
    code = "import sys; from aiida_mlip.workers.evaluate import main; main(['--bake']); print('nequip' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"executes code from model.nequip.zip (SHA-256 {digest})" in run.stdout
    assert run.stdout.rstrip().endswith("False")  # the package brings what it needs
    answer = json.loads((tmp_path / "output.json").read_text())
    assert answer["status"] == "finished"
    assert answer["energy_difference_ev_per_atom"] <= 1e-6
    assert answer["force_difference_ev_per_ang"] <= 1e-5
    assert answer["shifts_changed_ev"] == pytest.approx({name: SHIFTS[2][name] - JOINT[name] for name in JOINT})
    assert (tmp_path / BAKED).is_file()


def test_program_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"fidelity": "pbe", "index": -1, "shifts": {}, "colour": 1}')
    run = subprocess.run([PROGRAM, "--bake"], cwd=tmp_path, capture_output=True, text=True, check=False)
    answer = json.loads((tmp_path / "output.json").read_text())
    assert (run.returncode, answer["reason"]) == (1, "invalid_input")
    assert "index" in answer["message"]
    assert "colour" in answer["message"]
