"""Texts as programs, launchers and schedulers print them."""

from __future__ import annotations

import pytest

from aiida_mlip.kernel.failures import classify, classify_unfinished, summary_line
from aiida_mlip.kernel.frames import Failure

SLURM_TIME = "slurmstepd: error: *** JOB 812 ON n01 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
SLURM_OOM = (
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=812.batch. Some of your processes may have been killed"
)
PBS_TIME = "=>> PBS: job killed: walltime 120 exceeded limit 60\n"
QE_SCF = "     convergence NOT achieved after  2 iterations: stopping\n"
QE_CRASH = """ %%%%%%%%%%%%%%%%%%%%%
     Error in routine setlocal (1):
     some pseudopotential problem
 %%%%%%%%%%%%%%%%%%%%%
     stopping ..."""


@pytest.mark.parametrize(
    ("status", "texts", "expected"),
    [
        (410, [""], Failure.SCF_NOT_CONVERGED),
        (710, [""], Failure.SCF_NOT_CONVERGED),
        (120, [SLURM_OOM], Failure.WALLTIME),
        (110, [""], Failure.OUT_OF_MEMORY),
        (400, [""], Failure.WALLTIME),
        # no accounting: the parser's exit code says nothing
        (312, [SLURM_TIME, "Program PWSCF"], Failure.WALLTIME),
        (305, [PBS_TIME], Failure.WALLTIME),
        (312, [SLURM_OOM, "Program PWSCF"], Failure.OUT_OF_MEMORY),
        (312, ["", " Error in routine allocate: cannot allocate memory"], Failure.OUT_OF_MEMORY),
        (312, ["pw.x: error while loading shared libraries: libmpi.so: failed to map segment"], Failure.OUT_OF_MEMORY),
        (305, ["", QE_CRASH], Failure.CRASHED),
        (305, ["", QE_SCF + QE_CRASH], Failure.SCF_NOT_CONVERGED),
        (312, ["", "     Program PWSCF v.6.7 starts\n     iteration #  3"], Failure.CRASHED),
        (350, ["", "Program PWSCF ... JOB DONE."], Failure.PARSE),
        (None, [], Failure.INTERRUPTED),
        (302, [" ", ""], Failure.INTERRUPTED),
    ],
)
def test_class(status, texts, expected):
    assert classify(status, *texts) is expected


@pytest.mark.parametrize(
    ("status", "texts", "damaged", "expected"),
    [
        (120, [""], True, Failure.WALLTIME),
        (None, [SLURM_TIME], True, Failure.WALLTIME),
        (None, ["frame 3 has begun"], False, Failure.INTERRUPTED),  # not a word of what ended the job
        (None, ["frame 3 has begun"], True, Failure.PARSE),
        (None, [], False, Failure.INTERRUPTED),
    ],
)
def test_class_of_a_frame_that_a_job_of_several_did_not_finish(status, texts, damaged, expected):
    assert classify_unfinished(status, *texts, damaged=damaged) is expected


def test_the_telling_line_is_shown():
    assert summary_line("", QE_CRASH).startswith("Error in routine setlocal (1): some pseudopotential")
    assert summary_line("nothing here") == ""
