"""Labels at two levels of theory: every frame at the cheap one, some at the dear one, and what fails."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from ase.calculators.emt import EMT
from emt_frames import emt_frames
from report_checks import check_report

from aiida_mlip.calculations.functions.promote import plan_dear_labels
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.labelling import without_labels
from aiida_mlip.workchains.label_fidelities import LabelFidelitiesWorkChain

CODES = LabelFidelitiesWorkChain.exit_codes
#: The same potential with another cutoff.
CHEAP = {"engine": "ase", "calculator": "ase.calculators.emt.EMT", "arguments": {"asap_cutoff": True}}
DEAR = {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}
ANY = {"engine": "ase", "calculator": "ase.calculators.lj.LennardJones", "arguments": {"sigma": 2.2, "epsilon": 0.1}}


@pytest.fixture
def inputs(label_code):
    """Inputs of a labelling; the frames and the fidelities may differ."""

    def make(frames, fidelities, promote, **changes):
        return {
            "dataset": DatasetData.from_frames(without_labels(frames)),
            "label": {"fidelities": orm.Dict(fidelities), "codes": {"ase": label_code}},
            "promote": orm.Dict(promote),
            **changes,
        }

    return make


def rattled(n, *, seed):
    """n frames of four atoms, other ones for every seed."""
    return emt_frames(n, seed=seed)


def fidelities_of(results):
    """Counts of a labelled dataset by level of theory."""
    return results["dataset"].base.attributes.get("fidelities")


def test_every_frame_cheaply_and_a_few_dearly(inputs, tmp_path):
    frames = rattled(7, seed=61)
    given = inputs(frames, {"quick": CHEAP, "exact": DEAR}, {"fraction": 0.4, "method": "diversity"})
    results, node = run_get_node(LabelFidelitiesWorkChain, **given)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    labelled = results["dataset"].frames()
    exact = labelled.fidelity == labelled.fidelity_index("exact")
    assert (exact.sum(), (~exact).sum()) == (3, 7)
    assert set(labelled.take(exact).ids()) <= set(frames.ids())
    for row in range(len(labelled)):
        atoms = labelled.to_ase(row)
        atoms.calc = EMT(asap_cutoff=not exact[row])
        np.testing.assert_allclose(labelled.forces[labelled.atom_slice(row)], atoms.get_forces(), atol=1e-8)
    summary = results["summary"]["fidelities"]
    assert {name: entry["frames"] for name, entry in summary.items()} == {"quick": 7, "exact": 3}
    assert results["allocation"]["n_selected"] == 3
    assert (results["spent"]["frames"], results["spent"]["labelled"]) == (3, 3)
    assert audit(node).passed
    check_report(node, tmp_path)

    # what is known counts: there are dear labels enough
    more = inputs(rattled(2, seed=62), {"quick": CHEAP, "exact": DEAR}, {"fraction": 0.3}, known=results["dataset"])
    results, node = run_get_node(LabelFidelitiesWorkChain, **more)
    assert node.is_finished_ok
    assert results["dataset"].fidelities == ["quick"]
    assert "allocation" not in results


def test_dear_labels_get_what_the_cheap_ones_have_left():
    frames = rattled(5, seed=63)
    cheap = DatasetData.from_frames(frames.with_columns(fidelities=("quick",)), settings={"quick": "0" * 64}).store()

    def planned(spent_s, **promote):
        return plan_dear_labels(
            orm.Dict({"fraction": 1.0, **promote}),
            orm.Dict({"quick": CHEAP, "exact": DEAR}),
            cheap,
            orm.Dict({"fidelities": {"quick": {"core_seconds": spent_s}}}),
        )

    assert planned(1800.0, core_hours=2.0)["spec"]["core_hours"] == pytest.approx(1.5)
    assert planned(1800.0)["spec"]["core_hours"] is None
    assert planned(7200.0, core_hours=2.0) == {}
    assert planned(0.0, fraction=0.5)["spec"]["n_frames"] == 3


def test_dear_labels_that_fail_leave_the_cheap_ones(inputs):
    silicon = from_ase([bulk("Si", cubic=True)])
    given = inputs(silicon, {"any": ANY, "exact": DEAR}, {"fraction": 1.0, "method": "random"})
    results, node = run_get_node(LabelFidelitiesWorkChain, **given)
    assert node.exit_status == CODES.ERROR_NOT_PROMOTED.status
    assert {key: entry["labelled"] for key, entry in fidelities_of(results).items()} == {"any": 1, "exact": 0}
    assert results["summary"]["fidelities"]["exact"]["failed"] == 1


def test_cheap_labels_that_fail(inputs):
    silicon, copper = from_ase([bulk("Si", cubic=True)]), rattled(1, seed=64)
    fidelities = {"quick": CHEAP, "exact": DEAR}
    _, node = run_get_node(LabelFidelitiesWorkChain, **inputs(silicon, fidelities, {}))
    assert node.exit_status == CODES.ERROR_NO_LABELS.status
    images = [without_labels(copper).to_ase(0), bulk("Si", cubic=True)]
    results, node = run_get_node(LabelFidelitiesWorkChain, **inputs(from_ase(images), fidelities, {}))
    assert node.exit_status == CODES.ERROR_CHEAP_INCOMPLETE.status
    assert results["dataset"].filter(labelled=True).ids() == copper.ids()


@pytest.mark.parametrize(
    ("fidelities", "promote", "message"),
    [
        ({"exact": DEAR}, {}, "needs labels at two levels of theory or more, got exact"),
        ({"quick": CHEAP, "exact": DEAR}, {"fidelity": "exakt"}, "did you mean 'exact'"),
        ({"quick": CHEAP, "exact": DEAR}, {"fraction": 0.0}, "fraction"),
        ({"quick": CHEAP, "exact": DEAR}, {"fractoin": 0.1}, "did you mean 'fraction'"),
    ],
)
def test_what_cannot_be_divided_is_refused(inputs, fidelities, promote, message):
    with pytest.raises(ValueError, match=message):
        run_get_node(LabelFidelitiesWorkChain, **inputs(rattled(1, seed=65), fidelities, promote))
