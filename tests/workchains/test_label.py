"""LabelWorkChain with real codes: pw.x (tiny silicon) and ASE calculators."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import Failure, from_ase
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
    from ase.calculators.emt import EMT as Calculator

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
