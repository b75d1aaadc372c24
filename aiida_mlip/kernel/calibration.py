"""From committee deviations to errors in eV/Å: split-conformal calibration on held-out atoms, per element.

û_i = s · max(u_i, floor), where s is the ⌈(n + 1)·level⌉-th smallest of the n scores e_i / max(u_i, floor) of an
element's held-out atoms (e: length of the force error vector, u: deviation). For a new atom *exchangeable* with those,
e <= û with a probability of at least ``level`` (doi:10.1214/17-AOS1643). Elsewhere nothing is promised, hence
the coverage per element and region that comes with every calibration. The scores stored with it are cross-fitted: each
frame is judged by scales that were fitted without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Integer

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.kernel.uncertainty.scores import auroc, ence, miscalibration_area, normal_nll, spearman

#: Committee deviations below this (eV/Å) are numerical noise.
DEVIATION_FLOOR: Final[float] = 1e-6
_KEYS: Final[tuple[str, ...]] = (
    "level",
    "floor_ev_per_ang",
    "scale",
    "scale_all",
    "force_rmse_validation",
    "n_atoms",
    "metrics",
)


@dataclass(frozen=True)
class Calibration:
    """What turns a committee deviation into an error bound, and how well it did on held-out atoms.

    :param level: probability that an error is below its bound.
    :param floor_ev_per_ang: deviations are taken as at least this.
    :param scale: s per chemical symbol.
    :param scale_all: s over all elements; for an element that is not in ``scale``.
    :param force_rmse_validation: root mean square *length* of the held-out force error vectors (eV/Å), the unit of the
        select and stop thresholds; √3 times the error per component of an error table.
    :param n_atoms: held-out atoms.
    :param metrics: ``spearman``; ``auroc`` of finding errors above ``bad_ev_per_ang``; ``nll`` per component (eV/Å);
        ``miscalibration_area``; ``ence``; ``coverage``: ``all``, and per ``element`` and ``region`` as
        ``{"n": atoms, "coverage": fraction}``. Cross-fitted; ``None``: does not exist.
    """

    level: float
    floor_ev_per_ang: float
    scale: Mapping[str, float]
    scale_all: float
    force_rmse_validation: float
    n_atoms: int
    metrics: Mapping[str, Any]

    def bound(self, deviation: Float[np.ndarray, "a"], numbers: Integer[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """(a,) û (eV/Å): with probability ``level`` an error is below it, for atoms like those calibrated on.

        :param deviation: (a,) u (eV/Å), see :func:`aiida_mlip.kernel.committee.force_deviation`.
        :param numbers: (a,) atomic numbers.
        """
        return _scales(self.scale, self.scale_all, numbers) * np.maximum(deviation, self.floor_ev_per_ang)

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        values = {name: getattr(self, name) for name in _KEYS}
        return {**values, "scale": dict(self.scale), "metrics": dict(self.metrics)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`as_dict`.

        :raises FileFormatError: missing keys, or values that are no calibration; names them.
        """
        if missing := [key for key in _KEYS if key not in data]:
            raise FileFormatError(f"calibration: keys {missing} are missing; got {sorted(data)}")
        numbers = {key: data[key] for key in ("level", "floor_ev_per_ang", "scale_all", "force_rmse_validation")}
        if not isinstance(data["scale"], Mapping) or not isinstance(data["metrics"], Mapping):
            raise FileFormatError("calibration: 'scale' and 'metrics' must be mappings")
        numbers.update({f"scale.{symbol}": value for symbol, value in data["scale"].items()})
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise FileFormatError(f"calibration: {key!r} must be a number >= 0, got {value!r}")
        if not 0 < data["level"] < 1:
            raise FileFormatError(f"calibration: 'level' must be between 0 and 1, got {data['level']!r}")
        return cls(**{key: data[key] for key in _KEYS})


