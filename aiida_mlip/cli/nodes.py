"""Profiles and nodes for commands: loaded, or a message that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    from aiida import orm


def load_profile() -> None:
    """Load the default profile, unless ``aiida-mlip --profile`` loaded one.

    :raises InvalidInputError: there is none.
    """
    from aiida import load_profile as load
    from aiida.common.exceptions import AiidaException

    try:
        load()
    except AiidaException as error:
        raise InvalidInputError(f"no AiiDA profile: {error}; `aiida-mlip setup` makes one") from error


def load_typed(identifier: str, kind: type[orm.Node] | tuple[type[orm.Node], ...], word: str) -> orm.Node:
    """Load a node by pk, uuid or label.

    :param kind: class that it must have.
    :param word: what a person calls that class.
    :raises InvalidInputError: no profile, no such node, or one of another class.
    """
    from aiida import orm
    from aiida.common.exceptions import MultipleObjectsError, NotExistent

    load_profile()
    try:
        node = orm.load_node(identifier)
    except (NotExistent, MultipleObjectsError, ValueError) as error:
        raise InvalidInputError(f"no {word} {identifier!r}: {error}") from error
    if not isinstance(node, kind):
        raise InvalidInputError(f"node {identifier} is a {type(node).__name__}, not a {word}")
    return node
