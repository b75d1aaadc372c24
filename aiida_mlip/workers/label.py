"""``aiida-mlip-label``: label frames with an ASE calculator, on the compute node.

Reads ``input.json`` and ``frames.npz`` in the working directory, imports the calculator it names and calls it with the
arguments it gives. Writes ``labels.npz`` and ``output.json`` every few seconds and at the end, each in one atomic
step, so that a job ended by the walltime keeps the frames that were finished. A frame that fails is a row with a class.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pydantic import ValidationError

from aiida_mlip.errors import MlipError
from aiida_mlip.io.label_messages import (
    FRAMES_FILE,
    INPUT_FILE,
    LABELS_FILE,
    OUTPUT_FILE,
    LabelReport,
    LabelRequest,
)
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.cells import has_vacuum
from aiida_mlip.kernel.failures import classify
from aiida_mlip.kernel.frames import Failure, Frames

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


@dataclass
class Columns:
    """Labels of the frames finished so far, one entry per frame."""

    energy: list[float] = field(default_factory=list)
    forces: list[np.ndarray] = field(default_factory=list)
    stress: list[np.ndarray] = field(default_factory=list)
    failure: list[int] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    messages: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cost)


def load_calculator(path: str, arguments: dict[str, Any]) -> Calculator:
    """Import a calculator class or factory by its dotted path and call it: this runs the code of that package.

    :raises ImportError: there is no such module.
    :raises AttributeError: the module has no such name.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments)


def label_frames(
    frames: Frames,
    request: LabelRequest,
    *,
    calculator: Calculator,
    checkpoint: Callable[[Columns], None],
    cores: int = 1,
) -> Columns:
    """Label frames one by one.

    :param frames: rows to label.
    :param request: which labels, and how often to write.
    :param calculator: the one calculator for all of them.
    :param checkpoint: called with what is finished.
    :param cores: that the cost of a frame is counted for.
    """
    columns = Columns()
    last = time.monotonic()
    try:
        for row in range(len(frames)):
            start = time.monotonic()
            _label_one(frames, row, request, calculator, columns)
            now = time.monotonic()
            columns.cost.append((now - start) * cores)
            if now - last >= request.checkpoint_seconds:
                checkpoint(columns)
                print(f"{row + 1}/{len(frames)} frames, {len(columns.messages)} failed", flush=True)
                last = now
    finally:
        # also when the scheduler ends the job
        checkpoint(columns)
        print(f"{len(columns)}/{len(frames)} frames, {len(columns.messages)} failed", flush=True)
    return columns


def labelled(frames: Frames, fidelity: str, columns: Columns) -> Frames:
    """The finished frames as rows with labels and failure classes."""
    n = len(columns)  # a frame interrupted half-way has no cost yet
    done = frames.take(np.arange(n))
    forces = columns.forces[:n] or [np.zeros((0, 3))]
    return done.with_columns(
        energy=np.array(columns.energy[:n], dtype="<f8"),
        forces=np.concatenate(forces),
        stress=np.array(columns.stress[:n], dtype="<f8").reshape(n, 3, 3),
        failure=np.array(columns.failure[:n], dtype="|u1"),
        cost=np.array(columns.cost[:n], dtype="<f4"),
        label_row=np.arange(n, dtype="<i4"),
        fidelity=np.zeros(n, dtype="<i2"),
        fidelities=(fidelity,),
    )


def _label_one(frames: Frames, row: int, request: LabelRequest, calculator: Calculator, columns: Columns) -> None:
    """Append the labels of one frame, or the class of its failure."""
    atoms = frames.to_ase(row)
    atoms.calc = calculator
    energy, forces, stress = np.nan, np.full((len(atoms), 3), np.nan), np.full((3, 3), np.nan)
    failure, message = Failure.NONE, ""
    try:
        energy = _energy(atoms)
        if "forces" in request.labels:
            forces = np.array(atoms.get_forces(), dtype="<f8")
        if "stress" in request.labels and atoms.pbc.all() and not has_vacuum(atoms.positions, atoms.cell.array):
            stress = np.array(atoms.get_stress(voigt=False), dtype="<f8")
        if not np.isfinite(energy) or ("forces" in request.labels and not np.isfinite(forces).all()):
            failure, message = Failure.IMPLAUSIBLE, f"energy {energy} eV or forces are not finite"
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # noqa: BLE001  # any calculator may raise anything; the row says what
        message = f"{type(error).__name__}: {error}"
        failure = _class_of(error)
    if failure:
        energy, forces, stress = np.nan, np.full((len(atoms), 3), np.nan), np.full((3, 3), np.nan)
        columns.messages[row] = message[:300]
        calculator.reset()  # nothing of this frame is to survive into the next
    columns.energy.append(energy)
    columns.forces.append(forces)
    columns.stress.append(stress)
    columns.failure.append(int(failure))


def _energy(atoms: Atoms) -> float:
    """Energy whose derivative the forces are, where the calculator tells it apart."""
    from ase.calculators.calculator import PropertyNotImplementedError

    try:
        return float(atoms.get_potential_energy(force_consistent=True))
    except (PropertyNotImplementedError, KeyError):
        return float(atoms.get_potential_energy())


def _class_of(error: Exception) -> Failure:
    from ase.calculators.calculator import SCFError

    if isinstance(error, SCFError):
        return Failure.SCF_NOT_CONVERGED
    found = classify(None, f"{type(error).__name__}: {error}")
    return found if found in (Failure.OUT_OF_MEMORY, Failure.SCF_NOT_CONVERGED, Failure.WALLTIME) else Failure.CRASHED


def _write(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old bytes or the new ones."""
    scratch = path.with_suffix(path.suffix + ".part")
    scratch.write_bytes(data)
    scratch.replace(path)


def _report(report: LabelReport) -> None:
    _write(Path(OUTPUT_FILE), report.model_dump_json(indent=1).encode())


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    """Turn the scheduler's signal into an exception, so that what is finished gets written."""
    raise SystemExit(128 + number)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1") or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program in the working directory.

    :returns: 0, or 2 when it could not do anything at all (``output.json`` says why).
    """
    if any(argument in ("-h", "--help") for argument in (sys.argv[1:] if arguments is None else arguments)):
        print(__doc__)
        return 0
    signal.signal(signal.SIGTERM, _terminated)
    try:
        request = LabelRequest.model_validate(json.loads(Path(INPUT_FILE).read_text(encoding="utf-8")))
        with Path(FRAMES_FILE).open("rb") as handle:
            frames = read_shard(handle, source=FRAMES_FILE)
    except (OSError, ValueError, ValidationError, MlipError) as error:
        _report(LabelReport(n_frames=0, error=f"input: {error}"))
        return 2
    try:
        calculator = load_calculator(request.calculator, request.arguments)
    except Exception as error:  # noqa: BLE001  # importing a package, or building its calculator, may raise anything
        _report(LabelReport(n_frames=len(frames), error=f"{request.calculator}: {type(error).__name__}: {error}"))
        return 2

    def checkpoint(done: Columns) -> None:
        finished = labelled(frames, request.fidelity, done)
        _write(Path(LABELS_FILE), write_shard(finished))
        _report(LabelReport(n_frames=len(frames), n_done=len(finished), messages=done.messages))

    label_frames(frames, request, calculator=calculator, checkpoint=checkpoint, cores=_threads())
    return 0


if __name__ == "__main__":
    sys.exit(main())
