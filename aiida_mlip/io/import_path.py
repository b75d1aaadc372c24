"""Names of calculators in files from people: a dotted path into an installed package, nothing else."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator

_DOTTED: Final[re.Pattern[str]] = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def _check(value: str) -> str:
    if not _DOTTED.fullmatch(value):
        raise ValueError("must be a dotted import path such as ase.calculators.emt.EMT")
    return value


#: Field type of the specification models; naming a calculator runs its code on the compute node.
CalculatorPath: TypeAlias = Annotated[str, AfterValidator(_check)]
