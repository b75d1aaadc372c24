"""LabelWorkChain: frames × fidelities -> labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessBuilder, while_
from aiida.engine.processes.workchains.workchain import WorkChainSpec

from aiida_mlip.calculations.functions.label import assemble_labels, plan_labels
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import EXPECTED_CALLS, WORK_DONE
from aiida_mlip.data.reuse import find_labelled_datasets
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities
from aiida_mlip.workchains.label_inputs import (
    DEFAULT_MAX_CONCURRENT,
    DEFAULT_MAX_FAILED_FRACTION,
    family_of,
    resolved_fidelities,
    settings_hashes,
    validate_label_inputs,
    wanted_frames,
)
from aiida_mlip.workchains.label_jobs import LabelJobs


class LabelWorkChain(LabelJobs):
    """Label the frames of a dataset at one or more levels of theory.

    Nothing that has a label with the same settings is computed again; a frame that fails stays in the result with the
    class of its failure; at most ``max_concurrent`` calculations are alive at once.
    """

    @classmethod
    def define(cls, spec: WorkChainSpec) -> None:
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Frames to label; a frame that appears twice counts once.")
        spec.input(
            "fidelities",
            valid_type=orm.Dict,
            serializer=orm.to_aiida_type,
            help="Levels of theory by name; see `aiida_mlip.protocols.fidelity`.",
        )
        spec.input_namespace("codes", help="Programs of the engines that the fidelities use.")
        spec.input("codes.pw", valid_type=orm.AbstractCode, required=False, help="pw.x, for the engine qe.")
        spec.input(
            "codes.ase", valid_type=orm.AbstractCode, required=False, help="aiida-mlip-label, for the engine ase."
        )
        spec.input(
            "max_concurrent",
            valid_type=orm.Int,
            serializer=orm.to_aiida_type,
            required=False,
            help=f"Calculations alive at once (default {DEFAULT_MAX_CONCURRENT}).",
        )
        spec.input(
            "max_core_hours",
            valid_type=orm.Float,
            serializer=orm.to_aiida_type,
            required=False,
            help="Core-hours of all labels together that are never exceeded: no job is started whose walltime is not "
            "covered by what is left (default: no limit).",
        )
        spec.input(
            "max_failed_fraction",
            valid_type=orm.Float,
            serializer=orm.to_aiida_type,
            required=False,
            help="Failed labels, as a fraction of all, past which the workchain stops and fails "
            f"(default {DEFAULT_MAX_FAILED_FRACTION}).",
        )
        spec.input(
            "isolated_atoms",
            valid_type=orm.Bool,
            serializer=orm.to_aiida_type,
            required=False,
            help="Also label one isolated atom per species and fidelity (default no).",
        )
        spec.input(
            "reuse",
            valid_type=orm.Bool,
            serializer=orm.to_aiida_type,
            required=False,
            help="Use labels of the profile that have the same settings (default yes).",
        )
        spec.input(
            "options",
            valid_type=orm.Dict,
            serializer=orm.to_aiida_type,
            required=False,
            help="Options of the jobs (resources, max_wallclock_seconds, withmpi, queue_name, ...), for all engines or "
            "per engine: {'qe': {...}, 'ase': {...}}, and under 'bundle' what differs from 'qe' in jobs of many frames "
            "(e.g. all cores of a machine, side_by_side). Default: one core.",
        )
        spec.inputs.validator = validate_label_inputs
        spec.output("dataset", valid_type=DatasetData, required=False, help="One row per frame and fidelity.")
        spec.output("summary", valid_type=orm.Dict, help="Computed, reused, failed by class, and core-seconds.")
        spec.outline(
            cls.setup,
            cls.plan,
            while_(cls.has_work)(
                cls.run_labels,
                cls.inspect_labels,
            ),
            cls.assemble,
            cls.finalize,
        )
        spec.exit_code(201, "ERROR_INVALID_FRAMES", message="A frame cannot be labelled: {reason}")
        spec.exit_code(
            310, "ERROR_NO_LABELS", message="Not one frame could be labelled; the failed rows are in the output."
        )
        spec.exit_code(
            410,
            "ERROR_TOO_MANY_FAILED",
            message="{failed} of {total} labels failed, more than the fraction {allowed} that is allowed; "
            "what there is, is in the output.",
        )
        spec.exit_code(
            411,
            "ERROR_CORE_HOURS_SPENT",
            message="{not_run} of {total} labels were not run: what is left of {allowed} core-hours is not enough for "
            "one; what there is, is in the output.",
        )

    @classmethod
    def get_builder_from_protocol(
        cls,
        codes: Mapping[str, orm.AbstractCode | str],
        dataset: DatasetData,
        fidelities: Mapping[str, Any],
        protocol: str | None = None,
        options: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> ProcessBuilder:
        """Builder with every default written out.

        :param codes: ``pw`` and ``ase``, as far as the fidelities need them.
        :param dataset: frames to label.
        :param fidelities: levels of theory as plain mappings; cutoffs left out are taken from the family.
        :param protocol: ``fast``, ``moderate`` or ``precise``, for the fidelities that name none.
        :param options: of the jobs.
        :param inputs: any other input port.
        :raises ProtocolError: a fidelity is not valid.
        """
        builder = cls.get_builder()
        builder.dataset = dataset
        builder.fidelities = orm.Dict(resolved_fidelities(fidelities, dataset.species, protocol=protocol))
        for name, code in codes.items():
            builder.codes[name] = orm.load_code(code) if isinstance(code, str) else code
        if options is not None:
            builder.options = orm.Dict(dict(options))
        for name, value in inputs.items():
            builder[name] = value
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def setup(self) -> ExitCode | None:
        """Read the settings and check the frames."""
        fraction = self.inputs.get("max_failed_fraction", None)
        limit = self.inputs.get("max_concurrent", None)
        self.ctx.max_failed_fraction = DEFAULT_MAX_FAILED_FRACTION if fraction is None else fraction.value
        self.ctx.max_concurrent = DEFAULT_MAX_CONCURRENT if limit is None else limit.value
        self.ctx.plan = self.ctx.result = self.ctx.isolated = None
        self.ctx.earlier = []
        self.begin_sharing()
        self.ctx.n_failed = 0
        self.ctx.n_labels = 0
        self.ctx.stopped = False
        try:
            check_geometries(self.inputs.dataset.frames())
        except MlipError as error:
            return self.exit_codes.ERROR_INVALID_FRAMES.format(reason=error)
        return None

    def plan(self) -> None:
        """Find what is not labelled yet and divide it into batches."""
        fidelities = self.inputs.fidelities.get_dict()
        sources: dict[str, orm.Data] = {}
        for i, spec in enumerate(parse_fidelities(fidelities).values()):
            if isinstance(spec, QeFidelity):
                sources |= {f"upf_{i}_{upf.element}": upf for upf in family_of(spec.pseudo_family).nodes}
        hashes = settings_hashes(fidelities)
        if self._reuse:
            self.ctx.hashes = list(hashes.values())
            self._notice_others()  # before labels are looked for, so that nothing ends between the two
            wanted = wanted_frames(self.inputs.dataset, hashes, isolated=self._isolated)
            found = find_labelled_datasets(wanted, exclude=[self.inputs.dataset.uuid])
            self.ctx.earlier = [node.uuid for node in found]
        sources |= {f"earlier_{i:03d}": orm.load_node(uuid) for i, uuid in enumerate(self.ctx.earlier)}
        if "isolated_atoms" in self.inputs:
            sources["isolated_atoms"] = self.inputs.isolated_atoms
        outputs = plan_labels(
            self.inputs.dataset, self.inputs.fidelities, metadata={"call_link_label": "plan_labels"}, **sources
        )
        self.ctx.isolated = outputs["isolated"].uuid if "isolated" in outputs else None
        plan = outputs["plan"]
        self.begin_tasks(plan)
        self.ctx.n_labels = plan["n_labels"]
        self.node.base.extras.set(EXPECTED_CALLS, plan["n_jobs"])
        self.report(f"{plan['n_labels']} labels to compute, in {plan['n_batches']} batches")
        for name, entry in plan["forecast"].items():
            if entry["n_expected"]:
                self.report(_forecast_line(name, entry))

    def has_work(self) -> bool:
        """Whether something runs, or waits to be started."""
        return bool(self.ctx.open) or (bool(self.has_tasks or self.ctx.parked) and not self.ctx.stopped)

    def run_labels(self) -> None:
        """Start label calculations up to the limit; the ones still running stay awaited."""
        while self.has_tasks and not self.ctx.stopped and len(self.ctx.open) < self.ctx.max_concurrent:
            if not self.start_task(*self.next_task()):
                if not (self.ctx.open or self.ctx.parked):
                    self.report("what is left of max_core_hours is not enough for a label: no more are started")
                    self.ctx.stopped = True
                break
        for key, pk in self.ctx.open.items():
            self.to_context(**{f"children.label_{key}": orm.load_node(pk)})
        self._await_others()

    def inspect_labels(self) -> None:
        """Take note of the calculations that ended, and collect each batch that is complete."""
        self._others_ended()
        for key, pk in list(self.ctx.open.items()):
            node = orm.load_node(pk)
            if not node.is_terminated:
                continue
            del self.ctx.open[key]
            self.ctx.children.pop(f"label_{key}", None)
            if not node.is_finished_ok:
                self.report(f"{node.process_label}<{pk}> ({node.label}) failed with exit status {node.exit_status}")
            batch, place = (int(part) for part in key.split("_"))
            self.ctx.n_failed += self.close_task(batch, place, node)
        self.collect_complete()
        self.node.base.extras.set(WORK_DONE, self.work_done())
        if self.has_tasks and self.ctx.n_failed > self.ctx.max_failed_fraction * self.ctx.n_labels:
            self.report(f"{self.ctx.n_failed} labels failed: no more are started")
            self.ctx.stopped = True

    def assemble(self) -> None:
        """Collect what is left and put all labels onto the frames."""
        self.collect_all()
        sources: dict[str, orm.Data] = {}
        for batch, pks in self.ctx.results.items():
            for j, pk in enumerate(pks):
                outputs = orm.load_node(pk).outputs
                sources[f"part_{int(batch):04d}_{j:02d}"] = outputs.dataset
                sources[f"report_{int(batch):04d}_{j:02d}"] = outputs.report
        if self.ctx.isolated is not None:
            sources["isolated"] = orm.load_node(self.ctx.isolated)
        sources |= {f"earlier_{i:03d}": orm.load_node(uuid) for i, uuid in enumerate(self.ctx.earlier)}
        outputs = assemble_labels(
            self.inputs.dataset,
            orm.load_node(self.ctx.plan),
            metadata={"call_link_label": "assemble_labels"},
            **sources,
        )
        self.ctx.result = {name: node.uuid for name, node in outputs.items()}

    def finalize(self) -> ExitCode | None:
        """Return the labelled dataset and the summary, and judge the failures."""
        for name, uuid in self.ctx.result.items():
            self.out(name, orm.load_node(uuid))
        summary = orm.load_node(self.ctx.result["summary"]).get_dict()["fidelities"]
        counts = {
            key: sum(entry[key] for entry in summary.values()) for key in ("computed", "reused", "failed", "not_run")
        }
        total = sum(counts.values())
        self.report(", ".join(f"{number} {key}" for key, number in counts.items()))
        if counts["computed"] + counts["reused"] == 0:
            return self.exit_codes.ERROR_NO_LABELS
        if counts["failed"] > self.ctx.max_failed_fraction * total:
            return self.exit_codes.ERROR_TOO_MANY_FAILED.format(
                failed=counts["failed"], total=total, allowed=self.ctx.max_failed_fraction
            )
        if counts["not_run"] and "max_core_hours" in self.inputs:
            return self.exit_codes.ERROR_CORE_HOURS_SPENT.format(
                not_run=counts["not_run"], total=total, allowed=self.inputs.max_core_hours.value
            )
        return None

    def has_reason_to_go_on(self, n_running: int) -> bool:
        """Refill when half of the places are free and something waits."""
        return self.has_tasks and not self.ctx.stopped and 2 * n_running <= self.ctx.max_concurrent

    @property
    def _isolated(self) -> bool:
        return bool(self.inputs.isolated_atoms.value) if "isolated_atoms" in self.inputs else False


def _forecast_line(name: str, forecast: Mapping[str, Any]) -> str:
    """What labels are expected to cost, in words."""
    source = {
        "measured": f"by {forecast['n_measured']} labels that were measured",
        "scaled": "by what labels of another fidelity took",
        "guessed": "an order of magnitude: none was measured yet",
    }[forecast["source"]]
    unknown = forecast["n_labels"] - forecast["n_expected"]
    hours = forecast["core_seconds"] / 3600
    return f"{name}: {forecast['n_expected']} labels are expected to take {hours:.3g} core-hours ({source})" + (
        f"; nothing is known of {unknown} others" if unknown else ""
    )
