"""Labels of pw.x in bundles: the same numbers as one by one, and nothing lost by what happens to a bundle."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from aiida.tools import delete_nodes
from ase.build import bulk

from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.bundle_files import frame_input, frame_output
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FileFormatError
from aiida_mlip.kernel.frames import Failure, from_ase
from aiida_mlip.workchains.label import LabelWorkChain

pytestmark = pytest.mark.qe

#: As cheap as pw.x gets, and sure to converge.
TINY = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "debian-lda",
    "ecutwfc_ry": 8,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 1.2,
    "bundle_size": 50,
}


def silicon(n: int, *, seed: int, size: float = 5.4) -> list:
    """Rattled two-atom cells; another seed, other frames that no other test has labelled."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Si", a=size)
        atoms.positions += rng.normal(scale=0.03, size=(2, 3))
        images.append(atoms)
    return images


def run_label(images, fidelities, **inputs):
    return run_get_node(
        LabelWorkChain,
        dataset=DatasetData.from_frames(from_ase(images)),
        fidelities=orm.Dict(fidelities),
        **inputs,
    )


def bundles(node):
    return sorted((c for c in node.called if c.process_class is PwBundleCalculation), key=lambda c: c.pk)


def alone(node):
    return [child for child in node.called if child.process_label == "PwBaseWorkChain"]


def summary(results, name):
    return results["summary"].get_dict()["fidelities"][name]


def wrapped(localhost, tmp_path, text, **settings):
    """pw.x with something done before or after it; ``$PW`` is the real one, ``$MARKS`` a folder."""
    path = tmp_path / "pw.sh"
    path.write_text(f"#!/bin/sh\nPW={shutil.which('pw.x')}\nMARKS={tmp_path}\n{text}\n")
    path.chmod(0o755)
    return orm.InstalledCode(
        label=f"pw-{tmp_path.name}",
        computer=localhost,
        filepath_executable=str(path),
        default_calc_job_plugin="quantumespresso.pw",
        with_mpi=False,
        **settings,
    ).store()


def test_a_bundle_gives_the_numbers_of_single_jobs(pw_code, pseudo_family):
    """Energies, forces, stress and costs; the same input to the byte; one node for all; known to the next campaign."""
    images = silicon(2, seed=1)
    images[1].set_cell(images[1].cell.array * 1.03, scale_atoms=True)
    metal = TINY | {"occupations": "smearing", "degauss_ry": 0.02, "kpoints_distance_inv_ang": 0.9}
    inputs = {"codes": {"pw": pw_code}, "reuse": orm.Bool(False)}
    results, node = run_label(images, {"lda": TINY, "metal": metal}, **inputs)
    assert node.is_finished_ok, node.exit_message
    single, reference = run_label(
        images, {"lda": TINY | {"bundle_size": 1}, "metal": metal | {"bundle_size": 1}}, **inputs
    )
    assert not bundles(reference)
    assert not alone(node)
    assert len(alone(reference)) == 4
    assert results["dataset"].settings == single["dataset"].settings
    out, expected = results["dataset"].frames(), single["dataset"].frames()
    assert np.array_equal(out.frame_id, expected.frame_id)
    assert np.array_equal(out.fidelity, expected.fidelity)
    np.testing.assert_allclose(out.energy, expected.energy, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out.forces, expected.forces, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out.stress, expected.stress, rtol=0, atol=1e-6)
    assert np.isfinite(out.stress).all()
    assert (out.cost > 0).all()

    jobs = bundles(node)
    assert [job.is_finished_ok for job in jobs] == [True, True]
    assert {uuid.tobytes().hex() for uuid in out.label_uuid} == {job.uuid.replace("-", "") for job in jobs}
    assert out.label_row.tolist() == [1, 0, 1, 0], "the larger cell is begun first"
    by_label = {child.label: child for child in alone(reference)}
    for job in jobs:
        for index, row in enumerate(job.inputs.batch["rows"]):
            name = f"{job.inputs.batch['fidelity']}:{results['dataset'].frame_ids()[row]}"
            pw = next(child for child in by_label[name].called_descendants if isinstance(child, orm.CalcJobNode))
            assert frame_input(job, index) == pw.base.repository.get_object_content("aiida.in")
            assert "JOB DONE" in frame_output(job, index).output
        with pytest.raises(FileFormatError, match="frame 2 had not ended"):
            frame_output(job, 2)

    again, later = run_label(images, {"renamed": TINY}, codes={"pw": pw_code})
    assert summary(again, "renamed")["reused"] == 2
    assert not bundles(later)


