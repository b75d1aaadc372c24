"""DevelopWorkChain: from a few structures to a tested potential. Start reading here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, WorkChain, if_

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.protocols.model import check_name, validate_spec
from aiida_mlip.protocols.targets import Targets
from aiida_mlip.workchains.generate import GenerateWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.train import TrainWorkChain


class DevelopWorkChain(WorkChain):
    """Develop a potential: generate frames, label them with DFT, train, and report errors on held-out labels.

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
        spec.expose_inputs(TrainWorkChain, namespace="train", exclude=("dataset",))
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
            cls.finalize,
        )

        spec.expose_outputs(GenerateWorkChain, namespace="generate", namespace_options={"required": False})
        spec.output("dataset", valid_type=DatasetData, required=False, help="All frames with their labels.")
        spec.output("label_summary", valid_type=orm.Dict, required=False, help="Labels computed, reused and failed.")
        spec.output_namespace(
            "potentials", valid_type=PotentialData, required=False, dynamic=True, help="The committee."
        )
        spec.output("errors", valid_type=orm.Dict, required=False, help="Errors on train, validation and test frames.")
        spec.output("split", valid_type=orm.ArrayData, required=False, help="Which frame was used for what.")
        spec.output_namespace("parity", dynamic=True, required=False, help="Labels and predictions per member.")
        spec.output_namespace("curves", dynamic=True, required=False, help="Learning curves per member.")

        spec.exit_code(300, "ERROR_GENERATE_FAILED", message="No frames were generated.")
        spec.exit_code(301, "ERROR_LABEL_FAILED", message="No usable labels were computed.")
        spec.exit_code(302, "ERROR_TRAIN_FAILED", message="No potential was trained.")
        spec.exit_code(400, "ERROR_LABEL_INCOMPLETE", message="More labels failed than allowed; the rest is returned.")
        spec.exit_code(
            401,
            "ERROR_TRAIN_INCOMPLETE",
            message="Some potentials could not be trained, evaluated or judged; what there is is returned.",
        )
        spec.exit_code(500, "ERROR_TARGET_NOT_MET", message="The potential misses its targets: {missed}")

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
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with defaults of a protocol.

        :param structures: seed structures, unlabelled frames.
        :param codes: ``pw`` and/or ``ase`` for labels, ``train`` and ``evaluate`` for the potential; ``metadynamics``
            and ``explore`` for stages of the generation.
        :param fidelities: levels of theory, see :mod:`aiida_mlip.protocols.fidelity`.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: what differs from the protocol: ``generate`` (steps), ``label`` (ports, e.g.
            ``max_concurrent``), ``train`` (settings), ``train_options`` (scheduler options), ``targets``.
        :param generate_inputs: further ports of the generation: ``potential``, ``imports``, ``reference``, ``options``.
        :raises InvalidInputError: unknown protocol or key.
        """
        overrides = overrides or {}
        for key in overrides:
            check_name("key", key, ["generate", "label", "train", "train_options", "targets"], where="overrides")
        for key in overrides.get("label", {}):
            check_name("key", key, ["options", *LabelWorkChain.spec().inputs], where="overrides.label")
        if missing := {"train", "evaluate"} - set(codes):
            raise InvalidInputError(f"codes: {', '.join(sorted(missing))} missing; got {', '.join(sorted(codes))}")
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
                overrides=overrides.get("train"),
                options=overrides.get("train_options"),
            ),
        }
        for name, stage in stages.items():
            inputs = dict(stage._inputs(prune=True))
            inputs.pop("dataset", None)
            inputs.pop("metadata", None)
            builder[name] = inputs
        if targets := overrides.get("targets"):
            builder.targets = orm.Dict(dict(targets))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Start from the given dataset, if any."""
        self.ctx.dataset = self.inputs.dataset.uuid if "dataset" in self.inputs else None
        self.ctx.exit_code = None

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
            return self.exit_codes.ERROR_GENERATE_FAILED
        if not node.is_finished_ok:
            self.report(
                f"GenerateWorkChain<{node.pk}> [{node.exit_status}]: {node.exit_message}; going on with the rest"
            )
        self.ctx.dataset = node.outputs.dataset.uuid
        return None

    def run_label(self) -> ToContext:
        """Label every frame at every fidelity."""
        inputs = AttributeDict(self.exposed_inputs(LabelWorkChain, "label"))
        inputs.dataset = orm.load_node(self.ctx.dataset)
        inputs.metadata.call_link_label = "label"
        node = self.submit(LabelWorkChain, **inputs)
        self.report(f"labelling {len(inputs.dataset)} frames: LabelWorkChain<{node.pk}>")
        return ToContext(label=node)

    def inspect_label(self) -> ExitCode | None:
        """Take the labels; too many failures end the run after what was computed is returned."""
        node = self.ctx.label
        if "summary" in node.outputs:
            self.out("label_summary", node.outputs.summary)
        if "dataset" in node.outputs:
            self.ctx.dataset = node.outputs.dataset.uuid
            self.out("dataset", node.outputs.dataset)
        if node.is_finished_ok:
            return None
        self.report(f"LabelWorkChain<{node.pk}> failed with exit status {node.exit_status}: {node.exit_message}")
        if "dataset" in node.outputs:
            return self.exit_codes.ERROR_LABEL_INCOMPLETE
        return self.exit_codes.ERROR_LABEL_FAILED

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
        for name in ("potentials", "errors", "split", "parity", "curves"):
            if name in node.outputs:
                self.out(name, node.outputs[name])
        if node.is_finished_ok:
            return None
        self.report(f"TrainWorkChain<{node.pk}> failed with exit status {node.exit_status}: {node.exit_message}")
        if "potentials" in node.outputs:
            return self.exit_codes.ERROR_TRAIN_INCOMPLETE
        return self.exit_codes.ERROR_TRAIN_FAILED

    def finalize(self) -> ExitCode | None:
        """Compare the errors on held-out frames with the targets."""
        if "targets" not in self.inputs:
            return None
        errors = self.ctx.train.outputs.errors.get_dict().get("test", {})
        missed = validate_spec(Targets, self.inputs.targets.get_dict(), where="targets").missed(errors)
        if missed:
            self.report(f"targets missed: {'; '.join(missed)}")
            return self.exit_codes.ERROR_TARGET_NOT_MET.format(missed="; ".join(missed))
        return None


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
    return None
