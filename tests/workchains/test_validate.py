"""ValidateWorkChain: teachers with known answers, a potential against its reference, bad input, every exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from aiida import orm
from aiida.engine import calcfunction, run_get_node
from ase.build import bulk

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.provenance import audit
from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.validate import ValidateWorkChain

TESTS = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "aiida-mlip-explore"
CODES = ValidateWorkChain.exit_codes
PATH = {"environment_variables": {"PYTHONPATH": str(TESTS)}}
#: Nothing but the equation of state.
BARE = {"elastic": None, "phonons": None, "vacancy": None, "dimer": None}
KNOWN = {
    "silicon": ("Si", {"cubic": True, "a": 5.40}),
    "copper": ("Cu", {"a": 3.60}),
    "aluminium": ("Al", {"a": 4.03}),
    "emt": ("Cu", {"a": 3.58}),
}


@pytest.fixture
def explore_code(localhost):
    return orm.InstalledCode(
        label="explore", computer=localhost, filepath_executable=str(PROGRAM), with_mpi=False
    ).store()


@pytest.fixture
def builder(label_code, explore_code):
    """Builder of the validation of a teacher, with changes to its settings."""

    def make(teacher="silicon", overrides=None, structures=None, **inputs):
        name, keys = KNOWN[teacher]
        path = "ase.calculators.emt.EMT" if teacher == "emt" else f"known_teachers.{teacher}"
        return ValidateWorkChain.get_builder_from_protocol(
            DatasetData.from_frames(from_ase(structures or [bulk(name, **keys)])),
            codes={"ase": label_code, "explore": explore_code},
            subject={"teacher": {"engine": "ase", "calculator": path}},
            protocol="fast",
            overrides=overrides,
            options=PATH,
            label={"options": PATH},
            **inputs,
        )

    return make


def entries(results, structure=0):
    return {e["name"]: e for e in results["properties"]["entries"] if e["structure"] == structure}


#: What is known of a teacher (shared/data/README.md), the faces of its vacancy's supercell and of its phonons' (Å).
TEACHERS = {
    "silicon": (
        {
            "a0_ang": 5.4309,
            "c11_gpa": 151.4,
            "c12_gpa": 76.4,
            "c44_gpa": 56.4,
            "vacancy_ev": 2.694,
            "phonons_gamma_thz": [0, 0, 0, 17.83, 17.83, 17.83],
            "phonons_X_thz": [6.65, 6.65, 12.99, 12.99, 15.63, 15.63],
        },
        16.0,
        6.0,
    ),
    "copper": (
        {
            "a0_ang": 3.6149,
            "c11_gpa": 170.0,
            "c12_gpa": 122.7,
            "c44_gpa": 76.2,
            "vacancy_ev": 1.2735,
            "phonons_gamma_thz": [0, 0, 0],
            "phonons_X_thz": [5.21, 5.21, 7.82],
        },
        9.0,
        8.0,
    ),
    "aluminium": (
        {"a0_ang": 4.0453, "c11_gpa": 110.2, "c12_gpa": 61.4, "c44_gpa": 32.6, "vacancy_ev": 0.659},
        9.0,
        9.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_known_teacher(builder, teacher):
    """The bars: a0 to 1e-3 Å, elastic constants to 1 %, vacancy to 5 meV, phonons to 0.05 THz."""
    reference, vacancy, phonons = TEACHERS[teacher]
    knows_phonons = "phonons_X_thz" in reference
    overrides = {
        "eos": {"strain": 0.03, "points": 25, "fit_strain": 0.01},
        "elastic": {"strain": 0.005 if teacher == "silicon" else 0.002},
        "vacancy": {"min_length_ang": vacancy},
        "phonons": {"min_length_ang": phonons, "mesh": 6, "points_per_path": 5} if knows_phonons else None,
        "relaxed": {"fmax_ev_per_ang": 0.005},
        "dimer": None,
    }
    bars = {
        "a0": {"relative": None, "absolute": 1e-3},
        "elastic_constants": {"relative": 0.01},
        "vacancy": {"absolute": 0.005},
        "phonons": {"absolute": 0.05},
    }
    results, node = run_get_node(builder(teacher, {**overrides, "thresholds": bars}, reference_values=reference))
    assert node.is_finished_ok, node.exit_message
    found = entries(results)
    for name in reference:
        assert found[name]["passed"], found[name]
    assert found["smallest_elastic_eigenvalue_gpa"]["passed"]
    assert results["verdict"]["verdict"] == "passed"
    assert results["verdict"]["unused_reference_values"] == []
    assert audit(node).passed
    for entry in results["properties"]["entries"]:
        assert entry["uuids"]
        for uuid in entry["uuids"]:
            assert orm.load_node(uuid).is_stored


def test_unstable_crystal_is_flagged(builder):
    """Body-centred copper of EMT: shear brings it to fcc, modes are imaginary."""
    settings = {"vacancy": None, "dimer": None, "phonons": {"min_length_ang": 4.0, "mesh": 4, "points_per_path": 5}}
    make = builder("emt", settings, structures=[bulk("Cu", "bcc", a=2.87)])
    results, node = run_get_node(make)
    assert node.exit_status == CODES.ERROR_THRESHOLD_MISSED.status
    found = entries(results)
    assert found["smallest_elastic_eigenvalue_gpa"]["passed"] is False
    assert found["smallest_elastic_eigenvalue_gpa"]["value"] < 0
    assert found["lowest_frequency_thz"]["passed"] is False
    assert found["lowest_frequency_thz"]["value"] < -0.2
    assert found["c11_gpa"]["passed"] is None  # no reference
    assert "smallest_elastic_eigenvalue_gpa" in node.exit_message
    assert results["verdict"]["verdict"] == "failed"


def test_reference_agrees_with_itself(builder, label_code):
    """The same teacher on both sides: every difference is zero, whatever is computed; runs included."""
    settings = {
        "eos": {"points": 7},
        "phonons": None,
        "vacancy": {"min_length_ang": 5.0},
        "surface": {"miller": [[1, 1, 1]], "min_thickness_ang": 6.0},
        "dimer": {"points": 9, "reference": True},
        "dynamics": {
            "temperatures_k": [300],
            "min_length_ang": 5.0,
            "timestep_fs": 4.0,
            "equilibration_ps": 0.04,
            "production_ps": 0.08,
            "record_every": 2,
        },
        "thresholds": {
            name: {"absolute": 1e-6} for name in ("a0", "elastic_constants", "vacancy", "surface", "nve_drift")
        },
    }
    reference = {"truth": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
    results, node = run_get_node(builder("emt", settings, reference=reference))
    assert node.is_finished_ok, node.exit_message
    found = entries(results) | entries(results, -1)
    for name in ("a0_ang", "c44_gpa", "vacancy_ev", "surface_111_j_per_m2", "dimer_Cu_Cu_repels_to"):
        assert found[name]["difference"] == pytest.approx(0.0, abs=1e-9), name
    assert found["vacancy_ev"]["value"] == pytest.approx(1.1, abs=0.3)
    assert found["stable_part_300k"]["passed"]
    assert found["pair_distribution_difference_300k"]["value"] == 0.0
    curves = results["curves"]["subject_00"]
    assert curves.get_array("s0_rdf_300k").max() > 2
    assert audit(node).passed


def test_expansion_and_order_of_an_alloy(builder):
    """EMT's Cu3Au: it expands as metals do, and swaps at 100 K leave the order of L1_2: all neighbours of Au are Cu."""
    alloy = bulk("Cu", a=3.75, cubic=True)
    alloy.symbols[0] = "Au"
    settings = {
        **BARE,
        "eos": {"strain": 0.06, "points": 9, "fit_strain": 0.04},
        "expansion": {
            "temperatures_k": [200, 1000],
            "min_length_ang": 7.0,
            "timestep_fs": 5.0,
            "duration_ps": 2.0,
            "record_every": 5,
        },
        "order": {"temperature_k": 100.0, "min_length_ang": 7.0, "n_steps": 60, "record_every": 10},
        "thresholds": {"order": {"absolute": 0.05}, "expansion": {"at_least": 5.0, "at_most": 40.0}},
    }
    known = {"order_Cu_Au": [-1 / 3, 1.0]}
    results, node = run_get_node(builder("emt", settings, structures=[alloy], reference_values=known))
    assert node.is_finished_ok, node.exit_message
    found = entries(results)
    (order,) = (entry for name, entry in found.items() if name.startswith("order_"))
    assert order["passed"], order
    assert order["value"] == pytest.approx([-1 / 3, 1.0], abs=1e-9)
    assert found["expansion_1e_6_per_k"]["passed"], found["expansion_1e_6_per_k"]
    curves = results["curves"]["subject_00"]
    volumes = curves.get_array("s0_expansion_volume_ang3_per_atom")
    assert volumes[1] > volumes[0] > found["volume_ang3_per_atom"]["value"]
    assert len(order["uuids"]) > 0
    assert audit(node).passed


