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
    programs = {name: _code(localhost, f"aiida-mlip-{name}") for name in ("metadynamics", "explore")}
    return {"pw": pw_code, **programs}


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


def test_random_structure_search_alloy_and_dynamics_are_reproducible(codes):
    """Everything that needs no DFT gives the same frames again, and equal structures once."""
    steps = [
        {"generator": "random_structure", "composition": ["Cu3Au", "Cu2Au2"], "count": 4, "keep": False},
        {"generator": "relax", "parents": "random_structure", "protocol": "fast", "cell": "free", "max_steps": 8,
         "forces": EMT_FORCES},
        {"generator": "monte_carlo", "parents": {"of": "seeds", "count": 1}, "temperature_k": 800, "n_steps": 40,
         "record_every": 10, "forces": EMT_FORCES},
    ]  # fmt: skip
    seeds = bulk("Ni", cubic=True, a=3.56)
    seeds.symbols[0] = "Al"
    seeds.symbols[1] = "Al"
    cells = {"nial": orm.StructureData(ase=seeds * (2, 1, 1)).store()}
    given = {"cells": cells, "codes": {"explore": codes["explore"]}, "filters": {"duplicate_tolerance": 0.005}}
    results, node = run(steps, **given)
    assert node.exit_status == CODES.ERROR_STEPS_DOUBTFUL.status, node.exit_message
    assert "relax [502]" in node.exit_message  # eight steps are too few, and said to be
    frames = results["dataset"].frames()
    table = {step["name"]: step for step in results["summary"]["steps"]}
    assert table["random_structure"]["made"] == 4
    assert table["relax"]["made"] > 4  # frames along the path
    assert table["monte_carlo"]["made"] == 4
    assert table["monte_carlo"]["parents"] == ["seeds"]
    for step in table.values():
        assert step["frames"] + step["duplicates"] + sum(step["dropped"].values()) == step["made"] * (
            step["frames"] > 0
        )
    relaxed = frames.take(frames.generator == frames.generators.index("relax"))
    made = children(node)["generate_00"].outputs.frames_00.frame_ids()
    parents = set(map(bytes, relaxed.parent_id))
    assert parents <= {bytes.fromhex(name) for name in made}
    alloy = frames.take(frames.generator == frames.generators.index("monte_carlo"))
    assert set(alloy.species) == {"Al", "Ni"}
    assert len({tuple(alloy.numbers[alloy.atom_slice(row)]) for row in range(len(alloy))}) == len(alloy)
    assert audit(node).passed, audit(node).orphans

    again, _ = run(steps, **given)
    assert again["dataset"].frame_ids() == results["dataset"].frame_ids()
    columns = ("positions", "cell", "numbers", "parent_id", "group_id")
    for name in columns:
        assert again["dataset"].column(name).tobytes() == results["dataset"].column(name).tobytes(), name


def test_a_step_that_fails_takes_along_only_those_that_start_from_it(codes, copper):
    broken = {**METADYNAMICS, "forces": {"calculator": "no_such_package.Thing"}, "parents": "import"}
    steps = [
        {"generator": "import", "dataset": "known"},
        {**broken, "name": "broken"},
        {"generator": "rattle", "parents": "broken", "name": "orphan"},
        {"generator": "random_structure", "composition": "Cu4", "keep": False, "name": "pure"},
        {"generator": "monte_carlo", "parents": "pure", "name": "swaps", "temperature_k": 300, "n_steps": 100,
         "forces": EMT_FORCES},
        {"generator": "rattle", "parents": ["broken", "import"], "per_parent": 1, "amplitude_ang": 0.03},
        {"generator": "random_structure", "composition": "Cu4", "name": "tight", "max_attempts": 1,
         "volume_ang3_per_atom": [11.8, 11.9], "min_distance_ang": 2.45},
    ]  # fmt: skip
    results, node = run(steps, imports={"known": copper}, codes=codes)
    assert node.exit_status == CODES.ERROR_STEPS_FAILED.status
    assert "4 of 7 steps failed" in node.exit_message
    for text in (
        "broken [310]",
        "no_such_package",
        "orphan [310]: not run: broken made no frames",
        "swaps [201]",
        "two elements",
        "tight [310]: steps.tight",
    ):
        assert text in node.exit_message
    table = {step["name"]: step for step in results["summary"]["steps"]}
    assert [(table[name]["made"], table[name]["frames"]) for name in ("import", "rattle")] == [(3, 3), (3, 3)]
    assert table["broken"]["exit_status"] == 310
    assert "no_such_package" in table["broken"]["message"]
    assert table["tight"]["exit_status"] == 310
    assert (table["swaps"]["process"], table["swaps"]["exit_status"]) == (None, 201)
    assert table["orphan"]["message"] == "not run: broken made no frames"
    assert len(results["dataset"]) == 6
    assert audit(node).passed, audit(node).orphans


