"""A campaign of active learning as nodes, with numbers made up but everything in its place, of any size.

The nodes are what the workchains leave: the same classes, links and labels, their contents made by the same kernel
functions from invented labels and predictions. Nothing is run, so that a report of twenty rounds can be tested and
timed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.links import LinkType
from ase.build import bulk

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import jsonable
from aiida_mlip.kernel.fragments.fragment import Fragment
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.held_out import calibrate_members
from aiida_mlip.kernel.metrics import Predictions, compare_parts
from aiida_mlip.kernel.rounds import Caps, Round, judge
from aiida_mlip.kernel.splits import Part
from aiida_mlip.kernel.training import tabulate_errors
from aiida_mlip.parsers.evaluate import parity_data

WORK = "aiida.workflows:aiida_mlip."
JOB = "aiida.calculations:aiida_mlip."
SETTINGS = "0" * 64


@dataclass
class Size:
    """How much of everything.

    :param alive: the last round is still training.
    """

    rounds: int = 3
    members: int = 3
    labels: int = 4
    start: int = 24
    cells: tuple[int, int, int] = (1, 1, 2)
    epochs: int = 30
    alive: bool = False
    symbols: tuple[str, ...] = ("Cu", "Au")
    seed: int = 0


@dataclass
class Campaign:
    """Makes the nodes; ``root`` is the ActiveLearningWorkChain."""

    size: Size
    description: str = ""
    exploration: str = "heating"
    fidelity: str = "invented"
    generator: str = "rattle"
    rng: np.random.Generator = field(init=False)
    root: orm.WorkChainNode = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.size.seed)
        self._make()

    # -- nodes -------------------------------------------------------------------------------------------------

    def process(
        self, kind: type[orm.ProcessNode], name: str, process_type: str, *, caller: orm.ProcessNode | None = None,
        label: str = "", state: str = "finished", status: int = 0, message: str = "", **inputs: orm.Data,
    ) -> Any:  # fmt: skip
        """A stored process with its inputs, called by another."""
        node = kind(process_type=process_type)
        if issubclass(kind, orm.CalcJobNode):
            node.set_option("resources", {"num_machines": 1, "num_mpiprocs_per_machine": 1})
        node.set_process_label(name)
        node.set_process_state(state)
        if state == "finished":
            node.set_exit_status(status)
            node.set_exit_message(message or None)
        node.base.attributes.set("version", {"core": "2.9.4", "plugin": "0.1.0"})
        is_work = issubclass(kind, orm.WorkflowNode)
        for key, value in inputs.items():
            value.store()
            node.base.links.add_incoming(value, LinkType.INPUT_WORK if is_work else LinkType.INPUT_CALC, key)
        if caller is not None:
            node.base.links.add_incoming(caller, LinkType.CALL_WORK if is_work else LinkType.CALL_CALC, label)
        return node.store()

    @staticmethod
    def made(node: orm.ProcessNode, **outputs: orm.Data) -> None:
        """Outputs that a calculation made."""
        for label, data in outputs.items():
            data.base.links.add_incoming(node, LinkType.CREATE, label)
            data.store()

    @staticmethod
    def returned(node: orm.ProcessNode, **outputs: orm.Data) -> None:
        """Outputs that a workflow returns."""
        for label, data in outputs.items():
            data.base.links.add_incoming(node, LinkType.RETURN, label)

    # -- stages ------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        size = self.size
        frames = self.labelled(size.start, self.generator)
        dataset = DatasetData.from_frames(frames, settings={self.fidelity: SETTINGS}).store()
        settings = orm.Dict({"mode": "fragments", "max_rounds": size.rounds, "dft_core_hours": 100.0}).store()
        self.root = self.process(
            orm.WorkChainNode,
            "ActiveLearningWorkChain",
            f"{WORK}active_learning",
            dataset=dataset,
            settings=settings,
        )
        self.root.description = self.description
        rounds: list[Round] = []
        history: orm.Dict | None = None
        errors: orm.Dict | None = None
        for number in range(size.rounds):
            last = size.alive and number == size.rounds - 1
            errors = self.train(f"round_{number:02d}_train", dataset, frames, 0.25 / (1 + number), alive=last)
            if last:
                self.root.set_process_state("waiting")
                return
            self.explore(number)
            new, cost = self.label(number)
            done = Round(
                number=number, n_frames=len(frames), force_rmse=0.25 / (1 + number), steps_asked=1000,
                steps_trusted=min(1000, 250 + 60 * number), stopped=1, n_candidates=2 * len(new),
                n_selected=len(new), n_labelled=len(new) - 1, n_failed=1, dft_core_hours=cost / 3600,
                training_hours=0.2,
            )  # fmt: skip
            rounds.append(done)
            frames = concatenate([frames, new])
            dataset = self._merge(number, dataset, frames)
            history = self._record(number, rounds)
        self.root.set_process_state("finished")
        self.root.set_exit_status(500)
        self.root.set_exit_message(f"A budget is spent before the potential was certain: {history['evidence']}")
        self.returned(self.root, dataset=dataset, history=history, errors=errors)

    def labelled(self, n: int, generator: str) -> Frames:
        """Frames of an alloy with invented labels."""
        images = []
        for _ in range(n):
            atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * self.size.cells
            atoms.rattle(0.1, rng=self.rng)
            atoms.symbols = self.rng.choice(self.size.symbols, len(atoms))
            images.append(atoms)
        frames = from_ase(images)
        n_atoms = frames.n_atoms
        return frames.with_columns(
            energy=frames.natoms * self.rng.normal(-3.0, 0.05, n),
            forces=self.rng.normal(0.0, 0.8, (n_atoms, 3)),
            stress=_symmetric(self.rng.normal(0.0, 0.01, (n, 3, 3))),
            fidelity=np.zeros(n, dtype=np.int16),
            fidelities=(self.fidelity,),
            generator=np.zeros(n, dtype=np.int16),
            generators=(generator,),
            cost=np.full(n, 30.0, dtype=np.float32),
        )

    def train(self, label: str, dataset: DatasetData, frames: Frames, error: float, *, alive: bool) -> orm.Dict | None:
        """A TrainWorkChain with its jobs; one that is alive has trained its first member."""
        train = self.process(
            orm.WorkChainNode, "TrainWorkChain", f"{WORK}train", caller=self.root, label=label, dataset=dataset,
            state="waiting" if alive else "finished",
        )  # fmt: skip
        part = np.full(len(frames), Part.TRAIN, dtype=np.int8)
        part[::5], part[1::10] = Part.TEST, Part.VAL
        parity, reports, curves, summaries = {}, {}, {}, {}
        common = self.rng.normal(0.0, error, frames.forces.shape)
        for member in range(1 if alive else self.size.members):
            job = self.process(
                orm.CalcJobNode, "NequipTrainCalculation", f"{JOB}nequip_train", caller=train,
                label=f"train_member_{member}",
            )  # fmt: skip
            curves[member], summaries[member] = self._curves(error, member)
            self.made(job, curves=curves[member], summary=summaries[member])
            if alive:
                return None
            predictions = self._predictions(frames, error, common)
            novelty = self.rng.gamma(4.0, 0.15, frames.n_atoms)
            parity[member] = parity_data(frames, predictions, part, novelty)
            report = {name: one.as_dict() for name, one in compare_parts(frames, predictions, part).items()}
            reports[f"member_{member}"] = jsonable(report)
            job = self.process(
                orm.CalcJobNode, "EvaluateCalculation", f"{JOB}evaluate", caller=train,
                label=f"evaluate_member_{member}", dataset=dataset,
            )  # fmt: skip
            self.made(job, parity=parity[member])
        calibrations = self._calibrate(train, parity)
        errors = orm.Dict(jsonable(tabulate_errors(reports)))
        self.made(self.process(orm.CalcFunctionNode, "tabulate", "", caller=train, label="tabulate"), result=errors)
        outputs = {f"parity__member_{m}": node for m, node in parity.items()}
        outputs |= {f"curves__member_{m}": node for m, node in curves.items()}
        outputs |= {f"summaries__member_{m}": node for m, node in summaries.items()}
        outputs |= {f"calibrations__{name}": node for name, node in calibrations.items()}
        self.returned(train, errors=errors, **outputs)
        return errors

    def _calibrate(self, train: orm.ProcessNode, parity: dict[int, orm.ArrayData]) -> dict[str, orm.Dict]:
        from aiida_mlip.calculations.functions.calibrate import parity_of

        found = calibrate_members({f"member_{m}": parity_of(node) for m, node in parity.items()}, level=0.9, seed=3)
        calibrations = {name: orm.Dict(jsonable(value.as_dict())) for name, value in found.items()}
        inputs = {f"member_{m}": node for m, node in parity.items()}
        node = self.process(
            orm.CalcFunctionNode, "calibrate", "", caller=train, label="calibrate",
            settings=orm.Dict({"level": 0.9, "seed": 3}), **inputs,
        )  # fmt: skip
        self.made(node, **calibrations)
        return calibrations

    def _curves(self, error: float, member: int) -> tuple[orm.ArrayData, orm.Dict]:
        epoch = np.arange(self.size.epochs)
        fall = error * (1 + 4 * np.exp(-epoch / 8)) * np.exp(self.rng.normal(0, 0.03, len(epoch)))
        node = orm.ArrayData(
            {
                "epoch": epoch,
                "train_force_rmse_ev_per_ang": 0.9 * fall,
                "val_force_rmse_ev_per_ang": fall,
                "train_energy_rmse_ev_per_atom": 0.01 * fall,
                "val_energy_rmse_ev_per_atom": 0.012 * fall,
            }
        )
        told = {"ending": "completed", "member": member, "epochs": len(epoch), "best_epoch": len(epoch) - 1}
        return node, orm.Dict({**told, "frames_train": 18, "frames_val": 3, "wall_seconds": 240})

    def _predictions(self, frames: Frames, error: float, common: np.ndarray) -> Predictions:
        own = self.rng.normal(0.0, 0.6 * error, frames.forces.shape)
        return Predictions(
            energy=frames.energy + frames.natoms * self.rng.normal(0.0, 0.02 * error, len(frames)),
            forces=frames.forces + 0.8 * common + own,
            stress=frames.stress + _symmetric(self.rng.normal(0.0, 0.01 * error, frames.stress.shape)),
            failure=np.zeros(len(frames), dtype=np.uint8),
        )

    def explore(self, number: int) -> None:
        """An exploration that handed frames over, and fragments cut out of them."""
        label = f"round_{number:02d}_explore_{self.exploration}"
        node = self.process(
            orm.WorkChainNode, "ExploreWorkChain", f"{WORK}explore", caller=self.root, label=label, status=501
        )
        job = self.process(orm.CalcJobNode, "ExploreCalculation", f"{JOB}explore", caller=node, label="explore_00")
        grades = orm.ArrayData({"novelty": self.rng.gamma(3.0, 0.5 / (1 + 0.3 * number), 400)})
        summary = orm.Dict({"seconds": 12.5, "steps_asked": 1000, "runs": [{"steps": 250, "stopped_by": "novelty"}]})
        self.made(job, grades=grades, summary=summary)
        self.returned(node, grades=grades, summary=summary)
        carve = self.process(
            orm.CalcFunctionNode,
            "carve_fragments",
            "",
            caller=self.root,
            label=f"round_{number:02d}_carve_{self.exploration}",
        )
        fragments, grades, table = self._fragments()
        self.made(carve, fragments=fragments, grades=grades, summary=table)

    def _fragments(self) -> tuple[DatasetData, orm.ArrayData, orm.Dict]:
        rows = [self._fragment() for _ in range(2)]
        frames = concatenate(rows)
        refused = [{"frame_id": "ab" * 16, "atom": 7, "reason": "the frame is smaller than the fragment"}]
        sizes = [int(n) for n in frames.natoms]
        table = {"n_frames": 1, "n_fragments": 2, "completion": {"crystal": 2}, "natoms": sizes, "refused": refused}
        novelty = self.rng.gamma(4.0, 0.5, frames.n_atoms)
        return (
            DatasetData.from_frames(frames),
            orm.ArrayData({"frame_id": frames.frame_id, "novelty": novelty}),
            orm.Dict(table),
        )

    def _fragment(self) -> Frames:
        """A ball about an atom, with a few caps outside."""
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * (3, 3, 3)
        atoms.rattle(0.1, rng=self.rng)
        centre = atoms.positions[13]
        distance = np.linalg.norm(atoms.positions - centre, axis=1)
        order = np.argsort(distance)
        atoms = atoms[order[distance[order] < 5.2]]
        distance = np.sort(distance)[: len(atoms)]
        region = np.digitize(distance, [2.9, 4.0, 5.0]).astype(np.uint8)
        return Fragment(
            numbers=atoms.numbers.astype(np.uint8), positions=atoms.positions - centre, cell=np.eye(3) * 11.1,
            pbc=np.ones(3, dtype=bool), region=region, parent_atom=np.arange(len(atoms)), completion="crystal",
        ).to_frames(np.full(16, 7, dtype=np.uint8))  # fmt: skip

    def label(self, number: int) -> tuple[Frames, float]:
        """A selection and its labels: jobs of pw.x, of which one fails, and one is restarted."""
        prefix = f"round_{number:02d}_"
        select = self.process(orm.CalcFunctionNode, "select", "", caller=self.root, label=f"{prefix}select")
        self.made(select, summary=orm.Dict({"n_selected": self.size.labels, "core_hours": self.size.labels / 100}))
        label = self.process(
            orm.WorkChainNode, "LabelWorkChain", f"{WORK}label", caller=self.root, label=f"{prefix}label"
        )
        failed = None
        for row in range(self.size.labels):
            failed = self._pw(label, row, fails=row == 0, restarted=row == 1) or failed
        frames = self.labelled(self.size.labels, "md")
        cost = float(30 * self.size.labels)
        failure = {
            "frame_id": frames.ids()[0],
            "class": "scf_not_converged",
            "uuid": failed.uuid,
            "message": "no convergence",
        }
        entry = {
            "settings": SETTINGS, "frames": self.size.labels, "computed": self.size.labels - 1, "reused": 0,
            "failed": 1, "not_run": 0, "failures": {"scf_not_converged": 1}, "messages": [failure],
            "core_seconds": cost,
        }  # fmt: skip
        summary = orm.Dict({"fidelities": {self.fidelity: entry}})
        collect = self.process(orm.CalcFunctionNode, "assemble_labels", "", caller=label, label="assemble_labels")
        self.made(collect, summary=summary)
        self.returned(label, summary=summary)
        return frames, cost

    def _pw(self, label: orm.ProcessNode, row: int, *, fails: bool, restarted: bool) -> orm.ProcessNode | None:
        name, calls = f"label_emt_{row:05d}", "aiida.workflows:quantumespresso.pw.base"
        base = self.process(
            orm.WorkChainNode, "PwBaseWorkChain", calls, caller=label, label=name, status=401 if fails else 0,
            message="the maximum number of iterations was reached" if fails else "",
        )  # fmt: skip
        statuses = [410] if fails else [410, 0] if restarted else [0]
        for iteration, status in enumerate(statuses, start=1):
            job = self.process(
                orm.CalcJobNode, "PwCalculation", "aiida.calculations:quantumespresso.pw", caller=base,
                label=f"iteration_{iteration:02d}", status=status, message="no self-consistency" if status else "",
            )  # fmt: skip
            told = {"wall_time_seconds": 30.0, "creator_name": "pwscf", "creator_version": "6.7MaX"}
            self.made(job, output_parameters=orm.Dict(told))
        return base if fails else None

    def _merge(self, number: int, dataset: DatasetData, frames: Frames) -> DatasetData:
        new = DatasetData.from_frames(frames, settings={self.fidelity: SETTINGS})
        merge = self.process(
            orm.CalcFunctionNode,
            "merge_datasets",
            "",
            caller=self.root,
            label=f"round_{number:02d}_merge",
            dataset_0000=dataset,
        )
        self.made(merge, dataset=new)
        return new

    def _record(self, number: int, rounds: list[Round]) -> orm.Dict:
        verdict, evidence = judge(rounds, Caps(self.size.rounds - bool(self.size.alive), 100.0))
        history = orm.Dict({"rounds": [asdict(each) for each in rounds], "verdict": verdict, "evidence": evidence})
        record = self.process(
            orm.CalcFunctionNode, "record_round", "", caller=self.root, label=f"round_{number:02d}_record"
        )
        self.made(record, result=history)
        return history


def campaign(**changes: Any) -> Campaign:
    """A campaign; changes to its size."""
    texts = {key: changes.pop(key) for key in ("description", "exploration", "fidelity", "generator") if key in changes}
    return Campaign(replace(Size(), **changes), **texts)


def _symmetric(tensors: np.ndarray) -> np.ndarray:
    return np.asarray((tensors + tensors.transpose(0, 2, 1)) / 2)
