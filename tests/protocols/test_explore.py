"""Specification of runs with a potential: what is refused, and that the message names the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ase import Atoms
from ase.build import bulk, fcc111

from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.protocols.explore import check_against_structures, parse_explore, resolved_spec

EMT = {"calculator": "ase.calculators.emt.EMT"}
SEGMENT = {"n_steps": 100, "temperature_k": 300}


def md(*segments, **keys):
    return {"kind": "md", "forces": EMT, "md": {"schedule": list(segments or [SEGMENT])}, **keys}


def relax(**settings):
    return {"kind": "relax", "forces": EMT, "relax": settings}


def monte_carlo(**settings):
    return {"kind": "monte_carlo", "forces": EMT, "monte_carlo": {"temperature_k": 500, "n_steps": 100, **settings}}


def lammps(**settings):
    return {"kind": "lammps", "forces": EMT, "lammps": {"temperature_k": 300, "n_steps": 100, **settings}}


def melt(**settings):
    return {"kind": "md", "forces": EMT, "md": {"melt_quench": {"melt_temperature_k": 2000, **settings}}}


@pytest.mark.parametrize("protocol", ["fast", "moderate", "precise"])
@pytest.mark.parametrize("spec", [md(), relax(), monte_carlo(), lammps(), melt()], ids=lambda s: str(s["kind"]))
def test_every_kind_has_every_protocol(spec, protocol):
    found = parse_explore(resolved_spec(spec, protocol=protocol))
    assert found.kind == spec["kind"]
    assert found.n_steps > 0
    check_against_structures(found, from_ase([bulk("CuAu", "rocksalt", a=4.0, cubic=True)]))


def test_protocols_differ_in_what_matters():
    steps = [parse_explore(resolved_spec(md(), protocol=name)).timestep_fs for name in ("fast", "moderate", "precise")]
    assert steps == sorted(steps, reverse=True)
    forces = [resolved_spec(relax(), protocol=name)["relax"]["fmax_ev_per_ang"] for name in ("fast", "precise")]
    assert forces[0] > forces[1]


def test_melt_quench_is_a_schedule():
    spec = parse_explore(
        resolved_spec(melt(quench_rate_k_per_ps=1000, heat_ps=1, melt_ps=2, hold_ps=1), protocol="fast")
    )
    found = spec.md.segments
    assert [segment.n_steps for segment in found] == [500, 1000, 850, 500]  # 2 fs; 1700 K at 1000 K/ps
    assert [(s.temperature_k, s.end_temperature_k) for s in found] == [
        (300, 2000),
        (2000, None),
        (2000, 300),
        (300, None),
    ]
    assert spec.generator == "melt_quench"
    assert spec.changes_cell
    assert spec.highest_temperature_k == 2000


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (md({"n_steps": 10, "temperature_k": -5}), "spec.md.schedule.0.temperature_k"),
        (md({"n_steps": 10, "temprature_k": 5}), "did you mean 'temperature_k'"),
        (md({"n_steps": 100}), "temperature_k: missing, the ensemble langevin"),
        (md({"n_steps": 100, "ensemble": "nve"}), "schedule.0.temperature_k: missing"),
        (md(SEGMENT, {"n_steps": 10, "ensemble": "nve", "temperature_k": 5}), "schedule.1.temperature_k"),
        (md({**SEGMENT, "ensemble": "nve", "end_temperature_k": 5}), "end_temperature_k: the ensemble nve"),
        (md({**SEGMENT, "ensemble": "nvt"}), "spec.md.schedule.0.ensemble"),
        (md(record_every=1000), "record_every"),
        (md(n_stepz=5), "unknown key 'n_stepz'"),
        (md(relax={}), "relax: belongs to the kind relax"),
        (md(limits={"min_distance_ang": {"Cu-Xx": 1}}), "spec.limits.min_distance_ang"),
        (md(watch={"novelty_select": 9, "novelty_stop": 2}), "novelty_select"),
        (md(watch={}), "watch: only a potential with grades"),
        (md(watch={"min_distance_ang": 1.0}), "limits.min_distance_ang"),
        ({"kind": "md", "forces": EMT}, "schedule: give either"),
        ({**melt(), "md": {**melt()["md"], "schedule": [SEGMENT]}}, "schedule: give either"),
        (melt(melt_temperature_k=200), "melt_temperature_k: must be above"),
        ({"kind": "mdd"}, "spec.kind"),
        ({"kind": "monte_carlo", "forces": EMT}, "spec.monte_carlo.temperature_k: missing"),
        (relax(pressure_gpa=5), "pressure_gpa: a fixed cell"),
        ({**relax(), "replicas": 2}, "replicas"),
        (monte_carlo(elements=["Cu", "Xx"]), "spec.monte_carlo.elements.1"),
        (monte_carlo(temperature_k=0), "spec.monte_carlo.temperature_k"),
        (lammps(commands=["fix 1 all nve", "run 100"]), "spec.lammps.commands: line 2: the command 'run'"),
        (lammps(commands=["fix aiida_mlip_forces all nve"]), "program's own"),
        (lammps(commands=["pair_style lj/cut 8"]), "'pair_style' is given by the program"),
        (lammps(pair_commands=["run 5"]), "spec.lammps.pair_commands.0"),
        ({**md(), "forces": {"calculator": "EMT"}}, "spec.forces.calculator"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(ProtocolError) as caught:
        resolved_spec(spec)
    assert message in str(caught.value)


SLAB = fcc111("Cu", (2, 2, 3), vacuum=8.0)
CRYSTAL = bulk("Cu", cubic=True)
ALLOY = bulk("CuAu", "rocksalt", a=4.0, cubic=True)


@pytest.mark.parametrize(
    ("spec", "structures", "text", "message"),
    [
        (md(fixed_atoms=[4]), [CRYSTAL], None, "spec.fixed_atoms: atom 4 does not exist"),
        (md(fixed_atoms=[0, 1, 2, 3]), [CRYSTAL], None, "no atom is left to move"),
        (md({**SEGMENT, "ensemble": "npt"}), [CRYSTAL, SLAB], None, "spec.md.schedule: the cell of structure 1"),
        (
            relax(cell="free"),
            [SLAB],
            None,
            "spec.relax.cell: the cell of structure 0 cannot change, it is periodic along 2",
        ),
        ({**relax(cell="free"), "fixed_atoms": [0]}, [CRYSTAL], None, "spec.fixed_atoms: atoms cannot stay"),
        (
            monte_carlo(),
            [ALLOY, CRYSTAL],
            None,
            "spec.monte_carlo.elements: a swap needs two elements that may move, structure 1",
        ),
        (monte_carlo(elements=["Cu", "Ag"]), [ALLOY], None, "structure 0 has: Cu"),
        ({**monte_carlo(), "fixed_atoms": [1, 3, 5, 7]}, [ALLOY], None, "structure 0 has: Cu"),
        (monte_carlo(), [Atoms("CuAu", [[0, 0, 0], [2.5, 0, 0]])], None, "spec.monte_carlo.n_shells"),
        (md(), [CRYSTAL], "fix 1 all nve", "engine_input: only the kind lammps"),
        (lammps(), [CRYSTAL], "fix 1 all nve\nminimize 1 1 1 1\n", "engine_input: line 2: the command 'minimize'"),
    ],
)
def test_refused_with_these_structures(spec, structures, text, message):
    found = parse_explore(resolved_spec(spec))
    with pytest.raises(ProtocolError) as caught:
        check_against_structures(found, from_ase(structures), engine_input=text)
    assert message in str(caught.value)


def test_displacements_alone_need_no_second_element():
    spec = parse_explore(resolved_spec(monte_carlo(moves="hybrid", swaps_per_cycle=0)))
    check_against_structures(spec, from_ase([CRYSTAL]))


def test_examples_of_the_documentation_are_valid():
    text = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    found = [parse_explore(resolved_spec(example)) for example in examples]
    assert {spec.kind for spec in found} == {"md", "relax", "monte_carlo", "lammps"}
    assert any(spec.watch is not None for spec in found)
