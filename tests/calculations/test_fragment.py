"""Fragments as nodes: lineage down to the atom of the parent, reasons for what was refused, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from ase import Atoms
from ase.build import bulk

from aiida_mlip.calculations.functions.fragment import carve_fragments
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase

SETTINGS = {"core_radius_ang": 2.6, "buffer_ang": 2.6, "threshold": 1.5}


@pytest.fixture
def large(aiida_profile):
    """A rattled copper crystal with a strongly displaced atom, and grades that see it."""
    atoms = bulk("Cu", cubic=True) * (6, 6, 6)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    atoms.positions[10] += [0.5, 0.2, 0.0]
    frames = from_ase([atoms], generator="md")
    novelty = np.full(len(atoms), 0.8)
    novelty[[10, 400, 700]] = [9.0, 2.0, 3.0]
    return DatasetData.from_frames(frames), grades_of(frames, novelty), atoms


def grades_of(frames, novelty):
    grades = orm.ArrayData()
    grades.set_array("frame_id", frames.frame_id)
    grades.set_array("novelty", novelty)
    return grades


def run(frames, grades, settings, **hosts):
    return carve_fragments.run_get_node(frames, grades, orm.Dict(settings), **hosts)


def test_every_atom_of_a_fragment_leads_back_to_its_parent(large):
    dataset, grades, atoms = large
    outputs, node = run(dataset, grades, SETTINGS, copper=orm.StructureData(ase=bulk("Cu", cubic=True)))
    assert node.is_finished_ok, node.exit_message
    fragments = outputs["fragments"].frames()
    assert outputs["summary"]["completion"] == {"crystal": 3}
    assert len(fragments) == 3
    parent = dataset.frames()
    for row, centre in enumerate((10, 700, 400)):  # worst first
        part = fragments.atom_slice(row)
        index = fragments.parent_atom[part]
        assert index[0] == centre
        np.testing.assert_array_equal(fragments.parent_id[row], parent.frame_id[0])
        assert fragments.geometry_uuid[row].tobytes().hex() == node.uuid.replace("-", "")
        # distances to the centre are those in the parent
        near = fragments.region[part] == 0
        distance = np.linalg.norm(fragments.positions[part][near], axis=1)
        np.testing.assert_allclose(distance, atoms.get_distances(centre, index[near], mic=True), atol=1e-9)
    assert len(np.unique(fragments.group_id, axis=0)) == 1
    assert outputs["fragments"].base.attributes.get("generators") == {"fragment": 3}


def test_nothing_above_the_threshold_is_no_failure(large):
    dataset, grades, _ = large
    outputs, node = run(dataset, grades, SETTINGS | {"threshold": 100.0})
    assert node.is_finished_ok
    assert set(outputs) == {"summary"}
    assert outputs["summary"]["n_fragments"] == 0


def test_a_centre_without_fragment_is_named_with_its_reason(large):
    dataset, grades, _ = large
    iron = orm.StructureData(ase=bulk("Fe", cubic=True))
    outputs, node = run(dataset, grades, SETTINGS | {"completion": "crystal"}, iron=iron)
    assert node.is_finished_ok
    assert "fragments" not in outputs
    refused = outputs["summary"]["refused"]
    assert [entry["atom"] for entry in refused] == [10, 700, 400]
    assert all("no host found" in entry["reason"] for entry in refused)
    # without being told otherwise, it is then cut as a disordered piece
    outputs, _ = run(dataset, grades, SETTINGS | {"min_distance_ang": 1.0}, iron=iron)
    assert outputs["summary"]["completion"] == {"disordered": 3}


def test_at_most_so_many(large):
    dataset, grades, _ = large
    outputs, _ = run(dataset, grades, SETTINGS | {"max_fragments": 1, "min_distance_ang": 1.0})
    assert outputs["fragments"].frames().parent_atom[0] == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"core_radius": 3.0}, "unknown key 'core_radius'.*did you mean 'core_radius_ang'"),
        ({"buffer_ang": 20.0}, r"frame 0 \([0-9a-f]{8}\): the frame is smaller than the fragment"),
        ({"completion": "crystal"}, "host: missing"),
        ({"min_distance_ang": {"Cu": 1.0}}, "min_distance_ang: 'Cu' is not a pair"),
        ({"oxidation_states": {"O": -2}}, "oxidation_states: none for Cu"),
    ],
)
def test_bad_settings_are_refused(large, change, message):
    dataset, grades, _ = large
    settings = {"min_distance_ang": 1.0} | SETTINGS | change
    _, node = run(dataset, grades, settings)
    assert node.exit_status == 310
    import re

    assert re.search(message, node.exit_message), node.exit_message


def test_grades_that_do_not_fit_are_refused(large):
    dataset, _, atoms = large
    frames = dataset.frames()
    other = from_ase([Atoms("Cu", cell=[9, 9, 9], pbc=True)])
    empty = orm.ArrayData()
    empty.set_array("frame_id", frames.frame_id)
    for grades, message in (
        (grades_of(frames, np.ones(3)), f"3 numbers for {len(atoms)} atoms"),
        (grades_of(other, np.ones(1)), "1 frames are not in the dataset"),
        (empty, "no array novelty"),
    ):
        _, node = run(dataset, grades, SETTINGS)
        assert node.exit_status == 310
        assert message in node.exit_message
