"""The test environment itself: real pw.x runs through PwBaseWorkChain in this process."""

import pytest


@pytest.mark.qe
def test_pw_runs(pw_code, pseudo_family, si8):
    from aiida import orm
    from aiida.engine import run_get_node
    from aiida.plugins import WorkflowFactory

    base = WorkflowFactory("quantumespresso.pw.base")
    builder = base.get_builder()
    structure = orm.StructureData(ase=si8.to_ase(0)).store()
    family = orm.load_group(pseudo_family)
    builder.pw.code = pw_code
    builder.pw.structure = structure
    builder.pw.pseudos = family.get_pseudos(structure=structure)
    builder.pw.parameters = orm.Dict(
        {
            "CONTROL": {"calculation": "scf", "tprnfor": True, "tstress": True},
            "SYSTEM": {"ecutwfc": 8.0, "occupations": "fixed"},
        }
    )
    kpoints = orm.KpointsData()
    kpoints.set_kpoints_mesh([1, 1, 1])
    builder.kpoints = kpoints
    builder.pw.metadata.options = {"resources": {"num_machines": 1}, "max_wallclock_seconds": 600, "withmpi": False}
    results, node = run_get_node(builder)
    assert node.is_finished_ok, node.exit_message
    assert results["output_parameters"]["energy"] < -800
