r"""How long a time series remembers: its integrated autocorrelation time, and rows far enough apart to be independent.

Convention: :math:`\tau = \tfrac12 + \sum_{t \ge 1} \rho(t)`, so that white noise has τ = 1/2 and the error of a mean
of n values is :math:`\sigma \sqrt{2\tau/n}`. Times are in steps of the series.

References: N. Madras, A. D. Sokal, doi:10.1007/BF01022990; U. Wolff, doi:10.1016/S0010-4655(03)00467-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError

#: The sum is cut at the first lag W with W >= WINDOW_FACTOR·τ(W): bias e^-5 for an exponential decay.
WINDOW_FACTOR: Final[float] = 5.0
#: A series must be this many times longer than τ for τ to be trusted.
TRUSTED_LENGTH: Final[float] = 50.0
#: Normalised autocorrelation below which two values count as different (1/e).
FORGOTTEN: Final[float] = float(np.exp(-1.0))


@dataclass(frozen=True)
class AutocorrelationTime:
    """Memory of a series, in steps.

    :param tau: integrated autocorrelation time, at least 1/2.
    :param error: its standard error (Madras-Sokal).
    :param decay: first lag at which the autocorrelation is below 1/e: what tells values of an oscillation apart, whose
        integrated time is short because positive and negative lags cancel.
    :param window: lag at which the sum was cut.
    :param trusted: the series is at least 50 τ long and the window fits into it.
    """

    tau: float
    error: float
    decay: int
    window: int
    trusted: bool

    @property
    def stride(self) -> int:
        """Steps between rows that count as independent: 2τ, and at least the decay."""
        # the small term keeps 2·0.5 from being rounded up to two
        return max(int(np.ceil(2 * self.tau - 0.5)), self.decay, 1)


def autocorrelation(series: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n"]:
    r"""Normalised autocorrelation of a series about its mean, by Fourier transform (zero-padded, O(n log n)).

    :math:`\rho(t) = c(t)/c(0)`, :math:`c(t) = \frac1n \sum_s \sum_k \delta x_k(s)\,\delta x_k(s+t)`: the components k
    of a vector (all forces, say) are summed, which makes ρ invariant under rotation and permutation.

    :param series: (n, ...) values, any unit; everything after the first axis is components.
    :returns: (n,) ρ, ρ(0) = 1; ones for a series that does not change.
    :raises InvalidInputError: fewer than two values, or values that are not finite.

    >>> autocorrelation(np.array([1.0, -1.0, 1.0, -1.0])).round(2).tolist()
    [1.0, -0.75, 0.5, -0.25]
    """
    x = np.asarray(series, dtype=float)
    n = len(x)
    if n < 2:
        raise InvalidInputError(f"an autocorrelation needs at least 2 values, got {n}")
    if not np.isfinite(x).all():
        raise InvalidInputError("an autocorrelation needs finite values, got NaN or infinity")
    x = x.reshape(n, -1)
    deviation = x - x.mean(axis=0)
    scale = np.abs(x).max()
    if np.abs(deviation).max() <= 1e-14 * scale:
        return np.ones(n)
    size = 1 << (2 * n - 1).bit_length()
    c = np.zeros(n)
    # blocks of components bound the memory of the transform
    for start in range(0, deviation.shape[1], 256):
        transform = np.fft.rfft(deviation[:, start : start + 256], n=size, axis=0)
        c += np.fft.irfft((np.abs(transform) ** 2).sum(axis=1), n=size)[:n]
    return c / c[0]


def integrated_time(series: Float[np.ndarray, "n ..."], *, window_factor: float = WINDOW_FACTOR) -> AutocorrelationTime:
    r"""Integrated autocorrelation time with Sokal's automatic window.

    :math:`\tau(W) = \tfrac12 + \sum_{t=1}^{W} \rho(t)`, W the smallest lag with :math:`W \ge c\,\tau(W)`;
    standard error :math:`\tau\sqrt{(4W+2)/n}`.

    :param series: (n, ...) values, any unit; components after the first axis are pooled.
    :param window_factor: c.
    :returns: times in steps; a series that never changes gets τ = n/2.
    :raises InvalidInputError: fewer than two values, or values that are not finite.
    """
    rho = autocorrelation(series)
    n = len(rho)
    if (rho == 1.0).all():
        return AutocorrelationTime(tau=n / 2, error=n / 2, decay=n, window=n - 1, trusted=False)
    taus = np.cumsum(rho) - 0.5
    inside = np.flatnonzero(np.arange(n) >= window_factor * np.maximum(taus, 0.5))
    window = int(inside[0]) if len(inside) else n - 1
    tau = max(float(taus[window]), 0.5)
    forgotten = np.flatnonzero(rho < FORGOTTEN)
    return AutocorrelationTime(
        tau=tau,
        error=float(tau * np.sqrt((4 * window + 2) / n)),
        decay=int(forgotten[0]),  # exists: ρ sums to -1/2 over the lags of a series about its own mean
        window=window,
        trusted=bool(len(inside)) and n >= TRUSTED_LENGTH * tau,
    )


def decorrelated_rows(n: int, stride: int, *, start: int = 0, most: int | None = None) -> Int[np.ndarray, "m"]:
    """Rows of a series that are at least ``stride`` apart: as many as possible, or ``most`` spread evenly.

    :param n: length of the series.
    :param stride: smallest distance between kept rows, in steps.
    :param start: rows before this one are never kept (equilibration).
    :param most: largest number kept; None: no limit.
    :returns: (m,) increasing row numbers; empty if ``start`` is not below ``n``.
    :raises InvalidInputError: a stride or number below 1.

    >>> decorrelated_rows(10, 3).tolist(), decorrelated_rows(10, 1, start=2, most=3).tolist()
    ([0, 3, 6, 9], [2, 5, 9])
    """
    if stride < 1 or (most is not None and most < 1):
        raise InvalidInputError(f"stride and number of rows must be at least 1, got {stride} and {most}")
    rows = np.arange(start, n, stride)
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)] if most > 1 else rows[-1:]
    return rows
