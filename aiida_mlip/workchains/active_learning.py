"""ActiveLearningWorkChain: train, explore, select what the potential does not know, label it, and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, if_, while_

from aiida_mlip.calculations.functions.active_learning import (
    gather_candidates,
    plan_active_learning,
    plan_promotion,
    plan_selection,
    record_round,
)
from aiida_mlip.calculations.functions.dataset import merge_datasets
from aiida_mlip.calculations.functions.select import select
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.rounds import Round, may_train
from aiida_mlip.protocols.active_learning import ActiveLearningSettings, active_learning_settings
from aiida_mlip.protocols.explore import resolved_spec
from aiida_mlip.protocols.model import check_name
from aiida_mlip.protocols.promote import joint_training
from aiida_mlip.workchains.active_learning_forecast import forecast
from aiida_mlip.workchains.active_learning_inputs import EXPLORATION, validate_inputs, validate_settings
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.fragment import FragmentWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.label_fidelities import LabelFidelitiesWorkChain
from aiida_mlip.workchains.reasons import reason_of
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain
from aiida_mlip.workchains.train import TrainWorkChain
from aiida_mlip.workchains.validate import ValidateWorkChain


class ActiveLearningWorkChain(SubmitOnceWorkChain):
    """Learn where simulations lead: rounds of training, exploration, selection and labelling, to a stated verdict.

    Entry point ``aiida_mlip.active_learning``. Whatever was reached is returned, however it ends: the dataset with all
    labels, the potentials of the last training, and the history of the rounds with verdict and evidence.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Labelled frames to begin with.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            validator=validate_settings,
            help="Mode, budgets, selection: see `aiida_mlip.protocols.active_learning`.",
        )
        spec.input_namespace(
            "potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="A committee trained on the dataset, `member_<i>`: the first round begins with exploring.",
        )
        spec.input_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="Of several fidelities, which those potentials are baked from: what the next training starts from.",
        )
        spec.input_namespace(
            "explorations",
            dynamic=True,
            help="By name: `structures`, `spec` (with a `watch`, see `aiida_mlip.protocols.explore`), and where wanted "
            "`engine_input` and `options`.",
        )
        spec.input_namespace(
            "hosts",
            valid_type=orm.StructureData,
            dynamic=True,
            required=False,
            help="Crystals that fragments are completed to.",
        )
        spec.input_namespace(
            "explored",
            dynamic=True,
            required=False,
            help="Frames that were explored before, by name of the exploration: `frames` and their `grades`. The first "
            "round takes them instead of exploring.",
        )
        spec.input("codes.explore", valid_type=orm.AbstractCode, help="The program aiida-mlip-explore.")
        spec.input(
            "codes.fragment",
            valid_type=orm.AbstractCode,
            required=False,
            help="The program aiida-mlip-fragment. Left out: fragments are taken as cut, neither relaxed nor judged.",
        )
        spec.expose_inputs(TrainWorkChain, namespace="train", exclude=("dataset", "initial_potentials"))
        spec.expose_inputs(LabelWorkChain, namespace="label", exclude=("dataset",))
        spec.expose_inputs(
            ValidateWorkChain,
            namespace="validate",
            exclude=("potentials", "subject"),
            namespace_options={
                "required": False,
                "populate_defaults": False,
                "validator": None,
                "help": "Properties that must hold before it is called converged; left out: none.",
            },
        )
        spec.inputs.validator = validate_inputs

        spec.outline(
            cls.setup,
            cls.plan,
            while_(cls.should_go_on)(
                if_(cls.should_train)(
                    cls.run_train,
                    cls.inspect_train,
                ),
                if_(cls.should_explore)(
                    cls.run_explore,
                    cls.inspect_explore,
                ),
                if_(cls.should_cut)(
                    cls.run_fragment,
                    cls.inspect_fragment,
                ),
                if_(cls.has_candidates)(
                    cls.run_select,
                ),
                if_(cls.has_selected)(
                    cls.run_label,
                    cls.inspect_label,
                ),
                if_(cls.has_labels)(
                    cls.merge,
                ),
                if_(cls.should_validate)(
                    cls.run_validate,
                    cls.inspect_validate,
                ),
                cls.record,
            ),
            if_(cls.should_train_last)(
                cls.run_train,
                cls.inspect_train,
            ),
            cls.finalize,
        )

        spec.output("dataset", valid_type=DatasetData, required=False, help="All frames with their labels.")
        spec.output_namespace(
            "potentials", valid_type=PotentialData, required=False, dynamic=True, help="The last committee."
        )
        spec.output_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            required=False,
            dynamic=True,
            help="Of several fidelities, which those are baked from.",
        )
        spec.output("errors", valid_type=orm.Dict, required=False, help="Errors of the last training.")
        spec.output("embedding", valid_type=orm.Dict, required=False, help="Measured embedding error of fragments.")
        spec.output("properties", valid_type=orm.Dict, required=False, help="Properties of the last committee.")
        spec.output("history", valid_type=orm.Dict, required=False, help="Rounds, verdict and evidence.")

        spec.exit_code(200, "ERROR_INVALID_INPUT", message="The settings cannot be used: {reason}")
        spec.exit_code(300, "ERROR_TRAIN_FAILED", message="Round {number}: no potential with grades was trained.")
        spec.exit_code(301, "ERROR_EXPLORE_FAILED", message="Round {number}: no exploration gave a result. {reason}")
        spec.exit_code(302, "ERROR_STEP_FAILED", message="Round {number}: {reason}")
        spec.exit_code(500, "ERROR_BUDGET", message="A budget is spent before the potential was certain: {evidence}")
        spec.exit_code(501, "ERROR_STALLED", message="Further rounds would not help: {evidence}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        dataset: DatasetData,
        *,
        codes: Mapping[str, orm.AbstractCode],
        fidelities: Mapping[str, Any],
        explorations: Mapping[str, Mapping[str, Any]],
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with the defaults of a protocol written out.

        :param dataset: labelled frames to begin with.
        :param codes: ``explore``, ``train``, ``evaluate``, ``pw`` and/or ``ase`` for labels, and for fragments
            ``fragment``.
        :param fidelities: levels of theory, cheap first, see :mod:`aiida_mlip.protocols.fidelity`. Of several the
            training learns from all, unless ``overrides`` say otherwise.
        :param explorations: by name ``structures`` (DatasetData) and ``spec`` (plain mapping, see
            :mod:`aiida_mlip.protocols.explore`; a `watch` with its defaults is added where there is none).
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: what differs from the protocol: ``settings``, ``label`` (ports), ``train`` (settings),
            ``train_options`` (scheduler options).
        :raises InvalidInputError: unknown protocol or key, or a code that is missing.
        """
        overrides = overrides or {}
        for key in overrides:
            check_name("key", key, ["settings", "label", "train", "train_options"], where="overrides")
        if missing := {"explore", "train", "evaluate"} - set(codes):
            raise InvalidInputError(f"codes: {', '.join(sorted(missing))} missing; got {', '.join(sorted(codes))}")
        train = TrainWorkChain.get_builder_from_protocol(
            dataset,
            codes,
            protocol=protocol,
            overrides=joint_training(overrides.get("train"), list(fidelities)),
            options=overrides.get("train_options"),
        )
        label = LabelWorkChain.get_builder_from_protocol(
            dataset=dataset,
            codes={name: codes[name] for name in ("pw", "ase") if name in codes},
            fidelities=fidelities,
            protocol=protocol,
            **overrides.get("label", {}),
        )
        builder = cls.get_builder()
        builder.dataset = dataset
        settings = {**overrides.get("settings", {}), **({} if protocol is None else {"protocol": protocol})}
        builder.settings = orm.Dict(active_learning_settings(settings).model_dump())
        for name in ("explore", "fragment"):
            if name in codes:
                builder.codes[name] = codes[name]
        for name, stage in (("train", train), ("label", label)):
            inputs = dict(stage._inputs(prune=True))
            builder[name] = {key: value for key, value in inputs.items() if key not in ("dataset", "metadata")}
        builder.explorations = {
            name: {**given, "spec": orm.Dict(resolved_spec({"watch": {}, **given["spec"]}, protocol=protocol))}
            for name, given in explorations.items()
        }
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Begin with what was given."""
        self.ctx.dataset = self.inputs.dataset.uuid
        self.ctx.potentials = {name: node.uuid for name, node in self.inputs.get("potentials", {}).items()}
        self.ctx.joint = {name: node.uuid for name, node in self.inputs.get("joint_potentials", {}).items()}
        self.ctx.trained_on = self.ctx.dataset if self.ctx.potentials else None
        self.ctx.round = 0
        self.ctx.history = None
        self.ctx.verdict = "go_on"
        self.ctx.errors = None
        self.ctx.restarts = {}  # name of an exploration -> uuid of the checkpoint it goes on from
        self.ctx.parts = {}  # of the present round: name -> uuid
        self.ctx.found = {  # what is worth a label, by name of the exploration -> uuids of frames and grades
            name: [given["frames"].uuid, given["grades"].uuid]
            for name, given in self.inputs.get("explored", {}).items()
        }
        self.ctx.graded = {}  # grades of the frames that fragments were cut from
        self.ctx.labelled = {}  # labels of the present round, to be added to the dataset
        self.ctx.embedding = None
        self.ctx.properties = None
        self.ctx.calm = False  # whether no run of the round was stopped, and nothing was worth a label

    def plan(self) -> ExitCode | None:
        """Write the settings out, and what the campaign may take."""
        result, node = plan_active_learning.run_get_node(
            self.inputs.settings, self.inputs.label.fidelities, metadata={"call_link_label": "plan"}
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_INVALID_INPUT.format(reason=node.exit_message)
        self.ctx.plan = {name: value.uuid for name, value in result.items()}
        for line in forecast(self.inputs).lines():
            self.report(f"forecast: {line}")
        return None

    def should_go_on(self) -> bool:
        """Whether another round is wanted."""
        return bool(self.ctx.verdict == "go_on")

    def should_train(self) -> bool:
        """Whether the present potentials do not know all of the dataset."""
        return bool(self.ctx.trained_on != self.ctx.dataset)

    def should_train_last(self) -> bool:
        """Whether the last labels came after the last training, and another one stays within the budget."""
        rounds = [Round(**entry) for entry in orm.load_node(self.ctx.history)["rounds"]]
        caps = ActiveLearningSettings.model_validate(self._settings).caps
        return self.should_train() and may_train(rounds, caps)

    def run_train(self) -> ToContext:
        """Train the committee on all labels there are."""
        inputs = AttributeDict(self.exposed_inputs(TrainWorkChain, "train"))
        inputs.dataset = orm.load_node(self.ctx.dataset)
        if self.ctx.potentials and self._settings["warm_start"]:
            inputs.initial_potentials = self._joint_potentials() or self._potentials()
        label = self._label("train") if self.should_go_on() else "final_train"
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = label
        node = self.submit(TrainWorkChain, **inputs)
        self.report(f"round {self.ctx.round}: training on {len(inputs.dataset)} rows: TrainWorkChain<{node.pk}>")
        return ToContext(train=node)

    def inspect_train(self) -> ExitCode | None:
        """Take the potentials and their errors."""
        node = self.ctx.train
        usable = {name: one for name, one in _outputs(node, "potentials").items() if one.has_grades}
        if "errors" in node.outputs:
            self.ctx.errors = self.ctx.parts["errors"] = node.outputs.errors.uuid
        for name, summary in _outputs(node, "summaries").items():
            self.ctx.parts[f"training_{name}"] = summary.uuid
        if not usable:
            self.report(f"TrainWorkChain<{node.pk}> ended with exit status {node.exit_status}: {node.exit_message}")
            return self._end(self.exit_codes.ERROR_TRAIN_FAILED.format(number=self.ctx.round))
        self.ctx.potentials = {name: one.uuid for name, one in usable.items()}
        joint = _outputs(node, "joint_potentials")
        self.ctx.joint = {name: joint[name].uuid for name in usable if name in joint}
        self.ctx.trained_on = self.ctx.dataset
        return None

    def should_explore(self) -> bool:
        """Whether the round begins with exploring, not with frames that were given."""
        return self.ctx.round > 0 or not self.ctx.found

    def run_explore(self) -> None:
        """Run all explorations with the new potential; those that were stopped go on from where it was trusted."""
        members = self._potentials()
        driver = members.pop(min(members))
        for name, given in self.inputs.explorations.items():
            inputs = AttributeDict({key: given[key] for key in EXPLORATION if key in given})
            inputs.potential = driver
            if members and driver.calibration() is not None:
                inputs.committee = members
            if name in self.ctx.restarts:
                inputs.restart = orm.load_node(self.ctx.restarts[name])
            inputs.codes = {"explore": self.inputs.codes.explore}
            inputs.metadata = {"call_link_label": self._label(f"explore_{name}")}
            node = self.submit(ExploreWorkChain, **inputs)
            self.report(f"round {self.ctx.round}: exploring {name}: ExploreWorkChain<{node.pk}>")
            self.to_context(**{f"explore_{name}": node})

    def inspect_explore(self) -> ExitCode | None:
        """Take what the explorations found."""
        self.ctx.found = {}
        self.ctx.calm = True
        reasons = []
        for name in self.inputs.explorations:
            node = self.ctx[f"explore_{name}"]
            if "summary" not in node.outputs:
                reasons.append(f"{name}: exit status {node.exit_status}, {node.exit_message}")
                continue
            self.ctx.parts[f"exploration_{name}"] = node.outputs.summary.uuid
            if "selected" in node.outputs:
                self.ctx.found[name] = [node.outputs.selected.uuid, node.outputs.grades.uuid]
                self.ctx.parts[f"found_{name}"] = node.outputs.selected.uuid
            stopped = any(run["stopped_by"] != "finished" for run in node.outputs.summary["runs"])
            self.ctx.calm = self.ctx.calm and not stopped and "selected" not in node.outputs
            if stopped and "checkpoint" in node.outputs:
                self.ctx.restarts[name] = node.outputs.checkpoint.uuid
            else:
                self.ctx.restarts.pop(name, None)
        for reason in reasons:
            self.report(f"round {self.ctx.round}: {reason}")
        if len(reasons) == len(self.inputs.explorations):
            return self._end(
                self.exit_codes.ERROR_EXPLORE_FAILED.format(number=self.ctx.round, reason="; ".join(reasons))
            )
        return None

    def should_cut(self) -> bool:
        """Whether fragments are wanted, and there is something to cut them from."""
        return bool(self.ctx.found) and self._settings["mode"] == "fragments"

    def run_fragment(self) -> None:
        """Cut the worst surroundings out of the frames that were found; the first time, measure how good that is."""
        members = self._potentials()
        gate = self.ctx.plan.get("gate") if self.ctx.embedding is None else None
        for name, (frames, grades) in self.ctx.found.items():
            inputs = AttributeDict(
                {
                    "frames": orm.load_node(frames),
                    "grades": orm.load_node(grades),
                    "settings": orm.load_node(self.ctx.plan["fragment"]),
                    "hosts": dict(self.inputs.get("hosts", {})),
                    "metadata": {"call_link_label": self._label(f"fragment_{name}")},
                }
            )
            if "fragment" in self.inputs.codes:
                inputs.codes = {"fragment": self.inputs.codes.fragment}
                inputs.potential = members[min(members)]
            if gate is not None:
                inputs.gate = orm.load_node(gate)
                inputs.reference = orm.load_node(self.ctx.dataset)
                inputs.label = self.exposed_inputs(LabelWorkChain, "label")
                if "cheap" in self.ctx.plan:
                    inputs.label.fidelities = orm.load_node(self.ctx.plan["cheap"])
                if self.ctx.errors is not None:
                    inputs.errors = orm.load_node(self.ctx.errors)
                gate = None  # once
            node = self.submit(FragmentWorkChain, **inputs)
            self.report(f"round {self.ctx.round}: fragments of {name}: FragmentWorkChain<{node.pk}>")
            self.to_context(**{f"fragment_{name}": node})

    def inspect_fragment(self) -> ExitCode | None:
        """Take the fragments, and the measurement where there was one."""
        cut, reasons = {}, []
        for name, (_, grades) in self.ctx.found.items():
            node = self.ctx[f"fragment_{name}"]
            outputs = node.outputs
            if not node.is_finished_ok:
                reasons.append(f"{name}: FragmentWorkChain<{node.pk}>: {node.exit_message or node.process_state}")
            if "fragments" in outputs:
                cut[name] = [outputs.fragments.uuid, None]
                self.ctx.graded[name] = grades
            if "label_summary" in outputs:
                self.ctx.parts["labels_gate"] = outputs.label_summary.uuid
            if "labelled" in outputs and outputs.labelled.n_labels:
                self.ctx.labelled["gate"] = outputs.labelled.uuid
            if "embedding" in outputs:
                self.ctx.embedding = self.ctx.parts["embedding"] = outputs.embedding.uuid
                self.ctx.plan["fragment"] = outputs.settings.uuid
        for reason in reasons:
            self.report(f"round {self.ctx.round}: {reason}")
        if reasons and not cut:
            return self._end(self.exit_codes.ERROR_STEP_FAILED.format(number=self.ctx.round, reason="; ".join(reasons)))
        self.ctx.found = cut
        return None

    def has_candidates(self) -> bool:
        """Whether there is anything to choose from."""
        return bool(self.ctx.found)

    def run_select(self) -> ExitCode | None:
        """Choose what to label under the budget."""
        sources = {f"selected_{name}": orm.load_node(frames) for name, (frames, _) in self.ctx.found.items()}
        for name, (_, grades) in self.ctx.found.items():
            sources[f"grades_{name}"] = orm.load_node(grades or self.ctx.graded[name])
            if (summary := self.ctx.parts.get(f"exploration_{name}")) is not None:
                sources[f"summary_{name}"] = orm.load_node(summary)
        gathered, node = gather_candidates.run_get_node(
            reference=orm.load_node(self.ctx.dataset),
            **sources,
            metadata={"call_link_label": self._label("gather_candidates")},
        )
        if not node.is_finished_ok:
            return self._end(self._failed_step(node))
        counts = gathered.pop("counts")
        self.ctx.parts["counts"] = counts.uuid
        if "candidates" not in gathered:
            self.report(f"round {self.ctx.round}: all {counts['found']} candidates are labelled already")
            return None
        plan, node = plan_selection.run_get_node(
            orm.load_node(self.ctx.plan["settings"]),
            reference=orm.load_node(self.ctx.dataset),
            **self._spent(),
            metadata={"call_link_label": self._label("plan_selection")},
        )
        if not node.is_finished_ok:
            return self._end(self._failed_step(node))
        chosen, node = select.run_get_node(
            spec=plan,
            reference=orm.load_node(self.ctx.dataset),
            **gathered,
            metadata={"call_link_label": self._label("select")},
        )
        if node.is_finished_ok:
            self.ctx.parts["selection"] = chosen["summary"].uuid
            self.ctx.selected = chosen["dataset"].uuid
            return None
        self.report(f"round {self.ctx.round}: nothing was selected: {node.exit_message}")
        self.ctx.selected = None
        return None if node.exit_status == _NOTHING_LEFT else self._end(self._failed_step(node))

    def has_selected(self) -> bool:
        """Whether anything is to be labelled."""
        return bool(self.ctx.get("selected"))

    def run_label(self) -> ToContext | ExitCode:
        """Label what was chosen; where there are several fidelities, a part of it at the dear one."""
        process, inputs = LabelWorkChain, AttributeDict(self.exposed_inputs(LabelWorkChain, "label"))
        if "cheap" in self.ctx.plan:
            promote, node = plan_promotion.run_get_node(
                orm.load_node(self.ctx.plan["settings"]),
                **self._spent(),
                metadata={"call_link_label": self._label("plan_promotion")},
            )
            if not node.is_finished_ok:
                return self._end(self._failed_step(node))
            process, inputs = LabelFidelitiesWorkChain, AttributeDict({"label": inputs, "promote": promote})
            inputs.known = orm.load_node(self.ctx.dataset)
            inputs.joint_potentials = self._joint_potentials()
            inputs.codes = {"evaluate": self.inputs.train.codes.evaluate}
        inputs.dataset = orm.load_node(self.ctx.selected)
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = self._label("label")
        node = self.submit(process, **inputs)
        self.report(f"round {self.ctx.round}: labelling {len(inputs.dataset)} frames: {node.process_label}<{node.pk}>")
        return ToContext(label=node)

    def inspect_label(self) -> None:
        """Take the labels; some may have failed."""
        node = self.ctx.label
        self.ctx.selected = None
        if "summary" in node.outputs:
            self.ctx.parts["labels"] = node.outputs.summary.uuid
        if "allocation" in node.outputs:
            self.ctx.parts["allocation"] = node.outputs.allocation.uuid
        if not node.is_finished_ok:
            self.report(f"{reason_of(node)} (exit status {node.exit_status})")
        if "dataset" in node.outputs and node.outputs.dataset.n_labels:
            self.ctx.labelled["selected"] = node.outputs.dataset.uuid

    def has_labels(self) -> bool:
        """Whether the round gave any label."""
        return bool(self.ctx.labelled)

    def merge(self) -> ExitCode | None:
        """Add the labels of the round to the dataset."""
        parts = [self.ctx.dataset, *(self.ctx.labelled[name] for name in sorted(self.ctx.labelled))]
        measured = self.ctx.parts.get("embedding")
        merged, node = merge_datasets.run_get_node(
            **({} if measured is None else {"embedding": orm.load_node(measured)}),
            **{f"dataset_{i:04d}": orm.load_node(uuid) for i, uuid in enumerate(parts)},
            metadata={"call_link_label": self._label("merge")},
        )
        if not node.is_finished_ok:
            return self._end(self._failed_step(node))
        self.ctx.dataset = merged["dataset"].uuid
        return None

    def should_validate(self) -> bool:
        """Whether the round was calm, and properties have a say."""
        return bool(self.ctx.calm) and "validate" in self.inputs

    def run_validate(self) -> ToContext:
        """Compute the properties of the committee."""
        inputs = AttributeDict(self.exposed_inputs(ValidateWorkChain, "validate"))
        inputs.potentials = self._potentials()
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = self._label("validate")
        node = self.submit(ValidateWorkChain, **inputs)
        self.report(f"round {self.ctx.round}: properties: ValidateWorkChain<{node.pk}>")
        return ToContext(validate=node)

    def inspect_validate(self) -> ExitCode | None:
        """Take the verdict on the properties."""
        node = self.ctx.validate
        if "verdict" not in node.outputs:
            return self._end(self._failed_step(node))
        self.ctx.parts["properties"] = node.outputs.verdict.uuid
        self.ctx.properties = node.outputs.properties.uuid
        return None

    def record(self) -> ExitCode | None:
        """Write down what the round did, and judge whether to go on."""
        parts = {name: orm.load_node(uuid) for name, uuid in self.ctx.parts.items()}
        if self.ctx.history is not None:
            parts["history"] = orm.load_node(self.ctx.history)
        history, node = record_round.run_get_node(
            orm.load_node(self.ctx.plan["settings"]),
            orm.load_node(self.ctx.trained_on),
            **parts,
            metadata={"call_link_label": self._label("record")},
        )
        if not node.is_finished_ok:
            return self._end(self._failed_step(node))
        self.ctx.history, self.ctx.verdict = history.uuid, history["verdict"]
        self.report(f"round {self.ctx.round}: {history['verdict']}: {history['evidence']}")
        self.ctx.parts, self.ctx.labelled, self.ctx.found, self.ctx.graded = {}, {}, {}, {}
        self.ctx.round += 1
        return None

    def finalize(self) -> ExitCode | None:
        """Return everything, then say how it ended."""
        self._return_all()
        evidence = orm.load_node(self.ctx.history)["evidence"]
        if self.ctx.verdict == "budget":
            return self.exit_codes.ERROR_BUDGET.format(evidence=evidence)
        if self.ctx.verdict == "stalled":
            return self.exit_codes.ERROR_STALLED.format(evidence=evidence)
        return None

    # -- parts -------------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> dict[str, Any]:
        return dict(orm.load_node(self.ctx.plan["settings"]).get_dict())

    def _potentials(self) -> dict[str, PotentialData]:
        return {name: orm.load_node(uuid) for name, uuid in self.ctx.potentials.items()}

    def _joint_potentials(self) -> dict[str, PotentialData]:
        return {name: orm.load_node(uuid) for name, uuid in self.ctx.joint.items()}

    def _spent(self) -> dict[str, orm.Data]:
        """What says how much of the budget is spent."""
        spent = {"history": self.ctx.history, "labels_gate": self.ctx.parts.get("labels_gate")}
        return {name: orm.load_node(uuid) for name, uuid in spent.items() if uuid is not None}

    def _label(self, stage: str) -> str:
        return f"round_{self.ctx.round:02d}_{stage}"

    def _failed_step(self, node: orm.ProcessNode) -> ExitCode:
        return self.exit_codes.ERROR_STEP_FAILED.format(number=self.ctx.round, reason=reason_of(node))

    def _return_all(self) -> None:
        """Attach what was reached."""
        self.out("dataset", orm.load_node(self.ctx.dataset))
        for name, node in self._potentials().items():
            self.out(f"potentials.{name}", node)
        for name, node in self._joint_potentials().items():
            self.out(f"joint_potentials.{name}", node)
        for name in ("errors", "history", "embedding", "properties"):
            if self.ctx[name] is not None:
                self.out(name, orm.load_node(self.ctx[name]))

    def _end(self, code: ExitCode) -> ExitCode:
        """End with an exit code, with everything returned that was reached."""
        self._return_all()
        return code


#: Exit status of `select` when filters and budget leave nothing.
_NOTHING_LEFT: Final[int] = 314


def _outputs(node: orm.ProcessNode, namespace: str) -> dict[str, Any]:
    """Outputs of a namespace by name; none where there is no such namespace."""
    return dict(node.outputs[namespace]) if namespace in node.outputs else {}
