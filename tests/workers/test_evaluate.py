"""aiida-mlip-evaluate: predictions are NequIP's own, are derivatives, and failures are rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from aiida_mlip.errors import FileFormatError, InvalidInputError, SpeciesError
from aiida_mlip.io.evaluation import EvaluateRequest, read_answer, read_predictions
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, from_ase
from aiida_mlip.kernel.splits import PART_NAMES
from aiida_mlip.workers import evaluate as program
from aiida_mlip.workers.inference import energy_shifts, predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model, resolve_device

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, e3nn and lightning about themselves


def silicon_carbide(n: int, *, seed: int = 0) -> list:
    images = []
    for i in range(n):
        atoms = bulk("SiC", "zincblende", a=4.4, cubic=True) if i % 2 else bulk("Si", cubic=True)
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * np.random.default_rng(seed + i).normal(size=(3, 3))), True)
        atoms.rattle(0.05, seed=seed + i)
        images.append(atoms)
    return images


@pytest.fixture(scope="module")
def model(toy_package: Path) -> LoadedModel:
    return load_model(toy_package, device="cpu")


@pytest.fixture(scope="module")
def calculator(toy_package: Path):
    from nequip.integrations.ase import NequIPCalculator

    return NequIPCalculator._from_saved_model(str(toy_package), chemical_species_to_atom_type_map=True)


@pytest.fixture(scope="module")
def images() -> list:
    molecule_in_a_box = molecule("Si2H6")[[0, 1]]
    molecule_in_a_box.symbols[:] = "SiC"
    slab = bulk("Si", cubic=True)
    slab.center(vacuum=4.0, axis=2)
    slab.pbc = (True, True, False)
    return [*silicon_carbide(5), molecule_in_a_box, slab]


@pytest.fixture(scope="module")
def labelled(images: list, calculator) -> Frames:
    """Frames labelled by NequIP's own calculator, one at a time."""
    done = []
    for atoms in images:
        copy = atoms.copy()
        copy.calc = calculator
        copy.get_forces()
        results = dict(copy.calc.results)
        from ase.calculators.singlepoint import SinglePointCalculator

        keep = {"energy": float(results["energy"]), "forces": results["forces"]}
        if copy.pbc.all():
            keep["stress"] = results["stress"]
        copy.calc = SinglePointCalculator(copy, **keep)
        done.append(copy)
    return from_ase(done, fidelity="toy")


@pytest.mark.parametrize("atoms_per_batch", [1, 20, 10_000])
def test_predictions_are_those_of_the_ase_calculator(
    model: LoadedModel, labelled: Frames, atoms_per_batch: int
) -> None:
    found = predict(model, labelled, atoms_per_batch=atoms_per_batch)
    assert not found.failure.any()
    np.testing.assert_allclose(found.energy, labelled.energy, atol=1e-5)
    np.testing.assert_allclose(found.forces, labelled.forces, atol=1e-5)
    np.testing.assert_allclose(found.stress, labelled.stress, atol=1e-7)
    assert np.isnan(found.stress[-2:]).all()  # neither the molecule nor the slab has a volume


def test_forces_are_derivatives_of_the_energy(model: LoadedModel) -> None:
    frames, step = from_ase(silicon_carbide(2)), 1e-4
    found = predict(model, frames)
    for atom, axis in [(0, 0), (3, 1), (11, 2)]:
        moved = []
        for sign in (1, -1):
            positions = frames.positions.copy()
            positions[atom, axis] += sign * step
            moved.append(predict(model, frames.with_columns(positions=positions)).energy.sum())
        assert -(moved[0] - moved[1]) / (2 * step) == pytest.approx(found.forces[atom, axis], abs=1e-6)


