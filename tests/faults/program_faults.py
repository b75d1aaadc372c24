"""Faults of one job: the program dies, has no room, never converges, or what it leaves is damaged."""

from __future__ import annotations

import time
from collections.abc import Sequence

from faults.campaign import N_ALONE, N_FRAMES
from faults.harness import Harness
from faults.orders import ORDERS, injections

FAULTS = tuple(ORDERS)
#: Campaigns alive at once.
WAVE = 6


def run(harness: Harness, names: Sequence[str], per_fault: int) -> None:
    """Labellings in one job and frame by frame in turn, each with one fault; some at once."""
    todo = []
    for name, number in harness.plan(names, per_fault):
        rng = harness.rng(name, number)
        bundle = rng.random() < 0.75
        order = ORDERS[name](rng, bundle=bundle)
        todo.append((name, number, order, bundle, rng.randrange(1, (N_FRAMES if bundle else N_ALONE) + 1)))
    for start in range(0, len(todo), WAVE):
        if time.monotonic() > harness.until:
            break
        began = time.monotonic()
        wave = []
        for name, number, order, bundle, at in todo[start : start + WAVE]:
            wave.append(harness.campaign(name, number, order=order, bundle=bundle, at=at))
            wave[-1].submit()
        harness.bring_home(wave)
        harness.place.end_orphans()
        (harness.place.folder / "lost").unlink(missing_ok=True)
        for each in wave:
            each.injected = bool(injections(harness.folder_of(each)))
        print(f"{start + len(wave)} of {len(todo)} faults of programs, {time.monotonic() - began:.0f} s", flush=True)
