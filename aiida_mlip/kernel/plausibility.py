"""Are these labels what they are said to be? Units, signs, order of atoms, forces that belong to the energies.

A wrong unit or sign trains a wrong potential without any error message, so files are looked at before they become data.
Nothing is corrected: a finding names the frame and the reason, and a person decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from aiida_mlip.errors import FrameError
from aiida_mlip.kernel import units
from aiida_mlip.kernel.distances import covalent_ratios
from aiida_mlip.kernel.frames import Frames, id_hex, row_keys
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.kernel.label_tests import ProbeTest, WorkTest, probe_test, work_test

#: Nearest pairs in units of the sum of covalent radii: the median over frames of matter measured in Å lies in between.
RATIO_WINDOW: Final[tuple[float, float]] = (0.62, 1.6)
#: Energies of the file over those of its forces; a probe that is 20 % off is normal, the smallest unit slip is 1.89.
ENERGY_WINDOW: Final[tuple[float, float]] = (1 / 1.5, 1.5)
#: The same from the work between neighbouring frames, which needs no model.
WORK_WINDOW: Final[tuple[float, float]] = (0.75, 1.33)
#: Stresses of the file over those of its forces.
STRESS_WINDOW: Final[tuple[float, float]] = (0.25, 4.0)
#: Mean curvature times squared neighbour distance in eV: noble gases 5, silicon and copper 35, diamond below 200.
STIFFNESS_WINDOW: Final[tuple[float, float]] = (3.5, 500.0)
_NOBLE: Final[tuple[int, ...]] = (2, 10, 18, 36, 54, 86)
_SURE: Final[float] = 0.8
_SAME_ENERGY: Final[float] = 1e-3
_SAME_FORCE: Final[float] = 0.02
#: What a ratio of energies to forces usually means.
_SLIPS: Final[tuple[tuple[float, str], ...]] = (
    (-1.0, "forces have the opposite sign (gradients instead of forces?)"),
    (1 / units.HARTREE, "energies in hartree, forces in eV/Å"),
    (1 / units.RYDBERG, "energies in rydberg, forces in eV/Å"),
    (units.HARTREE / units.BOHR, "forces in hartree/bohr, energies in eV"),
    (units.RYDBERG / units.BOHR, "forces in rydberg/bohr, energies in eV"),
    (1 / units.BOHR, "energies and forces in atomic units (hartree, hartree/bohr)"),
    (units.BOHR, "positions or forces per bohr where Å is meant"),
    (0.0, "energies per atom instead of totals, or energies that do not change"),
)


@dataclass(frozen=True)
class Finding:
    """One implausible thing.

    :param frame: number of the frame that shows it best.
    :param check: short name of the check.
    :param reason: what is wrong, with the numbers.
    """

    frame: int
    check: str
    reason: str


@dataclass(frozen=True)
class Plausibility:
    """Result of :func:`check_labels`.

    :param findings: what is implausible; empty when all is well.
    :param measures: the numbers the verdict rests on, by fidelity and quantity; plain JSON.
    :param untested: checks for which there was too little data.
    """

    findings: tuple[Finding, ...]
    measures: dict[str, float] = field(default_factory=dict)
    untested: tuple[str, ...] = ()

    def refuse(self, *, source: str) -> None:
        """Raise the first finding, if any.

        :raises FrameError: with the frame number, the reason, and how many more there are.
        """
        if self.findings:
            first = self.findings[0]
            more = f" (and {len(self.findings) - 1} more findings)" if len(self.findings) > 1 else ""
            raise FrameError(first.frame, f"{first.reason} [{first.check}]{more}", source=source)


def check_labels(frames: Frames) -> Plausibility:
    """Look at imported frames: geometry, numbers, duplicates, order of atoms, and labels against one another.

    :param frames: rows in the order of the file; the row number is the frame number of the findings.
    :returns: findings, and the measured numbers behind them.
    """
    findings: list[Finding] = []
    for check in (_finite, _geometry):
        findings += check(frames)
    if findings:  # nothing else can be computed from such numbers
        return Plausibility(tuple(sorted(findings, key=lambda finding: finding.frame)))
    measures: dict[str, float] = {}
    untested: list[str] = []
    findings += _lengths(frames, measures)
    findings += _duplicates(frames)
    findings += _species_order(frames)
    for index, name in enumerate(frames.fidelities):
        rows = np.flatnonzero((frames.fidelity == index) & frames.labelled)
        if len(rows) == 0:
            continue
        part = frames.take(rows)
        findings += _totals(part, rows)
        for label, found in (("work", work_test(part)), ("probe", probe_test(part))):
            if found is None:
                untested.append(f"{name}: {label} test")
                continue
            verdict = _judge_work(found, rows) if isinstance(found, WorkTest) else _judge_probe(found, rows)
            findings += verdict
            measures |= {f"{name}.{key}": value for key, value in _numbers(found).items()}
    return Plausibility(tuple(findings), measures, tuple(untested))


# -- one frame at a time ---------------------------------------------------------------------------------------


def _finite(frames: Frames) -> Iterator[Finding]:
    """Infinite labels; a NaN where a label should be (masks belong to fragments, which have regions)."""
    starts = frames.offsets[:-1]
    nan = np.isnan(frames.forces).any(axis=1)
    some, every = np.maximum.reduceat(nan, starts), np.minimum.reduceat(nan, starts)
    infinite = np.isinf(frames.energy) | np.isinf(frames.stress).any(axis=(1, 2))
    infinite |= np.maximum.reduceat(np.isinf(frames.forces).any(axis=1), starts)
    for row in np.flatnonzero(infinite):
        yield Finding(int(row), "finite", "has an infinite label")
    if frames.region is None:
        for row in np.flatnonzero(some & ~every):
            atom = int(np.flatnonzero(nan[frames.atom_slice(int(row))])[0])
            yield Finding(int(row), "finite", f"has a force that is NaN (atom {atom})")
        for row in np.flatnonzero(~every & np.isnan(frames.energy)):
            yield Finding(int(row), "finite", "has forces but an energy that is missing or NaN")
    partial = np.isnan(frames.stress).any(axis=(1, 2)) & ~np.isnan(frames.stress).all(axis=(1, 2))
    for row in np.flatnonzero(partial):
        yield Finding(int(row), "finite", "has a stress that is NaN in some components")


def _geometry(frames: Frames) -> Iterator[Finding]:
    for row in range(len(frames)):
        try:
            check_geometries(frames.take([row]), overlap_fraction=0.3)
        except FrameError as error:
            yield Finding(row, "geometry", error.reason)


# -- the file as a whole ---------------------------------------------------------------------------------------


def _lengths(frames: Frames, measures: dict[str, float]) -> Iterator[Finding]:
    """Positions and cells in bohr: neighbours 1.89 times too far; bohr taken for Å twice: too close."""
    several = np.flatnonzero((frames.natoms > 1) & ~_has_noble(frames))
    if len(several) == 0:
        return
    looked = several[np.unique(np.linspace(0, len(several) - 1, min(200, len(several))).astype(int))]
    ratios = covalent_ratios(frames.take(looked))
    middle = float(np.median(ratios))
    if np.isfinite(middle):
        measures["nearest_pair_in_covalent_radii"] = middle
    low, high = RATIO_WINDOW
    if low <= middle <= high:
        return
    shown = f"{middle:.2f}" if np.isfinite(middle) else "more than 3"
    hint = "positions and cells in bohr?" if middle > high else "lengths multiplied by 0.529 once too often?"
    row = int(looked[np.argmin(np.abs(ratios - middle))]) if np.isfinite(middle) else int(looked[0])
    yield Finding(
        row,
        "lengths",
        f"nearest atoms are {shown} sums of covalent radii apart (median of the file; allowed {low}..{high}): {hint}",
    )


def _has_noble(frames: Frames) -> np.ndarray:
    noble = np.isin(frames.numbers, _NOBLE)
    return np.asarray(np.maximum.reduceat(noble, frames.offsets[:-1]))


def _duplicates(frames: Frames) -> Iterator[Finding]:
    """One frame, one fidelity, two labels that differ."""
    keys = row_keys(frames)
    order = np.argsort(keys, kind="stable")
    for a, b in itertools.pairwise(order):
        if keys[a] != keys[b] or not (frames.labelled[a] and frames.labelled[b]):
            continue
        energy = abs(frames.energy[a] - frames.energy[b]) / frames.natoms[a]
        force = np.nanmax(
            np.abs(frames.forces[frames.atom_slice(a)] - frames.forces[frames.atom_slice(b)]), initial=0.0
        )
        if energy > _SAME_ENERGY or force > _SAME_FORCE:
            yield Finding(
                int(b),
                "duplicate",
                f"is frame {int(a)} again ({id_hex(frames.frame_id[b : b + 1])[0][:8]}) with another label: "
                f"{energy:.4f} eV/atom and up to {force:.3f} eV/Å apart",
            )


def _species_order(frames: Frames) -> Iterator[Finding]:
    """Same sites, same composition, but the species' blocks in another order: the columns were sorted differently."""
    for row in range(1, len(frames)):
        a, b = frames.atom_slice(row - 1), frames.atom_slice(row)
        za, zb = frames.numbers[a], frames.numbers[b]
        if len(za) != len(zb) or (za == zb).all() or not (np.sort(za) == np.sort(zb)).all():
            continue
        if not (_in_blocks(za) and _in_blocks(zb)):
            continue  # decorations of a lattice (alloys) differ atom by atom, not block by block
        if not np.allclose(frames.cell[row - 1], frames.cell[row], atol=0.5):
            continue
        shift = frames.positions[b] - frames.positions[a]
        if frames.pbc[row].all():
            fractional = np.linalg.solve(frames.cell[row].T, shift.T).T
            shift = (fractional - np.round(fractional)) @ frames.cell[row]
        if np.mean(np.linalg.norm(shift, axis=1) < 1.0) > 0.9:
            yield Finding(
                row,
                "species order",
                f"has the atoms of frame {row - 1} with their species in another order "
                f"({za[0]}… against {zb[0]}…): columns sorted differently?",
            )


