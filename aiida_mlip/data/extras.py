"""Extras that our workchains set on process nodes, their own or their children's: hints, no part of the provenance."""

from typing import Final

#: How many calls a workchain is going to make; shown as the total of its progress.
EXPECTED_CALLS: Final[str] = "aiida_mlip_expected_calls"

#: Steps of a generation that did not end well, by number: exit status and message; shown in its summary.
FAILED_STEPS: Final[str] = "aiida_mlip_failed_steps"

#: Of a label process that finished well: its files contradict each other, so no campaign takes its label over.
DAMAGED: Final[str] = "aiida_mlip_damaged"

#: Part of the expected work that is done, from 0 to 1, where that is known better than by the number of calls.
WORK_DONE: Final[str] = "aiida_mlip_work_done"
