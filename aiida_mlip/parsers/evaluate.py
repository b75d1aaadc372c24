"""Parser of EvaluateCalculation: errors and parity data, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode
from aiida.parsers import Parser

from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import FileFormatError, MlipError
from aiida_mlip.io.documents import brief, plain_text
from aiida_mlip.io.evaluation import (
    ANSWER,
    GRADES,
    PREDICTIONS,
    read_answer,
    read_grades,
    read_novelty,
    read_predictions,
)
from aiida_mlip.kernel.frames import Failure, Frames
from aiida_mlip.kernel.metrics import Predictions, labels_at

#: Words of schedulers, kernels and shells, lower case. A kernel that runs out of memory kills; the shell says "Killed".
_MEMORY: Final[tuple[str, ...]] = (
    "out of memory",
    "out-of-memory",
    "oom-kill",
    "oom_kill",
    "memoryerror",
    "bad_alloc",
    " killed ",
)
_WALLTIME: Final[tuple[str, ...]] = ("due to time limit", "walltime", "time limit exceeded")
_REASONS: Final[dict[str, str]] = {
    "invalid_input": "ERROR_INVALID_INPUT",
    "species_not_covered": "ERROR_SPECIES_NOT_COVERED",
    "model_not_loaded": "ERROR_MODEL_NOT_LOADED",
    "not_exact": "ERROR_NOT_EXACT",
    "out_of_memory": "ERROR_OUT_OF_MEMORY",
}


class EvaluateParser(Parser):
    """Read the answer and the predictions of ``aiida-mlip-evaluate``."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach what exists, then return the most specific exit code."""
        folder = Path(kwargs.get("retrieved_temporary_folder", "."))
        if ANSWER not in self.retrieved.base.repository.list_object_names():
            return self._interrupted(ANSWER)
        try:
            answer = self._answer()
            if answer["status"] == "failed":
                return self._refused(answer)
            if not (folder / PREDICTIONS).exists():
                return self._interrupted(PREDICTIONS)
            predictions, part = read_predictions(folder / PREDICTIONS)
            frames = labels_at(self.node.inputs.dataset.frames(), self.node.inputs.potential.fidelities)
            parity = parity_data(frames, predictions, part, read_novelty(folder / PREDICTIONS))
            errors = checked_errors(answer)
            complaint = brief((answer.get("grades") or {}).get("message", ""))
            grades = read_grades(folder / GRADES) if (folder / GRADES).exists() else None
        except KeyError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=f"{ANSWER}: key {error} is missing")
        except (MlipError, OSError) as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        self.out("errors", orm.Dict(error_summary(errors)))
        self.out("parity", parity)
        if grades is not None:
            self.out("grades", orm.ArrayData(grades.arrays()))
        if failed := len(errors["failures"]):
            if {failure["failure"] for failure in errors["failures"]} == {Failure.OUT_OF_MEMORY.label}:
                return self.exit_codes.ERROR_OUT_OF_MEMORY
            if failed == len(frames):
                return self.exit_codes.ERROR_ALL_FRAMES_FAILED.format(n=failed)
            return self.exit_codes.ERROR_SOME_FRAMES_FAILED.format(failed=failed, n=len(frames))
        return self.exit_codes.ERROR_GRADES_FAILED.format(message=complaint) if complaint else None

    def _answer(self) -> dict[str, Any]:
        """What the program answered.

        :raises FileFormatError: something else.
        """
        with self.retrieved.base.repository.as_path(ANSWER) as path:
            answer = read_answer(Path(path))
        wrong = [key for key in ("grades", "fragments") if not isinstance(answer.get(key) or {}, Mapping)]
        if wrong:
            raise FileFormatError(f"{ANSWER}: {wrong[0]} is no mapping")
        return answer

    def _refused(self, answer: dict[str, Any]) -> ExitCode:
        """Exit code of a program that says why it could do nothing."""
        name = _REASONS.get(str(answer.get("reason")), "ERROR_INVALID_INPUT")
        return getattr(self.exit_codes, name).format(message=brief(answer.get("message", "no message")))

    def _interrupted(self, missing: str) -> ExitCode:
        """Exit code of a program that did not get to its end: what the scheduler and the program left say why."""
        name = self.node.get_option("output_filename")
        try:
            output = self.retrieved.base.repository.get_object_content(name, mode="rb").decode(errors="replace")
        except OSError:
            output = ""
        text = "\n".join([output, self.node.get_scheduler_stderr() or "", self.node.get_scheduler_stdout() or ""])
        lowered = text.lower()
        if any(word in lowered for word in _WALLTIME):
            return self.exit_codes.ERROR_OUT_OF_WALLTIME
        if any(word in lowered for word in _MEMORY):
            return self.exit_codes.ERROR_OUT_OF_MEMORY
        lines = [line for line in text.splitlines() if line.strip()]
        return self.exit_codes.ERROR_OUTPUT_MISSING.format(name=missing, end=plain_text(" | ".join(lines[-3:])[-500:]))


def checked_errors(answer: dict[str, Any]) -> dict[str, Any]:
    """The parts of an answer that become the ``errors`` node.

    :raises KeyError: one is missing.
    :raises FileFormatError: one is something else.
    """
    kinds: dict[str, type] = {"errors": Mapping, "fidelities": object, "failures": list, "n_frames": int}
    for key, kind in kinds.items():
        if not isinstance(answer[key], kind):
            raise FileFormatError(f"{ANSWER}: {key} is a {type(answer[key]).__name__}")
    for failure in answer["failures"]:
        if not isinstance(failure, Mapping) or not isinstance(failure.get("failure"), str):
            raise FileFormatError(f"{ANSWER}: failures without a class")
    return {key: answer[key] for key in kinds}


def error_summary(answer: dict[str, Any]) -> dict[str, Any]:
    """Attributes of the ``errors`` node: parts at the top (``all``, ``train``, ``val``, ``test``), the rest beside."""
    result: dict[str, Any] = jsonable(
        {
            **answer["errors"],
            "fidelities": answer["fidelities"],
            "failures": answer["failures"],
            "n_frames": answer["n_frames"],
        }
    )
    return result


def parity_data(
    frames: Frames, predictions: Predictions, part: np.ndarray, novelty: np.ndarray | None = None
) -> orm.ArrayData:
    """Labels and predictions as arrays.

    Per frame ``frame_id``, ``part``, ``natoms``, ``energy_reference``, ``energy_predicted`` (eV/atom),
    ``stress_reference``, ``stress_predicted`` (eV/Å³); per atom ``numbers``, ``forces_reference``,
    ``forces_predicted`` (eV/Å), and ``novelty`` (γ) where there are grades. A number that does not exist is NaN.

    :raises FileFormatError: the predictions are not for these frames.
    """
    if (len(predictions.energy), len(predictions.forces)) != (len(frames), frames.n_atoms):
        raise FileFormatError(
            f"{PREDICTIONS}: {len(predictions.energy)} frames and {len(predictions.forces)} atoms, "
            f"but the dataset has {len(frames)} and {frames.n_atoms}"
        )
    return orm.ArrayData(
        {
            "frame_id": frames.frame_id,
            "part": part,
            "natoms": frames.natoms,
            "numbers": frames.numbers,
            "energy_reference": frames.energy / frames.natoms,
            "energy_predicted": predictions.energy / frames.natoms,
            "forces_reference": frames.forces,
            "forces_predicted": predictions.forces,
            "stress_reference": frames.stress,
            "stress_predicted": predictions.stress,
            **({} if novelty is None else {"novelty": novelty}),
        }
    )
