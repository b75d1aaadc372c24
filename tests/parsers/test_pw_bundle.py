"""Every exit code of a bundle of pw.x, how it shares the cores of its job, and what it refuses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.bundle_files import frame_output
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.pw_slots import slots_of
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Failure, from_ase
from aiida_mlip.workchains.label_inputs import family_of

CODES = PwBundleCalculation.exit_codes
SPEC = {
    "engine": "qe",
    "protocol": "fast",
    "ecutwfc_ry": 8,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 3.0,
}


def dataset(n=3, symbol="Si"):
    return DatasetData.from_frames(from_ase([bulk(symbol, "diamond", a=5.3 + 0.05 * i) for i in range(n)]))


def run(code, data, family, rows=(0, 1, 2), options=None, **content):
    batch = {
        "fidelity": "lda",
        "spec": SPEC | {"pseudo_family": family},
        "settings": "f" * 64,
        "source": "dataset",
        "rows": list(rows),
    }
    return run_get_node(
        PwBundleCalculation,
        code=code,
        dataset=data,
        batch=orm.Dict(batch | content),
        pseudos={"Si": family_of(family).get_pseudo("Si")},
        metadata={"options": options or {}},
    )


def code_of(localhost, name, **settings):
    return orm.InstalledCode(
        label=name,
        computer=localhost,
        default_calc_job_plugin="quantumespresso.pw",
        **{"filepath_executable": shutil.which("pw.x"), "with_mpi": False} | settings,
    ).store()


@pytest.mark.qe
def test_rows_in_any_order_through_the_launcher(localhost, pseudo_family):
    """Two frames at once, each on one rank of its own ``mpirun``."""
    code = code_of(localhost, "pw-mpi", with_mpi=True)
    options = {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": 2}, "side_by_side": 2}
    results, node = run(code, dataset(), pseudo_family, rows=[2, 0], options=options)
    assert node.is_finished_ok, node.exit_message
    out = results["dataset"].frames()
    assert out.ids() == [dataset().frame_ids()[i] for i in (2, 0)]
    assert np.isfinite(out.energy).all()
    script = node.base.repository.get_object_content("bundle.sh")
    assert "'-np' '1'" in script
    assert script.count("label_frames &") == 2
    assert results["report"].get_dict() == {"fidelity": "lda", "reused": 0, "failures": [], "again": [], "begun": []}


@pytest.mark.qe
@pytest.mark.parametrize(
    ("spoil", "status", "finite", "failure"),
    [
        (
            "rm -f results.tar; echo 'CANCELLED DUE TO TIME LIMIT' >&2",
            CODES.ERROR_OUTPUT_MISSING.status,
            0,
            Failure.WALLTIME,
        ),
        ("truncate -s 100 results.tar", CODES.ERROR_OUTPUT_TRUNCATED.status, 0, Failure.PARSE),
        (
            "mkdir done && (cd done && tar xf ../results.tar && rm 00001.tar.gz) && rm results.tar",
            CODES.ERROR_INTERRUPTED.status,
            2,
            Failure.INTERRUPTED,
        ),
    ],
)
def test_a_job_that_leaves_less(localhost, pseudo_family, spoil, status, finite, failure):
    code = code_of(localhost, f"pw-spoilt-{status}", append_text=spoil)
    results, node = run(code, dataset(), pseudo_family)
    assert node.exit_status == status
    out = results["dataset"].frames()
    assert np.isfinite(out.energy).sum() == finite
    assert np.isnan(out.cost).sum() == 3 - finite, "a frame that the job did not come to has no cost"
    assert results["report"]["begun"] == [i for i in range(3) if np.isnan(out.energy[i])]
    for index in np.flatnonzero(np.isfinite(out.energy)).tolist():
        assert "JOB DONE" in frame_output(node, index).output
    assert set(out.failure[np.isnan(out.energy)].tolist()) == {failure}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": []}, "at least one row"),
        ({"spec": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}, "not of the engine qe"),
        ({"spec": {"engine": "qe"}}, "pseudo_family: missing"),
    ],
)
def test_bad_batches_are_refused(pw_code, pseudo_family, content, message):
    with pytest.raises(ValueError, match=message):
        run(pw_code, dataset(1), pseudo_family, **content)


def job(localhost, code, resources, **options):
    """Record of a job with these options."""
    node = orm.CalcJobNode(computer=localhost)
    for name, value in {"resources": {"num_machines": 1} | resources, "withmpi": False, **options}.items():
        node.set_option(name, value)
    node.base.links.add_incoming(code, LinkType.INPUT_CALC, "code")
    return node


def test_how_frames_share_a_job(localhost):
    serial, parallel = code_of(localhost, "pw-serial"), code_of(localhost, "pw-parallel", with_mpi=True)
    four = {"num_mpiprocs_per_machine": 4}

    def shares(code, resources, n, **options):
        slots = slots_of(job(localhost, code, resources, **options), n)
        return slots.side_by_side, slots.cores, slots.launcher.get("tot_num_mpiprocs")

    assert shares(serial, {}, 10) == (1, 1, None)
    assert shares(serial, four, 10) == (4, 1, None)
    assert shares(serial, four, 3) == (3, 1, None)
    assert shares(serial, four, 10, side_by_side=2) == (2, 2, None)
    assert shares(serial, {"num_mpiprocs_per_machine": 1, "num_cores_per_mpiproc": 8}, 10, side_by_side=4) == (
        4,
        2,
        None,
    )
    assert shares(parallel, four, 10) == (1, 4, 4)
    assert shares(parallel, four, 10, side_by_side=2) == (2, 2, 2)
    assert shares(parallel, {"num_machines": 2, **four}, 10, side_by_side=2) == (2, 4, 4)
    with pytest.raises(InvalidInputError, match="5 frames at once, but the job has room for 4"):
        shares(parallel, four, 10, side_by_side=5)
    with pytest.raises(InvalidInputError, match="2 machines, but without MPI"):
        shares(serial, {"num_machines": 2}, 10)
