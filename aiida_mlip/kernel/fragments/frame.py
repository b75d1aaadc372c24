"""All fragments of one frame: its worst atoms, each with its surroundings, and why some of them have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.fragments.carve import carve
from aiida_mlip.kernel.fragments.centres import iterate_centres
from aiida_mlip.kernel.fragments.fragment import Completion, Fragment, FragmentLimits, NoFragmentError
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.frames import Frames, id_hex


@dataclass(frozen=True)
class Refusal:
    """A centre without a fragment.

    :param atom: index in the frame.
    :param grade: of the atom.
    :param reason: what there is to say.
    """

    atom: int
    grade: float
    reason: str


def fragments_of_frame(
    frames: Frames,
    row: int,
    grades: Float[np.ndarray, "a"],
    limits: FragmentLimits,
    *,
    threshold: float,
    most: int,
    completion: Completion | Literal["auto"] = "auto",
    hosts: Sequence[Host] = (),
    tries: int | None = None,
) -> tuple[list[Fragment], list[Refusal]]:
    """Fragments around the atoms of a frame whose grade is above a threshold, worst first.

    :param row: of the frame.
    :param grades: one for each of its atoms.
    :param most: fragments, at most; refused centres do not count.
    :param completion: ``auto``: crystal by the first host that is found there, else disordered.
    :param hosts: crystals to look for, in this order.
    :param tries: centres to try at most; None: all there are, until there are ``most`` fragments.
    :raises InvalidInputError: crystals without a host.
    :raises FrameTooSmallError: a frame smaller than the fragment.
    """
    if completion == "crystal" and not hosts:
        raise InvalidInputError("host: missing, completion to a crystal needs the crystal")
    shape = geometry(frames, row)
    centres = iterate_centres(grades, *shape[1:], threshold=threshold, separation=2 * limits.core_radius)
    made: list[Fragment] = []
    refused: list[Refusal] = []
    for atom in islice(centres, tries):
        if len(made) == most:
            break
        outcome = _attempt(shape, atom, limits, completion, hosts)
        if isinstance(outcome, Fragment):
            made.append(outcome)
        else:
            refused.append(Refusal(atom, float(grades[atom]), outcome))
    return made, refused


def _attempt(
    shape: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    atom: int,
    limits: FragmentLimits,
    completion: Completion | Literal["auto"],
    hosts: Sequence[Host],
) -> Fragment | str:
    """The fragment of one centre by the first way that works, or why none does."""
    ways: list[tuple[Completion, Host | None]] = []
    if completion in ("auto", "crystal"):
        ways += [("crystal", host) for host in hosts]
    if completion == "auto":
        ways.append(("disordered", None))
    elif completion != "crystal":
        ways.append((completion, None))
    reasons = []
    for way, host in ways:
        try:
            return carve(*shape, atom, limits, completion=way, host=host)
        except NoFragmentError as error:
            reasons.append(f"{way}: {error}")
    return "; ".join(reasons)


def fragment_row(fragment: Fragment, frames: Frames, row: int) -> Frames:
    """One unlabelled row of a fragment of a frame, in the split group of its parent.

    Fragments of one frame look alike: they stay on one side of a split.
    """
    parent = frames.frame_id[row]
    group = frames.group_id[row] if frames.group_id[row].any() else parent
    return fragment.to_frames(parent).with_columns(group_id=group[None])


def describe_fragment(fragment: Fragment, row: Frames, grades: Float[np.ndarray, "a"]) -> dict[str, Any]:
    """A fragment in plain words and numbers.

    :param row: of the fragment.
    :param grades: of the parent's atoms.
    """
    centre = int(fragment.parent_atom[0])
    return {
        "frame_id": row.ids()[0],
        "parent_id": id_hex(row.parent_id)[0],
        "centre": centre,
        "novelty": float(grades[centre]) if np.isfinite(grades[centre]) else None,
        "completion": fragment.completion,
        "natoms": len(fragment),
        "removed": fragment.removed,
    }
