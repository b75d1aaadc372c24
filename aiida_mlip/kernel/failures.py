"""Why a label is missing: a class from what a program and the scheduler left behind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from aiida_mlip.kernel.frames import Failure

#: Exit codes of aiida-core and aiida-quantumespresso whose meaning does not depend on the output.
_EXIT_STATUS: Final[Mapping[int, Failure]] = {
    110: Failure.OUT_OF_MEMORY,
    120: Failure.WALLTIME,
    130: Failure.SUBMISSION,
    140: Failure.CRASHED,
    340: Failure.WALLTIME,
    400: Failure.WALLTIME,
    410: Failure.SCF_NOT_CONVERGED,
    510: Failure.SCF_NOT_CONVERGED,
    511: Failure.SCF_NOT_CONVERGED,
    710: Failure.SCF_NOT_CONVERGED,
}
#: What schedulers, launchers, kernels and pw.x say, most telling first. Without Slurm accounting this is all there is.
_TEXT: Final[tuple[tuple[Failure, re.Pattern[str]], ...]] = (
    (
        Failure.OUT_OF_MEMORY,
        re.compile(
            r"out of memory|oom[-_ ]?kill|cannot allocate memory|std::bad_alloc|memoryerror|"
            r"exceeded (?:job )?memory limit|allocate.{0,40}(?:fail|error)|"
            r"error.{0,20}allocat|insufficient virtual memory|failed to map segment",
            re.IGNORECASE,
        ),
    ),
    (
        Failure.WALLTIME,
        re.compile(
            r"due to time limit|time limit exceeded|walltime.{0,30}exceed|exceed.{0,30}walltime|"
            r"maximum cpu time exceeded|cpu time limit exceeded|term_runlimit|wall clock limit",
            re.IGNORECASE,
        ),
    ),
    (
        Failure.SCF_NOT_CONVERGED,
        re.compile(r"convergence not achieved|convergence NOT achieved|scf (?:has )?not converged", re.IGNORECASE),
    ),
    (
        Failure.SUBMISSION,
        re.compile(r"command not found|error while loading shared libraries|could not find or execute|execve\(\)"),
    ),
    (
        Failure.CRASHED,
        re.compile(
            r"error in routine|segmentation fault|sigsegv|sigfpe|sigabrt|floating point exception|"
            r"mpi_abort was|traceback \(most recent|killed|stopping \.\.\.",
            re.IGNORECASE,
        ),
    ),
)


def classify(exit_status: int | None, *texts: str) -> Failure:
    """Class of a failed label.

    A known exit status decides, except where the text is more telling: without scheduler accounting a job that ran out
    of time or memory ends with a parser's exit status.

    :param exit_status: of the calculation job, or None when it never got one.
    :param texts: standard output, standard error, crash file, scheduler's standard error.
    """
    if (said := _said(exit_status, texts)) is not None:
        return said
    if not any(text.strip() for text in texts):
        return Failure.INTERRUPTED
    # an output that just stops: the program was ended from outside, or died without a word
    return Failure.CRASHED if exit_status in (None, 303, 305, 310, 311, 312, 320, 321) else Failure.PARSE


def classify_unfinished(exit_status: int | None, *texts: str, damaged: bool = False) -> Failure:
    """Class of a frame that is not among the results of a job of several.

    :param exit_status: as of :func:`classify`.
    :param texts: what the job printed, which tells of the job and of other frames.
    :param damaged: the results cannot be read, and may have held the frame.
    """
    return _said(exit_status, texts) or (Failure.PARSE if damaged else Failure.INTERRUPTED)


def _said(exit_status: int | None, texts: Sequence[str]) -> Failure | None:
    """Class by a known exit status, else by what the texts say; None where neither tells."""
    known = _EXIT_STATUS.get(exit_status) if exit_status is not None else None
    if known is not None:
        return known
    for failure, pattern in _TEXT:
        if any(pattern.search(text) for text in texts):
            return failure
    return None


def summary_line(*texts: str, limit: int = 200) -> str:
    """The line of the texts that says most about a failure, for people; empty if none does."""
    for _, pattern in _TEXT:
        for text in texts:
            if match := pattern.search(text):
                start = text.rfind("\n", 0, match.start()) + 1
                end = text.find("\n", match.end())
                lines = text[start : None if end < 0 else end + 1 + limit].splitlines()
                return " ".join(line.strip() for line in lines[:2]).strip()[:limit]
    return ""
