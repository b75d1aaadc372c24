"""MetadynamicsWorkChain: biased dynamics to its end, through as many jobs as the walltime makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.engine import ExitCode, ProcessBuilder, WorkChain, if_, while_

from aiida_mlip.calculations.functions.metadynamics import join_runs
from aiida_mlip.calculations.metadynamics import MetadynamicsCalculation, validate_metadynamics_inputs
from aiida_mlip.calculations.options import options_validator
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.protocols.metadynamics import resolved_spec

DEFAULT_MAX_JOBS: Final[int] = 20
_CODES = MetadynamicsCalculation.exit_codes
#: Inputs that are handed to the job as they are.
_PASSED_ON: Final[tuple[str, ...]] = ("structures", "spec", "potential", "reference", "engine_input")


class MetadynamicsWorkChain(WorkChain):
    """Frames from biased dynamics, driven by a potential or any ASE calculator.

    Entry point ``aiida_mlip.metadynamics``. The specification is documented in
    :mod:`aiida_mlip.protocols.metadynamics`. A job that runs out of walltime is followed by one that goes on.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.expose_inputs(
            MetadynamicsCalculation, include=(*_PASSED_ON, "bias"), namespace_options={"validator": None}
        )
        spec.input("codes.metadynamics", valid_type=orm.AbstractCode, help="The program aiida-mlip-metadynamics.")
        spec.input(
            "options",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(MetadynamicsCalculation),
            help="Options of the job. Default: one core.",
        )
        spec.input(
            "max_jobs",
            valid_type=orm.Int,
            required=False,
            validator=_validate_max_jobs,
            help=f"Jobs one after another, when the walltime is too short for all steps (default {DEFAULT_MAX_JOBS}).",
        )
        spec.inputs.validator = validate_metadynamics_inputs

        spec.outline(
            cls.setup,
            while_(cls.should_run_dynamics)(
                cls.run_dynamics,
                cls.inspect_dynamics,
            ),
            if_(cls.has_several_runs)(
                cls.join,
            ),
            cls.finalize,
        )

        spec.expose_outputs(MetadynamicsCalculation, include=("dataset", "bias", "series", "trajectory_summary"))

        spec.exit_code(310, "ERROR_DYNAMICS_FAILED", message="The dynamics failed: {reason}")
        spec.exit_code(
            410, "ERROR_FORCES_FAILED", message="The forces failed; the frames before are returned. {reason}"
        )
        spec.exit_code(411, "ERROR_TOO_MANY_JOBS", message="{jobs} jobs were not enough; all frames are returned.")
        spec.exit_code(
            500, "ERROR_STOPPED_BY_WALL", message="A wall ended a trajectory early; its frames are kept. {reason}"
        )

    @classmethod
    def get_builder_from_protocol(
        cls,
        code: orm.AbstractCode | str,
        structures: DatasetData,
        *,
        potential: PotentialData | None = None,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> ProcessBuilder:
        """Builder with every default written out.

        :param code: aiida-mlip-metadynamics on the computer to use.
        :param structures: to start from.
        :param potential: of the forces; left out: ``overrides`` name a calculator in ``forces``.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: keys of the specification, e.g. ``{'engine': 'colvars', ...}``.
        :param options: of the job.
        :raises ProtocolError: unknown protocol, key or value.
        """
        builder = cls.get_builder()
        builder.codes.metadynamics = orm.load_code(code) if isinstance(code, str) else code
        builder.structures = structures
        builder.spec = orm.Dict(resolved_spec(overrides or {}, protocol=protocol))
        if potential is not None:
            builder.potential = potential
        if options is not None:
            builder.options = orm.Dict(dict(options))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Nothing has run yet."""
        self.ctx.jobs = []  # uuids of the jobs, in order
        self.ctx.go_on = True
        self.ctx.problem = None  # (exit code, reason) of the last job, if it had any
        self.ctx.joined = None

    def should_run_dynamics(self) -> bool:
        """Whether there are steps left to do, and jobs to do them in."""
        return bool(self.ctx.go_on)

    def run_dynamics(self) -> Any:
        """Run the dynamics, from the start or from where the last job stopped."""
        builder = MetadynamicsCalculation.get_builder()
        builder.code = self.inputs.codes.metadynamics
        for name in (*_PASSED_ON, "bias"):
            if name in self.inputs:
                builder[name] = self.inputs[name]
        if self.ctx.jobs:
            last = orm.load_node(self.ctx.jobs[-1]).outputs
            builder.bias, builder.checkpoint = last.bias, last.checkpoint
        if "options" in self.inputs:
            builder.metadata.options = {"resources": ONE_CORE, **self.inputs.options.get_dict()}
        builder.metadata.call_link_label = f"dynamics_{len(self.ctx.jobs):02d}"
        return self.to_context(dynamics=self.submit(builder))

    def inspect_dynamics(self) -> None:
        """Take note of how the job ended, and decide whether another one goes on."""
        node = self.ctx.dynamics
        self.ctx.jobs.append(node.uuid)
        self.ctx.go_on = False
        self.ctx.problem = None
        if node.is_finished_ok:
            return
        self.report(f"{node.process_label}<{node.pk}> ended with exit status {node.exit_status}: {node.exit_message}")
        if not {"bias", "checkpoint"} <= set(node.outputs):
            self.ctx.problem = [node.exit_status, node.exit_message or str(node.process_state)]
            return
        # out of walltime (or killed), with everything that is needed to go on
        if len(self.ctx.jobs) >= self._max_jobs:
            self.ctx.problem = [_CODES.ERROR_OUT_OF_WALLTIME.status, node.exit_message]
        else:
            self.ctx.go_on = True  # a job that leaves a checkpoint has done at least one frame

    def has_several_runs(self) -> bool:
        """Whether there is more than one run to join."""
        return len(self.ctx.jobs) > 1

    def join(self) -> ExitCode | None:
        """Join frames, series and summaries of all jobs."""
        runs = {}
        for i, uuid in enumerate(self.ctx.jobs):
            outputs = orm.load_node(uuid).outputs
            for name, key in (("dataset", "dataset"), ("series", "series"), ("trajectory_summary", "summary")):
                if name in outputs:
                    runs[f"{key}_{i:04d}"] = outputs[name]
        _, node = join_runs.run_get_node(**runs, metadata={"call_link_label": "join_runs"})
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_DYNAMICS_FAILED.format(reason=f"join_runs<{node.pk}> did not finish")
        self.ctx.joined = node.uuid
        return None

    def finalize(self) -> ExitCode | None:
        """Return everything there is, then say how it ended."""
        for uuid in (*self.ctx.jobs[-1:], *([self.ctx.joined] if self.ctx.joined else [])):
            outputs = orm.load_node(uuid).outputs
            for name in ("dataset", "bias", "series", "trajectory_summary"):
                if name in outputs:
                    self.out(name, outputs[name])
        status, reason = self.ctx.problem or self._problem_of_an_earlier_job()
        if status == 0:
            return None
        if status == _CODES.ERROR_OUT_OF_WALLTIME.status and len(self.ctx.jobs) >= self._max_jobs:
            return self.exit_codes.ERROR_TOO_MANY_JOBS.format(jobs=len(self.ctx.jobs))
        if status == _CODES.ERROR_FORCES_FAILED.status:
            return self.exit_codes.ERROR_FORCES_FAILED.format(reason=reason)
        if status == _CODES.ERROR_STOPPED_BY_WALL.status:
            return self.exit_codes.ERROR_STOPPED_BY_WALL.format(reason=reason)
        return self.exit_codes.ERROR_DYNAMICS_FAILED.format(reason=reason)

    # -- parts -------------------------------------------------------------------------------------------------

    @property
    def _max_jobs(self) -> int:
        return int(self.inputs.max_jobs.value) if "max_jobs" in self.inputs else DEFAULT_MAX_JOBS

    def _problem_of_an_earlier_job(self) -> tuple[int, str]:
        """What ended a trajectory early although the last job went well."""
        summary = self.outputs.get("trajectory_summary", None)
        entries = [] if summary is None else summary.get_dict()["trajectories"]
        for kinds, code in (
            (("forces_failed",), _CODES.ERROR_FORCES_FAILED),
            (("temperature", "pair_distance"), _CODES.ERROR_STOPPED_BY_WALL),
        ):
            found = [entry["message"] for entry in entries if entry["stopped_by"] in kinds]
            if found:
                return code.status, "; ".join(dict.fromkeys(found))
        return 0, ""


def _validate_max_jobs(value: orm.Int | None, _: Any) -> str | None:
    return f"max_jobs must be at least 1, got {value.value}" if value is not None and value.value < 1 else None