@pytest.mark.nequip
def test_a_committee_has_error_bars(emt_copper_committee, evaluate_code, explore_code):
    """Two members: the value is their mean, the error bar their standard deviation, and both rest on both of them."""
    potentials = {
        f"m{i}": PotentialData.import_package(path) for i, path in enumerate(emt_copper_committee.packages[:2])
    }
    results, node = run_get_node(
        ValidateWorkChain.get_builder_from_protocol(
            orm.StructureData(ase=bulk("Cu", a=3.58)),
            codes={"evaluate": evaluate_code, "explore": explore_code},
            potentials=potentials,
            protocol="fast",
            overrides={**BARE, "eos": {"strain": 0.03, "points": 7, "fit_strain": 0.03}},
            reference_values={"a0_ang": 3.59, "nonsense": 1},
        )
    )
    assert node.is_finished_ok, node.exit_message
    assert results["verdict"]["unused_reference_values"] == ["nonsense"]
    found = entries(results)
    each = [entries({"properties": results["values"][f"subject_0{i}"]}) for i in range(2)]
    for name in ("a0_ang", "bulk_modulus_gpa"):
        first, second = (member[name]["value"] for member in each)
        assert first != second
        assert found[name]["value"] == pytest.approx((first + second) / 2, rel=1e-12)
        assert found[name]["error_bar"] == pytest.approx(abs(first - second) / 2**0.5, rel=1e-9)
        assert {uuid for member in each for uuid in member[name]["uuids"]} <= set(found[name]["uuids"])
    assert found["a0_ang"]["passed"]  # within one part in a hundred of EMT's own
    assert found["bulk_modulus_gpa"]["passed"] is None  # no reference
    assert audit(node).passed


