"""Faults of one job: the program dies, has no room, never converges, or what it leaves is damaged."""

from __future__ import annotations

import time
from collections.abc import Sequence

from faults.campaign import N_ALONE
from faults.harness import Harness
from faults.orders import ORDERS, injections

FAULTS = tuple(ORDERS)
#: Campaigns alive at once, and frames of one that labels them in one job, three of which are struck.
WAVE, N_BUNDLED = 6, 10


def run(harness: Harness, names: Sequence[str], per_fault: int) -> None:
    """Labellings in one job and frame by frame in turn, each with one fault or three; some at once."""
    todo = []
    for name, number in harness.plan(names, per_fault):
        rng = harness.rng(name, number)
        bundle = rng.random() < 0.75
        order = ORDERS[name](rng, bundle=bundle)
        n = N_BUNDLED if bundle else N_ALONE
        at = rng.sample(range(1, n + 1), 3 if bundle and not order.always else 1)
        todo.append((name, number, order, bundle, at, n))
    for start in range(0, len(todo), WAVE):
        if time.monotonic() > harness.until:
            break
        began = time.monotonic()
        wave = []
        for name, number, order, bundle, at, n in todo[start : start + WAVE]:
            wave.append(harness.campaign(name, number, order=order, bundle=bundle, at=at, n=n))
            wave[-1].submit()
        harness.bring_home(wave)
        harness.place.end_orphans()
        (harness.place.folder / "lost").unlink(missing_ok=True)
        for each, (_, _, _, _, at, _) in zip(wave, todo[start:], strict=False):
            each.injected = min(len(injections(each.folder)), len(at))
        print(f"{start + len(wave)} of {len(todo)} faults of programs, {time.monotonic() - began:.0f} s", flush=True)
