"""Scan of one large frame: grade every atom, keep the histogram and the surroundings of the worst atoms.

The frame is cut into slabs with a halo (:mod:`aiida_mlip.kernel.slabs`); each is one call of the model. What is kept
does not grow with the frame, unless the grade of every atom was asked for. The state is saved now and then, in one
step, so that a scan that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.evaluation import read_grades
from aiida_mlip.io.large_frames import LargeFrame, read_large_frame
from aiida_mlip.io.scan import CANDIDATES, ENVIRONMENTS, NOVELTY, PARTIAL, ScanRequest
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.fragments.centres import choose_centres
from aiida_mlip.kernel.frames import frame_id, from_arrays
from aiida_mlip.kernel.grade_histogram import GradeHistogram
from aiida_mlip.kernel.slabs import Slab, SlabDecomposition
from aiida_mlip.workers.model_loading import load_model
from aiida_mlip.workers.run_files import replace_file
from aiida_mlip.workers.scan_fragments import cut_fragments
from aiida_mlip.workers.slab_model import SlabModel, message_passing_layers

#: Atoms that are remembered as candidates, for each that may be written.
_SHORTLIST: Final[int] = 50
#: Seconds between progress lines.
_PROGRESS_EVERY: Final[float] = 10.0


@dataclass(frozen=True)
class Worst:
    """Atoms above the threshold with the largest grades, in the order of the frame.

    :param atoms: (k,) atoms of the frame.
    :param novelty: (k,) γ.
    :param features: (k, d).
    """

    atoms: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    novelty: np.ndarray = field(default_factory=lambda: np.zeros(0))
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def joined(self, other: Worst, most: int) -> Worst:
        """The ``most`` worst of these and others; which, does not depend on how they were grouped."""
        if not len(self.atoms):
            return other.worst(most)
        parts = (np.concatenate([mine, getattr(other, name)]) for name, mine in vars(self).items())
        return Worst(*parts).worst(most)

    def worst(self, most: int) -> Worst:
        """The ``most`` worst; NaN and infinity count as worst of all, and of equal ones the first."""
        rank = np.where(np.isfinite(self.novelty), self.novelty, np.inf)
        keep = np.lexsort((self.atoms, -rank))[:most]
        return self.take(keep[np.argsort(self.atoms[keep])])

    def take(self, rows: np.ndarray) -> Worst:
        """Some of them, in the order of ``rows``."""
        return Worst(self.atoms[rows], self.novelty[rows], self.features[rows])


@dataclass
class State:
    """Of a scan: what it found in the first ``done`` slabs."""

    histogram: GradeHistogram
    worst: Worst = field(default_factory=Worst)
    done: int = 0
    energy: float = 0.0
    atoms_evaluated: int = 0


@dataclass(frozen=True)
class Target:
    """What is scanned: the frame, its slabs, and the model."""

    frame: LargeFrame
    slabs: SlabDecomposition
    model: SlabModel
    layers: int
    types: np.ndarray


def load_target(folder: Path, request: ScanRequest, frame: LargeFrame) -> Target:
    """Model, grades and slabs of a request; **executes code from the package**.

    :raises FileFormatError: a package or grades that are truncated, changed or none.
    :raises InvalidInputError: values that do not fit the frame or the model.
    :raises SpeciesError: an element that the model does not cover.
    :raises ExternalProgramError: the package could not be compiled.
    """
    grades = read_grades(folder / request.statistics)
    package = folder / request.model
    loaded = load_model(
        package,
        device=request.device,
        mode=request.mode,
        expected_sha256=request.sha256,
        features=True,
        frames="one",
        derivatives=False,
    )
    layers = request.layers or message_passing_layers(package, loaded)
    if (request.radius_ang or 0.0) > layers * loaded.cutoff_ang:
        raise InvalidInputError(
            f"radius_ang: at most the {layers * loaded.cutoff_ang:g} Å that the model sees, got {request.radius_ang:g}"
        )
    slabs = SlabDecomposition(
        frame.positions,
        frame.cell,
        frame.pbc,
        cutoff=loaded.cutoff_ang,
        layers=layers,
        max_atoms=request.max_atoms,
    )
    model = SlabModel(loaded, grades)
    return Target(frame, slabs, model, layers, model.types_of(frame.numbers))


def read_frame(folder: Path, request: ScanRequest) -> LargeFrame:
    """The frame of a request."""
    return read_large_frame(
        folder / request.file,
        frame=request.frame,
        species=request.type_species,
        file_format=request.file_format,
        atom_style=request.atom_style,
    )


def scan(folder: Path, request: ScanRequest, target: Target, *, read_s: float = 0.0) -> dict[str, Any]:
    """Grade all atoms, write the candidates, return the answer.

    :param read_s: seconds it took to read the frame, for the answer.
    :raises InvalidInputError: atoms that the model cannot be evaluated for.
    """
    started = time.perf_counter()
    key = _key(folder, request, target.frame)
    state = _resume(folder, request, key)
    resumed = state.done
    novelty = _novelty_file(folder, request, len(target.frame.numbers), resumed)
    saved = spoken = started
    for number, slab in enumerate(target.slabs):
        if number < state.done:
            continue
        _grade(slab, state, target, request, novelty)
        now = time.perf_counter()
        if now - saved >= request.save_every_s:
            saved = now
            _save(folder, state, key, novelty)
        if now - spoken >= _PROGRESS_EVERY:
            spoken = now
            _tell(state, len(target.frame.numbers), now - started)
    wall = time.perf_counter() - started
    chosen = _choose(state.worst, target, request)
    cut = {}
    if request.fragments is not None and novelty is not None:
        _save(folder, state, key, novelty)
        cut = cut_fragments(folder, request, target.frame, novelty, target.model.grades)
    _write(folder, request, chosen, target, novelty)
    (folder / PARTIAL).unlink(missing_ok=True)
    return _answer(request, target, state, chosen) | cut | {
        "resumed_slabs": resumed,
        "seconds": {"read": round(read_s, 3), **{k: round(v, 3) for k, v in target.model.seconds.items()},
                    "scan": round(wall, 3)},
        "atoms_per_s": round((state.histogram.total if not resumed else 0) / wall, 1) or None,
    }  # fmt: skip


def _grade(slab: Slab, state: State, target: Target, request: ScanRequest, novelty: np.ndarray | None) -> None:
    """One slab: its histogram, and the worst of its atoms."""
    found = target.model(slab, target.types[slab.atoms])
    own = slab.atoms[: slab.n_core]
    state.histogram.add(found.novelty, target.frame.numbers[own], own)
    state.energy += found.energy
    state.atoms_evaluated += len(slab.atoms)
    if novelty is not None:
        novelty[own] = found.novelty
    candidates = np.flatnonzero(~(found.novelty <= request.threshold))
    if len(candidates):
        slab_worst = Worst(own[candidates], found.novelty[candidates], found.features[candidates])
        state.worst = state.worst.joined(slab_worst, _SHORTLIST * request.max_candidates)
    state.done += 1


def _choose(worst: Worst, target: Target, request: ScanRequest) -> Worst:
    """The worst of all first, none too close to another one."""
    if not len(worst.atoms):
        return worst
    centres = choose_centres(
        worst.novelty,
        target.frame.positions[worst.atoms],
        target.frame.cell,
        target.frame.pbc,
        threshold=request.threshold,
        separation=_separation(request, target),
        limit=request.max_candidates,
    )
    return worst.take(centres)


def _separation(request: ScanRequest, target: Target) -> float:
    return request.separation_ang or target.model.model.cutoff_ang


def _write(folder: Path, request: ScanRequest, chosen: Worst, target: Target, novelty: np.memmap | None) -> None:
    """Files of the candidates, and of all grades where they were asked for."""
    frame = target.frame
    if novelty is not None:
        novelty.flush()
        if request.write_novelty:
            os.replace(novelty.filename, folder / NOVELTY)  # type: ignore[arg-type]  # noqa: PTH105 - atomic; made from a path
        else:
            _novelty_draft(folder).unlink()
    if not len(chosen.atoms):
        return
    parent = np.frombuffer(frame_id(frame.numbers, frame.positions, frame.cell, frame.pbc), dtype=np.uint8)
    radius = request.radius_ang or target.layers * target.model.model.cutoff_ang
    around = [target.slabs.around(int(atom), radius) for atom in chosen.atoms]
    atoms = np.concatenate([part[0] for part in around])
    shard = from_arrays(
        natoms=np.array([len(part[0]) for part in around]),
        numbers=frame.numbers[atoms],
        positions=np.concatenate([frame.positions[c] + part[1] for c, part in zip(chosen.atoms, around, strict=True)]),
        parent_id=np.tile(parent, (len(chosen.atoms), 1)),
        group_id=np.tile(parent, (len(chosen.atoms), 1)),
        parent_atom=atoms.astype(np.int32),
        generator=np.zeros(len(chosen.atoms)),
        generators=("scan",),
    )
    replace_file(folder / CANDIDATES, write_shard(shard))
    columns = {
        "atom": chosen.atoms,
        "id": chosen.atoms if frame.ids is None else frame.ids[chosen.atoms],
        "number": frame.numbers[chosen.atoms],
        "position": frame.positions[chosen.atoms],
        "novelty": chosen.novelty,
        "features": chosen.features,
    }
    replace_file(folder / ENVIRONMENTS, write_npz(columns))


def _answer(request: ScanRequest, target: Target, state: State, chosen: Worst) -> dict[str, Any]:
    histogram = state.histogram
    return {
        "status": "finished",
        "n_atoms": len(target.frame.numbers),
        "frame": target.frame.index,
        "n_slabs": state.done,
        "atoms_evaluated": state.atoms_evaluated,
        "layers": target.layers,
        "cutoff_ang": target.model.model.cutoff_ang,
        "threshold": request.threshold,
        "above_one": histogram.above(1.0),
        "above_threshold": histogram.above(request.threshold),
        "median_novelty": histogram.quantile(0.5),
        "histogram": histogram.as_dict(),
        "n_candidates": len(chosen.atoms),
        "energy_ev": state.energy,
        "device": str(target.model.model.device),
        "mode": request.mode,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


# -- state -----------------------------------------------------------------------------------------------------


def _key(folder: Path, request: ScanRequest, frame: LargeFrame) -> str:
    """What a saved state must agree with: the request, the frame, the package and the grades."""
    sha = hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode())
    sha.update(frame_id(frame.numbers, frame.positions, frame.cell, frame.pbc))
    for name in (request.model, request.statistics):
        with (folder / name).open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def _save(folder: Path, state: State, key: str, novelty: np.memmap | None) -> None:
    if novelty is not None:
        novelty.flush()
    meta = {"key": key, "done": state.done, "energy": state.energy, "atoms_evaluated": state.atoms_evaluated,
            "histogram": state.histogram.as_dict()}  # fmt: skip
    arrays = {f"worst_{name}": value for name, value in vars(state.worst).items()}
    replace_file(folder / PARTIAL, write_npz({"meta": np.array(json.dumps(meta)), **arrays}))


def _resume(folder: Path, request: ScanRequest, key: str) -> State:
    """State of an earlier run of the same scan; a new one where there is none, or it belongs to another."""
    fresh = State(GradeHistogram(top=request.histogram_top, width=request.histogram_width))
    lost = _keeps_novelty(request) and not _novelty_draft(folder).exists()
    if lost or not (folder / PARTIAL).exists():
        return fresh
    try:
        arrays = read_npz(folder / PARTIAL)
        meta: Mapping[str, Any] = json.loads(str(arrays["meta"]))
        if meta["key"] != key:
            print("the saved state belongs to another scan; starting afresh", flush=True)
            return fresh
        return State(
            histogram=GradeHistogram.from_dict(meta["histogram"]),
            worst=Worst(**{name: arrays[f"worst_{name}"] for name in vars(Worst())}),
            done=int(meta["done"]),
            energy=float(meta["energy"]),
            atoms_evaluated=int(meta["atoms_evaluated"]),
        )
    except (FileFormatError, KeyError, ValueError) as error:
        print(f"the saved state cannot be read ({error}); starting afresh", flush=True)
        return fresh


def _novelty_file(folder: Path, request: ScanRequest, n: int, done: int) -> np.memmap | None:
    """Grades of all atoms on disk, where they were asked for or fragments are."""
    if not _keeps_novelty(request):
        return None
    mode = "r+" if done else "w+"
    shape = None if done else (n,)
    array = np.lib.format.open_memmap(_novelty_draft(folder), mode=mode, dtype=np.float32, shape=shape)
    if mode == "w+":
        array[:] = np.nan
    return array


def _keeps_novelty(request: ScanRequest) -> bool:
    return request.write_novelty or request.fragments is not None


def _novelty_draft(folder: Path) -> Path:
    return folder / f"{NOVELTY}.partial"


def _tell(state: State, n: int, elapsed: float) -> None:
    done = state.histogram.total
    left = elapsed / max(done, 1) * (n - done)
    print(f"{done}/{n} atoms, {elapsed:.0f} s, {left:.0f} s to go", flush=True)
