"""What labels are expected to cost, and which frames pw.x labels together in one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from aiida import orm
from ase.data import atomic_numbers

from aiida_mlip.data.batches import take_rows
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.bundles import bundles_of, slices_of
from aiida_mlip.kernel.cells import boxed
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.kpoints import mesh_from_distance
from aiida_mlip.kernel.label_cost import fit_label_cost
from aiida_mlip.kernel.plane_wave_cost import ENOUGH_LABELS, MOST_LABELS, LearntCost, guess_core_seconds, learn_cost
from aiida_mlip.protocols.fidelity import Fidelity, QeFidelity


@dataclass(frozen=True)
class Expectation:
    """What labels are expected to take.

    :param core_seconds: (n,) of each frame, NaN where nothing is known.
    :param source: ``measured`` (labels with the same settings), ``scaled`` (guessed, by how labels of another fidelity
        compare with their guess), ``guessed``, or ``unknown``.
    :param n_labels: measured labels that it comes from.
    :param spread: how many times the expectation a dear label takes.
    """

    core_seconds: np.ndarray
    source: str
    n_labels: int = 0
    spread: float = 1.0

    @property
    def is_reliable(self) -> bool:
        """Whether enough labels were measured to derive walltimes from."""
        return self.source == "measured" and self.n_labels >= ENOUGH_LABELS


def expected_costs(
    dataset: DatasetData,
    rows: np.ndarray,
    spec: Fidelity,
    settings: str,
    *,
    pseudos: Mapping[str, Any],
    measured: Sequence[orm.Data] = (),
    other: float | None = None,
) -> Expectation:
    """Expected core-seconds of labels, from electrons, volume, mesh, cutoff, and what labels did take.

    With a functional of its own (``input_dft``: a hybrid takes a hundred times as long) nothing is expected of a frame
    before labels with these settings were measured.

    :param dataset: the frames.
    :param rows: (n,) rows to label.
    :param settings: hash of the settings.
    :param pseudos: pseudopotential nodes per chemical symbol.
    :param measured: datasets that may hold labels with these settings.
    :param other: how labels of another fidelity compare with their guess, see :func:`machine_factor`.
    """
    rows = np.asarray(rows, dtype=int)
    known = [frames for node in measured if _is_dataset(node) for frames in _with_costs(node, settings)]
    if not isinstance(spec, QeFidelity):
        return _by_atoms(dataset, rows, known)
    guess = _guessed(take_rows(dataset, rows.tolist()), spec, pseudos) if len(rows) else np.zeros(0)
    if known:
        cost = _learnt(known, spec, pseudos)
        return Expectation(cost.core_seconds(guess), "measured", cost.n_labels, cost.spread)
    if spec.input_dft or not np.isfinite(guess).any():
        return Expectation(np.full(len(rows), np.nan), "unknown")
    return Expectation(guess, "guessed") if other is None else Expectation(other * guess, "scaled")


def machine_factor(
    specs: Mapping[str, QeFidelity], pseudos: Mapping[str, Mapping[str, Any]], measured: Sequence[orm.Data]
) -> float | None:
    """How labels of semilocal fidelities compare with their guess on this machine; None where none was measured.

    :param specs: levels of theory by the hash of their settings.
    :param pseudos: pseudopotential nodes per chemical symbol, by the same hash.
    :param measured: datasets that may hold labels with these settings.
    """
    factors = []
    for settings, spec in specs.items():
        known = [frames for node in measured if _is_dataset(node) for frames in _with_costs(node, settings)]
        if known and not spec.input_dft:
            guess = _guessed(_sample(known), spec, pseudos[settings])
            factors.append(float(np.median(_sample(known).cost / guess)))
    factors = [factor for factor in factors if np.isfinite(factor)]
    return float(np.median(factors)) if factors else None


def bundled_rows(core_seconds: np.ndarray, bundle_size: int | None) -> tuple[list[list[int]], list[int]]:
    """Bundles, and frames that get a job of their own.

    :param core_seconds: (n,) expected of each frame, NaN where nothing is; only looked at where no size is stated.
    :param bundle_size: frames of a bundle; None: chosen.
    :returns: positions of each bundle of at least two frames, and of the others.
    """
    if bundle_size is None:
        return bundles_of(core_seconds)
    slices = slices_of(len(core_seconds), bundle_size)
    return [part for part in slices if len(part) > 1], [part[0] for part in slices if len(part) == 1]


def _with_costs(node: DatasetData, settings: str) -> list[Frames]:
    """Labels with these settings whose cost is known, isolated atoms left out."""
    found = []
    for name in (name for name, value in node.settings.items() if value == settings):
        frames = node.filter(fidelity=name, labelled=True)
        known = np.flatnonzero(np.isfinite(frames.cost) & (frames.cost > 0) & (frames.natoms > 1))
        if len(known):
            found.append(frames.take(known))
    return found


def _sample(known: Sequence[Frames]) -> Frames:
    """At most so many labels as a fit looks at, evenly."""
    frames = concatenate(list(known))
    return frames.take(np.linspace(0, len(frames) - 1, min(len(frames), MOST_LABELS)).round().astype(int))


def _learnt(known: Sequence[Frames], spec: QeFidelity, pseudos: Mapping[str, Any]) -> LearntCost:
    """Fit to measured labels; where their species are not those of the pseudopotentials, to their number of atoms."""
    frames = _sample(known)
    cost = learn_cost(_guessed(frames, spec, pseudos), frames.cost.astype(float))
    return replace(cost, n_labels=sum(len(each) for each in known))


def _by_atoms(dataset: DatasetData, rows: np.ndarray, known: Sequence[Frames]) -> Expectation:
    """By the number of atoms alone: all that is known of a calculator."""
    if not known:
        return Expectation(np.full(len(rows), np.nan), "unknown")
    natoms, cost = (np.concatenate([getattr(each, name) for each in known]) for name in ("natoms", "cost"))
    return Expectation(
        fit_label_cost(natoms.astype(int), cost.astype(float)).core_seconds(dataset.column("natoms")[rows]),
        "measured",
        len(cost),
    )


def _is_dataset(node: orm.Data) -> bool:
    return isinstance(node, DatasetData)


def _guessed(frames: Frames, spec: QeFidelity, pseudos: Mapping[str, Any]) -> np.ndarray:
    """Order of magnitude (core-seconds) of labels (n,); NaN where a pseudopotential is missing."""
    valence = {atomic_numbers[symbol]: float(upf.z_valence) for symbol, upf in pseudos.items()}
    electrons = np.array([valence.get(int(number), np.nan) for number in frames.numbers])
    volume, points = np.empty(len(frames)), np.empty(len(frames), dtype=int)
    for i in range(len(frames)):
        atoms = slice(frames.offsets[i], frames.offsets[i + 1])
        _, cell = boxed(frames.positions[atoms], frames.cell[i], frames.pbc[i], padding=spec.padding_ang)
        volume[i] = abs(np.linalg.det(cell))
        points[i] = np.prod(mesh_from_distance(cell, frames.pbc[i], spec.kpoints_distance_inv_ang))
    return guess_core_seconds(
        np.add.reduceat(electrons, frames.offsets[:-1]),
        volume,
        points,
        ecutwfc_ry=spec.ecutwfc_ry or np.nan,
        spin_polarized=spec.spin == "collinear",
    )


def dataset_with_costs(settings: str) -> DatasetData | None:
    """The newest dataset of the profile that knows what labels with these settings took; None if there is none."""
    query = orm.QueryBuilder().append(DatasetData, project=["id", "attributes.fidelities"])
    query.order_by({DatasetData: {"id": "desc"}})
    for pk, fidelities in query.all():
        if any(entry["settings"] == settings and entry["labelled"] for entry in (fidelities or {}).values()):
            node = orm.load_node(pk)
            if _with_costs(node, settings):
                return node
    return None
