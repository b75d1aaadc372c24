"""The watch of running dynamics: whether to trust the potential here, to label this frame, to stop.

γ comes from the model call that the dynamics makes anyway. The committee is evaluated on the same geometry only where γ
gives a reason to, and its deviation is turned into a calibrated bound û (eV/Å). What counts is the worst atom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from jaxtyping import Float64

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.watch import WatchSpec
from aiida_mlip.kernel.calibration import Calibration
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.distances import closest_pair, describe_pair, pair_limits
from aiida_mlip.workers.force_source import PotentialCalculator

Stop = Literal["", "novelty", "error", "pair_distance", "forces_failed"]
_NO_PAIR: Final[tuple[float, int, int, float]] = (np.inf, -1, -1, np.inf)


@dataclass(frozen=True)
class Observation:
    """What the watch saw at one step.

    :param step: of the dynamics.
    :param novelty: (a,) γ; None: not watched, or there are no forces.
    :param error: (a,) û in eV/Å; None: the committee was not evaluated.
    :param max_novelty: largest γ.
    :param max_error: largest û (eV/Å).
    :param closest: (ratio to its limit, i, j, distance in Å) of the closest pair; ratio inf: none within its limit.
    :param selected: worth a label: above a select threshold, and a geometry that can be labelled.
    :param stop: why the dynamics must stop; empty: it need not.
    :param message: what there is to say about it: value, threshold, atom.
    """

    step: int
    novelty: Float64[np.ndarray, "a"] | None = None
    error: Float64[np.ndarray, "a"] | None = None
    max_novelty: float | None = None
    max_error: float | None = None
    closest: tuple[float, int, int, float] = _NO_PAIR
    selected: bool = False
    stop: Stop = ""
    message: str = ""


class Watch:
    """Watches one dynamics. It keeps no state: the same geometry gives the same observation.

    :param spec: thresholds.
    :param calculator: that drives the dynamics (what a wall or a bias adds is no business of the watch).
    :param committee: calculators of the *other* members.
    :param calibration: of the whole committee, the driving potential included.
    :raises InvalidInputError: something is to be watched that these calculators cannot tell.
    """

    def __init__(
        self,
        spec: WatchSpec,
        calculator: Calculator,
        *,
        committee: Sequence[Calculator] = (),
        calibration: Calibration | None = None,
    ) -> None:
        self._spec, self._calculator = spec, calculator
        self._committee, self._calibration = tuple(committee), calibration
        self._limits = pair_limits(spec.min_distance_ang, where="watch.min_distance_ang")
        graded = isinstance(calculator, PotentialCalculator) and calculator.has_grades
        self._graded = graded and (spec.needs_novelty or (bool(committee) and spec.error_where == "novel"))
        if spec.needs_novelty and not graded:
            raise InvalidInputError(
                "watch: the forces come without grades, so there is no novelty: take a potential that was trained with "
                "them, or set novelty_select and novelty_stop to null"
            )
        if self._committee and calibration is None:
            raise InvalidInputError("watch: a committee was given without its calibration, so its error has no scale")
        if self._committee and spec.error_where == "novel" and not graded:
            raise InvalidInputError("watch: error_where 'novel' needs a potential with grades; set it to 'always'")
        if spec.error_where == "always" and not self._committee:
            raise InvalidInputError("watch: error_where 'always' needs the other members of the committee")

    @property
    def every(self) -> int:
        """Steps between observations."""
        return self._spec.every

    @property
    def limits(self) -> np.ndarray:
        """(119, 119) smallest allowed distance (Å) by atomic numbers."""
        return self._limits

    def due(self, step: int) -> bool:
        """Whether a step is one to observe."""
        return step % self._spec.every == 0

    def observe(self, atoms: Atoms, step: int) -> Observation:
        """Look at the present geometry.

        Nothing is raised for what happens on the way: forces that fail are an observation too.

        :param atoms: the dynamics' own; constraints and calculator are ignored.
        :param step: of the dynamics.
        """
        image = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        if not np.isfinite(image.positions).all():
            return Observation(step, stop="forces_failed", message="positions are not finite")
        try:
            forces = _forces(self._calculator, image)
            novelty = self._calculator.novelty(image) if self._graded else None
        except Exception as error:  # noqa: BLE001 - a calculator may raise anything, and it is the end of this run
            return self._without_forces(image, step, f"{type(error).__name__}: {error}")
        if not np.isfinite(forces).all():
            return self._without_forces(image, step, "forces are not finite")
        closest = self._closest(image)
        if closest[0] < 1:
            return self._too_close(image, step, closest, novelty)
        bound, problem = None, ""
        if self._committee and self._asks_committee(novelty):
            bound, problem = self._bound(image, forces)
        return self._verdict(image, step, closest, novelty, bound, problem)

    # -- parts of an observation -------------------------------------------------------------------------------

    def _asks_committee(self, novelty: np.ndarray | None) -> bool:
        return self._spec.error_where == "always" or novelty is None or not novelty.max() <= self._spec.novelty_gate

    def _bound(self, image: Atoms, forces: np.ndarray) -> tuple[np.ndarray | None, str]:
        """(a,) û (eV/Å), and which member failed."""
        members = [forces]
        for index, member in enumerate(self._committee, start=1):
            try:
                members.append(_forces(member, image))
            except Exception as error:  # noqa: BLE001 - as above
                return None, f"member {index} of the committee gave no forces: {type(error).__name__}: {error}"
        assert self._calibration is not None  # noqa: S101 - checked at the start, for the type checker
        return self._calibration.bound(force_deviation(np.array(members)), image.numbers), ""

    def _closest(self, image: Atoms) -> tuple[float, int, int, float]:
        source = self._calculator
        if isinstance(source, PotentialCalculator) and source.cutoff_ang >= self._reach(image):
            return source.closest_pair(image, self._limits)
        return self._searched(image)

    def _reach(self, image: Atoms) -> float:
        species = np.unique(image.numbers)
        return float(self._limits[np.ix_(species, species)].max())

    def _searched(self, image: Atoms) -> tuple[float, int, int, float]:
        return closest_pair(image.numbers, image.positions, image.cell.array, image.pbc, self._limits)

    # -- verdicts ----------------------------------------------------------------------------------------------

    def _without_forces(self, image: Atoms, step: int, problem: str) -> Observation:
        closest = self._searched(image)
        if closest[0] < 1:
            return self._too_close(image, step, closest, None)
        return Observation(step, closest=closest, stop="forces_failed", message=problem)

    def _too_close(
        self, image: Atoms, step: int, closest: tuple[float, int, int, float], novelty: np.ndarray | None
    ) -> Observation:
        _, i, j, distance = closest
        allowed = self._limits[image.numbers[i], image.numbers[j]]
        message = f"{describe_pair(image.numbers, i, j, distance)}, allowed are {allowed:.3f} Å"
        largest = None if novelty is None else float(novelty.max())
        return Observation(
            step, novelty=novelty, max_novelty=largest, closest=closest, stop="pair_distance", message=message
        )

    def _verdict(
        self,
        image: Atoms,
        step: int,
        closest: tuple[float, int, int, float],
        novelty: np.ndarray | None,
        bound: np.ndarray | None,
        problem: str,
    ) -> Observation:
        spec = self._spec
        unit = 1.0 if self._calibration is None else self._calibration.force_rmse_validation
        # NaN is above every threshold
        above_novelty = _above(novelty, spec.novelty_select, 1.0), _above(novelty, spec.novelty_stop, 1.0)
        above_error = _above(bound, spec.error_select, unit), _above(bound, spec.error_stop, unit)
        stop: Stop = ""
        message = ""
        if above_novelty[1] and novelty is not None:
            stop, message = "novelty", f"γ = {_worst(image, novelty)}, the limit is {spec.novelty_stop:g}"
        elif problem:
            stop, message = "error", problem
        elif above_error[1] and bound is not None:
            limit = f"{spec.error_stop:g} × {unit:.4g} eV/Å"
            stop, message = "error", f"expected force error {_worst(image, bound)} eV/Å, the limit is {limit}"
        return Observation(
            step,
            novelty=novelty,
            error=bound,
            max_novelty=None if novelty is None else float(novelty.max()),
            max_error=None if bound is None else float(bound.max()),
            closest=closest,
            selected=above_novelty[0] or above_error[0] or bool(stop),
            stop=stop,
            message=message,
        )


def _above(values: np.ndarray | None, threshold: float | None, unit: float) -> bool:
    return values is not None and threshold is not None and not values.max() <= threshold * unit


def _worst(image: Atoms, values: np.ndarray) -> str:
    atom = int(np.argmax(values))
    return f"{values[atom]:.4g} at atom {atom} ({chemical_symbols[image.numbers[atom]]})"


def _forces(calculator: Any, image: Atoms) -> np.ndarray:
    """(a, 3) eV/Å of a bare geometry."""
    if isinstance(calculator, PotentialCalculator):
        return calculator.forces(image)
    return np.asarray(calculator.get_property("forces", image), dtype=float)