@pytest.mark.nequip
def test_input_is_refused_before_anything_is_submitted(builder, toy_package, evaluate_code, explore_code):
    from ase import Atoms

    def message(make):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - AiiDA's own, of several classes
            run_get_node(make)
        return str(caught.value)

    potential = {"only": PotentialData.import_package(toy_package)}
    codes = {"evaluate": evaluate_code, "explore": explore_code}
    copper = DatasetData.from_frames(from_ase([bulk("Cu")]))
    assert "does not cover Cu" in message(
        ValidateWorkChain.get_builder_from_protocol(copper, codes=codes, potentials=potential)
    )
    assert "structure 0" in message(builder("emt", structures=[Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])]))
    assert "either" in message(ValidateWorkChain.get_builder_from_protocol(copper, codes=codes))
    assert "codes.evaluate" in message(
        ValidateWorkChain.get_builder_from_protocol(
            DatasetData.from_frames(from_ase([bulk("Si")])), codes={}, potentials=potential
        )
    )
    assert "reference_values.a0_ang" in message(builder("emt", reference_values={"a0_ang": "large"}))
    with pytest.raises(ProtocolError, match="did you mean 'phonons'"):
        builder("emt", {"phonon": {}})
    with pytest.raises(ProtocolError, match="unknown property 'a1'"):
        builder("emt", {"thresholds": {"a1": {"absolute": 1}}})


def test_exit_codes(builder, localhost):
    @calcfunction
    def molecule():
        from ase import Atoms

        return DatasetData.from_frames(from_ase([Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])]))

    make = builder("emt", BARE)
    make.structures = molecule()
    _, node = run_get_node(make)
    assert node.exit_status == CODES.ERROR_INVALID_STRUCTURES.status

    make = builder("emt", BARE, structures=[bulk("Si")])  # EMT does not know silicon
    _, node = run_get_node(make)
    assert node.exit_status == CODES.ERROR_NO_PROPERTIES.status

    reference = {"truth": {"engine": "ase", "calculator": "ase.calculators.emt.NoSuchThing"}}
    results, node = run_get_node(builder("emt", BARE, reference=reference))
    assert node.exit_status == CODES.ERROR_INCOMPLETE.status
    assert entries(results)["a0_ang"]["value"] == pytest.approx(3.59, abs=0.05)
