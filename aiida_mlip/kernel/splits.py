"""Leakage-safe splits: rows that share a frame, a group or a parent are on the same side.

A row is *usable* when it carries an energy or a force and is not an isolated atom (whose energy is the reference of
the model, exactly reproduced). Groups are put in the order of a hash of (seed, group key) and dealt out in that order,
so that a split does not depend on the order of rows and changes little when rows are added. Rows of the group
:data:`ALWAYS_TRAINED` are not dealt out.

With several levels of theory the rows at one of them, the *target*, are dealt out exactly as if there were no others;
rows at the others get the part of their group, so that nothing is trained on whose frame is tested on at any level.
Groups without a row at the target are trained on only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Int, Int8

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import ID_BYTES, NONE, Frames, id_keys

GroupBy = Literal["lineage", "frame"]
#: ``group_id`` of rows that every member trains on, whatever is dealt out: a simulation was stopped there.
ALWAYS_TRAINED: Final[np.ndarray] = np.full(ID_BYTES, 255, dtype=np.uint8)


class Part(IntEnum):
    """What a row is used for."""

    UNUSED = -1
    TRAIN = 0
    VAL = 1
    TEST = 2


#: Names of the parts that hold rows.
PART_NAMES: Final[tuple[str, ...]] = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Parts of the rows of a dataset for every member of a committee.

    :param frame_id: (n, 16) frame ids of the rows.
    :param parts: (M, n) :class:`Part` of every row for every member; the test part is common.
    :param group: (n,) number of the group each row belongs to; -1 for unusable rows.
    """

    frame_id: np.ndarray
    parts: Int8[np.ndarray, "m n"]
    group: Int[np.ndarray, "n"]

    def rows(self, part: Part, *, member: int = 0) -> Int[np.ndarray, "k"]:
        """Row numbers of one part for one member."""
        return np.flatnonzero(self.parts[member] == part)

    def counts(self) -> list[dict[str, int]]:
        """Rows per part, for each member."""
        return [{name: int((row == Part[name.upper()]).sum()) for name in PART_NAMES} for row in self.parts]


def usable_rows(frames: Frames, fidelity: str | Sequence[str] | None = None) -> Bool[np.ndarray, "n"]:
    """(n,) rows that can be trained or tested on: labelled (at ``fidelity``), not failed, and no isolated atom.

    :param fidelity: name of the level of theory, or several; nothing: any.
    :raises InvalidInputError: no row carries that fidelity.
    """
    finite = np.isfinite(frames.forces).all(axis=1)
    any_force = np.bincount(frames.atom_rows()[finite], minlength=len(frames)) > 0
    isolated = (frames.natoms == 1) & ~frames.pbc.any(axis=1)
    keep = (frames.labelled | any_force) & ~isolated & (frames.failure == 0) & (frames.fidelity != NONE)
    if fidelity is not None:
        names = [fidelity] if isinstance(fidelity, str) else fidelity
        keep &= np.isin(frames.fidelity, [frames.fidelity_index(name) for name in names])
    return np.asarray(keep)


