"""Progress of real workchains: counts, stages, failures and expected end, read from their nodes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time

import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import ToContext, WorkChain, run_get_node
from aiida.engine.processes import ProcessState
from click.testing import CliRunner
from rich.console import Console

from aiida_mlip.cli import progress
from aiida_mlip.data.extras import EXPECTED_CALLS
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.io.pw_bundle import INPUTS_FILE, bundle_script, pack_inputs

pytestmark = pytest.mark.usefixtures("aiida_profile")


class Leaf(WorkChain):
    """Succeeds or fails as told."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("fail", valid_type=orm.Bool)
        spec.outline(cls.run_it)
        spec.exit_code(400, "ERROR_TOLD", message="told to")

    def run_it(self):
        return self.exit_codes.ERROR_TOLD if self.inputs.fail else None


class Branch(WorkChain):
    """Calls three leaves, one of which fails, and announces four."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("fail", valid_type=orm.Bool)
        spec.input("good", valid_type=orm.Bool)
        spec.outline(cls.run_leaves, cls.finalize)

    def finalize(self):
        """Wait for the calls: a last step that returns ToContext would not."""

    def run_leaves(self):
        self.node.base.extras.set(EXPECTED_CALLS, 4)
        return ToContext(
            **{f"leaf_{i}": self.submit(Leaf, fail=self.inputs.fail if i == 1 else self.inputs.good) for i in range(3)}
        )


class Root(Branch):
    """Calls one branch, as its stage."""

    def run_leaves(self):
        return ToContext(
            stage=self.submit(
                Branch, fail=self.inputs.fail, good=self.inputs.good, metadata={"call_link_label": "label"}
            )
        )


def builder():
    builder = Root.get_builder()
    builder.fail = orm.Bool(True)
    builder.good = orm.Bool(False)
    return builder


def test_snapshot_counts_the_calls_of_each_stage():
    _, node = run_get_node(builder())
    state = progress.snapshot(node.pk)
    assert state.is_terminated
    assert state.exit_status == 0
    (stage,) = state.stages
    assert (stage.name, stage.done, stage.failed, stage.running, stage.total) == ("label", 2, 1, 0, 4)
    assert stage.pk == node.called[0].pk
    assert "label 2/4 (1 failed)" in progress.line(state)
    console = Console(file=io.StringIO(), width=120)
    console.print(progress.render(state))
    text = console.file.getvalue()
    assert str(stage.pk) in text
    assert "2/4" in text


def test_frames_of_a_running_bundle_are_counted(localhost, tmp_path):
    """A real script of a bundle: the second of three frames waits for a file, and has not ended."""
    (tmp_path / INPUTS_FILE).write_bytes(pack_inputs(["1", "2", "3"]))
    (tmp_path / "pseudo").mkdir()
    waiting = "case $(cat aiida.in) in 2) while [ ! -e ../../go ]; do sleep 0.05; done;; esac"
    (tmp_path / "bundle.sh").write_text(bundle_script(waiting, side_by_side=1))
    job = orm.CalcJobNode(computer=localhost)
    job.set_remote_workdir(str(tmp_path))
    stage, root = orm.WorkChainNode(), orm.WorkChainNode()
    stage.base.links.add_incoming(root, link_type=LinkType.CALL_WORK, link_label="label")
    job.base.links.add_incoming(stage, link_type=LinkType.CALL_CALC, link_label="CALL")
    for node in (root, stage, job):
        node.set_process_state(ProcessState.RUNNING)
        node.store()
    script = subprocess.Popen(["sh", "-c", ". ./bundle.sh"], cwd=tmp_path)
    try:
        for _ in range(600):
            shown = progress.snapshot(root.pk).stages[0].detail
            if shown.startswith("1 of"):
                break
            time.sleep(0.05)
        assert shown == "1 of 3 frames of running bundles"
        assert "1 of 3 frames" in progress.line(progress.snapshot(root.pk))
    finally:
        (tmp_path / "go").touch()
        assert script.wait(timeout=60) == 0
        for node in (job, stage, root):
            node.set_process_state(ProcessState.KILLED)
            node.seal()
    assert progress.snapshot(root.pk).stages[0].detail == ""


def test_progress_is_shown_while_running_and_the_result_is_the_same():
    stream = io.StringIO()
    _, node = progress.run_with_progress(builder(), console=Console(file=stream, width=100))
    assert node.is_finished_ok
    assert "label 2/4 (1 failed)" in stream.getvalue().splitlines()[-1]


class Interrupted(WorkChain):
    """Somebody presses Ctrl-C while its first step runs."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.outline(cls.first, cls.second)

    def first(self):
        os.kill(os.getpid(), signal.SIGINT)

    def second(self):
        """Never reached."""
        raise AssertionError("went on after an interrupt")


def test_an_interrupt_is_a_message_and_the_process_is_killed():
    with pytest.raises(MlipError, match=r"interrupted: process .* were killed"):
        progress.run_with_progress(Interrupted.get_builder(), console=Console(file=io.StringIO()))
    query = orm.QueryBuilder().append(orm.WorkChainNode, filters={"attributes.process_label": "Interrupted"})
    assert query.one()[0].is_killed


def test_a_process_that_does_not_exist_is_named():
    with pytest.raises(InvalidInputError, match="no process with pk 987654"):
        progress.snapshot(987654)


def test_status_command_prints_and_gives_json():
    from aiida_mlip.cli.status import status

    _, node = run_get_node(builder())
    shown = CliRunner().invoke(status, [str(node.pk)])
    assert shown.exit_code == 0, shown.output
    assert "2/4" in shown.output
    as_json = CliRunner().invoke(status, [str(node.pk), "--json"])
    assert '"failed": 1' in as_json.output
    missing = CliRunner().invoke(status, ["987654"])
    assert missing.exit_code == 1
    assert "no process with pk 987654" in missing.output


class Watched(Leaf):
    """Ends with a finding: it did what it was asked."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.exit_code(501, "ERROR_FOUND", message="stopped by the watch")

    def run_it(self):
        return self.exit_codes.ERROR_FOUND


class Explorer(Branch):
    """Calls one of them, as its stage."""

    def run_leaves(self):
        return ToContext(leaf=self.submit(Watched, fail=self.inputs.fail))


class Campaign(Branch):
    """Calls the explorer."""

    def run_leaves(self):
        return ToContext(branch=self.submit(Explorer, fail=self.inputs.fail, good=self.inputs.good))


def test_a_finding_is_no_failure():
    _, node = run_get_node(Campaign, fail=orm.Bool(False), good=orm.Bool(False))
    state = progress.snapshot(node.pk)
    (stage,) = state.stages
    assert (stage.done, stage.failed) == (1, 0)
    console = Console(file=io.StringIO(), width=200)
    _, inner = run_get_node(Explorer, fail=orm.Bool(False), good=orm.Bool(False))
    console.print(progress.render(progress.snapshot(inner.pk)))
    assert "finished [501]" in console.file.getvalue()
