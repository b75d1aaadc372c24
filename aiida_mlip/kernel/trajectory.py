"""Trajectories of molecular dynamics: joined from interrupted runs, judged, and thinned to independent frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.autocorrelation import AutocorrelationTime, integrated_time
from aiida_mlip.kernel.dynamics import drift, temperature, verlet_velocity

#: Runs shorter than this (ps) are not judged by the drift of their energy: within a vibration, the error of the Verlet
#: algorithm goes up and down.
JUDGED_DURATION: Final[float] = 0.1
#: Two geometries are the same frame if no coordinate differs by more than this (Å).
SAME_FRAME: Final[float] = 1e-6


@dataclass(frozen=True)
class Segment:
    """Steps of one uninterrupted run that have a complete label, in order, from the first to the first that has none.

    :param positions: (m, a, 3) Å.
    :param energy: (m,) eV, the energy whose derivative the forces are.
    :param forces: (m, a, 3) eV/Å.
    :param stress: (m, 3, 3) eV/Å³, tension positive; NaN if it was not wanted.
    :param kinetic: (m,) eV; NaN for a step whose kinetic energy is not known.
    :param unlabelled: (a, 3) Å: geometry of the next step, if known; it has no (complete) label.
    :param scf_failed: the scf of that next step did not converge.
    :param completed: the run reached the number of steps it was asked for.
    :param seconds: wall time, NaN when not known.
    """

    positions: Float[np.ndarray, "m a 3"]
    energy: Float[np.ndarray, "m"]
    forces: Float[np.ndarray, "m a 3"]
    stress: Float[np.ndarray, "m 3 3"]
    kinetic: Float[np.ndarray, "m"]
    unlabelled: Float[np.ndarray, "a 3"] | None
    scf_failed: bool
    completed: bool
    seconds: float

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def resume_step(self) -> int:
        """Step of this segment where the next one starts: its last labelled one, which is computed once more."""
        return max(len(self) - 1, 0)


def resume_velocities(
    segment: Segment, masses: Float[np.ndarray, "a"], timestep: float
) -> Float[np.ndarray, "a 3"] | None:
    """Velocities (Å/fs) to go on with at :attr:`Segment.resume_step`; None if that is the segment's own start."""
    k = segment.resume_step
    if k == 0:
        return None
    return verlet_velocity(
        segment.positions[k - 1], segment.positions[k], segment.forces[k], np.asarray(masses), timestep
    )


@dataclass(frozen=True)
class Trajectory:
    """Labelled steps of a run, from the first, each once.

    :param segment: (n,) which segment a step was computed in.
    :param row: (n,) its number there.
    :param repeated: steps computed a second time, because a segment starts at the last step of the one before.
    :param mismatch: largest difference (eV/atom) between the energies of the two; NaN if none was repeated.

    The other columns are those of :class:`Segment`.
    """

    positions: Float[np.ndarray, "n a 3"]
    energy: Float[np.ndarray, "n"]
    forces: Float[np.ndarray, "n a 3"]
    stress: Float[np.ndarray, "n 3 3"]
    kinetic: Float[np.ndarray, "n"]
    segment: Int[np.ndarray, "n"]
    row: Int[np.ndarray, "n"]
    repeated: int
    mismatch: float

    def __len__(self) -> int:
        return len(self.energy)


