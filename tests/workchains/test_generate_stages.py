"""GenerateWorkChain with stages: every kind of step in one specification, failures that stay alone, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import run_get_node
from ase.build import bulk
from ase.calculators.emt import EMT

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import from_ase, id_bytes
from aiida_mlip.workchains.generate import GenerateWorkChain

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parents[1]
CODES = GenerateWorkChain.exit_codes
EMT_FORCES = {"calculator": "ase.calculators.emt.EMT"}
LDA = {
    "lda": {
        "pseudo_family": "debian-lda",
        "protocol": "fast",
        "ecutwfc_ry": 12,
        "occupations": "fixed",
        "kpoints_distance_inv_ang": 1.3,
    }
}
AIMD = {
    "generator": "aimd",
    "protocol": "fast",
    "temperatures_kelvin": [300],
    "timestep_fs": 1.0,
    "n_steps": 3,
    "equilibration_fs": 0,
    "thermostat": {"kind": "nve"},
    "thinning": {"mode": "every"},
}
METADYNAMICS = {
    "generator": "metadynamics",
    "protocol": "fast",
    "forces": EMT_FORCES,
    "n_steps": 40,
    "record_every": 10,
    "hills": {"height_ev": 0.02, "every": 10},
    "environment": {"reference_steps": 20},
}


def _code(localhost, program: str) -> orm.AbstractCode:
    found = orm.QueryBuilder().append(orm.InstalledCode, filters={"label": program}).first(flat=True)
    path = str(BIN / program)
    return (
        found or orm.InstalledCode(label=program, computer=localhost, filepath_executable=path, with_mpi=False).store()
    )


@pytest.fixture
def codes(localhost, pw_code):
    return {"pw": pw_code, "metadynamics": _code(localhost, "aiida-mlip-metadynamics")}


@pytest.fixture
def silicon(aiida_profile) -> DatasetData:
    """Two atoms, off their sites."""
    atoms = bulk("Si", a=5.40)
    atoms.positions[1] += [0.06, 0.01, -0.04]
    return DatasetData.from_frames(from_ase([atoms])).store()


@pytest.fixture
def copper(aiida_profile) -> DatasetData:
    """Two frames with the labels of a teacher, and a bare one."""
    images = [bulk("Cu", cubic=True) for _ in range(3)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
        if seed < 2:
            atoms.calc = EMT()
            atoms.get_forces()
    return DatasetData.from_frames(from_ase(images, fidelity="emt"), settings={"emt": "ab" * 32}).store()


def run(steps, *, seed=3, **inputs):
    spec = {"steps": steps, **{key: inputs.pop(key) for key in ("filters", "keep_seeds") if key in inputs}}
    return run_get_node(GenerateWorkChain, spec=orm.Dict(spec), seed=orm.Int(seed), **inputs)


def children(node) -> dict[str, orm.ProcessNode]:
    links = node.base.links.get_outgoing(link_type=(LinkType.CALL_CALC, LinkType.CALL_WORK)).all()
    return {link.link_label: link.node for link in links}


@pytest.mark.qe
@pytest.mark.slow
@pytest.mark.usefixtures("pseudo_family")
def test_every_kind_of_step_in_one_specification(codes, silicon, copper):
    steps = [
        {"generator": "strain", "per_parent": 4, "keep": False},
        {**AIMD, "parents": {"of": "strain", "count": 1}},
        {"generator": "import", "dataset": "known"},
        {**METADYNAMICS, "parents": {"of": ["import"], "count": 2}},
        {"generator": "rattle", "parents": {"of": "metadynamics", "count": 3}, "per_parent": 2, "amplitude_ang": 0.05},
    ]
    results, node = run(
        steps,
        structures=silicon,
        imports={"known": copper},
        codes=codes,
        fidelities=orm.Dict(LDA),
        reference=copper,
        filters={"min_distance_ang": 1.5},
    )
    assert node.is_finished_ok, node.exit_message
    frames = results["dataset"].frames()
    table = {step["name"]: step for step in results["summary"]["steps"]}
    assert [table[step["generator"]]["frames"] for step in steps] == [0, 3, 3, 8, 6]
    assert len(frames) == results["summary"]["n_frames"] == 20

    # labels stay at their levels
    assert results["dataset"].settings["emt"] == "ab" * 32
    assert len(results["dataset"].settings["lda"]) == 64
    assert table["aimd"]["labels"] == {"lda": {"labelled": 3, "failed": 0}}
    lda = results["dataset"].filter(fidelity="lda")
    emt = results["dataset"].filter(fidelity="emt")
    assert (len(lda), len(emt)) == (3, 2)
    assert np.array_equal(emt.forces, copper.filter(fidelity="emt").forces)

    # everything says where it comes from
    called = children(node)
    assert set(called) == {
        "plan_stages",
        "generate_00",
        "parents_01",
        "step_01_aimd",
        "parents_03",
        "step_03_metadynamics",
        "generate_01",
        "join_steps",
    }
    assert table["aimd"]["process"] == called["step_01_aimd"].uuid
    assert table["rattle"]["process"] == called["generate_01"].uuid
    assert table["import"]["process"] is None
    rattled = frames.generator == frames.generators.index("rattle")
    assert (frames.geometry_uuid[rattled] == id_bytes([called["generate_01"].uuid])).all()
    biased = frames.take(frames.generator == frames.generators.index("metadynamics"))
    assert set(map(bytes, frames.parent_id[rattled])) <= set(map(bytes, biased.frame_id))
    strained = called["parents_01"].outputs.structures
    assert lda.parent_id[0].tobytes() == strained.frames().frame_id[0].tobytes()
    assert 0 < results["summary"]["coverage"]["fraction"] <= 1
    assert audit(node).passed, audit(node).orphans
    assert audit(results["dataset"]).passed
