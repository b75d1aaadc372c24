"""LabelWorkChain with real codes: pw.x (tiny silicon) and ASE calculators."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import calcfunction, run_get_node
from aiida.tools import delete_nodes
from aiida.tools.graph.graph_traversers import traverse_graph
from ase.build import bulk

from aiida_mlip.calculations.functions.label import collect_labels
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.frames import Failure, concatenate, from_ase
from aiida_mlip.kernel.units import GPA
from aiida_mlip.workchains.label import LabelWorkChain

EMT = {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}


def copper(n: int, seed: int = 0, **kwargs):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.05, size=(4, 3))
        images.append(atoms)
    return from_ase(images, generator="rattle", **kwargs)


def run_label(**inputs):
    return run_get_node(LabelWorkChain, **inputs)


def test_emt_labels_are_those_of_the_calculator(label_code):
    from ase.calculators.emt import EMT as Calculator  # noqa: N811

    frames = copper(300)
    results, node = run_label(
        dataset=DatasetData.from_frames(frames), fidelities=orm.Dict({"emt": EMT}), codes={"ase": label_code}
    )
    assert node.is_finished_ok, node.exit_message
    out = results["dataset"].frames()
    assert np.array_equal(out.frame_id, frames.frame_id)
    for row in (0, 17, 299):
        atoms = frames.to_ase(row)
        atoms.calc = Calculator()
        assert out.energy[row] == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(out.forces[out.atom_slice(row)], atoms.get_forces(), atol=1e-10)
        np.testing.assert_allclose(out.stress[row], atoms.get_stress(voigt=False), atol=1e-12)
    summary = results["summary"].get_dict()["fidelities"]["emt"]
    assert (summary["computed"], summary["reused"], summary["failed"]) == (300, 0, 0)
    assert (out.cost > 0).all()


LDA = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "debian-lda",
    "ecutwfc_ry": 12,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 0.6,
    "conv_thr_ry_per_atom": 1e-11,
    "bundle_size": 1,
}


def silicon(displacements, strain=None):
    """Two-atom silicon cells, one per displacement (Å) of the second atom along x."""
    images = []
    for displacement in displacements:
        atoms = bulk("Si", a=5.40)
        atoms.positions[1] += [displacement, 0.02, -0.03]
        if strain is not None:
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        images.append(atoms)
    return images


@pytest.mark.qe
@pytest.mark.parametrize("occupations", [{"occupations": "fixed"}, {"occupations": "smearing", "degauss_ry": 0.05}])
def test_qe_forces_and_stress_are_derivatives_of_the_energy(pw_code, pseudo_family, occupations):
    """Bars: 1e-3 eV/Å and 0.1 GPa against central differences; sign and unit of the stress included."""
    h, e = 0.01, 0.004
    shear = np.zeros((3, 3))
    shear[0, 1] = shear[1, 0] = e / 2
    axial = np.diag([e, 0.0, 0.0])
    images = [*silicon([0.05, 0.05 + h, 0.05 - h])]
    images += [silicon([0.05], s)[0] for s in (shear, -shear, axial, -axial)]
    # strained cells keep their k-point mesh, but not their basis: a high cutoff makes the stress one of energies
    fidelity = LDA | occupations | {"ecutwfc_ry": 40, "parameters": {"CONTROL": {"verbosity": "low"}}}
    results, node = run_label(
        dataset=DatasetData.from_frames(from_ase(images)),
        fidelities=orm.Dict({"lda": fidelity}),
        codes={"pw": pw_code},
    )
    assert node.is_finished_ok, node.exit_message
    out = results["dataset"].frames()
    volume = images[0].get_volume()
    force = -(out.energy[1] - out.energy[2]) / (2 * h)
    assert out.forces[1, 0] == pytest.approx(force, abs=1e-3)
    assert abs(force) > 0.1
    sheared = (out.energy[3] - out.energy[4]) / (2 * e * volume)
    stretched = (out.energy[5] - out.energy[6]) / (2 * e * volume)
    assert out.stress[0, 0, 1] / GPA == pytest.approx(sheared / GPA, abs=0.1)
    assert out.stress[0, 0, 0] / GPA == pytest.approx(stretched / GPA, abs=0.1)
    assert abs(stretched / GPA) > 0.5
    assert (out.failure == Failure.NONE).all()
    assert (out.cost > 0).all()


def ancestors_without_creator(node) -> set[int]:
    """pks of the Data nodes above a node that nothing made."""
    links = (LinkType.CREATE, LinkType.INPUT_CALC)
    pks = traverse_graph([node.pk], links_backward=links)["nodes"]
    return {pk for pk in pks if isinstance(n := orm.load_node(pk), orm.Data) and n.creator is None}


@pytest.mark.qe
def test_qe_labels_once_and_never_again(pw_code, pseudo_family):
    """Duplicates are computed once; a second campaign, also under another name, computes nothing and says so."""
    frames = from_ase([*silicon([0.021, 0.043, 0.021])])
    dataset = DatasetData.from_frames(frames)
    inputs = {"codes": {"pw": pw_code}, "isolated_atoms": orm.Bool(True)}
    results, node = run_label(dataset=dataset, fidelities=orm.Dict({"lda": LDA}), **inputs)
    assert node.is_finished_ok, node.exit_message
    summary = results["summary"].get_dict()["fidelities"]["lda"]
    assert (summary["frames"], summary["computed"], summary["reused"]) == (3, 3, 0)
    out = results["dataset"].frames()
    assert len(out) == 3
    assert out.natoms.tolist() == [2, 2, 1]
    assert np.isnan(out.stress[2]).all()
    energy = results["dataset"].reference_energies["lda"]["Si"]
    assert out.energy[0] / 2 < energy - 3, "silicon is bound by some 5 eV per atom in LDA"

    # the process that made each label, and the graph between
    jobs = {job.uuid.replace("-", ""): job for job in node.called_descendants if isinstance(job, orm.CalcJobNode)}
    labels = [uuid.tobytes().hex() for uuid in out.label_uuid]
    assert set(labels) == set(jobs)
    assert all(child.base.links.get_incoming().all() for child in node.called)
    children = node.base.links.get_outgoing(link_type=LinkType.CALL_WORK).all_link_labels()
    assert sorted(children) == ["atom_lda_00000", "label_lda_00000", "label_lda_00001"]
    query = orm.QueryBuilder().append(orm.WorkChainNode, filters={"label": f"lda:{frames.ids()[1]}"})
    assert query.count() == 1
    user = {dataset.pk, node.inputs.fidelities.pk, node.inputs.isolated_atoms.pk, pw_code.pk}
    upf = {n.pk for n in orm.QueryBuilder().append(orm.Data).all(flat=True) if "pseudo" in n.node_type}
    third_party = {
        n.pk
        for job in jobs.values()
        for n in (job.inputs.parameters, *([job.inputs.settings] if "settings" in job.inputs else []))
    }
    assert ancestors_without_creator(results["dataset"]) <= user | upf | third_party

    again, second = run_label(dataset=dataset, fidelities=orm.Dict({"renamed": LDA | {"mixing_beta": 0.6}}), **inputs)
    assert second.is_finished_ok
    summary = again["summary"].get_dict()["fidelities"]["renamed"]
    assert (summary["computed"], summary["reused"], summary["failed"]) == (0, 3, 0)
    assert not [n for n in second.called_descendants if isinstance(n, orm.CalcJobNode)]
    np.testing.assert_array_equal(again["dataset"].frames().energy, out.energy)
    np.testing.assert_array_equal(again["dataset"].frames().label_uuid, out.label_uuid)

    # what an interrupted campaign leaves: finished calculations, but no dataset made of them
    label_pk = node.pk
    for collected in [n.pk for n in node.called if n.process_label == "collect_labels"]:
        delete_nodes([collected], dry_run=False, call_calc_forward=False, call_work_forward=False)
    assert not orm.QueryBuilder().append(orm.WorkChainNode, filters={"id": label_pk}).count()
    third, node3 = run_label(dataset=DatasetData.from_frames(frames), fidelities=orm.Dict({"lda": LDA}), **inputs)
    assert node3.is_finished_ok, node3.exit_message
    summary = third["summary"].get_dict()["fidelities"]["lda"]
    assert (summary["computed"], summary["reused"]) == (0, 3)
    assert not [n for n in node3.called_descendants if isinstance(n, orm.CalcJobNode)]
    np.testing.assert_array_equal(third["dataset"].frames().label_uuid, out.label_uuid)
    linked = set()
    for collect in (n for n in node3.called if n.process_label == "collect_labels"):
        nodes = collect.base.links.get_incoming(link_type=LinkType.INPUT_CALC).all_nodes()
        linked |= {n.creator.uuid.replace("-", "") for n in nodes if n.creator}
    assert set(labels) <= linked, "the graph leads from the dataset to the calculations of the earlier campaign"


@pytest.mark.qe
def test_qe_unconverged_is_a_failed_row_and_the_budget_counts(pw_code, pseudo_family):
    fidelity = LDA | {"electron_maxstep": 2, "max_iterations": 1, "ecutwfc_ry": 10}
    results, node = run_label(
        dataset=DatasetData.from_frames(from_ase(silicon([0.1, 0.12]))),
        fidelities=orm.Dict({"bad": fidelity}),
        codes={"pw": pw_code},
        max_concurrent=orm.Int(1),
    )
    assert node.exit_status == LabelWorkChain.exit_codes.ERROR_NO_LABELS.status
    summary = results["summary"].get_dict()["fidelities"]["bad"]
    # the first failure is more than a tenth of two: the second frame is not even started
    assert summary["failures"] == {"scf_not_converged": 1}
    assert summary["not_run"] == 1
    assert "onvergence" in summary["messages"][0]["message"]
    row = results["dataset"].frames()
    assert np.isnan(row.energy).all()
    assert row.failure.tolist() == [Failure.SCF_NOT_CONVERGED]
    job = next(n for n in node.called_descendants if isinstance(n, orm.CalcJobNode))
    assert row.label_uuid[0].tobytes().hex() == job.uuid.replace("-", "")


@pytest.mark.qe
@pytest.mark.parametrize(
    ("changes", "options", "failure"),
    [
        ({"parameters": {"SYSTEM": {"nbnd": 1}}}, {}, "crashed"),
        ({"ecutwfc_ry": 30}, {"prepend_text": "ulimit -v 500000"}, "out_of_memory"),
        ({"ecutwfc_ry": 20, "kpoints_distance_inv_ang": 0.12}, {"max_wallclock_seconds": 2}, "walltime"),
    ],
)
def test_qe_failures_have_their_class(pw_code, pseudo_family, changes, options, failure):
    """Real ones: pw.x refuses its input, is denied memory, runs out of time."""
    atoms = silicon([0.0])[0]
    if failure == "out_of_memory":
        atoms.set_cell(24 * np.eye(3))  # fields of 100 MB each
    results, node = run_label(
        dataset=DatasetData.from_frames(from_ase([atoms])),
        fidelities=orm.Dict({"bad": LDA | {"max_iterations": 1} | changes}),
        codes={"pw": pw_code},
        options=orm.Dict({"qe": options}),
    )
    assert node.exit_status == LabelWorkChain.exit_codes.ERROR_NO_LABELS.status
    summary = results["summary"].get_dict()["fidelities"]["bad"]
    assert summary["failures"] == {failure: 1}, summary["messages"]
    assert summary["messages"][0]["message"]
    assert results["dataset"].base.attributes.get("failures") == {failure: 1}


@pytest.mark.qe
def test_qe_slab_has_one_k_point_across_and_no_stress(pw_code, pseudo_family):
    """A sheet that comes without a third cell vector, labelled twice as dense along its plane."""
    sheet = bulk("Si", a=5.40)
    sheet.pbc = [True, True, False]
    cell = np.zeros((3, 3))
    cell[0], cell[1] = [3.8, 0, 0], [-1.9, 3.29, 0]
    sheet.set_cell(cell)
    sheet.set_positions([[0, 0, 0], [0, 2.19, 0.4]])
    results, node = run_label(
        dataset=DatasetData.from_frames(from_ase([sheet])),
        fidelities=orm.Dict({"lda": LDA | {"padding_ang": 3, "occupations": "smearing", "degauss_ry": 0.02}}),
        codes={"pw": pw_code},
    )
    assert node.is_finished_ok, results["summary"].get_dict()
    out = results["dataset"].frames()
    assert np.isfinite(out.energy).all()
    assert np.isfinite(out.forces).all()
    assert np.isnan(out.stress).all()
    assert out.pbc.tolist() == [[True, True, False]]
    np.testing.assert_array_equal(out.positions, sheet.positions)
    base = next(child for child in node.called if child.process_label == "PwBaseWorkChain")
    mesh, _ = base.inputs.kpoints.get_kpoints_mesh()
    assert mesh[0] == mesh[1] > 1 == mesh[2]
    assert base.inputs.pw.structure.cell[2][2] == pytest.approx(0.4 + 2 * 3)


def test_failed_rows_and_the_budget(label_code):
    """EMT knows no silicon: half of the frames fail, more or less than is allowed."""
    frames = from_ase([bulk("Cu"), bulk("Si"), bulk("Al"), bulk("Ge")])
    inputs = {"fidelities": orm.Dict({"emt": EMT}), "codes": {"ase": label_code}}
    results, node = run_label(dataset=DatasetData.from_frames(frames), **inputs)
    assert node.exit_status == LabelWorkChain.exit_codes.ERROR_TOO_MANY_FAILED.status
    assert "2 of 4" in node.exit_message
    out = results["dataset"].frames()
    assert out.failure.tolist() == [0, Failure.CRASHED, 0, Failure.CRASHED]
    assert np.isfinite(out.energy).tolist() == [True, False, True, False]
    _, node = run_label(
        dataset=DatasetData.from_frames(frames), max_failed_fraction=orm.Float(0.5), reuse=orm.Bool(False), **inputs
    )
    assert node.is_finished_ok
    # the labels are known by now; what failed is tried again
    results, node = run_label(dataset=DatasetData.from_frames(frames), max_failed_fraction=orm.Float(0.5), **inputs)
    summary = results["summary"].get_dict()["fidelities"]["emt"]
    assert (summary["computed"], summary["reused"], summary["failed"]) == (0, 2, 2)


def test_several_fidelities_isolated_atoms_and_lineage(label_code):
    lj = {"engine": "ase", "calculator": "ase.calculators.lj.LennardJones", "arguments": {"epsilon": 0.4, "sigma": 2.3}}
    frames = copper(3, seed=5)
    frames = frames.with_columns(group_id=np.arange(48, dtype=np.uint8).reshape(3, 16) + 1)
    results, node = run_label(
        dataset=DatasetData.from_frames(frames),
        fidelities=orm.Dict({"emt": EMT, "lj": lj}),
        codes={"ase": label_code},
        isolated_atoms=orm.Bool(True),
    )
    assert node.is_finished_ok, node.exit_message
    dataset = results["dataset"]
    assert len(dataset) == 8
    assert dataset.base.attributes.get("generators") == {"rattle": 6, "isolated_atom": 2}
    assert set(dataset.reference_energies) == {"emt", "lj"}
    assert dataset.reference_energies["lj"]["Cu"] == 0.0
    assert dataset.reference_energies["emt"]["Cu"] > 3
    for name in ("emt", "lj"):
        part = dataset.filter(fidelity=name)
        np.testing.assert_array_equal(part.frame_id[:3], frames.frame_id)
        np.testing.assert_array_equal(part.group_id[:3], frames.group_id)
    plan = next(child for child in node.called if child.process_label == "plan_labels")
    assert part.geometry_uuid[3].tobytes().hex() == plan.uuid.replace("-", "")
    # growing the dataset computes only what is new
    more = DatasetData.from_frames(copper(5, seed=5))
    results, _ = run_label(dataset=more, fidelities=orm.Dict({"emt": EMT}), codes={"ase": label_code})
    summary = results["summary"].get_dict()["fidelities"]["emt"]
    assert (summary["computed"], summary["reused"]) == (2, 3)


SLOW = """
import os, pathlib, time
from ase.calculators.emt import EMT
MARKS = pathlib.Path(__file__).with_name("marks")
class Slow(EMT):
    def calculate(self, atoms=None, *arguments, **keywords):
        MARKS.mkdir(exist_ok=True)
        if len(atoms) == 8:  # the large frame: as long as three others have not run, two minutes at most
            give_up = time.monotonic() + 120
            while len(list(MARKS.iterdir())) < 3 and time.monotonic() < give_up:
                time.sleep(0.1)
        else:
            (MARKS / str(os.getpid())).touch()
        super().calculate(atoms, *arguments, **keywords)
