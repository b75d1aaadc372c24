"""Two campaigns at once that want the same frames: each frame is computed once, and both get all labels."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
from aiida import orm
from aiida.manage import get_manager
from ase.build import bulk
from emt_frames import emt_frames

from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.labelling import without_labels
from aiida_mlip.workchains.label import LabelWorkChain

LDA = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "debian-lda",
    "ecutwfc_ry": 8,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.2,
}


def at_once(*inputs):
    """Label with several workchains in one event loop."""
    runner = get_manager().get_runner()
    nodes = [runner.submit(LabelWorkChain, **each) for each in inputs]

    async def ended():
        while not all(node.is_terminated for node in nodes):
            await asyncio.sleep(0.1)

    runner.loop.run_until_complete(asyncio.wait_for(ended(), 300))
    return nodes


def silicon(n, seed):
    rng = np.random.default_rng(seed)
    images = [bulk("Si", a=5.4) for _ in range(n)]
    for atoms in images:
        atoms.positions += rng.normal(scale=0.03, size=(2, 3))
    return from_ase(images)


def judge(nodes, n_frames):
    """All have all labels, and together they computed each frame once."""
    counts = Counter()
    energies = {}
    for node in nodes:
        assert node.is_finished_ok, node.exit_message
        frames = node.outputs.dataset.frames()
        assert frames.labelled.all()
        for frame_id, energy in zip(frames.ids(), frames.energy.tolist(), strict=True):
            assert energies.setdefault(frame_id, energy) == energy
        for name in ("computed", "reused", "failed", "not_run"):
            counts[name] += next(iter(node.outputs.summary["fidelities"].values()))[name]
    assert len(energies) == n_frames
    assert (counts["computed"], counts["failed"], counts["not_run"]) == (n_frames, 0, 0)


def test_batches_of_two_campaigns_that_overlap(label_code):
    frames = without_labels(emt_frames(8, seed=77))
    level = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT", "batch_size": 3}}
    parts = [frames.take(np.arange(6)), frames.take(np.arange(2, 8))]
    nodes = at_once(
        *(
            {"dataset": DatasetData.from_frames(part), "fidelities": orm.Dict(level), "codes": {"ase": label_code}}
            for part in parts
        )
    )
    judge(nodes, 8)


@pytest.mark.qe
def test_bundles_and_single_jobs_of_campaigns_that_overlap(pw_code, pseudo_family):
    """One labels the frames in a bundle, one of them alone, and one in a bundle while the others are at it."""
    frames = silicon(4, seed=78)
    inputs = [
        {
            "dataset": DatasetData.from_frames(frames.take(rows)),
            "fidelities": orm.Dict({name: LDA | {"bundle_size": size}}),
            "codes": {"pw": pw_code},
        }
        for name, rows, size in (("single", [2], 1), ("bundle", [0, 1, 2], 50), ("both", [1, 2, 3], 50))
    ]
    nodes = at_once(*inputs)
    judge(nodes, 4)
    called = [child for node in nodes for child in node.called]
    bundled = sum(len(job.inputs.batch["rows"]) for job in called if job.process_class is PwBundleCalculation)
    assert bundled + sum(child.process_label == "PwBaseWorkChain" for child in called) == 4
