"""The audit finds a Data node made in a workchain step, and only that."""

from __future__ import annotations

import pytest
from aiida import orm
from aiida.engine import WorkChain, calcfunction, run_get_node

from aiida_mlip.data import provenance


@calcfunction
def double(number):
    return orm.Int(2 * number.value)


class Clean(WorkChain):
    """Creates through a calculation only."""

    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("number", valid_type=orm.Int)
        spec.output("result", valid_type=orm.Int)
        spec.outline(cls.run_double)

    def run_double(self):
        self.out("result", double(self.inputs.number))


class Dirty(Clean):
    """Makes a node in a step."""

    def run_double(self):
        self.out("result", double(orm.Int(self.inputs.number.value + 1).store()))


@pytest.mark.usefixtures("aiida_profile")
def test_clean_graph_passes():
    results, node = run_get_node(Clean, number=orm.Int(4))
    for start in (node, results["result"]):
        report = provenance.audit(start)
        assert report.passed
        assert report.orphans == ()
        assert report.user_inputs == 1
        assert report.created == 1
        assert report.unfinished == ()


@pytest.mark.usefixtures("aiida_profile")
def test_node_made_in_a_step_is_an_orphan():
    results, node = run_get_node(Dirty, number=orm.Int(4))
    report = provenance.audit(results["result"])
    assert not report.passed
    assert len(report.orphans) == 1
    assert report.orphans[0].node_type == orm.Int.class_node_type
    assert "used by double" in report.orphans[0].origin
    assert report.as_dict()["passed"] is False
    assert provenance.audit(node).orphans == report.orphans


@pytest.mark.usefixtures("aiida_profile")
def test_walks_are_inverse_to_each_other():
    number = orm.Int(7).store()
    results, node = run_get_node(Clean, number=number)
    assert {number.pk, node.pk} < provenance.ancestors([results["result"]])
    assert {results["result"].pk, node.pk} < provenance.descendants([number])
    assert number.pk not in provenance.descendants([results["result"]])


@pytest.mark.usefixtures("aiida_profile")
def test_a_node_given_by_a_person_and_not_used_yet_is_no_orphan():
    assert provenance.audit(orm.Int(3).store()).passed


@pytest.mark.usefixtures("aiida_profile")
def test_an_audit_that_reads_everything_says_the_same(monkeypatch):
    """What a large campaign needs: all links and processes of the profile are read at once, others' too."""
    _, clean = run_get_node(Clean, number=orm.Int(5))
    results, dirty = run_get_node(Dirty, number=orm.Int(4))
    expected = [provenance.audit(node) for node in (clean, dirty, results["result"])]
    assert [report.passed for report in expected] == [True, False, False]
    monkeypatch.setattr("aiida_mlip.data.graph.FEW", 0)
    monkeypatch.setattr("aiida_mlip.data.provenance.FEW", 0)
    monkeypatch.setattr("aiida_mlip.data.graph._LINKS_PER_START", 10**9)
    assert [provenance.audit(node) for node in (clean, dirty, results["result"])] == expected
