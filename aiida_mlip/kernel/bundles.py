"""Which labels go together into one job, and what a label is expected to cost before one was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int

#: A label that takes longer (core-seconds) has a job of its own: what the job costs is then a tenth or less of it, and
#: the restarts of its own are worth more.
CHEAP_CORE_SECONDS: Final[float] = 60.0
#: Expected core-seconds of one bundle: a quarter of the default walltime on one core.
BUNDLE_CORE_SECONDS: Final[float] = 900.0
#: Most frames in a bundle whose size nobody stated.
MAX_BUNDLE: Final[int] = 200
#: What :func:`guess_core_seconds` is anchored at: 8 silicon atoms at 30 Ry with 8 k-points took 3.0 s on one core.
_REFERENCE: Final[dict[str, float]] = {"seconds": 3.0, "electrons": 32.0, "volume": 160.0, "cutoff": 30.0, "mesh": 8.0}


def guess_core_seconds(
    n_electrons: Float[np.ndarray, "n"],
    volume: Float[np.ndarray, "n"],
    n_kpoints: Int[np.ndarray, "n"],
    *,
    ecutwfc_ry: float,
    spin_polarized: bool = False,
) -> Float[np.ndarray, "n"]:
    r"""Order of magnitude of plane-wave labels with a semilocal functional, when none was measured yet.

    :math:`c \propto N_k N_e^2 V E^{3/2}`: the orthogonalisation of :math:`N_e/2` bands of :math:`V E^{3/2}` plane waves
    at each k-point; twice that with two spins.

    :param n_electrons: (n,) valence electrons of each frame.
    :param volume: (n,) Å³ of the cell, empty space included.
    :param n_kpoints: (n,) points of the mesh, before symmetry.
    :param ecutwfc_ry: cutoff (Ry).
    :param spin_polarized: two spins.

    >>> guess_core_seconds(np.array([32.0]), np.array([160.0]), np.array([8]), ecutwfc_ry=30).tolist()
    [3.0]
    """
    scale = _REFERENCE["seconds"] * (ecutwfc_ry / _REFERENCE["cutoff"]) ** 1.5 * (2.0 if spin_polarized else 1.0)
    electrons = np.asarray(n_electrons, dtype=float) / _REFERENCE["electrons"]
    return np.asarray(
        scale
        * electrons**2
        * (np.asarray(volume, dtype=float) / _REFERENCE["volume"])
        * (np.asarray(n_kpoints, dtype=float) / _REFERENCE["mesh"])
    )


def bundles_of(core_seconds: Float[np.ndarray, "n"]) -> tuple[list[list[int]], list[int]]:
    """Frames that go together, in their order, and those that get a job of their own.

    A frame is alone if it is expected to take more than :data:`CHEAP_CORE_SECONDS`, or nothing is expected of it (NaN);
    a bundle ends before it exceeds :data:`BUNDLE_CORE_SECONDS` or :data:`MAX_BUNDLE` frames.

    :param core_seconds: (n,) expected of each frame.
    :returns: bundles of at least two frames, and the rest, as positions in ``core_seconds``.

    >>> bundles_of(np.array([1.0, 500.0, 2.0, np.nan]))
    ([[0, 2]], [1, 3])
    """
    bundles: list[list[int]] = []
    alone: list[int] = []
    spent = 0.0
    for i, cost in enumerate(np.asarray(core_seconds, dtype=float)):
        if not cost <= CHEAP_CORE_SECONDS:  # NaN too
            alone.append(i)
            continue
        if not bundles or spent + cost > BUNDLE_CORE_SECONDS or len(bundles[-1]) == MAX_BUNDLE:
            bundles.append([])
            spent = 0.0
        bundles[-1].append(i)
        spent += float(cost)
    alone += [bundle[0] for bundle in bundles if len(bundle) == 1]
    return [bundle for bundle in bundles if len(bundle) > 1], sorted(alone)


def slices_of(n: int, size: int) -> list[list[int]]:
    """``n`` frames, in their order, in bundles of ``size``; the last may be smaller.

    >>> slices_of(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    everything: Sequence[int] = range(n)
    return [list(everything[start : start + size]) for start in range(0, n, size)]