def test_frames_of_a_step_that_breaks_off_are_kept(codes):
    from double_well import molecule

    seeds = DatasetData.from_frames(from_ase([molecule()]))
    steps = [
        {"generator": "md", "n_steps": 60, "record_every": 20, "temperature_k": 300, "timestep_fs": 1.0,
         "forces": {"calculator": "double_well.DoubleWell", "arguments": {"fail_after": 50}}},
        {"generator": "rattle", "parents": "md", "amplitude_ang": 0.01},
    ]  # fmt: skip
    options = {"explore": {"environment_variables": {"PYTHONPATH": str(TESTS)}}}
    results, node = run(steps, structures=seeds, codes={"explore": codes["explore"]}, options=orm.Dict(options))
    assert node.exit_status == CODES.ERROR_STEPS_INCOMPLETE.status
    assert "md [410]" in node.exit_message
    assert "broke down" in node.exit_message
    made = [step["frames"] for step in results["summary"]["steps"]]
    assert made == [2, 2]


def test_nothing_kept_or_nothing_made_is_said(codes, copper):
    steps = [{"generator": "import", "dataset": "known"}]
    _, node = run(steps, imports={"known": copper}, filters={"volume_ang3_per_atom": [1.0, 2.0]})
    assert node.exit_status == CODES.ERROR_GENERATE_FAILED.status
    assert "nothing is kept" in node.exit_message
    tight = {
        "generator": "random_structure",
        "composition": "Cu4",
        "max_attempts": 1,
        "volume_ang3_per_atom": [11.8, 11.9],
        "min_distance_ang": 2.45,
    }
    _, node = run([tight, {**METADYNAMICS, "parents": "random_structure"}], codes=codes)
    assert node.exit_status == CODES.ERROR_GENERATE_FAILED.status
    assert "random_structure [310]" in node.exit_message
    assert "metadynamics [310]: not run" in node.exit_message


IMPORT = {"generator": "import", "dataset": "known"}
BIASED = {**METADYNAMICS, "parents": "import"}
RELAX = {"generator": "relax", "parents": "import"}


