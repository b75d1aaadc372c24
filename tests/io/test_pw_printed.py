"""What pw.x printed of an scf; that it agrees with the XML of real ones, every labelling test says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.io.pw_md import BOHR, RYDBERG
from aiida_mlip.io.pw_printed import printed_scf

FORCES = """
     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.10000000    0.00000000   -0.20000000
     atom    2 type  2   force =    -0.10000000    0.00000000    0.20000000
     The non-local contrib.  to forces
     atom    1 type  1   force =     7.00000000    7.00000000    7.00000000
     atom    2 type  2   force =     7.00000000    7.00000000    7.00000000
     Total force =     0.316228     Total SCF correction =     0.000003
"""
TEXT = f"""     total energy              =     -14.00000000 Ry
!    total energy              =     -15.00000000 Ry
     Harris-Foulkes estimate   =     -15.00000001 Ry
{FORCES.replace("0.2", "0.3")}
!    total energy              =     -16.00000000 Ry
{FORCES}"""
ENERGY = -16.0 * RYDBERG
ROWS = np.array([[0.1, 0.0, -0.2], [-0.1, 0.0, 0.2]]) * RYDBERG / BOHR


def test_the_last_scf():
    found = printed_scf(TEXT)
    assert found.energy == pytest.approx(ENERGY)
    np.testing.assert_allclose(found.forces, ROWS)
    assert found.contradicts(ENERGY + 1e-7, ROWS + 1e-7) == ""
    assert found.contradicts(ENERGY, None) == ""


def test_other_versions_and_hybrids():
    """Headings of versions before 6.4; exchange iterated to its end is printed with two marks."""
    old = TEXT.replace("(cartesian axes, Ry/au)", "(Ry/au)") + "!!   total energy              =     -17.00000000 Ry\n"
    found = printed_scf(old)
    assert found.energy == pytest.approx(-17.0 * RYDBERG)
    np.testing.assert_allclose(found.forces, ROWS)


def test_differences_are_named():
    found = printed_scf(TEXT)
    assert "the energy is" in found.contradicts(ENERGY + 1e-3, ROWS)
    changed = ROWS.copy()
    changed[1, 2] += 0.01
    assert found.contradicts(ENERGY, changed).startswith("a damaged file: the force on atom 1 differs by 1.00e-02 eV/Å")
    assert "forces of 3 atoms" in found.contradicts(ENERGY, np.zeros((3, 3)))


def test_what_was_not_printed_contradicts_nothing():
    """Too wide for its columns, not asked for, or nothing at all."""
    wide = TEXT.replace("   -0.20000000\n     atom    2", "************\n     atom    2")
    assert printed_scf(wide).contradicts(ENERGY, ROWS + np.array([[0, 0, 5.0], [0, 0, 0]])) == ""
    assert "atom 1" in printed_scf(wide).contradicts(ENERGY, ROWS + np.array([[0, 0, 0], [0, 0, 5.0]]))
    for text in ("", "!    total energy              = **************** Ry\n"):
        assert printed_scf(text).contradicts(ENERGY, ROWS) == ""


@given(st.text(alphabet="0123456789-.*! \nforceatmyp=R") | st.integers(0, len(TEXT)).map(lambda n: TEXT[:n]))
def test_any_text_can_be_read(text):
    printed_scf(text).contradicts(ENERGY, ROWS)
