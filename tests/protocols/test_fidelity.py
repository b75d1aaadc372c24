from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.fidelity import AseFidelity, QeFidelity, parse_fidelities, settings_hash
from aiida_mlip.protocols.model import PROTOCOLS

QE = {"pseudo_family": "fam", "ecutwfc_ry": 30, "occupations": "fixed"}
MD5 = {"Si": "a" * 32}


def one(**changes) -> QeFidelity:
    fidelity = parse_fidelities({"a": QE | changes})["a"]
    assert isinstance(fidelity, QeFidelity)
    return fidelity


def test_protocols_get_tighter():
    fast, moderate, precise = (one(protocol=name) for name in PROTOCOLS)
    for loose, tight in ((fast, moderate), (moderate, precise)):
        assert tight.kpoints_distance_inv_ang < loose.kpoints_distance_inv_ang
        assert tight.conv_thr_ry_per_atom < loose.conv_thr_ry_per_atom
        assert tight.degauss_ry < loose.degauss_ry
    assert parse_fidelities({"a": QE}, protocol="fast")["a"] == fast
    assert one(protocol="fast", kpoints_distance_inv_ang=0.1).kpoints_distance_inv_ang == 0.1


def test_both_engines_and_their_order():
    fidelities = parse_fidelities({"b": QE, "a": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}})
    assert list(fidelities) == ["b", "a"]
    assert isinstance(fidelities["a"], AseFidelity)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"ecutwfc_ry": -30}, r"fidelities\.x\.ecutwfc_ry: .*greater than 0, got -30"),
        ({"protocol": "fst"}, r"fidelities\.x\.protocol: .*unknown protocol 'fst' \(did you mean 'fast'\?\)"),
        ({"ecutwf_ry": 30}, r"fidelities\.x\.ecutwf_ry: unknown key.*did you mean 'ecutwfc_ry'"),
        ({"engine": "qu"}, r"fidelities\.x: unknown engine 'qu'"),
        ({"occupations": "smeared"}, r"fidelities\.x\.occupations: .*'fixed' or 'smearing', got 'smeared'"),
        ({"labels": ["forces"]}, "must contain 'energy'"),
        ({"labels": ["energy", "force"]}, r"labels\.1: .*got 'force'"),
        ({"spin": "collinear"}, "needs starting_magnetization"),
        ({"starting_magnetization": {"Fe": 0.4}}, "did you mean spin: collinear"),
        ({"ecutrho_ry": 100}, r"at least 4 times ecutwfc_ry \(120\), got 100"),
        ({"parameters": {"SYSTM": {"nbnd": 8}}}, "unknown namelist 'SYSTM'.*did you mean 'SYSTEM'"),
        ({"parameters": {"system": {"ecutwfc": 8}}}, "use ecutwfc_ry"),
        ({"parameters": {"ELECTRONS": {"scf_must_converge": False}}}, "an unconverged scf is never a label"),
        ({"kpoints_distance_inv_ang": float("nan")}, "kpoints_distance_inv_ang"),
    ],
)
def test_bad_qe_specifications(spec, message):
    with pytest.raises(ProtocolError, match=message):
        parse_fidelities({"x": QE | spec})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "at least one level of theory"),
        ({"1x": QE}, "begins with a letter"),
        ({"x": 3}, "expected a mapping"),
        ({"x": {"ecutwfc_ry": 30}}, r"fidelities\.x\.pseudo_family: missing"),
        ({"x": {"engine": "ase", "calculator": "EMT()"}}, "dotted import path"),
        ({"x": {"engine": "ase", "calculator": "a.b; import os"}}, "dotted import path"),
        ({"x": {"engine": "ase", "calculatr": "a.b"}}, "did you mean 'calculator'"),
    ],
)
def test_bad_mappings(mapping, message):
    with pytest.raises(ProtocolError, match=message):
        parse_fidelities(mapping)


def test_namelists_state_what_was_asked_for():
    spec = one(parameters={"system": {"NBND": 12}}, input_dft="pbesol")
    lists = spec.namelists(["Si"], 8)
    assert lists["SYSTEM"] == {
        "ecutwfc": 30, "ecutrho": 120, "occupations": "fixed", "input_dft": "pbesol", "nbnd": 12,
    }  # fmt: skip
    assert lists["CONTROL"] == {"calculation": "scf", "tprnfor": True, "tstress": True}
    assert lists["ELECTRONS"]["conv_thr"] == 8 * spec.conv_thr_ry_per_atom
    atom = spec.namelists(["Si"], 1, isolated=True)["SYSTEM"]
    assert (atom["nspin"], atom["occupations"]) == (2, "smearing")
    magnetic = one(spin="collinear", starting_magnetization={"Fe": 0.4}).namelists(["Fe", "O"], 4)["SYSTEM"]
    assert magnetic["starting_magnetization"] == {"Fe": 0.4, "O": 0.0}
    with pytest.raises(ProtocolError, match="ecutwfc_ry: missing"):
        one(ecutwfc_ry=None).namelists(["Si"], 1)


SAME = [
    {"protocol": "moderate"},
    {"mixing_beta": 0.1},
    {"electron_maxstep": 7},
    {"max_iterations": 1},
    {"ecutrho_ry": 120},
    {"degauss_ry": 0.3},  # occupations are fixed
    {"pseudo_family": "another label of the same files"},
    {"parameters": {"ELECTRONS": {"diagonalization": "cg"}, "CONTROL": {"disk_io": "none"}}},
]
OTHER = [
    {"ecutwfc_ry": 31},
    {"ecutrho_ry": 130},
    {"kpoints_distance_inv_ang": 0.2},
    {"occupations": "smearing"},
    {"input_dft": "pbe"},
    {"conv_thr_ry_per_atom": 1e-7},
    {"labels": ["energy", "forces"]},
    {"spin": "collinear", "starting_magnetization": {"Si": 0.2}},
    {"parameters": {"SYSTEM": {"nbnd": 12}}},
]


@given(st.sampled_from(SAME), st.sampled_from(SAME))
def test_the_route_does_not_change_the_hash(first, second):
    assert settings_hash(one(**first), MD5) == settings_hash(one(**second), MD5)


@given(st.sampled_from([{}, *OTHER]), st.sampled_from([{}, *OTHER]))
def test_what_a_label_depends_on_changes_the_hash(first, second):
    assert (settings_hash(one(**first), MD5) == settings_hash(one(**second), MD5)) == (first == second)


def test_the_hash_knows_pseudopotentials_and_calculators_and_does_not_drift():
    assert settings_hash(one(), MD5) != settings_hash(one(), {"Si": "b" * 32})
    assert settings_hash(one(parameters={"system": {"NBND": 8}}), MD5) == settings_hash(
        one(parameters={"SYSTEM": {"nbnd": 8}}), MD5
    )
    emt = parse_fidelities({"x": {"engine": "ase", "calculator": "ase.calculators.emt.EMT", "batch_size": 5}})["x"]
    lj = parse_fidelities({"x": {"engine": "ase", "calculator": "ase.calculators.lj.LennardJones"}})["x"]
    assert settings_hash(emt) != settings_hash(lj)
    # a change of this value makes every label of every profile be computed again: only ever on purpose
    assert settings_hash(emt) == "063fe05a1398f924a28e01054522551e2f28cd97ec42146718130117fda3ab1f"


def test_round_trip_through_plain_values():
    spec = one(parameters={"SYSTEM": {"nbnd": 8}})
    assert parse_fidelities({"a": spec.model_dump(mode="json")})["a"] == spec
