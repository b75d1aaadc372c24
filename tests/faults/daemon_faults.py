"""Faults of what runs the workchains: a worker, the broker, all slots taken."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from faults.campaign import Campaign, wait
from faults.harness import LIMIT_S, STALLED_S, Harness, reconnect, slowness
from killed_campaign import Event, events, wait_for

FAULTS = ("daemon worker killed", "broker killed", "broker back without its workers", "all slots taken")
#: Slept before each frame, so that there is a moment to do something.
PAUSE_S = 0.15


def run(harness: Harness, names: Sequence[str], per_fault: int) -> None:
    """One after another: the daemon is one for all."""
    seen = _events(harness) if set(names) & set(FAULTS[:2]) else {}
    for name, number in harness.plan(names, per_fault):
        began = time.monotonic()
        rng = harness.rng(name, number)
        pair = [harness.campaign(name, number, bundle=bundle, pause_s=PAUSE_S, tag=tag)
                for tag, bundle in enumerate((True, number % 3 != 2))]  # fmt: skip
        if name == FAULTS[2]:
            _broker_alone(harness, pair)
        elif name == FAULTS[3]:
            _slots(harness, pair)
        else:
            which = rng.randrange(2)
            _kill_at(harness, name, pair, which, rng.choice(seen[int(which == 1 and number % 3 == 2)]))
        harness.bring_home(pair)
        pair[0].injected = 1
        if name == FAULTS[3]:
            _restart(harness, slots=200)
        print(f"{name} {number + 1} of {per_fault}, {time.monotonic() - began:.0f} s", flush=True)


def _events(harness: Harness) -> dict[int, list[Event]]:
    """What undisturbed campaigns come by."""
    found = {}
    for tag, bundle in enumerate((True, False)):
        probe = harness.campaign("undisturbed", 0, bundle=bundle, pause_s=PAUSE_S, tag=tag)
        probe.submit()
        if not wait([probe], limit_s=slowness() * LIMIT_S, stalled_s=slowness() * STALLED_S):
            raise RuntimeError("the undisturbed campaign did not end")
        found[tag] = [event for event in events(probe.node) if not event.name.startswith("work/")]
    return found


def _kill_at(harness: Harness, name: str, pair: Sequence[Campaign], which: int, event: Event) -> None:
    pids = harness.place.worker_pids() if name == FAULTS[0] else [harness.place.broker_pid()]
    for each in pair:
        each.submit()
    wait_for(pair[which].node, event)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    if name == FAULTS[1]:
        _find_fix(harness, pair, "broker")


def _broker_alone(harness: Harness, pair: Sequence[Campaign]) -> None:
    """The broker dies and comes back while nothing runs; what is submitted then stays Created."""
    old = harness.place.broker_pid()
    os.kill(old, signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end and harness.place.broker_pid() == old:
        time.sleep(0.5)
    time.sleep(1)
    reconnect()
    for each in pair:
        each.submit()
    _find_fix(harness, pair, "broker")


def _slots(harness: Harness, pair: Sequence[Campaign]) -> None:
    """As many parents as slots, none left for their children."""
    _restart(harness, slots=2)
    for each in pair:
        each.submit()
    _find_fix(harness, pair, "worker slots")


def _restart(harness: Harness, *, slots: int) -> None:
    from aiida.manage import get_config

    harness.place.stop_daemon()
    get_config().set_option("daemon.worker_process_slots", slots, scope="faults")
    get_config().store()
    harness.place.start_daemon()
    reconnect()


def _find_fix(harness: Harness, pair: Sequence[Campaign], subject: str, *, timeout_s: float = 90) -> None:
    """Wait until the doctor sees it, and recover; a campaign that ended before needs nothing."""
    from aiida_mlip.cli.checks.daemon import check_daemon

    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if any(found.state == "fix" and found.subject == subject for found in check_daemon()):
            harness.cure(pair)
            break
        time.sleep(2)
    reconnect()
