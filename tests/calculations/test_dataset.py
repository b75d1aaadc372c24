"""Calcfunctions on datasets: unions, imports of calculations, and their exit codes."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from ase.build import bulk

from aiida_mlip.calculations.functions.dataset import (
    calculation_inputs,
    checked_dataset,
    import_calculations,
    merge_datasets,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FrameError, InvalidInputError
from aiida_mlip.io.extxyz import read_extxyz
from aiida_mlip.kernel.frames import from_ase

pytestmark = pytest.mark.usefixtures("aiida_profile")


def dataset(scale: float, settings: str = "") -> DatasetData:
    frames = from_ase([bulk("Si", a=5.43 * scale)]).with_columns(
        energy=np.array([-scale]), fidelity=np.zeros(1, dtype="<i2"), fidelities=("lda",)
    )
    return DatasetData.from_frames(frames, settings={"lda": settings})


def test_merge_has_its_inputs_as_ancestors():
    a, b = dataset(1.0), dataset(1.1)
    outputs, node = merge_datasets.run_get_node(a=a, b=b)
    assert node.is_finished_ok
    assert outputs["dataset"].frame_ids() == a.frame_ids() + b.frame_ids()
    assert {link.node.pk for link in node.base.links.get_incoming()} == {a.pk, b.pk}


def test_two_settings_under_one_name_end_with_an_exit_code():
    _, node = merge_datasets.run_get_node(a=dataset(1.0, "a" * 64), b=dataset(1.1, "b" * 64))
    assert node.exit_status == 312
    assert "two different settings" in node.exit_message


def outputs_of_pw(atoms, energy: float, forces: np.ndarray, *, converged: bool = True) -> dict[str, orm.Data]:
    """The nodes that a pw.x calculation leaves, made by a process so that they have a creator."""
    from aiida.engine import calcfunction

    @calcfunction
    def pretend(energy, forces):
        trajectory = orm.TrajectoryData()
        trajectory.set_trajectory(symbols=atoms.get_chemical_symbols(), positions=atoms.positions[None])
        trajectory.set_array("forces", forces.get_array("forces")[None])
        convergence = {"scf_conv": {"convergence_achieved": converged}}
        return {
            "parameters": orm.Dict({"energy": energy.value, "convergence_info": convergence}),
            "trajectory": trajectory,
        }

    array = orm.ArrayData()
    array.set_array("forces", forces)
    return pretend(orm.Float(energy), array)


def import_inputs(frames, factor: float, accept: bool) -> dict[str, orm.Data]:
    inputs: dict[str, orm.Data] = {"fidelity": orm.Str("pbe"), "accept_implausible": orm.Bool(accept)}
    for row in range(len(frames)):
        atoms = frames.to_ase(row)
        made = outputs_of_pw(atoms, float(frames.energy[row]), factor * frames.forces[frames.atom_slice(row)])
        atoms.calc = None
        inputs |= {
            f"structure_{row:04d}": orm.StructureData(ase=atoms),
            f"parameters_{row:04d}": made["parameters"],
            f"trajectory_{row:04d}": made["trajectory"],
        }
    return inputs


def test_implausible_calculations_end_with_an_exit_code(data_dir):
    frames = read_extxyz(data_dir / "mlearn" / "Si_test.xyz", fidelity="pbe")
    frames = frames.take(frames.natoms < 70).take(np.arange(20))
    _, node = import_calculations.run_get_node(**import_inputs(frames, -1.0, accept=False))
    assert node.exit_status == 311
    assert "opposite sign" in node.exit_message
    outputs, node = import_calculations.run_get_node(**import_inputs(frames, -1.0, accept=True))
    assert node.is_finished_ok
    assert outputs["dataset"].base.attributes.get("plausibility")["findings"]


def test_an_unconverged_calculation_is_a_record_without_a_label():
    atoms = bulk("Si")
    made = outputs_of_pw(atoms, -1.0, np.zeros((2, 3)), converged=False)
    outputs, node = import_calculations.run_get_node(
        fidelity=orm.Str("lda"),
        accept_implausible=orm.Bool(False),
        settings=orm.Str("c" * 64),
        structure_0000=orm.StructureData(ase=atoms),
        parameters_0000=made["parameters"],
        trajectory_0000=made["trajectory"],
    )
    assert node.is_finished_ok
    assert outputs["dataset"].base.attributes.get("failures") == {"scf_not_converged": 1}
    assert not outputs["dataset"].frames().labelled.any()
    assert outputs["dataset"].settings == {"lda": "c" * 64}


def test_only_finished_single_points_are_taken(localhost):
    with pytest.raises(InvalidInputError, match="no calculations"):
        calculation_inputs([])
    node = orm.CalcJobNode(computer=localhost)
    node.set_process_state("finished")
    node.set_exit_status(400)
    node.store()
    with pytest.raises(FrameError, match=r"did not finish well \(exit status 400\)"):
        calculation_inputs([node])


def test_the_verdict_is_kept_with_the_data(data_dir):
    frames = read_extxyz(data_dir / "mlearn" / "Si_test.xyz", fidelity="pbe")
    node = checked_dataset(frames, settings={}, accept_implausible=False, source="x").store()
    verdict = orm.load_node(node.pk).base.attributes.get("plausibility")
    assert verdict["measures"]["pbe.probe_frames"] > 10
    assert verdict["untested"] == ["pbe: work test"]
