"""A scheduler that knows nothing of any job for a while, or answers nonsense until AiiDA gives up and pauses."""

from __future__ import annotations

import time
from collections.abc import Sequence

from faults.campaign import Campaign
from faults.harness import Harness
from killed_campaign import calls

FAULTS = ("scheduler silent",)


def run(harness: Harness, names: Sequence[str], per_fault: int) -> None:
    """Two campaigns at once each time."""
    for _, number in harness.plan(names, per_fault):
        began = time.monotonic()
        rng = harness.rng(FAULTS[0], number)
        pair = [harness.campaign(FAULTS[0], number, bundle=bundle, pause_s=0.3, tag=tag)
                for tag, bundle in enumerate((True, number % 3 != 2))]  # fmt: skip
        for each in pair:
            each.submit()
        _await_jobs(pair)
        which = harness.place.folder / rng.choice(["nonsense", "knows-nothing"])
        which.touch()
        time.sleep(rng.uniform(3, 6) if which.name == "knows-nothing" else rng.choice([4, 15]))
        which.unlink()
        harness.bring_home(pair)
        pair[0].injected = 1
        print(f"{FAULTS[0]} {number + 1} of {per_fault}: {which.name}, {time.monotonic() - began:.0f} s", flush=True)


def _await_jobs(pair: Sequence[Campaign]) -> None:
    """Wait until a job of the first campaign is with the scheduler."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        states = [getattr(node, "get_state", lambda: None)() for each in pair for _, node in calls(each.node)]
        if any(state is not None and state.value == "withscheduler" for state in states):
            return
        time.sleep(0.1)
