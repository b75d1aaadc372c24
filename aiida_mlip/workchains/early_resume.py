"""A workchain that goes on while some of its children still run."""

from __future__ import annotations

from typing import Any

from aiida.engine import ProcessState

from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain


class EarlyResumeWorkChain(SubmitOnceWorkChain):
    """WorkChain whose step is left as soon as :meth:`has_reason_to_go_on`, not only when all its children have ended.

    AiiDA resumes a workchain when *all* children of a step have ended, so that one slow child leaves the machine idle.
    The step that follows must await those still running again, with ``self.to_context``. Each of them is then
    announced twice: the first awaitable, no longer ours, equals the second until that is resolved, and is told from it
    by identity.
    """

    def has_reason_to_go_on(self, n_running: int) -> bool:  # noqa: ARG002 - for those who override it
        """Whether to go on although ``n_running`` children have not ended; asked after the end of each. Default: no."""
        return False

    def _on_awaitable_finished(self, awaitable: Any) -> None:
        """Resolve an awaitable, and perhaps go on."""
        if not any(awaitable is own for own in self._awaitables):
            return
        super()._on_awaitable_finished(awaitable)
        if self.state == ProcessState.WAITING and self._awaitables and self.has_reason_to_go_on(len(self._awaitables)):
            self.resume()
