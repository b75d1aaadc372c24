"""Isotropic rattle: every atom moves in a direction drawn uniformly on the sphere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aiida_mlip.kernel.distances import geometry, pair_limits
from aiida_mlip.kernel.frames import Frames, id_hex
from aiida_mlip.kernel.generators.base import (
    Generator,
    at_least,
    groups_of,
    redraw_until_apart,
    stratified,
    strip_labels,
    window,
)


@dataclass(frozen=True)
class Rattle:
    """Keys of a rattle step.

    :param per_parent: frames made from each parent.
    :param amplitude_ang: rms displacement of an atom (Å), or a window, stratified over a parent's frames.
    :param distribution: ``gaussian``: |u|² is a sum of three squared normals; ``fixed``: every |u| is the amplitude.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param max_attempts: redraws of one frame before giving up.
    """

    per_parent: int = 1
    amplitude_ang: float | tuple[float, float] = (0.02, 0.25)
    distribution: Literal["gaussian", "fixed"] = "gaussian"
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 100

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.max_attempts, 1, "max_attempts")
        window(self.amplitude_ang, "amplitude_ang")
        pair_limits(self.min_distance_ang)


def displacements(n: int, amplitude: float, rng: np.random.Generator, *, distribution: str = "gaussian") -> np.ndarray:
    """(n, 3) displacements (Å) with directions uniform on the sphere and rms length ``amplitude`` (Å).

    A vector of three independent normals has a uniform direction (doi:10.1145/377939.377946); normalising it to the
    amplitude gives ``fixed``, scaling it by amplitude/√3 gives ``gaussian``.

    >>> u = displacements(4, 0.1, np.random.default_rng(0), distribution="fixed")
    >>> bool(np.allclose(np.linalg.norm(u, axis=1), 0.1))
    True
    """
    normal = rng.normal(size=(n, 3))
    if distribution == "fixed":
        return np.asarray(amplitude * normal / np.linalg.norm(normal, axis=1, keepdims=True))
    return np.asarray(amplitude / np.sqrt(3.0) * normal)


def rattle(parents: Frames, parameters: Rattle, rng: np.random.Generator) -> Frames:
    """``per_parent`` rattled copies of every parent; they share the split group of their parent.

    :raises InvalidInputError: a minimum distance cannot be kept.
    """
    low, high = window(parameters.amplitude_ang, "amplitude_ang")
    limits = pair_limits(parameters.min_distance_ang)
    rows = np.repeat(np.arange(len(parents)), parameters.per_parent)
    copies = parents.take(rows)
    positions = copies.positions.copy()
    for parent in range(len(parents)):
        numbers, start, cell, pbc = geometry(parents, parent)
        amplitudes = stratified(low, high, parameters.per_parent, rng)
        for k, amplitude in enumerate(amplitudes):

            def draw(
                start: np.ndarray = start, cell: np.ndarray = cell, amplitude: float = float(amplitude)
            ) -> tuple[np.ndarray, np.ndarray]:
                moves = displacements(len(start), amplitude, rng, distribution=parameters.distribution)
                return start + moves, cell

            what = f"rattle of frame {id_hex(parents.frame_id[parent : parent + 1])[0][:8]} by {amplitude:.3f} Å"
            part = copies.atom_slice(parent * parameters.per_parent + k)
            positions[part], _ = redraw_until_apart(
                draw, numbers, pbc, limits, attempts=parameters.max_attempts, what=what
            )
    frames = strip_labels(copies, parents=copies)
    return frames.with_columns(positions=positions, group_id=groups_of(copies))


GENERATOR = Generator(
    name="rattle",
    parameters=Rattle,
    run=rattle,
    needs_parents=True,
    example={"per_parent": 4, "amplitude_ang": (0.02, 0.2), "min_distance_ang": 1.7},
)
