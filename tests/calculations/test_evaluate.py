"""EvaluateCalculation: real jobs, and every exit code from a job that goes wrong in that way."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from aiida.manage.caching import enable_caching
from ase.build import bulk
from ase.calculators.lj import LennardJones

from aiida_mlip.calculations.evaluate import EvaluateCalculation, parts_of
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

PROGRAM = Path(sys.executable).parent / "aiida-mlip-evaluate"


def lennard_jones(n: int, seed: int = 0) -> Frames:
    images = []
    for i in range(n):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed + i)
        atoms.calc = LennardJones(sigma=1.8, epsilon=0.5, rc=4.0)
        atoms.get_forces()
        atoms.get_stress()
        images.append(atoms)
    return from_ase(images, fidelity="lj")


@pytest.fixture(scope="module")
def frames() -> Frames:
    return lennard_jones(6)


@pytest.fixture
def inputs(aiida_profile, toy_package: Path, frames: Frames, evaluate_code) -> dict:
    return {
        "code": evaluate_code,
        "potential": PotentialData.import_package(toy_package, fidelities=["lj"]),
        "dataset": DatasetData.from_frames(frames),
    }


@pytest.fixture
def script_code(localhost, tmp_path: Path):
    """A code that is a shell script: a program that goes wrong in a given way."""

    def make(text: str) -> orm.InstalledCode:
        path = tmp_path / "program.sh"
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return orm.InstalledCode(label="script", computer=localhost, filepath_executable=str(path)).store()

    return make


def run(inputs: dict):
    results, node = run_get_node(EvaluateCalculation, **inputs)
    return results, node


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
def test_errors_and_parity_of_a_real_job(inputs: dict, frames: Frames, toy_package: Path) -> None:
    # a split in another order, with a frame the dataset lacks
    stranger = lennard_jones(1, seed=99)
    known = np.concatenate([stranger.frame_id, frames.frame_id[::-1]])
    inputs["split"] = orm.ArrayData(
        {
            "frame_id": known,
            "member_0": np.array([0, 2, 2, 1, 0, 0, 0], dtype=np.int8),
            "member_1": np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.int8),
        }
    )
    inputs["member"] = orm.Int(0)
    inputs["settings"] = orm.Dict({"device": "cpu", "atoms_per_batch": 20, "fit_grades": True})
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    errors = results["errors"].get_dict()
    assert {part: errors[part]["n_frames"] for part in ("all", "train", "val", "test")} == {
        "all": 6,
        "train": 3,
        "val": 1,
        "test": 2,
    }
    parity = results["parity"]
    np.testing.assert_array_equal(parity.get_array("part"), [0, 0, 0, 1, 2, 2])
    np.testing.assert_array_equal(parity.get_array("frame_id"), frames.frame_id)
    np.testing.assert_allclose(parity.get_array("energy_reference") * 8, frames.energy)
    # the errors are those of the parity data
    deviation = parity.get_array("forces_predicted") - parity.get_array("forces_reference")
    assert errors["all"]["force_rmse_ev_per_ang"] == pytest.approx(np.sqrt(np.mean(deviation**2)))
    test = np.repeat(parity.get_array("part") == 2, parity.get_array("natoms"))
    assert errors["test"]["force_mae_ev_per_ang"] == pytest.approx(np.abs(deviation[test]).mean())
    assert "loading this model executes code" in node.outputs.retrieved.base.repository.get_object_content(
        "evaluate.out"
    )
    for output in (results["errors"], results["parity"], results["grades"]):
        assert output.creator.pk == node.pk
    # grades of the training frames, and the novelty of all atoms by them
    grades = Grades.from_arrays(
        {name: results["grades"].get_array(name) for name in results["grades"].get_arraynames()}
    )
    assert grades.elements[14].n_train == 24
    found = predict(load_model(toy_package, device="cpu"), frames, features=True)
    novelty = parity.get_array("novelty")
    np.testing.assert_allclose(novelty, grades.novelty(found.features, frames.numbers), rtol=1e-5)
    check_that_grades_are_used(inputs, grades, novelty)
    # the predictions are those of NequIP's own calculator
    from nequip.integrations.ase import NequIPCalculator

    atoms = frames.to_ase(3)
    atoms.calc = NequIPCalculator._from_saved_model(str(toy_package), chemical_species_to_atom_type_map=True)
    assert parity.get_array("energy_predicted")[3] * 8 == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(parity.get_array("forces_predicted")[24:32], atoms.get_forces(), atol=1e-5)


def check_that_grades_are_used(inputs: dict, grades: Grades, novelty: np.ndarray) -> None:
    """A potential that has grades tells the novelty of any dataset."""
    inputs["potential"] = inputs["potential"].judged(statistics=grades.arrays())
    for name in ("split", "member", "settings"):
        del inputs[name]
    inputs["settings"] = orm.Dict({"device": "cpu"})
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    assert "grades" not in results
    np.testing.assert_allclose(results["parity"].get_array("novelty"), novelty, rtol=1e-5)


def test_a_dataset_of_several_shards(inputs: dict, frames: Frames) -> None:
    inputs["dataset"] = DatasetData.merge(
        [DatasetData.from_frames(frames.take([0, 1])), DatasetData.from_frames(frames.take([2, 3, 4]))]
    )
    assert len(inputs["dataset"].shard_names) == 2
    inputs["split"] = orm.ArrayData(
        {"frame_id": frames.frame_id, "member_0": np.array([2, 2, 2, 1, 1, 1], dtype=np.int8)}
    )
    inputs["settings"] = orm.Dict({"fit_grades": True})
    results, node = run(inputs)
    assert node.exit_status == EvaluateCalculation.exit_codes.ERROR_GRADES_FAILED.status  # no frame is trained on
    assert "grades need at least one atom" in node.exit_message
    assert "grades" not in results
    assert results["errors"]["test"]["n_frames"] == 3
    np.testing.assert_array_equal(results["parity"].get_array("frame_id"), frames.frame_id[:5])


# -- refused before submission -------------------------------------------------------------------------------------


def copper() -> DatasetData:
    return DatasetData.from_frames(from_ase([bulk("Cu")]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": copper}, "does not cover Cu; it covers Si, C"),
        ({"settings": lambda: orm.Dict({"devise": "cpu"})}, "did you mean 'device'"),
        ({"settings": lambda: orm.Dict({"atoms_per_batch": 0})}, "atoms_per_batch"),
        ({"settings": lambda: orm.Dict({"fidelity": "hse"})}, "none of the potential's"),
        ({"member": lambda: orm.Int(0)}, "needs the input 'split'"),
        ({"split": lambda: orm.ArrayData({"x": np.zeros(3)})}, "needs arrays 'frame_id'"),
        (
            {
                "split": lambda: orm.ArrayData(
                    {"frame_id": np.zeros((1, 16), dtype=np.uint8), "member_0": np.zeros(1, dtype=np.int8)}
                ),
                "member": lambda: orm.Int(3),
            },
            "the split has only member_0",
        ),
        (
            {
                "split": lambda: orm.ArrayData(
                    {"frame_id": np.zeros((1, 16), dtype=np.uint8), **{f"member_{i}": np.zeros(1) for i in (0, 1)}}
                )
            },
            "say which one",
        ),
        (
            {"split": lambda: orm.ArrayData({"frame_id": np.zeros((1, 16), dtype=np.uint8), "member_0": np.zeros(2)})},
            "1 frame ids, but 2 entries",
        ),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_stored(inputs: dict, change: dict, message: str) -> None:
    inputs.update({name: make() for name, make in change.items()})
    before = orm.QueryBuilder().append(orm.Node).count()
    with pytest.raises(ValueError, match=message):
        run(inputs)
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_split_by_frame_id(aiida_profile, frames: Frames) -> None:
    both = concatenate([frames, frames.with_columns(fidelities=("hse",))])
    dataset = DatasetData.from_frames(both)
    split = orm.ArrayData({"frame_id": frames.frame_id[1:4], "member_0": np.array([2, 1, 0], dtype=np.int8)})
    expected = [-1, 2, 1, 0, -1, -1]
    np.testing.assert_array_equal(parts_of(dataset, split, "member_0"), expected * 2)
    empty = orm.ArrayData({"frame_id": np.zeros((0, 16), dtype=np.uint8), "member_0": np.zeros(0, dtype=np.int8)})
    np.testing.assert_array_equal(parts_of(dataset, empty, "member_0"), [-1] * 12)
    with pytest.raises(InvalidInputError, match="3 frame ids"):
        parts_of(dataset, orm.ArrayData({"frame_id": frames.frame_id[:3], "member_0": np.zeros(1)}), "member_0")


@pytest.fixture(scope="module")
def answer(frames: Frames, toy_package: Path, tmp_path_factory) -> Path:
    """Folder in which the real program ran once."""
    folder = tmp_path_factory.mktemp("answer")
    (folder / "frames.npz").write_bytes(write_shard(frames))
    shutil.copy(toy_package, folder / "model.nequip.zip")
    (folder / "input.json").write_text("{}")
    subprocess.run([str(PROGRAM)], cwd=folder, check=True, capture_output=True)
    return folder


# -- every exit code ------------------------------------------------------------------------------------------------

#: Exit code -> script of a program that ends that way; ``PROGRAM`` stands for the real one, ``ANSWER`` for its output.
BROKEN = {
    "ERROR_INVALID_INPUT": 'sed -i \'s/"auto"/"abacus"/\' input.json; PROGRAM',
    "ERROR_SPECIES_NOT_COVERED": 'sed -i \'s/"Si"/"Ge"/\' input.json; PROGRAM',
    "ERROR_MODEL_NOT_LOADED": "head -c 9999 model.nequip.zip > x; mv x model.nequip.zip; PROGRAM",
    "ERROR_OUTPUT_MISSING": "echo 'Segmentation fault'; exit 139",
    "ERROR_OUTPUT_UNREADABLE": "cp ANSWER/output.json .; head -c 500 ANSWER/predictions.npz > predictions.npz",
    "ERROR_OUT_OF_WALLTIME": "echo 'slurmstepd: error: JOB 7 CANCELLED AT 10:00 DUE TO TIME LIMIT' >&2",
    "ERROR_OUT_OF_MEMORY": "kill -9 $$",
}


@pytest.mark.parametrize("name", BROKEN)
def test_exit_codes(inputs: dict, script_code, answer: Path, name: str) -> None:
    inputs["code"] = script_code(BROKEN[name].replace("PROGRAM", str(PROGRAM)).replace("ANSWER", str(answer)))
    results, node = run(inputs)
    assert node.exit_code.status == EvaluateCalculation.exit_codes[name].status, (node.exit_message, name)
    assert "errors" not in results


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("cp ANSWER/output.json .", 300, "No predictions.npz"),
        (
            "cp ANSWER/predictions.npz .; head -c 40 ANSWER/output.json > output.json",
            301,
            "output.json: not a readable",
        ),
        ('cp ANSWER/predictions.npz .; echo \'{"status": "finished"}\' > output.json', 301, "'errors' is missing"),
        ("cp ANSWER/predictions.npz .; echo '[]' > output.json", 301, "not an answer"),
    ],
)
def test_missing_or_truncated_answers(
    inputs: dict, script_code, answer: Path, script: str, status: int, message: str
) -> None:
    inputs["code"] = script_code(script.replace("ANSWER", str(answer)))
    _, node = run(inputs)
    assert (node.exit_status, message in node.exit_message) == (status, True), node.exit_message


def test_predictions_for_other_frames_are_refused(inputs: dict, script_code, answer: Path, frames: Frames) -> None:
    inputs["dataset"] = DatasetData.from_frames(frames.take([0, 1]))
    inputs["code"] = script_code(f"cp {answer}/output.json {answer}/predictions.npz .")
    _, node = run(inputs)
    assert node.exit_status == 301
    assert "6 frames and 48 atoms, but the dataset has 2 and 16" in node.exit_message


#: A program whose model fails on frames of more than a given number of atoms: the real one with its inference wrapped.
FRAGILE = """
import sys
from aiida_mlip.workers import evaluate, inference
real = inference._evaluate
def fragile(model, frames, rows, fidelity, **options):
    if (frames.natoms[rows] > {limit}).any():
        raise {error}
    return real(model, frames, rows, fidelity, **options)
