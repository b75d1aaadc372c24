"""``aiida-mlip-evaluate``: predictions and errors of a packaged potential on labelled frames.

Reads ``input.json`` (:class:`~aiida_mlip.io.evaluation.EvaluateRequest`), the shards of frames, the package and
optionally a split from the working directory. Writes ``predictions.npz`` and ``output.json`` there: errors per part,
per-frame failures, and where it ran. Exit status 0 unless nothing at all could be done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiida_mlip.errors import ExternalProgramError, FileFormatError, InvalidInputError, MlipError, SpeciesError
from aiida_mlip.io.arrays import read_npy, write_npz
from aiida_mlip.io.bake import read_bake_request
from aiida_mlip.io.evaluation import (
    ANSWER,
    GRADES,
    PREDICTIONS,
    REQUEST,
    EvaluateRequest,
    Reason,
    read_grades,
    read_request,
    write_predictions,
)
from aiida_mlip.io.scan import read_scan_request
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.frames import NONE, Failure, Frames, concatenate
from aiida_mlip.kernel.metrics import ErrorReport, Predictions, compare, compare_parts, labels_at
from aiida_mlip.kernel.splits import Part
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.bake import NotExactError, bake

if TYPE_CHECKING:
    from aiida_mlip.workers.model_loading import LoadedModel

#: Seconds between progress lines.
PROGRESS_EVERY: Final[float] = 10.0

DESCRIPTION: Final[str] = f"""\
Energies, forces and stresses of a packaged potential on frames, and their errors.

Reads {REQUEST} in the working directory, with these keys (all optional):

  frames           ["frames.npz"]      shards of frames (aiida-mlip dataset export writes them)
  model            "model.nequip.zip"  package; LOADING IT EXECUTES CODE FROM IT
  split            null                .npy, one int8 per frame: 0 train, 1 val, 2 test, -1 unused
  sha256           null                hash the package must have
  species          null                elements the package must cover
  fidelities       []                  levels of theory of the model; labels at others are not compared
  fidelity         null                the one to predict for frames without a label
  energy_shifts    {{}}                  eV per atom to add, by fidelity and element
  device           "auto"              auto | cpu | cuda
  mode             "eager"             eager | compiled (a minute to compile; for many frames)
  atoms_per_batch  1024                memory against speed
  statistics       null                .npz of the potential's grades: the novelty of each atom is predicted too
  fit_grades       false               fit them on the training part of the split (all frames without one)
  seed             0                   of that fit

Writes {PREDICTIONS} (energy eV, forces eV/A, stress eV/A^3, failure, part, novelty), {ANSWER} (errors per part) and
with fit_grades {GRADES}.

With --scan: grades of one frame of up to millions of atoms, read from a file of another program; the keys are in
aiida_mlip/io/scan.py, the least is {{"file": "run.dump", "statistics": "statistics.npz"}}.

