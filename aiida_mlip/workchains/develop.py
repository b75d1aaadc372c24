"""DevelopWorkChain: from a few structures to a tested potential. Start reading here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, if_

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.protocols.model import check_name, validate_spec
from aiida_mlip.protocols.promote import check_promotion, joint_training, parse_promote
from aiida_mlip.protocols.targets import Targets
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.protocols.validate import parse_validate
from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain
from aiida_mlip.workchains.active_learning_forecast import Forecast, forecast
from aiida_mlip.workchains.generate import GenerateWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.label_fidelities import LabelFidelitiesWorkChain
from aiida_mlip.workchains.reasons import reason_of
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain
from aiida_mlip.workchains.train import TrainWorkChain
from aiida_mlip.workchains.validate import ValidateWorkChain
from aiida_mlip.workchains.validate_inputs import missing_library


class DevelopWorkChain(SubmitOnceWorkChain):
    """Develop a potential: generate frames, label them with DFT, train, learn actively, and report what it is worth.

    Entry point ``aiida_mlip.develop``. Whatever was reached is returned, also when a later stage fails.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.expose_inputs(
            GenerateWorkChain,
            namespace="generate",
            namespace_options={"required": False, "populate_defaults": False, "help": "How frames are made."},
        )
        spec.input(
            "dataset",
            valid_type=DatasetData,
            required=False,
            help="Existing frames, labelled or not, instead of generated ones.",
        )
        spec.expose_inputs(LabelWorkChain, namespace="label", exclude=("dataset",))
        spec.input(
            "promote",
            valid_type=orm.Dict,
            required=False,
            help="With several fidelities: which frames get the dear label, see `aiida_mlip.protocols.promote`; left "
            "out: every frame is labelled at every fidelity.",
        )
        spec.expose_inputs(TrainWorkChain, namespace="train", exclude=("dataset",))
        spec.expose_inputs(
            ActiveLearningWorkChain,
            namespace="active_learning",
            exclude=("dataset", "potentials", "joint_potentials", "explored", "train", "label", "validate"),
            namespace_options={
                "required": False,
                "populate_defaults": False,
                "help": "Where simulations lead; left out: no active learning. Labels and trainings are as above.",
            },
        )
        spec.expose_inputs(
            ValidateWorkChain,
            namespace="validate",
            exclude=("potentials", "subject"),
            namespace_options={
                "required": False,
                "populate_defaults": False,
                "validator": None,
                "help": "Properties of the last potentials beside those of DFT; left out: none.",
            },
        )
        spec.input(
            "targets",
            valid_type=orm.Dict,
            required=False,
            validator=_validate_targets,
            help="Errors on held-out frames that the potential must reach, e.g. `force_rmse_relative: 0.15`.",
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            if_(cls.should_generate)(
                cls.run_generate,
                cls.inspect_generate,
            ),
            cls.run_label,
            cls.inspect_label,
            cls.run_train,
            cls.inspect_train,
            if_(cls.should_learn_actively)(
                cls.run_active_learning,
                cls.inspect_active_learning,
            ),
            if_(cls.should_validate)(
                cls.run_validate,
                cls.inspect_validate,
            ),
            cls.finalize,
        )

        spec.expose_outputs(GenerateWorkChain, namespace="generate", namespace_options={"required": False})
        spec.output("dataset", valid_type=DatasetData, required=False, help="All frames with their labels.")
        spec.output("label_summary", valid_type=orm.Dict, required=False, help="Labels computed, reused and failed.")
        spec.output_namespace(
            "potentials", valid_type=PotentialData, required=False, dynamic=True, help="The committee."
        )
        spec.output_namespace(
            "joint_potentials",
            valid_type=PotentialData,
            required=False,
            dynamic=True,
            help="Of several fidelities, which those are baked from.",
        )
        spec.output("allocation", valid_type=orm.Dict, required=False, help="Which frames got the dear label, and why.")
        spec.output("errors", valid_type=orm.Dict, required=False, help="Errors on train, validation and test frames.")
        spec.output("split", valid_type=orm.ArrayData, required=False, help="Which frame was used for what.")
        spec.output_namespace("parity", dynamic=True, required=False, help="Labels and predictions per member.")
        spec.output_namespace("curves", dynamic=True, required=False, help="Learning curves per member.")

        spec.output(
            "history", valid_type=orm.Dict, required=False, help="Rounds of active learning, verdict, evidence."
        )
        spec.output("properties", valid_type=orm.Dict, required=False, help="Properties of the potentials and of DFT.")
        spec.output("verdict", valid_type=orm.Dict, required=False, help="Which properties hold.")
        spec.output("embedding", valid_type=orm.Dict, required=False, help="Measured embedding error of fragments.")

        spec.exit_code(300, "ERROR_GENERATE_FAILED", message="No frames were generated.")
        spec.exit_code(301, "ERROR_LABEL_FAILED", message="No usable labels were computed.")
        spec.exit_code(302, "ERROR_TRAIN_FAILED", message="No potential was trained.")
        spec.exit_code(400, "ERROR_LABEL_INCOMPLETE", message="More labels failed than allowed; the rest is returned.")
        spec.exit_code(
            401,
            "ERROR_TRAIN_INCOMPLETE",
            message="Some potentials could not be trained, evaluated or judged; what there is is returned.",
        )
        spec.exit_code(
            402,
            "ERROR_ACTIVE_LEARNING_FAILED",
            message="Active learning failed; what was reached is returned. {reason}",
        )
        spec.exit_code(
            403, "ERROR_VALIDATE_FAILED", message="The properties could not be computed; the rest is returned. {reason}"
        )
        spec.exit_code(500, "ERROR_TARGET_NOT_MET", message="The potential misses its targets: {missed}")
        spec.exit_code(
            501, "ERROR_NOT_CONVERGED", message="Active learning ended before the potential was certain: {evidence}"
        )
        spec.exit_code(502, "ERROR_PROPERTIES_MISSED", message="Properties of the potential miss: {missed}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        structures: DatasetData,
        *,
        codes: Mapping[str, orm.AbstractCode],
        fidelities: Mapping[str, Any],
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        generate_inputs: Mapping[str, Any] | None = None,  # Any: nodes, or plain values of ports
        active_learning: Mapping[str, Any] | None = None,
        validate: Mapping[str, Any] | None = None,
        promote: Mapping[str, Any] | None = None,
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with defaults of a protocol.

        :param structures: seed structures, unlabelled frames.
        :param codes: ``pw`` and/or ``ase`` for labels, ``train`` and ``evaluate`` for the potential; ``metadynamics``
            and ``explore`` for stages of the generation; ``explore`` and ``fragment`` for active learning.
        :param fidelities: levels of theory, cheap first, see :mod:`aiida_mlip.protocols.fidelity`. Of several the
            training learns from all, for the last one, unless ``overrides`` say otherwise.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: what differs from the protocol: ``generate`` (steps), ``label`` (ports, e.g.
            ``max_concurrent``), ``train`` (settings), ``train_options`` (scheduler options), ``targets``.
        :param generate_inputs: further ports of the generation: ``potential``, ``imports``, ``reference``, ``options``.
        :param active_learning: ``explorations`` (by name ``structures`` and ``spec``), ``settings`` and ``hosts`` (by
            name a crystal), as
            :meth:`~aiida_mlip.workchains.active_learning.ActiveLearningWorkChain.get_builder_from_protocol` takes them.
        :param validate: ``structures`` (crystals, a dataset or structure) and ``settings`` (what differs from the
            protocol, see :mod:`aiida_mlip.protocols.validate`). The reference is the dear one of ``fidelities``.
        :param promote: of several fidelities, which frames get the dear label, see :mod:`aiida_mlip.protocols.promote`;
            None: every frame is labelled at every fidelity.
        :raises InvalidInputError: unknown protocol or key.
        """
        overrides = overrides or {}
        for key in overrides:
            check_name("key", key, ["generate", "label", "train", "train_options", "targets"], where="overrides")
        for key in overrides.get("label", {}):
            check_name("key", key, ["options", *LabelWorkChain.spec().inputs], where="overrides.label")
        if missing := {"train", "evaluate"} - set(codes):
            raise InvalidInputError(f"codes: {', '.join(sorted(missing))} missing; got {', '.join(sorted(codes))}")
        train = joint_training(overrides.get("train"), list(fidelities))
        builder = cls.get_builder()
        stages: dict[str, Any] = {
            "generate": GenerateWorkChain.get_builder_from_protocol(
                structures=structures,
                protocol=protocol,
                overrides=overrides.get("generate"),
                codes=codes,
                fidelities=fidelities,
                **dict(generate_inputs or {}),
            ),
            "label": LabelWorkChain.get_builder_from_protocol(
                dataset=structures,
                codes={name: codes[name] for name in ("pw", "ase") if name in codes},
                fidelities=fidelities,
                protocol=protocol,
                **overrides.get("label", {}),
            ),
            "train": TrainWorkChain.get_builder_from_protocol(
                dataset=structures,
                codes={name: codes[name] for name in ("train", "evaluate")},
                protocol=protocol,
                overrides=train,
                options=overrides.get("train_options"),
            ),
        }
        if active_learning is not None:
            for key in active_learning:
                check_name("key", key, ["explorations", "settings", "hosts"], where="active_learning")
            chosen = active_learning.get("settings", {})
            stages["active_learning"] = learning = ActiveLearningWorkChain.get_builder_from_protocol(
                structures,
                codes=codes,
                fidelities=fidelities,
                explorations=active_learning.get("explorations", {}),
                protocol=protocol,
                overrides={
                    "settings": {**({} if promote is None else {"promote": dict(promote)}), **chosen},
                },
            )
            if hosts := active_learning.get("hosts"):
                learning.hosts = dict(hosts)
        if validate is not None:
            for key in validate:
                check_name("key", key, ["structures", "settings"], where="validate")
            target = train.get("fidelity", list(fidelities)[-1])
            stages["validate"] = ValidateWorkChain.get_builder_from_protocol(
                validate["structures"],
                codes=codes,
                reference={target: fidelities[target]},
                protocol=protocol,
                overrides=validate.get("settings"),
                label={key: value for key, value in overrides.get("label", {}).items() if key in _OF_REFERENCE},
            )
        for name, stage in stages.items():
            inputs = dict(stage._inputs(prune=True))
            inputs.pop("dataset", None)
            inputs.pop("metadata", None)
            if name == "active_learning":
                inputs = {key: value for key, value in inputs.items() if key not in ("train", "label")}
            builder[name] = inputs
        if promote is not None:
            builder.promote = orm.Dict(parse_promote(promote, list(fidelities)).model_dump())
        if targets := overrides.get("targets"):
            builder.targets = orm.Dict(dict(targets))
        return builder

    @staticmethod
    def forecast_active_learning(builder: Any) -> Forecast | None:  # Any: a ProcessBuilder
        """What the active learning of a job may take; None where there is none."""
        if not (learning := dict(builder["active_learning"])).get("explorations"):
            return None
        return forecast({**learning, "label": builder["label"], "train": builder["train"]})

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Start from the given dataset, if any."""
        self.ctx.dataset = self.inputs.dataset.uuid if "dataset" in self.inputs else None
        self.ctx.reached = {}  # name of an output -> uuid, or uuids by name

    def should_generate(self) -> bool:
        """Whether frames are to be generated."""
        return "generate" in self.inputs

    def run_generate(self) -> ToContext:
        """Generate frames from the seed structures."""
        inputs = AttributeDict(self.exposed_inputs(GenerateWorkChain, "generate"))
        inputs.metadata.call_link_label = "generate"
        node = self.submit(GenerateWorkChain, **inputs)
        self.report(f"generating frames: GenerateWorkChain<{node.pk}>")
        return ToContext(generate=node)

    def inspect_generate(self) -> ExitCode | None:
        """Take the generated frames, merged with the given ones."""
        node = self.ctx.generate
        self.out_many(self.exposed_outputs(node, GenerateWorkChain, namespace="generate"))
        if "dataset" not in node.outputs:
            self.report(f"GenerateWorkChain<{node.pk}> failed with exit status {node.exit_status}: {node.exit_message}")
            return self._end(self.exit_codes.ERROR_GENERATE_FAILED)
        if not node.is_finished_ok:
            self.report(
                f"GenerateWorkChain<{node.pk}> [{node.exit_status}]: {node.exit_message}; going on with the rest"
            )
        self.ctx.dataset = node.outputs.dataset.uuid
        return None

    def run_label(self) -> ToContext:
        """Label every frame at every fidelity, or a part of them at the dear one."""
        process, inputs = LabelWorkChain, AttributeDict(self.exposed_inputs(LabelWorkChain, "label"))
        if "promote" in self.inputs:
            process, inputs = LabelFidelitiesWorkChain, AttributeDict({"label": inputs, "promote": self.inputs.promote})
        inputs.dataset = orm.load_node(self.ctx.dataset)
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = "label"
        node = self.submit(process, **inputs)
        self.report(f"labelling {len(inputs.dataset)} frames: {node.process_label}<{node.pk}>")
        return ToContext(label=node)

    def inspect_label(self) -> ExitCode | None:
        """Take the labels; too many failures end the run after what was computed is returned."""
        node = self.ctx.label
        self._reach("label_summary", node, "summary")
        self._reach("allocation", node)
        self._reach("dataset", node)
        if "dataset" in node.outputs:
            self.ctx.dataset = node.outputs.dataset.uuid
        if node.is_finished_ok:
            return None
        self.report(f"{reason_of(node)} (exit status {node.exit_status})")
        if "dataset" in node.outputs:
            return self._end(self.exit_codes.ERROR_LABEL_INCOMPLETE)
        return self._end(self.exit_codes.ERROR_LABEL_FAILED)

    def run_train(self) -> ToContext:
        """Train the committee on the labelled frames and evaluate it on held-out ones."""
        inputs = AttributeDict(self.exposed_inputs(TrainWorkChain, "train"))
        inputs.dataset = orm.load_node(self.ctx.dataset)
        inputs.metadata.call_link_label = "train"
        node = self.submit(TrainWorkChain, **inputs)
        self.report(f"training on DatasetData<{inputs.dataset.pk}>: TrainWorkChain<{node.pk}>")
        return ToContext(train=node)

    def inspect_train(self) -> ExitCode | None:
        """Take the potentials, their errors and curves."""
        node = self.ctx.train
        for name in ("potentials", "joint_potentials", "errors", "split", "parity", "curves"):
            self._reach(name, node)
        if node.is_finished_ok:
            return None
        self.report(f"TrainWorkChain<{node.pk}> failed with exit status {node.exit_status}: {node.exit_message}")
        if "potentials" in node.outputs:
            return self._end(self.exit_codes.ERROR_TRAIN_INCOMPLETE)
        return self._end(self.exit_codes.ERROR_TRAIN_FAILED)

    def should_learn_actively(self) -> bool:
        """Whether simulations are to be run and learned from."""
        return "active_learning" in self.inputs

    def run_active_learning(self) -> ToContext:
        """Explore with the committee, label what it does not know, learn it."""
        inputs = AttributeDict(self.exposed_inputs(ActiveLearningWorkChain, "active_learning"))
        inputs.dataset = orm.load_node(self.ctx.dataset)
        inputs.potentials = {name: node for name, node in self.ctx.train.outputs.potentials.items() if node.has_grades}
        if "joint_potentials" in self.ctx.train.outputs:
            joint = self.ctx.train.outputs.joint_potentials
            inputs.joint_potentials = {name: joint[name] for name in inputs.potentials if name in joint}
        inputs.train = self.exposed_inputs(TrainWorkChain, "train")
        inputs.label = self.exposed_inputs(LabelWorkChain, "label")
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = "active_learning"
        node = self.submit(ActiveLearningWorkChain, **inputs)
        self.report(f"active learning: ActiveLearningWorkChain<{node.pk}>")
        return ToContext(active_learning=node)

    def inspect_active_learning(self) -> ExitCode | None:
        """Take what it learned; that it did not come to its end within the budget is a finding, not a failure."""
        node = self.ctx.active_learning
        for name in ("dataset", "potentials", "joint_potentials", "errors", "history", "embedding"):
            self._reach(name, node)
        if node.is_finished_ok or node.exit_status in _UNCERTAIN:
            self.report(f"active learning: {node.outputs.history['verdict']}: {node.outputs.history['evidence']}")
            return None
        reason = f"ActiveLearningWorkChain<{node.pk}>: {node.exit_message or node.process_state}"
        self.report(reason)
        return self._end(self.exit_codes.ERROR_ACTIVE_LEARNING_FAILED.format(reason=reason))

    def should_validate(self) -> bool:
        """Whether properties are wanted."""
        return "validate" in self.inputs

    def run_validate(self) -> ToContext:
        """Compute properties with the potentials and with DFT."""
        inputs = AttributeDict(self.exposed_inputs(ValidateWorkChain, "validate"))
        inputs.potentials = {name: orm.load_node(uuid) for name, uuid in self.ctx.reached["potentials"].items()}
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = "validate"
        node = self.submit(ValidateWorkChain, **inputs)
        self.report(f"properties: ValidateWorkChain<{node.pk}>")
        return ToContext(validate=node)

    def inspect_validate(self) -> ExitCode | None:
        """Take the properties; one that is missed is a result."""
        node = self.ctx.validate
        for name in ("properties", "verdict"):
            self._reach(name, node)
        if "verdict" in node.outputs:
            return None
        reason = f"ValidateWorkChain<{node.pk}>: {node.exit_message or node.process_state}"
        self.report(reason)
        return self._end(self.exit_codes.ERROR_VALIDATE_FAILED.format(reason=reason))

    def finalize(self) -> ExitCode | None:
        """Return everything, compare the errors on held-out frames with the targets, and say how it ended."""
        if "targets" in self.inputs:
            errors = orm.load_node(self.ctx.reached["errors"]).get_dict().get("test", {})
            missed = validate_spec(Targets, self.inputs.targets.get_dict(), where="targets").missed(errors)
            if missed:
                self.report(f"targets missed: {'; '.join(missed)}")
                return self._end(self.exit_codes.ERROR_TARGET_NOT_MET.format(missed="; ".join(missed)))
        if "history" in self.ctx.reached:
            history = orm.load_node(self.ctx.reached["history"])
            if history["verdict"] != "converged":
                return self._end(
                    self.exit_codes.ERROR_NOT_CONVERGED.format(evidence=f"{history['verdict']}: {history['evidence']}")
                )
        if "verdict" in self.ctx.reached:
            verdict = orm.load_node(self.ctx.reached["verdict"])
            if verdict["missed"]:
                return self._end(self.exit_codes.ERROR_PROPERTIES_MISSED.format(missed="; ".join(verdict["missed"])))
        return self._end(None)

    # -- parts -------------------------------------------------------------------------------------------------

    def _reach(self, name: str, node: orm.ProcessNode, output: str | None = None) -> None:
        """Note an output of a stage; that of a later stage takes its place."""
        output = output or name
        if output not in node.outputs:
            return
        found = node.outputs[output]
        self.ctx.reached[name] = (
            found.uuid if isinstance(found, orm.Data) else {key: each.uuid for key, each in found.items()}
        )

    def _end(self, code: ExitCode | None) -> ExitCode | None:
        """Return everything that was reached, and end."""
        for name, uuid in self.ctx.reached.items():
            if isinstance(uuid, str):
                self.out(name, orm.load_node(uuid))
            else:
                for key, each in uuid.items():
                    self.out(f"{name}.{key}", orm.load_node(each))
        return code


#: Ports of the labelling that those of the reference follow.
_OF_REFERENCE: Final[tuple[str, ...]] = ("max_concurrent", "options")
#: Exit statuses of active learning that ended in order, before the potential was certain.
_UNCERTAIN: Final[frozenset[int]] = frozenset(
    ActiveLearningWorkChain.exit_codes[name].status for name in ("ERROR_BUDGET", "ERROR_STALLED")
)


def _validate_targets(value: orm.Dict, _: Any) -> str | None:
    try:
        validate_spec(Targets, value.get_dict(), where="targets")
    except InvalidInputError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    if "generate" not in inputs and "dataset" not in inputs:
        return "nothing to work on: give `generate` (how to make frames), `dataset` (existing frames), or both"
    if "generate" in inputs and "dataset" in inputs:
        return "give either `generate` (frames to be made) or `dataset` (existing frames), not both"
    if "promote" in inputs and "fidelities" in inputs.get("label", {}) and "settings" in inputs.get("train", {}):
        try:
            training = train_settings(inputs["train"]["settings"].get_dict())
            check_promotion(inputs["promote"].get_dict(), list(inputs["label"]["fidelities"].get_dict()), training)
        except InvalidInputError as error:
            return str(error)
    if "settings" in (validation := inputs.get("validate") or {}):
        try:
            problem = missing_library(parse_validate(validation["settings"].get_dict()))
        except InvalidInputError as error:
            problem = str(error)
        return None if problem is None else f"validate.{problem}"
    return None
