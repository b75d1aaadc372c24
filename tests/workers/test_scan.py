"""Scan of a large frame: what slabs say is what the whole says, whatever their size, also after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.scan import CANDIDATES, ENVIRONMENTS, NOVELTY, PARTIAL, ScanRequest, write_scan_request
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.grade_histogram import GradeHistogram
from aiida_mlip.kernel.slabs import SlabDecomposition
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers import evaluate as program
from aiida_mlip.workers import scan as module
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model
from aiida_mlip.workers.slab_model import SlabModel, message_passing_layers

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, e3nn and lightning about themselves


def carbide(seed: int, repeat: tuple[int, int, int], amplitude: float = 0.05) -> Atoms:
    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True) * repeat
    atoms.rattle(amplitude, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def large() -> Atoms:
    """A crystal with one displaced atom at its border and one hole, its atoms out of order."""
    atoms = carbide(1, (5, 3, 3))
    atoms.positions[7] += [0.35, -0.3, 0.3]
    del atoms[180]
    return atoms[np.random.default_rng(0).permutation(len(atoms))]


@pytest.fixture(scope="module")
def model(toy_package: Path):
    return load_model(toy_package, device="cpu", features=True, frames="one", derivatives=False)


@pytest.fixture(scope="module")
def grades(model) -> Grades:
    frames = from_ase([carbide(seed, (1, 1, 2)) for seed in range(20)])
    return fit_grades(predict(model, frames, features=True).features, frames.numbers)


@pytest.fixture(scope="module")
def monolithic(model, large: Atoms):
    return predict(model, from_ase([large]), features=True, atoms_per_batch=10**9)


@pytest.fixture
def folder(tmp_path: Path, toy_package: Path, grades: Grades, large: Atoms) -> Path:
    shutil.copy(toy_package, tmp_path / "model.nequip.zip")
    (tmp_path / "statistics.npz").write_bytes(write_npz(grades.arrays()))
    ase.io.write(tmp_path / "large.xyz", [carbide(0, (1, 1, 1)), large], format="extxyz")
    return tmp_path


def request(**changes) -> ScanRequest:
    return ScanRequest(**{"file": "large.xyz", "mode": "eager", "device": "cpu", "max_atoms": 250, **changes})


def run(folder: Path, model, grades: Grades, **changes) -> dict:
    """A scan with a model that is loaded already."""
    asked = request(**changes)
    frame = module.read_frame(folder, asked)
    graded = SlabModel(model, grades)
    layers = message_passing_layers(folder / asked.model, model)
    slabs = SlabDecomposition(
        frame.positions, frame.cell, frame.pbc, cutoff=model.cutoff_ang, layers=layers, max_atoms=asked.max_atoms
    )
    return module.scan(folder, asked, module.Target(frame, slabs, graded, layers, graded.types_of(frame.numbers)))


def test_slabs_give_the_features_and_the_energy_of_the_whole(model, grades, large, monolithic, toy_package):
    layers = message_passing_layers(toy_package)
    assert layers >= 1
    slabs = SlabDecomposition(
        large.positions, large.cell.array, large.pbc, cutoff=model.cutoff_ang, layers=layers, max_atoms=250
    )
    graded, energy = SlabModel(model, grades), 0.0
    features = np.full_like(monolithic.features, np.nan)
    types = graded.types_of(large.numbers.astype(np.uint8))
    n_slabs = 0
    for slab in slabs:
        found = graded(slab, types[slab.atoms])
        features[slab.atoms[: slab.n_core]] = found.features
        energy += found.energy
        n_slabs += 1
    assert n_slabs > 3
    scale = np.abs(monolithic.features).max()
    np.testing.assert_allclose(features, monolithic.features, rtol=1e-5, atol=1e-5 * scale)
    assert energy == pytest.approx(monolithic.energy[0], abs=1e-5)


def test_the_program_gives_histogram_and_candidates_of_the_whole(folder, grades, large, monolithic):
    novelty = grades.novelty(monolithic.features, large.numbers)
    write_scan_request(folder / "input.json", request(write_novelty=True, max_candidates=3))
    assert program.main([str(folder), "--scan"]) == 0
    answer = json.loads((folder / "output.json").read_text())
    np.testing.assert_allclose(np.load(folder / NOVELTY), novelty, rtol=1e-4)
    expected = GradeHistogram()
    expected.add(novelty, large.numbers)
    whole, counts = expected.as_dict()["counts"], answer["histogram"]["counts"]
    assert {key: sum(values) for key, values in counts.items()} == {key: sum(v) for key, v in whole.items()}
    # an atom at an edge may round to the other side
    assert sum(np.abs(np.subtract(counts[key], whole[key])).sum() for key in counts) <= 2
    assert answer["histogram"]["largest_atom"] == int(novelty.argmax())
    assert answer["n_atoms"] == len(large) == expected.total
    assert answer["frame"] == 1
    assert answer["n_slabs"] > 3
    assert answer["peak_memory_mb"] > 0
    environments = read_npz(folder / ENVIRONMENTS)
    atoms = environments["atom"]
    assert answer["n_candidates"] == len(atoms) == 3
    np.testing.assert_allclose(environments["novelty"], novelty[atoms], rtol=1e-5)
    np.testing.assert_allclose(environments["position"], large.positions[atoms], atol=1e-6)
    np.testing.assert_allclose(environments["features"], monolithic.features[atoms], atol=1e-4)
    assert atoms[0] == novelty.argmax()
    distances = large.get_all_distances(mic=True)[np.ix_(atoms, atoms)]
    assert distances[~np.eye(3, dtype=bool)].min() >= answer["cutoff_ang"]


def test_surroundings_are_those_of_the_frame(folder, model, grades, large):
    run(folder, model, grades, radius_ang=3.1, max_candidates=8)
    environments = read_npz(folder / ENVIRONMENTS)
    with (folder / CANDIDATES).open("rb") as stream:
        shard = read_shard(stream, source="candidates")
    for row, atom in enumerate(environments["atom"]):
        part = shard.atom_slice(row)
        mine = shard.parent_atom[part]
        assert mine[0] == atom
        inside = np.flatnonzero(large.get_distances(atom, range(len(large)), mic=True) <= 3.1)
        assert sorted(mine) == sorted(inside)
        np.testing.assert_array_equal(shard.numbers[part], large.numbers[mine])
        vectors = shard.positions[part] - shard.positions[part][0]
        np.testing.assert_allclose(vectors, large.get_distances(atom, mine, mic=True, vector=True), atol=1e-6)
    assert shard.generators == ("scan",)
    assert shard.parent_id[0].any()
    assert not np.any(np.ptp(shard.parent_id.astype(int), axis=0))
    assert not shard.pbc.any()


def test_the_size_of_the_slabs_does_not_matter(folder, model, grades):
    answers, atoms = [], []
    for max_atoms in (60, 250, 100_000):
        answers.append(run(folder, model, grades, max_atoms=max_atoms))
        atoms.append(read_npz(folder / ENVIRONMENTS)["atom"])
    assert answers[0]["n_slabs"] > answers[1]["n_slabs"] > answers[2]["n_slabs"] == 1
    for answer, found in zip(answers[:2], atoms[:2], strict=True):
        assert answer["above_one"] == answers[2]["above_one"]
        assert answer["energy_ev"] == pytest.approx(answers[2]["energy_ev"], abs=1e-5)
        np.testing.assert_array_equal(found, atoms[2])


def test_nothing_of_the_size_of_the_frame_is_written_unless_asked(folder, model, grades):
    before = {path.name for path in folder.iterdir()}
    assert run(folder, model, grades, threshold=1e6, save_every_s=0.0)["n_candidates"] == 0
    assert {path.name for path in folder.iterdir()} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from aiida_mlip.workers import evaluate
from aiida_mlip.workers.slab_model import SlabModel
grade, calls = SlabModel.__call__, []
def dying(self, *arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return grade(self, *arguments)
SlabModel.__call__ = dying
sys.exit(evaluate.main([sys.argv[1], "--scan"]))
"""


