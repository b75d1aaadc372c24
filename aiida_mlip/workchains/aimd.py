"""AimdWorkChain: molecular dynamics with pw.x over a ladder of temperatures, volumes and strains -> labelled frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import ExitCode, while_
from aiida.plugins import WorkflowFactory

from aiida_mlip.calculations.functions.aimd import (
    assemble_aimd,
    collect_aimd,
    continue_aimd,
    kpoints_label,
    prepare_aimd,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.md_runs import read_segment
from aiida_mlip.errors import InvalidInputError, MlipError, ProtocolError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.aimd import parse_aimd
from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities
from aiida_mlip.protocols.model import merged_protocol
from aiida_mlip.workchains.early_resume import EarlyResumeWorkChain
from aiida_mlip.workchains.label_inputs import check_options, check_pseudos, family_of, job_options, resolved_fidelities

PwBaseWorkChain = WorkflowFactory("quantumespresso.pw.base")
DEFAULT_MAX_CONCURRENT: Final[int] = 50
#: Jobs of one run in a row that get nowhere before the run is given up.
MAX_STUCK: Final[int] = 2


class AimdWorkChain(EarlyResumeWorkChain):
    """Molecular dynamics with pw.x: one run per seed frame, volume, strain, temperature and replica.

    Entry point ``aiida_mlip.aimd``. A run that breaks off (walltime, crash, an scf that does not converge) goes on from
    its last labelled step, positions and velocities; what it had is kept in any case.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("structures", valid_type=DatasetData, help="Seed frames; their labels, if any, are not used.")
        spec.input(
            "fidelities",
            valid_type=orm.Dict,
            serializer=orm.to_aiida_type,
            help="One level of theory of the engine `qe`, by name; see `aiida_mlip.protocols.fidelity`.",
        )
        spec.input(
            "settings",
            valid_type=orm.Dict,
            serializer=orm.to_aiida_type,
            validator=_validate_settings,
            help="The ladder and the dynamics; see `aiida_mlip.protocols.aimd`.",
        )
        spec.input(
            "seed",
            valid_type=orm.Int,
            serializer=orm.to_aiida_type,
            validator=_validate_seed,
            help="Seed of the starting velocities.",
        )
        spec.input_namespace("codes", help="Programs.")
        spec.input("codes.pw", valid_type=orm.AbstractCode, help="pw.x.")
        spec.input(
            "max_concurrent",
            valid_type=orm.Int,
            serializer=orm.to_aiida_type,
            required=False,
            validator=_validate_max_concurrent,
            help=f"Runs alive at once (default {DEFAULT_MAX_CONCURRENT}).",
        )
        spec.input(
            "options",
            valid_type=orm.Dict,
            serializer=orm.to_aiida_type,
            required=False,
            help="Options of the jobs (resources, max_wallclock_seconds, withmpi, ...). Default: one core.",
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.setup,
            cls.prepare,
            while_(cls.has_work)(
                cls.run_dynamics,
                cls.inspect_dynamics,
            ),
            cls.assemble,
            cls.finalize,
        )

        spec.output(
            "dataset", valid_type=DatasetData, required=False, help="Decorrelated frames with the labels of pw.x."
        )
        spec.output_namespace(
            "trajectories",
            valid_type=orm.TrajectoryData,
            required=False,
            dynamic=True,
            help="Every labelled step of every run.",
        )
        spec.output(
            "summary",
            valid_type=orm.Dict,
            required=False,
            help="Per run: temperature, energy drift, autocorrelation times, frames kept, steps lost, failure.",
        )
        spec.exit_code(201, "ERROR_INVALID_RUNS", message="The runs cannot be prepared: {reason}")
        spec.exit_code(310, "ERROR_NO_FRAMES", message="Not one frame came out of {runs} runs: {reason}")
        spec.exit_code(
            410,
            "ERROR_RUNS_INCOMPLETE",
            message="{incomplete} of {runs} runs ended early ({reason}); what they had is in the output.",
        )
        spec.exit_code(500, "ERROR_CHECKS_FAILED", message="The dynamics is doubtful: {checks}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        code: orm.AbstractCode | str,
        structures: DatasetData | orm.StructureData | Sequence[orm.StructureData],
        fidelities: Mapping[str, Any],
        *,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with every default written out.

        :param code: pw.x.
        :param structures: seeds.
        :param fidelities: one level of theory as a plain mapping; cutoffs left out are taken from the family.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``: of the ladder, and of the fidelity.
        :param overrides: of the settings, see :mod:`aiida_mlip.protocols.aimd`.
        :param options: of the jobs.
        :param seed: of the starting velocities.
        :raises InvalidInputError: unknown protocol, or a setting that is not valid.
        """
        if not isinstance(structures, DatasetData):
            several = [structures] if isinstance(structures, orm.StructureData) else list(structures)
            structures = DatasetData.from_frames(from_ase([structure.get_ase() for structure in several]))
        settings = merged_protocol("aimd", protocol, overrides)
        builder = cls.get_builder()
        builder.structures = structures
        builder.fidelities = orm.Dict(resolved_fidelities(fidelities, structures.species, protocol=protocol))
        builder.settings = orm.Dict(parse_aimd(settings).model_dump(mode="json"))
        builder.seed = orm.Int(seed)
        builder.codes.pw = orm.load_code(code) if isinstance(code, str) else code
        if options is not None:
            builder.options = orm.Dict(dict(options))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Read the settings."""
        limit = self.inputs.get("max_concurrent", None)
        settings = parse_aimd(self.inputs.settings.get_dict())
        self.ctx.max_concurrent = DEFAULT_MAX_CONCURRENT if limit is None else limit.value
        self.ctx.n_steps = settings.n_steps
        self.ctx.max_restarts = settings.max_restarts
        self.ctx.prepared = None
        self.ctx.runs = []  # segments (uuids of their inputs and files), steps, stuck, ended, result
        self.ctx.queue = []  # numbers of runs with a segment to be started
        self.ctx.open = {}  # number of a run -> pk of its running process
        self.ctx.result = {}

    def prepare(self) -> ExitCode | None:
        """Make the runs and their starting points."""
        pseudos = {upf.element: upf for upf in family_of(self._fidelity.pseudo_family).nodes}
        _, node = prepare_aimd.run_get_node(
            self.inputs.structures,
            self.inputs.fidelities,
            self.inputs.settings,
            self.inputs.seed,
            metadata={"call_link_label": "prepare_aimd"},
            **pseudos,
        )
        if not node.is_finished_ok:
            self.report(f"prepare_aimd<{node.pk}> failed: {node.exit_message}")
            return self.exit_codes.ERROR_INVALID_RUNS.format(reason=node.exit_message)
        self.ctx.prepared = node.uuid
        for label in sorted(name for name in node.outputs if name.startswith("run_")):
            number = len(self.ctx.runs)
            suffix = label.removeprefix("run_")
            first = {kind: node.outputs[f"{kind}_{suffix}"].uuid for kind in ("structure", "parameters", "settings")}
            entry = {"uuid": node.outputs[label].uuid, "segments": [first], "steps": 0, "stuck": 0}
            self.ctx.runs.append({**entry, "ended": False, "result": None})
            self.ctx.queue.append(number)
        self.report(f"{len(self.ctx.runs)} runs of {self.ctx.n_steps} steps")
        return None

    def has_work(self) -> bool:
        """Whether something runs, or waits to be started."""
        return bool(self.ctx.open or self.ctx.queue)

    def run_dynamics(self) -> None:
        """Start segments up to the limit; those still running stay awaited."""
        while self.ctx.queue and len(self.ctx.open) < self.ctx.max_concurrent:
            number = self.ctx.queue.pop(0)
            self.ctx.open[str(number)] = self._start(number).pk
        for key, pk in self.ctx.open.items():
            self.to_context(**{f"children.run_{key}": orm.load_node(pk)})

    def inspect_dynamics(self) -> None:
        """See how far the segments came that ended; continue their runs, or collect them."""
        for key, pk in list(self.ctx.open.items()):
            node = orm.load_node(pk)
            if node.is_terminated:
                del self.ctx.open[key]
                self.ctx.children.pop(f"run_{key}", None)
                self._take(int(key), node)

    def assemble(self) -> None:
        """Merge the frames of all runs and sum up their reports."""
        parts: dict[str, orm.Data] = {}
        for number, run in enumerate(self.ctx.runs):
            outputs = orm.load_node(run["result"]).outputs
            parts[f"report_{number:04d}"] = outputs.report
            if "dataset" in outputs:
                parts[f"dataset_{number:04d}"] = outputs.dataset
        made, _ = assemble_aimd.run_get_node(metadata={"call_link_label": "assemble_aimd"}, **parts)
        self.ctx.result = {name: node.uuid for name, node in made.items()}

    def finalize(self) -> ExitCode | None:
        """Return frames, trajectories and summary, and judge the runs."""
        for name, uuid in self.ctx.result.items():
            self.out(name, orm.load_node(uuid))
        trajectories = {
            f"run_{number:04d}": outputs.trajectory
            for number, run in enumerate(self.ctx.runs)
            if "trajectory" in (outputs := orm.load_node(run["result"]).outputs)
        }
        if trajectories:
            self.out("trajectories", trajectories)
        summary = orm.load_node(self.ctx.result["summary"]).get_dict()
        runs, incomplete = summary["n_runs"], summary["n_runs"] - summary["n_complete"]
        reason = ", ".join(f"{number} {name}" for name, number in sorted(summary["failures"].items()))
        self.report(f"{summary['n_frames']} frames from {summary['n_steps']} steps of {runs} runs")
        if summary["n_frames"] == 0:
            return self.exit_codes.ERROR_NO_FRAMES.format(runs=runs, reason=reason or "nothing after the equilibration")
        if incomplete:
            return self.exit_codes.ERROR_RUNS_INCOMPLETE.format(incomplete=incomplete, runs=runs, reason=reason)
        if summary["checks_failed"]:
            return self.exit_codes.ERROR_CHECKS_FAILED.format(checks="; ".join(summary["checks_failed"][:5]))
        return None

    # -- one run -----------------------------------------------------------------------------------------------

    @property
    def _fidelity(self) -> QeFidelity:
        (spec,) = parse_fidelities(self.inputs.fidelities.get_dict()).values()
        if not isinstance(spec, QeFidelity):
            raise InvalidInputError(f"molecular dynamics runs with engine qe, got {spec.engine!r}")
        return spec

    def _start(self, number: int) -> orm.ProcessNode:
        """Submit the last segment of a run."""
        run = self.ctx.runs[number]
        segment = run["segments"][-1]
        prepared = orm.load_node(self.ctx.prepared).outputs
        structure = orm.load_node(segment["structure"])
        spec = self._fidelity
        family = family_of(spec.pseudo_family)
        content = orm.load_node(run["uuid"]).get_dict()
        return self.submit(
            PwBaseWorkChain,
            pw={
                "code": self.inputs.codes.pw,
                "structure": structure,
                "parameters": orm.load_node(segment["parameters"]),
                "settings": orm.load_node(segment["settings"]),
                "pseudos": {symbol: family.get_pseudo(symbol) for symbol in sorted(structure.get_symbols_set())},
                # a repetition must not be answered by the failure it repeats
                "metadata": {
                    "options": job_options(self.inputs, "qe"),
                    "disable_cache": len(run["segments"]) > 1,
                },
            },
            kpoints=prepared[kpoints_label(structure, spec)],
            max_iterations=prepared["max_iterations"],
            clean_workdir=prepared["clean_workdir"],
            metadata={
                "label": f"{content['fidelity']} molecular dynamics, run {number}",
                "call_link_label": f"run_{number:04d}_segment_{len(run['segments']) - 1:03d}",
            },
        )

    def _take(self, number: int, node: orm.ProcessNode) -> None:
        """Note what a segment computed, and decide how its run goes on."""
        run = self.ctx.runs[number]
        inputs = run["segments"][-1]
        files = _retrieved(node)
        inputs["retrieved"] = None if files is None else files.uuid
        parameters = orm.load_node(inputs["parameters"]).get_dict()
        segment = read_segment(orm.load_node(inputs["structure"]), parameters, files)
        total = run["steps"] + len(segment)
        run["steps"] += segment.resume_step
        run["stuck"] = 0 if segment.resume_step else run["stuck"] + 1
        restarts = len(run["segments"]) - 1
        text = f"run {number}, PwBaseWorkChain<{node.pk}>: {total} of {self.ctx.n_steps} steps"
        if total >= self.ctx.n_steps:
            self.report(text)
        elif node.is_killed or run["stuck"] >= MAX_STUCK or restarts >= self.ctx.max_restarts:
            self.report(f"{text}, exit status {node.exit_status}; given up after {restarts} restarts")
        else:
            self.report(f"{text}, exit status {node.exit_status}; going on")
            self._continue(number)
            return
        self._collect(number)

    def _continue(self, number: int) -> None:
        """Prepare the next segment of a run."""
        run = self.ctx.runs[number]
        inputs = {key: orm.load_node(uuid) for key, uuid in run["segments"][-1].items() if uuid is not None}
        label = f"continue_{number:04d}_{len(run['segments']):03d}"
        made, _ = continue_aimd.run_get_node(
            run=orm.load_node(run["uuid"]), metadata={"call_link_label": label}, **inputs
        )
        run["segments"].append({kind: made[kind].uuid for kind in ("structure", "parameters", "settings")})
        self.ctx.queue.append(number)

    def _collect(self, number: int) -> None:
        """Turn the segments of a run into frames."""
        run = self.ctx.runs[number]
        nodes = {
            f"{kind}_{s:03d}": orm.load_node(segment[kind])
            for s, segment in enumerate(run["segments"])
            for kind in ("structure", "parameters", "retrieved")
            if segment[kind] is not None
        }
        _, node = collect_aimd.run_get_node(
            orm.load_node(run["uuid"]), metadata={"call_link_label": f"collect_{number:04d}"}, **nodes
        )
        run["ended"], run["result"] = True, node.uuid

    def has_reason_to_go_on(self, n_running: int) -> bool:  # noqa: ARG002 - however many still run
        """Go on after each run: one that broke off, or that waits, must not stand still behind the longest."""
        return True


def _retrieved(node: orm.ProcessNode) -> orm.FolderData | None:
    """Files of the last job that a process started, if it left any."""
    jobs = node.base.links.get_outgoing(node_class=orm.CalcJobNode, link_type=LinkType.CALL_CALC).all_nodes()
    last = max(jobs, key=lambda job: job.pk, default=None)
    return last.outputs.retrieved if last is not None and "retrieved" in last.outputs else None


def _validate_settings(value: orm.Dict | None, _: Any) -> str | None:
    if value is None:
        return None
    try:
        parse_aimd(value.get_dict())
    except InvalidInputError as error:
        return str(error)
    return None


def _validate_seed(value: orm.Int | None, _: Any) -> str | None:
    return f"a seed must not be negative, got {value.value}" if value is not None and value.value < 0 else None


def _validate_max_concurrent(value: orm.Int | None, _: Any) -> str | None:
    return f"must be at least 1, got {value.value}" if value is not None and value.value < 1 else None


def _validate_inputs(inputs: Mapping[str, Any], namespace: Any) -> str | None:
    """Check the level of theory, its pseudopotentials and the seeds."""
    if "structures" not in namespace or "structures" not in inputs or "fidelities" not in inputs:
        return None  # a parent that exposes only some of the ports checks the rest itself
    try:
        _check_level(inputs)
        if not inputs["structures"].is_stored or inputs["structures"].creator is None:
            # frames that a process made are checked when the runs are prepared, which then ends with an exit code
            check_geometries(inputs["structures"].frames(), source="structures")
    except MlipError as error:
        return str(error)
    return None


def _check_level(inputs: Mapping[str, Any]) -> None:
    fidelities = parse_fidelities(inputs["fidelities"].get_dict())
    if len(fidelities) != 1:
        raise ProtocolError(f"fidelities: molecular dynamics runs at exactly one, got {', '.join(fidelities)}")
    for name, spec in fidelities.items():
        if not isinstance(spec, QeFidelity):
            raise ProtocolError(f"fidelities.{name}: molecular dynamics runs with engine qe, got {spec.engine!r}")
        check_pseudos(spec, inputs["structures"].species, f"fidelities.{name}")
    check_options(job_options(inputs, "qe"), "qe")