With --bake: an ordinary package of one level of theory of a joint potential; the keys are in aiida_mlip/io/bake.py,
e.g. {{"fidelity": "pbe", "index": 1, "shifts": {{"Si": -107.2}}}}. LOADING THE MODEL EXECUTES CODE FROM IT.
"""


@dataclass
class _Clock:
    """Where the time went, and progress lines now and then."""

    total: int
    started: float = field(default_factory=time.perf_counter)
    spoken: float = 0.0

    def __call__(self, done: int) -> None:
        elapsed = time.perf_counter() - self.started
        if elapsed - self.spoken >= PROGRESS_EVERY or done == self.total:
            self.spoken = elapsed
            left = elapsed / done * (self.total - done)
            print(f"{done}/{self.total} frames, {elapsed:.1f} s, {left:.0f} s to go", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="aiida-mlip-evaluate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where the files are (default: here)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--scan", action="store_true", help="grade one frame of up to millions of atoms instead")
    modes.add_argument("--bake", action="store_true", help="make an ordinary package of a joint potential instead")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        if options.bake:
            answer = _bake(folder)
        else:
            answer = _scan(folder) if options.scan else evaluate(folder, read_request(folder / REQUEST))
    except MemoryError:
        return _give_up(folder, "out_of_memory", "out of memory while reading the frames")
    except SpeciesError as error:
        return _give_up(folder, "species_not_covered", str(error))
    except _ModelError as error:
        return _give_up(folder, "model_not_loaded", str(error))
    except NotExactError as error:
        return _give_up(folder, "not_exact", str(error))
    except (MlipError, OSError) as error:
        return _give_up(folder, "invalid_input", str(error))
    _write_json(folder / ANSWER, answer)
    return 0


class _ModelError(MlipError):
    """The model could not be loaded."""


def _bake(folder: Path) -> dict[str, Any]:
    """One level of theory of a joint potential as a package, see :mod:`aiida_mlip.workers.bake`."""
    request = read_bake_request(folder / REQUEST)
    try:
        return bake(folder, request)
    except FileFormatError as error:
        raise _ModelError(str(error)) from error


def _scan(folder: Path) -> dict[str, Any]:
    """Grade one large frame, see :mod:`aiida_mlip.workers.scan`."""
    from aiida_mlip.workers import scan

    request = read_scan_request(folder / REQUEST)
    began = time.perf_counter()
    frame = scan.read_frame(folder, request)
    read_s = time.perf_counter() - began
    _check_species(frame.numbers, request.species)
    try:
        target = scan.load_target(folder, request, frame)
    except (FileFormatError, ExternalProgramError) as error:
        raise _ModelError(str(error)) from error
    return scan.scan(folder, request, target, read_s=read_s)


def evaluate(folder: Path, request: EvaluateRequest) -> dict[str, Any]:
    """Run a request: write the predictions, return the answer.

    :param folder: where the files of the request are, and where the predictions go.
    :raises FileFormatError: a file that is missing, truncated or changed.
    :raises InvalidInputError: files that do not fit one another.
    :raises SpeciesError: an element that the potential does not cover.
    """
    started = time.perf_counter()
    shards = [_read_frames(folder / name) for name in request.frames]
    frames = concatenate(shards)
    part = _read_split(folder, request, len(frames))
    _check_species(frames.numbers, request.species)
    grades = None if request.statistics is None else read_grades(folder / request.statistics)
    predictions, device = _predict(folder, request, frames)
    complaint = ""
    if request.fit_grades:
        grades, complaint = _fit(folder, request, frames, predictions, part)
    novelty = None if grades is None else grades.novelty(_features(predictions), frames.numbers)
    (folder / PREDICTIONS).write_bytes(
        write_predictions(predictions, np.full(len(frames), Part.UNUSED) if part is None else part, novelty)
    )
    reference = labels_at(frames, request.fidelities)
    if not reference.labelled.any():
        print(
            f"no labels to compare: the potential predicts {list(request.fidelities)}, the frames have labels at "
            f"{[frames.fidelities[i] for i in np.unique(frames.fidelity) if i != NONE]}"
        )
    reports = compare_parts(reference, predictions, None if part is None else _compared(frames, request, part))
    _print_table(reports)
    return {
        "status": "finished",
        "errors": {name: report.as_dict() for name, report in reports.items()},
        "fidelities": {
            name: compare(reference, predictions, reference.fidelity == index).as_dict()
            for index, name in enumerate(reference.fidelities)
            if (reference.fidelity == index).any()
        },
        "failures": [
            {"frame": int(row), "failure": Failure(int(predictions.failure[row])).label}
            for row in np.flatnonzero(predictions.failure)
        ],
        "n_frames": len(frames),
        "grades": {"fitted": request.fit_grades and not complaint, "message": complaint},
        "device": device,
        "mode": request.mode,
        "wall_s": round(time.perf_counter() - started, 3),
    }


def _predict(folder: Path, request: EvaluateRequest, frames: Frames) -> tuple[Predictions, str]:
    from aiida_mlip.workers.inference import energy_shifts, predict

    began = time.perf_counter()
    features = request.fit_grades or request.statistics is not None
    try:
        model = _load(folder, request, features=features)
    except (FileFormatError, ExternalProgramError) as error:
        raise _ModelError(str(error)) from error
    print(f"model loaded on {model.device} in {time.perf_counter() - began:.1f} s", flush=True)
    levels = _levels(frames, request)
    predictions = predict(
        model,
        frames,
        fidelity=np.maximum(levels, 0) if len(request.fidelities) > 1 else None,
        atoms_per_batch=request.atoms_per_batch,
        features=features and model.feature_field is not None,
        progress=_Clock(len(frames)),
    )
    energy = predictions.energy
    for index, name in enumerate(request.fidelities):
        if name in request.energy_shifts:
            shift = energy_shifts(frames, request.energy_shifts[name])
            energy = np.where(np.maximum(levels, 0) == index, energy + shift, energy)
    return replace(predictions, energy=energy), str(model.device)


def _load(folder: Path, request: EvaluateRequest, *, features: bool) -> LoadedModel:
    """The model; a model without features is no reason to do nothing where grades are only to be fitted."""
    from aiida_mlip.workers.model_loading import load_model

    def load(*, features: bool) -> LoadedModel:
        return load_model(
            folder / request.model,
            device=request.device,
            mode=request.mode,
            expected_sha256=request.sha256,
            features=features,
        )

    try:
        return load(features=features)
    except InvalidInputError:
        if not features or request.statistics is not None:
            raise
        return load(features=False)


def _fit(
    folder: Path, request: EvaluateRequest, frames: Frames, predictions: Predictions, part: np.ndarray | None
) -> tuple[Grades | None, str]:
    """Grades on the training rows that could be predicted, written to their file; or None, and why."""
    began = time.perf_counter()
    rows = predictions.failure == Failure.NONE
    if part is not None:
        rows &= part == Part.TRAIN
    atoms = rows[frames.atom_rows()]
    try:
        grades = fit_grades(_features(predictions)[atoms], frames.numbers[atoms], seed=request.seed)
    except (InvalidInputError, np.linalg.LinAlgError) as error:
        print(f"no grades: {error}", flush=True)
        return None, str(error)
    (folder / GRADES).write_bytes(write_npz(grades.arrays()))
    print(f"grades fitted to {int(atoms.sum())} atoms in {time.perf_counter() - began:.1f} s", flush=True)
    return grades, ""


def _features(predictions: Predictions) -> np.ndarray:
    """(a, d) features; a model is loaded with them where they are needed."""
    if predictions.features is None:
        raise InvalidInputError("the potential gave no features")
    return predictions.features


def _levels(frames: Frames, request: EvaluateRequest) -> np.ndarray:
    """(n,) index into the potential's fidelities to predict for each frame."""
    names = list(request.fidelities)
    if request.fidelity is not None and request.fidelity not in names:
        raise InvalidInputError(f"fidelity {request.fidelity!r} is none of the potential's: {names}")
    default = names.index(request.fidelity) if request.fidelity is not None else NONE
    table = np.array([names.index(name) if name in names else default for name in frames.fidelities] + [default])
    return table[frames.fidelity]


