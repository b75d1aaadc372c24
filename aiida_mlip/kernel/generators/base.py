"""What a generator is: one pure function, its parameters, and an example that the contract tests run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, describe_pair
from aiida_mlip.kernel.frames import NONE, Frames, frame_ids, from_arrays


@dataclass(frozen=True)
class Generator:
    """One way of making geometries.

    :param name: word of the specification, and of the ``generator`` column of the frames it makes.
    :param parameters: frozen dataclass of its keys, checked in its ``__post_init__``.
    :param run: ``(parents, parameters, rng) -> frames``; ``parents`` has no rows when it takes none.
    :param needs_parents: whether it changes existing frames.
    :param example: parameters with which the contract tests run it.
    :param composition: ``kept``: that of the parent or of the parameters' ``formulas``, or whole multiples of it;
        ``asked``: what the parameters say (its own tests check it).
    :param draws: ``continuous``: no two frames are equal; ``discrete``: a choice among finitely many, which can come
        twice; ``none``: the random numbers are not used.
    """

    name: str
    parameters: type
    run: Callable[[Frames, Any, np.random.Generator], Frames]
    needs_parents: bool
    example: Mapping[str, Any] = field(default_factory=dict)
    composition: Literal["kept", "asked"] = "kept"
    draws: Literal["continuous", "discrete", "none"] = "continuous"

    def __call__(self, parents: Frames, parameters: Any, rng: np.random.Generator) -> Frames:
        """Make frames: no labels, ``generator`` column set, frame ids computed."""
        frames = self.run(parents, parameters, rng)
        return replace(
            frames, generator=np.zeros(len(frames), dtype="<i2"), generators=(self.name,), frame_id=frame_ids(frames)
        )


def strip_labels(frames: Frames, *, parents: Frames | None = None) -> Frames:
    """Geometry only; with ``parents`` (row by row), their ids as ``parent_id``."""
    return from_arrays(
        natoms=frames.natoms,
        numbers=frames.numbers,
        positions=frames.positions,
        cell=frames.cell,
        pbc=frames.pbc,
        parent_id=None if parents is None else parents.frame_id,
    )


def groups_of(frames: Frames) -> np.ndarray:
    """(n, 16) split group of each row: its own frame id where it has none."""
    return np.where(np.any(frames.group_id, axis=1, keepdims=True), frames.group_id, frames.frame_id).astype(np.uint8)


def window(value: float | tuple[float, float], where: str, *, smallest: float = 0.0) -> tuple[float, float]:
    """Read a number or a [low, high] window as a window.

    :raises InvalidInputError: low above high, or below ``smallest``.
    """
    low, high = (value, value) if isinstance(value, int | float) else (float(value[0]), float(value[1]))
    if not (smallest <= low <= high < np.inf):
        raise InvalidInputError(f"{where}: expected {smallest:g} <= low <= high, got {value}")
    return float(low), float(high)


def stratified(low: float, high: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) one uniform draw in each of ``count`` equal parts of a window, in random order."""
    return low + (high - low) * rng.permutation((np.arange(count) + rng.random(count)) / count)


def redraw_until_apart(
    draw: Callable[[], tuple[np.ndarray, np.ndarray]],
    numbers: np.ndarray,
    pbc: np.ndarray,
    limits: np.ndarray,
    *,
    attempts: int,
    what: str,
) -> tuple[np.ndarray, np.ndarray]:
    """First drawn (positions, cell) whose pairs all keep their limits.

    :raises InvalidInputError: none in ``attempts`` draws; the message carries ``what`` and the last offending pair.
    """
    worst = ""
    for _ in range(attempts):
        positions, cell = draw()
        ratio, i, j, distance = closest_pair(numbers, positions, cell, pbc, limits)
        if ratio >= 1.0:
            return positions, cell
        worst = f"{describe_pair(numbers, i, j, distance)}, allowed {limits[numbers[i], numbers[j]]:.3f}"
    raise InvalidInputError(f"{what}: no geometry that keeps min_distance_ang in {attempts} draws ({worst})")


def at_least(value: int, smallest: int, where: str) -> None:
    """Raise :class:`InvalidInputError` for an integer that is too small."""
    if value < smallest:
        raise InvalidInputError(f"{where}: must be at least {smallest}, got {value}")


def empty_frames() -> Frames:
    """No rows: the parents of a generator that takes none."""
    zero = np.zeros(0)
    return from_arrays(natoms=zero, numbers=zero, positions=zero, fidelity=np.full(0, NONE))