def calibrate(
    deviation: Float[np.ndarray, "a"],
    error: Float[np.ndarray, "a *3"],
    numbers: Integer[np.ndarray, "a"],
    *,
    level: float = 0.9,
    components: int = 3,
    group: Integer[np.ndarray, "a"] | None = None,
    region: np.ndarray | None = None,
    bad_ev_per_ang: float | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Calibration:
    """Split-conformal calibration per element. **Held-out atoms only**: no member may have trained on them.

    :param deviation: (a,) u of the committee (eV/Å).
    :param error: (a, 3) error vectors of the forces, or (a,) their lengths (eV/Å). NaN: not labelled, left out.
    :param numbers: (a,) atomic numbers.
    :param level: of the bound.
    :param components: of the vectors whose lengths are given.
    :param group: (a,) number of the frame (or trajectory) of each atom: folds of the cross-fit do not cut it.
    :param region: (a,) text that says where an atom is (bulk, surface, ...), for the coverage per region.
    :param bad_ev_per_ang: errors above it are what ``auroc`` finds; by default twice the root mean square error.
    :param folds: of the cross-fit.
    :param seed: of the assignment of groups to folds.
    :raises InvalidInputError: fewer atoms than ``level`` needs (9 for 0.9), shapes that do not fit, negative numbers.
    """
    from scipy.stats import chi2  # half of the start-up of a job that only reads a calibration

    u, e, z, kept = _checked(deviation, error, numbers, level)
    groups = np.arange(len(kept)) if group is None else _as_long(group, kept, "group")
    regions = np.full(len(kept), "") if region is None else _as_long(region, kept, "region")
    score = e / u
    scale, scale_all = _fit(score, z, level)
    bound = _cross_fitted(score, z, groups[kept], level=level, folds=folds, seed=seed) * u
    rmse = float(np.sqrt(np.mean(e**2)))
    bad = 2 * rmse if bad_ev_per_ang is None else bad_ev_per_ang
    sigma = bound / np.sqrt(chi2.ppf(level, df=components))
    covered = e <= bound
    ranked = _scales(scale, scale_all, z) * u
    metrics: dict[str, Any] = {
        "spearman": spearman(ranked, e),
        "auroc": auroc(ranked, e > bad),
        "bad_ev_per_ang": float(bad),
        "nll": _finite(normal_nll(e, sigma, components=components)) if (sigma > 0).all() else None,
        "miscalibration_area": miscalibration_area(e, sigma, components=components) if (sigma > 0).all() else None,
        "ence": ence(e, sigma, components=components) if (sigma > 0).all() else None,
        "coverage": {
            "all": float(covered.mean()),
            "element": _coverage(covered, np.array([_symbol(number) for number in z])),
            "region": _coverage(covered, regions[kept]) if region is not None else {},
        },
    }
    return Calibration(
        level=level,
        floor_ev_per_ang=DEVIATION_FLOOR,
        scale=scale,
        scale_all=scale_all,
        force_rmse_validation=rmse,
        n_atoms=len(e),
        metrics=metrics,
    )


@dataclass(frozen=True)
class Reliability:
    """How often held-out errors lie inside the intervals that a calibration claims for them.

    :param expected: (p,) claimed probabilities, 0 to 1.
    :param observed: (p,) fraction of the errors inside.
    :param error: (a,) lengths of the held-out errors (eV/Å).
    :param bound: (a,) their bounds (eV/Å), each by scales fitted without its frame.
    """

    expected: Float[np.ndarray, "p"]
    observed: Float[np.ndarray, "p"]
    error: Float[np.ndarray, "a"]
    bound: Float[np.ndarray, "a"]


def reliability(
    deviation: Float[np.ndarray, "a"],
    error: Float[np.ndarray, "a *3"],
    numbers: Integer[np.ndarray, "a"],
    *,
    level: float = 0.9,
    components: int = 3,
    group: Integer[np.ndarray, "a"] | None = None,
    folds: int = 5,
    seed: int = 0,
    points: int = 21,
) -> Reliability:
    """Reliability diagram (doi:10.1088/2632-2153/ab7e1a) of the widths that :func:`calibrate` judges, cross-fitted.

    The width σ of a component is the bound at ``level`` over the quantile of the chi distribution there; an error e is
    inside the p-interval where P(χ_c <= e/σ) <= p. At ``level`` the observed fraction is the coverage of the bounds.
    Parameters as in :func:`calibrate`.

    :param points: of the diagram.
    :raises InvalidInputError: as :func:`calibrate`, or fewer than two points.
    """
    if points < 2:
        raise InvalidInputError(f"points: a diagram needs at least 2, got {points}")
    from scipy.stats import chi2

    u, e, z, kept = _checked(deviation, error, numbers, level)
    groups = np.arange(len(kept)) if group is None else _as_long(group, kept, "group")
    _fit(e / u, z, level)
    bound = _cross_fitted(e / u, z, groups[kept], level=level, folds=folds, seed=seed) * u
    expected = np.linspace(0.0, 1.0, points)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bound > 0, e / bound, np.where(e > 0, np.inf, 0.0))
    inside = np.sort(ratio)
    claimed = np.sqrt(chi2.ppf(expected, df=components) / chi2.ppf(level, df=components))
    observed = np.searchsorted(inside, claimed, side="right") / len(inside)
    return Reliability(expected=expected, observed=np.asarray(observed), error=e, bound=bound)


