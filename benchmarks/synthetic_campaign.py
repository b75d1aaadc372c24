"""The provenance graph of a long campaign of active learning, written into a profile without running anything.

Every round has what the real one has: a training of two members, an exploration, fragments cut out of its frames, a
selection, and for each label a PwBaseWorkChain with its PwCalculation, collected into a dataset. The datasets are real
(their rows say who made them), everything else is a row of the database with its links.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.links import LinkType
from aiida.common.utils import get_new_uuid
from aiida.manage import get_manager
from aiida.orm.entities import EntityTypes
from sqlalchemy import insert

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import Frames, from_arrays, id_bytes

FUNCTION = ("process.calculation.calcfunction.CalcFunctionNode.", "aiida_mlip.calculations.functions.")
JOB = ("process.calculation.calcjob.CalcJobNode.", "aiida.calculations:")
WORK = ("process.workflow.workchain.WorkChainNode.", "aiida.workflows:")
DICT = "data.core.dict.Dict."
ARRAY = "data.core.array.ArrayData."
#: Simulation frames per round, and atoms of a frame and of a fragment.
N_FRAMES, N_ATOMS, N_CUT = 20, 64, 8
LEVEL, SETTINGS = "dft", "5" * 64


@dataclass
class Campaign:
    """Nodes and links, by number; what is bare has no pk before :meth:`store`.

    :param pks: number -> pk, for those that are stored.
    """

    user: int
    uuids: list[str] = field(default_factory=list)
    pks: dict[int, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    links: list[tuple[int, int, str, str]] = field(default_factory=list)

    def bare(self, node_type: str, process_type: str = "", **attributes: Any) -> int:
        """A node that is one row of the database."""
        number, uuid = len(self.uuids), get_new_uuid()
        self.uuids.append(uuid)
        row = {"uuid": uuid, "node_type": node_type, "process_type": process_type or None, "user_id": self.user}
        row |= {"attributes": attributes, "extras": {}, "repository_metadata": {}, "number": number}
        row |= {"label": "", "description": ""}
        self.rows.append(row)
        return number

    def stored(self, node: orm.Data) -> int:
        """A node of its own."""
        node.store()
        self.pks[len(self.uuids)] = node.pk
        self.uuids.append(node.uuid)
        return len(self.uuids) - 1

    def process(self, kind: tuple[str, str], name: str, inputs: dict[str, int], caller: int | None, call: str) -> int:
        """A finished process with its inputs."""
        state = {"process_label": name, "process_state": "finished", "exit_status": 0, "sealed": True}
        number = self.bare(kind[0], kind[1] + name, **state)
        work = kind is WORK
        used = LinkType.INPUT_WORK if work else LinkType.INPUT_CALC
        self.links += [(node, number, used.value, port) for port, node in inputs.items()]
        if caller is not None:
            link = LinkType.CALL_WORK if work else LinkType.CALL_CALC
            self.links.append((caller, number, link.value, call))
        return number

    def made(self, process: int, outputs: dict[str, int], *, through: tuple[int, ...] = ()) -> None:
        """Outputs of a calculation, returned by the workflows above it."""
        for port, node in outputs.items():
            self.links.append((process, node, LinkType.CREATE.value, port))
            self.links += [(work, node, LinkType.RETURN.value, port) for work in through]

    def store(self) -> None:
        """Write the rows that are bare, then all links: plain inserts, without an object for each."""
        backend = get_manager().get_profile_storage()
        nodes, links = (
            backend._get_mapper_from_entity(kind, True)[0].local_table for kind in (EntityTypes.NODE, EntityTypes.LINK)
        )
        first = max(self.pks.values()) + 1
        for offset, row in enumerate(self.rows):
            self.pks[row.pop("number")] = row["id"] = first + offset
        session = backend.get_session()
        with backend.transaction():
            for start in range(0, len(self.rows), 20_000):
                session.execute(insert(nodes), self.rows[start : start + 20_000])
            names = ("input_id", "output_id", "type", "label")
            for start in range(0, len(self.links), 50_000):
                rows = [
                    dict(zip(names, (self.pks[a], self.pks[b], kind, label), strict=True))
                    for a, b, kind, label in self.links[start : start + 50_000]
                ]
                session.execute(insert(links), rows)


def frames_of(generator: np.random.Generator, n: int, size: int) -> Frames:
    """Frames that nobody else has."""
    positions = generator.random((n * size, 3)) * 10
    cell = np.tile(np.eye(3) * 10.0, (n, 1, 1))
    return from_arrays(
        natoms=np.full(n, size, dtype="<i4"),
        numbers=np.full(n * size, 14, dtype="|u1"),
        positions=positions,
        cell=cell,
        pbc=np.ones((n, 3), dtype=bool),
    )


def made_by(uuid: str, n: int) -> np.ndarray:
    return np.repeat(id_bytes([uuid]), n, axis=0)


def write_campaign(n_rounds: int, n_labels: int, *, seed: int = 0) -> dict[str, Any]:
    """Write the graph; returns uuids and pks to ask about, and counts.

    :param n_rounds: rounds of active learning.
    :param n_labels: labels of each.
    """
    generator = np.random.default_rng(seed)
    sketch = Campaign(user=orm.User.collection.get_default().pk)
    code, pseudo = sketch.bare("data.core.code.installed.InstalledCode."), sketch.bare("data.pseudo.upf.UpfData.")
    shared = {name: sketch.bare(DICT) for name in ("settings", "fidelities", "spec")}
    first = frames_of(generator, 20, N_CUT)
    node = DatasetData.from_frames(with_labels(first, generator), settings={LEVEL: SETTINGS})
    dataset = sketch.stored(node)
    root = sketch.process(WORK, "aiida_mlip.active_learning", {"dataset": dataset, **shared}, None, "")
    known: dict[str, Any] = {"root": root, "dataset_0": dataset, "labels": [], "fragments": [], "potentials": []}
    current, rows = dataset, node
    for number in range(n_rounds):
        potentials = _train(sketch, root, current, code, shared, number)
        explored, simulated = _explore(sketch, root, potentials, code, shared, number, generator)
        labelled, fragments, labels = _label(
            sketch, root, simulated, explored, {"code": code, "pseudo": pseudo, **shared}, n_labels, number, generator
        )
        merged = DatasetData.merge([rows, labelled[1]])
        merge = sketch.process(FUNCTION, "dataset.merge_datasets", {"a": current, "b": labelled[0]}, root, "merge")
        current, rows = sketch.stored(merged), merged
        sketch.made(merge, {"dataset": current}, through=(root,) if number == n_rounds - 1 else ())
        known["labels"].append(labels[0])
        known["fragments"].append(fragments.ids()[0])
        known["potentials"].append(potentials[0])
    known["last_potential"] = _train(sketch, root, current, code, shared, n_rounds)[0]
    known["last_dataset"] = current
    sketch.store()
    return {**known, "sketch": sketch}


def with_labels(frames: Frames, generator: np.random.Generator, uuids: list[str] | None = None) -> Frames:
    """Rows with energies, and the calculations that made them."""
    n = len(frames)
    return frames.with_columns(
        energy=generator.random(n),
        fidelity=np.zeros(n, dtype="<i2"),
        fidelities=(LEVEL,),
        **({} if uuids is None else {"label_uuid": id_bytes(uuids)}),
    )


def split_of(dataset: DatasetData, number: int) -> orm.ArrayData:
    """Parts of the rows for two members, as a training has them."""
    generator, n = np.random.default_rng(number), len(dataset)
    test = generator.random(n) < 0.1
    node = orm.ArrayData()
    node.set_array("frame_id", dataset.column("frame_id"))
    for member in range(2):
        parts = np.where(test, 2, generator.random(n) < 0.1).astype(np.int8)
        node.set_array(f"member_{member}", parts)
    return node


def _train(sketch: Campaign, root: int, dataset: int, code: int, shared: dict[str, int], number: int) -> list[int]:
    given = {"dataset": dataset, "settings": shared["settings"]}
    work = sketch.process(WORK, "aiida_mlip.train", given, root, f"round_{number:03d}_train")
    plan = sketch.process(FUNCTION, "train.plan_training", given, work, "plan")
    split = sketch.stored(split_of(orm.load_node(sketch.pks[dataset]), number))
    member_settings = sketch.bare(DICT)
    sketch.made(plan, {"split": split, "settings_0": member_settings}, through=())
    result, errors = [], []
    for member in range(2):
        inputs = {"dataset": dataset, "split": split, "settings": member_settings, "code": code}
        base = sketch.process(WORK, "aiida_mlip.nequip_base", inputs, work, f"train_{member}")
        job = sketch.process(JOB, "aiida_mlip.nequip_train", inputs, base, "iteration_01")
        fresh, summary = sketch.bare(PotentialData.class_node_type), sketch.bare(DICT)
        sketch.made(job, {"potential": fresh, "summary": summary}, through=(base,))
        evaluate = sketch.process(
            JOB, "aiida_mlip.evaluate", {"potential": fresh, "dataset": dataset, "split": split}, work, "evaluate"
        )
        parity, error = sketch.bare(ARRAY), sketch.bare(DICT)
        sketch.made(evaluate, {"errors": error, "parity": parity})
        judge = sketch.process(FUNCTION, "calibrate.judge_potential", {"potential": fresh, "e": error}, work, "judge")
        judged = sketch.bare(PotentialData.class_node_type)
        sketch.made(judge, {"result": judged}, through=(work,))
        result.append(judged)
        errors.append(error)
    table = sketch.process(FUNCTION, "train.tabulate", dict(zip("ab", errors, strict=True)), work, "tabulate")
    sketch.made(table, {"result": sketch.bare(DICT)}, through=(work,))
    return result


def _explore(
    sketch: Campaign,
    root: int,
    potentials: list[int],
    code: int,
    shared: dict[str, int],
    number: int,
    generator: np.random.Generator,
) -> tuple[int, DatasetData]:
    inputs = {"potential": potentials[0], "committee__member_1": potentials[1], "spec": shared["spec"], "code": code}
    work = sketch.process(WORK, "aiida_mlip.explore", inputs, root, f"round_{number:03d}_explore_hot")
    job = sketch.process(JOB, "aiida_mlip.explore", inputs, work, "iteration_01")
    frames = frames_of(generator, N_FRAMES, N_ATOMS)
    node = DatasetData.from_frames(frames.with_columns(geometry_uuid=made_by(sketch.uuids[job], N_FRAMES)))
    found = sketch.stored(node)
    sketch.made(job, {"selected": found, "summary": sketch.bare(DICT)}, through=(work,))
    return found, node


def _label(
    sketch: Campaign,
    root: int,
    simulated: DatasetData,
    found: int,
    shared: dict[str, int],
    n_labels: int,
    number: int,
    generator: np.random.Generator,
) -> tuple[tuple[int, DatasetData], Frames, list[int]]:
    """Cut, label and collect: the labelled dataset, its frames, and the numbers of the label calculations."""
    carve = sketch.process(FUNCTION, "fragment.carve_fragments", {"frames": found}, root, f"round_{number:03d}_carve")
    parents = np.arange(n_labels) % N_FRAMES
    cut = frames_of(generator, n_labels, N_CUT).with_columns(
        parent_id=simulated.column("frame_id")[parents],
        geometry_uuid=made_by(sketch.uuids[carve], n_labels),
        region=np.tile(np.arange(N_CUT) // 3, n_labels).astype("|u1"),
        parent_atom=generator.integers(0, N_ATOMS, n_labels * N_CUT).astype("<i4"),
    )
    fragments = sketch.stored(DatasetData.from_frames(cut))
    sketch.made(carve, {"fragments": fragments, "summary": sketch.bare(DICT)})
    inputs = {"dataset": fragments, "fidelities": shared["fidelities"]}
    work = sketch.process(WORK, "aiida_mlip.label", inputs, root, f"round_{number:03d}_label")
    plan = sketch.process(FUNCTION, "label.plan_labels", inputs, work, "plan_labels")
    batch, planned = sketch.bare(DICT), sketch.bare(DICT)
    sketch.made(plan, {"batch": batch, "plan": planned})
    prepare = sketch.process(FUNCTION, "label.prepare_labels", {"frames": fragments, "batch": batch}, work, "prepare")
    parameters, kpoints = sketch.bare(DICT), sketch.bare("data.core.array.kpoints.KpointsData.")
    sketch.made(prepare, {"parameters": parameters, "kpoints": kpoints})
    children, labels = {}, []
    for index in range(n_labels):
        structure = sketch.bare("data.core.structure.StructureData.")
        sketch.made(prepare, {f"structure_{index:04d}": structure})
        given = {"structure": structure, "parameters": parameters, "kpoints": kpoints}
        given |= {"pseudos__Si": shared["pseudo"], "code": shared["code"]}
        base = sketch.process(WORK, "quantumespresso.pw.base", given, work, f"label_{LEVEL}_{index:05d}")
        job = sketch.process(JOB, "quantumespresso.pw", given, base, "iteration_01")
        outputs = {
            "output_parameters": sketch.bare(DICT),
            "output_trajectory": sketch.bare("data.core.array.trajectory.TrajectoryData."),
            "remote_folder": sketch.bare("data.core.remote.RemoteData."),
            "retrieved": sketch.bare("data.core.folder.FolderData."),
        }
        sketch.made(job, outputs, through=(base,))
        children |= {f"structure_{index:04d}": structure, f"parameters_{index:04d}": outputs["output_parameters"]}
        children |= {f"trajectory_{index:04d}": outputs["output_trajectory"]}
        labels.append(job)
    rows = with_labels(cut, generator, [sketch.uuids[job] for job in labels])
    part_node = DatasetData.from_frames(rows, settings={LEVEL: SETTINGS})
    collect = sketch.process(FUNCTION, "label.collect_labels", {"frames": fragments, **children}, work, "collect")
    part = sketch.stored(part_node)
    sketch.made(collect, {"dataset": part, "report": sketch.bare(DICT)})
    assemble = sketch.process(
        FUNCTION, "label.assemble_labels", {"dataset": fragments, "part_0000": part, "plan": planned}, work, "assemble"
    )
    whole = DatasetData.from_frames(rows, settings={LEVEL: SETTINGS})
    labelled = sketch.stored(whole)
    sketch.made(assemble, {"dataset": labelled, "summary": sketch.bare(DICT)}, through=(work,))
    return (labelled, whole), rows, labels
