"""Predictions of a loaded model for many frames, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np

from aiida_mlip.errors import InvalidInputError, SpeciesError
from aiida_mlip.kernel.frames import Failure, Frames
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.workers.graphs import Graph, batched, graph, on_device
from aiida_mlip.workers.model_loading import LoadedModel

#: What torch and Python say when memory runs out.
_MEMORY_WORDS: Final[tuple[str, ...]] = ("out of memory", "can't allocate memory", "cannot allocate memory")
_EMPTY: Final[dict[str, tuple[int, ...]]] = {"energy": (), "forces": (3,), "stress": (3, 3)}

Batch = dict[str, np.ndarray]


def check_species(model: LoadedModel, frames: Frames) -> None:
    """Make sure that the model knows every element of the frames.

    :raises SpeciesError: it does not; names the missing ones and the first frame of each.
    """
    from ase.data import chemical_symbols

    missing = {}
    for number in np.unique(frames.numbers):
        symbol = chemical_symbols[number]
        if symbol not in model.type_names:
            atom = int(np.argmax(frames.numbers == number))
            missing[symbol] = int(np.searchsorted(frames.offsets, atom, side="right") - 1)
    if missing:
        found = ", ".join(f"{symbol} (first in frame {row})" for symbol, row in missing.items())
        raise SpeciesError(f"the model does not cover {found}; it covers {', '.join(model.type_names)}")


def predict(
    model: LoadedModel,
    frames: Frames,
    *,
    fidelity: np.ndarray | None = None,
    atoms_per_batch: int = 1024,
    features: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Energies, forces and stresses of frames.

    A frame that fails is a row with its :class:`Failure`; where memory runs out the batch is halved.

    :param model: see :func:`aiida_mlip.workers.model_loading.load_model`.
    :param frames: n frames.
    :param fidelity: (n,) index of the level of theory to predict, for a model of several.
    :param atoms_per_batch: atoms evaluated at once; a larger frame is a batch of its own.
    :param features: return the per-atom features after the last layer too, from the same calls.
    :param progress: called with the number of frames done.
    :returns: eV, eV/Å, eV/Å³ (tension positive), features (a, d) where asked for; float64. A model without derivatives
        gives NaN for forces and stress.
    :raises InvalidInputError: the batch size is not positive, or the model was loaded without features.
    :raises SpeciesError: an element that the model does not cover.
    """
    if atoms_per_batch < 1:
        raise InvalidInputError(f"atoms_per_batch must be at least 1, got {atoms_per_batch}")
    if features and model.feature_field is None:
        raise InvalidInputError("this model gives no features: load it with features=True")
    check_species(model, frames)
    n = len(frames)
    energy, stress = np.full(n, np.nan), np.full((n, 3, 3), np.nan)
    forces, failure = np.full((frames.n_atoms, 3), np.nan), np.zeros(n, dtype=np.uint8)
    vectors = np.empty((frames.n_atoms, 0)) if features else None
    todo = list(_batches(frames.natoms, atoms_per_batch, model.largest_batch))[::-1]
    done = 0
    while todo:
        rows = todo.pop()
        outcome = _attempt(model, frames, rows, fidelity, features=features)
        if isinstance(outcome, Failure):
            if len(rows) > 1:  # find the frame that spoils the batch, or fit the memory
                half = len(rows) // 2
                todo += [rows[half:], rows[:half]]
                continue
            failure[rows] = outcome
        else:
            atoms = np.concatenate([np.arange(frames.offsets[row], frames.offsets[row + 1]) for row in rows])
            energy[rows], stress[rows], forces[atoms] = outcome["energy"], outcome["stress"], outcome["forces"]
            if vectors is not None:
                if not vectors.shape[1]:
                    vectors = np.full((frames.n_atoms, outcome["features"].shape[1]), np.nan)
                vectors[atoms] = outcome["features"]
        done += len(rows)
        if progress is not None:
            progress(done)
    lost = ~np.isfinite(forces).all(axis=1) if model.derivatives else np.zeros(frames.n_atoms, dtype=bool)
    spoiled = ~np.isfinite(energy) | np.bincount(frames.atom_rows(), weights=lost, minlength=n).astype(bool)
    failure[spoiled & (failure == Failure.NONE)] = Failure.IMPLAUSIBLE
    energy[failure != Failure.NONE] = np.nan
    forces[(failure != Failure.NONE)[frames.atom_rows()]] = np.nan
    stress[(failure != Failure.NONE) | ~frames.pbc.all(axis=1)] = np.nan
    return Predictions(energy=energy, forces=forces, stress=stress, failure=failure, features=vectors)


