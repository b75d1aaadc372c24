"""From what a person types to a node, a frame or a label.

==================  ================================================================
``1234``            node with this pk
``3fa2c1...``       node whose uuid, or frame whose id, begins with this
``pbe:3fa2c1...``   the label of a frame at the level of theory ``pbe``
``my potential``    node with this label
==================  ================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aiida import orm

from aiida_mlip.data.frame_index import ID_DIGITS, MIN_DIGITS, FrameIndex
from aiida_mlip.errors import InvalidInputError

_HEXADECIMAL: Final[re.Pattern[str]] = re.compile(r"[0-9a-fA-F]+")
_UUID: Final[re.Pattern[str]] = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]*")
_MOST_SHOWN: Final[int] = 5
_LARGEST_PK: Final[int] = 2**31 - 1


@dataclass(frozen=True)
class FrameName:
    """A frame, or with ``fidelity`` its label at that level of theory.

    :param frame_id: 32 hexadecimal digits.
    """

    frame_id: str
    fidelity: str | None = None


def identify(text: str, index: FrameIndex) -> orm.Node | FrameName:
    """The node, frame or label that a person means; see the module's text.

    :param index: fresh.
    :raises InvalidInputError: there is none, or there are several; names them.
    """
    fidelity, colon, prefix = text.rpartition(":")
    if colon and _is_frame_prefix(prefix):
        return FrameName(index.find_one(prefix), fidelity)
    if text.isdecimal() and int(text) <= _LARGEST_PK and (node := _one(id=int(text))) is not None:
        return node
    nodes = _with_uuid(text)
    frames = index.find(text, most=_MOST_SHOWN) if _is_frame_prefix(text) else []
    if not nodes and not frames:
        nodes = _with(label=text)
    if len(nodes) + len(frames) == 1:
        return nodes[0] if nodes else FrameName(frames[0])
    if not nodes and not frames:
        raise InvalidInputError(
            f"{text!r} is no pk, uuid or label of a node, and no dataset of this profile holds such a frame; a prefix "
            f"of a uuid or frame id needs {MIN_DIGITS} digits"
        )
    found = [f"{type(node).__name__}<{node.pk}> {node.uuid}" for node in nodes] + [f"frame {name}" for name in frames]
    raise InvalidInputError(f"{text!r} is ambiguous: {'; '.join(found[:_MOST_SHOWN])}")


def _is_frame_prefix(text: str) -> bool:
    return MIN_DIGITS <= len(text) <= ID_DIGITS and _HEXADECIMAL.fullmatch(text) is not None


def _with_uuid(prefix: str) -> list[orm.Node]:
    """Nodes whose uuid begins so, some of them."""
    digits = prefix.lower().replace("-", "")
    if not MIN_DIGITS <= len(digits) <= ID_DIGITS or _UUID.fullmatch(prefix) is None:
        return []
    ends = [8, 12, 16, 20, ID_DIGITS]
    pieces = [digits[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return _with(uuid={"like": "-".join(piece for piece in pieces if piece) + "%"})


def _one(**filters: object) -> orm.Node | None:
    return next(iter(_with(**filters)), None)


def _with(**filters: object) -> list[orm.Node]:
    query = orm.QueryBuilder().append(orm.Node, filters=filters, project=["*"]).limit(_MOST_SHOWN)
    return [node for (node,) in query.all()]
