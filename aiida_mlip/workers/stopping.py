"""When a program stops by itself: the scheduler says that it is over, or the wall time is nearly used up."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopClock:
    """Wall time since it was made, and whether to stop.

    :param max_seconds: stop after this wall time; None: never by itself.
    :param checkpoint_seconds: how often everything is to be written.
    """

    def __init__(self, max_seconds: float | None, checkpoint_seconds: float) -> None:
        self._began = self._written = time.monotonic()
        self._max_seconds, self._checkpoint_seconds = max_seconds, checkpoint_seconds
        self._asked = False

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether it is time to stop; once true it stays so."""
        if self._max_seconds is not None and self.seconds > self._max_seconds:
            self._asked = True
        return self._asked

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether everything was written too long ago."""
        return time.monotonic() - self._written >= self._checkpoint_seconds

    def written(self) -> None:
        """Everything has just been written."""
        self._written = time.monotonic()

    def stop(self) -> None:
        """Ask for a clean end."""
        self._asked = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM, which schedulers send before the end, as a wish for a clean end."""

        def handler(_: int, __: FrameType | None) -> None:
            self.stop()

        previous = signal.signal(signal.SIGTERM, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