@pytest.mark.usefixtures("pseudo_family")
@pytest.mark.parametrize(
    ("steps", "inputs", "message"),
    [
        ([AIMD], {"codes": {}}, r"spec.steps\[0\] \(aimd\): needs the input `codes.pw`"),
        ([AIMD], {}, r"spec.steps\[0\] \(aimd\): needs the input `fidelities`"),
        ([{**AIMD, "fidelity": "pbe"}], {"fidelities": LDA}, r"spec.steps\[0\].fidelity: unknown fidelity 'pbe'"),
        ([AIMD], {"fidelities": {**LDA, "two": LDA["lda"]}}, r"steps\[0\].fidelity: missing, there are several: lda"),
        ([AIMD], {"fidelities": {"emt": {"engine": "ase", **EMT_FORCES}}}, r"engine qe, 'emt' is of ase"),
        ([IMPORT, {**AIMD, "parents": "import"}], {"fidelities": LDA}, "no pseudopotential for Cu"),
        ([{**AIMD, "n_stepz": 3}], {"fidelities": LDA}, r"spec.steps\[0\].n_stepz: .*did you mean 'n_steps'"),
        ([{**AIMD, "parents": {"of": "seeds", "cout": 3}}], {}, r"spec.steps\[0\].parents.cout: .* 'count'"),
        ([{**AIMD, "temperatures_kelvin": [-3]}], {}, r"spec.steps\[0\].temperatures_kelvin.0: "),
        ([IMPORT, RELAX], {}, r"spec.steps\[1\] \(relax\): needs forces: give the key `forces` .* or the input"),
        ([IMPORT, {**RELAX, "fmax": 1}], {}, r"spec.steps\[1\].fmax: .*did you mean 'fmax_ev_per_ang'"),
        ([IMPORT, {**BIASED, "fixed_atoms": [4]}], {}, r"spec.steps\[1\].fixed_atoms: atom 4 does not exist"),
        ([IMPORT, {**BIASED, "engine": "plumed", "hills": None, "environment": None}], {}, r"steps\[1\].engine_input"),
        ([IMPORT, {"generator": "monte_carlo", "parents": "import", "temperature_k": 3, "n_steps": 99,
                   "forces": EMT_FORCES}], {}, r"spec.steps\[1\].elements: a swap needs two elements"),
        ([IMPORT, BIASED], {"options": {"metadynamics": {"walltime": 3}}}, "unknown option 'walltime'"),
        ([{**IMPORT, "dataset": "nobody"}], {}, r"spec.steps\[0\].dataset: 'nobody' is not among .* has known"),
        ([{"generator": "strain"}], {}, "imports.known: no step imports it"),
        ([IMPORT], {"keep_seeds": True, "structures": "other_emt"}, "fidelity 'emt': labels of two settings"),
        ([IMPORT, {**AIMD, "fidelity": "emt"}], {"fidelities": {"emt": LDA["lda"]}}, "fidelities.emt: the frames"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_refused_before_anything_is_stored(steps, inputs, message, codes, silicon, copper):
    imports = (
        {"known": copper} if "imports.known" in message or any(step["generator"] == "import" for step in steps) else {}
    )
    given = {"structures": silicon, "imports": imports, "codes": codes, **inputs}
    if given["structures"] == "other_emt":
        given["structures"] = DatasetData.from_frames(copper.frames(), settings={"emt": "cd" * 32}).store()
    for name in ("fidelities", "options"):
        if name in given:
            given[name] = orm.Dict(given[name])
    before = orm.QueryBuilder().append(orm.Node).count()
    with pytest.raises(ValueError, match=message):
        run(steps, **given)
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_a_potential_must_cover_what_a_step_meets(toy_package, codes, copper, aiida_profile):
    from aiida_mlip.data.potential import PotentialData

    potential = PotentialData.import_package(toy_package, engine="nequip", fidelities=["lj"]).store()
    random = {"generator": "random_structure", "composition": "GaAs", "keep": False}
    for first, missing in (
        (IMPORT, r"spec.steps\[1\]: .* does not cover Cu"),
        (random, r"spec.steps\[1\]: .* does not cover As, Ga"),
    ):
        given = {"imports": {"known": copper}} if first is IMPORT else {}
        with pytest.raises(ValueError, match=missing):
            run([first, {**RELAX, "parents": first["generator"]}], codes=codes, potential=potential, **given)
    # only a potential that has been graded can be watched, or followed to where it is uncertain
    silicon = DatasetData.from_frames(from_ase([bulk("Si")]))
    watched = {"generator": "md", "n_steps": 50, "temperature_k": 300, "watch": {}}
    with pytest.raises(ValueError, match=r"spec.steps\[0\].watch: the potential .* has no grades"):
        run([watched], codes=codes, potential=potential, structures=silicon)
    with pytest.raises(ValueError, match="committee: the input `potential`"):
        run(
            [{**watched, "watch": None, "forces": EMT_FORCES}],
            codes=codes,
            committee={"other": potential},
            structures=silicon,
        )
    # what a level of theory is called must be known to the potential
    with pytest.raises(ValueError, match=r"spec.steps\[0\].fidelity: 'pbe' is none of the potential's"):
        run([{"generator": "relax", "fidelity": "pbe"}], codes=codes, potential=potential, structures=silicon)


def test_a_potential_drives_stages(toy_package, codes):
    from aiida_mlip.data.potential import PotentialData

    potential = PotentialData.import_package(toy_package, engine="nequip", fidelities=["lj"]).store()
    carbide = bulk("SiC", "zincblende", a=4.4, cubic=True)
    carbide.rattle(0.05, seed=1)
    seeds = DatasetData.from_frames(from_ase([carbide]))
    steps = [{"generator": "md", "n_steps": 4, "record_every": 2, "temperature_k": 50}]
    results, node = run(steps, structures=seeds, codes={"explore": codes["explore"]}, potential=potential)
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 2
    assert children(node)["step_00_md"].inputs.potential == potential
    assert audit(node).passed


@pytest.mark.usefixtures("pseudo_family")
def test_develop_hands_on_what_stages_need(codes, label_code, train_code, evaluate_code, silicon, copper):
    from aiida_mlip.workchains.develop import DevelopWorkChain

    def build(**more):
        return DevelopWorkChain.get_builder_from_protocol(
            silicon,
            codes={"ase": label_code, "train": train_code, "evaluate": evaluate_code, **more},
            fidelities=LDA,
            protocol="fast",
            overrides={"generate": {"steps": [AIMD, {**IMPORT, "keep": False}]}},
            generate_inputs={"imports": {"known": copper}, "options": {"pw": {"max_wallclock_seconds": 99}}},
        )

    builder = build(pw=codes["pw"], explore=codes["explore"])
    assert dict(builder.generate.codes) == {"pw": codes["pw"]}  # no step needs the other
    assert builder.generate.fidelities["lda"]["ecutwfc_ry"] == 12
    assert builder.generate.options["pw"]["max_wallclock_seconds"] == 99
    assert builder.generate.imports["known"] == copper
    before = orm.QueryBuilder().append(orm.Node).count()
    with pytest.raises(ValueError, match=r"spec.steps\[0\] \(aimd\): needs the input `codes.pw`"):
        run_get_node(build())
    assert orm.QueryBuilder().append(orm.Node).count() == before
