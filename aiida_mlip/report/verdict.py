"""How it went: the word and the sentence at the head of a report."""

from __future__ import annotations

from aiida_mlip.report.content import Fact, Number, Tone, Verdict
from aiida_mlip.report.sections import calibration, costs, properties, training
from aiida_mlip.report.sections.dataset import latest_dataset
from aiida_mlip.report.sections.expected import describe_end
from aiida_mlip.report.sections.round_history import history
from aiida_mlip.report.sections.training_results import last_with
from aiida_mlip.report.tree import ProcessTree


def verdict(tree: ProcessTree) -> Verdict:
    """Running, failed, or what a process that did its work found."""
    root = tree.root
    source = (root.uuid,)
    if not root.has_ended:
        alive = [one for one in tree.children.get(root.pk, []) if not one.has_ended]
        doing = ", ".join(dict.fromkeys(one.name for one in alive)) or root.state
        return Verdict("Not finished", f"The process is {root.state}: {doing}.", "running", source)
    if root.state != "finished":
        return Verdict(root.state.capitalize(), describe_end(root), "bad", source)
    status = root.exit_status or 0
    _, last = history(tree)
    if status == 0:
        if last is not None:
            return Verdict("Converged", last["evidence"], "good", (last.uuid,))
        judged = tree.output(root, "verdict")
        if root.kind == "ValidateWorkChain" and judged is not None:
            counts = f"{judged['n_passed']} properties passed, {judged['n_not_judged']} were not judged."
            tone: Tone = "good" if judged["n_passed"] else ""
            return Verdict("Passed" if judged["n_passed"] else "Not judged", counts, tone, (judged.uuid,))
        targets = "targets" in tree.inputs(root)
        return Verdict("Finished", "The targets are met." if targets else "All stages ended well.", "good", source)
    if 500 <= status < 600:
        word = {"budget": "Budget spent", "stalled": "Stalled"}.get(last["verdict"] if last is not None else "", "")
        return Verdict(word or "Target not met", root.message, "warn", source)
    if 400 <= status < 500:
        return Verdict("Incomplete", describe_end(root), "warn", source)
    return Verdict("Failed", describe_end(root), "bad", source)


def headline(tree: ProcessTree) -> tuple[Fact, ...]:
    """The few numbers that come first."""
    facts: list[Fact] = list(properties.verdict_facts(tree))[:1]
    if (results := last_with(tree, "errors")) is not None:
        facts += training.error_facts(results)
    if (results := last_with(tree, "calibrations")) is not None and (fact := calibration.coverage_fact(results)):
        facts.append(fact)
    done, last = history(tree)
    if last is not None:
        facts.append(Fact("rounds", Number(len(done), uuids=(last.uuid,))))
    if (node := latest_dataset(tree)) is not None:
        labelled = sum(entry["labelled"] for entry in node.base.attributes.get("fidelities").values())
        failed = sum(entry["failed"] for entry in node.base.attributes.get("fidelities").values())
        facts.append(Fact("labelled rows", Number(labelled, uuids=(node.uuid,))))
        if failed:
            facts.append(Fact("failed rows", Number(failed, uuids=(node.uuid,), tone="warn")))
    if (fact := costs.spent_fact(tree)) is not None:
        facts.append(fact)
    return tuple(facts)