def group_rows(frames: Frames, *, group_by: GroupBy = "lineage") -> Int[np.ndarray, "n"]:
    """(n,) number of the group of each row: connected components of "must not be separated".

    ``frame``: rows of one frame. ``lineage``: those, rows of one ``group_id``, and - for rows without a ``group_id`` -
    a row and its parent frame, hence all children of one parent.

    >>> from ase.build import bulk
    >>> from aiida_mlip.kernel.frames import from_ase
    >>> group_rows(from_ase([bulk("Si"), bulk("Cu"), bulk("Si")])).tolist()
    [0, 1, 0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(frames)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    ids = id_keys(frames.frame_id)
    links = [ids]
    if group_by == "lineage":
        groups, parents = id_keys(frames.group_id), id_keys(frames.parent_id)
        has_group, has_parent = frames.group_id.any(axis=1), frames.parent_id.any(axis=1)
        # Identifiers of frames and of groups live in one space of nodes; a row without a link points at itself.
        links += [np.where(has_group, groups, ids), np.where(has_parent & ~has_group, parents, ids)]
    _, nodes = np.unique(np.concatenate(links), return_inverse=True)
    targets = np.asarray(nodes).reshape(len(links), n)
    rows = np.tile(np.arange(n), len(links))
    size = n + int(targets.max()) + 1
    graph = coo_array((np.ones(rows.size, dtype=bool), (rows, n + targets.reshape(-1))), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels[:n], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse])


def split_frames(
    frames: Frames,
    *,
    test: float,
    val: float,
    seed: int,
    members: int = 1,
    group_by: GroupBy = "lineage",
    bag: float = 1.0,
    fidelity: str | None = None,
    others: Sequence[str] = (),
) -> Split:
    """Parts of all rows for a committee: one test part for all, a validation part of its own for each member.

    :param frames: n rows.
    :param test: fraction of the usable rows to test on; 0: none.
    :param val: fraction of the usable rows to validate on, at least one group.
    :param seed: of the assignment.
    :param members: M.
    :param group_by: see :func:`group_rows`.
    :param bag: fraction of the groups left over that each member trains on.
    :param fidelity: only rows of this level of theory are dealt out: the target.
    :param others: further levels, whose rows get the part of their group, and are trained on where it has none.
    :raises InvalidInputError: no labelled rows, or too few groups for the parts asked for.
    """
    if not (0.0 <= test < 1.0 and 0.0 < val < 1.0 and test + val < 1.0):
        raise InvalidInputError(f"fractions must satisfy 0 <= test, 0 < val, test + val < 1; got {test} and {val}")
    dealt = usable_rows(frames, fidelity)
    if not dealt.any():
        at = f" at fidelity {fidelity!r}" if fidelity else ""
        raise InvalidInputError(f"none of the {len(frames)} rows carries labels{at} that could be trained on")
    usable = dealt | usable_rows(frames, others) if others else dealt
    group = np.where(usable, group_rows(frames, group_by=group_by), NONE)
    pinned = np.unique(group[usable & (frames.group_id == ALWAYS_TRAINED).all(axis=1)])
    numbers = np.setdiff1d(group[dealt], pinned)
    further = np.setdiff1d(group[usable], np.concatenate([numbers, pinned]))
    needed = 2 + (test > 0.0)
    if len(numbers) < needed:
        raise InvalidInputError(_too_few(frames, dealt, len(numbers), needed, group_by))
    # named and sized by the rows at the target alone: other rows change nothing of what becomes of these
    target = np.where(dealt, group, NONE)
    keys, more = _group_keys(frames, target, numbers), _group_keys(frames, group, further)
    sizes = dict(zip(*(found.tolist() for found in np.unique(target, return_counts=True)), strict=True))
    n = int(dealt.sum())

    order = _order(keys, f"test-{seed}")
    tested = _take(order, sizes, test * n, reserve=2) if test > 0.0 else []
    rest = [number for number in order if number not in set(tested)]
    parts = np.full((members, len(frames)), Part.UNUSED, dtype=np.int8)
    parts[:, np.isin(group, tested)] = Part.TEST
    used: set[int] = set()
    for member in range(members):
        salt = f"member-{seed}-{member}"
        own = _order({number: keys[number] for number in rest}, salt)
        # validation parts of the members overlap only when the groups run out
        fresh = [number for number in own if number not in used] + [number for number in own if number in used]
        validated = _take(fresh, sizes, val * n, reserve=1)
        used.update(validated)
        trained = [number for number in own if number not in set(validated)]
        trained = trained[: max(1, round(bag * len(trained)))] + _order(more, salt)[: round(bag * len(more))]
        parts[member, np.isin(group, validated)] = Part.VAL
        parts[member, np.isin(group, trained) | np.isin(group, pinned)] = Part.TRAIN
    return Split(frame_id=frames.frame_id, parts=parts, group=group)


def repetition(n_target: int, n_others: int, share: float) -> int:
    """How often each row at the target is seen in an epoch, for it to have about this share of the frames.

    The whole number r >= 1 next to share/(1 - share)·n_others/n_target, so that all rows at the target count alike.

    :param n_target: rows at the target.
    :param n_others: rows at other levels of theory.
    :param share: wanted r·n_target / (r·n_target + n_others), below 1; 0: none.

    >>> repetition(20, 200, 1 / 3)
    5
    """
    return max(1, round(share / (1.0 - share) * n_others / n_target)) if n_target else 1


def _too_few(frames: Frames, usable: np.ndarray, found: int, needed: int, group_by: GroupBy) -> str:
    message = (
        f"{int(usable.sum())} labelled rows form only {found} group(s) that must not be separated, but training, "
        f"validation and test need {needed}"
    )
    if group_by == "lineage":
        alone = len(np.unique(group_rows(frames, group_by="frame")[usable]))
        if alone >= needed:
            message += f"; with 'split: {{group_by: frame}}' there would be {alone}, at the risk of leakage"
    return message


def _group_keys(frames: Frames, group: np.ndarray, numbers: np.ndarray) -> dict[int, bytes]:
    """Name of each group that does not depend on the order of rows: its smallest group id, else frame id."""
    keys: dict[int, bytes] = {}
    for row in np.flatnonzero(np.isin(group, numbers)):
        ident = frames.group_id[row] if frames.group_id[row].any() else frames.frame_id[row]
        key = ident.tobytes()
        number = int(group[row])
        keys[number] = min(keys.get(number, key), key)
    # rows of one group id that are separated (group_by: frame) still need different names
    if len(set(keys.values())) < len(keys):
        for number in numbers:
            keys[int(number)] = min(ident.tobytes() for ident in frames.frame_id[group == number])
    return keys


def _order(keys: dict[int, bytes], salt: str) -> list[int]:
    def digest(number: int) -> bytes:
        return hashlib.sha256(salt.encode() + b"\0" + keys[number]).digest()

    return sorted(keys, key=digest)


def _take(order: Sequence[int], sizes: dict[int, int], target: float, *, reserve: int) -> list[int]:
    """Groups in order until they hold about ``target`` rows: at least one, and ``reserve`` are left."""
    taken: list[int] = []
    total = 0
    for number in order:
        if len(order) - len(taken) <= reserve:
            break
        # a group that would overshoot by more than it fills is passed over
        if total + sizes[number] / 2 > max(target, 1.0):
            continue
        taken.append(number)
        total += sizes[number]
    return taken or [min(order, key=lambda number: sizes[number])]
