"""The last trusted frame of every run that is not done, and the report so far: where a later job goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.documents import brief, parse_model
from aiida_mlip.io.explore import ExploreReport

_FIELDS = ("step", "numbers", "positions", "momenta", "cell", "last_selected")


@dataclass(frozen=True)
class Trusted:
    """A frame that passed every check, with all that a run needs to go on from it.

    :param step: steps done.
    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param momenta: (a, 3) in ASE's unit.
    :param cell: (3, 3) Å.
    :param last_selected: step of the last frame that was selected, -1 for none.
    :param engine: what the engine keeps.
    """

    step: int
    numbers: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray
    cell: np.ndarray
    last_selected: int = -1
    engine: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, atoms: Atoms, *, step: int, last_selected: int, engine: Mapping[str, np.ndarray]) -> Trusted:
        """Copy of the present state."""
        return cls(
            step,
            atoms.numbers.copy(),
            atoms.positions.copy(),
            atoms.get_momenta().copy(),
            atoms.cell.array.copy(),
            last_selected,
            {name: np.array(value) for name, value in engine.items()},
        )

    def atoms(self, pbc: np.ndarray) -> Atoms:
        """The frame as atoms with momenta."""
        atoms = Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=pbc)
        atoms.set_momenta(self.momenta)
        return atoms


def write_checkpoint(report: ExploreReport, trusted: Mapping[int, Trusted]) -> bytes:
    """Bytes of a checkpoint.

    :param trusted: by number of the run.
    """
    arrays: dict[str, np.ndarray] = {"report": np.frombuffer(report.model_dump_json().encode(), dtype=np.uint8)}
    for k, frame in trusted.items():
        for name in _FIELDS:
            arrays[f"run{k}.{name}"] = np.asarray(getattr(frame, name))
        for name, value in frame.engine.items():
            arrays[f"run{k}.engine.{name}"] = np.asarray(value)
    return write_npz(arrays)


def read_checkpoint(path: Path) -> tuple[ExploreReport, dict[int, Trusted]]:
    """Report and trusted frames of an earlier job.

    :raises InvalidInputError: not a checkpoint of this program.
    """
    try:
        arrays = read_npz(path)
        report = parse_model(arrays["report"].tobytes(), ExploreReport, source=path.name)
        return report, {k: _trusted(arrays, f"run{k}.") for k in range(len(report.runs)) if f"run{k}.step" in arrays}
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {brief(error)}"
        raise InvalidInputError(f"checkpoint: not one of this program ({path.name}, {why})") from error


def _trusted(arrays: Mapping[str, np.ndarray], prefix: str) -> Trusted:
    found = {name: arrays[prefix + name] for name in _FIELDS}
    engine = {
        name.removeprefix(f"{prefix}engine."): value
        for name, value in arrays.items()
        if name.startswith(f"{prefix}engine.")
    }
    a = found["numbers"].size
    shapes = {"step": (), "last_selected": (), "numbers": (a,), "positions": (a, 3), "momenta": (a, 3), "cell": (3, 3)}
    for name, shape in shapes.items():
        value, kinds = found[name], "f" if name in ("positions", "momenta", "cell") else "iu"
        if value.shape != shape or value.dtype.kind not in kinds or not np.isfinite(value).all():
            raise ValueError(f"{prefix}{name} is {value.dtype} {value.shape}, expected finite numbers {shape}")
    return Trusted(
        step=int(found["step"]),
        numbers=found["numbers"],
        positions=found["positions"],
        momenta=found["momenta"],
        cell=found["cell"],
        last_selected=int(found["last_selected"]),
        engine=engine,
    )
