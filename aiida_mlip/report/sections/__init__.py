"""The sections of a report, one module each: ``section(tree)`` reads nodes and returns a :class:`Section`.

A section that has nothing to show and is not expected of that kind of process comes back empty and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aiida_mlip.report.content import Section
from aiida_mlip.report.sections import (
    asked,
    calibration,
    costs,
    dataset,
    failures,
    fragments,
    parity,
    properties,
    rounds,
    training,
    versions,
)
from aiida_mlip.report.tree import ProcessTree

#: In the order in which they are read.
SECTIONS: Final[Mapping[str, Callable[[ProcessTree], Section]]] = {
    "properties": properties.section,
    "rounds": rounds.section,
    "training": training.section,
    "parity": parity.section,
    "calibration": calibration.section,
    "dataset": dataset.section,
    "fragments": fragments.section,
    "costs": costs.section,
    "failures": failures.section,
    "asked": asked.section,
    "versions": versions.section,
}
