"""The tutorial on lineage, and what docs/provenance.md shows after it, run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXECUTED = re.compile(r"<!-- executed -->\s*```python\n(.*?)```", re.DOTALL)


def test_the_tutorial_and_the_page(label_code, explore_program, capsys):
    namespace = runpy.run_path(str(ROOT / "examples" / "lineage.py"))
    found = namespace["found"]
    assert found.atom.parent_atom == 10
    assert found.parent.made_by.kind == "aiida_mlip.explore"
    assert found.labels[0].calculation.kind == "aiida_mlip.ase_label"
    assert {each.node.uuid for each in namespace["wrong"].datasets if each.how == "holds"} >= {
        namespace["dataset"].uuid
    }
    assert namespace["behind_simulation"].labels == 1
    assert "was atom 10 of the frame" in capsys.readouterr().out
    blocks = EXECUTED.findall((ROOT / "docs" / "provenance.md").read_text(encoding="utf-8"))
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/provenance.md", "exec"), namespace)  # noqa: S102 - this is what the page is for
    assert namespace["dataset"].uuid in namespace["makers"]
    assert namespace["dataset"].pk in namespace["places"]
    assert namespace["lineages"][0].frame_id == namespace["frame_id"]
    assert namespace["potentials"].n_nodes > 5


@pytest.fixture
def explore_program(localhost):
    """The code that ``aiida-mlip setup`` makes."""
    import sys

    from aiida import orm
    from aiida.common.exceptions import NotExistent

    try:
        return orm.load_code("aiida-mlip-explore@localhost")
    except NotExistent:
        program = Path(sys.executable).parent / "aiida-mlip-explore"
        code = orm.InstalledCode(label="aiida-mlip-explore", computer=localhost, filepath_executable=str(program))
        code.with_mpi = False
        return code.store()
