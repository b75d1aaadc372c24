"""ValidateWorkChain: properties of a potential against their reference, and one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import ExitCode, ProcessBuilder, if_

from aiida_mlip.calculations.evaluate import EvaluateCalculation
from aiida_mlip.calculations.functions.validate import (
    compare,
    make_property_frames,
    plan_validation,
    property_values,
    transfer_relaxed,
)
from aiida_mlip.calculations.options import options_validator
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.protocols.validate import resolved_validate
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.label_inputs import resolved_fidelities
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain
from aiida_mlip.workchains.validate_inputs import engine_of, structure_species, validate_inputs

REFERENCE: Final[str] = "reference"
#: Runs that one member of a committee does for all.
_RUNS: Final[tuple[str, ...]] = ("dynamics", "expansion", "order")


class ValidateWorkChain(SubmitOnceWorkChain):
    """Compute properties of crystals with a potential and with its reference, and judge the differences.

    Entry point ``aiida_mlip.validate``. What is validated: the committee in ``potentials`` (each member by itself:
    their spread is the error bar), or the level of theory in ``subject``. Every source has its own lattice constant.
    What is computed and what decides: :mod:`aiida_mlip.protocols.validate`.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("structures", valid_type=(DatasetData, orm.StructureData), help="Crystals, one or more.")
        spec.input("settings", valid_type=orm.Dict, help="Which properties, how, and what decides.")
        spec.input_namespace(
            "potentials", valid_type=PotentialData, required=False, dynamic=True, help="The committee to validate."
        )
        for name, text in (("subject", "Level of theory to validate, instead of potentials."), (REFERENCE, "Truth.")):
            spec.expose_inputs(
                LabelWorkChain,
                namespace=name,
                exclude=("dataset",),
                namespace_options={"required": False, "populate_defaults": False, "help": text},
            )
        spec.input(
            "reference_values",
            valid_type=orm.Dict,
            required=False,
            help="Known values by name of the property, or `<structure>:<name>`; they come before computed ones.",
        )
        spec.input("codes.evaluate", valid_type=orm.AbstractCode, required=False, help="aiida-mlip-evaluate.")
        spec.input("codes.explore", valid_type=orm.AbstractCode, required=False, help="aiida-mlip-explore.")
        spec.input(
            "options",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(EvaluateCalculation),
            help="Options of the jobs of these codes.",
        )
        spec.inputs.validator = validate_inputs

        spec.outline(
            cls.setup,
            cls.plan,
            cls.run_equations_of_state,
            cls.inspect_equations_of_state,
            cls.make_frames,
            cls.run_properties,
            cls.inspect_properties,
            if_(cls.has_to_transfer)(
                cls.run_transferred,
                cls.inspect_transferred,
            ),
            cls.evaluate_properties,
            cls.finalize,
        )

        spec.output("properties", valid_type=orm.Dict, required=False, help="Every property: `entries`.")
        spec.output("verdict", valid_type=orm.Dict, required=False, help="passed, failed or not_judged, and why.")
        spec.output_namespace(
            "curves", valid_type=orm.ArrayData, required=False, dynamic=True, help="Bands, curves, ... per source."
        )
        spec.output_namespace("values", valid_type=orm.Dict, required=False, dynamic=True, help="Values per source.")

        spec.exit_code(201, "ERROR_INVALID_STRUCTURES", message="The structures cannot be validated: {reason}")
        spec.exit_code(310, "ERROR_NO_PROPERTIES", message="Not one property could be computed: {reason}")
        spec.exit_code(
            410, "ERROR_INCOMPLETE", message="Nothing was missed, but some jobs failed; the rest is returned: {reason}"
        )
        spec.exit_code(500, "ERROR_THRESHOLD_MISSED", message="The potential misses: {missed}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        structures: DatasetData | orm.StructureData,
        *,
        codes: Mapping[str, orm.AbstractCode | str],
        potentials: Mapping[str, PotentialData] | None = None,
        subject: Mapping[str, Any] | None = None,
        reference: Mapping[str, Any] | None = None,
        reference_values: Mapping[str, Any] | None = None,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        label: Mapping[str, Any] | None = None,
    ) -> ProcessBuilder:
        """Builder with every default written out.

        :param structures: crystals.
        :param codes: ``evaluate`` and ``explore``; ``pw`` or ``ase`` for levels of theory.
        :param potentials: the committee, or None.
        :param subject: a level of theory to validate instead, ``{name: keys}``.
        :param reference: level of theory to compare with, ``{name: keys}``; None: nothing is computed.
        :param reference_values: known values.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: of the protocol: see :mod:`aiida_mlip.protocols.validate`.
        :param options: of the jobs of a potential.
        :param label: further ports of the labelling, e.g. ``max_concurrent``, ``options``.
        :raises ProtocolError: unknown protocol, key or value.
        """
        builder = cls.get_builder()
        builder.structures = structures
        builder.settings = orm.Dict(resolved_validate(overrides, protocol=protocol))
        loaded = {name: orm.load_code(code) if isinstance(code, str) else code for name, code in codes.items()}
        for name in ("evaluate", "explore"):
            if name in loaded:
                builder.codes[name] = loaded[name]
        if potentials:
            builder.potentials = dict(potentials)
        for name, levels in (("subject", subject), (REFERENCE, reference)):
            if levels is None:
                continue
            plain = resolved_fidelities(levels, structure_species(structures), protocol=protocol)
            given = {"fidelities": orm.Dict(plain), **dict(label or {})}
            given["codes"] = {key: loaded[key] for key in ("pw", "ase") if key in loaded}
            builder[name] = given
        if reference_values is not None:
            builder.reference_values = orm.Dict(dict(reference_values))
        if options is not None:
            builder.options = orm.Dict(dict(options))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Name the sources: the members of the committee or the subject, and the reference."""
        self.ctx.sources = {}  # name -> role, engine, member (name of the port), nodes (uuids by name)
        self.ctx.problems = []  # what went wrong, in words
        self.ctx.plan = {}  # uuids by name
        self.ctx.missed = []  # thresholds missed, in words
        self.ctx.computed = False
        members = sorted(self.inputs.get("potentials", {}))
        for index, member in enumerate(members):
            self.ctx.sources[f"subject_{index:02d}"] = self._source("subject", "potential", member)
        if "subject" in self.inputs:
            self.ctx.sources["subject_00"] = self._source("subject", engine_of(self.inputs.subject), None)
        if REFERENCE in self.inputs:
            self.ctx.sources[REFERENCE] = self._source(REFERENCE, engine_of(self.inputs.reference), None)

    def plan(self) -> ExitCode | None:
        """Make the strained cells, and the settings of all jobs."""
        levels = {name: self.inputs[name].fidelities for name in ("subject", REFERENCE) if name in self.inputs}
        outputs, node = plan_validation.run_get_node(
            self.inputs.structures, self.inputs.settings, **levels, metadata={"call_link_label": "plan_validation"}
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_INVALID_STRUCTURES.format(reason=node.exit_message)
        self.ctx.plan = {name: output.uuid for name, output in outputs.items()}
        return None

    def run_equations_of_state(self) -> Any:
        """Energies of the strained cells, from every source."""
        for name in self.ctx.sources:
            self._compute(name, "eos", self.ctx.plan["eos"])

    def inspect_equations_of_state(self) -> ExitCode | None:
        """Take the energies; a subject without any ends the validation."""
        for name in list(self.ctx.sources):
            self._take(name, "eos")
        left = [name for name in self.ctx.sources if name != REFERENCE and "eos_result" in self._nodes(name)]
        if not left:
            return self.exit_codes.ERROR_NO_PROPERTIES.format(reason="; ".join(self.ctx.problems))
        return None

    def make_frames(self) -> None:
        """Make the frames of the other properties, at the own lattice constant of every source."""
        for name, source in self.ctx.sources.items():
            nodes = self._nodes(name)
            if "eos_result" not in nodes:
                continue
            outputs, node = make_property_frames.run_get_node(
                self.inputs.structures,
                self._planned(f"settings_{source['role']}"),
                self._planned("eos"),
                orm.load_node(nodes["eos_result"]),
                metadata={"call_link_label": f"make_frames_{name}"},
            )
            if node.is_finished_ok:
                nodes |= {key: output.uuid for key, output in outputs.items()}
            else:
                self.ctx.problems.append(f"frames of {name}: {node.exit_message}")

    def run_properties(self) -> Any:
        """Single points, relaxations and runs, all at once."""
        for name in self.ctx.sources:
            nodes = self._nodes(name)
            if "static" in nodes:
                self._compute(name, "static", nodes["static"])
            if "relax" in nodes:
                self._explore(name, "relax", nodes["relax"], "")
            for kind in _RUNS:
                if kind in nodes and name in ("subject_00", REFERENCE):
                    for number in self._numbers(kind, self.ctx.sources[name]["role"]):
                        self._explore(name, kind, nodes[kind], number)

    def inspect_properties(self) -> None:
        """Take what there is; a failure is noted and leaves properties without a value."""
        for name, source in self.ctx.sources.items():
            if "static" in self._nodes(name):
                self._take(name, "static")
            self._take_explored(name, "relax", "")
            for kind in _RUNS:
                for number in self._numbers(kind, source["role"]):
                    self._take_explored(name, kind, number)

    def has_to_transfer(self) -> bool:
        """Whether the reference cannot relax by itself and the subject has."""
        return (
            REFERENCE in self.ctx.sources
            and "relax" in self._nodes(REFERENCE)
            and "relaxed" not in self._nodes(REFERENCE)
            and self.ctx.sources[REFERENCE]["engine"] == "qe"
            and "relaxed_dataset" in self._nodes("subject_00")
        )

    def run_transferred(self) -> Any:
        """Label the geometries that the subject has relaxed, scaled to the lattice of the reference."""
        ours, theirs = self._nodes("subject_00"), self._nodes(REFERENCE)
        outputs, node = transfer_relaxed.run_get_node(
            orm.load_node(theirs["relax"]),
            orm.load_node(ours["relaxed_dataset"]),
            orm.load_node(ours["relaxed_series"]),
            metadata={"call_link_label": "transfer_relaxed"},
        )
        if not node.is_finished_ok:
            self.ctx.problems.append(f"relaxed frames of the reference: {node.exit_message}")
            return
        theirs["relaxed_frames"] = outputs["relaxed_frames"].uuid
        self._compute(REFERENCE, "relaxed", theirs["relaxed_frames"])

    def inspect_transferred(self) -> None:
        """Take those labels."""
        if "relaxed_frames" in self._nodes(REFERENCE):
            self._take(REFERENCE, "relaxed")
            nodes = self._nodes(REFERENCE)
            if "relaxed_result" in nodes:
                nodes["relaxed"] = nodes.pop("relaxed_result")

    def evaluate_properties(self) -> ExitCode | None:
        """Values of every source, then the comparison."""
        found: dict[str, orm.Data] = {}
        for name, source in self.ctx.sources.items():
            nodes = {key: orm.load_node(uuid) for key, uuid in self._nodes(name).items() if key != "layout"}
            if "eos_result" not in nodes:
                continue
            outputs, node = property_values.run_get_node(
                self.inputs.structures,
                self._planned(f"settings_{source['role']}"),
                eos=self._planned("eos"),
                **nodes,
                metadata={"call_link_label": f"property_values_{name}"},
            )
            if not node.is_finished_ok:
                self.ctx.problems.append(f"values of {name}: {node.exit_message}")
                continue
            found[name] = outputs["values"]
            self.out(f"values.{name}", outputs["values"])
            if "curves" in outputs:
                found["curves_" + name.removeprefix("subject_")] = outputs["curves"]
                self.out(f"curves.{name}", outputs["curves"])
        if not any(name.startswith("subject_") for name in found):
            return self.exit_codes.ERROR_NO_PROPERTIES.format(reason="; ".join(self.ctx.problems))
        given = {"reference_values": self.inputs.reference_values} if "reference_values" in self.inputs else {}
        outputs, node = compare.run_get_node(
            self.inputs.settings, **given, **found, metadata={"call_link_label": "compare"}
        )
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_NO_PROPERTIES.format(reason=node.exit_message)
        for name in ("properties", "verdict"):
            self.out(name, outputs[name])
        self.ctx.missed = outputs["verdict"]["missed"]
        self.ctx.computed = any(entry["value"] is not None for entry in outputs["properties"]["entries"])
        self.report(f"verdict: {outputs['verdict']['verdict']}")
        return None

    def finalize(self) -> ExitCode | None:
        """Say what was missed."""
        if not self.ctx.computed:
            return self.exit_codes.ERROR_NO_PROPERTIES.format(reason="; ".join(self.ctx.problems) or "see properties")
        if self.ctx.missed:
            return self.exit_codes.ERROR_THRESHOLD_MISSED.format(missed="; ".join(self.ctx.missed))
        if self.ctx.problems:
            return self.exit_codes.ERROR_INCOMPLETE.format(reason="; ".join(self.ctx.problems))
        return None

    # -- parts -------------------------------------------------------------------------------------------------

    @staticmethod
    def _source(role: str, engine: str, member: str | None) -> dict[str, Any]:
        return {"role": role, "engine": engine, "member": member, "nodes": {}}

    def _nodes(self, name: str) -> dict[str, str]:
        nodes: dict[str, str] = self.ctx.sources[name]["nodes"]
        return nodes

    def _planned(self, name: str) -> orm.Data:
        return orm.load_node(self.ctx.plan[name])

    def _numbers(self, kind: str, role: str) -> list[str]:
        """Suffixes of the runs of a kind, e.g. ``_00``."""
        prefix = f"{kind}_{role}"
        return sorted(name.removeprefix(prefix) for name in self.ctx.plan if name.startswith(f"{prefix}_"))

    def _options(self) -> dict[str, Any]:
        return {"resources": ONE_CORE, **(self.inputs.options.get_dict() if "options" in self.inputs else {})}

    def _compute(self, name: str, what: str, uuid: str) -> None:
        """Submit single points of frames."""
        source, frames = self.ctx.sources[name], orm.load_node(uuid)
        label = f"{what}_{name}"
        if source["engine"] == "potential":
            builder = EvaluateCalculation.get_builder()
            builder.code = self.inputs.codes.evaluate
            builder.potential = self.inputs.potentials[source["member"]]
            builder.dataset = frames
            builder.settings = self._planned("evaluation")
            builder.metadata.options = self._options()
            builder.metadata.call_link_label = label
            node = self.submit(builder)
        else:
            inputs = AttributeDict(self.exposed_inputs(LabelWorkChain, source["role"]))
            inputs.dataset = frames
            inputs.metadata.call_link_label = label
            node = self.submit(LabelWorkChain, **inputs)
        self.to_context(**{f"children.{label}": node})

    def _take(self, name: str, what: str) -> None:
        """Note the results of single points."""
        node = self.ctx.children[f"{what}_{name}"]
        output = "parity" if self.ctx.sources[name]["engine"] == "potential" else "dataset"
        if not node.is_finished_ok:
            self._complain(node, f"{what} of {name}")
        if output in node.outputs:
            self._nodes(name)[f"{what}_result"] = node.outputs[output].uuid

    def _explore(self, name: str, kind: str, uuid: str, number: str) -> None:
        """Submit relaxations or runs, where the engine can."""
        source = self.ctx.sources[name]
        spec = f"{kind}_{source['role']}{number}"
        if spec not in self.ctx.plan:
            return
        builder = ExploreWorkChain.get_builder()
        builder.codes.explore = self.inputs.codes.explore
        builder.structures = orm.load_node(uuid)
        builder.spec = self._planned(spec)
        if source["engine"] == "potential":
            builder.potential = self.inputs.potentials[source["member"]]
        if "options" in self.inputs:
            builder.options = self.inputs.options
        builder.metadata.call_link_label = label = f"{kind}_{name}{number}"
        self.to_context(**{f"children.{label}": self.submit(builder)})

    def _take_explored(self, name: str, kind: str, number: str) -> None:
        """Note what runs left; runs that ended early are results, not problems."""
        if (label := f"{kind}_{name}{number}") not in self.ctx.children:
            return
        node = self.ctx.children[label]
        if "summary" not in node.outputs:
            self._complain(node, label)
            return
        nodes = self._nodes(name)
        prefix = "relaxed" if kind == "relax" else f"{kind}{number}"
        for output in ("dataset", "series"):
            if output in node.outputs:
                nodes[f"{prefix}_{output}"] = node.outputs[output].uuid
        nodes["relaxed" if kind == "relax" else f"{prefix}_summary"] = node.outputs.summary.uuid

    def _complain(self, node: orm.ProcessNode, what: str) -> None:
        text = f"{what}: {node.process_label}<{node.pk}> [{node.exit_status}] {node.exit_message}"
        self.ctx.problems.append(text)
        self.report(text)