def _totals(frames: Frames, rows: np.ndarray) -> Iterator[Finding]:
    """Energies that do not grow with the number of atoms: per atom, where totals are expected."""
    n = frames.natoms.astype(float)
    same = len(np.unique(frames.numbers)) == 1 and (n > 1).all()
    if not same or np.std(n) < 0.1 * np.mean(n) or np.std(frames.energy) == 0:
        return
    middle = float(np.mean(frames.energy))
    if np.std(frames.energy) / abs(middle) < 0.2 * np.std(n) / np.mean(n):
        yield Finding(
            int(rows[np.argmax(n)]),
            "totals",
            f"energies ({middle:.3f} eV on average) do not grow with the number of atoms "
            f"({n.min():.0f}..{n.max():.0f}): per atom instead of totals?",
        )


def _in_blocks(numbers: np.ndarray) -> bool:
    return bool((np.diff(numbers.astype(int)) != 0).sum() + 1 == len(np.unique(numbers)))


# -- labels against one another --------------------------------------------------------------------------------


def _judge_work(test: WorkTest, rows: np.ndarray) -> Iterator[Finding]:
    low, high = WORK_WINDOW
    if low <= test.ratio <= high or test.spread > 0.5 * max(abs(test.ratio), 0.5):
        return
    yield Finding(
        int(rows[test.row]),
        "work",
        f"energies change by {test.ratio:.3g} times the work of the forces between neighbouring frames "
        f"({test.pairs} pairs, allowed {low:.2f}..{high:.2f}): {slip(test.ratio)}",
    )


