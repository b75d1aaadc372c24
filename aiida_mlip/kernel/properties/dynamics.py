"""What runs tell: energy drift, stability, pair and angle distributions, diffusion, thermal expansion, order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.dynamics import drift
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Property
from aiida_mlip.kernel.short_range_order import warren_cowley
from aiida_mlip.kernel.units import BOLTZMANN

#: Width (Å) of the bins of a pair distribution, and degrees of those of an angle distribution.
_BIN_ANG: Final[float] = 0.05
_BIN_DEGREES: Final[float] = 2.0
#: Reach (Å) of a pair distribution where the cell allows it, and neighbours for angles in units of its first peak.
_REACH_ANG: Final[float] = 8.0
_BOND: Final[float] = 1.25
_FS_PER_PS: Final[float] = 1000.0


def run_names(temperature: float) -> list[tuple[str, str, str]]:
    """Name, family and unit of what one run at a temperature (K) gives."""
    label = f"{temperature:g}k"
    return [
        (f"stable_part_{label}", "stability", "of the run"),
        (f"nve_drift_{label}_mev_per_atom_ps", "nve_drift", "meV/atom/ps"),
        (f"diffusion_{label}_ang2_per_ps", "diffusion", "Å²/ps"),
    ]


def run_outcome(
    frames: Frames,
    step: Int[np.ndarray, "n"],
    energy: Float[np.ndarray, "n"],
    kelvin: Float[np.ndarray, "n"],
    *,
    report: Mapping[str, Any],
    temperature: float,
    timestep: float,
    equilibration: int,
    n_steps: int,
) -> Outcome:
    """Stability, drift, distributions and diffusion of one run.

    :param frames: recorded frames, one run.
    :param step: at which each was recorded.
    :param energy: potential energy, eV.
    :param kelvin: kinetic temperature, K.
    :param report: how the run went: ``steps``, ``stopped_by``, ``stopped_at``, ``message``.
    :param temperature: of the thermostat (K); the runs are named by it.
    :param timestep: fs.
    :param equilibration: steps with the thermostat.
    :param n_steps: steps asked for.
    """
    label = f"{temperature:g}k"
    (stable, drifting, diffusing) = run_names(temperature)
    stopped = report.get("stopped_at")
    done = n_steps if report["stopped_by"] == "finished" else int(report["steps"] if stopped is None else stopped)
    text = "part of the run before a limit ended it"
    if report["stopped_by"] != "finished":
        text += f"; it failed after {done * timestep / _FS_PER_PS:.3g} ps: {report['message'] or report['stopped_by']}"
    properties = [Property(*stable[:2], done / n_steps, stable[2], text)]
    curves: dict[str, np.ndarray] = {f"failure_time_ps_{label}": np.array([done * timestep / _FS_PER_PS])}
    later = step > equilibration
    if later.sum() < 3 or done < n_steps:
        reason = "the run ended early" if done < n_steps else f"{int(later.sum())} frames are too few"
        properties += [
            Property(name, family, None, unit, reason=reason) for name, family, unit in (drifting, diffusing)
        ]
        return Outcome(tuple(properties), curves)
    kept = frames.take(later)
    times = step[later] * timestep / _FS_PER_PS
    n = int(frames.natoms[0])
    total = energy[later] + 1.5 * n * BOLTZMANN * kelvin[later]
    slope = abs(drift(times, total)) / n * 1e3
    properties.append(Property(*drifting[:2], slope, drifting[2], "size of the slope of the total energy"))
    msd = mean_square_displacement(kept)
    half = len(msd) // 2
    diffusion = drift(times[half:] - times[0], msd[half:]) / 6.0 if len(msd) - half >= 3 else np.nan
    properties.append(
        Property(*diffusing[:2], float(diffusion), diffusing[2], "slope of the mean square displacement / 6")
        if np.isfinite(diffusion)
        else Property(*diffusing[:2], None, diffusing[2], reason="too few frames")
    )
    radii, g = pair_distribution(kept)
    angles, p = angle_distribution(kept, reach=_BOND * radii[int(np.argmax(g))])
    curves |= {
        f"rdf_radius_ang_{label}": radii,
        f"rdf_{label}": g,
        f"adf_degrees_{label}": angles,
        f"adf_per_degree_{label}": p,
        f"msd_time_ps_{label}": times - times[0],
        f"msd_ang2_{label}": msd,
        f"total_energy_ev_per_atom_{label}": total / n,
    }
    return Outcome(tuple(properties), curves)


def pair_distribution(frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Radii (Å) and g(r), averaged over frames of one periodic composition; tends to 1.

    :raises NotComputableError: frames that are not periodic in three directions.
    """
    if not frames.pbc.all():
        raise NotComputableError("a pair distribution needs a periodic system")
    heights = 1.0 / np.linalg.norm(np.linalg.inv(frames.cell), axis=1)
    reach = min(_REACH_ANG, float(heights.min()))
    edges = np.arange(0.0, reach, _BIN_ANG)
    counts, ideal = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    shells = 4.0 / 3.0 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    for row in range(len(frames)):
        atoms = frames.to_ase(row)
        counts += np.histogram(neighbour_list("d", atoms, edges[-1]), edges)[0]
        ideal += len(atoms) ** 2 / atoms.get_volume() * shells
    return 0.5 * (edges[1:] + edges[:-1]), counts / ideal


