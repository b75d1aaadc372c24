"""What all families of faults share: the place, the undisturbed labels, and bringing campaigns home."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiida.manage import get_manager
from faults.campaign import N_ALONE, N_FRAMES, Campaign, Labels, inputs, names_of_failures, silicon, wait
from faults.orders import NOTHING, Order, write_program
from faults.place import FAMILY, Place

#: Seconds without a change in the database after which something has to be done, and that campaigns may take, on a
#: machine that has nothing else to do.
STALLED_S, LIMIT_S = 20.0, 240.0


def slowness() -> float:
    """How much longer things take than on a quiet machine."""
    return max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


@dataclass
class Harness:
    """A place, seeds, and what was run.

    :param until: on the monotonic clock, when no further fault is begun.
    :param reference: labels of the undisturbed run by frame id, filled at the end.
    """

    place: Place
    seed: int
    until: float = math.inf
    campaigns: list[Campaign] = field(default_factory=list)
    trainings: list[Campaign] = field(default_factory=list)
    reference: Labels = field(default_factory=dict)

    def plan(self, names: Sequence[str], per_fault: int) -> Iterator[tuple[str, int]]:
        """Faults and their numbers, each kind in turn, as long as there is time."""
        for number in range(per_fault):
            for name in names:
                if time.monotonic() < self.until:
                    yield name, number

    def rng(self, fault: str, number: int) -> random.Random:
        """Random numbers of one injection."""
        return random.Random(f"{self.seed} {fault} {number}")  # noqa: S311 - where to strike is no secret

    def campaign(
        self, fault: str, number: int, *, order: Order = NOTHING, bundle: bool, at: Sequence[int] = (),
        pause_s: float = 0.0, tag: int = 0, n: int = 0,
    ) -> Campaign:  # fmt: skip
        """A campaign with frames of its own, and a program of its own in the place of pw.x."""
        made = self._folder(fault, number, tag)
        program, append = write_program(made, order, at=at, pause_s=pause_s)
        seeds = [self.seed, sum(map(ord, fault)), number, tag]
        frames = silicon(seeds, n or (N_FRAMES if bundle else N_ALONE))
        given = inputs(self.place.code(program, append), frames, family=FAMILY, bundle=bundle)
        found = Campaign(fault, frames, given, folder=made)
        self.campaigns.append(found)
        return found

    def _folder(self, fault: str, number: int, tag: int) -> Path:
        name = fault.replace(" ", "-").replace(".", "")
        return self.place.folder / "programs" / f"{name}-{number}-{tag}"

    def bring_home(self, campaigns: Sequence[Campaign], *, rounds: int = 4) -> None:
        """Wait; where nothing goes on, or ended without all labels, ask the doctor and use the one cure."""
        started = time.monotonic()
        for _ in range(rounds):
            ended = wait(campaigns, limit_s=slowness() * LIMIT_S, stalled_s=slowness() * STALLED_S)
            todo = [each for each in campaigns if not each.complete]
            if not todo:
                break
            if ended:
                self._begin_again(todo)
            else:
                self.cure([each for each in todo if not each.node.is_terminated])
        for each in campaigns:
            each.hung = not each.node.is_terminated
            each.said.update(names_of_failures(each))
            each.seconds += (time.monotonic() - started) / len(campaigns)

    def leave_out_unfinished(self) -> None:
        """Forget the campaigns that did not come home."""
        for kept in (self.campaigns, self.trainings):
            kept[:] = [each for each in kept if each.seconds]

    def cure(self, campaigns: Sequence[Campaign]) -> list[str]:
        """The one cure; what it found to be wrong, with the eyes of `aiida-mlip doctor`."""
        found = self.place.mend()
        if not found:
            self.place.call("aiida-mlip", "recover", "--yes", "--always")
        reconnect()
        for each in campaigns:
            each.said.update(f"doctor: {subject}" for subject in found)
            each.cured_by = "recover" if found else "recover --always"
        return found

    def _begin_again(self, campaigns: Sequence[Campaign]) -> None:
        for each in campaigns:
            if each.folder is not None:
                (each.folder / "cured").touch()
        reconnect()
        again = self.place.recover(*(each.pks[-1] for each in campaigns))
        for each, pk in zip(campaigns, again, strict=True):
            each.pks.append(pk)
            each.cured_by = "recover PK" if each.cured_by == "itself" else f"{each.cured_by}, then PK"


def reconnect() -> None:
    """Forget the broker that was there: another one may have taken its place."""
    get_manager().reset_broker()
    get_manager().reset_runner()
