"""The engines of biased dynamics behind one interface.

A new engine is one file with a class that has the methods of
:class:`~aiida_mlip.workers.metadynamics_engines.base.BiasedEngine`, a function that makes it, and one entry in
:data:`ENGINES`. One whose bias is a function of the geometry only needs the method ``evaluate`` of
:class:`~aiida_mlip.workers.guarded_calculator.Bias`, see :mod:`aiida_mlip.workers.metadynamics_engines.environment`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aiida_mlip.workers.metadynamics_engines.base import BiasedEngine, EngineMissingError, langevin
from aiida_mlip.workers.metadynamics_engines.colvars import make_colvars
from aiida_mlip.workers.metadynamics_engines.environment import make_environment
from aiida_mlip.workers.metadynamics_engines.plumed import check_plumed, make_plumed
from aiida_mlip.workers.metadynamics_engines.uncertainty import make_uncertainty

__all__ = ["ENGINES", "BiasedEngine", "EngineMissingError", "check_plumed", "langevin"]

#: The engines by name.
ENGINES: Final[Mapping[str, Callable[..., BiasedEngine]]] = {
    "environment": make_environment,
    "colvars": make_colvars,
    "plumed": make_plumed,
    "uncertainty": make_uncertainty,
}
