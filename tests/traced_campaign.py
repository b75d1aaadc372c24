"""A short campaign run for real, so that its lineage can be followed: EMT is the teacher, everything else is ours.

A crystal of 256 copper atoms is simulated, fragments are cut out of its frames around displaced atoms, labelled, merged
with labelled cells, and a small potential is trained on them and then run. Made once per test process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from emt_frames import emt_frames

from aiida_mlip.calculations.functions.dataset import merge_datasets
from aiida_mlip.calculations.functions.fragment import carve_fragments
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.label_inputs import settings_hashes
from aiida_mlip.workchains.train import TrainWorkChain

LEVEL = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
FRAGMENT = {"core_radius_ang": 2.6, "buffer_ang": 2.4, "max_atoms": 120, "threshold": 1.5}
TRAIN = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "committee": 1,
    "max_epochs": 2,
    "batch_size": 2,
    "optimizer": {"warmup_epochs": 1},
    "split": {"test": 0.3, "val": 0.2},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
}


@dataclass(frozen=True)
class TracedCampaign:
    """Uuids of what was made, so that a test may load the nodes in its own session.

    :param simulation: the ExploreCalculation; ``simulated``: its frames.
    :param fragments: cut out of them; ``labelled``: the same with labels; ``dataset``: with the labelled cells.
    :param label: the calculation that labelled the fragments.
    :param potential: trained on ``dataset``; ``fresh``: as it came out of ``training``.
    :param second: the ExploreCalculation with this potential.
    """

    simulation: str
    simulated: str
    fragments: str
    labelled: str
    dataset: str
    label: str
    train: str
    training: str
    potential: str
    fresh: str
    second: str


_MADE: list[TracedCampaign] = []


def traced_campaign(localhost: Any, label_code: Any, train_code: Any, evaluate_code: Any) -> TracedCampaign:
    """The campaign, run when it is first asked for."""
    if not _MADE:
        _MADE.append(_run(localhost, label_code, {"train": train_code, "evaluate": evaluate_code}))
    return _MADE[0]


def _run(localhost: Any, label_code: Any, codes: dict[str, Any]) -> TracedCampaign:
    program = Path(sys.executable).parent / "aiida-mlip-explore"
    explore = orm.InstalledCode(
        label="explore", computer=localhost, filepath_executable=str(program), with_mpi=False
    ).store()
    crystal = bulk("Cu", cubic=True)
    simulation = _explored(explore, crystal * (4, 4, 4), forces={"calculator": "ase.calculators.emt.EMT"})
    simulated = simulation.outputs.dataset
    fragments = _carved(simulated, crystal)
    labelling, label = _finished(
        LabelWorkChain, dataset=fragments, fidelities=orm.Dict(LEVEL), codes={"ase": label_code}
    )
    cells = DatasetData.from_frames(emt_frames(12), settings=settings_hashes(LEVEL))
    _, merge = merge_datasets.run_get_node(a=cells, b=labelling["dataset"])
    dataset = merge.outputs.dataset
    builder = TrainWorkChain.get_builder_from_protocol(dataset, codes, overrides=TRAIN)
    trained, train = run_get_node(builder)
    assert train.is_finished_ok, (train.exit_status, train.exit_message)
    potential = trained["potentials"]["member_0"]
    training = next(node for node in train.called_descendants if "nequip_train" in (node.process_type or ""))
    second = _explored(explore, crystal * (2, 2, 2), potential=potential)
    return TracedCampaign(
        simulation=simulation.uuid,
        simulated=simulated.uuid,
        fragments=fragments.uuid,
        labelled=labelling["dataset"].uuid,
        dataset=dataset.uuid,
        label=next(node for node in label.called if isinstance(node, orm.CalcJobNode)).uuid,
        train=train.uuid,
        training=training.uuid,
        potential=potential.uuid,
        fresh=training.outputs.potential.uuid,
        second=second.uuid,
    )


def _finished(process: Any, **inputs: Any) -> tuple[dict[str, Any], orm.ProcessNode]:
    results, node = run_get_node(process, **inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    return results, node


def _explored(code: orm.InstalledCode, atoms: Any, *, potential: PotentialData | None = None, **spec: Any) -> Any:
    """The calculation of a short run of dynamics that ended well."""
    section = {"timestep_fs": 2.0, "schedule": [{"n_steps": 10, "temperature_k": 300}]}
    given = {"kind": "md", "md": section, "record_every": 5, "seed": 3, **spec}
    driver = {} if potential is None else {"potential": potential}
    _, node = _finished(
        ExploreWorkChain,
        structures=DatasetData.from_frames(from_ase([atoms])),
        spec=orm.Dict(given),
        codes={"explore": code},
        **driver,
    )
    return next(called for called in node.called if isinstance(called, orm.CalcJobNode))


def _carved(simulated: DatasetData, crystal: Any) -> DatasetData:
    """Fragments around two atoms of each frame."""
    frames = simulated.frames()
    novelty = np.full(frames.n_atoms, 0.5)
    novelty[frames.offsets[:-1] + 10] = 3.0
    novelty[frames.offsets[:-1] + 200] = 2.0
    grades = orm.ArrayData()
    grades.set_array("frame_id", frames.frame_id)
    grades.set_array("novelty", novelty)
    host = orm.StructureData(ase=crystal)
    outputs, node = carve_fragments.run_get_node(simulated, grades, orm.Dict(FRAGMENT), copper=host)
    assert node.is_finished_ok, node.exit_message
    return outputs["fragments"]