def join(segments: Sequence[Segment]) -> Trajectory:
    """Steps of consecutive segments, each of which starts at the last labelled step of the one before.

    :raises InvalidInputError: no segments.
    """
    if not segments:
        raise InvalidInputError("no segments to join")
    start = 0
    rows: dict[int, tuple[int, int]] = {}  # step of the run -> (segment, row)
    repeated, mismatch = 0, [np.nan]
    kinetic: dict[int, float] = {}
    for number, segment in enumerate(segments):
        for row in range(len(segment)):
            step = start + row
            if step in rows:
                known_segment, known_row = rows[step]
                repeated += 1
                difference = abs(segment.energy[row] - segments[known_segment].energy[known_row])
                mismatch.append(difference / segment.positions.shape[1])
            else:
                rows[step] = (number, row)
            # what was cut off with the end of one segment is known from the start of the next
            if not np.isfinite(kinetic.get(step, np.nan)):
                kinetic[step] = float(segment.kinetic[row])
        start += segment.resume_step
    n, a = len(rows), segments[0].positions.shape[1]
    picked = [rows[step] for step in range(n)]

    def column(name: str, *shape: int) -> np.ndarray:
        return np.array([getattr(segments[s], name)[r] for s, r in picked], dtype=float).reshape(n, *shape)

    return Trajectory(
        positions=column("positions", a, 3),
        energy=column("energy"),
        forces=column("forces", a, 3),
        stress=column("stress", 3, 3),
        kinetic=np.array([kinetic[step] for step in range(n)], dtype=float),
        segment=np.array([s for s, _ in picked], dtype=int),
        row=np.array([r for _, r in picked], dtype=int),
        repeated=repeated,
        mismatch=float(np.nanmax(mismatch)) if repeated else float("nan"),
    )


def failed_geometries(segments: Sequence[Segment], trajectory: Trajectory) -> list[tuple[int, np.ndarray]]:
    """(segment, (a, 3) Å) of geometries whose scf did not converge and that got no label later either."""
    found: list[tuple[int, np.ndarray]] = []
    for number, segment in enumerate(segments):
        if not segment.scf_failed or segment.unlabelled is None:
            continue
        known = [*trajectory.positions, *(geometry for _, geometry in found)]
        if all(np.abs(segment.unlabelled - other).max() > SAME_FRAME for other in known):
            found.append((number, segment.unlabelled))
    return found


@dataclass(frozen=True)
class Analysis:
    """What a trajectory is worth; times in steps, NaN or None where a run is too short to tell.

    :param temperature: mean after the equilibration (K), with its standard error.
    :param drift: slope of the total energy of the whole run (eV/atom/ps).
    :param duration: of the whole run (ps).
    :param energy_time: memory of the potential energy after the equilibration.
    :param forces_time: memory of the forces after the equilibration.
    :param stride: distance of independent steps.
    """

    temperature: float
    temperature_error: float
    drift: float
    duration: float
    energy_time: AutocorrelationTime | None
    forces_time: AutocorrelationTime | None
    stride: int


def analyse(trajectory: Trajectory, *, timestep: float, equilibration: int = 0) -> Analysis:
    """Temperature, energy conservation and memory of a trajectory.

    :param timestep: fs.
    :param equilibration: steps at the start that count for the energy only.
    """
    n, a = trajectory.positions.shape[:2]
    times = np.arange(n) * timestep * 1e-3
    slope = drift(times, trajectory.energy + trajectory.kinetic) / a
    kelvin = temperature(trajectory.kinetic[equilibration:], a)
    kelvin = kelvin[np.isfinite(kelvin)]
    energy_time = forces_time = None
    error = np.nan
    if n - equilibration >= 2:
        energy_time = integrated_time(trajectory.energy[equilibration:])
        forces_time = integrated_time(trajectory.forces[equilibration:])
    if len(kelvin) >= 2:
        error = float(kelvin.std() * np.sqrt(2 * integrated_time(kelvin).tau / len(kelvin)))
    return Analysis(
        temperature=float(kelvin.mean()) if len(kelvin) else np.nan,
        temperature_error=error,
        drift=slope,
        duration=n * timestep * 1e-3,
        energy_time=energy_time,
        forces_time=forces_time,
        stride=max((t.stride for t in (energy_time, forces_time) if t is not None), default=1),
    )


def energy_is_conserved(analysis: Analysis, limit: float) -> bool:
    """Whether the drift is at most ``limit`` (eV/atom/ps), or the run shorter than :data:`JUDGED_DURATION`."""
    return not (analysis.duration >= JUDGED_DURATION and abs(analysis.drift) > limit)


def temperature_is_reached(analysis: Analysis, target: float, fraction: float) -> bool:
    """Whether the mean temperature is within ``fraction`` of the target (K), or within three standard errors."""
    deviation = abs(analysis.temperature - target)
    return not deviation > max(fraction * target, 3 * np.nan_to_num(analysis.temperature_error, nan=np.inf))
