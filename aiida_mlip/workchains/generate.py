"""GenerateWorkChain: frames from a specification of generators and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiida import orm
from aiida.engine import ExitCode, WorkChain, if_, while_

from aiida_mlip.calculations.functions.generate import generate
from aiida_mlip.calculations.functions.generate_stages import (
    child_label,
    generate_steps,
    join_steps,
    plan_stages,
    take_parents,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import FAILED_STEPS
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.generate import SEEDS
from aiida_mlip.protocols.generate import AnyStep, parse_generate, stage_steps
from aiida_mlip.protocols.model import merged_protocol
from aiida_mlip.protocols.stages import StageStep
from aiida_mlip.workchains.aimd import AimdWorkChain
from aiida_mlip.workchains.early_resume import EarlyResumeWorkChain
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.generate_inputs import inputs_of_run, validate_generate_inputs, validate_spec_node
from aiida_mlip.workchains.label_inputs import resolved_fidelities
from aiida_mlip.workchains.metadynamics import MetadynamicsWorkChain

#: Code of a stage -> its workchain.
_CHILDREN: Final[Mapping[str, type[WorkChain]]] = {
    "pw": AimdWorkChain,
    "metadynamics": MetadynamicsWorkChain,
    "explore": ExploreWorkChain,
}
#: What a child takes from the plan, by port; each as far as the plan has it.
_PLANNED_PORTS: Final[tuple[str, ...]] = ("settings", "fidelities", "seed", "spec", "engine_input", "options")


class GenerateWorkChain(EarlyResumeWorkChain):
    """Make frames from seed structures, or from nothing, by a list of generator steps and stages.

    Entry point ``aiida_mlip.generate``. The specification is documented in :mod:`aiida_mlip.protocols.generate`.
    Steps that do not need one another run side by side; one that fails takes along only those that start from it.
    """

    #: The specification, read once per process that runs this; not part of the checkpoint.
    _parsed: tuple[AnyStep, ...] | None = None

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("spec", valid_type=orm.Dict, validator=validate_spec_node, help="Steps: what is made of what.")
        spec.input("seed", valid_type=orm.Int, validator=_validate_seed, help="Seed of all random numbers.")
        spec.input("structures", valid_type=DatasetData, required=False, help="Seed frames.")
        spec.input(
            "reference",
            valid_type=DatasetData,
            required=False,
            help="The summary says how much of it the frames reach.",
        )
        spec.input_namespace(
            "cells", valid_type=orm.StructureData, required=False, dynamic=True, help="Further seeds, by name."
        )
        spec.input_namespace(
            "imports", valid_type=DatasetData, required=False, dynamic=True, help="Datasets of import steps, by name."
        )
        spec.input(
            "potential",
            valid_type=PotentialData,
            required=False,
            help="Potential of the stages that name no calculator. Their jobs execute code of its package.",
        )
        spec.input_namespace(
            "committee",
            valid_type=PotentialData,
            required=False,
            dynamic=True,
            help="Other members of the potential's committee, for steps with a watch on its error.",
        )
        spec.input(
            "fidelities",
            valid_type=orm.Dict,
            required=False,
            help="Levels of theory of aimd steps, by name; see `aiida_mlip.protocols.fidelity`.",
        )
        spec.input_namespace("codes", required=False, help="Programs of the stages.")
        spec.input("codes.pw", valid_type=orm.AbstractCode, required=False, help="pw.x, for aimd.")
        spec.input(
            "codes.metadynamics",
            valid_type=orm.AbstractCode,
            required=False,
            help="aiida-mlip-metadynamics, for metadynamics.",
        )
        spec.input(
            "codes.explore",
            valid_type=orm.AbstractCode,
            required=False,
            help="aiida-mlip-explore, for md, relax, melt_quench, monte_carlo and lammps.",
        )
        spec.input(
            "options",
            valid_type=orm.Dict,
            required=False,
            help="Options of the jobs of all codes, or by code: `pw`, `metadynamics`, `explore`. Default: one core.",
        )
        spec.input("max_concurrent", valid_type=orm.Int, required=False, help="Runs of pw.x alive at once, per step.")
        spec.inputs.validator = validate_generate_inputs

        spec.outline(
            cls.setup,
            if_(cls.has_stages)(
                cls.plan,
                while_(cls.has_work)(
                    cls.run_generators,
                    cls.run_stages,
                    cls.inspect_stages,
                ),
                cls.join,
            ).else_(
                cls.run_generate,
                cls.inspect_generate,
            ),
            cls.finalize,
        )

        spec.output(
            "dataset", valid_type=DatasetData, required=False, help="The frames with lineage, and their labels."
        )
        spec.output("summary", valid_type=orm.Dict, required=False, help="What came from where, per step.")

        spec.exit_code(300, "ERROR_GENERATE_FAILED", message="No frames were made: {reason}")
        spec.exit_code(
            410, "ERROR_STEPS_FAILED", message="{failed} of {steps} steps failed; the rest is returned. {reason}"
        )
        spec.exit_code(411, "ERROR_STEPS_INCOMPLETE", message="Steps ended early; what they made is returned. {reason}")
        spec.exit_code(500, "ERROR_STEPS_DOUBTFUL", message="Steps ended with doubts; all is returned. {reason}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        structures: DatasetData | orm.StructureData | Sequence[orm.StructureData] | None = None,
        *,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        cells: Sequence[orm.StructureData] = (),
        codes: Mapping[str, orm.AbstractCode] | None = None,
        fidelities: Mapping[str, Any] | None = None,
        **inputs: Any,  # Any: nodes, or plain values of ports
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with the steps of a protocol.

        :param structures: seeds: a dataset, a structure, or several structures.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: ``steps`` (replaces the protocol's), ``keep_seeds``, ``filters``, ``seed``.
        :param cells: further seeds.
        :param codes: of the stages: those that no step needs are left out.
        :param fidelities: levels of theory of aimd steps; cutoffs left out are taken from the family.
        :param inputs: further ports: ``potential``, ``committee``, ``imports``, ``reference``, ``options``,
            ``max_concurrent``.
        :raises InvalidInputError: unknown protocol, generator or key.
        """
        settings = merged_protocol("generate", protocol, overrides)
        seed = settings.pop("seed", 0)
        steps, _keep = parse_generate(settings, where="generate")
        builder = cls.get_builder()
        builder.spec = orm.Dict(settings)
        builder.seed = orm.Int(seed)
        if isinstance(structures, DatasetData):
            builder.structures = structures
        elif structures is not None:
            cells = [*([structures] if isinstance(structures, orm.StructureData) else structures), *cells]
        if cells:
            builder.cells = {f"cell_{index:04d}": structure for index, structure in enumerate(cells)}
        needed = {step.job.code for step in stage_steps(steps).values()}
        if chosen := {name: code for name, code in (codes or {}).items() if name in needed}:
            builder.codes = chosen
        if fidelities is not None and "pw" in needed:
            species = set(structures.species) if isinstance(structures, DatasetData) else set()
            species |= {symbol for cell in cells for symbol in cell.get_symbols_set()}
            builder.fidelities = orm.Dict(resolved_fidelities(fidelities, sorted(species), protocol=protocol))
        for name, value in inputs.items():
            if value is not None:
                builder[name] = (
                    value
                    if isinstance(value, orm.Data) or name in ("imports", "committee")
                    else orm.to_aiida_type(value)
                )
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Read the specification."""
        steps = self._steps
        self.ctx.n_steps = len(steps)
        self.ctx.plan = None  # uuid of the calculation that planned the stages
        self.ctx.waves = 0  # calls of generators so far
        self.ctx.open = {}  # number of a step -> pk of its running child
        self.ctx.ended = {}  # number of a step -> exit status, message
        self.ctx.frames = {}  # number of a step -> uuid of what it made
        self.ctx.result = None  # uuid of the calculation with dataset and summary
        for index, step in stage_steps(steps).items():
            if step.job.dataset:
                self.ctx.frames[str(index)] = self.inputs.imports[step.job.dataset].uuid
                self.ctx.ended[str(index)] = [0, ""]

    def has_stages(self) -> bool:
        """Whether any step is more than a generator."""
        return bool(stage_steps(self._steps))

    def plan(self) -> None:
        """Make the inputs of all stages but their structures."""
        inputs = {name: self.inputs[name] for name in ("spec", "seed", "fidelities", "options") if name in self.inputs}
        _, node = plan_stages.run_get_node(**inputs, metadata={"call_link_label": "plan_stages"})
        self.ctx.plan = node.uuid

    def has_work(self) -> bool:
        """Whether something runs, or waits to run."""
        return bool(self.ctx.open) or len(self.ctx.ended) < self.ctx.n_steps

    def run_generators(self) -> None:
        """Run the generators whose parents are there, together."""
        group = self._ready_generators()
        if not group:
            return
        planned = orm.load_node(self.ctx.plan).outputs
        nodes = {f"step_{index:02d}": planned[f"step_{index:02d}"] for index in group}
        parents = {number for index in group for number in self._parent_numbers(index)}
        _, node = generate_steps.run_get_node(
            seed=self.inputs.seed,
            **nodes,
            **self._frames_of(parents - set(group)),
            **self._seeds(),
            metadata={"call_link_label": f"generate_{self.ctx.waves:02d}"},
        )
        self.ctx.waves += 1
        problems = node.outputs.report["problems"] if node.is_finished_ok else {}
        for index in group:
            key = str(index)
            if node.is_finished_ok and f"frames_{index:02d}" in node.outputs:
                self.ctx.frames[key] = node.outputs[f"frames_{index:02d}"].uuid
                self.ctx.ended[key] = [0, ""]
            else:
                self._fail(index, problems.get(key) or node.exit_message or f"generate_steps<{node.pk}> failed", 310)

    def run_stages(self) -> None:
        """Start the stages whose parents are there, side by side; those still running stay awaited."""
        for index, step in stage_steps(self._steps).items():
            if str(index) not in self.ctx.ended and str(index) not in self.ctx.open and self._has_parents(index):
                self._start(index, step)
        for key, pk in self.ctx.open.items():
            self.to_context(**{f"children.step_{key}": orm.load_node(pk)})

    def inspect_stages(self) -> None:
        """Take what the stages made that ended, whole or in part."""
        for key, pk in list(self.ctx.open.items()):
            node = orm.load_node(pk)
            if not node.is_terminated:
                continue
            del self.ctx.open[key]
            self.ctx.children.pop(f"step_{key}", None)
            if "dataset" in node.outputs:
                self.ctx.frames[key] = node.outputs.dataset.uuid
            if node.is_finished_ok:
                self.ctx.ended[key] = [0, ""]
            else:
                message = node.exit_message or node.process_state.value
                self._fail(int(key), f"{node.process_label}<{node.pk}>: {message}", node.exit_status or 999)

    def join(self) -> ExitCode | None:
        """Filter what all steps made, and leave out what is there already."""
        if not self.ctx.frames:
            return self.exit_codes.ERROR_GENERATE_FAILED.format(reason=self._problems())
        inputs = {name: self.inputs[name] for name in ("spec", "reference") if name in self.inputs}
        numbers = [int(key) for key in self.ctx.frames]
        _, node = join_steps.run_get_node(
            **inputs, **self._frames_of(numbers), **self._seeds(), metadata={"call_link_label": "join_steps"}
        )
        if not node.is_finished_ok:
            reason = "; ".join(text for text in (node.exit_message, self._problems()) if text)
            return self.exit_codes.ERROR_GENERATE_FAILED.format(reason=reason)
        self.ctx.result = node.uuid
        return None

    def run_generate(self) -> None:
        """Make the frames."""
        inputs = {key: self.inputs[key] for key in ("spec", "seed", "structures", "reference") if key in self.inputs}
        inputs |= dict(self.inputs.get("cells", {}))
        _, node = generate.run_get_node(**inputs, metadata={"call_link_label": "generate"})
        self.ctx.result = node.uuid

    def inspect_generate(self) -> ExitCode | None:
        """See whether frames were made."""
        node = orm.load_node(self.ctx.result)
        if not node.is_finished_ok:
            self.report(f"generate<{node.pk}> failed with exit status {node.exit_status}: {node.exit_message}")
            return self.exit_codes.ERROR_GENERATE_FAILED.format(reason=node.exit_message)
        return None

    def finalize(self) -> ExitCode | None:
        """Return the frames and the summary, and say which steps did not end well."""
        outputs = orm.load_node(self.ctx.result).outputs
        for name in ("dataset", "summary"):
            self.out(name, outputs[name])
        self.report(f"made {outputs.summary['n_frames']} frames: DatasetData<{outputs.dataset.pk}>")
        bad = {int(key): status for key, (status, _) in self.ctx.ended.items() if status}
        if not bad:
            return None
        reason = self._problems()
        lost = [index for index in bad if str(index) not in self.ctx.frames]
        if lost:
            return self.exit_codes.ERROR_STEPS_FAILED.format(failed=len(lost), steps=self.ctx.n_steps, reason=reason)
        if all(500 <= status < 600 for status in bad.values()):
            return self.exit_codes.ERROR_STEPS_DOUBTFUL.format(reason=reason)
        return self.exit_codes.ERROR_STEPS_INCOMPLETE.format(reason=reason)

    # -- one step ----------------------------------------------------------------------------------------------

    @property
    def _steps(self) -> tuple[AnyStep, ...]:
        if self._parsed is None:
            self._parsed = parse_generate(self.inputs.spec.get_dict())[0]
        return self._parsed

    def _parent_numbers(self, index: int) -> list[int]:
        """Numbers of the steps that a step starts from; seeds have none."""
        steps = self._steps
        numbers = {step.name: number for number, step in enumerate(steps)}
        step = steps[index]
        return [numbers[name] for name in step.parents if name != SEEDS] if step.needs_parents else []

    def _has_parents(self, index: int, also: Sequence[int] = ()) -> bool:
        """Whether all parents of a step have ended, or end before it; fails the step when none of them made frames."""
        parents = self._parent_numbers(index)
        if any(str(number) not in self.ctx.ended and number not in also for number in parents):
            return False
        lost = [number for number in parents if str(number) not in self.ctx.frames and number not in also]
        if parents and len(lost) == len(parents) and SEEDS not in self._steps[index].parents:
            names = ", ".join(self._steps[number].name for number in lost)
            self._fail(index, f"not run: {names} made no frames", 310)
            return False
        return True

    def _ready_generators(self) -> list[int]:
        """Generators that can run now, in order: also those that start from others among them."""
        ready: list[int] = []
        for index, step in enumerate(self._steps):
            waits = str(index) not in self.ctx.ended and not isinstance(step, StageStep)
            if waits and self._has_parents(index, also=ready):
                ready.append(index)
        return ready

    def _frames_of(self, numbers: Any) -> dict[str, DatasetData]:  # Any: integers, in any collection
        return {
            f"frames_{number:02d}": orm.load_node(self.ctx.frames[str(number)])
            for number in sorted(numbers)
            if str(number) in self.ctx.frames
        }

    def _seeds(self) -> dict[str, orm.Data]:
        """Seeds of both kinds, as the calculations take them."""
        cells = self.inputs.get("cells", {})
        result = {f"cell_{number:04d}": cells[name] for number, name in enumerate(sorted(cells))}
        return {**result, "structures": self.inputs.structures} if "structures" in self.inputs else result

    def _start(self, index: int, step: StageStep) -> None:
        """Submit the child of a stage; what its own ports refuse is a failure of the step, not of everything."""
        planned = orm.load_node(self.ctx.plan).outputs
        seeds = self._seeds() if SEEDS in step.parents else {}
        made, node = take_parents.run_get_node(
            step=planned[f"step_{index:02d}"],
            seed=self.inputs.seed,
            **self._frames_of(self._parent_numbers(index)),
            **seeds,
            metadata={"call_link_label": f"parents_{index:02d}"},
        )
        if not node.is_finished_ok:
            self._fail(index, node.exit_message, node.exit_status)
            return
        inputs = {"structures": made["structures"], "codes": {step.job.code: self.inputs.codes[step.job.code]}}
        for port in _PLANNED_PORTS:
            if f"{port}_{index:02d}" in planned:
                inputs[port] = planned[f"{port}_{index:02d}"]
        if step.job.code == "pw" and "max_concurrent" in self.inputs:
            inputs["max_concurrent"] = self.inputs.max_concurrent
        if step.job.code != "pw":
            inputs |= inputs_of_run(step, self.inputs)
        metadata = {"label": step.name, "call_link_label": child_label(index, step)}
        try:
            child = self.submit(_CHILDREN[step.job.code], **inputs, metadata=metadata)
        except ValueError as error:  # a port's validator
            self._fail(index, str(error), 201)
            return
        self.report(f"step {step.name!r}: {child.process_label}<{child.pk}> from {len(made['structures'])} frames")
        self.ctx.open[str(index)] = child.pk

    def _fail(self, index: int, message: str, status: int) -> None:
        """Note that a step did not end well."""
        self.ctx.ended[str(index)] = [status, message]
        failed = {key: value for key, value in self.ctx.ended.items() if value[0]}
        self.node.base.extras.set(FAILED_STEPS, failed)
        self.report(f"step {self._steps[index].name!r} did not end well [{status}]: {message}")

    def _problems(self) -> str:
        """What did not end well, step by step."""
        steps = self._steps
        found = sorted((int(key), status, message) for key, (status, message) in self.ctx.ended.items() if status)
        return "; ".join(f"{steps[index].name} [{status}]: {message}" for index, status, message in found)

    def has_reason_to_go_on(self, n_running: int) -> bool:  # noqa: ARG002 - however many still run
        """Go on after each stage: those that start from it need not wait for the others."""
        return True


def _validate_seed(value: orm.Int | None, _: Any) -> str | None:
    return f"a seed must not be negative, got {value.value}" if value is not None and value.value < 0 else None
