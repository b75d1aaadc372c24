"""Generators give the same bytes in another process, and say which package they lack."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.generators import GENERATORS, empty_frames, random_crystal

SCRIPT = """
import warnings; warnings.simplefilter("ignore")
from test_reproducibility import hashes
for name, value in hashes().items(): print(name, value)
"""


def hashes() -> dict[str, str]:
    """Hash of what each generator makes of its example."""
    seeds = from_ase([bulk("Si", cubic=True), bulk("SiC", "zincblende", a=4.36, cubic=True)])
    found = {}
    for name, generator in GENERATORS.items():
        parents = seeds if generator.needs_parents else empty_frames()
        frames = generator(parents, generator.parameters(**generator.example), np.random.default_rng(11))
        found[name] = hashlib.sha256(write_shard(frames)).hexdigest()
    return found


def test_same_bytes_in_another_process_with_other_hashes():
    here = os.path.dirname(__file__)  # noqa: PTH120  # it goes into a path of strings
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": here}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == hashes()


@pytest.mark.parametrize(
    ("name", "module"),
    [("sqs", "icet"), ("random_crystal", "pyxtal.symmetry"), ("grain_boundary", "pymatgen.core.interface")],
)
def test_a_package_that_is_not_installed(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    random_crystal._group.cache_clear()
    random_crystal._holds.cache_clear()
    generator = GENERATORS[name]
    parents = from_ase([bulk("Si", cubic=True)]) if generator.needs_parents else empty_frames()
    with pytest.raises(InvalidInputError, match=r"generator .* is not installed; pip install .*\[generators\]"):
        generator(parents, generator.parameters(**generator.example), np.random.default_rng(0))
