"""Do chosen frames teach more than random ones? Copper with EMT as the teacher, out of the training domain.

    python benchmarks/bench_selection_retrain.py [folder] [--add 50] [--seeds 3]

A committee trained on bulk copper at 300 K meets a pool of 300 frames far outside: surfaces, compressed, hot. 50 of
them are added to the training set, once by greedy MaxDet weighted with the calibrated error of the committee, once at
random, and a potential is trained from scratch on the 250 frames. Force errors on 90 other frames of the same kinds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.selection.greedy import farthest_points, greedy_maxdet, known_precision
from aiida_mlip.kernel.selection.pool import Budget, Candidates
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import emt_copper

#: Largest weight of an environment's error, in units of the select threshold.
MOST_WEIGHT = 3.0


@dataclass(frozen=True)
class Asked:
    """Predictions of every member of the committee."""

    train: list[Predictions]
    val: list[Predictions]
    pool: list[Predictions]


def ask(packages, *parts: Frames) -> Asked:
    columns: list[list[Predictions]] = []
    for package in packages:
        model = load_model(package, device="cpu", features=True)
        columns.append([predict(model, frames, features=True) for frames in parts])
    return Asked(*(list(column) for column in zip(*columns, strict=True)))


def error_weights(asked: Asked, data: emt_copper.CopperData, pool: Frames) -> np.ndarray:
    """w_i = min(û_i / τ, 3) with τ twice the validation error."""
    forces = np.array([one.forces for one in asked.val])
    calibration = calibrate(force_deviation(forces), forces.mean(axis=0) - data.val.forces, data.val.numbers)
    bound = calibration.bound(force_deviation(np.array([one.forces for one in asked.pool])), pool.numbers)
    return np.minimum(bound / (2 * calibration.force_rmse_validation), MOST_WEIGHT)


def choose(method: str, asked: Asked, weights: np.ndarray, pool: Frames, *, member: int, count: int) -> np.ndarray:
    """Rows of the pool."""
    if method == "random":
        return np.random.default_rng(100 + member).permutation(len(pool))[:count]
    known, features = asked.train[member].features, asked.pool[member].features
    if method == "maxdet":
        candidates = Candidates(features, groups=pool.atom_rows(), weights=weights)
        return greedy_maxdet(candidates, Budget(count), precision=known_precision(known)).groups
    scale = known.std(axis=0)
    candidates = Candidates(features / scale, groups=pool.atom_rows())
    return farthest_points(candidates, Budget(count), known=known / scale).groups


def errors(package: Path, data: emt_copper.CopperData) -> dict[str, float]:
    """Root mean square errors of force components (eV/Å), over all frames out of the domain and by region."""
    difference = predict(load_model(package, device="cpu"), data.test).forces - data.test.forces
    region = data.atom_region
    rms = {name: float(np.sqrt(np.mean(difference[region == i] ** 2))) for i, name in enumerate(emt_copper.REGIONS)}
    return {**rms, "out of domain": float(np.sqrt(np.mean(difference[region > 0] ** 2)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="keep committee and trainings here (default: temporary)")
    parser.add_argument("--add", type=int, default=50)
    parser.add_argument("--pool", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["random", "maxdet"], choices=["random", "maxdet", "fps"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, arguments.folder or Path(temporary))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    committee = emt_copper.committee(folder)
    data, pool = committee.data, emt_copper.ood_frames(arguments.pool, seed=1000)
    asked = ask(committee.packages, data.train, data.val, pool)
    weights = error_weights(asked, data, pool)
    kind = np.repeat(np.arange(3), len(pool) // 3)
    results: dict[str, list[dict[str, float]]] = {}
    for member in range(arguments.seeds):
        for method in arguments.methods:
            rows = choose(method, asked, weights, pool, member=member, count=arguments.add)
            target = folder / f"{method}-{arguments.add}-{member}"
            package = target / "model.nequip.zip"
            start = time.perf_counter()
            if not package.exists():
                train = concatenate([data.train, pool.take(np.sort(rows))])
                emt_copper.train_one(target, train, data.val, member=member)
            found = errors(package, data)
            results.setdefault(method, []).append(found)
            print(
                f"seed {member} {method}: surface/compressed/hot {np.bincount(kind[rows], minlength=3).tolist()}, "
                + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                + f" eV/Å ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    print("\n| added | " + " | ".join([*emt_copper.REGIONS, "out of domain"]) + " |\n|" + "---|" * 6)
    print("| nothing | " + " | ".join(f"{value:.3f}" for value in errors(committee.packages[0], data).values()) + " |")
    means = {}
    for method, rows in results.items():
        means[method] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        print(f"| {arguments.add} {method} | " + " | ".join(f"{v:.3f}" for v in means[method].values()) + " |")
    (folder / "retrain.json").write_text(json.dumps(results, indent=1))
    for method in arguments.methods[1:]:
        ratio = means[method]["out of domain"] / means["random"]["out of domain"]
        print(f"{method} / random, out of domain: {ratio:.3f}")


if __name__ == "__main__":
    main()
