"""Jobs that something from outside ends go on, and a step that is repeated starts no child again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import ProcessState, WorkChain, run_get_node
from ase.build import bulk
from emt_frames import emt_frames

from aiida_mlip.calculations.functions.label import rest_of_batch
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.labelling import without_labels
from aiida_mlip.protocols.explore import resolved_spec
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain

BIN = Path(sys.executable).parent

#: A calculator that sends its program a signal in its third call, as often as the file beside it says.
ENDING = """
import os, sys
from pathlib import Path
from ase.calculators.emt import EMT
from aiida_mlip.workers import {worker}
left, calls = Path(__file__).with_suffix('.left'), []
class Ending(EMT):
    def calculate(self, *arguments, **keywords):
        super().calculate(*arguments, **keywords)
        calls.append(1)
        if len(calls) == 3 and int(left.read_text()):
            left.write_text(str(int(left.read_text()) - 1))
            os.kill(os.getpid(), {signal})
sys.modules['ending'] = sys.modules['__main__']
sys.exit({worker}.main({arguments}))
"""


@pytest.fixture
def ending(localhost, tmp_path):
    """Code of a worker whose calculator ``ending.Ending`` ends it early some times."""

    def make(worker, signal, *, times, arguments="sys.argv[1:]"):
        script = tmp_path / f"{worker}.py"
        script.write_text(ENDING.format(worker=worker, signal=signal, arguments=arguments))
        script.with_suffix(".left").write_text(str(times))
        program = tmp_path / f"{worker}.sh"
        program.write_text(f'#!/bin/bash\nexec {sys.executable} {script} "$@"\n')
        program.chmod(0o755)
        return orm.InstalledCode(
            label=f"ending-{worker}", computer=localhost, filepath_executable=str(program), with_mpi=False
        ).store()

    return make


@pytest.mark.parametrize(("signal", "times", "per_job"), [(15, 2, [2, 2, 4])])
def test_labels_go_on_where_an_interrupted_job_was(ending, signal, times, per_job):
    """The scheduler's signal leaves what was done, SIGKILL nothing: each frame is labelled once, whoever does it."""
    frames = without_labels(emt_frames(8))
    level = {"emt": {"engine": "ase", "calculator": "ending.Ending"}}
    results, node = run_get_node(
        LabelWorkChain,
        dataset=DatasetData.from_frames(frames),
        fidelities=orm.Dict(level),
        codes={"ase": ending("label", signal, times=times)},
    )
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    labelled = results["dataset"].frames()
    assert labelled.labelled.all()
    assert labelled.ids() == frames.ids()
    np.testing.assert_allclose(labelled.energy, emt_frames(8).energy, atol=1e-8)
    summary = results["summary"]["fidelities"]["emt"]
    assert (summary["computed"], summary["failed"], summary["failures"]) == (8, 0, {})
    jobs = sorted((job for job in node.called if isinstance(job, orm.CalcJobNode)), key=lambda job: job.pk)
    assert [int(job.outputs.dataset.frames().labelled.sum()) for job in jobs] == per_job


def test_nothing_is_left_of_a_batch_that_was_done():
    dataset = DatasetData.from_frames(emt_frames(2).with_columns(cost=np.ones(2, dtype="<f4")))
    _, node = rest_of_batch.run_get_node(orm.Dict({"rows": [0, 1]}), dataset)
    assert node.exit_status == 320


def exploration(code):
    """Inputs of forty steps with a calculator that ends its program."""
    spec = {
        "kind": "md",
        "record_every": 10,
        "forces": {"calculator": "ending.Ending"},
        "md": {"timestep_fs": 2, "schedule": [{"n_steps": 40, "temperature_k": 300}]},
    }
    return {
        "structures": DatasetData.from_frames(from_ase([bulk("Cu", cubic=True)])),
        "spec": orm.Dict(resolved_spec(spec, protocol="fast")),
        "codes": {"explore": code},
    }


@pytest.mark.parametrize(("times", "status"), [(2, ExploreWorkChain.exit_codes.ERROR_EXPLORATION_FAILED.status)])
def test_exploration_that_is_killed_before_its_first_checkpoint_begins_once_more(ending, times, status):
    results, node = run_get_node(ExploreWorkChain, **exploration(ending("explore", 9, times=times)))
    assert node.exit_status == status, node.exit_message
    assert len(node.called) == 2
    assert ("dataset" in results) == (status == 0)


class Child(WorkChain):
    """Does nothing with a number."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("x", valid_type=orm.Int)
        spec.outline(cls.nothing)

    def nothing(self):
        """Do nothing."""


class Parent(SubmitOnceWorkChain):
    """Starts its children as a step does that is repeated."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.outline(cls.start)

    def start(self):
        """Start some children, most of them again."""

        def begin(x, label="child"):
            return self.submit(Child, x=orm.Int(x).store(), metadata={"call_link_label": label})

        dead = orm.WorkChainNode(process_type=Child.build_process_type())
        dead.base.links.add_incoming(orm.Int(7).store(), LinkType.INPUT_WORK, "x")
        dead.base.links.add_incoming(self.node, LinkType.CALL_WORK, "dead")
        dead.set_process_state(ProcessState.CREATED)
        dead.store()
        first = begin(1)
        first.set_checkpoint("what a worker goes on from")
        found = {"first": first, "again": begin(1), "other": begin(2), "label": begin(1, "another")}
        found |= {"dead": dead, "replaced": begin(7, "dead")}
        self.node.base.extras.set("found", {name: node.pk for name, node in found.items()})


def test_a_repeated_step_finds_its_children_again(aiida_profile):
    """The same label and equal inputs, made anew by the step: the same child; one that can never run is replaced."""
    _, parent = run_get_node(Parent)
    assert parent.is_finished_ok, parent.exception
    found = parent.base.extras.get("found")
    assert found["again"] == found["first"]
    assert len(set(found.values())) == len(found) - 1
    assert orm.load_node(found["dead"]).is_excepted
    assert orm.load_node(found["dead"]).is_sealed
