"""The longest labels first, with walltimes that fit, within hard limits, and checkpoints that stay small."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import WORK_DONE
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.label import LabelWorkChain

pytestmark = pytest.mark.qe

TINY = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "debian-lda",
    "ecutwfc_ry": 8.3,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.2,
    "max_iterations": 1,
}


def silicon(n, *, seed, cubic=False):
    rng = np.random.default_rng(seed)
    images = [bulk("Si", a=5.4, cubic=cubic) for _ in range(n)]
    for atoms in images:
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    return images


def run_label(images, fidelities, **inputs):
    dataset = DatasetData.from_frames(from_ase(images))
    return run_get_node(LabelWorkChain, dataset=dataset, fidelities=orm.Dict(fidelities), **inputs)


def plan_of(node):
    (plan,) = (child for child in node.called if child.process_label == "plan_labels")
    return plan.outputs.plan.get_dict()


def jobs_of(node):
    jobs = [child for child in node.called_descendants if isinstance(child, orm.CalcJobNode)]
    return sorted(jobs, key=lambda job: job.pk)


def test_the_longest_first_and_walltimes_from_what_labels_took(pw_code, pseudo_family):
    images = [*silicon(12, seed=101), *silicon(1, seed=102, cubic=True)]
    codes = {"pw": pw_code}
    own = TINY | {"ecutwfc_ry": 8.7}  # of no other test: what their labels took would be known
    _, first = run_label(images, {"lda": own}, codes=codes)
    assert first.is_finished_ok, first.exit_message
    forecast = plan_of(first)["forecast"]["lda"]
    assert (forecast["source"], forecast["n_expected"], forecast["n_labels"]) == ("guessed", 13, 13)
    (bundle,) = jobs_of(first)
    assert bundle.process_class is PwBundleCalculation, "cheap frames share a job where nothing else is stated"
    assert bundle.inputs.batch["rows"][0] == 12, "the large cell comes first"
    assert bundle.get_option("max_wallclock_seconds") == 3600, "nothing shorter on a guess"
    assert first.base.extras.get(WORK_DONE) == 1.0

    # now there are enough labels to know better; what was stated is never exceeded
    images = [*silicon(1, seed=103), *silicon(1, seed=104, cubic=True)]
    _, second = run_label(
        images,
        {"lda": own | {"bundle_size": 1}},
        codes=codes,
        options=orm.Dict({"max_wallclock_seconds": 7200}),
        max_concurrent=orm.Int(1),
    )
    forecast = plan_of(second)["forecast"]["lda"]
    assert (forecast["source"], forecast["n_measured"]) == ("measured", 13)
    spent = np.nansum(second.outputs.dataset.column("cost"))
    assert 0.1 < forecast["core_seconds"] / spent < 10
    jobs = jobs_of(second)
    assert [len(job.inputs.structure.sites) for job in jobs] == [8, 2]
    assert all(300 < job.get_option("max_wallclock_seconds") < 1000 for job in jobs)
    _, third = run_label(
        silicon(1, seed=105),
        {"lda": own | {"bundle_size": 1}},
        codes=codes,
        options=orm.Dict({"max_wallclock_seconds": 200}),
    )
    assert [job.get_option("max_wallclock_seconds") for job in jobs_of(third)] == [200]


def test_core_hours_are_never_exceeded(pw_code, pseudo_family):
    """Room for three jobs at once at first; when too little is left for one, no more are started, and that is said."""
    options = orm.Dict({"max_wallclock_seconds": 60})
    fidelities = {"lda": TINY | {"bundle_size": 1}}
    _, node = run_label(
        silicon(4, seed=111), fidelities, codes={"pw": pw_code}, options=options, max_core_hours=orm.Float(190 / 3600)
    )
    assert node.is_finished_ok, node.exit_message
    jobs = jobs_of(node)
    assert len(jobs) == 4
    assert jobs[3].ctime >= min(job.mtime for job in jobs[:3]), "the fourth has waited"

    cap = 60.15 / 3600
    results, node = run_label(
        silicon(6, seed=112), fidelities, codes={"pw": pw_code}, options=options, max_core_hours=orm.Float(cap)
    )
    assert node.exit_status == LabelWorkChain.exit_codes.ERROR_CORE_HOURS_SPENT.status
    found = results["summary"].get_dict()["fidelities"]["lda"]
    assert 1 <= found["computed"] < 6
    assert found["computed"] + found["not_run"] == 6
    assert found["core_seconds"] <= 3600 * cap
    assert len(results["dataset"].frames()) == found["computed"]

    with pytest.raises(ValueError, match="max_core_hours: must be more than 0"):
        run_label(silicon(1, seed=113), fidelities, codes={"pw": pw_code}, max_core_hours=orm.Float(0))


def test_checkpoints_stay_small(label_code, monkeypatch):
    """What a batch that is done or to come adds to a checkpoint: a few bytes."""
    sizes: list[int] = []
    set_checkpoint = orm.ProcessNode.set_checkpoint

    def recorded(self, value):
        if self.process_label == "LabelWorkChain":
            sizes.append(len(value))
        set_checkpoint(self, value)

    monkeypatch.setattr(orm.ProcessNode, "set_checkpoint", recorded)
    largest = []
    rng = np.random.default_rng(5)
    for n in (4, 14):
        images = [bulk("Cu") * (1, 1, 2) for _ in range(n)]
        for atoms in images:
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        emt = {"engine": "ase", "calculator": "ase.calculators.emt.EMT", "batch_size": 1}
        sizes.clear()
        _, node = run_label(images, {"emt": emt}, codes={"ase": label_code}, max_concurrent=orm.Int(2))
        assert node.is_finished_ok, node.exit_message
        largest.append(max(sizes))
    assert largest[1] - largest[0] < 10 * 60
    assert largest[1] < 20_000
