"""Specifications of generation as a person writes them: every generator's keys survive JSON and YAML."""

import json

import pytest

from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.protocols.generate import parse_generate


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_every_generator_is_read_as_its_example(name):
    generator = GENERATORS[name]
    step = {"generator": name, **json.loads(json.dumps(dict(generator.example)))}
    (parsed,), keep_seeds = parse_generate({"steps": [step]})
    assert parsed.parameters == generator.parameters(**generator.example)
    assert (parsed.name, parsed.generator, keep_seeds) == (name, name, False)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"generator": "vacancies"}, "vacancy"),
        ({"generator": "vacancy", "n_vacancy": 2}, "n_vacancies"),
        ({"generator": "vacancy", "n_vacancies": 0}, r"spec.steps\[0\].n_vacancies"),
        ({"generator": "surface", "miller": [[0, 0, 0]]}, r"spec.steps\[0\].miller"),
        ({"generator": "sqs", "n_atoms": 8}, "fractions"),
        ({"generator": "random_crystal", "composition": "SrTiO3", "formula_units": 1, "space_groups": 230},
         r"spec.steps\[0\].space_groups: \[230\] cannot hold 3 O, 1 Ti, 1 Sr"),
    ],
)  # fmt: skip
def test_bad_steps_name_the_field(step, message):
    with pytest.raises(ProtocolError, match=message):
        parse_generate({"steps": [step]})
