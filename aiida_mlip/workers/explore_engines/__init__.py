"""The kinds of runs behind one interface.

A new kind is one file with a class that has the methods of
:class:`~aiida_mlip.workers.explore_engines.base.ExploreEngine`, a section of
:class:`~aiida_mlip.io.explore.ExploreSpec`, and one line in :func:`make_engine`.
"""

from __future__ import annotations

from aiida_mlip.io.explore import ExploreSpec
from aiida_mlip.workers.explore_engines.base import ExploreEngine, State
from aiida_mlip.workers.explore_engines.lammps import LammpsEngine
from aiida_mlip.workers.explore_engines.md import MolecularDynamicsEngine
from aiida_mlip.workers.explore_engines.monte_carlo import MonteCarloEngine
from aiida_mlip.workers.explore_engines.relax import RelaxationEngine
from aiida_mlip.workers.guarded_calculator import GuardedCalculator

__all__ = ["ExploreEngine", "State", "make_engine"]


def make_engine(spec: ExploreSpec, guard: GuardedCalculator, *, text: str | None) -> ExploreEngine:
    """Engine of a specification.

    :param guard: calculator that watches pair distances.
    :param text: the person's own input file.
    :raises EngineMissingError: a library that the engine needs is not installed here.
    """
    if spec.kind == "relax":
        return RelaxationEngine(spec, guard)
    if spec.kind == "monte_carlo":
        return MonteCarloEngine(spec, guard)
    if spec.kind == "lammps":
        return LammpsEngine(spec, guard, text)
    return MolecularDynamicsEngine(spec, guard)
