"""The specification of biased dynamics: protocols, defaults of the engines, input of COLVARS."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from aiida_mlip.errors import FileFormatError, InvalidInputError, ProtocolError
from aiida_mlip.io.colvars import colvars_input, read_pmf, without_values
from aiida_mlip.io.metadynamics import CollectiveVariable, Hills
from aiida_mlip.protocols.metadynamics import check_against_structures, parse_metadynamics, resolved_spec

EMT = {"calculator": "ase.calculators.emt.EMT"}
VARIABLE = {"name": "d", "kind": "distance", "group1": [0], "group2": [3], "lower": 1.0, "upper": 3.0, "width": 0.2}


@pytest.mark.parametrize("protocol", ["fast", "moderate", "precise", None])
@pytest.mark.parametrize("engine", ["environment", "colvars", "plumed"])
def test_protocols_are_valid_for_every_engine(protocol, engine):
    values = resolved_spec({"engine": engine, "forces": EMT}, protocol=protocol)
    spec = parse_metadynamics(values)
    assert spec.engine == engine
    assert (spec.environment is not None) == (engine == "environment")
    assert (spec.hills is not None) == (engine != "plumed")


def test_overrides_win():
    values = resolved_spec({"forces": EMT, "n_steps": 77, "hills": {"every": 7}}, protocol="precise")
    assert (values["n_steps"], values["hills"]["every"], values["hills"]["height_ev"]) == (77, 7, 0.02)
    assert values["environment"]["components"] == 3
    for wrong, message in [({"engine": "colvarz"}, "spec.engine"), ({"temperature_k": 0}, "temperature_k")]:
        with pytest.raises(ProtocolError, match=message):
            resolved_spec({"forces": EMT, **wrong})
    with pytest.raises(ProtocolError, match="unknown protocol"):
        resolved_spec({"forces": EMT}, protocol="quick")


def test_atoms_are_checked_against_the_smallest_structure():
    spec = parse_metadynamics(resolved_spec({"engine": "colvars", "forces": EMT, "collective_variables": [VARIABLE]}))
    check_against_structures(spec, [9, 4])
    with pytest.raises(ProtocolError, match=r"collective_variables.0 \(d\): atom 3 does not exist"):
        check_against_structures(spec, [9, 3])
    plumed = parse_metadynamics(resolved_spec({"engine": "plumed", "forces": EMT}))
    with pytest.raises(ProtocolError, match="engine_input: missing"):
        check_against_structures(plumed, [4])
    space = parse_metadynamics(resolved_spec({"forces": EMT}))
    with pytest.raises(ProtocolError, match="engine_input: the engine environment takes none"):
        check_against_structures(space, [4], engine_input="text")


def test_input_of_colvars():
    hills = Hills(height_ev=0.01, every=50, bias_factor=6)
    text = colvars_input([CollectiveVariable(**VARIABLE)], hills, temperature_k=300, record_every=10)
    for line in ("units metal", "biasTemperature 1500", "hillWeight 0.01", "newHillFrequency 50", "atomNumbers 4"):
        assert line in text
    assert "wellTempered" not in colvars_input(
        [CollectiveVariable(**VARIABLE)], Hills(height_ev=0.01, every=50), temperature_k=300, record_every=10
    )
    four = [CollectiveVariable(**{**VARIABLE, "name": f"d{k}"}) for k in range(4)]
    with pytest.raises(InvalidInputError, match="one to three"):
        colvars_input(four, hills, temperature_k=300, record_every=10)


def test_pmf_is_read():
    variables, energy = read_pmf("# 1\n#  1.0 0.1 2 0\n\n 1.05 0.3\n 1.15 0.1\n")
    np.testing.assert_allclose(variables, [[1.05], [1.15]])
    np.testing.assert_allclose(energy, [0.2, 0.0])
    for text in ("", "1.0 two", "1.0\n2.0"):
        with pytest.raises(FileFormatError):
            read_pmf(text)


def test_state_without_values_keeps_the_bias():
    state = "configuration {\n step 3\n}\n\ncolvar {\n  name d\n  x 1.0\n}\n\nmetadynamics {\n  grid {\n 1\n }\n}\n"
    assert without_values(state) == "configuration {\n step 3\n}\n\n\nmetadynamics {\n  grid {\n 1\n }\n}\n"
    assert without_values(without_values(state)) == without_values(state)


def test_examples_of_the_documentation_are_valid():
    text = (Path(__file__).parents[2] / "docs" / "metadynamics.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        resolved_spec(yaml.safe_load(block))