inference._evaluate = fragile
sys.exit(evaluate.main([]))
"""


@pytest.mark.parametrize(
    ("limit", "error", "status", "n_failed"),
    [
        (8, 'ValueError("odd")', 410, 2),
        (1, 'ValueError("odd")', 302, 6),
        (8, "MemoryError", 401, 2),
    ],
)
def test_frames_that_fail(
    inputs: dict, script_code, frames: Frames, tmp_path: Path, limit: int, error: str, status: int, n_failed: int
) -> None:
    large = [bulk("Si", cubic=True).repeat((2, 1, 1)) for _ in range(2)]
    large[1].rattle(0.1, seed=1)
    inputs["dataset"] = DatasetData.from_frames(concatenate([frames.take([0, 1, 2, 3]), from_ase(large)]))
    program = tmp_path / "fragile.py"
    program.write_text(FRAGILE.format(limit=limit, error=error))
    inputs["code"] = script_code(f"{sys.executable} {program}")
    results, node = run(inputs)
    assert node.exit_status == status, node.exit_message
    if status == 401:
        return
    errors = results["errors"].get_dict()
    assert len(errors["failures"]) == n_failed
    assert errors["all"]["n_failed"] == n_failed
    assert errors["all"]["n_energies"] == (4 if status == 410 else 0)
    assert np.isnan(results["parity"].get_array("energy_predicted")).sum() == n_failed


def test_a_job_that_ran_out_of_memory_is_not_reused(inputs: dict, script_code, answer: Path, tmp_path: Path) -> None:
    script = (
        f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; kill -9 $$; }}; cp {answer}/*.npz {answer}/*.json ."
    )
    inputs["code"] = script_code(script)
    inputs["potential"].store()
    inputs["dataset"].store()
    with enable_caching():
        _, first = run(inputs)
        _, second = run(inputs)
        _, third = run(inputs)
    assert (first.exit_status, second.exit_status, third.exit_status) == (401, 0, 0)
    assert not second.base.caching.is_created_from_cache
    assert third.base.caching.is_created_from_cache


def test_all_exit_codes_are_produced_here() -> None:
    ours = {
        code.status
        for name, code in EvaluateCalculation.spec().exit_codes.items()
        if 200 <= code.status < 500 and name not in _inherited()
    }
    produced = {EvaluateCalculation.exit_codes[name].status for name in BROKEN} | {410, 411, 302, 401}
    assert ours == produced


def _inherited() -> set[str]:
    from aiida.engine import CalcJob

    return set(CalcJob.spec().exit_codes)


def test_a_tampered_package_is_refused_before_submission(inputs: dict, toy_package: Path) -> None:
    data = bytearray(toy_package.read_bytes())
    data[10:14] = b"\1\x08\0\0"  # its own object in the repository
    node = PotentialData.from_package(bytes(data)).store()
    data[len(data) // 2] ^= 1
    key = node.base.repository.get_object(node.PACKAGE_NAME).key
    with node.backend.get_repository()._container as container:
        path = Path(container._get_loose_path_from_hashkey(key))
        path.chmod(0o600)
        path.write_bytes(data)
    with pytest.raises(ValueError, match="was changed"):
        run({**inputs, "potential": node})


def test_entry_points() -> None:
    from aiida.plugins import CalculationFactory, DataFactory, ParserFactory

    assert CalculationFactory("aiida_mlip.evaluate") is EvaluateCalculation
    assert DataFactory("aiida_mlip.potential") is PotentialData
    assert ParserFactory("aiida_mlip.evaluate").__name__ == "EvaluateParser"
