"""The XML file of pw.x; that its numbers are those of aiida-quantumespresso, test_label_bundles.py says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.pw_xml import read_scf_xml
from aiida_mlip.kernel.units import GPA, HARTREE


def xml(*occupations: str, spins: str = "", energy: str = "-7.25e0", converged: str = "true") -> bytes:
    states = "".join(
        f'<ks_energies><occupations size="{len(row.split())}"> {row} </occupations></ks_energies>'
        for row in occupations
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<qes:espresso xmlns:qes="http://www.quantum-espresso.org/ns/qes/qes-1.0"><output>
<convergence_info><scf_conv><convergence_achieved>{converged}</convergence_achieved></scf_conv></convergence_info>
<total_energy><etot>{energy}</etot></total_energy>
<band_structure>{spins}{states}</band_structure>
<forces rank="2" dims="3 2" order="F"> 1 2 3 -1 -2 -3 </forces>
<stress rank="2" dims="3 3" order="F"> 1e-3 0 0 0 1e-3 0 0 0 2e-3 </stress>
</output>
<timing_info><total label="PWSCF"><cpu>1.0</cpu><wall>1.5</wall></total></timing_info></qes:espresso>""".encode()


def test_units_and_signs():
    scf = read_scf_xml(xml("1 1"))
    assert scf.converged
    assert scf.energy == pytest.approx(-7.25 * HARTREE, rel=2e-7)
    assert scf.forces[1, 2] == pytest.approx(-3 * 51.4220674763, rel=1e-6)
    # 1 hartree/bohr³ is 29421 GPa; pw.x writes compression positive
    assert np.diag(scf.stress) / GPA == pytest.approx([-29.421, -29.421, -58.842], rel=1e-4)
    assert scf.wall_seconds == 1.5
    assert not read_scf_xml(xml("1", converged="false")).converged


@pytest.mark.parametrize(
    ("content", "too_few"),
    [
        (xml("1 1 0.5 0"), False),
        (xml("1 1 0.5 0", "1 1 0.5 0.003"), True),  # of 0 to 1, and two electrons: 0.006
        (xml("1 1 0.5 0.002"), False),
        (xml("1 0.001 0.01 0"), True),  # occupied again above an empty one
        (xml("1 0 1 1", spins="<nbnd_up>2</nbnd_up><nbnd_dw>2</nbnd_dw>"), True),
        (xml("1 0 1 0", spins="<nbnd_up>2</nbnd_up><nbnd_dw>2</nbnd_dw>"), False),
        (xml("1 0.004 1 0.004", spins="<nbnd_up>2</nbnd_up><nbnd_dw>2</nbnd_dw>"), False),
        (xml(), False),
    ],
)
def test_too_few_bands(content, too_few):
    assert read_scf_xml(content).has_too_few_bands is too_few


@given(st.data())
def test_a_file_that_is_cut_off_is_refused(data):
    whole = xml("1 1 0.5 0")
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(FileFormatError, match=r"frame 3\.xml: "):
        read_scf_xml(cut, source="frame 3.xml")


@pytest.mark.parametrize(
    "content",
    [
        b"<a/>",
        xml("1 x"),
        xml("1", energy="1.0+-300"),
        xml("1").replace(b'dims="3 2"', b'dims="3 7"'),
        xml("1").replace(b'dims="3 2"', b""),
        b'<!DOCTYPE x [<!ENTITY a "&b;&b;"><!ENTITY b "&a;">]><x>&a;</x>',
    ],
)
def test_rubbish_is_refused(content):
    with pytest.raises(FileFormatError):
        read_scf_xml(content)
