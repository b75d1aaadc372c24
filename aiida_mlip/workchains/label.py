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
    divide_batch,
    frames_alone,
    plan_labels,
    prepare_labels,
    rest_of_batch,
)
from aiida_mlip.calculations.functions.qe_labels import kpoints_label, parameters_label
from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.batches import parse_batch
from aiida_mlip.data.bundling import dataset_with_costs
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import EXPECTED_CALLS
from aiida_mlip.data.reuse import SETTINGS, find_finished_calculations, find_labelled_datasets, same_structure
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.kernel.kpoints import mesh_from_distance
from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities
from aiida_mlip.workchains.early_resume import EarlyResumeWorkChain
from aiida_mlip.workchains.label_inputs import (
    BUNDLE,
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
    job.exit_codes[name].status
    for job in (AseLabelCalculation, PwBundleCalculation)
    for name in (
        "ERROR_OUTPUT_MISSING",
        "ERROR_OUTPUT_TRUNCATED",
        "ERROR_INTERRUPTED",
        "ERROR_SCHEDULER_OUT_OF_WALLTIME",
        "ERROR_SCHEDULER_NODE_FAILURE",
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
        self.ctx.batches = []  # uuid, frames (uuid), job, prepared (pk or None), result (pk or None), found, n
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
        hashes = settings_hashes(fidelities)
        sources |= self._measured_costs(fidelities, hashes)
        if self._reuse:
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
        batches = [node for _, node in sorted(item for item in outputs.items() if item[0].startswith("batch_"))]
        if self._reuse:
            self._recover(batches)
        for node in batches:
            for part in self._divided(node):
                self._enqueue(part)
                self.ctx.n_tasks += len(part["rows"])
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
            node = self._start_job(batch) if self.ctx.batches[batch]["job"] else self._start_qe(batch, index)
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
            later = self._retry_alone(batch, node) + self._goes_on(batch, node)
            self.ctx.n_failed += _n_failed(node) - later
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

    def _measured_costs(self, fidelities: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, orm.Data]:
        """A dataset that knows what labels cost, for each fidelity whose bundles are to be chosen."""
        found = {
            f"costs_{i}": dataset_with_costs(hashes[name])
            for i, (name, spec) in enumerate(parse_fidelities(fidelities).items())
            if isinstance(spec, QeFidelity) and spec.bundle_size is None
        }
        return {key: node for key, node in found.items() if node is not None and node.pk != self.inputs.dataset.pk}

    def _recover(self, batches: list[orm.Dict]) -> None:
        """Note finished calculations of earlier campaigns for frames that no dataset has a label for."""
        contents = [content for node in batches if "frame_ids" in (content := node.get_dict())]
        finished = find_finished_calculations({content["settings"] for content in contents}, PW_BASE)
        for content in contents:
            for frame_id in content["frame_ids"]:
                if (pk := finished.get((content["settings"], frame_id))) is not None:
                    self.ctx.known[f"{content['settings']} {frame_id}"] = pk

    def _divided(self, node: orm.Dict) -> list[orm.Dict]:
        """A batch, or, where earlier calculations know frames of a bundle, those and the rest of it."""
        content = node.get_dict()
        keys = [f"{content['settings']} {frame_id}" for frame_id in content.get("frame_ids", [])]
        known = {i: self.ctx.known[key] for i, key in enumerate(keys) if key in self.ctx.known}
        if not content.get("bundle") or not known:
            return [node]
        structures = {f"structure_{i:05d}": orm.load_node(pk).inputs.pw.structure for i, pk in known.items()}
        parts = divide_batch(
            node, metadata={"call_link_label": f"divide_batch_{len(self.ctx.batches):04d}"}, **structures
        )
        return [part for _, part in sorted(parts.items())]

    def _enqueue(self, node: orm.Dict) -> None:
        """Note a batch and its tasks: one per frame (qe), or one for all frames (ase, bundles of qe)."""
        content = node.get_dict()
        number = len(self.ctx.batches)
        job = BUNDLE if content.get("bundle") else "ase" if content["spec"]["engine"] == "ase" else None
        entry = {
            "uuid": node.uuid,
            "frames": self.inputs.dataset.uuid if content["source"] == "dataset" else self.ctx.isolated,
            "job": job,
            "n": 1 if job else len(content["rows"]),
        }
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
        self.ctx.queue += [[number, index] for index in range(entry["n"])]

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

    def _start_job(self, batch: int) -> orm.ProcessNode:
        """Submit one job for all frames of a batch, or for those that an interrupted job has left."""
        entry = self.ctx.batches[batch]
        node = orm.load_node(entry["uuid"])
        name = node["fidelity"]
        entry["jobs"] += 1
        again = f"_again_{entry['jobs'] - 1:02d}" if entry["jobs"] > 1 else ""
        dataset = orm.load_node(entry["frames"])
        inputs: dict[str, Any] = {"code": self.inputs.codes.get("ase", None)}
        if entry["job"] == BUNDLE:
            family = family_of(node["spec"]["pseudo_family"])
            pseudos = {symbol: family.get_pseudo(symbol) for symbol in dataset.species}
            inputs = {"code": self.inputs.codes.pw, "pseudos": pseudos}
        return self.submit(
            PwBundleCalculation if entry["job"] == BUNDLE else AseLabelCalculation,
            dataset=dataset,
            batch=node,
            metadata={
                "label": f"{name}:{len(node['rows'])} frames",
                "description": SETTINGS + node["settings"],
                "options": job_options(self.inputs, entry["job"]),
                "disable_cache": not self._reuse,
                "call_link_label": f"label_{_identifier(name)}_batch_{batch:04d}{again}",
            },
            **inputs,
        )

    def _retry_alone(self, batch: int, node: orm.ProcessNode) -> int:
        """Queue frames that failed in a bundle, of what their own job may cure; how many they are."""
        entry = self.ctx.batches[batch]
        if entry["job"] != BUNDLE or "report" not in node.outputs or not node.outputs.report["again"]:
            return 0
        label = f"frames_alone_{batch:04d}_{entry['jobs']:02d}"
        alone = frames_alone(node.inputs.batch, node.outputs.report, metadata={"call_link_label": label})
        self._enqueue(alone["batch"])
        self.report(f"{len(alone['batch']['rows'])} frames of batch {batch} failed: each is tried again alone")
        return len(alone["batch"]["rows"])

    def _goes_on(self, batch: int, node: orm.ProcessNode) -> int:
        """Queue what an interrupted job has left: at once if it got anywhere, else once more; how many frames it is.

        Frames of a bundle that got nowhere even so are tried one by one.
        """
        entry = self.ctx.batches[batch]
        interrupted = node.exit_status in _INTERRUPTED or (entry["job"] == BUNDLE and node.is_failed)
        if entry["job"] is None or not interrupted or "report" not in node.outputs:
            return 0
        rest, made = rest_of_batch.run_get_node(
            orm.load_node(entry["uuid"]),
            node.outputs.dataset,
            node.outputs.report,
            metadata={"call_link_label": f"rest_of_batch_{batch:04d}_{entry['jobs']:02d}"},
        )
        if not made.is_finished_ok:
            return 0
        left = rest["batch"]
        if len(left["rows"]) < len(orm.load_node(entry["uuid"])["rows"]):
            entry["in_vain"] = 0
            entry["interrupted"].append(node.pk)
        elif entry["in_vain"] < MAX_AGAIN:
            entry["in_vain"] += 1
        elif entry["job"] == BUNDLE:
            alone = frames_alone(left, metadata={"call_link_label": f"frames_alone_{batch:04d}_rest"})
            self._enqueue(alone["batch"])
            self.report(f"batch {batch} gets nowhere: each of its {len(left['rows'])} frames is tried alone")
            return len(left["rows"])
        else:
            return 0
        entry["uuid"] = left.uuid
        entry["found"] = {}
        self.ctx.queue.insert(0, [batch, 0])
        self.report(f"{len(left['rows'])} frames are left of batch {batch}: going on with them")
        return len(left["rows"])

    def _collect(self, batch: int) -> None:
        """Turn what the processes of a batch left into rows of a dataset."""
        entry = self.ctx.batches[batch]
        if entry["job"]:
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