"""


def test_never_more_alive_than_allowed_and_places_are_refilled(label_code, tmp_path):
    """One slow job among quick ones: its neighbours do not wait for it. The calculator is a user's own."""
    (tmp_path / "slow_calculator.py").write_text(SLOW)
    frames = concatenate([from_ase([bulk("Cu", cubic=True) * (2, 1, 1)], generator="rattle"), copper(4, seed=9)])
    results, node = run_label(
        dataset=DatasetData.from_frames(frames),
        fidelities=orm.Dict({"emt": {"engine": "ase", "calculator": "slow_calculator.Slow", "batch_size": 1}}),
        codes={"ase": label_code},
        max_concurrent=orm.Int(2),
        options=orm.Dict({"prepend_text": f"export PYTHONPATH={tmp_path}"}),
    )
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 5
    jobs = sorted((child for child in node.called if isinstance(child, orm.CalcJobNode)), key=lambda job: job.pk)
    assert len(jobs) == 5
    starts_and_ends = sorted([(job.ctime, 1) for job in jobs] + [(job.mtime, -1) for job in jobs])
    alive = np.cumsum([change for _, change in starts_and_ends])
    assert alive.max() == 2
    assert jobs[3].ctime < jobs[0].mtime, "the fourth job starts while the first, slow one still runs"


