"""FragmentWorkChain: places of a warm crystal with a vacancy, cut, relaxed, judged; and the embedding error of EMT."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from aiida.manage.caching import enable_caching
from ase.build import bulk
from ase.calculators.emt import EMT
from emt_copper import LATTICE_ANG
from watched_copper import watched

from aiida_mlip.cli.installation import REUSED_FUNCTIONS
from aiida_mlip.data.atom_grades import grades_node
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.fragment import FragmentWorkChain
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.model_loading import load_model

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch, e3nn and lightning about themselves

PROGRAM = Path(sys.executable).parent / "aiida-mlip-fragment"
COPPER = bulk("Cu", a=LATTICE_ANG, cubic=True)
SETTINGS = {"core_radius_ang": 2.7, "buffer_ang": 0.5, "max_fragments": 2, "device": "cpu", "max_atoms": 400}
EMT_LEVEL = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
CODES = FragmentWorkChain.exit_codes


def warm_copper(seed: int = 0):
    """Rattled copper without one of its atoms."""
    atoms = COPPER * (5, 5, 5)
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.08, atoms.positions.shape)
    del atoms[200]
    return atoms


def around_the_vacancy(atoms) -> np.ndarray:
    """Grades that fall with the distance from where atom 200 was."""
    place = (COPPER * (5, 5, 5)).positions[200]
    offset = atoms.positions - place
    cell = atoms.cell.array
    offset -= np.round(offset @ np.linalg.inv(cell)) @ cell
    return 6.0 * np.exp(-np.linalg.norm(offset, axis=1) / 4.0)


@pytest.fixture
def inputs(aiida_profile, label_code):
    """A frame with grades, cut as it is, its embedding error measured with EMT."""
    frames = from_ase([warm_copper()])
    return {
        "frames": DatasetData.from_frames(frames),
        "grades": grades_node(frames.frame_id, around_the_vacancy(warm_copper())),
        "settings": orm.Dict(SETTINGS),
        "hosts": {"copper": orm.StructureData(ase=COPPER)},
        "gate": orm.Dict({"n_fragments": 1, "buffers_ang": [0.5, 1.0, 2.5, 4.0]}),
        "label": {"fidelities": orm.Dict(EMT_LEVEL), "codes": {"ase": label_code}},
    }


def test_the_gate_measures_the_embedding_error_and_picks_the_buffer(inputs):
    results, node = run_get_node(FragmentWorkChain, **inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    found = results["embedding"].get_dict()
    errors = found["errors_ev_per_ang"]
    assert len(errors) == len(found["buffers_ang"]) - 1 >= 2
    assert errors[-1] < errors[0], "a strictly local calculator: the error falls with the buffer"
    assert found["chosen_ang"] == 2.5
    assert found["measured_ev_per_ang"] <= found["tolerance_ev_per_ang"] < errors[1]
    assert results["settings"]["buffer_ang"] == 2.5
    # the labels of the measurement are returned, they are labels like any others
    labelled = results["labelled"].frames()
    assert labelled.labelled.all()
    assert len(labelled) == len(found["buffers_ang"])
    assert found["labels_uuid"] == results["labelled"].uuid
    # errors as computed by hand: core atoms against those of the largest
    by_size = np.argsort(labelled.natoms)
    forces = []
    for row in by_size:
        part = labelled.atom_slice(row)
        core = labelled.region[part] == 0
        forces.append(dict(zip(labelled.parent_atom[part][core], labelled.forces[part][core], strict=True)))
    atoms = sorted(set.intersection(*map(set, forces)))
    delta = np.array([forces[0][atom] - forces[-1][atom] for atom in atoms])
    assert errors[0] == pytest.approx(np.sqrt((delta**2).sum(axis=1).mean()), rel=1e-6)
    # and it is the error that it stands for: that of the forces in the large frame
    whole = warm_copper()
    whole.calc = EMT()
    row = int(by_size[found["buffers_ang"].index(2.5)])
    part = labelled.atom_slice(row)
    core = labelled.region[part] == 0
    wrong = labelled.forces[part][core] - whole.get_forces()[labelled.parent_atom[part][core]]
    assert np.sqrt((wrong**2).sum(axis=1).mean()) == pytest.approx(found["measured_ev_per_ang"], rel=0.15)
    assert len(results["fragments"]) == 2
    assert audit(node).passed


def test_a_measurement_that_is_too_dear_is_left_out(inputs):
    """Five core-seconds are allowed, each label is said to cost an hour: no ladder, the buffer stays as given."""
    gate = {**inputs["gate"].get_dict(), "core_hours": 1e-3, "cost": {"core_hours": 1.0, "natoms": 30}}
    results, node = run_get_node(FragmentWorkChain, **{**inputs, "gate": orm.Dict(gate)})
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    assert "embedding" not in results
    assert "labelled" not in results
    assert len(results["fragments"]) == 2


def test_buffers_are_relaxed_and_fragments_judged(inputs, emt_copper_committee, localhost):
    """With a potential: what is returned was accepted, and the report says what was not."""
    source = watched(emt_copper_committee, members=2)
    model = load_model(source.packages[0], device="cpu", features=True, frames="one")
    atoms = warm_copper()
    novelty = PotentialCalculator(model, shifts={}, grades=source.grades).novelty(atoms)
    given = {name: value for name, value in inputs.items() if name not in ("gate", "label")}
    given["grades"] = grades_node(inputs["frames"].column("frame_id"), novelty)
    given["settings"] = orm.Dict({**SETTINGS, "core_radius_ang": 4.5, "buffer_ang": 1.5, "threshold": 0.5})
    given["potential"] = PotentialData.import_package(
        source.packages[0], fidelities=["emt"], statistics=source.grades.arrays()
    )
    code = orm.InstalledCode(label="fragment", computer=localhost, filepath_executable=str(PROGRAM)).store()
    results, node = run_get_node(FragmentWorkChain, **given, codes={"fragment": code})
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    judged = results["accepted"]["fragments"]
    assert [entry["frame_id"] for entry in judged if entry["accepted"]] == results["fragments"].frame_ids()
    assert all(abs(entry["novelty_fragment"] / entry["novelty_parent"] - 1) <= 0.05 for entry in judged
               if entry["accepted"])  # fmt: skip
    assert audit(node).passed


def test_cut_again_they_are_the_same_fragments(inputs):
    """With what set-up switches on: a campaign that is begun again goes on with equal nodes, lineage included."""
    given = {name: value for name, value in inputs.items() if name not in ("gate", "label")}
    cutters, fragments = [], []
    with ExitStack() as stack:
        for identifier in REUSED_FUNCTIONS:
            stack.enter_context(enable_caching(identifier=identifier))
        for _ in range(2):
            results, node = run_get_node(FragmentWorkChain, **given)
            assert node.is_finished_ok
            fragments.append(results["fragments"])
            cutters.append(results["fragments"].creator)
    assert cutters[1].base.caching.is_created_from_cache
    assert fragments[1].shard_names == fragments[0].shard_names


def test_exit_codes(inputs, toy_package, localhost):
    """A frame smaller than its fragments; a program that is not there."""
    small = {**inputs, "settings": orm.Dict({"core_radius_ang": 20.0, "buffer_ang": 5.0, "completion": "disordered"})}
    small = {name: value for name, value in small.items() if name not in ("gate", "label")}
    _, node = run_get_node(FragmentWorkChain, **small)
    assert node.exit_status == CODES.ERROR_CARVE_FAILED.status
    assert "smaller than the fragment" in node.exit_message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"core_radius_ang": 2.7, "bufer_ang": 1}}, "did you mean 'buffer_ang'"),
        ({"gate": {"buffers_ang": [1, 2]}}, "at least 3 are needed"),
        ({"gate": {"buffers_ang": [1, 3, 2]}}, "must grow"),
        ({"label": None}, "label: missing"),
        ({"hosts": None, "settings": {"core_radius_ang": 2.7, "completion": "crystal"}}, "hosts: missing"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(inputs, changes, message):
    given = dict(inputs)
    for name, value in changes.items():
        if value is None:
            del given[name]
        else:
            given[name] = orm.Dict(value)
    with pytest.raises(ValueError, match=message):
        run_get_node(FragmentWorkChain, **given)
