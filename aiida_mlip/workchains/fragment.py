"""FragmentWorkChain: places that a large simulation does not know, cut out, completed, and how good that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ToContext, if_

from aiida_mlip.calculations.functions.embedding import carve_ladder, measure_embedding
from aiida_mlip.calculations.functions.fragment import carve_fragments
from aiida_mlip.calculations.options import options_validator
from aiida_mlip.calculations.relax_fragments import RelaxFragmentsCalculation
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.gate import gate_settings
from aiida_mlip.protocols.model import validate_spec
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.reasons import reason_of
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain


class FragmentWorkChain(SubmitOnceWorkChain):
    """Cut fragments out of large frames, relax their buffers, accept those that are still what they were cut for.

    Entry point ``aiida_mlip.fragment``. With ``gate``, the forces in the core are first labelled at growing buffers:
    the error of the embedding is measured, and the smallest buffer that is good enough is taken. The labels of the
    measurement are returned, they are labels like any others.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("frames", valid_type=DatasetData, help="Large frames.")
        spec.input(
            "grades",
            valid_type=orm.ArrayData,
            help="`frame_id` (n, 16) and `novelty` (a,), frame by frame.",
        )
        spec.input(
            "settings",
            valid_type=orm.Dict,
            validator=_validate_settings,
            help="How fragments are cut: see `aiida_mlip.protocols.fragment`.",
        )
        spec.input_namespace(
            "hosts",
            valid_type=orm.StructureData,
            dynamic=True,
            required=False,
            help="Crystals that fragments are completed to.",
        )
        spec.input(
            "potential",
            valid_type=PotentialData,
            required=False,
            help="With grades: relaxes the buffers and judges the fragments. Left out: they are taken as cut.",
        )
        spec.input(
            "codes.fragment", valid_type=orm.AbstractCode, required=False, help="The program aiida-mlip-fragment."
        )
        spec.input(
            "options",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(RelaxFragmentsCalculation),
            help="Options of its job. Default: one core.",
        )
        spec.input(
            "gate",
            valid_type=orm.Dict,
            required=False,
            validator=_validate_gate,
            help="How the embedding error is measured: see `aiida_mlip.protocols.gate`. Left out: it is not.",
        )
        spec.input(
            "reference",
            valid_type=DatasetData,
            required=False,
            help="Labelled frames: their measured costs say how much of the gate its `core_hours` allow.",
        )
        spec.input(
            "errors",
            valid_type=orm.Dict,
            required=False,
            help="Errors of the potential: its validation error is part of what the embedding error is held against.",
        )
        spec.expose_inputs(
            LabelWorkChain,
            namespace="label",
            exclude=("dataset",),
            namespace_options={"required": False, "populate_defaults": False, "help": "Labels of the measurement."},
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            if_(cls.should_measure)(
                cls.carve_ladder,
                if_(cls.should_relax)(
                    cls.relax,
                    cls.inspect_relax,
                ),
                if_(cls.has_fragments)(
                    cls.label,
                    cls.inspect_label,
                ),
                cls.measure,
            ),
            cls.carve,
            if_(cls.should_relax)(
                cls.relax,
                cls.inspect_relax,
            ),
            cls.finalize,
        )

        spec.output("fragments", valid_type=DatasetData, required=False, help="Fragments to label; none: no output.")
        spec.output("grades", valid_type=orm.ArrayData, required=False, help="Novelty grades of their atoms.")
        spec.output("summary", valid_type=orm.Dict, required=False, help="What was cut, and what was refused and why.")
        spec.output("accepted", valid_type=orm.Dict, required=False, help="What the relaxation of the buffers did.")
        spec.output("embedding", valid_type=orm.Dict, required=False, help="The measured embedding error.")
        spec.output("settings", valid_type=orm.Dict, required=False, help="Settings, with the buffer that was chosen.")
        spec.output("labelled", valid_type=DatasetData, required=False, help="Labels of the measurement.")
        spec.output("label_summary", valid_type=orm.Dict, required=False, help="What those labels cost.")

        spec.exit_code(300, "ERROR_CARVE_FAILED", message="No fragment could be cut. {reason}")
        spec.exit_code(301, "ERROR_RELAX_FAILED", message="The buffers could not be relaxed. {reason}")

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Begin with the settings that were given."""
        self.ctx.settings = self.inputs.settings.uuid
        self.ctx.fragments = None  # uuids of the fragments and their grades
        self.ctx.ladder = None
        self.ctx.accepted = None
        self.ctx.labelled = None
        self.ctx.measuring = False

    def should_measure(self) -> bool:
        """Whether the embedding error is wanted."""
        return "gate" in self.inputs

    def carve_ladder(self) -> ExitCode | None:
        """Cut the worst places at growing buffers."""
        self.ctx.measuring = True
        reference = {"reference": self.inputs.reference} if "reference" in self.inputs else {}
        outputs, node = carve_ladder.run_get_node(
            self.inputs.frames,
            self.inputs.grades,
            self.inputs.settings,
            self.inputs.gate,
            **reference,
            **self.inputs.get("hosts", {}),
            metadata={"call_link_label": "carve_ladder"},
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_CARVE_FAILED.format(reason=reason_of(node))
        self.ctx.ladder = outputs["summary"].uuid
        self._take(outputs)
        return None

    def should_relax(self) -> bool:
        """Whether there are fragments, and a potential to relax and judge them with."""
        return self.has_fragments() and "potential" in self.inputs

    def has_fragments(self) -> bool:
        """Whether anything was cut and accepted."""
        return self.ctx.fragments is not None

    def relax(self) -> ToContext:
        """Relax the buffers, and judge whether the fragments are what they were cut for."""
        fragments, grades = (orm.load_node(uuid) for uuid in self.ctx.fragments)
        builder = RelaxFragmentsCalculation.get_builder()
        builder.code = self.inputs.codes.fragment
        builder.potential = self.inputs.potential
        builder.fragments = fragments
        builder.grades = grades
        builder.settings = self.inputs.settings if self.ctx.measuring else orm.load_node(self.ctx.settings)
        if "options" in self.inputs:
            builder.metadata.options = {"resources": ONE_CORE, **self.inputs.options.get_dict()}
        builder.metadata.call_link_label = "relax_ladder" if self.ctx.measuring else "relax"
        return ToContext(relaxed=self.submit(builder))

    def inspect_relax(self) -> ExitCode | None:
        """Take the fragments that were accepted."""
        node = self.ctx.relaxed
        if "summary" not in node.outputs:
            return self.exit_codes.ERROR_RELAX_FAILED.format(reason=reason_of(node))
        if not node.is_finished_ok:
            self.report(f"{reason_of(node)}; what was done is taken")
        self.ctx.accepted = node.outputs.summary.uuid
        for entry in node.outputs.summary["fragments"]:
            if not entry["accepted"]:
                self.report(f"the fragment around atom {entry['centre']} is not taken: {entry['reason']}")
        self._take({name: node.outputs[name] for name in ("fragments", "grades") if name in node.outputs})
        return None

    def label(self) -> ToContext:
        """Label the ladder."""
        inputs = AttributeDict(self.exposed_inputs(LabelWorkChain, "label"))
        inputs.dataset = orm.load_node(self.ctx.fragments[0])
        inputs.setdefault("metadata", AttributeDict())["call_link_label"] = "label_ladder"
        return ToContext(labels=self.submit(LabelWorkChain, **inputs))

    def inspect_label(self) -> None:
        """Take the labels there are."""
        node = self.ctx.labels
        if not node.is_finished_ok:
            self.report(reason_of(node))
        if "summary" in node.outputs:
            self.out("label_summary", node.outputs.summary)
        if "dataset" in node.outputs:
            self.ctx.labelled = node.outputs.dataset.uuid
            self.out("labelled", node.outputs.dataset)

    def measure(self) -> ExitCode | None:
        """Read the embedding error off the labels, and choose the buffer."""
        self.ctx.measuring = False
        self.ctx.fragments = None
        if self.ctx.labelled is None:
            self.report("the embedding error could not be measured: there are no labels of fragments")
            return None
        optional = {"relaxed": orm.load_node(self.ctx.accepted)} if self.ctx.accepted else {}
        if "errors" in self.inputs:
            optional["errors"] = self.inputs.errors
        outputs, node = measure_embedding.run_get_node(
            self.inputs.settings,
            orm.load_node(self.ctx.ladder),
            orm.load_node(self.ctx.labelled),
            **optional,
            metadata={"call_link_label": "measure_embedding"},
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_CARVE_FAILED.format(reason=reason_of(node))
        self.out("embedding", outputs["embedding"])
        self.out("settings", outputs["settings"])
        self.ctx.settings, self.ctx.accepted = outputs["settings"].uuid, None
        found = outputs["embedding"].get_dict()
        if found["measured_ev_per_ang"] is not None:
            self.report(
                f"embedding error {found['measured_ev_per_ang']:.3f} eV/Å of "
                f"{found['tolerance_ev_per_ang']:.3f} allowed; "
                f"buffer {outputs['settings']['buffer_ang']:g} Å {found['reason']}"
            )
        else:
            self.report(f"the embedding error could not be measured: {found['reason']}")
        return None

    def carve(self) -> ExitCode | None:
        """Cut the worst surroundings out of the frames."""
        outputs, node = carve_fragments.run_get_node(
            self.inputs.frames,
            self.inputs.grades,
            orm.load_node(self.ctx.settings),
            **self.inputs.get("hosts", {}),
            metadata={"call_link_label": "carve"},
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_CARVE_FAILED.format(reason=reason_of(node))
        self.out("summary", outputs["summary"])
        for refusal in outputs["summary"]["refused"]:
            self.report(f"no fragment around atom {refusal['atom']}: {refusal['reason']}")
        self._take(outputs)
        return None

    def finalize(self) -> None:
        """Return what was accepted."""
        if self.ctx.accepted is not None:
            self.out("accepted", orm.load_node(self.ctx.accepted))
        if self.ctx.fragments is not None:
            fragments, grades = self.ctx.fragments
            self.out("fragments", orm.load_node(fragments))
            self.out("grades", orm.load_node(grades))

    # -- parts -------------------------------------------------------------------------------------------------

    def _take(self, outputs: Mapping[str, orm.Data]) -> None:
        there = "fragments" in outputs
        self.ctx.fragments = [outputs["fragments"].uuid, outputs["grades"].uuid] if there else None


def _validate_settings(value: orm.Dict | None, _: Any) -> str | None:
    try:
        validate_spec(FragmentSettings, {} if value is None else value.get_dict(), where="settings").limits()
    except MlipError as error:
        return str(error)
    return None


def _validate_gate(value: orm.Dict | None, _: Any) -> str | None:
    try:
        if value is not None:
            gate_settings(value.get_dict())
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What can be known before anything is submitted."""
    if "gate" in inputs and "label" not in inputs:
        return "label: missing, the embedding error is measured with labels"
    if "potential" in inputs:
        if "fragment" not in (inputs.get("codes") or {}):
            return "codes.fragment: missing, the potential relaxes the buffers with it"
        if inputs["potential"].joint:
            return "potential: a joint one runs nowhere by itself; make an ordinary one of it with aiida_mlip.bake"
        if not inputs["potential"].has_grades:
            return "potential: it has no grades, by which fragments are judged"
    if "settings" in inputs and _validate_settings(inputs["settings"], None) is None:
        wanted = validate_spec(FragmentSettings, inputs["settings"].get_dict(), where="settings")
        if wanted.completion == "crystal" and not inputs.get("hosts"):
            return "hosts: missing, settings.completion crystal needs the crystal"
    return None