def n_nodes() -> int:
    return orm.QueryBuilder().append(orm.Node).count()


GOOD = {"emt": EMT}


@pytest.mark.parametrize(
    ("fidelities", "inputs", "message"),
    [
        ({}, {}, "at least one level of theory"),
        ({"x": LDA | {"protocol": "fst"}}, {}, "did you mean 'fast'"),
        ({"x": LDA | {"ecutwfc_ry": -12}}, {}, r"fidelities\.x\.ecutwfc_ry: .*got -12"),
        ({"x": LDA | {"pseudofamily": "a"}}, {}, "did you mean 'pseudo_family'"),
        ({"x": LDA | {"pseudo_family": "none-such"}}, {}, "no pseudopotential family 'none-such'.*debian-lda"),
        ({"x": LDA}, {"species": "Ge"}, r"no pseudopotential for Ge in family 'debian-lda', which has Si"),
        ({"x": {k: v for k, v in LDA.items() if k != "ecutwfc_ry"}}, {}, "ecutwfc_ry: missing"),
        ({"x": LDA}, {"codes": {}}, r"codes\.pw: missing, but fidelity 'x' is of the engine qe"),
        (GOOD, {"codes": {}}, r"codes\.ase: missing"),
        (GOOD, {"max_concurrent": 0}, "at least 1, got 0"),
        (GOOD, {"max_failed_fraction": 1.5}, "from 0 to 1, got 1.5"),
        (GOOD, {"options": {"max_wallclock_second": 3}}, "did you mean 'max_wallclock_seconds'"),
        (GOOD, {"overlap": True}, "frame 0: atoms Si 0 and Si 1 overlap"),
        (GOOD, {"flat": True}, "frame 0: has a cell without volume"),
        (GOOD, {"empty": True}, "empty dataset"),
    ],
)
def test_bad_input_is_refused_before_anything_is_stored(
    pw_code, label_code, pseudo_family, fidelities, inputs, message
):
    inputs = dict(inputs)
    atoms = bulk(inputs.pop("species", "Si"))
    if inputs.pop("overlap", False):
        atoms.positions[1] = atoms.positions[0] + [0.1, 0, 0]
    if inputs.pop("flat", False):
        atoms.set_cell([[3, 0, 0], [3, 0, 0], [0, 0, 3]])
    dataset = DatasetData() if inputs.pop("empty", False) else DatasetData.from_frames(from_ase([atoms]))
    before = n_nodes()
    inputs = {"codes": {"pw": pw_code, "ase": label_code}} | inputs
    with pytest.raises(ValueError, match=message):
        run_label(dataset=dataset, fidelities=fidelities, **inputs)
    assert n_nodes() == before


