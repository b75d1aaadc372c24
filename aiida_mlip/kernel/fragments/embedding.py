"""Embedding error: how far the forces in the core of a fragment still depend on the buffer around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from aiida_mlip.errors import InvalidInputError

#: Part of the rms force in the core, and of the validation error, that the embedding error may reach.
FORCE_SHARE: Final[float] = 0.1
ERROR_SHARE: Final[float] = 1.5
#: Fewest buffers that a decay can be read from.
FEWEST_BUFFERS: Final[int] = 3


@dataclass(frozen=True)
class EmbeddingError:
    """Decay of the error with the buffer, and the buffer to take.

    :param buffers: (b,) Å, growing.
    :param errors: (b - 1,) rms difference (eV/Å) of the forces in the core from those at the largest buffer.
    :param amplitude: A of A·exp(-b/ℓ), eV/Å.
    :param decay_length: ℓ (Å); inf where the error does not fall.
    :param tolerance: eV/Å that is allowed.
    :param chosen: smallest buffer (Å) measured whose error is allowed, None when no one's is.
    :param measured: its error (eV/Å); the smallest there is when no buffer is good enough.
    """

    buffers: Float[np.ndarray, "b"]
    errors: Float[np.ndarray, "b-1"]
    amplitude: float
    decay_length: float
    tolerance: float
    chosen: float | None
    measured: float

    def predicted(self, buffer: float) -> float:
        """Error (eV/Å) that the fit gives for a buffer (Å)."""
        return float(self.amplitude * np.exp(-buffer / self.decay_length))


def embedding_error(
    buffers: Float[np.ndarray, "b"],
    core_forces: Float[np.ndarray, "b f a 3"],
    *,
    validation_rmse: float = 0.0,
) -> EmbeddingError:
    """Fit δ ≈ A·exp(-b/ℓ) to core forces at growing buffers and choose the smallest good one.

    δ is the rms over fragments and core atoms of the length of the force difference from the largest buffer, which
    stands for the truth: the fit takes its own remaining error A·exp(-b_max/ℓ) into account.

    :param buffers: (b,) Å, at least three, growing.
    :param core_forces: (b, f, a, 3) eV/Å: the same a core atoms of f fragments at each buffer; NaN is left out.
    :param validation_rmse: force RMSE (eV/Å) of the potential on held-out frames.
    :raises InvalidInputError: fewer than three buffers, an order that does not grow, shapes that do not fit.
    """
    buffers = np.asarray(buffers, dtype=float)
    if len(buffers) < FEWEST_BUFFERS:
        raise InvalidInputError(f"buffers: at least {FEWEST_BUFFERS} are needed to see a decay, got {len(buffers)}")
    if (np.diff(buffers) <= 0).any():
        raise InvalidInputError(f"buffers: must grow, got {buffers.tolist()}")
    if core_forces.ndim != 4 or len(core_forces) != len(buffers) or core_forces.shape[-1] != 3:
        raise InvalidInputError(f"core_forces: expected ({len(buffers)}, f, a, 3), got {core_forces.shape}")
    errors = np.sqrt(np.nanmean(((core_forces[:-1] - core_forces[-1]) ** 2).sum(axis=-1), axis=(1, 2)))
    size = float(np.sqrt(np.nanmean((core_forces[-1] ** 2).sum(axis=-1))))
    tolerance = max(FORCE_SHARE * size, ERROR_SHARE * validation_rmse)
    amplitude, length = _decay(buffers, errors)
    last = float(amplitude * np.exp(-buffers[-1] / length)) if np.isfinite(length) else float(errors[-1])
    every = np.append(errors, last)
    good = np.flatnonzero(every <= tolerance)
    chosen = float(buffers[good[0]]) if len(good) else None
    measured = float(every[good[0]]) if len(good) else float(every.min())
    return EmbeddingError(buffers, errors, amplitude, length, tolerance, chosen, measured)


def _decay(buffers: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """A and ℓ of differences from the largest buffer: A·|exp(-b/ℓ) - exp(-b_max/ℓ)|, fitted to their logarithms."""
    floor = np.maximum(errors, 1e-12)
    slope, offset = np.polyfit(buffers[:-1], np.log(floor), 1)
    if slope >= 0:
        return float(floor.max()), float(np.inf)
    start = np.array([offset, np.log(-1 / slope)])

    def residual(parameters: np.ndarray) -> np.ndarray:
        length = np.exp(parameters[1])
        model = np.exp(-buffers[:-1] / length) - np.exp(-buffers[-1] / length)
        return np.asarray(parameters[0] + np.log(np.maximum(model, 1e-300)) - np.log(floor))

    bounds = ([-np.inf, np.log(1e-2)], [np.inf, np.log(1e3)])
    fit = least_squares(residual, np.clip(start, bounds[0], bounds[1]), bounds=bounds)
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1]))
