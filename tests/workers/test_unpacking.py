"""A package loads without NequIP, as the same model."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from aiida_mlip.workers.unpacking import unpack

PREDICT = """
import sys
import numpy as np
from ase.build import bulk
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

images = []
for seed in range(3):
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.rattle(0.1, seed=seed)
    images.append(atoms)
if sys.argv[3] == "nequip":
    import nequip.model
got = predict(load_model(sys.argv[1], features=True), from_ase(images), features=True)
np.savez(sys.argv[2], energy=got.energy, forces=got.forces, stress=got.stress, features=got.features)
import torch
assert torch.get_default_dtype() is torch.float64
assert "unmarked" not in torch.compiler.disable.__name__
assert hasattr(torch._dynamo, "optimize")
"""
#: What a user's shell would show of it.
HEAVY = "\nprint('imported', sorted({'nequip', 'lightning', 'sympy', 'matplotlib'} & set(sys.modules)))"


def run(package: Path, target: Path, *, through: str = "archive") -> tuple[dict[str, np.ndarray], str]:
    code = PREDICT.replace("import torch\n", HEAVY + "\nimport torch\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(package), str(target), through], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(target) as arrays:
        return dict(arrays), done.stdout


def test_the_same_numbers_as_through_nequip(toy_package: Path, tmp_path: Path) -> None:
    """A package that wants torch's compiler when it is loaded goes through NequIP; nothing else differs."""
    light, said = run(toy_package, tmp_path / "light.npz")
    assert "imported []" in said
    assert "through NequIP" not in said
    odd = tmp_path / "odd.nequip.zip"
    with zipfile.ZipFile(toy_package) as source, zipfile.ZipFile(odd, "w", zipfile.ZIP_STORED) as copy:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith("e3nn/o3/_wigner.py"):
                content += b"\nimport torch\ntorch._dynamo.config\n"
            copy.writestr(info.filename, content)
    heavy, said = run(odd, tmp_path / "heavy.npz")
    assert "through NequIP (AttributeError" in said
    assert "'nequip'" in said
    beside, said = run(toy_package, tmp_path / "beside.npz", through="nequip")
    assert "through NequIP" not in said, "it is unpacked as well where NequIP is imported already"
    assert "'nequip'" in said
    for name, values in heavy.items():
        np.testing.assert_array_equal(light[name], values, err_msg=name)
        np.testing.assert_array_equal(beside[name], values, err_msg=name)


def test_torch_is_left_as_it_was(toy_package: Path, tmp_path: Path) -> None:
    """Also where a package cannot be unpacked, which is nobody's error: NequIP is asked then."""
    import torch

    kept, default = torch.compiler.disable, torch.get_default_dtype()
    broken = tmp_path / "broken.nequip.zip"
    broken.write_bytes(toy_package.read_bytes()[:-2000])
    try:
        assert unpack(broken) is None
        assert torch.get_default_dtype() is default
        assert unpack(toy_package).metadata["type_names"] == "Si C"
        assert torch.get_default_dtype() is torch.float64
        assert torch.compiler.disable is kept
    finally:
        torch.set_default_dtype(default)
