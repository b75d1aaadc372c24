"""Messages of ``aiida-mlip-evaluate``: request (``input.json``) and answer.

The answer is ``output.json`` and ``predictions.npz``, and ``grades.npz`` where grades were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.documents import brief, parse_json
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.uncertainty.grades import Grades

REQUEST: Final[str] = "input.json"
ANSWER: Final[str] = "output.json"
PREDICTIONS: Final[str] = "predictions.npz"
MODEL: Final[str] = "model.nequip.zip"
SPLIT: Final[str] = "split.npy"
#: Grades that the potential has already; those fitted by the program.
STATISTICS: Final[str] = "statistics.npz"
GRADES: Final[str] = "grades.npz"
#: File names of the frames when nothing else is said; one file per shard of a dataset.
FRAMES: Final[str] = "frames.npz"

#: Why the program could do nothing at all (``reason`` of the answer).
Reason = Literal["invalid_input", "species_not_covered", "model_not_loaded", "not_exact", "out_of_memory"]


Request = TypeVar("Request", bound=BaseModel)


class EvaluateRequest(BaseModel):
    """What to evaluate, and how.

    :param frames: shard files beside the request, in order.
    :param model: package file beside the request.
    :param split: ``.npy`` file of one int8 code per frame, see :class:`aiida_mlip.kernel.splits.Part`.
    :param sha256: expected hash of the package.
    :param species: chemical symbols that the potential covers, in the order of its types.
    :param fidelities: levels of theory of the potential, in the order of its index; labels at others are not compared.
    :param fidelity: the one to predict where a frame is not labelled at one of them.
    :param energy_shifts: eV per atom to add, by fidelity and symbol.
    :param device: where to run; ``auto`` takes a GPU when there is one.
    :param mode: ``eager`` starts at once; ``compiled`` spends a minute on compiling, worth it for many frames.
    :param atoms_per_batch: atoms evaluated at once: memory against speed.
    :param statistics: ``.npz`` file of the potential's grades: the novelty of every atom is predicted too.
    :param fit_grades: fit grades on the rows of the training part; the novelty is that by these.
    :param seed: of that fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    frames: tuple[str, ...] = Field(default=(FRAMES,), min_length=1)
    model: str = MODEL
    split: str | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    species: tuple[str, ...] | None = None
    fidelities: tuple[str, ...] = ()
    fidelity: str | None = None
    energy_shifts: dict[str, dict[str, float]] = Field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mode: Literal["eager", "compiled"] = "eager"
    atoms_per_batch: int = Field(default=1024, ge=1)
    statistics: str | None = None
    fit_grades: bool = False
    seed: int = Field(default=0, ge=0)


def read_request(path: Path) -> EvaluateRequest:
    """Request of a JSON file.

    :raises FileFormatError: no such file, or not JSON.
    :raises InvalidInputError: unknown keys or values; names each.
    """
    return read_model_request(path, EvaluateRequest)


def read_model_request(path: Path, kind: type[Request]) -> Request:
    """Request of a JSON file, of any kind.

    :raises FileFormatError: no such file, or not JSON.
    :raises InvalidInputError: unknown keys or values; names each.
    """
    try:
        data = parse_json(path.read_bytes(), source=str(path), what="request")
    except OSError as error:
        raise FileFormatError(f"{path}: not a readable request ({error})") from error
    if not isinstance(data, dict):
        raise InvalidInputError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors()[:20]
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {brief(repr(e.get('input')))}" for e in found]
        known = ", ".join(kind.model_fields)
        raise InvalidInputError(f"{path}: {'; '.join(lines)} (keys: {known})") from error


def write_predictions(predictions: Predictions, part: np.ndarray, novelty: np.ndarray | None = None) -> bytes:
    """Bytes of ``predictions.npz``: the columns of :class:`Predictions` (but features), parts, and novelties if any."""
    columns = {
        "energy": predictions.energy.astype("<f8"),
        "forces": predictions.forces.astype("<f8"),
        "stress": predictions.stress.astype("<f8"),
        "failure": predictions.failure.astype("|u1"),
        "part": np.asarray(part).astype("|i1"),
    }
    if novelty is not None:
        columns["novelty"] = novelty.astype("<f8")
    return write_npz(columns)


def read_predictions(path: Path) -> tuple[Predictions, np.ndarray]:
    """Predictions of a file, and the part of each frame.

    :raises FileFormatError: missing, truncated, or not what :func:`write_predictions` wrote.
    """
    try:
        columns = read_npz(path)
        part = columns["part"]
        predictions = Predictions(**{name: columns[name] for name in ("energy", "forces", "stress", "failure")})
    except (KeyError, InvalidInputError) as error:
        raise FileFormatError(f"{path.name}: not readable predictions ({error})") from error
    for name, value in (*columns.items(), ("part", part)):
        if value.dtype.kind not in ("iu" if name in ("failure", "part") else "f"):
            raise FileFormatError(f"{path.name}: {name} holds {value.dtype}")
    if part.shape != predictions.energy.shape:
        raise FileFormatError(f"{path.name}: parts have shape {part.shape}, energies {predictions.energy.shape}")
    return predictions, part


def read_novelty(path: Path) -> np.ndarray | None:
    """(a,) novelty γ of each atom in a file of predictions; None where the potential has no grades.

    :raises FileFormatError: missing, truncated, or not one number per atom.
    """
    columns = read_npz(path)
    if "novelty" not in columns:
        return None
    if columns["novelty"].shape != (len(columns["forces"]),):
        raise FileFormatError(f"{path.name}: novelty has shape {columns['novelty'].shape}, expected one per atom")
    return columns["novelty"]


def read_grades(path: Path) -> Grades:
    """Grades of a ``.npz`` file.

    :raises FileFormatError: missing, truncated, or no grades.
    """
    arrays = read_npz(path)
    try:
        return Grades.from_arrays(arrays)
    except FileFormatError as error:
        raise FileFormatError(f"{path.name}: {brief(error)}") from error


def read_answer(path: Path) -> dict[str, Any]:
    """Answer of the program.

    :raises FileFormatError: missing, truncated, or not an answer.
    """
    try:
        answer = parse_json(path.read_bytes(), source=path.name, finite=False, what="answer")
    except OSError as error:
        raise FileFormatError(f"{path.name}: not a readable answer ({error})") from error
    if not isinstance(answer, Mapping) or answer.get("status") not in ("finished", "failed"):
        raise FileFormatError(f"{path.name}: not an answer of aiida-mlip-evaluate")
    return dict(answer)