def conformal_scale(score: Float[np.ndarray, "n"], *, level: float) -> float:
    """The ⌈(n + 1)·level⌉-th smallest score.

    :raises InvalidInputError: fewer scores than that.

    >>> conformal_scale(np.arange(1.0, 10.0), level=0.9)
    9.0
    """
    rank = _rank(len(score), level)
    if rank > len(score):
        raise InvalidInputError(
            f"a bound at {level:.0%} needs at least {_fewest(level)} held-out atoms with labels, got {len(score)}"
        )
    return float(np.partition(score, rank - 1)[rank - 1])


def _rank(n: int, level: float) -> int:
    return math.ceil(round((n + 1) * level, 9))  # 10 · 0.9 is 9, not 9.000000000000002


def _fewest(level: float) -> int:
    return next(n for n in range(1, 10**6) if _rank(n, level) <= n)


def _fit(score: np.ndarray, numbers: np.ndarray, level: float) -> tuple[dict[str, float], float]:
    """Scale per symbol with enough atoms, and over all."""
    found = {}
    for number in np.unique(numbers):
        mine = score[numbers == number]
        if _rank(len(mine), level) <= len(mine):
            found[_symbol(number)] = conformal_scale(mine, level=level)
    return found, conformal_scale(score, level=level)


def _cross_fitted(
    score: np.ndarray, numbers: np.ndarray, group: np.ndarray, *, level: float, folds: int, seed: int
) -> np.ndarray:
    """(a,) scale of each atom, fitted on the folds it is not in; on all of them where too few atoms would be left."""
    names, place = np.unique(group, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(names)) % folds)[np.asarray(place).reshape(-1)]
    result = np.empty(len(score))
    for number in range(folds):
        mine, rest = fold == number, fold != number
        if not _rank(int(rest.sum()), level) <= rest.sum():
            rest = np.ones(len(score), dtype=bool)
        result[mine] = _scales(*_fit(score[rest], numbers[rest], level), numbers[mine])
    return result


def _scales(scale: Mapping[str, float], scale_all: float, numbers: np.ndarray) -> np.ndarray:
    from ase.data import atomic_numbers

    table = np.full(256, scale_all)
    for symbol, value in scale.items():
        table[atomic_numbers[symbol]] = value
    return np.asarray(table[np.asarray(numbers)])


def _coverage(covered: np.ndarray, names: np.ndarray) -> dict[str, dict[str, Any]]:
    return {
        str(name): {"n": int((names == name).sum()), "coverage": float(covered[names == name].mean())}
        for name in np.unique(names)
    }


def _checked(
    deviation: np.ndarray, error: np.ndarray, numbers: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Deviations with their floor, lengths of errors, atomic numbers of the labelled atoms, and which those are."""
    if not 0 < level < 1:
        raise InvalidInputError(f"level must be between 0 and 1, got {level}")
    u, e = np.asarray(deviation, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if e.ndim == 2:
        e = np.sqrt((e**2).sum(axis=1))
    if u.ndim != 1 or not u.shape == e.shape == np.shape(numbers):
        raise InvalidInputError(f"shapes differ: deviation {u.shape}, error {e.shape}, numbers {np.shape(numbers)}")
    kept = np.isfinite(u) & np.isfinite(e)
    if (u[kept] < 0).any() or (e[kept] < 0).any():
        raise InvalidInputError("deviations and lengths of errors cannot be negative; give error vectors or lengths")
    return np.maximum(u[kept], DEVIATION_FLOOR), e[kept], np.asarray(numbers)[kept], kept


def _as_long(values: np.ndarray, kept: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != kept.shape:
        raise InvalidInputError(f"{name} has shape {array.shape}, expected {kept.shape}")
    return array


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return str(chemical_symbols[int(number)])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
