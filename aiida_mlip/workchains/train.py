"""TrainWorkChain: from a labelled dataset to a committee of potentials and their errors on held-out frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, if_, while_

from aiida_mlip.calculations.bake import BakeCalculation
from aiida_mlip.calculations.evaluate import EvaluateCalculation
from aiida_mlip.calculations.functions.calibrate import calibrate, judge_potential
from aiida_mlip.calculations.functions.train import plan_training, planned_split, tabulate
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.calculations.options import options_validator
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.training_set import check_initial_potential
from aiida_mlip.errors import InvalidInputError, MlipError, SpeciesError
from aiida_mlip.io.nequip_config import check_overrides
from aiida_mlip.kernel.training import training_fidelity
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.workchains.nequip_base import NequipBaseWorkChain
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain

#: How a job ends that something from outside has ended. Whoever kills for want of memory does not say so.
_INTERRUPTED: Final[frozenset[int]] = frozenset(
    codes[name].status
    for codes in (EvaluateCalculation.exit_codes, BakeCalculation.exit_codes)
    for name in (
        "ERROR_OUTPUT_MISSING",
        "ERROR_OUTPUT_UNREADABLE",
        "ERROR_OUT_OF_MEMORY",
        "ERROR_SCHEDULER_NODE_FAILURE",
    )
)


class TrainWorkChain(SubmitOnceWorkChain):
    """Train a committee of potentials on one dataset, and judge them on frames they have not seen.

    Entry point ``aiida_mlip.train``. Each potential comes with its errors, the grades of its training environments and
    - in a committee - the calibration of the committee's deviation. Members that could be trained are returned, also
    when others failed or could not be judged.

    Joint models of several levels of theory (``multi_fidelity`` in the settings) are baked at the level that is asked
    for: it is the baked potentials that are judged, and ``joint_potentials`` that a later training starts from.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Labelled frames.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            validator=_validate_settings,
            help="`protocol` and what differs from it: see aiida_mlip.protocols.train.",
        )
        spec.input(
            "test_dataset",
            valid_type=DatasetData,
            required=False,
            help="Further labelled frames to measure errors on (`external`), never trained on.",
        )
        spec.input_namespace(
            "initial_potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="Warm start: `all`, or one for each `member_<i>`.",
        )
        spec.input("codes.train", valid_type=orm.AbstractCode, help="nequip-train, by its absolute path.")
        spec.input("codes.evaluate", valid_type=orm.AbstractCode, help="aiida-mlip-evaluate; it bakes as well.")
        spec.input(
            "options.train",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(NequipTrainCalculation),
            help="Scheduler options of a training: resources, ...",
        )
        spec.input(
            "options.evaluate",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(EvaluateCalculation),
            help="Scheduler options of an evaluation.",
        )
        spec.input(
            "max_concurrent",
            valid_type=orm.Int,
            default=lambda: orm.Int(8),
            validator=_validate_positive,
            serializer=orm.to_aiida_type,
            help="Members trained at the same time.",
        )
        spec.expose_inputs(
            NequipBaseWorkChain,
            namespace="restarts",
            exclude=("nequip",),
            namespace_options={"help": "How problems of a training are dealt with."},
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            cls.plan,
            while_(cls.has_untrained_members)(
                cls.run_train,
                cls.inspect_train,
            ),
            cls.check_trained,
            while_(cls.has_unbaked_potentials)(
                cls.run_bake,
                cls.inspect_bake,
            ),
            cls.check_potentials,
            while_(cls.has_unevaluated_potentials)(
                cls.run_evaluate,
                cls.inspect_evaluate,
            ),
            if_(cls.can_calibrate)(
                cls.calibrate,
            ),
            cls.judge,
            cls.finalize,
        )

        spec.output_namespace("potentials", valid_type=PotentialData, dynamic=True, required=False, help="`member_<i>`")
        spec.output_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="Of several levels of theory, for `initial_potentials` or `aiida_mlip.bake`: `member_<i>`",
        )
        spec.output_namespace(
            "calibrations", valid_type=orm.Dict, dynamic=True, required=False, help="Of a committee: `member_<i>`"
        )
        spec.output("split", valid_type=orm.ArrayData, required=False, help="Part of every row for every member.")
        spec.output(
            "errors",
            valid_type=orm.Dict,
            required=False,
            help="Errors per part, mean over members, and each one's own.",
        )
        spec.output_namespace(
            "parity",
            valid_type=orm.ArrayData,
            dynamic=True,
            required=False,
            help="Labels and predictions: `member_<i>`, and `external_<i>` for the test dataset.",
        )
        spec.output_namespace(
            "curves", valid_type=orm.ArrayData, dynamic=True, required=False, help="Errors per epoch: `member_<i>`"
        )
        spec.output_namespace(
            "summaries", valid_type=orm.Dict, dynamic=True, required=False, help="How training went: `member_<i>`"
        )

        spec.exit_code(200, "ERROR_INVALID_INPUT", message="The training cannot be planned: {reason}")
        spec.exit_code(300, "ERROR_NO_POTENTIAL", message="No member of the committee could be trained.")
        spec.exit_code(400, "ERROR_SOME_MEMBERS_FAILED", message="Members {members} could not be trained.")
        spec.exit_code(401, "ERROR_EVALUATION_FAILED", message="The errors of {names} could not be measured.")
        spec.exit_code(402, "ERROR_GRADES_FAILED", message="Members {members} have no grades: {reason}")
        spec.exit_code(403, "ERROR_CALIBRATION_FAILED", message="The committee could not be calibrated: {reason}")

        spec.exit_code(404, "ERROR_BAKING_FAILED", message="Members {members} could not be baked: {reason}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        dataset: DatasetData,
        codes: Mapping[str, orm.AbstractCode],
        *,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with the settings of a protocol.

        :param dataset: labelled frames.
        :param codes: ``train`` (nequip-train) and ``evaluate`` (aiida-mlip-evaluate).
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: settings that differ from the protocol.
        :param options: scheduler options of the jobs, by ``train`` and ``evaluate``.
        :raises ProtocolError: unknown protocol or key; names the nearest valid one.
        """
        settings = dict(overrides or {})
        if protocol is not None:
            settings["protocol"] = protocol
        check_overrides(train_settings(settings).model_dump())
        builder = cls.get_builder()
        builder.dataset = dataset
        builder.settings = orm.Dict(settings)
        builder.codes = {name: codes[name] for name in ("train", "evaluate")}
        for name, values in (options or {}).items():
            builder.options[name] = orm.Dict(dict(values))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Start with nothing trained."""
        self.ctx.settings = {}
        self.ctx.untrained = []
        self.ctx.unbaked = []
        self.ctx.unevaluated = []
        self.ctx.running = []
        self.ctx.joint_potentials = {}
        self.ctx.potentials = {}
        self.ctx.errors = {}
        self.ctx.parity = {}
        self.ctx.grades = {}
        self.ctx.calibrations = {}
        self.ctx.failed_members = []
        self.ctx.failed_evaluations = []
        self.ctx.repeated = []
        self.ctx.not_baked = {}
        self.ctx.ungraded = {}
        self.ctx.uncalibrated = None

    def plan(self) -> ExitCode | None:
        """Split the frames and write out the settings of every member."""
        result, node = plan_training.run_get_node(
            self.inputs.dataset, self.inputs.settings, metadata={"call_link_label": "plan"}
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_INVALID_INPUT.format(reason=node.exit_message)
        self.ctx.plan = {name: value.uuid for name, value in result.items()}
        self.ctx.untrained = sorted(
            int(name.removeprefix("settings_")) for name in result if name.startswith("settings_")
        )
        self.out("split", result["split"])
        return None

    def has_untrained_members(self) -> bool:
        """Whether a member is left to train."""
        return bool(self.ctx.untrained)

    def run_train(self) -> ToContext:
        """Train the next members side by side."""
        self.ctx.running = self.ctx.untrained[: self.inputs.max_concurrent.value]
        self.ctx.untrained = self.ctx.untrained[len(self.ctx.running) :]
        for member in self.ctx.running:
            node = self.submit(NequipBaseWorkChain, **self._training_inputs(member))
            self.report(f"training member {member}: NequipBaseWorkChain<{node.pk}>")
            self.to_context(**{f"train_{member}": node})
        return ToContext()

    def inspect_train(self) -> None:
        """Take potentials, curves and summaries of the members that are done."""
        for member in self.ctx.running:
            node = self.ctx[f"train_{member}"]
            for name, port in (("curves", "curves"), ("summary", "summaries")):
                if name in node.outputs:
                    self.out(f"{port}.member_{member}", node.outputs[name])
            if "potential" in node.outputs:
                potential = node.outputs.potential
                if potential.joint:
                    self.out(f"joint_potentials.member_{member}", potential)
                    self.ctx.joint_potentials[str(member)] = potential.uuid
                else:
                    self.ctx.potentials[str(member)] = potential.uuid
            if not node.is_finished_ok:
                self.ctx.failed_members.append(member)
                self.report(
                    f"member {member}: NequipBaseWorkChain<{node.pk}> failed with exit status {node.exit_status}: "
                    f"{node.exit_message}"
                )
        self.ctx.running = []

    def check_trained(self) -> ExitCode | None:
        """End here when there is no potential at all; else bake those that are joint."""
        if not self.ctx.potentials and not self.ctx.joint_potentials:
            return self.exit_codes.ERROR_NO_POTENTIAL
        self.ctx.unbaked = [f"bake_{member}" for member in self.ctx.joint_potentials]
        return None

    def has_unbaked_potentials(self) -> bool:
        """Whether joint potentials are left to bake."""
        return bool(self.ctx.unbaked)

    def run_bake(self) -> ToContext:
        """Make ordinary potentials of the next joint ones side by side."""
        self.ctx.running = self.ctx.unbaked[: self.inputs.max_concurrent.value]
        self.ctx.unbaked = self.ctx.unbaked[len(self.ctx.running) :]
        for name in self.ctx.running:
            node = self.submit(BakeCalculation, **self._baking_inputs(name))
            self.report(f"baking the potential of member {name.removeprefix('bake_')}: BakeCalculation<{node.pk}>")
            self.to_context(**{name: node})
        return ToContext()

    def inspect_bake(self) -> None:
        """Take the ordinary potentials."""
        for name in self.ctx.running:
            node, member = self.ctx[name], name.removeprefix("bake_")
            if "potential" in node.outputs:
                self.ctx.potentials[member] = node.outputs.potential.uuid
            elif not self._put_back(name, node, self.ctx.unbaked):
                self.ctx.not_baked[member] = node.exit_message
            if not node.is_finished_ok:
                self.report(
                    f"member {member}: BakeCalculation<{node.pk}> failed with exit status {node.exit_status}: "
                    f"{node.exit_message}"
                )
        self.ctx.running = []

    def check_potentials(self) -> ExitCode | None:
        """End here when none of the joint potentials could be baked; else measure the errors of those there are."""
        if not self.ctx.potentials:
            return self._not_baked()
        kinds = ("member", "external") if "test_dataset" in self.inputs else ("member",)
        self.ctx.unevaluated = [f"{kind}_{member}" for member in self.ctx.potentials for kind in kinds]
        return None

    def has_unevaluated_potentials(self) -> bool:
        """Whether errors are left to measure."""
        return bool(self.ctx.unevaluated)

    def run_evaluate(self) -> ToContext:
        """Predict all frames with the next potentials side by side."""
        self.ctx.running = self.ctx.unevaluated[: self.inputs.max_concurrent.value]
        self.ctx.unevaluated = self.ctx.unevaluated[len(self.ctx.running) :]
        for name in self.ctx.running:
            node = self.submit(EvaluateCalculation, **self._evaluation_inputs(name))
            self.report(f"measuring the errors of {name}: EvaluateCalculation<{node.pk}>")
            self.to_context(**{f"evaluate_{name}": node})
        return ToContext()

    def inspect_evaluate(self) -> None:
        """Take errors, parity data and grades."""
        without_grades = EvaluateCalculation.exit_codes.ERROR_GRADES_FAILED.status
        for name in self.ctx.running:
            node = self.ctx[f"evaluate_{name}"]
            if "parity" in node.outputs:
                self.out(f"parity.{name}", node.outputs.parity)
                self.ctx.parity[name] = node.outputs.parity.uuid
            if "errors" in node.outputs:
                self.ctx.errors[name] = node.outputs.errors.uuid
            if "grades" in node.outputs:
                self.ctx.grades[name] = node.outputs.grades.uuid
            if not node.is_finished_ok:
                if node.exit_status == without_grades:
                    self.ctx.ungraded[name] = node.exit_message
                elif not self._put_back(name, node, self.ctx.unevaluated):
                    self.ctx.failed_evaluations.append(name)
                self.report(
                    f"{name}: EvaluateCalculation<{node.pk}> failed with exit status {node.exit_status}: "
                    f"{node.exit_message}"
                )
        self.ctx.running = []

    def can_calibrate(self) -> bool:
        """Whether two members or more were evaluated on frames that none of them was trained on."""
        if len(self.ctx.potentials) > 1 and self._held_out() is None:
            self.report("no calibration: no frames are held out from all members (split.test is 0, no test_dataset)")
        return len(self._evaluated(self._held_out())) > 1

    def calibrate(self) -> None:
        """Turn the deviation of the committee into bounds of each member's errors, on held-out frames."""
        result, node = calibrate.run_get_node(
            settings=self._planned("calibration"),
            **self._evaluated(self._held_out()),
            metadata={"call_link_label": "calibrate"},
        )
        if not node.is_finished_ok:
            self.ctx.uncalibrated = node.exit_message
            self.report(f"calibrate<{node.pk}> failed: {node.exit_message}")
            return
        for name, value in result.items():
            self.ctx.calibrations[name] = value.uuid
            self.out(f"calibrations.{name}", value)

    def judge(self) -> None:
        """Give each potential what judges it: errors, grades, calibration."""
        for member, uuid in self.ctx.potentials.items():
            potential, name = orm.load_node(uuid), f"member_{member}"
            evidence = self._evidence(member)
            if evidence:
                judged, node = judge_potential.run_get_node(
                    potential=potential, **evidence, metadata={"call_link_label": f"judge_{name}"}
                )
                if node.is_finished_ok:
                    potential = judged
                else:
                    self.ctx.ungraded[name] = node.exit_message
                    self.report(f"{name}: judge_potential<{node.pk}> failed: {node.exit_message}")
            self.out(f"potentials.{name}", potential)

    def finalize(self) -> ExitCode | None:
        """Put the errors into one table."""
        if self.ctx.errors:
            errors = {name: orm.load_node(uuid) for name, uuid in self.ctx.errors.items()}
            self.out("errors", tabulate(**errors, metadata={"call_link_label": "tabulate"}))
        if self.ctx.failed_members:
            return self.exit_codes.ERROR_SOME_MEMBERS_FAILED.format(members=self.ctx.failed_members)
        if self.ctx.not_baked:
            return self._not_baked()
        if self.ctx.failed_evaluations:
            return self.exit_codes.ERROR_EVALUATION_FAILED.format(names=", ".join(self.ctx.failed_evaluations))
        if self.ctx.ungraded:
            reason = "; ".join(sorted(set(self.ctx.ungraded.values())))
            return self.exit_codes.ERROR_GRADES_FAILED.format(members=", ".join(self.ctx.ungraded), reason=reason)
        if self.ctx.uncalibrated is not None:
            return self.exit_codes.ERROR_CALIBRATION_FAILED.format(reason=self.ctx.uncalibrated)
        return None

    # -- parts of steps ----------------------------------------------------------------------------------------

    def _put_back(self, name: str, node: orm.CalcJobNode, queue: list[str]) -> bool:
        """Put a job that something from outside has ended back into its queue, once."""
        if node.exit_status not in _INTERRUPTED or name in self.ctx.repeated:
            return False
        self.ctx.repeated.append(name)
        queue.append(name)
        return True

    def _not_baked(self) -> ExitCode:
        reason = "; ".join(sorted(set(self.ctx.not_baked.values())))
        return self.exit_codes.ERROR_BAKING_FAILED.format(members=", ".join(self.ctx.not_baked), reason=reason)

    def _planned(self, name: str) -> orm.Node:
        return orm.load_node(self.ctx.plan[name])

    def _training_inputs(self, member: int) -> AttributeDict:
        inputs = AttributeDict(self.exposed_inputs(NequipBaseWorkChain, "restarts"))
        inputs.setdefault("metadata", {})["call_link_label"] = f"train_member_{member}"
        inputs.nequip = {
            "code": self.inputs.codes.train,
            "dataset": self.inputs.dataset,
            "split": self._planned("split"),
            "settings": self._planned(f"settings_{member}"),
            "monitors": {"divergence": self._planned("monitor")},
            "metadata": {"options": self._options("train")},
        }
        initial = self.inputs.get("initial_potentials", {})
        if (potential := initial.get(f"member_{member}", initial.get("all"))) is not None:
            inputs.nequip["initial_potential"] = potential
        return inputs

    def _baking_inputs(self, name: str) -> AttributeDict:
        member = name.removeprefix("bake_")
        again = "_again" if name in self.ctx.repeated else ""
        return AttributeDict(
            {
                "code": self.inputs.codes.evaluate,
                "potential": orm.load_node(self.ctx.joint_potentials[member]),
                "fidelity": self._planned("fidelity"),
                "metadata": {
                    "call_link_label": f"bake_member_{member}{again}",
                    "options": self._options("evaluate"),
                },
            }
        )

    def _evaluation_inputs(self, name: str) -> AttributeDict:
        kind, _, member = name.rpartition("_")
        inputs = AttributeDict(
            {
                "code": self.inputs.codes.evaluate,
                "potential": orm.load_node(self.ctx.potentials[member]),
                "settings": self._planned("external" if kind == "external" else "evaluation"),
                "metadata": {
                    "call_link_label": f"evaluate_{name}" + ("_again" if name in self.ctx.repeated else ""),
                    "options": self._options("evaluate"),
                },
            }
        )
        if kind == "external":
            inputs.dataset = self.inputs.test_dataset
        else:
            inputs.dataset = self.inputs.dataset
            inputs.split = self._planned("split")
            inputs.member = self._planned(f"member_{member}")
        return inputs

    def _held_out(self) -> str | None:
        """Evaluations with frames that no member was trained on: ``member`` where the split has a test part."""
        if self._planned("split").base.attributes.get("counts")[0]["test"] > 0:
            return "member"
        return "external" if "test_dataset" in self.inputs else None

    def _evaluated(self, kind: str | None) -> dict[str, orm.Node]:
        """Parity data of one kind of evaluation, as ``member_<i>``."""
        names = {f"member_{member}": f"{kind}_{member}" for member in self.ctx.potentials}
        return {
            name: orm.load_node(self.ctx.parity[source]) for name, source in names.items() if source in self.ctx.parity
        }

    def _evidence(self, member: str) -> dict[str, orm.Node]:
        """What judges a potential."""
        name, external = f"member_{member}", f"external_{member}"
        found = {
            "errors": self.ctx.errors.get(name),
            "external": self.ctx.errors.get(external),
            "grades": self.ctx.grades.get(name),
            "calibration": self.ctx.calibrations.get(name),
        }
        return {kind: orm.load_node(uuid) for kind, uuid in found.items() if uuid is not None}

    def _options(self, stage: str) -> dict[str, Any]:
        options = self.inputs.get("options", {})
        return dict(options[stage].get_dict()) if stage in options else {}


# -- validation ------------------------------------------------------------------------------------------------


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        check_overrides(train_settings(value.get_dict()).model_dump())
    except MlipError as error:
        return str(error)
    return None


def _validate_positive(value: orm.Int, _: Any) -> str | None:
    return None if value.value >= 1 else f"must be at least 1, got {value.value}"


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What can be known before anything is submitted; a dataset still to come is checked by the plan."""
    if "settings" not in inputs or _validate_settings(inputs["settings"], None) is not None:
        return None  # reported by the port itself
    try:
        _check_inputs(inputs)
    except MlipError as error:
        return str(error)
    return None


def _check_inputs(inputs: Mapping[str, Any]) -> None:
    settings = train_settings(inputs["settings"].get_dict())
    initial = inputs.get("initial_potentials", {})
    members = [f"member_{member}" for member in range(settings.committee)]
    if unknown := sorted(set(initial) - {"all", *members}):
        raise InvalidInputError(
            f"initial_potentials: unknown {', '.join(unknown)}; known are all, {', '.join(members)}"
        )
    for potential in initial.values():
        check_initial_potential(potential, settings)
        with potential.open_package():
            pass
    if "dataset" not in inputs or inputs["dataset"].creator is not None:
        return  # it comes, or came, from a calculation: the plan checks it and says so with an exit code
    dataset = inputs["dataset"]
    for potential in initial.values():
        potential.check_species(dataset.species)
    planned_split(dataset, settings)
    if "test_dataset" in inputs:
        if missing := sorted(set(inputs["test_dataset"].species) - set(dataset.species)):
            raise SpeciesError(
                f"test_dataset has {', '.join(missing)}, but the training dataset only {', '.join(dataset.species)}"
            )
        fidelity = training_fidelity(dataset.frames(), settings.target)
        training_fidelity(inputs["test_dataset"].frames(), fidelity)
