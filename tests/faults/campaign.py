"""Small labellings that faults happen to, and what is left of them: lost, duplicated, hung, and how it was named."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm
from aiida.manage import get_manager
from ase.build import bulk
from sqlalchemy.exc import OperationalError

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import Failure, Frames, from_ase
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.label_jobs import PW_BASE

#: Two silicon atoms, 8 k-points: pw.x takes a tenth of a second.
TINY: dict[str, Any] = {
    "engine": "qe",
    "protocol": "fast",
    "ecutwfc_ry": 8,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.2,
    "max_iterations": 2,
}
#: The same physics under other settings: labels that nothing reuses. An scf makes no use of the number of its steps.
APART = {"parameters": {"CONTROL": {"nstep": 7}}}
#: Frames of a campaign that labels them in one job, and in jobs of their own, which cost ten times as much.
N_FRAMES, N_ALONE = 4, 2
Labels = dict[str, tuple[float, np.ndarray]]


def silicon(seed: Sequence[int], n: int) -> Frames:
    """Rattled two-atom cells that no other seed has."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Si", a=5.4)
        atoms.positions += rng.normal(scale=0.03, size=(2, 3))
        images.append(atoms)
    return from_ase(images)


def inputs(code: Any, frames: Frames, *, family: str, bundle: bool, apart: bool = False) -> dict[str, Any]:
    """Inputs of a labelling, in one job or frame by frame."""
    level = (
        TINY | {"pseudo_family": family, "bundle_size": max(len(frames), 2) if bundle else 1} | (APART if apart else {})
    )
    return {
        "dataset": DatasetData.from_frames(frames),
        "fidelities": orm.Dict({"lda": level}),
        "codes": {"pw": code},
        "max_failed_fraction": orm.Float(0.9),
    }


@dataclass
class Campaign:
    """One labelling and what began again after it.

    :param fault: name of the fault.
    :param frames: that it labels.
    :param pks: of the workchains, one after the other.
    :param said: how the fault was named.
    :param cured_by: what was necessary, besides waiting.
    :param hung: it did not end.
    :param folder: of the program in the place of pw.x.
    """

    fault: str
    frames: Frames
    inputs: dict[str, Any]
    pks: list[int] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    cured_by: str = "itself"
    hung: bool = False
    injected: int = 0
    seconds: float = 0.0
    folder: Path | None = None

    @property
    def node(self) -> Any:
        return orm.load_node(self.pks[-1])

    def submit(self) -> None:
        """Hand it to the daemon."""
        from aiida.engine import submit

        self.pks.append(submit(LabelWorkChain, **self.inputs).pk)

    @property
    def complete(self) -> bool:
        """Whether it has ended with all labels."""
        node = self.node
        return node.is_terminated and "dataset" in node.outputs and bool(node.outputs.dataset.frames().labelled.all())


def wait(campaigns: Iterable[Campaign], *, limit_s: float, stalled_s: float) -> bool:
    """Wait until all have ended; False if nothing at all has happened for ``stalled_s``, or at the limit."""
    waiting = list(campaigns)
    start = time.monotonic()
    last, since = None, start
    newest = orm.QueryBuilder().append(orm.Node, project=["mtime", "id"]).order_by({orm.Node: {"mtime": "desc"}})
    newest.limit(1)
    while True:
        now = time.monotonic()
        try:
            waiting = [each for each in waiting if not each.node.is_terminated]
            if (seen := newest.all()) != last:
                last, since = seen, now
        except OperationalError:  # locked: for a while, or wedged
            get_manager().get_profile_storage().get_session().rollback()
        if not waiting:
            return True
        if now - since > stalled_s or now - start > limit_s:
            return False
        time.sleep(1)


def labels(dataset: DatasetData) -> Labels:
    """Energy and forces by frame id."""
    frames = dataset.frames()
    return {
        name: (float(frames.energy[i]), frames.forces[frames.offsets[i] : frames.offsets[i + 1]])
        for i, name in enumerate(frames.ids())
        if frames.labelled[i]
    }


def lost(campaign: Campaign, reference: Mapping[str, tuple[float, np.ndarray]]) -> int:
    """Frames without the label that the undisturbed run gave them."""
    node = campaign.node
    found = labels(node.outputs.dataset) if "dataset" in node.outputs else {}
    ids = campaign.frames.ids()
    good = sum(
        name in found
        and abs(found[name][0] - reference[name][0]) < 1e-6
        and bool(np.allclose(found[name][1], reference[name][1], rtol=0, atol=1e-6))
        for name in ids
    )
    strangers = set(found) - set(ids)
    return len(ids) - good + len(strangers)


def times_labelled(apart: str) -> Counter[str]:
    """Label calculations of the profile that succeeded, by frame id.

    :param apart: settings hash that does not count.
    """
    counts: Counter[str] = Counter()
    query = orm.QueryBuilder().append(orm.CalcJobNode, tag="job", filters={"process_type": {"like": "%aiida_mlip.%"}})
    query.append(DatasetData, with_incoming="job")
    for dataset in query.all(flat=True):
        if apart not in dataset.settings.values():
            frames = dataset.frames()
            counts.update(np.array(frames.ids())[frames.labelled].tolist())
    query = orm.QueryBuilder().append(
        orm.WorkChainNode, filters={"process_type": PW_BASE, "attributes.exit_status": 0}, project="label"
    )
    counts.update(label.rpartition(":")[2] for label in query.all(flat=True))
    return counts


def names_of_failures(campaign: Campaign) -> Counter[str]:
    """Classes that the failures of a campaign have in its provenance."""
    names: Counter[str] = Counter()
    for pk in campaign.pks:
        node = orm.load_node(pk)
        if node.is_terminated and not node.is_finished:
            names[f"LabelWorkChain {node.process_state.value}"] += 1
        for child in node.called:
            if "report" in child.outputs:
                names.update(each["class"] for each in child.outputs.report["failures"])
            elif isinstance(child, orm.CalcJobNode) and not child.is_finished_ok:
                names[f"job {child.exit_status or child.process_state.value}"] += 1
    return names


CLASSES = {failure.label for failure in Failure}