KILL_THE_JOB = """
kill_the_job() {
    pid=$$
    victims=
    while pid=$(ps -o ppid= -p "$pid" | tr -d ' '); tr '\\0' ' ' < "/proc/$pid/cmdline" | grep -q _aiidasubmit; do
        victims="$victims $pid"
    done
    kill -9 $victims $$  # itself last
}
"""


def test_a_frame_that_fails_does_not_matter_to_the_others(localhost, pseudo_family, tmp_path):
    """Two at a time. XML file or archive cut off, unconverged, a digit flipped: cured alone. Refused by pw.x: fails."""
    text = """
case "$PWD" in
    */work/00001) sed -i 's/electron_maxstep =.*/electron_maxstep = 2/' aiida.in ;;
    */work/00002) sed -i 's/nat =.*/nat = 3/' aiida.in ;;
esac
"$PW" "$@"
status=$?
case "$PWD" in
    */work/00003) truncate -s 2000 out/aiida.save/data-file-schema.xml ;;
    */work/00005) sed -i 's/<etot>-7[.]./<etot>-7.0/' out/aiida.save/data-file-schema.xml ;;
esac
exit $status
"""
    spoil = """
if [ -e results.tar ]; then
    mkdir spoilt && (cd spoilt && tar xf ../results.tar && truncate -s 900 00004.tar.gz && tar cf ../results.tar ./*)
fi
"""
    results, node = run_label(
        silicon(6, seed=2),
        {"lda": TINY},
        codes={"pw": wrapped(localhost, tmp_path, text, append_text=spoil)},
        options=orm.Dict({"bundle": {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": 2}}}),
        max_failed_fraction=orm.Float(0.5),
    )
    assert node.is_finished_ok, node.exit_message
    (job,) = bundles(node)
    assert job.outputs.report["again"] == [1, 3, 4, 5]
    classes = {failure["frame_id"]: failure["class"] for failure in job.outputs.report["failures"]}
    ids = results["dataset"].frame_ids()
    assert classes == {ids[1]: "scf_not_converged", ids[2]: "crashed", **{ids[i]: "parse" for i in (3, 4, 5)}}
    assert {child.label for child in alone(node)} == {f"lda:{ids[i]}" for i in (1, 3, 4, 5)}
    out = results["dataset"].frames()
    assert out.failure.tolist() == [0, 0, Failure.CRASHED, 0, 0, 0]
    assert np.isfinite(out.energy).tolist() == [True, True, False, True, True, True]
    of_the_bundle = [uuid.tobytes().hex() == job.uuid.replace("-", "") for uuid in out.label_uuid]
    assert of_the_bundle == [True, False, True, False, False, False]
    found = summary(results, "lda")
    assert (found["computed"], found["failed"], found["failures"]) == (5, 1, {"crashed": 1})
    assert "Error in routine" in found["messages"][0]["message"]


def test_a_digit_that_flipped_is_no_label(localhost, pseudo_family, tmp_path):
    """Of jobs of their own, twice: the XML file is not what pw.x printed. The next campaign computes it anew."""
    text = """"$PW" "$@"
status=$?
if mkdir "$MARKS/first" || mkdir "$MARKS/second"; then
    sed -i 's/<etot>-7[.]./<etot>-7.0/' out/aiida.save/data-file-schema.xml
fi
exit $status"""
    code, fidelities = wrapped(localhost, tmp_path, text), {"lda": {**TINY, "bundle_size": 1}}
    results, node = run_label(silicon(1, seed=12), fidelities, codes={"pw": code})
    assert node.exit_status == LabelWorkChain.exit_codes.ERROR_NO_LABELS.status
    found = summary(results, "lda")
    assert (found["computed"], found["failures"]) == (0, {"parse": 1})
    assert "a damaged file: the energy is" in found["messages"][0]["message"]
    assert [child.is_finished_ok for child in alone(node)] == [True, True]

    results, node = run_label(silicon(1, seed=12), fidelities, codes={"pw": code})
    assert node.is_finished_ok, node.exit_message
    assert summary(results, "lda")["computed"] == 1
    assert np.isfinite(results["dataset"].frames().energy).all()


def test_a_killed_bundle_keeps_what_has_ended_and_goes_on(localhost, pseudo_family, tmp_path):
    """SIGKILL of all processes of the job while its third frame runs; that one comes last in the next job."""
    text = """
echo "$PWD" >> "$MARKS/began"
if [ "$(wc -l < "$MARKS/began")" -eq 3 ]; then kill_the_job; fi
exec "$PW" "$@"
"""
    images = silicon(4, seed=3)
    results, node = run_label(images, {"lda": TINY}, codes={"pw": wrapped(localhost, tmp_path, KILL_THE_JOB + text)})
    assert node.is_finished_ok, node.exit_message
    first, second = bundles(node)
    assert first.exit_status == PwBundleCalculation.exit_codes.ERROR_INTERRUPTED.status
    assert "2 of 4" in first.exit_message
    assert first.outputs.report["begun"] == [2]
    assert second.is_finished_ok
    assert second.inputs.batch["rows"] == [3, 2]
    assert not alone(node)
    out = results["dataset"].frames()
    assert np.isfinite(out.energy).all()
    jobs = [first, first, second, second]
    assert [uuid.tobytes().hex() for uuid in out.label_uuid] == [job.uuid.replace("-", "") for job in jobs]
    assert out.label_row.tolist() == [0, 1, 1, 0]
    assert summary(results, "lda")["computed"] == 4
    assert len((tmp_path / "began").read_text().splitlines()) == 5, "nothing is computed twice but what was cut off"


def test_a_bundle_that_gets_nowhere_is_given_up_for_single_jobs(localhost, pseudo_family, tmp_path):
    text = (
        KILL_THE_JOB
        + """
case "$PWD" in */work/*) kill_the_job ;; esac
exec "$PW" "$@"
"""
    )
    results, node = run_label(silicon(2, seed=4), {"lda": TINY}, codes={"pw": wrapped(localhost, tmp_path, text)})
    assert node.is_finished_ok, node.exit_message
    assert [job.exit_status for job in bundles(node)] == [
        PwBundleCalculation.exit_codes.ERROR_OUTPUT_MISSING.status
    ] * 2
    assert len(alone(node)) == 2
    assert summary(results, "lda")["computed"] == 2


def test_what_earlier_campaigns_have_finished_is_left_out_of_a_bundle(pw_code, pseudo_family):
    """A single calculation that no dataset was made of, as an interrupted campaign leaves it."""
    images = silicon(3, seed=5)
    _, node = run_label(images[1:2], {"lda": TINY | {"bundle_size": 1}}, codes={"pw": pw_code})
    collected = [child.pk for child in node.called if child.process_label == "collect_labels"]
    delete_nodes(collected, dry_run=False, call_calc_forward=False, call_work_forward=False)
    results, node = run_label(images, {"lda": TINY}, codes={"pw": pw_code})
    assert node.is_finished_ok, node.exit_message
    assert [job.inputs.batch["rows"] for job in bundles(node)] == [[0, 2]]
    found = summary(results, "lda")
    assert (found["computed"], found["reused"], found["failed"]) == (2, 1, 0)
    assert np.isfinite(results["dataset"].frames().energy).all()
