"""Jobs of different length: the parent goes on early, each job is seen to end exactly once, none is lost."""

from __future__ import annotations

import pytest
from aiida import orm
from aiida.engine import run_get_node, while_
from aiida.plugins import CalculationFactory

from aiida_mlip.workchains.early_resume import EarlyResumeWorkChain

Add = CalculationFactory("core.arithmetic.add")


class Parent(EarlyResumeWorkChain):
    """Runs jobs, at most three at a time, and starts the next as soon as one has ended."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode)
        spec.input_namespace("commands", valid_type=orm.Str, dynamic=True)
        spec.outline(cls.setup, while_(cls.has_work)(cls.run_leaves, cls.inspect_leaves))

    def setup(self):
        self.ctx.queue = sorted(self.inputs.commands)
        self.ctx.open, self.ctx.ended, self.ctx.most = {}, [], 0

    def has_work(self):
        return bool(self.ctx.queue or self.ctx.open)

    def run_leaves(self):
        while self.ctx.queue and len(self.ctx.open) < 3:
            name = self.ctx.queue.pop(0)
            options = {"resources": {"num_machines": 1}, "prepend_text": self.inputs.commands[name].value}
            one = orm.Int(1)
            node = self.submit(Add, code=self.inputs.code, x=one, y=one, metadata={"options": options})
            self.ctx.open[name] = node.pk
        self.ctx.most = max(self.ctx.most, len(self.ctx.open))
        for name, pk in self.ctx.open.items():
            self.to_context(**{f"children.{name}": orm.load_node(pk)})

    def inspect_leaves(self):
        for name, pk in list(self.ctx.open.items()):
            if orm.load_node(pk).is_terminated:
                del self.ctx.open[name]
                self.ctx.ended.append(name)
        self.node.base.extras.set_many({"ended": list(self.ctx.ended), "most": self.ctx.most})

    def has_reason_to_go_on(self, n_running):
        return n_running < 3


@pytest.fixture
def bash(localhost):
    return orm.InstalledCode(
        label="bash", computer=localhost, filepath_executable="/bin/bash", default_calc_job_plugin="core.arithmetic.add"
    ).store()


def inputs(code, commands):
    return {"code": code, "commands": {f"job_{i}": orm.Str(command) for i, command in enumerate(commands)}}


def wait_for(path):
    """A command that ends once there is a file, and fails its job where none comes for two minutes."""
    return f"for i in $(seq 1200); do [ -e '{path}' ] && break; sleep 0.1; done; [ -e '{path}' ] || exit 1"


def test_every_job_ends_once_and_short_ones_do_not_wait_for_long_ones(bash, tmp_path):
    """The first job waits for a file of the last, which starts only if the parent goes on while the first runs."""
    last = tmp_path / "last"
    commands = [wait_for(last), "", "", "", "sleep 1", "", f"touch '{last}'"]
    _, node = run_get_node(Parent, **inputs(bash, commands))
    assert node.is_finished_ok, (node.exception, node.exit_message)
    assert all(child.is_finished_ok for child in node.called), "the last job never ran beside the first"
    extras = node.base.extras.all
    assert sorted(extras["ended"]) == [f"job_{i}" for i in range(7)]
    assert extras["most"] == 3


def test_without_a_reason_it_waits_for_all_like_any_workchain(bash):
    class Patient(Parent):
        has_reason_to_go_on = EarlyResumeWorkChain.has_reason_to_go_on

    _, node = run_get_node(Patient, **inputs(bash, ["sleep 3", "", "", ""]))
    assert node.is_finished_ok, (node.exception, node.exit_message)
    assert node.base.extras.get("ended") == ["job_0", "job_1", "job_2", "job_3"]
