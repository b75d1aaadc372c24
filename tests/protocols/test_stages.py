"""Stages as a person writes them: what the child gets, how many frames to expect, errors in the step's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.generate import check_steps
from aiida_mlip.protocols.explore import parse_explore
from aiida_mlip.protocols.generate import GenerateJob, parse_generate, stage_steps
from aiida_mlip.protocols.metadynamics import parse_metadynamics
from aiida_mlip.protocols.model import validate_spec
from aiida_mlip.protocols.stages import FRAMES_OF_A_PATH, STAGES

EMT = {"calculator": "ase.calculators.emt.EMT"}


def stage(**keys):
    (step,), _ = parse_generate({"steps": [keys]})
    return step


@pytest.mark.parametrize(
    ("keys", "code", "per_parent", "section"),
    [
        ({"generator": "md", "n_steps": 100, "temperature_k": 300, "record_every": 20, "replicas": 3, "forces": EMT},
         "explore", 15, {"md": {"timestep_fs": 1.0, "schedule": [{"n_steps": 100, "temperature_k": 300}]}}),
        ({"generator": "md", "timestep_fs": 2, "schedule": [{"n_steps": 60, "temperature_k": 9},
                                                            {"n_steps": 40, "ensemble": "nve"}]},
         "explore", 2, {"md": {"timestep_fs": 2, "schedule": [{"n_steps": 60, "temperature_k": 9},
                                                              {"n_steps": 40, "ensemble": "nve"}]}}),
        ({"generator": "melt_quench", "melt_temperature_k": 2000, "hold_ps": 1, "timestep_fs": 1, "frames": "glass"},
         "explore", 20, {"md": {"timestep_fs": 1, "melt_quench": {"melt_temperature_k": 2000, "hold_ps": 1,
                                                                  "keep": "glass"}}}),
        ({"generator": "relax", "cell": "free", "protocol": "fast"}, "explore", FRAMES_OF_A_PATH,
         {"relax": {"optimizer": "fire", "cell": "free", "fmax_ev_per_ang": 0.1, "max_steps": 200}}),
        ({"generator": "monte_carlo", "temperature_k": 500, "n_steps": 200, "moves": "hybrid"}, "explore", 4,
         {"monte_carlo": {"moves": "hybrid", "temperature_k": 500, "n_steps": 200}}),
        ({"generator": "lammps", "temperature_k": 500, "n_steps": 200, "commands": ["fix p all deform 1 x erate 1"]},
         "explore", 4, {"lammps": {"timestep_fs": 1.0, "integrate": "langevin", "temperature_k": 500, "n_steps": 200,
                                   "commands": ["fix p all deform 1 x erate 1"]}}),
        ({"generator": "metadynamics", "n_steps": 100, "record_every": 10, "replicas": 2, "forces": EMT},
         "metadynamics", 20, {"engine": "environment"}),
        ({"generator": "aimd", "protocol": "fast", "temperatures_kelvin": [300, 600], "replicas": 2, "n_steps": 30,
          "equilibration_fs": 20, "timestep_fs": 2, "thinning": {"every": 3}, "supercell": [2, 1, 1]},
         "pw", 28, {"n_steps": 30}),
    ],
)  # fmt: skip
def test_what_the_child_gets(keys, code, per_parent, section):
    step = stage(**json.loads(json.dumps(keys)))
    assert (step.generator, step.job.code, step.job.per_parent) == (keys["generator"], code, per_parent)
    assert step.job.settings.items() >= section.items()
    assert step.job.has_forces == ("forces" in keys)
    if code == "explore":
        parse_explore({**step.job.settings, "seed": step.child_seed(3)})
    elif code == "metadynamics":
        parse_metadynamics({**step.job.settings, "seed": step.child_seed(3)})
    else:
        assert (step.job.growth, step.job.pw_steps) == (2, 4 * 30)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"generator": "relax", "fmax": 1}, r"spec.steps\[0\].fmax: .*did you mean 'fmax_ev_per_ang'"),
        ({"generator": "relax", "fmax_ev_per_ang": -1}, r"spec.steps\[0\].fmax_ev_per_ang: "),
        ({"generator": "relax", "replicas": 2}, r"spec.steps\[0\]: replicas: relaxations"),
        ({"generator": "md", "n_steps": 100}, r"spec.steps\[0\].*temperature_k: missing"),
        ({"generator": "md", "n_steps": 10, "temperature_k": 3}, r"spec.steps\[0\]: record_every \(50\) is above"),
        ({"generator": "md", "n_steps": 99, "temperature_k": -3}, r"spec.steps\[0\].temperature_k: "),
        ({"generator": "melt_quench"}, r"spec.steps\[0\].melt_temperature_k: missing"),
        ({"generator": "melt_quench", "melt_temperature_k": 9000, "frames": "glas"}, r"spec.steps\[0\].frames: "),
        ({"generator": "monte_carlo", "temperature_k": 1, "n_steps": 99, "elements": ["Xx"]},
         r"spec.steps\[0\].elements.0: 'Xx' is no chemical symbol"),
        ({"generator": "lammps", "temperature_k": 1, "n_steps": 99, "commands": ["run 3"]},
         r"spec.steps\[0\].commands: line 1: the command 'run'"),
        ({"generator": "relax", "limits": {"min_distance": 2}}, r"spec.steps\[0\].limits.min_distance: .*_ang"),
        ({"generator": "metadynamics", "hills": {"height": 1}}, r"spec.steps\[0\].hills.height: .*'height_ev'"),
        ({"generator": "metadynamics", "engine": "plumed", "forces": EMT}, r"spec.steps\[0\].engine_input: missing"),
        ({"generator": "metadynamics", "engine_input": 3}, r"spec.steps\[0\].engine_input: expected the text"),
        ({"generator": "aimd", "thermostat": {"knd": "nve"}}, r"spec.steps\[0\].thermostat.knd: .*'kind'"),
        ({"generator": "aimd", "fidelity": 3}, r"spec.steps\[0\].fidelity: expected the name"),
        ({"generator": "aimd", "protocol": "fsat"}, r"spec.steps\[0\].protocol: .*did you mean 'fast'"),
        ({"generator": "import"}, r"spec.steps\[0\].dataset: expected the name"),
        ({"generator": "import", "dataset": "x", "parents": "seeds"}, r"spec.steps\[0\].parents: an import has none"),
        ({"generator": "relax", "parents": {"of": "seeds", "count": 0}}, r"spec.steps\[0\].parents.count: "),
        ({"generator": "relax", "parents": "nobody"}, r"spec.steps\[0\].parents: \['nobody'\] is no earlier step"),
        ({"generator": "relax", "seed": -1}, r"spec.steps\[0\].seed: must not be negative"),
        ({"generator": "relaxx"}, r"spec.steps\[0\].generator: .*did you mean 'relax'"),
    ],
)  # fmt: skip
def test_errors_name_the_key_of_the_step(keys, message):
    with pytest.raises(ProtocolError, match=message):
        stage(**keys)


def test_counts_of_parents_and_children():
    steps = [
        {"generator": "strain", "per_parent": 10},
        {"generator": "monte_carlo", "parents": {"of": "strain", "count": 4}, "temperature_k": 9, "n_steps": 100},
        {"generator": "rattle", "parents": ["monte_carlo", "strain"], "per_parent": 3},
        {"generator": "import", "dataset": "old"},
    ]
    parsed, _ = parse_generate({"steps": steps})
    assert check_steps(parsed, n_seeds=2) == {"strain": 20, "monte_carlo": 8, "rattle": 84, "import": 1}
    assert set(stage_steps(parsed)) == {1, 3}
    with pytest.raises(ProtocolError, match="the most allowed"):
        parse_generate({"steps": [{"generator": "md", "replicas": 1000, "n_steps": 10**6, "temperature_k": 9}]})


@given(st.integers(0, 2**62), st.integers(0, 1000))
def test_seeds_of_children_depend_on_both_seeds_and_the_name_only(seed, own):
    keys = {"generator": "relax", "seed": own}
    first = stage(**keys).child_seed(seed)
    assert 0 <= first < 2**31
    assert first == stage(**keys, max_steps=7).child_seed(seed)
    others = [stage(**keys, name="other").child_seed(seed), stage(**keys).child_seed(seed + 1)]
    assert first not in others  # equal by chance once in a thousand million


def test_every_stage_has_a_code_but_the_import():
    assert {"import", "aimd", "metadynamics", "relax", "md", "melt_quench", "monte_carlo", "lammps"} == set(STAGES)


def test_examples_and_documentation_are_valid():
    root = Path(__file__).parents[2]
    job = validate_spec(GenerateJob, yaml.safe_load((root / "examples" / "generate.yaml").read_text()), where="example")
    steps, _ = parse_generate(job.spec)
    assert {step.generator for step in steps} >= {"random_crystal", "relax", "monte_carlo", "metadynamics"}
    assert (root / "examples" / job.structures[0]).is_file()
    blocks = re.findall(r"```yaml\n(.*?)```", (root / "docs" / "generators.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        parse_generate(yaml.safe_load(block))
