"""Watched runs with the EMT copper committee: a request with grades, the other members, and their calibration."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from emt_copper import CopperCommittee

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.explore import ExploreRequest, ExploreSpec, Member
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.calibration import Calibration, calibrate
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model


@dataclass(frozen=True)
class Watched:
    """A committee with what a watch needs to know of it."""

    packages: tuple[Path, ...]
    grades: Grades
    calibration: Calibration


def watched(committee: CopperCommittee, *, members: int = 4) -> Watched:
    """Grades of the first member on the training frames, calibration of so many on the held-out ones."""
    data = committee.data
    models = [load_model(package, device="cpu", features=True) for package in committee.packages[:members]]
    features = predict(models[0], data.train, features=True).features
    forces = np.array([predict(model, data.val).forces for model in models])
    calibration = calibrate(force_deviation(forces), forces.mean(axis=0) - data.val.forces, data.val.numbers)
    return Watched(tuple(committee.packages), fit_grades(features, data.train.numbers), calibration)


def prepare_watched(folder: Path, source: Watched, structures: Frames, *, members: int = 0, **keys: Any) -> Path:
    """A folder that ``aiida-mlip-explore`` can run in: the first member drives, ``members`` others judge."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "structures.npz").write_bytes(write_shard(structures))
    (folder / "statistics.npz").write_bytes(write_npz(source.grades.arrays()))
    files = ["model.nequip.zip", *(f"member_{i}.nequip.zip" for i in range(members))]
    for name, package in zip(files, source.packages, strict=False):
        shutil.copy(package, folder / name)
    from aiida_mlip.io.model_package import sha256_of

    def digest(name: str) -> str:
        with (folder / name).open("rb") as stream:
            return sha256_of(stream)

    names = ("restart_stopped", "max_seconds", "checkpoint_seconds")
    settings = {name: keys.pop(name) for name in names if name in keys}
    request = ExploreRequest(
        spec=ExploreSpec.model_validate(keys),
        sha256=digest(files[0]),
        species=("Cu",),
        graded=True,
        committee=tuple(Member(file=name, sha256=digest(name)) for name in files[1:]),
        calibration=source.calibration.as_dict() if members else None,
        **settings,
    )
    (folder / "input.json").write_text(request.model_dump_json())
    return folder