def energy_shifts(frames: Frames, shifts: Mapping[str, float]) -> np.ndarray:
    """(n,) eV to add to each frame: the sum over its atoms of a number per element.

    :param shifts: eV per atom by chemical symbol; elements not named count 0.
    """
    from ase.data import atomic_numbers

    table = np.zeros(256)
    for symbol, value in shifts.items():
        table[atomic_numbers[symbol]] = value
    return np.bincount(frames.atom_rows(), weights=table[frames.numbers], minlength=len(frames))


def is_out_of_memory(error: Exception) -> bool:
    """Whether it was memory that a model's call lacked."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY_WORDS)


def _batches(natoms: np.ndarray, limit: int, most: int | None) -> Iterator[np.ndarray]:
    """Rows in order, grouped so that a group has at most ``limit`` atoms (or is one frame) and ``most`` frames."""
    start, size = 0, 0
    for row, count in enumerate(natoms.tolist()):
        if row > start and (size + count > limit or row - start == most):
            yield np.arange(start, row)
            start, size = row, 0
        size += count
    if start < len(natoms):
        yield np.arange(start, len(natoms))


def _attempt(
    model: LoadedModel, frames: Frames, rows: np.ndarray, fidelity: np.ndarray | None, *, features: bool
) -> Batch | Failure:
    """Predictions of one batch, or why there are none."""
    try:
        return _evaluate(model, frames, rows, fidelity, features=features)
    except Exception as error:  # noqa: BLE001 - the model is foreign code; the frame's row says that it failed
        if is_out_of_memory(error):
            _free_memory(model)
            return Failure.OUT_OF_MEMORY
        if len(rows) == 1:
            print(f"frame {rows[0]} failed: {type(error).__name__}: {error}", flush=True)
        return Failure.CRASHED


def _evaluate(
    model: LoadedModel, frames: Frames, rows: np.ndarray, fidelity: np.ndarray | None, *, features: bool
) -> Batch:
    padded = [*rows.tolist(), *[int(rows[-1])] * (model.smallest_batch - len(rows))]
    graphs = [_graph(model, frames, row, None if fidelity is None else int(fidelity[row])) for row in padded]
    data = on_device(graphs[0] if model.largest_batch == 1 else batched(graphs), model.device)
    output = model.call(data)
    n, a = len(rows), int(frames.natoms[rows].sum())
    values = {}
    for name, key, size in (("energy", "total_energy", n), ("forces", "forces", a), ("stress", "stress", n)):
        value = output.get(key)
        if value is None or value.numel() == 0:  # no periodic frame in the batch, or no such output
            values[name] = np.full((size, *_EMPTY[name]), np.nan)
            continue
        values[name] = value.detach().cpu().double().numpy().reshape(-1, *_EMPTY[name])[:size]
    if features:
        values["features"] = model.features(data, output).cpu().double().numpy()[:a]
    return values


def _graph(model: LoadedModel, frames: Frames, row: int, fidelity: int | None) -> Graph:
    """One frame as the model's input, on the CPU."""
    part = frames.atom_slice(row)
    return graph(
        frames.numbers[part],
        frames.positions[part],
        frames.cell[row],
        frames.pbc[row],
        types=model.types_of(frames.numbers[part], fidelity),
        cutoff_ang=model.cutoff_ang,
        cutoffs=model.pair_cutoffs,
        fidelity=None if model.n_level_types > 1 else fidelity,
    )


def _free_memory(model: LoadedModel) -> None:
    if getattr(model.device, "type", "cpu") == "cuda":
        import torch

        torch.cuda.empty_cache()
