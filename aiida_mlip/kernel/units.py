"""The only place where units are converted.

Inside the package: eV, Å, fs, K, e, amu; stress in eV/Å³, tension positive, full 3×3.
Constants are CODATA 2018 (doi:10.1103/RevModPhys.93.025010) as tabulated in :mod:`scipy.constants`.
"""

from __future__ import annotations

from typing import Final

from scipy import constants

#: eV per hartree.
HARTREE: Final[float] = constants.physical_constants["Hartree energy in eV"][0]
#: eV per rydberg.
RYDBERG: Final[float] = HARTREE / 2
#: Å per bohr.
BOHR: Final[float] = constants.physical_constants["Bohr radius"][0] * 1e10
#: eV/Å³ per GPa.
GPA: Final[float] = 1e9 * 1e-30 / constants.e
#: eV/Å³ per kbar.
KBAR: Final[float] = 0.1 * GPA
#: Boltzmann constant in eV/K.
BOLTZMANN: Final[float] = constants.physical_constants["Boltzmann constant in eV/K"][0]
#: fs per Rydberg atomic unit of time, ħ/Ry (that of pw.x).
RYDBERG_TIME: Final[float] = constants.hbar / (RYDBERG * constants.e) * 1e15
#: eV per amu·Å²/fs².
AMU_ANG2_PER_FS2: Final[float] = constants.atomic_mass * 1e10 / constants.e
#: eV/Å² per J/m².
J_PER_M2: Final[float] = 1e-20 / constants.e
