"""LabelWorkChain: frames × fidelities -> labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import ExitCode, ProcessBuilder, while_
from aiida.engine.processes.workchains.workchain import WorkChainSpec
from aiida.plugins import WorkflowFactory

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.calculations.functions.label import (
    assemble_labels,
    collect_labels,
    plan_labels,
    prepare_labels,
    rest_of_batch,
)
from aiida_mlip.calculations.functions.qe_labels import kpoints_label, parameters_label
from aiida_mlip.data.batches import parse_batch
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import EXPECTED_CALLS
from aiida_mlip.data.reuse import SETTINGS, find_finished_calculations, find_labelled_datasets, same_structure
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.kernel.kpoints import mesh_from_distance
from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities
from aiida_mlip.workchains.early_resume import EarlyResumeWorkChain
from aiida_mlip.workchains.label_inputs import (
    DEFAULT_MAX_CONCURRENT,
    DEFAULT_MAX_FAILED_FRACTION,
    cell_and_pbc,
    family_of,
    job_options,
    resolved_fidelities,
    settings_hashes,
    validate_label_inputs,
    wanted_frames,
)

PwBaseWorkChain = WorkflowFactory("quantumespresso.pw.base")
#: How a job ends that something from outside has ended; and how often in a row one is begun again that got nowhere.
_INTERRUPTED: Final[frozenset[int]] = frozenset(
    code.status
    for code in (
        AseLabelCalculation.exit_codes.ERROR_OUTPUT_MISSING,
        AseLabelCalculation.exit_codes.ERROR_OUTPUT_TRUNCATED,
        AseLabelCalculation.exit_codes.ERROR_INTERRUPTED,
        AseLabelCalculation.exit_codes.ERROR_SCHEDULER_OUT_OF_WALLTIME,
        AseLabelCalculation.exit_codes.ERROR_SCHEDULER_NODE_FAILURE,
    )
)
MAX_AGAIN: Final[int] = 1
PW_BASE: Final[str] = "aiida.workflows:quantumespresso.pw.base"


class LabelWorkChain(EarlyResumeWorkChain):
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
            "per engine: {'qe': {...}, 'ase': {...}}. Default: one core.",
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
        self.ctx.batches = []  # uuid, frames (uuid), engine, prepared (pk or None), result (pk or None), found, n
        self.ctx.queue = []  # [batch, index] still to be started
        self.ctx.open = {}  # "<batch>_<index>" -> pk of the running process
        self.ctx.known = {}  # "<settings> <frame id>" -> pk of a finished process of an earlier campaign
        self.ctx.plan = self.ctx.result = self.ctx.isolated = None
        self.ctx.earlier = []
        self.ctx.n_failed = 0
        self.ctx.n_tasks = 0
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
        if self._reuse:
            hashes = settings_hashes(fidelities)
            wanted = wanted_frames(self.inputs.dataset, hashes, isolated=self._isolated)
            found = find_labelled_datasets(wanted, exclude=[self.inputs.dataset.uuid])
            self.ctx.earlier = [node.uuid for node in found]
        sources |= {f"earlier_{i:03d}": orm.load_node(uuid) for i, uuid in enumerate(self.ctx.earlier)}
        if "isolated_atoms" in self.inputs:
            sources["isolated_atoms"] = self.inputs.isolated_atoms
        outputs = plan_labels(
            self.inputs.dataset, self.inputs.fidelities, metadata={"call_link_label": "plan_labels"}, **sources
        )
        self.ctx.plan = outputs["plan"].uuid
        self.ctx.isolated = outputs["isolated"].uuid if "isolated" in outputs else None
        for _, node in sorted(item for item in outputs.items() if item[0].startswith("batch_")):
            self._enqueue(node)
        if self._reuse:
            self._recover()
        self.node.base.extras.set(EXPECTED_CALLS, len(self.ctx.queue))
        self.report(f"{self.ctx.n_tasks} labels to compute, in {len(self.ctx.batches)} batches")

    def has_work(self) -> bool:
        """Whether something runs, or waits to be started."""
        return bool(self.ctx.open) or bool(self.ctx.queue and not self.ctx.stopped)

    def run_labels(self) -> None:
        """Start label calculations up to the limit; the ones still running stay awaited."""
        while self.ctx.queue and not self.ctx.stopped and len(self.ctx.open) < self.ctx.max_concurrent:
            batch, index = self.ctx.queue.pop(0)
            key = f"{batch}_{index}"
            node = (
                self._start_ase(batch) if self.ctx.batches[batch]["engine"] == "ase" else self._start_qe(batch, index)
            )
            if node is not None:
                self.ctx.open[key] = node.pk
        for key, pk in self.ctx.open.items():
            self.to_context(**{f"children.label_{key}": orm.load_node(pk)})

    def inspect_labels(self) -> None:
        """Take note of the calculations that ended, and collect each batch that is complete."""
        for key, pk in list(self.ctx.open.items()):
            node = orm.load_node(pk)
            if not node.is_terminated:
                continue
            del self.ctx.open[key]
            self.ctx.children.pop(f"label_{key}", None)
            batch, index = (int(part) for part in key.split("_"))
            self.ctx.batches[batch]["found"][str(index)] = pk
            if not node.is_finished_ok:
                self.report(f"{node.process_label}<{pk}> ({node.label}) failed with exit status {node.exit_status}")
            if self._goes_on(batch, node):
                continue
            self.ctx.n_failed += _n_failed(node)
        for batch, entry in enumerate(self.ctx.batches):
            if entry["result"] is None and len(entry["found"]) == entry["n"]:
                self._collect(batch)
        if self.ctx.queue and self.ctx.n_failed > self.ctx.max_failed_fraction * self.ctx.n_tasks:
            self.report(f"{self.ctx.n_failed} labels failed: no more are started")
            self.ctx.stopped = True

    def assemble(self) -> None:
        """Collect what is left and put all labels onto the frames."""
        sources: dict[str, orm.Data] = {}
        for i, entry in enumerate(self.ctx.batches):
            if entry["result"] is None and entry["found"]:
                self._collect(i)
            left = entry["interrupted"] + ([] if entry["result"] is None else [entry["result"]])
            for j, pk in enumerate(left):
                outputs = orm.load_node(pk).outputs
                sources[f"part_{i:04d}_{j:02d}"] = outputs.dataset
                sources[f"report_{i:04d}_{j:02d}"] = outputs.report
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
        return None

    # -- one label ---------------------------------------------------------------------------------------------

    @property
    def _reuse(self) -> bool:
        return bool(self.inputs.reuse.value) if "reuse" in self.inputs else True

    @property
    def _isolated(self) -> bool:
        return bool(self.inputs.isolated_atoms.value) if "isolated_atoms" in self.inputs else False

    def _enqueue(self, node: orm.Dict) -> None:
        """Note a batch and its tasks: one per frame (qe), or one for all frames (ase)."""
        content = node.get_dict()
        engine = content["spec"]["engine"]
        number, rows = len(self.ctx.batches), len(content["rows"])
        frames = self.inputs.dataset.uuid if content["source"] == "dataset" else self.ctx.isolated
        n = rows if engine == "qe" else 1
        entry = {"uuid": node.uuid, "frames": frames, "engine": engine, "n": n, "rows": rows}
        left: dict[str, Any] = {
            "prepared": None,
            "result": None,
            "found": {},
            "reused": [],
            "jobs": 0,
            "in_vain": 0,
            "interrupted": [],
        }
        self.ctx.batches.append({**entry, **left})
        self.ctx.queue += [[number, index] for index in range(n)]
        self.ctx.n_tasks += rows

    def _recover(self) -> None:
        """Note finished calculations of earlier campaigns for frames that no dataset has a label for."""
        batches = [orm.load_node(entry["uuid"]).get_dict() for entry in self.ctx.batches if entry["engine"] == "qe"]
        finished = find_finished_calculations({content["settings"] for content in batches}, PW_BASE)
        for content in batches:
            for frame_id in content["frame_ids"]:
                if (pk := finished.get((content["settings"], frame_id))) is not None:
                    self.ctx.known[f"{content['settings']} {frame_id}"] = pk

    def _start_qe(self, batch: int, index: int) -> orm.ProcessNode | None:
        """Submit pw.x for one frame; None if an earlier campaign has computed it."""
        entry = self.ctx.batches[batch]
        node = orm.load_node(entry["uuid"])
        frames = orm.load_node(entry["frames"])
        if entry["prepared"] is None:
            label = f"prepare_{_identifier(node.get_dict()['fidelity'])}_{batch:04d}"
            _, made = prepare_labels.run_get_node(frames, node, metadata={"call_link_label": label})
            entry["prepared"] = made.pk
        content = node.get_dict()
        outputs = orm.load_node(entry["prepared"]).outputs
        structure = outputs[f"structure_{index:04d}"]
        row, frame_id = content["rows"][index], content["frame_ids"][index]
        known = self.ctx.known.get(f"{content['settings']} {frame_id}")
        if known is not None and same_structure(orm.load_node(known).inputs.pw.structure, structure):
            entry["found"][str(index)] = known
            entry["reused"].append(index)
            return None
        spec = cast(QeFidelity, parse_batch(content))
        mesh = mesh_from_distance(*cell_and_pbc(structure), spec.kpoints_distance_inv_ang)
        symbols = sorted(structure.get_symbols_set())
        family = family_of(spec.pseudo_family)
        name = _identifier(content["fidelity"])
        return self.submit(
            PwBaseWorkChain,
            pw={
                "code": self.inputs.codes.pw,
                "structure": structure,
                "parameters": outputs[parameters_label(symbols, len(structure.sites))],
                "pseudos": {symbol: family.get_pseudo(symbol) for symbol in symbols},
                "metadata": {"options": job_options(self.inputs, "qe")},
            },
            kpoints=outputs[kpoints_label(mesh)],
            max_iterations=outputs["max_iterations"],
            clean_workdir=outputs["clean_workdir"],
            metadata={
                "label": f"{content['fidelity']}:{frame_id}",
                "description": SETTINGS + content["settings"],
                "call_link_label": f"{'label' if content['source'] == 'dataset' else 'atom'}_{name}_{row:05d}",
            },
        )

    def _start_ase(self, batch: int) -> orm.ProcessNode:
        """Submit one job for all frames of a batch, or for those that an interrupted job has left."""
        entry = self.ctx.batches[batch]
        node = orm.load_node(entry["uuid"])
        name = node.get_dict()["fidelity"]
        entry["jobs"] += 1
        again = f"_again_{entry['jobs'] - 1:02d}" if entry["jobs"] > 1 else ""
        return self.submit(
            AseLabelCalculation,
            code=self.inputs.codes.ase,
            dataset=orm.load_node(entry["frames"]),
            batch=node,
            metadata={
                "label": f"{name}:{len(node.get_dict()['rows'])} frames",
                "description": SETTINGS + node.get_dict()["settings"],
                "options": job_options(self.inputs, "ase"),
                "disable_cache": not self._reuse,
                "call_link_label": f"label_{_identifier(name)}_batch_{batch:04d}{again}",
            },
        )

    def _goes_on(self, batch: int, node: orm.ProcessNode) -> bool:
        """Queue what an interrupted job of the ASE engine has left: at once if it got anywhere, else once more."""
        entry = self.ctx.batches[batch]
        if entry["engine"] != "ase" or node.exit_status not in _INTERRUPTED or "report" not in node.outputs:
            return False
        rest, made = rest_of_batch.run_get_node(
            orm.load_node(entry["uuid"]),
            node.outputs.dataset,
            metadata={"call_link_label": f"rest_of_batch_{batch:04d}_{entry['jobs']:02d}"},
        )
        if not made.is_finished_ok:
            return False
        if rest["batch"]["rows"] != orm.load_node(entry["uuid"])["rows"]:
            entry["in_vain"] = 0
            entry["interrupted"].append(node.pk)
        elif entry["in_vain"] < MAX_AGAIN:
            entry["in_vain"] += 1
        else:
            return False
        entry["uuid"] = rest["batch"].uuid
        entry["found"] = {}
        self.ctx.queue.insert(0, [batch, 0])
        self.report(f"{len(rest['batch']['rows'])} frames are left of batch {batch}: going on with them")
        return True

    def _collect(self, batch: int) -> None:
        """Turn what the processes of a batch left into rows of a dataset."""
        entry = self.ctx.batches[batch]
        if entry["engine"] == "ase":
            child = orm.load_node(entry["found"]["0"])
            if "dataset" in child.outputs and "report" in child.outputs:
                entry["result"] = child.pk
                return
        node = orm.load_node(entry["uuid"])
        children: dict[str, orm.Data] = {}
        for index, pk in entry["found"].items():
            prefix = "reused_" if int(index) in entry["reused"] else ""
            children |= {f"{prefix}{kind}_{int(index):04d}": data for kind, data in _left_by(orm.load_node(pk)).items()}
        label = f"collect_{_identifier(node.get_dict()['fidelity'])}_{batch:04d}"
        _, made = collect_labels.run_get_node(
            orm.load_node(entry["frames"]), node, metadata={"call_link_label": label}, **children
        )
        entry["result"] = made.pk

    def has_reason_to_go_on(self, n_running: int) -> bool:
        """Refill when half of the places are free and something waits."""
        return bool(self.ctx.queue) and not self.ctx.stopped and 2 * n_running <= self.ctx.max_concurrent


def _left_by(node: orm.ProcessNode) -> dict[str, orm.Data]:
    """Nodes that tell what became of a label process: results if it finished well, else the files of its last job."""
    if node.is_finished_ok and "output_trajectory" in node.outputs:
        return {
            "structure": node.inputs.pw.structure,
            "parameters": node.outputs.output_parameters,
            "trajectory": node.outputs.output_trajectory,
        }
    if isinstance(node, orm.CalcJobNode):
        return {}
    result: dict[str, orm.Data] = {"structure": node.inputs.pw.structure}
    jobs = node.base.links.get_outgoing(node_class=orm.CalcJobNode, link_type=LinkType.CALL_CALC).all_nodes()
    if jobs and "retrieved" in (last := max(jobs, key=lambda job: job.pk)).outputs:
        result["retrieved"] = last.outputs.retrieved
    return result


def _n_failed(node: orm.ProcessNode) -> int:
    """Labels that a terminated process failed to give."""
    if isinstance(node, orm.CalcJobNode) and "report" in node.outputs:
        return len(node.outputs.report.get_dict()["failures"])
    return int(not node.is_finished_ok)


def _identifier(name: str) -> str:
    """A fidelity's name as part of a link label."""
    return re.sub(r"_+", "_", re.sub(r"\W", "_", name)).strip("_")