def test_stress_is_the_derivative_by_strain_over_the_volume(model: LoadedModel) -> None:
    frames, step = from_ase(silicon_carbide(1)), 1e-5
    found = predict(model, frames)
    for i, j in [(0, 0), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / (1 if i == j else 2)
            strain[j, i] = strain[i, j] if i != j else strain[j, i]
            moved = frames.with_columns(positions=frames.positions @ strain, cell=frames.cell @ strain)
            energies.append(predict(model, moved).energy[0])
        slope = (energies[0] - energies[1]) / (2 * step) / abs(np.linalg.det(frames.cell[0]))
        assert slope == pytest.approx(found.stress[0, i, j], abs=1e-7)


def test_order_of_frames_does_not_matter(model: LoadedModel, labelled: Frames) -> None:
    one, other = predict(model, labelled), predict(model, labelled.take(np.arange(len(labelled))[::-1]))
    np.testing.assert_allclose(other.energy[::-1], one.energy, atol=1e-9)


def test_an_isolated_atom_has_a_number_or_a_failure_but_spoils_no_neighbour(model: LoadedModel) -> None:
    from ase import Atoms

    frames = from_ase([*silicon_carbide(2), Atoms("Si")])
    found = predict(model, frames)
    alone = predict(model, frames.take([0, 1]))
    np.testing.assert_allclose(found.energy[:2], alone.energy, atol=1e-9)
    single = predict(model, frames.take([2]))
    assert np.isfinite(found.energy[2]) == (found.failure[2] == Failure.NONE)
    np.testing.assert_allclose(found.energy[2], single.energy[0], atol=1e-9)
    assert np.abs(found.forces[-1]).max() == 0


class Stubborn:
    """A model that refuses large batches, or frames with carbon: a wrapper around the real one."""

    def __init__(self, call, refuse) -> None:
        self.call, self.refuse = call, refuse

    def __call__(self, data):
        self.refuse(data)
        return self.call(data)


def test_memory_that_runs_out_halves_the_batch(model: LoadedModel, labelled: Frames) -> None:
    sizes = []

    def refuse(data) -> None:
        sizes.append(len(data["pos"]))
        if len(data["pos"]) > 20:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    found = predict(replace(model, call=Stubborn(model.call, refuse)), labelled)
    np.testing.assert_allclose(found.energy, labelled.energy, atol=1e-5)
    assert max(sizes) > 20
    assert not found.failure.any()


def test_a_frame_that_fails_is_a_row(model: LoadedModel, labelled: Frames) -> None:
    def memory(data) -> None:
        if (data["atomic_numbers"] == 6).any():
            raise MemoryError

    found = predict(replace(model, call=Stubborn(model.call, memory)), labelled)
    carbon = np.array([(labelled.numbers[labelled.atom_slice(i)] == 6).any() for i in range(len(labelled))])
    assert (found.failure[carbon] == Failure.OUT_OF_MEMORY).all()
    np.testing.assert_allclose(found.energy[~carbon], labelled.energy[~carbon], atol=1e-5)
    assert np.isnan(found.energy[carbon]).all()

    def crash(data) -> None:
        if (data["atomic_numbers"] == 6).any():
            raise ValueError("odd")

    found = predict(replace(model, call=Stubborn(model.call, crash)), labelled)
    assert (found.failure == np.where(carbon, Failure.CRASHED, Failure.NONE)).all()


def test_a_prediction_that_is_not_a_number_is_a_failure(model: LoadedModel, labelled: Frames) -> None:
    def call(data):
        output = dict(model.call(data))
        output["forces"] = output["forces"].detach().clone()
        output["forces"][0] = float("nan")
        return output

    found = predict(replace(model, call=call), labelled, atoms_per_batch=1)
    assert (found.failure == Failure.IMPLAUSIBLE).all()
    assert np.isnan(found.energy).all()


def test_energy_shifts_follow_the_composition() -> None:
    frames = from_ase([bulk("SiC", "zincblende", a=4.4), bulk("Si")])
    np.testing.assert_allclose(energy_shifts(frames, {"Si": 1.0, "C": 10.0}), [11.0, 2.0])


def test_refusals(model: LoadedModel, labelled: Frames, toy_package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="atoms_per_batch"):
        predict(model, labelled, atoms_per_batch=0)
    with pytest.raises(SpeciesError, match=r"Cu \(first in frame 1\); it covers Si, C"):
        predict(model, from_ase([bulk("Si"), bulk("Cu")]))
    with pytest.raises(FileFormatError, match="was changed"):
        load_model(toy_package, expected_sha256="0" * 64)
    with pytest.raises(InvalidInputError, match="unknown mode 'fast'"):
        load_model(toy_package, mode="fast")
    with pytest.raises(InvalidInputError, match="unknown device 'tpu'"):
        resolve_device("tpu")
    half = tmp_path / "half.nequip.zip"
    half.write_bytes(toy_package.read_bytes()[:200_000])
    with pytest.raises(FileFormatError, match=r"half\.nequip\.zip"):
        load_model(half)


def test_cuda_is_refused_where_there_is_none() -> None:
    import torch

    if torch.cuda.is_available():
        assert resolve_device("auto") == "cuda"
    else:
        assert resolve_device("auto") == "cpu"
        with pytest.raises(InvalidInputError, match="no GPU"):
            resolve_device("cuda")


# -- the program -------------------------------------------------------------------------------------------------


def prepare(folder: Path, package: Path, shards: list[Frames], **request) -> Path:
    names = [f"frames_{i}.npz" for i in range(len(shards))]
    for name, frames in zip(names, shards, strict=True):
        (folder / name).write_bytes(write_shard(frames))
    shutil.copy(package, folder / "model.nequip.zip")
    (folder / "input.json").write_text(json.dumps({"frames": names, **request}))
    return folder


def test_program_writes_predictions_and_errors(
    toy_package: Path, labelled: Frames, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = np.array([0, 0, 0, 1, 2, 2, -1], dtype=np.int8)
    folder = prepare(tmp_path, toy_package, [labelled.take([0, 1, 2]), labelled.take([3, 4, 5, 6])], split="split.npy")
    np.save(folder / "split.npy", part)
    assert program.main([str(folder)]) == 0
    assert "loading this model executes code from" in capsys.readouterr().out
    found, parts = read_predictions(folder / "predictions.npz")
    np.testing.assert_array_equal(parts, part)
    np.testing.assert_allclose(found.forces, labelled.forces, atol=1e-5)
    answer = read_answer(folder / "output.json")
    assert answer["errors"]["all"]["force_rmse_ev_per_ang"] < 1e-5
    assert {name: answer["errors"][name]["n_frames"] for name in PART_NAMES} == {"train": 3, "val": 1, "test": 2}
    assert answer["failures"] == []


def test_program_compares_only_labels_of_the_potential_and_adds_shifts(
    toy_package: Path, labelled: Frames, tmp_path: Path
) -> None:
    shifted = labelled.with_columns(
        energy=labelled.energy + energy_shifts(labelled, {"Si": 3.0}), fidelities=("total",)
    )
    other = labelled.with_columns(energy=labelled.energy + 99.0, fidelities=("other",))
    folder = prepare(
        tmp_path, toy_package, [shifted, other], fidelities=["total"], energy_shifts={"total": {"Si": 3.0}}
    )
    assert program.main([str(folder)]) == 0
    errors = read_answer(folder / "output.json")["errors"]["all"]
    assert errors["n_frames"] == 2 * len(labelled)
    assert errors["n_energies"] == len(labelled)
    assert errors["energy_max_ev_per_atom"] < 1e-5


@pytest.mark.parametrize(
    ("request_", "reason", "message"),
    [
        ({"sha256": "0" * 64}, "model_not_loaded", "was changed"),
        ({"species": ["Si"]}, "species_not_covered", "does not cover C"),
        ({"device": "tpu"}, "invalid_input", "device"),
        ({"devise": "cpu"}, "invalid_input", "devise"),
        ({"frames": ["none.npz"]}, "invalid_input", "none.npz"),
        ({"split": "none.npy"}, "invalid_input", "none.npy"),
        ({"fidelity": "hse", "fidelities": ["pbe"]}, "invalid_input", "hse"),
    ],
)
def test_program_says_why_it_cannot(
    toy_package: Path, labelled: Frames, tmp_path: Path, request_: dict, reason: str, message: str
) -> None:
    folder = prepare(tmp_path, toy_package, [labelled], **request_)
    assert program.main([str(folder)]) == 1
    answer = read_answer(folder / "output.json")
    assert (answer["status"], answer["reason"]) == ("failed", reason)
    assert message in answer["message"]
    assert not (folder / "predictions.npz").exists()


def test_program_refuses_a_split_of_another_length_and_a_missing_request(
    toy_package: Path, labelled: Frames, tmp_path: Path
) -> None:
    folder = prepare(tmp_path, toy_package, [labelled], split="split.npy")
    np.save(folder / "split.npy", np.zeros(2, dtype=np.int8))
    assert program.main([str(folder)]) == 1
    assert "one code for each of 7 frames" in read_answer(folder / "output.json")["message"]
    (folder / "input.json").unlink()
    assert program.main([str(folder)]) == 1
    assert "input.json" in read_answer(folder / "output.json")["message"]


def test_a_package_that_is_a_zip_but_no_model(toy_package: Path, labelled: Frames, tmp_path: Path) -> None:
    """Well-formed archives whose pickle is nonsense fail when loaded, with the library's reason."""
    import zipfile

    folder = prepare(tmp_path, toy_package, [labelled])
    with zipfile.ZipFile(toy_package) as old, zipfile.ZipFile(folder / "model.nequip.zip", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, b"nonsense" if info.filename.endswith("eager_model.pkl") else old.read(info))
    assert program.main([str(folder)]) == 1
    assert read_answer(folder / "output.json")["reason"] == "model_not_loaded"


def test_predictions_are_deterministic(toy_package: Path, labelled: Frames, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder = prepare(tmp_path / name, toy_package, [labelled])
        assert program.main([str(folder)]) == 0
        contents.append((folder / "predictions.npz").read_bytes())
    assert contents[0] == contents[1]


def test_help_needs_neither_torch_nor_aiida() -> None:
    code = (
        "import sys\nfrom aiida_mlip.workers import evaluate, inference, model_loading\n"
        "print([name for name in ('aiida', 'torch', 'nequip', 'ase.calculators') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    text = subprocess.run(
        [sys.executable, "-m", "aiida_mlip.workers.evaluate", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for key in EvaluateRequest.model_fields:
        assert key == "version" or f"  {key} " in text, key


@pytest.mark.slow
@pytest.mark.nequip
def test_compiled_model_predicts_the_same(toy_package: Path, labelled: Frames, tmp_path: Path) -> None:
    shutil.copy(toy_package, tmp_path / "m.nequip.zip")
    compiled = load_model(tmp_path / "m.nequip.zip", device="cpu", mode="compiled")
    for size in (1, 10_000):
        found = predict(compiled, concatenate([labelled, labelled]), atoms_per_batch=size)
        np.testing.assert_allclose(found.energy, np.tile(labelled.energy, 2), atol=1e-5)
        np.testing.assert_allclose(found.forces, np.tile(labelled.forces, (2, 1)), atol=1e-5)
        np.testing.assert_allclose(found.stress, np.tile(labelled.stress, (2, 1, 1)), atol=1e-7)
    (made,) = tmp_path.glob("m-cpu-many-*.nequip.pt2")
    stamp = made.stat().st_mtime_ns
    load_model(tmp_path / "m.nequip.zip", device="cpu", mode="compiled")
    assert list(tmp_path.glob("*.nequip.pt2")) == [made]
    assert made.stat().st_mtime_ns == stamp  # reused
