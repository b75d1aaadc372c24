"""Batches: rows of a dataset to be labelled at one fidelity, and what their jobs leave behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.documents import clipped_lines, plain_text
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.protocols.fidelity import Fidelity, parse_fidelities

#: What a batch must say.
BATCH_KEYS: Final[tuple[str, ...]] = ("fidelity", "spec", "settings", "rows")


def parse_batch(content: Mapping[str, Any]) -> Fidelity:
    """Level of theory of a batch.

    :param content: of the batch's Dict: ``fidelity`` (name), ``spec``, ``settings`` (hash), ``rows``, ``source``.
    :raises ProtocolError: the specification is not valid.
    """
    return parse_fidelities({content["fidelity"]: content["spec"]})[content["fidelity"]]


def batch_problem(node: orm.Dict, engine: str) -> str | None:
    """What keeps a job of an engine from working on a batch; None where nothing does."""
    content = node.get_dict()
    if missing := [key for key in BATCH_KEYS if key not in content]:
        return f"a batch needs the keys {list(BATCH_KEYS)}; {missing} are missing"
    if not content["rows"]:
        return "a batch needs at least one row"
    try:
        spec = parse_batch(content)
    except MlipError as error:
        return str(error)
    return None if spec.engine == engine else f"fidelity {content['fidelity']!r} is not of the engine {engine}"


def take_rows(dataset: DatasetData, rows: Sequence[int]) -> Frames:
    """Frames of some rows of a dataset, in the order given; only the span of shards they lie in is read."""
    low = min(rows)
    return dataset[low : max(rows) + 1].take(np.asarray(rows) - low)


def output_text(calculation: orm.ProcessNode) -> str:
    """What the program of a job printed; nothing where that was not retrieved."""
    if not isinstance(calculation, orm.CalcJobNode):  # numbers that somebody else's function made
        return ""
    name = str(calculation.get_option("output_filename"))
    try:
        data = calculation.outputs.retrieved.base.repository.get_object_content(name, mode="rb")
    except (AttributeError, OSError):
        return ""
    return str(data.decode(errors="replace"))


def job_texts(calculation: orm.CalcJobNode) -> list[str]:
    """Everything a job printed: what the scheduler said, its output, its crash file."""
    texts = [calculation.get_scheduler_stderr() or ""]
    try:
        retrieved = calculation.outputs.retrieved
    except AttributeError:
        return texts
    names = {str(calculation.get_option("output_filename")), "CRASH", "_scheduler-stdout.txt"}
    for name in sorted(names & set(retrieved.base.repository.list_object_names())):
        with suppress(OSError):
            data = retrieved.base.repository.get_object_content(name, mode="rb")
            texts.append(plain_text(clipped_lines(data.decode(errors="replace"))))
    return texts
