"""What ``aiida-mlip doctor`` examines. Each check returns findings; a check that cannot be done is a finding too.

======== ==================================================================================
state    meaning
======== ==================================================================================
ok       as it should be
note     works, or is not needed by everybody; what to know, what to do if it is wanted
fix      calculations fail, hang or are lost; the cure is one command
======== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    :ivar subject: what was looked at, e.g. ``code pw@localhost``.
    :ivar state: ``ok``, ``note`` or ``fix``.
    :ivar message: what was found.
    :ivar cure: command, or sentence, that mends it; None if there is nothing to do.
    """

    subject: str
    state: Literal["ok", "note", "fix"]
    message: str
    cure: str | None = None


#: A check: yields what it found.
Check = Callable[[], Iterator[Finding]]


def perform(checks: dict[str, Check]) -> Iterator[Finding]:
    """Run checks in turn; one that breaks is reported under its name and does not stop the others."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - a broken installation breaks in any way, and has to be reported
            said = str(error).strip().splitlines()
            yield Finding(name, "fix", f"cannot be examined: {type(error).__name__}: {said[0] if said else ''}")
