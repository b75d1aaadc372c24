"""The cheapest of the faults of `make test-faults`, in the process of the test: cured without anybody, and named."""

from __future__ import annotations

import random

import pytest
from aiida import orm
from aiida.engine import run_get_node
from faults.campaign import N_ALONE, N_FRAMES, Campaign, inputs, names_of_failures, silicon, times_labelled
from faults.orders import ORDERS, injections, write_program

from aiida_mlip.workchains.label import LabelWorkChain

pytestmark = pytest.mark.qe


def begin(localhost, family, folder, name, *, bundle, seed, at=(1,)):
    """A campaign that a fault happens to, run here."""
    order = ORDERS[name](random.Random(seed), bundle=bundle)  # noqa: S311 - where to strike is no secret
    program, append = write_program(folder / "program", order, at=at)
    code = orm.InstalledCode(
        label=f"pw-{folder.name}",
        computer=localhost,
        filepath_executable=str(program),
        default_calc_job_plugin="quantumespresso.pw",
        with_mpi=False,
        append_text=append,
    ).store()
    frames = silicon([seed, len(name)], N_FRAMES if bundle else N_ALONE)
    campaign = Campaign(name, frames, inputs(code, frames, family=family, bundle=bundle))
    _, node = run_get_node(LabelWorkChain, **campaign.inputs)
    campaign.pks.append(node.pk)
    assert injections(folder / "program"), "nothing was done to it"
    return campaign


@pytest.mark.parametrize(
    ("name", "bundle", "seed"),
    [("pw.x killed", False, 10), ("output truncated", True, 12), ("parser error", False, 13)],
)
def test_faults_that_a_campaign_survives(localhost, pseudo_family, tmp_path, name, bundle, seed):
    """The same campaign tries the frame once more; nothing is lost or computed twice, the failure has its class."""
    campaign = begin(localhost, pseudo_family, tmp_path, name, bundle=bundle, seed=seed)
    assert campaign.node.is_finished_ok, campaign.node.exit_message
    assert campaign.complete
    assert names_of_failures(campaign)
    counts = times_labelled(apart="")
    assert [counts[frame_id] for frame_id in campaign.frames.ids()] == [1] * len(campaign.frames)


def test_a_frame_that_never_converges_fails_alone_and_is_all_that_a_second_campaign_computes(
    localhost, pseudo_family, tmp_path
):
    campaign = begin(localhost, pseudo_family, tmp_path, "scf never converges", bundle=True, seed=14, at=(2,))
    assert campaign.node.is_finished_ok, campaign.node.exit_message
    assert campaign.node.outputs.summary["fidelities"]["lda"]["failures"] == {"scf_not_converged": 1}
    (tmp_path / "program" / "cured").touch()
    results, node = run_get_node(campaign.node.get_builder_restart())
    assert node.is_finished_ok, node.exit_message
    summary = results["summary"]["fidelities"]["lda"]
    assert (summary["computed"], summary["reused"], summary["failed"]) == (1, N_FRAMES - 1, 0)
    counts = times_labelled(apart="")
    assert [counts[frame_id] for frame_id in campaign.frames.ids()] == [1] * N_FRAMES
