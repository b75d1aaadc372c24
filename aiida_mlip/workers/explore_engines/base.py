"""What every kind of run can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from aiida_mlip.io.explore import Stop

#: What an engine keeps between steps beside the atoms: arrays by name, for a checkpoint.
State = Mapping[str, np.ndarray]


class ExploreEngine(Protocol):
    """What the program does with an engine, in this order: start, advance as often as it likes, finish."""

    def start(self, atoms: Atoms, *, step: int, seed: int, state: State) -> None:
        """Take a structure with momenta; ``step`` steps of its run are done, and ``state`` was kept then."""
        ...

    def advance(self, n_steps: int, *, seed: int) -> int:
        """Do at most so many steps: the atoms are updated in place; new random numbers from ``seed``.

        :returns: steps done; fewer than asked for when the run has reached its goal.
        :raises PairDistanceReached: atoms came too close.
        :raises ForcesFailed: the forces cannot be computed.
        :raises ExternalProgramError: a program library ended badly.
        """
        ...

    def stride(self, step: int, record_every: int) -> int:
        """Most steps from ``step`` to the next frame that may be worth recording."""
        ...

    def is_worth_recording(self, step: int, record_every: int, *, last: bool) -> bool:
        """Whether the present frame is to be recorded; ``last``: the run ends here."""
        ...

    def recorded(self) -> None:
        """The present frame has been recorded."""
        ...

    @property
    def outcome(self) -> Stop:
        """How a run that used up its steps ended: ``finished``, ``converged`` or ``not_converged``."""
        ...

    def energy(self) -> float:
        """Potential energy (eV) of the present frame."""
        ...

    def moves_atoms(self) -> bool:
        """Whether momenta are those of a dynamics, so that a kinetic temperature can be watched."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What :meth:`start` needs to go on from here, beside atoms and step."""
        ...

    def numbers(self) -> dict[str, Any]:
        """Numbers for the report of the run."""
        ...

    def finish(self) -> None:
        """End the run."""
        ...


class Clocked:
    """Base of engines whose steps are all alike: a frame every so many steps."""

    def stride(self, step: int, record_every: int) -> int:
        """Steps to the next multiple of ``record_every``."""
        return record_every - step % record_every

    def is_worth_recording(self, step: int, record_every: int, *, last: bool) -> bool:  # noqa: ARG002 - one signature for all engines
        """Every so many steps."""
        return step % record_every == 0

    def recorded(self) -> None:
        """Nothing to note."""

    @property
    def outcome(self) -> Stop:
        """It did its steps."""
        return "finished"

    def moves_atoms(self) -> bool:
        """Momenta are real."""
        return True

    def state(self) -> dict[str, np.ndarray]:
        """Nothing: the atoms are all there is."""
        return {}

    def numbers(self) -> dict[str, Any]:
        """Nothing to add."""
        return {}

    def finish(self) -> None:
        """Nothing to close."""
