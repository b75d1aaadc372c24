"""What jobs ask of a machine where nobody says otherwise."""

from __future__ import annotations

from typing import Final

#: Resources of a program that computes on one core, or one GPU.
ONE_CORE: Final[dict[str, int]] = {"num_machines": 1, "num_mpiprocs_per_machine": 1}
