"""LabelFidelitiesWorkChain: every frame labelled cheaply, a few of them at the dear level of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, if_

from aiida_mlip.calculations.functions.allocate import account_for_labels
from aiida_mlip.calculations.functions.dataset import merge_datasets
from aiida_mlip.calculations.functions.promote import divide_fidelities, join_summaries, plan_dear_labels
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.protocols.promote import parse_promote
from aiida_mlip.workchains.allocate import AllocateWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.reasons import reason_of
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain


class LabelFidelitiesWorkChain(SubmitOnceWorkChain):
    """Label all frames at the cheap levels of theory, choose which deserve the dear one, and label those.

    Entry point ``aiida_mlip.label_fidelities``. Takes the place of
    :class:`~aiida_mlip.workchains.label.LabelWorkChain` where there are several fidelities: the outputs are the same.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Frames to label.")
        spec.expose_inputs(LabelWorkChain, namespace="label", exclude=("dataset",))
        spec.input(
            "promote",
            valid_type=orm.Dict,
            help="How many frames, and which, get the dear label: see `aiida_mlip.protocols.promote`.",
        )
        spec.input(
            "known",
            valid_type=DatasetData,
            required=False,
            help="Labels there are already: the fraction is one of all frames.",
        )
        spec.input_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="A committee trained on all fidelities, `member_<i>`: it says where their difference is uncertain.",
        )
        spec.input(
            "codes.evaluate", valid_type=orm.AbstractCode, required=False, help="The program aiida-mlip-evaluate."
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            cls.plan,
            cls.run_cheap,
            cls.inspect_cheap,
            cls.plan_dear,
            if_(cls.should_allocate)(
                cls.run_allocate,
                cls.inspect_allocate,
            ),
            if_(cls.has_promoted)(
                cls.run_dear,
                cls.inspect_dear,
            ),
            cls.finalize,
        )

        spec.output("dataset", valid_type=DatasetData, required=False, help="One row per frame and fidelity.")
        spec.output("summary", valid_type=orm.Dict, required=False, help="Computed, reused, failed, core-seconds.")
        spec.output("allocation", valid_type=orm.Dict, required=False, help="Which frames were promoted, and why.")

        spec.output("spent", valid_type=orm.Dict, required=False, help="Cost of the dear labels against the forecast.")
        spec.exit_code(310, "ERROR_NO_LABELS", message="No label was computed. {reason}")
        spec.exit_code(410, "ERROR_CHEAP_INCOMPLETE", message="Cheap labels failed; the rest is returned. {reason}")
        spec.exit_code(
            411, "ERROR_NOT_PROMOTED", message="The dear labels could not be computed; the rest is returned. {reason}"
        )

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Begin with nothing labelled."""
        self.ctx.plan = {}
        self.ctx.labelled = {}  # cheap, dear -> uuid of a dataset
        self.ctx.summaries = {}
        self.ctx.promoted = None
        self.ctx.problem = None

    def plan(self) -> None:
        """Tell the dear level of theory from the cheap ones."""
        result = divide_fidelities(
            self.inputs.label.fidelities, self.inputs.promote, metadata={"call_link_label": "divide_fidelities"}
        )
        self.ctx.plan = {name: value.uuid for name, value in result.items()}

    def run_cheap(self) -> ToContext:
        """Label every frame at all fidelities but the dear one."""
        return self._label("cheap", self.inputs.dataset)

    def inspect_cheap(self) -> ExitCode | None:
        """Take the labels; without any there is nothing to choose from."""
        node = self._take("cheap")
        if node.is_finished_ok:
            return None
        reason = reason_of(node)
        self.report(reason)
        self._return_all()
        if "dataset" not in node.outputs or not node.outputs.dataset.n_labels:
            return self.exit_codes.ERROR_NO_LABELS.format(reason=reason)
        return self.exit_codes.ERROR_CHEAP_INCOMPLETE.format(reason=reason)

    def plan_dear(self) -> None:
        """How many dear labels there may be."""
        known = {"known": self.inputs.known} if "known" in self.inputs else {}
        result = plan_dear_labels(
            self.inputs.promote,
            self.inputs.label.fidelities,
            orm.load_node(self.ctx.labelled["cheap"]),
            orm.load_node(self.ctx.summaries["cheap"]),
            **known,
            metadata={"call_link_label": "plan_dear_labels"},
        )
        if "spec" in result:
            self.ctx.plan["allocation"] = result["spec"].uuid
        else:
            self.report("no frame is promoted: there are dear labels enough, or the budget is spent")

    def should_allocate(self) -> bool:
        """Whether any dear label is wanted."""
        return "allocation" in self.ctx.plan

    def run_allocate(self) -> ToContext:
        """Choose the frames that get the dear label."""
        inputs = AttributeDict(
            {
                "dataset": orm.load_node(self.ctx.labelled["cheap"]),
                "settings": orm.load_node(self.ctx.plan["allocation"]),
                "metadata": {"call_link_label": "allocate"},
            }
        )
        if "known" in self.inputs:
            inputs.measured = self.inputs.known
        if self.inputs.get("joint_potentials"):
            inputs.joint_potentials = dict(self.inputs.joint_potentials)
            inputs.codes = {"evaluate": self.inputs.codes.evaluate}
        return ToContext(allocate=self.submit(AllocateWorkChain, **inputs))

    def inspect_allocate(self) -> None:
        """Take the frames that were chosen."""
        node = self.ctx.allocate
        if "report" in node.outputs:
            self.out("allocation", node.outputs.report)
        if "frames" in node.outputs:
            self.ctx.promoted = node.outputs.frames.uuid
        else:
            self.ctx.problem = reason_of(node)
            self.report(self.ctx.problem)

    def has_promoted(self) -> bool:
        """Whether frames were chosen."""
        return self.ctx.promoted is not None

    def run_dear(self) -> ToContext:
        """Label the frames that were chosen at the dear fidelity."""
        return self._label("dear", orm.load_node(self.ctx.promoted))

    def inspect_dear(self) -> None:
        """Take the labels there are."""
        node = self._take("dear")
        if not node.is_finished_ok:
            self.ctx.problem = reason_of(node)
            self.report(self.ctx.problem)
        if "dear" in self.ctx.labelled:
            spent = account_for_labels(
                self.ctx.allocate.outputs.report,
                node.outputs.dataset,
                node.outputs.summary,
                metadata={"call_link_label": "account_for_labels"},
            )
            self.out("spent", spent)

    def finalize(self) -> ExitCode | None:
        """Return all labels and what they cost."""
        self._return_all()
        if self.ctx.problem is not None:
            return self.exit_codes.ERROR_NOT_PROMOTED.format(reason=self.ctx.problem)
        return None

    # -- parts -------------------------------------------------------------------------------------------------

    def _label(self, which: str, frames: DatasetData) -> ToContext:
        inputs = AttributeDict(self.exposed_inputs(LabelWorkChain, "label"))
        inputs.dataset = frames
        inputs.fidelities = orm.load_node(self.ctx.plan[which])
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = f"label_{which}"
        node = self.submit(LabelWorkChain, **inputs)
        names = ", ".join(inputs.fidelities.get_dict())
        self.report(f"labelling {len(frames)} frames at {names}: LabelWorkChain<{node.pk}>")
        return ToContext(**{which: node})

    def _take(self, which: str) -> orm.ProcessNode:
        node = self.ctx[which]
        if "summary" in node.outputs:
            self.ctx.summaries[which] = node.outputs.summary.uuid
        if "dataset" in node.outputs:
            self.ctx.labelled[which] = node.outputs.dataset.uuid
        return node

    def _return_all(self) -> None:
        """Attach the labels of both kinds as one dataset, and one summary."""
        labelled = {f"dataset_{i:04d}": orm.load_node(uuid) for i, uuid in enumerate(self.ctx.labelled.values())}
        if len(labelled) == 1:
            self.out("dataset", *labelled.values())
        elif labelled:
            merged, node = merge_datasets.run_get_node(**labelled, metadata={"call_link_label": "merge"})
            if node.is_finished_ok:
                self.out("dataset", merged["dataset"])
            else:
                self.ctx.problem = reason_of(node)
        summaries = {name: orm.load_node(uuid) for name, uuid in self.ctx.summaries.items()}
        if len(summaries) == 1:
            self.out("summary", *summaries.values())
        elif summaries:
            self.out("summary", join_summaries(**summaries, metadata={"call_link_label": "join_summaries"}))


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What can be known before anything is submitted."""
    label = inputs.get("label") or {}
    if "promote" not in inputs or "fidelities" not in label:
        return None  # reported by the ports themselves, or by the parent that gives the rest
    try:
        parse_promote(inputs["promote"].get_dict(), list(label["fidelities"].get_dict()))
    except MlipError as error:
        return str(error)
    if inputs.get("joint_potentials") and "evaluate" not in (inputs.get("codes") or {}):
        return "codes.evaluate: missing, the joint potentials are evaluated with it"
    return None