def _compared(frames: Frames, request: EvaluateRequest, part: np.ndarray) -> np.ndarray:
    """(n,) parts without the rows whose labels are at other levels of theory, if there are any at the potential's."""
    here = np.array([name in request.fidelities for name in frames.fidelities] + [True])[frames.fidelity]
    return np.where(here, part, Part.UNUSED) if (here & (frames.fidelity != NONE)).any() else part


def _read_frames(path: Path) -> Frames:
    try:
        with path.open("rb") as stream:
            return read_shard(stream, source=path.name)
    except OSError as error:
        raise FileFormatError(f"{path.name}: cannot be read ({error.strerror})") from error


def _read_split(folder: Path, request: EvaluateRequest, n: int) -> np.ndarray | None:
    if request.split is None:
        return None
    part = read_npy(folder / request.split)
    if part.shape != (n,):
        raise InvalidInputError(f"{request.split} has shape {part.shape}, expected one code for each of {n} frames")
    return np.asarray(part, dtype=np.int8)


def _check_species(numbers: np.ndarray, species: Sequence[str] | None) -> None:
    """Refuse uncovered elements before torch is even imported."""
    from ase.data import chemical_symbols

    present = [chemical_symbols[number] for number in np.unique(numbers)]
    if species is not None and (missing := [symbol for symbol in present if symbol not in species]):
        raise SpeciesError(f"the potential does not cover {', '.join(missing)}; it covers {', '.join(species)}")


def _print_table(reports: dict[str, ErrorReport]) -> None:
    print(f"{'part':<6} {'frames':>7} {'E RMSE':>12} {'F MAE':>10} {'F RMSE':>10} {'F rel.':>8} {'S RMSE':>9}")
    print(f"{'':<6} {'':>7} {'meV/atom':>12} {'eV/Å':>10} {'eV/Å':>10} {'':>8} {'GPa':>9}")
    for name, r in reports.items():
        energy = None if r.energy_rmse_ev_per_atom is None else 1e3 * r.energy_rmse_ev_per_atom
        numbers = (
            (energy, "12.2f"),
            (r.force_mae_ev_per_ang, "10.4f"),
            (r.force_rmse_ev_per_ang, "10.4f"),
            (r.force_rmse_relative, "8.1%"),
            (r.stress_rmse_gpa, "9.3f"),
        )
        cells = [f"{'-':>{spec.split('.')[0]}}" if value is None else f"{value:{spec}}" for value, spec in numbers]
        print(f"{name:<6} {r.n_frames:>7} {' '.join(cells)}")


def _give_up(folder: Path, reason: Reason, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    _write_json(folder / ANSWER, {"status": "failed", "reason": reason, "message": message})
    return 1


def _write_json(path: Path, data: dict[str, Any]) -> None:
    """Write completely or not at all: a killed job leaves no half answer."""
    if not path.parent.is_dir():
        return
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(draft, path)  # noqa: PTH105 - the atomic call is the point


if __name__ == "__main__":
    raise SystemExit(main())
