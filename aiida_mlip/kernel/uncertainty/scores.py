"""How good an uncertainty is: rank correlation, AUROC, likelihood, miscalibration area, ENCE.

The last three compare lengths e of error vectors of c components with a width σ per component: e/σ is chi-distributed
with c degrees of freedom when errors are normal. A score that does not exist is ``None``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float

_GRID: Final[np.ndarray] = np.linspace(0.0, 1.0, 1001)


def spearman(one: Float[np.ndarray, "n"], other: Float[np.ndarray, "n"]) -> float | None:
    """Rank correlation; ``None`` for fewer than two values or where all are equal.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 8.0, 27.0]))
    1.0
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (one, other)]
    norms = [float(np.linalg.norm(rank)) for rank in ranks]
    return float(ranks[0] @ ranks[1] / (norms[0] * norms[1])) if min(norms) > 0 else None


def auroc(score: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float | None:
    """Probability that a positive scores higher than a negative; ties count half; ``None`` where one kind is absent.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    from scipy.stats import rankdata

    flags = np.asarray(positive, dtype=bool)
    n, m = int(flags.sum()), int((~flags).sum())
    if n == 0 or m == 0:
        return None
    return float((rankdata(score)[flags].sum() - n * (n + 1) / 2) / (n * m))


def normal_nll(length: Float[np.ndarray, "n"], sigma: Float[np.ndarray, "n"], *, components: int) -> float:
    """Mean negative log likelihood per component: ½ ln(2πσ²) + e²/(2cσ²).

    :param length: (n,) lengths e of error vectors.
    :param sigma: (n,) width of one component, same unit, positive.
    :param components: c.
    """
    return float(np.mean(0.5 * np.log(2 * np.pi * sigma**2) + length**2 / (2 * components * sigma**2)))


def miscalibration_area(length: Float[np.ndarray, "n"], sigma: Float[np.ndarray, "n"], *, components: int) -> float:
    """∫ |fraction of errors inside the p-interval − p| dp over p from 0 to 1; 0 is perfect, 0.5 the worst.

    Tran et al. 2020, doi:10.1088/2632-2153/ab7e1a. Parameters as in :func:`normal_nll`.
    """
    from scipy.stats import chi2

    levels = np.sort(chi2.cdf((length / sigma) ** 2, df=components))
    observed = np.searchsorted(levels, _GRID, side="right") / len(levels)
    gap = np.abs(observed - _GRID)
    return float((gap[1:] + gap[:-1]).mean() / 2)


def ence(
    length: Float[np.ndarray, "n"], sigma: Float[np.ndarray, "n"], *, components: int, bins: int = 10
) -> float | None:
    """Expected normalised calibration error: mean over bins of equal size of |RMV − RMSE| / RMV.

    Levi et al. 2022, doi:10.3390/s22155540: bins by σ, RMV² = mean σ², RMSE² = mean e²/c. Parameters as in
    :func:`normal_nll`; ``None`` for fewer values than bins.
    """
    if len(sigma) < bins:
        return None
    parts = np.array_split(np.argsort(sigma, kind="stable"), bins)
    rmv = np.array([np.sqrt(np.mean(sigma[part] ** 2)) for part in parts])
    rmse = np.array([np.sqrt(np.mean(length[part] ** 2) / components) for part in parts])
    return float(np.mean(np.abs(rmv - rmse) / rmv))