def test_an_ultrasoft_pseudopotential_needs_its_density_cutoff(pw_code, tmp_path):
    """Four times the wave function cutoff is silently too low for it."""
    from aiida_pseudo.data.pseudo.upf import UpfData
    from aiida_pseudo.groups.family import PseudoPotentialFamily
    from conftest import debian_pseudo_folder

    folder = tmp_path / "pseudos"
    folder.mkdir()
    for name in ("Cu.pz-d-rrkjus.UPF", "O.pbe-kjpaw.UPF", "Rh.pbe-rrkjus_lb.UPF", "Al.pz-vbc.UPF"):
        (folder / name).write_bytes((debian_pseudo_folder() / name).read_bytes())
    family = PseudoPotentialFamily.create_from_folder(folder, "augmented", pseudo_type=UpfData)
    inputs = {"codes": {"pw": pw_code}, "max_concurrent": orm.Int(0)}  # so that nothing runs whatever is said
    spec = LDA | {"pseudo_family": family.label}
    for symbol, message in (("Cu", "of Cu is"), ("O", "of O is ultrasoft or PAW"), ("Rh", "of Rh"), ("Al", "max_con")):
        dataset = DatasetData.from_frames(from_ase([bulk(symbol, "fcc", a=4.0)]))
        with pytest.raises(ValueError, match=message):
            run_label(dataset=dataset, fidelities=orm.Dict({"x": spec}), **inputs)
        with pytest.raises(ValueError, match="max_concurrent"):
            run_label(dataset=dataset, fidelities=orm.Dict({"x": spec | {"ecutrho_ry": 100}}), **inputs)


