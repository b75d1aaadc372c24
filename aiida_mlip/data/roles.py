"""What a process or node is for: label, simulation, training, property; told by its entry point, not by its files."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData

Role = Literal["dataset", "potential", "simulation", "label", "training", "property", "process", "data"]

_CALCULATION: Final[str] = "aiida.calculations:"
#: Calculations that compute labels; pw.x may also have run dynamics.
LABELS: Final[frozenset[str]] = frozenset(
    _CALCULATION + name for name in ("aiida_mlip.ase_label", "aiida_mlip.pw_bundle", "quantumespresso.pw")
)
TRAININGS: Final[frozenset[str]] = frozenset({_CALCULATION + "aiida_mlip.nequip_train"})
#: Jobs that make an ordinary potential of a joint one.
BAKING: Final[str] = _CALCULATION + "aiida_mlip.bake"
#: Other jobs of ours that are no simulation.
_EVALUATIONS: Final[frozenset[str]] = frozenset({_CALCULATION + "aiida_mlip.evaluate", BAKING})
#: Jobs that are none.
NO_SIMULATIONS: Final[tuple[str, ...]] = tuple(sorted(LABELS | TRAININGS | _EVALUATIONS))
#: What the type of a process, and of a job, begins with.
PROCESS: Final[str] = "process."
JOB: Final[str] = "process.calculation.calcjob."
#: Data that hold numbers a person may quote.
NUMBERS: Final[tuple[str, ...]] = (
    "data.core.dict.",
    "data.core.float.",
    "data.core.int.",
    "data.core.array.",
    "data.core.list.",
)


@lru_cache
def role_of(node_type: str, process_type: str) -> Role:
    """What a node of this type is for, see :class:`~aiida_mlip.data.graph.NodeRow`.

    A job of another package, LAMMPS of aiida-lammps for example, counts as a simulation. A ``property`` is a number or
    array; whether a workflow returned it, or it was only used inside, is for the caller to know.
    """
    if node_type.startswith(DatasetData.class_node_type):
        return "dataset"
    if node_type.startswith(PotentialData.class_node_type):
        return "potential"
    if not node_type.startswith(PROCESS):
        return "property" if node_type.startswith(NUMBERS) else "data"
    if process_type in LABELS:
        return "label"
    if process_type in TRAININGS:
        return "training"
    if process_type in _EVALUATIONS or not node_type.startswith(JOB):
        return "process"
    return "simulation"
