"""What labels of a plane-wave code cost: an order of magnitude before one was measured, a fit afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import theilslopes

from aiida_mlip.errors import InvalidInputError

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


#: Guesses must span so much before a power is fitted to them.
_MIN_SPAN: Final[float] = 4.0
#: A fitted power outside is taken for noise: start-up of small cells, or a change of machine.
POWERS: Final[tuple[float, float]] = (0.3, 1.5)
#: Most labels that a fit looks at: pairs of all of them are compared.
MOST_LABELS: Final[int] = 300
#: Labels that must have been measured before a walltime is derived from them.
ENOUGH_LABELS: Final[int] = 10


@dataclass(frozen=True)
class LearntCost:
    r"""Cost of a label as :math:`c = a\,g^p` core-seconds, g what :func:`guess_core_seconds` says.

    :param factor: a: how this machine, code and fidelity compare with the guess.
    :param power: p; 1 unless it was fitted.
    :param spread: how many times the expected cost the dearest twentieth of the labels took, at least 1.
    :param n_labels: measured labels.
    """

    factor: float
    power: float
    spread: float
    n_labels: int

    def core_seconds(self, guess: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """(n,) expected core-seconds of labels with these guesses."""
        return np.asarray(self.factor * np.asarray(guess, dtype=float) ** self.power)


def learn_cost(guess: Float[np.ndarray, "n"], core_seconds: Float[np.ndarray, "n"]) -> LearntCost:
    """Correct the guesses by what labels took: median of the ratios, and a power where the guesses span enough.

    The power is the median of the slopes between all pairs of logarithms (Theil and Sen,
    doi:10.1080/01621459.1968.10480934), which jobs that waited for a disk do not move.

    :param guess: (n,) of each measured label; at most :data:`MOST_LABELS` are looked at, evenly.
    :param core_seconds: (n,) what it took; entries that are not finite and positive are left out.
    :raises InvalidInputError: no measured label.

    >>> cost = learn_cost(np.array([1.0, 4.0, 16.0]), np.array([3.0, 6.0, 12.0]))
    >>> round(cost.power, 6), round(float(cost.core_seconds(np.array([64.0]))[0]), 6)
    (0.5, 24.0)
    """
    guessed, taken = np.asarray(guess, dtype=float), np.asarray(core_seconds, dtype=float)
    known = np.isfinite(taken) & (taken > 0) & np.isfinite(guessed) & (guessed > 0)
    guessed, taken = guessed[known], taken[known]
    if not len(taken):
        raise InvalidInputError("no measured label: the cost of none is known")
    n_labels = len(taken)
    chosen = np.linspace(0, n_labels - 1, min(n_labels, MOST_LABELS)).round().astype(int)
    guessed, taken = guessed[chosen], taken[chosen]
    power = 1.0
    if guessed.max() >= _MIN_SPAN * guessed.min() and len(np.unique(np.log(guessed).round(1))) >= 3:
        power = float(np.clip(theilslopes(np.log(taken), np.log(guessed))[0], *POWERS))
    ratios = taken / guessed**power
    factor = float(np.median(ratios))
    spread = max(1.0, float(np.quantile(ratios, 0.95)) / factor)
    return LearntCost(factor, power, spread, n_labels)
