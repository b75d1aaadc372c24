"""AllocateWorkChain: which frames deserve the dear label, by what a committee of joint models is unsure of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.engine import ExitCode, ToContext, if_

from aiida_mlip.calculations.bake import BakeCalculation
from aiida_mlip.calculations.evaluate import EvaluateCalculation
from aiida_mlip.calculations.functions.allocate import CHEAP, DEAR, MIN_MEMBERS, allocate_labels, plan_allocation
from aiida_mlip.calculations.options import options_validator
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.protocols.allocate import AllocateSpec, allocate_spec
from aiida_mlip.workchains.reasons import reason_of
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain

#: Levels of theory, by the prefix of what belongs to them.
_LEVELS: Final[tuple[str, ...]] = (DEAR, CHEAP)
#: Exit status of a calcfunction that had nothing to choose from.
_NOTHING_LEFT: Final[int] = 314


class AllocateWorkChain(SubmitOnceWorkChain):
    """Choose the frames that get the dear label, under a budget.

    Entry point ``aiida_mlip.allocate``. Two joint potentials or more are baked at both levels of theory and predict
    all candidates: where they disagree on the *difference* of the levels, a dear label teaches most. Without them the
    frames are chosen to be unlike each other, and the report says so.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Frames with cheap labels, and the dear ones there are.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            validator=_validate_settings,
            help="Levels of theory, budget, method: see `aiida_mlip.protocols.allocate`.",
        )
        spec.input_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="A committee trained on both levels of theory: `member_<i>`. Fewer than two: diversity alone.",
        )
        spec.input(
            "measured",
            valid_type=DatasetData,
            required=False,
            help="Further labels: what has the dear one is not chosen again; measured costs say what others will cost.",
        )
        spec.input("codes.evaluate", valid_type=orm.AbstractCode, required=False, help="aiida-mlip-evaluate.")
        spec.input(
            "evaluation", valid_type=orm.Dict, required=False, help="Settings of the evaluations: `device`, `mode`, ..."
        )
        spec.input(
            "options",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(EvaluateCalculation),
            help="Scheduler options of their jobs.",
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            cls.plan,
            if_(cls.has_committee)(
                cls.run_bake,
                cls.inspect_bake,
                cls.run_evaluate,
                cls.inspect_evaluate,
            ),
            cls.allocate,
            cls.finalize,
        )

        spec.output("frames", valid_type=DatasetData, required=False, help="Frames to label, in order of choice.")
        spec.output("report", valid_type=orm.Dict, required=False, help="Why these, and what they will cost.")

        spec.exit_code(200, "ERROR_INVALID_INPUT", message="Dear labels cannot be allotted. {reason}")
        spec.exit_code(310, "ERROR_NO_FRAMES", message="There is nothing to choose. {reason}")
        spec.exit_code(410, "ERROR_SOME_MEMBERS_FAILED", message="The frames were chosen without {members}. {reason}")
        spec.exit_code(
            411,
            "ERROR_NO_UNCERTAINTY",
            message="Fewer than two members could be asked: the frames were chosen by diversity alone. {reason}",
        )

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Note the members; none has been asked."""
        self.ctx.members = sorted(self.inputs.get("joint_potentials", {}))
        self.ctx.plan = {}  # candidates and names of the levels -> uuid
        self.ctx.baked = {}  # <level>_<member> -> uuid
        self.ctx.parity = {}
        self.ctx.failed = []  # members
        self.ctx.problems = []  # in words
        self.ctx.result = {}

    def plan(self) -> ExitCode | None:
        """Find the frames that could be given the dear label."""
        outputs, node = plan_allocation.run_get_node(
            self.inputs.dataset, self.inputs.settings, metadata={"call_link_label": "plan_allocation"}
        )
        if not node.is_finished_ok:
            return self._refusal(node)
        self.ctx.plan = {name: output.uuid for name, output in outputs.items()}
        return None

    def has_committee(self) -> bool:
        """Whether there are members that can differ, and it matters."""
        wanted = allocate_spec(self.inputs.settings.get_dict()).method == "difference"
        return wanted and len(self.ctx.members) >= MIN_MEMBERS

    def run_bake(self) -> ToContext:
        """Make ordinary potentials of every member, one for each level of theory."""
        return ToContext(
            **{
                f"bake_{name}": self.submit(
                    BakeCalculation,
                    code=self.inputs.codes.evaluate,
                    potential=self.inputs.joint_potentials[member],
                    fidelity=orm.load_node(self.ctx.plan[level.removesuffix("_")]),
                    metadata=self._metadata(f"bake_{name}"),
                )
                for level, member, name in self._parts()
            }
        )

    def inspect_bake(self) -> None:
        """Take the potentials; a member that lacks one is left out."""
        for _, member, name in self._parts():
            self._take(f"bake_{name}", "potential", member, self.ctx.baked, name)

    def run_evaluate(self) -> ToContext:
        """Predict all candidates with every potential."""
        settings = {"settings": self.inputs.evaluation} if "evaluation" in self.inputs else {}
        return ToContext(
            **{
                f"evaluate_{name}": self.submit(
                    EvaluateCalculation,
                    code=self.inputs.codes.evaluate,
                    potential=orm.load_node(self.ctx.baked[name]),
                    dataset=orm.load_node(self.ctx.plan["candidates"]),
                    metadata=self._metadata(f"evaluate_{name}"),
                    **settings,
                )
                for _, _, name in self._parts()
            }
        )

    def inspect_evaluate(self) -> None:
        """Take the predictions; a frame that was not predicted is no candidate."""
        for _, member, name in self._parts():
            self._take(f"evaluate_{name}", "parity", member, self.ctx.parity, name)

    def allocate(self) -> ExitCode | None:
        """Choose the frames."""
        parts = [name for _, _, name in self._parts() if name in self.ctx.parity]
        measured = {"measured": self.inputs.measured} if "measured" in self.inputs else {}
        outputs, node = allocate_labels.run_get_node(
            dataset=self.inputs.dataset,
            settings=self.inputs.settings,
            **measured,
            **{name: orm.load_node(self.ctx.parity[name]) for name in parts},
            metadata={"call_link_label": "allocate_labels"},
        )
        if not node.is_finished_ok:
            return self._refusal(node)
        self.ctx.result = {name: output.uuid for name, output in outputs.items()}
        return None

    def finalize(self) -> ExitCode | None:
        """Return the frames and the report, and say who could not be asked."""
        for name, uuid in self.ctx.result.items():
            self.out(name, orm.load_node(uuid))
        if not self.ctx.failed:
            return None
        reason = "; ".join(self.ctx.problems)
        if len(self.ctx.members) - len(self.ctx.failed) < MIN_MEMBERS:
            return self.exit_codes.ERROR_NO_UNCERTAINTY.format(reason=reason)
        return self.exit_codes.ERROR_SOME_MEMBERS_FAILED.format(members=", ".join(self.ctx.failed), reason=reason)

    # -- parts of steps ----------------------------------------------------------------------------------------

    def _parts(self) -> list[tuple[str, str, str]]:
        """Level, member and common name of everything that is left to be done; one member alone is not asked."""
        members = [member for member in self.ctx.members if member not in self.ctx.failed]
        members = members if len(members) >= MIN_MEMBERS else []
        return [(level, member, level + member) for member in members for level in _LEVELS]

    def _metadata(self, label: str) -> dict[str, Any]:
        options = self.inputs.options.get_dict() if "options" in self.inputs else {}
        return {"call_link_label": label, "options": options}

    def _take(self, key: str, output: str, member: str, found: dict[str, str], name: str) -> None:
        """Note an output of a child, or that its member cannot be asked."""
        node = self.ctx[key]
        if output in node.outputs:
            found[name] = node.outputs[output].uuid
        if node.is_finished_ok:
            return
        self.report(reason_of(node))
        if output not in node.outputs:
            self.ctx.problems.append(reason_of(node))
            if member not in self.ctx.failed:
                self.ctx.failed.append(member)

    def _refusal(self, node: orm.ProcessNode) -> ExitCode:
        self.report(reason_of(node))
        code = self.exit_codes.ERROR_NO_FRAMES if node.exit_status == _NOTHING_LEFT else None
        return (code or self.exit_codes.ERROR_INVALID_INPUT).format(reason=reason_of(node))


# -- validation ------------------------------------------------------------------------------------------------


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        allocate_spec(value.get_dict())
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What can be known before anything is submitted."""
    if not {"dataset", "settings"} <= set(inputs) or _validate_settings(inputs["settings"], None) is not None:
        return None  # reported by the ports themselves
    spec = allocate_spec(inputs["settings"].get_dict())
    members = inputs.get("joint_potentials", {})
    if spec.method != "difference" or len(members) < MIN_MEMBERS:
        return None
    if "evaluate" not in inputs.get("codes", {}):
        return "codes.evaluate: missing, the joint potentials need it"
    try:
        for name, potential in members.items():
            _check_member(name, potential, spec)
            potential.check_species(inputs["dataset"].species)
    except MlipError as error:
        return str(error)
    return None


def _check_member(name: str, potential: PotentialData, spec: AllocateSpec) -> None:
    """Make sure that a potential knows both levels of theory.

    :raises InvalidInputError: it does not.
    """
    if not potential.joint:
        raise InvalidInputError(
            f"joint_potentials.{name}: not joint, it knows one level of theory only; take the outputs "
            f"joint_potentials of aiida_mlip.train"
        )
    if missing := sorted({spec.target, spec.cheap} - set(potential.fidelities)):
        raise InvalidInputError(
            f"joint_potentials.{name}: trained on {', '.join(potential.fidelities)}, not on {', '.join(missing)}"
        )
