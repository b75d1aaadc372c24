"""GenerateWorkChain: ports refuse bad input, runs are reproducible and leave a clean graph."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase import Atoms
from ase.build import bulk, molecule

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase, id_bytes
from aiida_mlip.workchains.generate import GenerateWorkChain

STEPS = [
    {"generator": "strain", "per_parent": 3, "volume": [0.9, 1.1]},
    {"generator": "rattle", "parents": "strain", "per_parent": 2, "amplitude_ang": [0.03, 0.1]},
    {"generator": "random_structure", "composition": "Si4", "count": 2},
]


@pytest.fixture
def silicon(aiida_profile) -> DatasetData:
    return DatasetData.from_frames(from_ase([bulk("Si", cubic=True)])).store()


def inputs(silicon: DatasetData | None, steps=None, **extra):
    given = {"spec": orm.Dict({"steps": STEPS if steps is None else steps, **extra}), "seed": orm.Int(7)}
    return given if silicon is None else {**given, "structures": silicon}


def test_generates_with_lineage_and_provenance(silicon):
    outputs, node = run_get_node(GenerateWorkChain, **inputs(silicon, keep_seeds=True))
    assert node.is_finished_ok, node.exit_message
    frames = outputs["dataset"].frames()
    assert len(frames) == 1 + 3 + 6 + 2
    calculation = outputs["dataset"].creator
    assert node.called == [calculation]
    assert calculation.base.links.get_incoming().get_node_by_label("generate") == node
    assert (frames.geometry_uuid[1:] == id_bytes([calculation.uuid])).all()
    assert not frames.geometry_uuid[0].any()  # the seed was given, not made
    summary = outputs["summary"].get_dict()
    assert [step["frames"] for step in summary["steps"]] == [3, 6, 2]
    assert summary["n_frames"] == len(frames)
    assert outputs["summary"].creator == calculation


def test_filters_and_coverage_of_a_reference(silicon):
    steps = [
        {"generator": "vacancy", "per_parent": 4, "min_image_distance_ang": 7.0, "name": "holes"},
        {"generator": "rattle", "per_parent": 6, "amplitude_ang": 0.1},
    ]
    reference = DatasetData.from_frames(from_ase([bulk("Si", cubic=True), bulk("Si", cubic=True, a=5.6)])).store()
    given = inputs(silicon, steps, keep_seeds=True, filters={"duplicate_tolerance": 0.005})
    outputs, node = run_get_node(GenerateWorkChain, **given, reference=reference)
    assert node.is_finished_ok, node.exit_message
    summary = outputs["summary"].get_dict()
    holes, rattled = summary["steps"]
    assert (holes["frames"], rattled["frames"]) == (1, 6)  # all vacancies of diamond are one structure
    assert holes["duplicates"] + holes["dropped"].get("duplicate", 0) == 3
    assert len(outputs["dataset"]) == summary["n_frames"] == 8
    # the seed is one of the reference's two environments; the other lattice constant is not reached
    assert summary["coverage"]["fraction"] == 0.5
    assert summary["coverage"]["novel"] > 0
    outputs, node = run_get_node(
        GenerateWorkChain, **inputs(silicon, steps, filters={"volume_ang3_per_atom": [1.0, 2.0]})
    )
    assert node.exit_status == 300
    assert "nothing is kept" in node.exit_message


def test_same_inputs_same_frames_other_seed_other_frames(silicon):
    first, _ = run_get_node(GenerateWorkChain, **inputs(silicon))
    again, _ = run_get_node(GenerateWorkChain, **inputs(silicon))
    other, _ = run_get_node(GenerateWorkChain, **(inputs(silicon) | {"seed": orm.Int(8)}))
    assert first["dataset"].frame_ids() == again["dataset"].frame_ids()
    assert not set(first["dataset"].frame_ids()) & set(other["dataset"].frame_ids())


def test_structure_nodes_as_seeds_and_protocol():
    structure = orm.StructureData(ase=bulk("Cu", cubic=True)).store()
    builder = GenerateWorkChain.get_builder_from_protocol(
        [structure], protocol="fast", overrides={"steps": [{"generator": "rattle", "amplitude_ang": 0.05}], "seed": 3}
    )
    outputs, node = run_get_node(builder)
    assert node.is_finished_ok
    assert node.inputs.seed.value == 3
    assert outputs["dataset"].species == ["Cu"]
    assert outputs["dataset"].base.attributes.get("generators") == {"import": 1, "rattle": 1}


@pytest.mark.parametrize("protocol", ["fast", "moderate", "precise"])
def test_protocols_run(silicon, protocol):
    outputs, node = run_get_node(GenerateWorkChain.get_builder_from_protocol(silicon, protocol=protocol))
    assert node.is_finished_ok
    volumes = np.linalg.det(outputs["dataset"].column("cell")) / 8
    assert volumes.min() < 19 < 21 < volumes.max()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "there are none"),
        ([{"generator": "ratle"}], "did you mean 'rattle'"),
        ([{"generator": "rattle", "amplitude": 0.1}], "did you mean 'amplitude_ang'"),
        ([{"generator": "rattle", "amplitude_ang": -0.1}], r"amplitude_ang: expected 0 <= low <= high"),
        ([{"generator": "random_structure", "composition": "Si8", "min_distance_ang": 4.0}], r"min_distance_ang: 4.0"),
        ([{"generator": "random_structure", "composition": "Xy2"}], "composition: "),
        ([{"generator": "rattle", "parents": "nobody"}], "no earlier step"),
        ([{"generator": "rattle", "per_parent": 10**8}], "the most allowed"),
        ([{"generator": "strain", "linear": 0.9}], "linear: a strain"),
        ([{"generator": "strain"}, {"generator": "strain"}], "used twice"),
    ],
)
def test_bad_specifications_are_refused_before_anything_is_stored(silicon, steps, message):
    before = orm.QueryBuilder().append(orm.Node).count()
    with pytest.raises(ValueError, match=message):
        run_get_node(GenerateWorkChain, **inputs(silicon, steps))
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_seeds_missing_or_unusable(aiida_profile):
    with pytest.raises(ValueError, match="give seed structures"):
        run_get_node(GenerateWorkChain, **inputs(None))
    overlapping = DatasetData.from_frames(from_ase([Atoms("Si2", [[0, 0, 0], [0, 0, 0.3]], cell=[5, 5, 5], pbc=True)]))
    with pytest.raises(ValueError, match="structures, frame 0: atoms Si 0 and Si 1 overlap"):
        run_get_node(GenerateWorkChain, **inputs(overlapping))
    with pytest.raises(ValueError, match="negative"):
        run_get_node(GenerateWorkChain, **(inputs(None, STEPS[2:]) | {"seed": orm.Int(-1)}))


def test_exit_code_when_frames_cannot_be_made(aiida_profile):
    water = DatasetData.from_frames(from_ase([molecule("H2O")])).store()
    _, node = run_get_node(GenerateWorkChain, **inputs(water, STEPS[:1]))
    assert node.exit_status == GenerateWorkChain.exit_codes.ERROR_GENERATE_FAILED.status
    assert "no periodic cell" in node.exit_message
    assert node.called[0].exit_status == 310