def test_a_killed_scan_leaves_no_half_file_and_goes_on(folder, model, grades):
    whole = run(folder, model, grades, write_novelty=True, save_every_s=0.0)
    environments, novelty = read_npz(folder / ENVIRONMENTS), np.load(folder / NOVELTY)
    for name in (CANDIDATES, ENVIRONMENTS, NOVELTY):
        (folder / name).unlink()
    write_scan_request(folder / "input.json", request(write_novelty=True, save_every_s=0.0))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    for name in ("output.json", CANDIDATES, ENVIRONMENTS, NOVELTY):
        assert not (folder / name).exists()
    resumed = run(folder, model, grades, write_novelty=True, save_every_s=0.0)
    assert resumed["resumed_slabs"] == 3
    assert not (folder / PARTIAL).exists()
    for name in ("histogram", "n_slabs", "n_candidates", "atoms_evaluated"):
        assert resumed[name] == whole[name]
    assert resumed["energy_ev"] == pytest.approx(whole["energy_ev"], abs=1e-9)
    np.testing.assert_allclose(np.load(folder / NOVELTY), novelty, rtol=1e-6)
    np.testing.assert_array_equal(read_npz(folder / ENVIRONMENTS)["atom"], environments["atom"])


def test_a_saved_state_of_another_scan_is_not_used(folder, model, grades, capsys):
    (folder / PARTIAL).write_bytes(write_npz({"meta": np.array(json.dumps({"key": "another"}))}))
    assert run(folder, model, grades)["resumed_slabs"] == 0
    assert "belongs to another scan" in capsys.readouterr().out
    (folder / PARTIAL).write_bytes(b"nothing")
    assert run(folder, model, grades)["resumed_slabs"] == 0
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"file": "absent.xyz"}, "invalid_input", "no such file"),
        ({"frame": 5}, "invalid_input", "there is no frame 5, it has 2"),
        ({"species": ("Si",)}, "species_not_covered", "does not cover C"),
        ({"statistics": "absent.npz"}, "model_not_loaded", "absent.npz"),
        ({"sha256": "0" * 64}, "model_not_loaded", "was changed"),
        ({"radius_ang": 100.0}, "invalid_input", "at most the"),
    ],
)
def test_what_cannot_be_scanned_is_said(folder, changes, reason, message):
    write_scan_request(folder / "input.json", request(**changes))
    assert program.main([str(folder), "--scan"]) == 1
    answer = json.loads((folder / "output.json").read_text())
    assert (answer["status"], answer["reason"]) == ("failed", reason)
    assert message in answer["message"]


def test_unknown_keys_and_elements(folder, model, grades):
    (folder / "input.json").write_text('{"file": "large.xyz", "treshold": 2}')
    assert program.main([str(folder), "--scan"]) == 1
    assert "treshold" in json.loads((folder / "output.json").read_text())["message"]
    with pytest.raises(Exception, match="does not cover Cu"):
        SlabModel(model, grades).types_of(np.array([29], dtype=np.uint8))


def test_atoms_without_neighbours_are_an_error(folder, model, grades):
    ase.io.write(folder / "gas.xyz", Atoms("Si", [[0, 0, 0]], cell=[30] * 3, pbc=True), format="extxyz")
    with pytest.raises(InvalidInputError, match=r"no two of \d+ atoms around atom 0"):
        run(folder, model, grades, file="gas.xyz")