def _judge_probe(test: ProbeTest, rows: np.ndarray) -> Iterator[Finding]:
    low, high = ENERGY_WINDOW
    sure = min(np.abs(test.energy_correlation)) > _SURE
    if sure and all(not low <= ratio <= high for ratio in test.energy_ratio):
        middle = float(np.mean(test.energy_ratio))
        yield Finding(
            int(rows[test.telling]),
            "energies and forces",
            f"energies vary {middle:.3g} times as much as the forces say "
            f"(allowed {low:.2f}..{high:.2f}): {slip(middle)}",
        )
    low, high = STRESS_WINDOW
    sure = min(np.abs(test.stress_correlation)) > _SURE
    if sure and all(not low <= ratio <= high for ratio in test.stress_ratio):
        middle = float(np.mean(test.stress_ratio))
        hint = "compression positive instead of tension positive?" if middle < 0 else "kbar, GPa or eV (virial)?"
        yield Finding(
            int(rows[0]), "stress", f"stresses are {middle:.3g} times what the forces say (eV/Å³ expected): {hint}"
        )
    low, high = STIFFNESS_WINDOW
    if not low <= test.stiffness <= high:
        unit = "hartree or rydberg" if test.stiffness < low else "kcal/mol"
        yield Finding(
            int(rows[test.telling]),
            "magnitude",
            f"forces of a stiffness of {test.stiffness:.3g} eV per squared relative displacement; bonded matter has "
            f"{low}..{high:.0f}: energies and forces in {unit}?",
        )
    yield from _judge_rows(test, rows)


