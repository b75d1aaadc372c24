"""Which rows need a label, and putting labels onto the frames they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.kernel.frames import NONE, Frames, concatenate, from_arrays, id_keys, row_keys

#: Generator name of an isolated atom.
ISOLATED_ATOM: Final[str] = "isolated_atom"
#: What a row is: a bare geometry, one whose label failed, a labelled one.
BARE, FAILED, LABELLED = range(3)
#: Of each row (n,): identity of the frame, of the frame at its fidelity, and BARE, FAILED or LABELLED.
RowStates: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
_LABEL_COLUMNS: Final[tuple[str, ...]] = ("energy", "stress", "failure", "cost", "label_uuid", "label_row")


@dataclass(frozen=True)
class Tally:
    """What became of the frames at one fidelity: numbers of rows, and core-seconds of what was computed now."""

    labelled: int
    failed: int
    not_run: int


def first_rows(frame_id: np.ndarray) -> Int[np.ndarray, " u"]:
    """(u,) rows where a frame id appears for the first time, in order.

    :param frame_id: (n, 16) frame ids.
    """
    return np.sort(np.unique(id_keys(frame_id), return_index=True)[1])


def contained(frame_id: np.ndarray, known: np.ndarray) -> Bool[np.ndarray, " n"]:
    """(n,) whether a frame id is among the known ones.

    :param frame_id: (n, 16) frame ids.
    :param known: (m, 16) frame ids.
    """
    return np.isin(id_keys(frame_id), id_keys(known))


def isolated_atoms(numbers: Iterable[int]) -> Frames:
    """One frame per atomic number: a single atom at the origin, without cell and periodicity."""
    species = sorted({int(z) for z in numbers})
    return from_arrays(
        natoms=np.ones(len(species), dtype=int),
        numbers=np.array(species),
        positions=np.zeros((len(species), 3)),
        generator=np.zeros(len(species)),
        generators=(ISOLATED_ATOM,),
    )


def without_labels(frames: Frames) -> Frames:
    """Same frames and lineage, no labels."""
    blank = from_arrays(natoms=frames.natoms, numbers=frames.numbers, positions=frames.positions)
    columns = {name: getattr(blank, name) for name in (*_LABEL_COLUMNS, "forces", "fidelity")}
    return frames.with_columns(**columns, fidelities=())


def attach_labels(frames: Frames, fidelity: str, sources: Sequence[tuple[Frames, str]]) -> tuple[Frames, Tally]:
    """Put the labels of one fidelity onto frames: geometry and lineage of the frames, labels of the sources.

    :param frames: rows with distinct frame ids; labels they carry are ignored.
    :param fidelity: name the result carries.
    :param sources: (frames, name of that fidelity in them), most trusted first. A labelled row is preferred to a
        failed one; rows of other fidelities are ignored.
    :returns: rows for which a source has a label or a failure, in order, and the tally. What is no label of the parent
        of a cluster fragment is NaN, see :func:`mask_clusters`.
    """
    parts = []
    for source, name in sources:
        if name not in source.fidelities:
            continue
        mine = source.fidelity == source.fidelities.index(name)
        parts.append(source.take(mine & (source.labelled | (source.failure != 0))))
    pool = concatenate(parts) if parts else frames.take([])
    # a stable sort puts labelled rows first, then trusted sources; np.unique then finds the first of each id
    order = np.argsort(~pool.labelled, kind="stable")
    keys, first = np.unique(id_keys(pool.frame_id)[order], return_index=True)
    wanted = id_keys(frames.frame_id)
    found = np.isin(wanted, keys)
    rows = order[first][np.searchsorted(keys, wanted[found])] if found.any() else np.zeros(0, dtype=int)
    labels = pool.take(rows)
    columns = {name: getattr(labels, name) for name in (*_LABEL_COLUMNS, "forces")}
    result = without_labels(frames.take(found)).with_columns(
        **columns, fidelity=np.zeros(len(rows), dtype="<i2"), fidelities=(fidelity,)
    )
    result = mask_clusters(result)
    failed = int((~result.labelled).sum())
    return result, Tally(labelled=len(result) - failed, failed=failed, not_run=len(frames) - len(result))


def mask_clusters(frames: Frames) -> Frames:
    """Frames without the numbers of cluster fragments that their parents know nothing of.

    A fragment that is not periodic ends in caps and vacuum: its energy, its stress and the forces outside of core and
    trust region are those of the cluster alone. They become NaN, which a training leaves out.
    """
    if frames.region is None or frames.parent_atom is None:
        return frames
    atoms = frames.atom_rows()
    of_fragment = np.bincount(atoms[frames.parent_atom != NONE], minlength=len(frames)) > 0
    cluster = of_fragment & ~frames.pbc.any(axis=1)
    if not cluster.any():
        return frames
    outside = cluster[atoms] & (frames.region >= Region.BUFFER)
    return frames.with_columns(
        energy=np.where(cluster, np.nan, frames.energy),
        stress=np.where(cluster[:, None, None], np.nan, frames.stress),
        forces=np.where(outside[:, None], np.nan, frames.forces),
    )


def uuid_rows(frames: Frames, column: str, value: np.ndarray) -> Frames:
    """Frames with an identifier filled in where a column of identifiers has none."""
    ids = getattr(frames, column).copy()
    ids[~ids.any(axis=1)] = value
    return frames.with_columns(**{column: ids})


def labelled_ids(frames: Frames, fidelity: str) -> np.ndarray:
    """(m, 16) ids of the frames labelled at a fidelity."""
    index = frames.fidelities.index(fidelity) if fidelity in frames.fidelities else NONE - 1
    return frames.frame_id[(frames.fidelity == index) & frames.labelled]


def row_states(frames: Frames) -> RowStates:
    """What tells which rows say the same, see :func:`surviving_rows`."""
    return id_keys(frames.frame_id), row_keys(frames), states_of(frames.fidelity, frames.failure)


def states_of(fidelity: np.ndarray, failure: np.ndarray) -> Int[np.ndarray, " n"]:
    """(n,) BARE, FAILED or LABELLED from two columns."""
    # a label may lack its energy (forces of a cluster fragment): what failed says so
    state = np.where(failure == 0, LABELLED, FAILED)
    state[fidelity == NONE] = BARE
    return state


def surviving_rows(states: Sequence[RowStates]) -> list[np.ndarray]:
    """Per collection the mask of rows that are not said better, or earlier, by another row.

    Of several labels of one frame at one fidelity the first survives. A failed row falls where the frame is labelled at
    that fidelity, an unlabelled one where the frame is labelled or failed at any.

    :param states: of each collection, see :func:`row_states`.
    """
    frame, key, state = (np.concatenate(parts) for parts in zip(*states, strict=True))
    keep = np.zeros(len(frame), dtype=bool)
    labelled, failed, bare = (np.flatnonzero(state == value) for value in (LABELLED, FAILED, BARE))
    keep[labelled[np.unique(key[labelled], return_index=True)[1]]] = True
    failed = failed[~np.isin(key[failed], key[labelled])]
    keep[failed[np.unique(key[failed], return_index=True)[1]]] = True
    bare = bare[~np.isin(frame[bare], frame[keep])]
    keep[bare[np.unique(frame[bare], return_index=True)[1]]] = True
    return np.split(keep, np.cumsum([len(part[0]) for part in states])[:-1])