def angle_distribution(frames: Frames, *, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles (degrees) between neighbours closer than ``reach`` (Å), and their density per degree (integral 1)."""
    edges = np.arange(0.0, 180.0 + _BIN_DEGREES, _BIN_DEGREES)
    counts = np.zeros(len(edges) - 1)
    for row in range(len(frames)):
        first, vectors = neighbour_list("iD", frames.to_ase(row), reach)
        units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
        starts = np.searchsorted(first, np.arange(first.max(initial=-1) + 2))
        for begin, end in pairwise(starts):
            around = units[begin:end]
            cosines = (around @ around.T)[np.triu_indices(end - begin, 1)]
            counts += np.histogram(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))), edges)[0]
    return 0.5 * (edges[1:] + edges[:-1]), counts / max(1.0, counts.sum()) / _BIN_DEGREES


def mean_square_displacement(frames: Frames) -> Float[np.ndarray, "n"]:
    """(n,) Å² from the first frame, without the motion of the centre; positions must not have been wrapped."""
    n = int(frames.natoms[0])
    if (frames.natoms != n).any():
        raise InvalidInputError(f"frames: expected {n} atoms in each, got {sorted(set(frames.natoms.tolist()))}")
    positions = frames.positions.reshape(len(frames), n, 3)
    moved = positions - positions[0]
    moved = moved - moved.mean(axis=1, keepdims=True)
    return np.asarray((moved**2).sum(axis=2).mean(axis=1))


def distribution_difference(radii: np.ndarray, g: np.ndarray, other_radii: np.ndarray, other: np.ndarray) -> float:
    """∫|g - g'| dr / ∫g' dr on the distances that both have."""
    n = min(len(radii), len(other_radii))
    return float(np.abs(g[:n] - other[:n]).sum() / max(other[:n].sum(), 1e-12))


def expansion_outcome(temperatures: Sequence[float], volumes: Sequence[float]) -> Outcome:
    """Linear expansion coefficient α = d ln V / dT / 3 (1e-6/K) by a straight line through the mean volumes.

    :param temperatures: K, at least two.
    :param volumes: Å³ per atom.
    """
    slope = np.polyfit(np.asarray(temperatures, dtype=float), np.log(np.asarray(volumes, dtype=float)), 1)[0]
    name, family, unit = EXPANSION
    return Outcome(
        (Property(name, family, float(slope / 3.0 * 1e6), unit, "from mean volumes at zero pressure"),),
        {
            "expansion_temperature_k": np.asarray(temperatures, dtype=float),
            "expansion_volume_ang3_per_atom": np.asarray(volumes, dtype=float),
        },
    )


EXPANSION: Final[tuple[str, str, str]] = ("expansion_1e_6_per_k", "expansion", "1e-6/K")


def order_outcome(frames: Frames, *, n_shells: int) -> Outcome:
    """Warren-Cowley parameters, averaged over the second half of a run of swaps."""
    half = frames.take(np.arange(len(frames) // 2, len(frames)))
    found = []
    for row in range(len(half)):
        atoms = half.to_ase(row)
        found.append(
            warren_cowley(
                atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array, atoms.pbc, n_shells=n_shells
            )
        )
    alpha = np.mean([order.alpha for order in found], axis=0)
    species = found[0].species
    properties = tuple(
        Property(
            f"order_{species[i]}_{species[j]}",
            "order",
            tuple(float(value) for value in alpha[:, i, j]),
            "1",
            "Warren-Cowley parameters of the first shells of neighbours",
        )
        for i in range(len(species))
        for j in range(i + 1, len(species))
    )
    return Outcome(properties, {"order_radii_ang": np.mean([order.radii for order in found], axis=0)})