def test_frames_that_a_process_made_are_refused_by_exit_code(label_code):
    """Within a larger workchain an exit code is handled; an exception would end the parent."""

    @calcfunction
    def squeeze(dataset):
        frames = dataset.frames()
        return DatasetData.from_frames(frames.with_columns(positions=frames.positions * 0.1))

    made = squeeze(DatasetData.from_frames(copper(1)))
    results, node = run_label(dataset=made, fidelities=orm.Dict(GOOD), codes={"ase": label_code})
    assert node.exit_status == LabelWorkChain.exit_codes.ERROR_INVALID_FRAMES.status
    assert "frame 0: atoms Cu" in node.exit_message
    assert not results
    assert not node.called


def test_builder_writes_the_defaults_out(pw_code, pseudo_family, si8):
    builder = LabelWorkChain.get_builder_from_protocol(
        {"pw": pw_code}, DatasetData.from_frames(si8), {"lda": LDA}, protocol="precise", max_concurrent=orm.Int(3)
    )
    fidelity = builder.fidelities.get_dict()["lda"]
    assert fidelity["protocol"] == "fast", "what the fidelity says itself wins"
    assert fidelity["electron_maxstep"] == 100
    assert builder.max_concurrent == 3
    with pytest.raises(MlipError, match="recommends no cutoffs"):
        LabelWorkChain.get_builder_from_protocol(
            {"pw": pw_code}, DatasetData.from_frames(si8), {"lda": {"pseudo_family": pseudo_family}}
        )


@pytest.mark.parametrize(("state", "failure"), [("killed", Failure.KILLED), ("excepted", Failure.SUBMISSION)])
def test_processes_that_left_nothing(aiida_profile, state, failure):
    """Records of processes that were killed, or broke, before there was a file."""
    dataset = DatasetData.from_frames(copper(2)).store()
    batch = orm.Dict(
        {"fidelity": "emt", "spec": EMT, "settings": "0" * 64, "source": "dataset", "rows": [0, 1]}
    ).store()
    job = orm.CalcJobNode(process_type="aiida.calculations:aiida_mlip.ase_label")
    job.base.links.add_incoming(batch, LinkType.INPUT_CALC, "batch")
    job.store()
    job.set_process_state(state)
    job.set_exception("boom" if state == "excepted" else "")
    results = collect_labels(dataset, batch)
    rows = results["dataset"].frames()
    assert rows.failure.tolist() == [failure] * 2
    assert rows.label_uuid[0].tobytes().hex() == job.uuid.replace("-", "")
