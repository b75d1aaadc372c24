"""Whether processes are alive, asked with or without a broker."""

from __future__ import annotations

from aiida_mlip.data.task_queue import silent_processes


def test_who_is_nowhere_is_silent_also_where_no_broker_was_started(aiida_profile):
    assert silent_processes([10**9 + 1, 10**9]) == [10**9, 10**9 + 1]
