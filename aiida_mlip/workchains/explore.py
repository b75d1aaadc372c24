"""ExploreWorkChain: runs with a potential to their end, through as many jobs as the walltime makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.engine import CalcJob, ExitCode, ProcessBuilder, if_, while_

from aiida_mlip.calculations.explore import ExploreCalculation, validate_explore_inputs
from aiida_mlip.calculations.functions.explore import join_explorations
from aiida_mlip.calculations.options import options_validator
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.protocols.explore import resolved_spec
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain

DEFAULT_MAX_JOBS: Final[int] = 20
_CODES = ExploreCalculation.exit_codes
#: How a job ends that something from outside has ended; and how often in a row one is begun again that got nowhere.
_INTERRUPTED: Final[frozenset[int]] = frozenset(
    code.status
    for code in (
        _CODES.ERROR_OUTPUT_MISSING,
        _CODES.ERROR_OUTPUT_UNREADABLE,
        _CODES.ERROR_OUT_OF_WALLTIME,
        CalcJob.exit_codes.ERROR_SCHEDULER_NODE_FAILURE,
    )
)
MAX_AGAIN: Final[int] = 1
#: Inputs that are handed to the job as they are.
_PASSED_ON: Final[tuple[str, ...]] = ("structures", "spec", "potential", "engine_input")
#: Outputs that several jobs add to.
_JOINED: Final[tuple[str, ...]] = ("dataset", "series", "selected", "grades")


class ExploreWorkChain(SubmitOnceWorkChain):
    """Frames from dynamics, relaxations or Monte Carlo with a potential or any ASE calculator.

    Entry point ``aiida_mlip.explore``. The specification is documented in :mod:`aiida_mlip.protocols.explore`. A job
    that runs out of walltime is followed by one that goes on.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.expose_inputs(
            ExploreCalculation, include=(*_PASSED_ON, "committee", "restart"), namespace_options={"validator": None}
        )
        spec.input("codes.explore", valid_type=orm.AbstractCode, help="The program aiida-mlip-explore.")
        spec.input(
            "options",
            valid_type=orm.Dict,
            required=False,
            validator=options_validator(ExploreCalculation),
            help="Options of the job. Default: one core.",
        )
        spec.input(
            "max_jobs",
            valid_type=orm.Int,
            required=False,
            validator=_validate_max_jobs,
            help=f"Jobs one after another, when the walltime is too short for all steps (default {DEFAULT_MAX_JOBS}).",
        )
        spec.inputs.validator = validate_explore_inputs

        spec.outline(
            cls.setup,
            while_(cls.should_run_job)(
                cls.run_job,
                cls.inspect_job,
            ),
            if_(cls.has_several_jobs)(
                cls.join,
            ),
            cls.finalize,
        )

        spec.expose_outputs(ExploreCalculation, include=(*_JOINED, "summary", "checkpoint"))

        spec.exit_code(310, "ERROR_EXPLORATION_FAILED", message="The exploration failed: {reason}")
        spec.exit_code(
            410, "ERROR_FORCES_FAILED", message="The forces failed; the frames before are returned. {reason}"
        )
        spec.exit_code(411, "ERROR_TOO_MANY_JOBS", message="{jobs} jobs were not enough; all frames are returned.")
        spec.exit_code(500, "ERROR_STOPPED_BY_LIMIT", message="A limit ended a run early. {reason}")
        spec.exit_code(501, "ERROR_STOPPED_BY_WATCH", message="A run left what the potential knows. {reason}")
        spec.exit_code(502, "ERROR_NOT_CONVERGED", message="A relaxation did not converge. {reason}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        code: orm.AbstractCode | str,
        structures: DatasetData,
        *,
        potential: PotentialData | None = None,
        committee: Mapping[str, PotentialData] | None = None,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> ProcessBuilder:
        """Builder with every default written out.

        :param code: aiida-mlip-explore on the computer to use.
        :param structures: to start from.
        :param potential: of the forces; left out: ``overrides`` name a calculator in ``forces``.
            One that has grades is watched, unless ``overrides`` say ``{'watch': None}``.
        :param committee: the other members of its committee, for a watch on its error.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: keys of the specification, e.g. ``{'kind': 'relax', ...}``.
        :param options: of the job.
        :raises ProtocolError: unknown protocol, key or value.
        """
        builder = cls.get_builder()
        builder.codes.explore = orm.load_code(code) if isinstance(code, str) else code
        builder.structures = structures
        watched = potential is not None and potential.has_grades
        overrides = {**({"watch": {}} if watched else {}), **(overrides or {})}
        builder.spec = orm.Dict(resolved_spec(overrides, protocol=protocol))
        if potential is not None:
            builder.potential = potential
        if committee:
            builder.committee = dict(committee)
        if options is not None:
            builder.options = orm.Dict(dict(options))
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Nothing has run yet."""
        self.ctx.jobs = []  # uuids of the jobs, in order
        self.ctx.go_on = True
        self.ctx.in_vain = 0  # jobs in a row that something ended before they got anywhere
        self.ctx.problem = None  # (exit status, reason) of a job that nothing goes on from
        self.ctx.joined = None

    def should_run_job(self) -> bool:
        """Whether there are steps left to do, and jobs to do them in."""
        return bool(self.ctx.go_on)

    def run_job(self) -> Any:
        """Run, from the start or from where the last job stopped."""
        builder = ExploreCalculation.get_builder()
        builder.code = self.inputs.codes.explore
        for name in _PASSED_ON:
            if name in self.inputs:
                builder[name] = self.inputs[name]
        for name, member in self.inputs.get("committee", {}).items():
            builder.committee[name] = member
        if (checkpoint := self._last_checkpoint()) is not None:
            builder.checkpoint = checkpoint
        elif "restart" in self.inputs:
            builder.restart = self.inputs.restart
        if "options" in self.inputs:
            builder.metadata.options = {"resources": ONE_CORE, **self.inputs.options.get_dict()}
        builder.metadata.call_link_label = f"explore_{len(self.ctx.jobs):02d}"
        return self.to_context(job=self.submit(builder))

    def inspect_job(self) -> None:
        """Take note of how the job ended, and decide whether another one goes on."""
        node = self.ctx.job
        self.ctx.jobs.append(node.uuid)
        self.ctx.go_on = False
        self.ctx.problem = None
        if node.is_finished_ok:
            return
        self.report(f"{node.process_label}<{node.pk}> ended with exit status {node.exit_status}: {node.exit_message}")
        going = "summary" in node.outputs and node.outputs.summary["status"] in ("walltime", "running")
        if going and "checkpoint" in node.outputs:
            self.ctx.in_vain = 0  # a job that leaves a checkpoint has done at least one chunk of steps
        elif node.exit_status in _INTERRUPTED and self.ctx.in_vain < MAX_AGAIN:
            self.ctx.in_vain += 1
        else:
            self.ctx.problem = [node.exit_status, node.exit_message or str(node.process_state)]
            return
        if len(self.ctx.jobs) >= self._max_jobs:
            self.ctx.problem = [_CODES.ERROR_OUT_OF_WALLTIME.status, node.exit_message]
        else:
            self.ctx.go_on = True

    def has_several_jobs(self) -> bool:
        """Whether there is more than one job to join."""
        return len(self.ctx.jobs) > 1

    def join(self) -> ExitCode | None:
        """Join the frames of all jobs and their numbers."""
        jobs: dict[str, orm.Data] = {}
        for i, uuid in enumerate(self.ctx.jobs):
            outputs = orm.load_node(uuid).outputs
            jobs |= {f"{name}_{i:04d}": outputs[name] for name in _JOINED if name in outputs}
        if not jobs:
            return None
        _, node = join_explorations.run_get_node(**jobs, metadata={"call_link_label": "join_jobs"})
        if not node.is_finished_ok:
            return self.exit_codes.ERROR_EXPLORATION_FAILED.format(reason=f"join_jobs<{node.pk}> did not finish")
        self.ctx.joined = node.uuid
        return None

    def finalize(self) -> ExitCode | None:
        """Return everything there is, then say how it ended."""
        told = [uuid for uuid in self.ctx.jobs if "summary" in orm.load_node(uuid).outputs]
        for uuid in told[-1:]:  # it knows of all runs, those of earlier jobs as well
            self._pass_on(uuid, ("summary", "checkpoint"))
        if self.ctx.joined is not None:
            self._pass_on(self.ctx.joined, _JOINED)
        elif self.ctx.jobs:
            self._pass_on(self.ctx.jobs[-1], _JOINED)
        if self.ctx.problem is None:
            return None
        status, reason = self.ctx.problem
        if status == _CODES.ERROR_OUT_OF_WALLTIME.status and len(self.ctx.jobs) >= self._max_jobs:
            return self.exit_codes.ERROR_TOO_MANY_JOBS.format(jobs=len(self.ctx.jobs))
        for name in ("FORCES_FAILED", "STOPPED_BY_LIMIT", "STOPPED_BY_WATCH", "NOT_CONVERGED"):
            if status == _CODES[f"ERROR_{name}"].status:
                return self.exit_codes[f"ERROR_{name}"].format(reason=reason)
        return self.exit_codes.ERROR_EXPLORATION_FAILED.format(reason=reason)

    # -- parts -------------------------------------------------------------------------------------------------

    @property
    def _max_jobs(self) -> int:
        return int(self.inputs.max_jobs.value) if "max_jobs" in self.inputs else DEFAULT_MAX_JOBS

    def _last_checkpoint(self) -> orm.SinglefileData | None:
        for uuid in reversed(self.ctx.jobs):
            if "checkpoint" in (outputs := orm.load_node(uuid).outputs):
                return outputs.checkpoint
        return None

    def _pass_on(self, uuid: str, names: tuple[str, ...]) -> None:
        outputs = orm.load_node(uuid).outputs
        for name in names:
            if name in outputs:
                self.out(name, outputs[name])


def _validate_max_jobs(value: orm.Int | None, _: Any) -> str | None:
    return f"max_jobs must be at least 1, got {value.value}" if value is not None and value.value < 1 else None
