"""The program aiida-mlip-explore, run for real: physics of each kind, exact resumes, limits, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.build import bulk

from aiida_mlip.io.explore import ExploreReport, ExploreRequest, ExploreSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Frames, from_ase

TESTS = Path(__file__).parents[1]
EMT_FORCES = {"calculator": "ase.calculators.emt.EMT"}


def prepare(folder: Path, structures, engine_input=None, **keys) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {
        name: keys.pop(name) for name in ("max_seconds", "checkpoint_seconds", "restart_stopped") if name in keys
    }
    spec = ExploreSpec.model_validate({"forces": EMT_FORCES, "record_every": 10, **keys})
    request = ExploreRequest(spec=spec, engine_input="commands.in" if engine_input else None, **settings)
    (folder / "input.json").write_text(request.model_dump_json())
    frames = structures if isinstance(structures, Frames) else from_ase(structures)
    (folder / "structures.npz").write_bytes(write_shard(frames))
    if engine_input:
        (folder / "commands.in").write_text(engine_input)
    return folder


def report(folder: Path) -> ExploreReport:
    return ExploreReport.model_validate_json((folder / "output.json").read_text())


def frames(folder: Path, name: str = "trajectory.npz") -> Frames:
    with (folder / name).open("rb") as handle:
        return read_shard(handle)


def series(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "series.npz") as arrays:
        return dict(arrays)


def copper(repeat=2, rattle=0.05):
    atoms = bulk("Cu", cubic=True).repeat(repeat)
    atoms.rattle(rattle, seed=0)
    return atoms


def md(*segments, timestep_fs=4.0, **keys):
    return {"kind": "md", "md": {"timestep_fs": timestep_fs, "schedule": list(segments)}, **keys}
