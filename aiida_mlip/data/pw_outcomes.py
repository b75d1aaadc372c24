"""What became of a frame that pw.x ran in a bundle, from the files it left: as for a job of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida.plugins import CalculationFactory

from aiida_mlip.data.outcomes import UNCONVERGED, Outcome, judged
from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief
from aiida_mlip.io.pw_bundle import FrameFiles
from aiida_mlip.io.pw_printed import printed_scf
from aiida_mlip.io.pw_xml import ScfOutput, read_scf_xml
from aiida_mlip.kernel.failures import classify, summary_line
from aiida_mlip.kernel.frames import Failure, Frames
from aiida_mlip.protocols.fidelity import QeFidelity

#: Problems of an scf, by the name of aiida-quantumespresso's exit code, that a handler of ``PwBaseWorkChain`` cures.
HANDLED: Final[frozenset[str]] = frozenset(
    {
        "ERROR_OUT_OF_WALLTIME",
        "ERROR_ELECTRONIC_CONVERGENCE_NOT_REACHED",
        "ERROR_COMPUTING_CHOLESKY",
        "ERROR_DIAGONALIZATION_TOO_MANY_BANDS_NOT_CONVERGED",
        "ERROR_S_MATRIX_NOT_POSITIVE_DEFINITE",
        "ERROR_ZHEGVD_FAILED",
        "ERROR_QR_FAILED",
        "ERROR_EIGENVECTOR_CONVERGENCE",
        "ERROR_BROYDEN_FACTORIZATION",
    }
)
#: Failures that the neighbours in a bundle may have caused, or its end.
_OF_THE_BUNDLE: Final[frozenset[Failure]] = frozenset(
    {Failure.OUT_OF_MEMORY, Failure.WALLTIME, Failure.PARSE, Failure.INTERRUPTED}
)
#: Exit status of a shell from which on a program was ended by a signal.
_SIGNALLED: Final[int] = 129
#: No run takes longer (s), whatever its files say.
_LONGEST: Final[float] = 1e9


def frame_outcome(
    files: FrameFiles, frame: Frames, spec: QeFidelity, parameters: Mapping[str, Any], *, cores: float
) -> tuple[Outcome, bool]:
    """Outcome of a frame, and whether a job of its own, with the handlers of ``PwBaseWorkChain``, may cure it.

    :param files: what the frame left.
    :param frame: one row.
    :param parameters: namelists it was given.
    :param cores: that it ran on.
    """
    scf, damage = _scf(files)
    problems, unreadable = _problems(files, parameters)
    wall = files.seconds if scf is None or not np.isfinite(scf.wall_seconds) else scf.wall_seconds
    cost = float(np.clip(wall, 0.0, _LONGEST)) * cores if np.isfinite(wall) else 0.0  # it was come to: not NaN
    if problems or unreadable or scf is None:
        failure, message = _failure(files, problems, unreadable or damage)
        curable = _may_be_cured(files, failure, problems, spec)
        return Outcome(failure=failure, message=brief(message), cost=cost), curable
    if not scf.converged:
        return Outcome(failure=Failure.SCF_NOT_CONVERGED, message=UNCONVERGED, cost=cost), spec.max_iterations > 1
    if parameters["SYSTEM"].get("occupations") != "fixed" and scf.has_too_few_bands:
        message = "the highest band is occupied: too few bands"
        return Outcome(failure=Failure.IMPLAUSIBLE, message=message, cost=cost), spec.max_iterations > 1
    if "forces" in spec.labels and scf.forces is None:
        return Outcome(failure=Failure.PARSE, message="no forces in the output", cost=cost), True
    if contradiction := printed_scf(files.output).contradicts(scf.energy, scf.forces):
        return Outcome(failure=Failure.PARSE, message=contradiction, cost=cost), True
    return judged(scf.energy, scf.forces, scf.stress, frame, spec.labels, cost=cost), False


def unreadable_outcome(reason: str) -> Outcome:
    """Outcome of a frame whose archive cannot be read."""
    return Outcome(failure=Failure.PARSE, message=brief(reason), cost=0.0)


def _scf(files: FrameFiles) -> tuple[ScfOutput | None, str]:
    if files.xml is None:
        return None, "pw.x left no XML file"
    try:
        return read_scf_xml(files.xml), ""
    except FileFormatError as error:
        return None, str(error)


def _problems(files: FrameFiles, parameters: Mapping[str, Any]) -> tuple[list[str], str]:
    """Names of the problems that aiida-quantumespresso finds in what pw.x printed; and why that broke off, or nothing.

    That the output just ends is none of the names where another one says why.
    """
    from aiida_quantumespresso.parsers.parse_raw.pw import parse_stdout

    if not files.output.strip():
        return [], "pw.x printed nothing"
    try:
        _, logs = parse_stdout(files.output, dict(parameters), None, crash_file=files.crash)
    except Exception as error:  # noqa: BLE001  # a parser of broken text may raise anything; the row says what
        return [], f"the output of pw.x cannot be read: {type(error).__name__}: {error}"
    names = [str(name) for name in logs.error if str(name) in _exit_codes()]
    known = [name for name in names if name != "ERROR_OUTPUT_STDOUT_INCOMPLETE"]
    broken_off = "JOB DONE" not in files.output
    return known, "the output of pw.x breaks off" if broken_off and not known else ""


def _exit_codes() -> Mapping[str, Any]:
    codes: Mapping[str, Any] = CalculationFactory("quantumespresso.pw").exit_codes
    return codes


def _failure(files: FrameFiles, problems: list[str], damage: str) -> tuple[Failure, str]:
    texts = (files.output, files.crash or "", files.error)  # what pw.x says itself comes first
    status = _exit_codes()[problems[0]].status if problems else None
    failure = classify(status, *texts)
    if failure is Failure.CRASHED and "JOB DONE" in files.output:
        failure = Failure.PARSE  # pw.x was content; what it left was not
    signal = f"ended by signal {files.status - 128}" if files.status and files.status >= _SIGNALLED else ""
    return failure, summary_line(*texts) or signal or damage


def _may_be_cured(files: FrameFiles, failure: Failure, problems: list[str], spec: QeFidelity) -> bool:
    if HANDLED & set(problems):
        return spec.max_iterations > 1
    says_why = files.crash is not None or "Error in routine" in files.output
    return failure in _OF_THE_BUNDLE or (failure is Failure.CRASHED and not says_why)
