"""The jobs of a labelling: which comes next, how it is started, what is done with what it left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

from aiida import orm
from aiida.common.links import LinkType
from aiida.plugins import WorkflowFactory

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.calculations.functions.label import (
    collect_labels,
    divide_batch,
    frames_alone,
    prepare_labels,
    rest_of_batch,
)
from aiida_mlip.calculations.functions.qe_labels import kpoints_label, may_come_again, parameters_label
from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.batches import parse_batch
from aiida_mlip.data.extras import DAMAGED
from aiida_mlip.data.reuse import SETTINGS, find_finished_calculations, same_structure
from aiida_mlip.kernel.frames import Failure
from aiida_mlip.kernel.kpoints import mesh_from_distance
from aiida_mlip.protocols.fidelity import QeFidelity
from aiida_mlip.workchains.label_inputs import BUNDLE, cell_and_pbc, family_of, job_options, walltime_is_stated
from aiida_mlip.workchains.label_walltime import affordable_walltime, job_shape, job_walltime, spent_core_seconds
from aiida_mlip.workchains.shared_frames import SharedFramesWorkChain, one_at_a_time

PwBaseWorkChain = WorkflowFactory("quantumespresso.pw.base")
PW_BASE: Final[str] = "aiida.workflows:quantumespresso.pw.base"
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


class LabelJobs(SharedFramesWorkChain):
    """WorkChain that works through the batches of a plan.

    A *task* is one process: a frame of its own, or one job for all frames of a batch. What is kept of a batch until all
    its tasks have ended is in ``ctx.batches``; of the batches to come only the place that was reached is kept, and of
    those that are done what holds their labels: checkpoints stay small however many labels there are.
    """

    _earlier: Mapping[tuple[str, str], int] | None = None

    def begin_tasks(self, plan: orm.Dict) -> None:
        """Begin with the first batch of a plan."""
        self.ctx.plan = plan.uuid
        self.ctx.n_planned = self.ctx.n_batches = plan["n_batches"]
        self.ctx.next_task = [0, 0]  # batch and place in it
        self.ctx.n_divided = 0
        self.ctx.results = {}  # number -> pks of the processes that made the labels of a batch
        self.ctx.spent = 0.0  # core-seconds of ended tasks
        self.ctx.done = 0.0  # core-seconds that were expected of the labels of ended tasks
        self.ctx.reserved = {}  # "<batch>_<place>" -> core-seconds that a running task may take, under a hard cap

    @property
    def has_tasks(self) -> bool:
        """Whether something waits to be started."""
        return bool(self.ctx.again) or self.ctx.next_task[0] < self.ctx.n_planned

    def next_task(self) -> tuple[int, int]:
        """Batch and place of the task that comes next; it counts as taken."""
        if self.ctx.again:
            batch, place = self.ctx.again.pop(0)
            return batch, place
        batch, place = self.ctx.next_task
        if place == 0:
            self._begin(batch)
        is_last = place + 1 >= self.ctx.batches[str(batch)]["size"]
        self.ctx.next_task = [batch + 1, 0] if is_last else [batch, place + 1]
        return batch, place

    def start_task(self, batch: int, place: int) -> bool:
        """Submit a task, unless another campaign does it or has done it; whether the hard cap allows that now.

        A task that is not allowed comes next again.
        """
        entry = self.ctx.batches[str(batch)]
        if entry["job"] is None:
            self._prepared(batch, place)
        allowed, fate = True, "start"
        with one_at_a_time():
            if self._reuse:
                fate = self._fate(batch, place)
            if fate == "start" and (entry["job"] or not self._is_known(batch, place)):
                allowed = self._submit(batch, place)
        if fate == "labelled":
            self._take_out(batch, place)
        if not allowed:
            self.ctx.again.insert(0, [batch, place])
        return allowed

    def _submit(self, batch: int, place: int) -> bool:
        options = self._options(batch, place)
        if options is None:
            return False
        is_job = self.ctx.batches[str(batch)]["job"]
        node = self._start_job(batch, options) if is_job else self._start_qe(batch, place, options)
        self.ctx.open[f"{batch}_{place}"] = node.pk
        return True

    def close_task(self, batch: int, place: int, node: orm.ProcessNode) -> int:
        """Take note of what an ended task left, and queue what follows from it; how many labels it failed to give."""
        key = f"{batch}_{place}"
        self.ctx.spent += spent_core_seconds(node, self.ctx.reserved.pop(key, 0.0))
        entry = self.ctx.batches[str(batch)]
        entry["found"][str(place)] = node.pk
        expected = self._expected(entry, place)
        later = self._retry_alone(batch, node) + self._goes_on(batch, node) + self._comes_again(batch, node)
        self.ctx.done += sum(cost or 0.0 for cost in expected) * (1 - later / len(expected))
        return _n_failed(node) - later

    def work_done(self) -> float | None:
        """Part of the expected work that is done; None where nothing is expected of some labels."""
        plan = orm.load_node(self.ctx.plan)
        forecast = plan["forecast"].values()
        total = sum(entry["core_seconds"] for entry in forecast)
        if not total or sum(entry["n_expected"] for entry in forecast) < plan["n_labels"]:
            return None
        return float(min(1.0, self.ctx.done / total))

    def collect_complete(self) -> None:
        """Collect the labels of every batch whose tasks have all ended."""
        for batch, entry in list(self.ctx.batches.items()):
            if len(entry["found"]) == entry["n"]:
                self._collect(int(batch))

    def collect_all(self) -> None:
        """Collect what there is of the batches in work."""
        for batch, entry in list(self.ctx.batches.items()):
            if entry["found"] or entry["interrupted"]:
                self._collect(int(batch))

    def _expected(self, entry: Mapping[str, Any], place: int) -> list[float | None]:
        """Core-seconds that are expected of each label of a task."""
        costs: list[float | None] = orm.load_node(entry["uuid"])["expected"]
        return costs if entry["job"] else [costs[place]]

    def _options(self, batch: int, place: int) -> dict[str, Any] | None:
        """Options of the job of a task, with its walltime; None if the hard cap leaves nothing for it now."""
        entry = self.ctx.batches[str(batch)]
        content = orm.load_node(entry["uuid"]).get_dict()
        engine = entry["job"] or "qe"
        options = job_options(self.inputs, engine)
        expected = self._expected(entry, place)
        shape = job_shape(options, len(expected), shared=engine == BUNDLE)
        forecast = orm.load_node(self.ctx.plan)["forecast"].get(content["fidelity"], {})
        is_first = batch < self.ctx.n_planned and entry["jobs"] == 0
        walltime = job_walltime(
            options,
            expected,
            shape,
            stated=walltime_is_stated(self.inputs, engine),
            spread=forecast.get("spread") if is_first else None,
        )
        if "max_core_hours" in self.inputs:
            attempts = 1 if entry["job"] else cast(QeFidelity, parse_batch(content)).max_iterations
            left = 3600 * self.inputs.max_core_hours.value - self.ctx.spent - sum(self.ctx.reserved.values())
            allowed = affordable_walltime(walltime, expected, shape, left=left, attempts=attempts)
            if allowed is None:
                return None
            walltime = allowed
            self.ctx.reserved[f"{batch}_{place}"] = float(walltime * shape.cores * attempts)
        return {**options, "max_wallclock_seconds": walltime}

    def _begin(self, batch: int) -> None:
        """Take a batch of the plan in work, without the frames of a bundle that earlier calculations know."""
        node = orm.load_node(self.ctx.plan).creator.outputs[f"batch_{batch:04d}"]
        parts = self._divided(node)
        self._enter(batch, parts[0])
        for part in parts[1:]:
            self._add(part)

    def _divided(self, node: orm.Dict) -> list[orm.Dict]:
        """A batch, or, where finished calculations of others know frames of a bundle, those and the rest of it."""
        content = node.get_dict()
        if not content.get("bundle"):
            return [node]
        known = {i: pk for i, name in enumerate(content["frame_ids"]) if (pk := self._finished(content, name))}
        if not known:
            return [node]
        structures = {f"structure_{i:05d}": orm.load_node(pk).inputs.pw.structure for i, pk in known.items()}
        parts = divide_batch(node, metadata={"call_link_label": f"divide_batch_{self.ctx.n_divided:04d}"}, **structures)
        self.ctx.n_divided += 1
        return [part for _, part in sorted(parts.items())]

    def _finished(self, content: Mapping[str, Any], frame_id: str) -> int | None:
        """Finished calculation of a frame in another campaign."""
        settings = content["settings"]
        found = cast(int | None, self.ctx.taken.get(f"{settings} {frame_id}", self._known.get((settings, frame_id))))
        return None if found is None or orm.load_node(found).base.extras.get(DAMAGED, False) else found

    def _add(self, node: orm.Dict) -> None:
        """Take a batch in work that is not of the plan; its tasks come next."""
        batch = self.ctx.n_batches
        self.ctx.n_batches += 1
        self._enter(batch, node)
        self.ctx.again += [[batch, place] for place in range(self.ctx.batches[str(batch)]["size"])]

    def _enter(self, batch: int, node: orm.Dict) -> None:
        """Note a batch: one task per frame (qe), or one for all frames (ase, bundles of qe)."""
        content = node.get_dict()
        job = BUNDLE if content.get("bundle") else "ase" if content["spec"]["engine"] == "ase" else None
        entry: dict[str, Any] = {
            "uuid": node.uuid,
            "frames": self.inputs.dataset.uuid if content["source"] == "dataset" else self.ctx.isolated,
            "job": job,
            "size": 1 if job else len(content["rows"]),
            "n": 1 if job else len(content["rows"]),  # less those that another campaign has labelled
            "prepared": None,
            "found": {},
            "reused": [],
            "jobs": 0,
            "in_vain": 0,
            "interrupted": [],
        }
        self.ctx.batches[str(batch)] = entry

    @property
    def _reuse(self) -> bool:
        return bool(self.inputs.reuse.value) if "reuse" in self.inputs else True

    @property
    def _known(self) -> Mapping[tuple[str, str], int]:
        """Finished calculations of earlier campaigns by (settings, frame id); asked once, and again after a restart."""
        if self._earlier is None:
            settings = set(orm.load_node(self.ctx.plan)["settings"].values()) if self._reuse else set()
            found = find_finished_calculations(settings, PW_BASE)
            self._earlier = {key: pk for key, pk in found.items() if pk < self.node.pk}
        return self._earlier

    def _prepared(self, batch: int, place: int) -> tuple[Any, orm.StructureData]:
        """Inputs that were prepared for the frames of a batch, and the structure of one of them."""
        entry = self.ctx.batches[str(batch)]
        if entry["prepared"] is None:
            node = orm.load_node(entry["uuid"])
            label = f"prepare_{_identifier(node['fidelity'])}_{batch:04d}"
            _, made = prepare_labels.run_get_node(
                orm.load_node(entry["frames"]), node, metadata={"call_link_label": label}
            )
            entry["prepared"] = made.pk
        outputs = orm.load_node(entry["prepared"]).outputs
        return outputs, outputs[f"structure_{place:04d}"]

    def _is_known(self, batch: int, place: int) -> bool:
        """Whether an earlier campaign has computed a frame, whose process then counts as its own."""
        entry = self.ctx.batches[str(batch)]
        content = orm.load_node(entry["uuid"]).get_dict()
        known = self._finished(content, content["frame_ids"][place])
        if known is None:
            return False
        _, structure = self._prepared(batch, place)
        if not same_structure(orm.load_node(known).inputs.pw.structure, structure):
            return False
        entry["found"][str(place)] = known
        entry["reused"].append(place)
        return True

    def _start_qe(self, batch: int, place: int, options: Mapping[str, Any]) -> orm.ProcessNode:
        """Submit pw.x for one frame."""
        content = orm.load_node(self.ctx.batches[str(batch)]["uuid"]).get_dict()
        outputs, structure = self._prepared(batch, place)
        row, frame_id = content["rows"][place], content["frame_ids"][place]
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
                "metadata": {"options": dict(options)},
            },
            kpoints=outputs[kpoints_label(mesh)],
            max_iterations=outputs["max_iterations"],
            clean_workdir=outputs["clean_workdir"],
            metadata={
                "label": f"{content['fidelity']}:{frame_id}",
                "description": SETTINGS + content["settings"],
                "call_link_label": f"{'label' if content['source'] == 'dataset' else 'atom'}_{name}_{row:05d}"
                + "_again" * bool(content.get("tries")),
            },
        )

    def _start_job(self, batch: int, options: Mapping[str, Any]) -> orm.ProcessNode:
        """Submit one job for all frames of a batch, or for those that an interrupted job has left."""
        entry = self.ctx.batches[str(batch)]
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
                "options": dict(options),
                "disable_cache": not self._reuse,
                "call_link_label": f"label_{_identifier(name)}_batch_{batch:04d}{again}",
            },
            **inputs,
        )

    def _retry_alone(self, batch: int, node: orm.ProcessNode) -> int:
        """Queue frames that failed in a bundle, of what their own job may cure; how many they are."""
        entry = self.ctx.batches[str(batch)]
        if entry["job"] != BUNDLE or "report" not in node.outputs or not node.outputs.report["again"]:
            return 0
        label = f"frames_alone_{batch:04d}_{entry['jobs']:02d}"
        alone = frames_alone(node.inputs.batch, node.outputs.report, metadata={"call_link_label": label})
        self._add(alone["batch"])
        self.report(f"{len(alone['batch']['rows'])} frames of batch {batch} failed: each is tried again alone")
        return len(alone["batch"]["rows"])

    def _comes_again(self, batch: int, node: orm.ProcessNode) -> int:
        """Whether the frame of a job of its own, that something from outside ended, is tried again: 1, else 0."""
        content = orm.load_node(self.ctx.batches[str(batch)]["uuid"]).get_dict()
        alone = self.ctx.batches[str(batch)]["job"] is None and not content.get("tries")
        if node.is_finished_ok or not alone or content["spec"]["max_iterations"] == 1:
            return 0
        return int(may_come_again(node))

    def _goes_on(self, batch: int, node: orm.ProcessNode) -> int:
        """Queue what an interrupted job has left: at once if it got anywhere, else once more; how many frames it is.

        Frames of a bundle that got nowhere even so are tried one by one.
        """
        entry = self.ctx.batches[str(batch)]
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
            self._add(alone["batch"])
            self.report(f"batch {batch} gets nowhere: each of its {len(left['rows'])} frames is tried alone")
            return len(left["rows"])
        else:
            return 0
        entry["uuid"] = left.uuid
        entry["found"] = {}
        self.ctx.again.insert(0, [batch, 0])
        self.report(f"{len(left['rows'])} frames are left of batch {batch}: going on with them")
        return len(left["rows"])

    def _collect(self, batch: int) -> None:
        """Turn what the processes of a batch left into rows of a dataset; nothing else is kept of it."""
        entry = self.ctx.batches.pop(str(batch))
        self.ctx.results[str(batch)] = [*entry["interrupted"]]
        if not entry["found"]:
            return
        if entry["job"]:
            child = orm.load_node(entry["found"]["0"])
            if "dataset" in child.outputs and "report" in child.outputs:
                self.ctx.results[str(batch)].append(child.pk)
                return
        node = orm.load_node(entry["uuid"])
        children: dict[str, orm.Data] = {}
        for index, pk in entry["found"].items():
            prefix = "reused_" if int(index) in entry["reused"] else ""
            children |= {f"{prefix}{kind}_{int(index):04d}": data for kind, data in _left_by(orm.load_node(pk)).items()}
        label = f"collect_{_identifier(node['fidelity'])}_{batch:04d}"
        _, made = collect_labels.run_get_node(
            orm.load_node(entry["frames"]), node, metadata={"call_link_label": label}, **children
        )
        self.ctx.results[str(batch)].append(made.pk)
        for failure in made.outputs.report.get_dict()["failures"]:
            pk = entry["found"].get(str(node["frame_ids"].index(failure["frame_id"])))
            if failure["class"] == Failure.PARSE.label and pk and (process := orm.load_node(pk)).is_finished_ok:
                process.base.extras.set(DAMAGED, True)
        if made.outputs.report.get_dict().get("again") and not self.ctx.stopped:
            label = f"frames_again_{batch:04d}"
            again = frames_alone(node, made.outputs.report, metadata={"call_link_label": label})
            self._add(again["batch"])
            self.report(f"{len(again['batch']['rows'])} frames of batch {batch} were cut off: each is tried again")


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
