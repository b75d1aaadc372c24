"""Extras that our workchains set on their own process node: hints for people, never part of the provenance."""

from typing import Final

#: How many calls a workchain is going to make; shown as the total of its progress.
EXPECTED_CALLS: Final[str] = "aiida_mlip_expected_calls"

#: Steps of a generation that did not end well, by number: exit status and message; shown in its summary.
FAILED_STEPS: Final[str] = "aiida_mlip_failed_steps"