def _judge_rows(test: ProbeTest, rows: np.ndarray) -> Iterator[Finding]:
    """Single frames whose labels are unlike those of all others."""
    loud = test.force_rms > max(0.05, 0.1 * float(np.median(test.force_rms)))
    flipped = loud & (test.force_correlation < -0.5)
    # ten times too small is still seen in a file where the others are of the same kind
    typical = float(np.median(test.force_ratio[loud])) if loud.any() else 1.0
    outside = (test.force_ratio < 0.2 * typical) | (test.force_ratio > 5.0 * typical)
    scaled = (test.force_rms > 1e-3) & ~flipped & (test.force_correlation > 0.9) & outside
    limit = max(0.5, 20.0 * 1.4826 * float(np.median(np.abs(test.energy_deviation))))
    shifted = np.abs(test.energy_deviation) > limit
    messages: tuple[tuple[np.ndarray, str, Callable[[int], str]], ...] = (
        (flipped, "forces", lambda k: f"forces point the wrong way (correlation {test.force_correlation[k]:.2f})"),
        (scaled, "forces", lambda k: f"forces are {test.force_ratio[k]:.3g} times what the other frames say"),
        (shifted, "energy", lambda k: f"energy is {test.energy_deviation[k]:.2f} eV/atom off what the others say"),
    )
    for mask, check, message in messages:
        for k in np.flatnonzero(mask):
            yield Finding(int(rows[test.rows[k]]), check, message(int(k)))


def slip(ratio: float) -> str:
    """What a ratio of energies to forces usually means.

    >>> slip(-1.02)
    'forces have the opposite sign (gradients instead of forces?)'
    """
    if np.isinf(ratio):
        return "forces are zero where the energy changes"
    if abs(ratio) < 0.01:
        return _SLIPS[-1][1]
    distances = [abs(np.log(ratio / known)) if ratio * known > 0 else np.inf for known, _ in _SLIPS]
    best = int(np.argmin(distances))
    if distances[best] < 0.35:
        return _SLIPS[best][1]
    return "forces are not the derivative of these energies"


def _numbers(test: WorkTest | ProbeTest) -> dict[str, float]:
    """Finite numbers of a test, for the attributes of a node."""
    if isinstance(test, WorkTest):
        values = {"work_ratio": test.ratio, "work_pairs": float(test.pairs)}
    else:
        values = {
            "probe_energy_ratio": float(np.mean(test.energy_ratio)),
            "probe_energy_correlation": float(np.mean(test.energy_correlation)),
            "probe_stress_ratio": float(np.mean(test.stress_ratio)),
            "probe_stiffness_ev": test.stiffness,
            "probe_frames": float(len(test.rows)),
        }
    return {key: float(value) for key, value in values.items() if np.isfinite(value)}
