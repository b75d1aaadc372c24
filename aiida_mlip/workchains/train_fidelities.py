"""TrainFidelitiesWorkChain: ways to learn from labels of several fidelities, side by side and measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, if_, while_

from aiida_mlip.calculations.evaluate import EvaluateCalculation
from aiida_mlip.calculations.functions.train_fidelities import (
    correct_labels,
    plan_methods,
    tabulate_methods,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.methods_plan import plan_of
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.nequip_config import check_overrides
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.protocols.train_fidelities import METHODS, TRAININGS, check_methods, joint_settings, settings_of
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain
from aiida_mlip.workchains.train import TrainWorkChain

#: Outputs of a training that are used here.
_TAKEN = ("potentials", "joint_potentials", "calibrations", "errors", "summaries")
#: The method of each training.
_METHOD_OF = {training: method for method, trainings in TRAININGS.items() for training in trainings}


class TrainFidelitiesWorkChain(SubmitOnceWorkChain):
    """Train potentials on labels of several fidelities, by one method or by several that are then compared.

    Entry point ``aiida_mlip.train_fidelities``. The first of the ``methods`` gives the result, the others are
    baselines. Some rows at the target fidelity are held out first, with all that shares their lineage; every method
    learns from the same rest and is measured on the same rows. A baseline that fails does not fail the result.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.expose_inputs(TrainWorkChain, exclude=("initial_potentials",))
        spec.inputs["settings"].validator = _validate_settings
        spec.inputs[
            "settings"
        ].help = "As of aiida_mlip.train, with `multi_fidelity`; its `method` is set by `methods`."
        spec.inputs["test_dataset"].help = "Rows at the target to measure on, instead of `split.test` of the dataset."
        spec.input(
            "methods",
            valid_type=orm.List,
            default=lambda: orm.List(["embedding"]),
            validator=_validate_methods,
            serializer=orm.to_aiida_type,
            help=f"The first gives the result, the others are baselines: {', '.join(METHODS)}.",
        )
        spec.input(
            "fine_tune",
            valid_type=orm.Dict,
            required=False,
            help="Settings that differ in the second training of `fine_tune`, e.g. a lower learning rate.",
        )
        spec.input(
            "equal_steps",
            valid_type=orm.Bool,
            default=lambda: orm.Bool(True),
            serializer=orm.to_aiida_type,
            help="Trainings on fewer rows have as many more epochs: all make as many steps as the longest.",
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            cls.plan,
            while_(cls.has_trainings)(
                cls.run_train,
                cls.inspect_train,
                if_(cls.can_correct)(
                    cls.run_predict,
                    cls.inspect_predict,
                    cls.correct,
                ),
            ),
            cls.tabulate,
            cls.finalize,
        )

        spec.output("table", valid_type=orm.Dict, required=False, help="Errors, labels and seconds of each method.")
        spec.output_namespace(
            "potentials", valid_type=PotentialData, dynamic=True, required=False, help="Of the first method."
        )
        spec.output_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            dynamic=True,
            required=False,
            help="Of the first method, where it is `embedding`: those that know all fidelities, to be baked.",
        )
        spec.output_namespace(
            "calibrations", valid_type=orm.Dict, dynamic=True, required=False, help="Of the first method's committee."
        )
        spec.output("errors", valid_type=orm.Dict, required=False, help="Errors of the first method's training.")
        spec.output("test_dataset", valid_type=DatasetData, required=False, help="What all methods are measured on.")
        spec.output(
            "corrected_dataset",
            valid_type=DatasetData,
            required=False,
            help="Of `delta`: labels of the target, and cheap ones corrected by the learned difference.",
        )

        spec.exit_code(200, "ERROR_INVALID_INPUT", message="The methods cannot be compared: {reason}")
        spec.exit_code(300, "ERROR_NO_POTENTIAL", message="The method {method} gave no potential: {reason}")
        spec.exit_code(
            400,
            "ERROR_BASELINES_FAILED",
            message="The result is complete, but baselines could not be measured: {reason}",
        )
        spec.exit_code(
            401,
            "ERROR_RESULT_INCOMPLETE",
            message="The method {method} had problems; what there is is returned: {reason}",
        )

    @classmethod
    def get_builder_from_protocol(
        cls,
        dataset: DatasetData,
        codes: Mapping[str, orm.AbstractCode],
        *,
        methods: tuple[str, ...] = ("embedding",),
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with the settings of a protocol.

        :param dataset: labelled frames.
        :param codes: ``train`` (nequip-train) and ``evaluate`` (aiida-mlip-evaluate).
        :param methods: the first gives the result, the others are baselines.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: settings that differ from the protocol; ``multi_fidelity`` must be among them.
        :param options: scheduler options of the jobs, by ``train`` and ``evaluate``.
        :raises ProtocolError: unknown protocol, key or method; names the nearest valid one.
        """
        settings = dict(overrides or {})
        if protocol is not None:
            settings["protocol"] = protocol
        joint_settings(settings)
        builder = cls.get_builder()
        builder.dataset = dataset
        builder.settings = orm.Dict(settings)
        builder.methods = orm.List(list(check_methods(methods)))
        builder.codes = {name: codes[name] for name in ("train", "evaluate")}
        for name, values in (options or {}).items():
            builder.options[name] = orm.Dict(dict(values))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Start with nothing trained."""
        self.ctx.plan = {}
        self.ctx.waiting = []
        self.ctx.running = []
        self.ctx.trained = {}
        self.ctx.predicting = []
        self.ctx.predictions = {}
        self.ctx.corrected = None
        self.ctx.failed = []
        self.ctx.problems = {}

    def plan(self) -> ExitCode | None:
        """Hold out what all methods are measured on, and write out what each trains on."""
        given = {name: self.inputs[name] for name in ("fine_tune", "test_dataset") if name in self.inputs}
        result, node = plan_methods.run_get_node(
            dataset=self.inputs.dataset,
            settings=self.inputs.settings,
            methods=self.inputs.methods,
            equal_steps=self.inputs.equal_steps,
            **given,
            metadata={"call_link_label": "plan"},
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_INVALID_INPUT.format(reason=node.exit_message)
        self.ctx.plan = {name: value.uuid for name, value in result.items()}
        # methods of two trainings first: they take longest
        methods = sorted(self.inputs.methods.get_list(), key=lambda method: -len(TRAININGS[method]))
        self.ctx.waiting = [TRAININGS[method][0] for method in methods]
        self.out("test_dataset", self._test_dataset())
        return None

    def has_trainings(self) -> bool:
        """Whether a training is left."""
        return bool(self.ctx.waiting)

    def run_train(self) -> ToContext:
        """Train by the next methods side by side."""
        members = train_settings(self.inputs.settings.get_dict()).committee
        together = max(1, self.inputs.max_concurrent.value // members)
        self.ctx.running, self.ctx.waiting = self.ctx.waiting[:together], self.ctx.waiting[together:]
        for training in self.ctx.running:
            node = self.submit(TrainWorkChain, **self._training_inputs(training))
            self.report(f"{training}: TrainWorkChain<{node.pk}>")
            self.to_context(**{f"train_{training}": node})
        return ToContext()

    def inspect_train(self) -> None:
        """Take the potentials; a method's second training can begin where the first gave some."""
        for training in self.ctx.running:
            node, method = self.ctx[f"train_{training}"], _METHOD_OF[training]
            self.ctx.trained[training] = {port: _uuids(node.outputs[port]) for port in _TAKEN if port in node.outputs}
            if not node.is_finished_ok:
                text = f"{training}: TrainWorkChain<{node.pk}> ended with exit status {node.exit_status}: "
                self._note(method, text + str(node.exit_message), lost="potentials" not in node.outputs)
            if training == "pretrain" and method not in self.ctx.failed:
                self.ctx.waiting.append("fine_tune")
        self.ctx.running = []

    def can_correct(self) -> bool:
        """Whether the difference of the labels is learned, and cheap labels are still to be corrected."""
        return "difference" in self.ctx.trained and self.ctx.corrected is None and "delta" not in self.ctx.failed

    def run_predict(self) -> ToContext:
        """Predict the difference for all frames with a cheap label only."""
        potentials = self._found("difference", "potentials")
        self.ctx.predicting = sorted(potentials)
        for name in self.ctx.predicting:
            inputs = {
                "code": self.inputs.codes.evaluate,
                "potential": potentials[name],
                "dataset": self._planned("uncorrected"),
                "settings": self._planned("prediction"),
                "metadata": {"call_link_label": f"predict_{name}", "options": self._options("evaluate")},
            }
            node = self.submit(EvaluateCalculation, **inputs)
            self.report(f"predicting the difference with {name}: EvaluateCalculation<{node.pk}>")
            self.to_context(**{f"predict_{name}": node})
        return ToContext()

    def inspect_predict(self) -> None:
        """Take the predictions."""
        for name in self.ctx.predicting:
            node = self.ctx[f"predict_{name}"]
            if "parity" in node.outputs:
                self.ctx.predictions[name] = node.outputs.parity.uuid
            if not node.is_finished_ok:
                text = f"{name}: EvaluateCalculation<{node.pk}> failed with exit status {node.exit_status}: "
                self._note("delta", text + str(node.exit_message), lost=False)
        if not self.ctx.predictions:
            self._note("delta", "the difference could not be predicted", lost=True)

    def correct(self) -> None:
        """Add the predicted difference to the cheap labels."""
        if not self.ctx.predictions:
            return
        result, node = correct_labels.run_get_node(
            plan=self._planned("summary"),
            dataset=self._training_dataset(),
            uncorrected=self._planned("uncorrected"),
            **{name: orm.load_node(uuid) for name, uuid in self.ctx.predictions.items()},
            metadata={"call_link_label": "correct_labels"},
        )
        if not node.is_finished_ok:
            self._note("delta", f"correct_labels<{node.pk}>: {node.exit_message}", lost=True)
            return
        self.ctx.corrected = result.uuid
        self.ctx.waiting.append("delta")
        self.out("corrected_dataset", result)

    def tabulate(self) -> None:
        """Put errors, labels and seconds of all methods into one table."""
        evidence: dict[str, orm.Node] = {}
        for method in self.inputs.methods.get_list():
            *_, last = TRAININGS[method]
            errors = self._found(last, "errors")
            if "external" in (errors or {}):
                evidence[f"errors_{method}"] = errors
            elif method not in self.ctx.failed:
                self._note(method, f"{last}: its errors on the held-out rows could not be measured", lost=True)
            for name, potential in self._found(last, "potentials").items():
                evidence[f"potential_{method}_{name}"] = potential
            for training in TRAININGS[method]:
                for name, summary in self._found(training, "summaries").items():
                    evidence[f"summary_{training}_{name}"] = summary
        if any(name.startswith("errors_") for name in evidence):
            plan = self._planned("summary")
            self.out("table", tabulate_methods(plan=plan, **evidence, metadata={"call_link_label": "tabulate"}))

    def finalize(self) -> ExitCode | None:
        """Return what the first method gave."""
        first, *baselines = self.inputs.methods.get_list()
        *_, last = TRAININGS[first]
        for port in ("potentials", "joint_potentials", "calibrations"):
            for name, node in self._found(last, port).items():
                self.out(f"{port}.{name}", node)
        if errors := self._found(last, "errors"):
            self.out("errors", errors)
        reasons = {method: "; ".join(texts) for method, texts in self.ctx.problems.items()}
        if not self._found(last, "potentials"):
            return self.exit_codes.ERROR_NO_POTENTIAL.format(method=first, reason=reasons.get(first))
        if first in reasons:
            return self.exit_codes.ERROR_RESULT_INCOMPLETE.format(method=first, reason=reasons[first])
        if lost := [method for method in baselines if method in self.ctx.failed]:
            return self.exit_codes.ERROR_BASELINES_FAILED.format(reason="; ".join(reasons[method] for method in lost))
        return None

    # -- parts of steps ----------------------------------------------------------------------------------------

    def _note(self, method: str, text: str, *, lost: bool) -> None:
        """Remember what went wrong with a method, and whether nothing is to be had of it any more."""
        self.report(text)
        self.ctx.problems[method] = [*self.ctx.problems.get(method, []), text]
        if lost and method not in self.ctx.failed:
            self.ctx.failed.append(method)

    def _planned(self, name: str) -> orm.Node:
        return orm.load_node(self.ctx.plan[name])

    def _found(self, training: str, port: str) -> Any:  # Any: a node, or nodes by name
        """Output of a training; an empty mapping where it has none."""
        uuids = self.ctx.trained.get(training, {}).get(port, {})
        if isinstance(uuids, str):
            return orm.load_node(uuids)
        return {name: orm.load_node(uuid) for name, uuid in uuids.items()}

    def _test_dataset(self) -> DatasetData:
        return self.inputs.test_dataset if "test_dataset" in self.inputs else self._planned("test")

    def _training_dataset(self) -> DatasetData:
        """What the methods may learn from: all of the dataset where nothing had to be left out."""
        return self._planned("training") if "training" in self.ctx.plan else self.inputs.dataset

    def _training_inputs(self, training: str) -> AttributeDict:
        inputs = AttributeDict(self.exposed_inputs(TrainWorkChain))
        inputs.metadata = {"call_link_label": f"train_{training}"}
        inputs.settings = self._planned(f"settings_{training}")
        inputs.dataset = self._training_dataset()
        inputs.test_dataset = self._test_dataset()
        if training == "difference":
            inputs.dataset = self._planned("difference")
        elif training == "delta":
            inputs.dataset = orm.load_node(self.ctx.corrected)
        elif training == "fine_tune":
            first = self._found("pretrain", "potentials")
            inputs.initial_potentials = {"all": first[min(first)], **first}
        if training in ("pretrain", "difference"):  # at another fidelity than what is held out
            del inputs["test_dataset"]
        return inputs

    def _options(self, stage: str) -> dict[str, Any]:
        options = self.inputs.get("options", {})
        return dict(options[stage].get_dict()) if stage in options else {}


def _uuids(output: Any) -> Any:  # Any: of a node, or of nodes by name
    return output.uuid if isinstance(output, orm.Node) else {name: node.uuid for name, node in output.items()}


# -- validation ------------------------------------------------------------------------------------------------


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        settings, _, _ = joint_settings(value.get_dict())
        check_overrides(settings.model_dump())
    except MlipError as error:
        return str(error)
    return None


def _validate_methods(value: orm.List, _: Any) -> str | None:
    try:
        check_methods(value.get_list())
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What can be known before anything is submitted; a dataset still to come is checked by the plan."""
    if {"settings", "methods"} - set(inputs) or _validate_settings(inputs["settings"], None) is not None:
        return None  # reported by the port itself
    if _validate_methods(inputs["methods"], None) is not None:
        return None
    spec = inputs["settings"].get_dict()
    fine_tune = inputs["fine_tune"].get_dict() if "fine_tune" in inputs else None
    try:
        if fine_tune is not None:
            check_overrides(train_settings(settings_of("fine_tune", spec, low={}, fine_tune=fine_tune)).model_dump())
        if "dataset" in inputs and inputs["dataset"].creator is None:
            plan_of(
                inputs["dataset"].frames(),
                spec,
                check_methods(inputs["methods"].get_list()),
                fine_tune=fine_tune,
                test=inputs["test_dataset"].frames() if "test_dataset" in inputs else None,
            )
    except MlipError as error:
        return str(error)
    return None
