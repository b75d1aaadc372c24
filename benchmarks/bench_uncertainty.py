"""What uncertainties are worth: every method on copper with EMT as the teacher, beside the published figures.

    python benchmarks/bench_uncertainty.py [folder]

Four small potentials of bulk copper at 300 K (trained here, or kept in the folder); 150 test frames: the same domain,
surfaces, compressed, hot. Methods of one potential are given as the mean over the four, and their range.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matscipy.neighbours import neighbour_list
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture

from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.uncertainty.grades import fit_grades
from aiida_mlip.kernel.uncertainty.scores import auroc, spearman
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import LoadedModel, load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import emt_copper

BAD_EV_PER_ANG = 0.3
#: ALGORITHMS.md, section 2: Spearman ID, Spearman ID+OOD, AUROC of errors, AUROC of surfaces.
PUBLISHED = {
    "committee of 4, force deviation": (0.85, 0.86, 0.95, 0.63),
    "novelty γ, up to 4 clusters": (None,) * 4,
    "novelty γ, 1 cluster (Mahalanobis)": (0.65, 0.72, 0.90, 0.95),
    "Laplace variance, last layer (LLPR)": (0.62, 0.68, 0.90, 0.85),
    "Laplace variance, both layers, pooled": (0.72, 0.76, 0.91, 0.90),
    "nearest neighbour, whitened": (0.77, 0.78, 0.89, 0.97),
    "Gaussian mixture of 8": (0.48, 0.59, 0.78, 0.99),
    "extrapolation grade (MaxVol)": (-0.32, -0.07, 0.60, 0.58),
}


@dataclass
class Member:
    """Forces and features of one potential on train, val, test."""

    forces: dict[str, np.ndarray] = field(default_factory=dict)
    last: dict[str, np.ndarray] = field(default_factory=dict)
    pooled: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0


def ask(package: Path, data: emt_copper.CopperData) -> Member:
    model, member = load_model(package, device="cpu", features=True), Member()
    for name in ("train", "val", "test"):
        frames: Frames = getattr(data, name)
        first = first_layer(model)
        start = time.perf_counter()
        found = predict(model, frames, features=True)
        member.seconds = time.perf_counter() - start
        member.forces[name], member.last[name] = found.forces, found.features
        both = np.concatenate([first(), found.features], axis=1)
        member.pooled[name] = np.concatenate([both, neighbour_mean(frames, both, model.cutoff_ang)], axis=1)
    return member


def first_layer(model: LoadedModel) -> Callable[[], np.ndarray]:
    """Collects the scalars after the first layer of every call from now on; the result is (a, d), and ends it."""
    layer, kept = model.call.model.func.layer0_convnet, []
    width = layer.irreps_out["node_features"].count("0e")
    handle = layer.register_forward_hook(
        lambda _module, _inputs, output: kept.append(output["node_features"][:, :width].detach().double().numpy())
    )

    def collected() -> np.ndarray:
        handle.remove()
        return np.concatenate(kept)

    return collected


def neighbour_mean(frames: Frames, values: np.ndarray, cutoff: float) -> np.ndarray:
    """Mean over the neighbours, weighted by a cosine that ends at the cutoff."""
    parts = []
    for row in range(len(frames)):
        part = frames.atom_slice(row)
        i, j, d = neighbour_list(
            "ijd", positions=frames.positions[part], cell=frames.cell[row], pbc=frames.pbc[row], cutoff=cutoff
        )
        weight = 0.5 * (1 + np.cos(np.pi * d / cutoff))
        total = np.zeros((int(frames.natoms[row]), values.shape[1]))
        np.add.at(total, i, weight[:, None] * values[part][j])
        parts.append(total / np.bincount(i, weight, len(total))[:, None])
    return np.concatenate(parts)


def whiten(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    mean, covariance = train.mean(axis=0), np.cov(train.T)
    covariance += 1e-8 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return lambda values: (values - mean) @ inverse


Score = Callable[[np.ndarray], np.ndarray]


def nearest(train: np.ndarray) -> Score:
    change = whiten(train)
    tree = cKDTree(change(train))
    return lambda test: tree.query(change(test))[0]


def mixture(train: np.ndarray) -> Score:
    change = whiten(train)
    fitted = GaussianMixture(8, random_state=0, reg_covar=1e-6).fit(change(train))
    return lambda test: -fitted.score_samples(change(test))


def graded(name: str, max_clusters: int = 4) -> Callable[[np.ndarray], Score]:
    def fit(train: np.ndarray) -> Score:
        grades = fit_grades(train, np.full(len(train), 29), max_clusters=max_clusters)
        return lambda test: getattr(grades, name)(test, np.full(len(test), 29))

    return fit


METHODS: dict[str, tuple[str, Callable[[np.ndarray], Score]]] = {
    "novelty γ, up to 4 clusters": ("last", graded("novelty")),
    "novelty γ, 1 cluster (Mahalanobis)": ("last", graded("novelty", 1)),
    "Laplace variance, last layer (LLPR)": ("last", graded("laplace_variance")),
    "Laplace variance, both layers, pooled": ("pooled", graded("laplace_variance")),
    "nearest neighbour, whitened": ("last", nearest),
    "Gaussian mixture of 8": ("last", mixture),
    "extrapolation grade (MaxVol)": ("last", graded("extrapolation_grade")),
}


def judge(values: np.ndarray, errors: np.ndarray, data: emt_copper.CopperData) -> np.ndarray:
    """Spearman ID, Spearman ID+OOD, AUROC of errors, AUROC of surface atoms against bulk ones."""
    inside = data.atom_region == 0
    surface = emt_copper.at_surface(data.test) & (data.atom_region == 1)
    either = inside | surface
    return np.array(
        [
            spearman(values[inside], errors[inside]),
            spearman(values, errors),
            auroc(values, errors > BAD_EV_PER_ANG),
            auroc(values[either], surface[either]),
        ]
    )


def report(members: list[Member], data: emt_copper.CopperData) -> None:
    forces = {name: np.array([member.forces[name] for member in members]) for name in ("val", "test")}
    deviation = {name: force_deviation(value) for name, value in forces.items()}
    errors = {name: value.mean(axis=0) - getattr(data, name).forces for name, value in forces.items()}
    length = np.linalg.norm(errors["test"], axis=1)
    print(
        "| region | test atoms | rms force, eV/Å | force RMSE of the mean, eV/Å | errors above 0.3 eV/Å |\n"
        + "|---" * 5
        + "|"
    )
    for index, name in enumerate(emt_copper.REGIONS):
        mine = data.atom_region == index
        rms = [np.sqrt(np.mean(x[mine] ** 2)) for x in (data.test.forces, errors["test"])]
        print(f"| {name} | {mine.sum()} | {rms[0]:.2f} | {rms[1]:.3f} | {np.mean(length[mine] > BAD_EV_PER_ANG):.1%} |")

    head = ["method", "Spearman ID", "ID+OOD", "AUROC errors", "AUROC surface", "published", "extra cost"]
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    name = "committee of 4, force deviation"
    row(name, [judge(deviation["test"], length, data)], f"{len(members) - 1} further calls")
    for name, (kind, fit) in METHODS.items():
        found, costs = [], []
        for member in members:
            score, test = fit(getattr(member, kind)["train"]), getattr(member, kind)["test"]
            times = [timed(score, test) for _ in range(5)]
            costs.append(min(times) / member.seconds)
            single = np.linalg.norm(member.forces["test"] - data.test.forces, axis=1)
            found.append(judge(score(test), single, data))
        row(name, found, f"{float(np.median(costs)):.1%}")

    print("\n| bound at 90 %, calibrated on 60 bulk frames | covered |\n|---|---|")
    calibration = calibrate(deviation["val"], errors["val"], data.val.numbers, group=data.val.atom_rows())
    covered = length <= calibration.bound(deviation["test"], data.test.numbers)
    print(f"| those frames, cross-fitted | {calibration.metrics['coverage']['all']:.3f} |")
    for index, region in enumerate(emt_copper.REGIONS):
        print(f"| {region} | {covered[data.atom_region == index].mean():.3f} |")
    shown = {name: calibration.metrics[name] for name in ("spearman", "auroc", "nll", "miscalibration_area", "ence")}
    print("\nheld out: " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items()))


def timed(score: Score, test: np.ndarray) -> float:
    start = time.perf_counter()
    score(test)
    return time.perf_counter() - start


def row(name: str, found: list[np.ndarray], cost: str) -> None:
    """One line: mean over the members, and the range of those that it varies over."""
    values = np.array(found)
    cells = []
    for column in values.T:
        spread = "" if len(column) == 1 else f" ({column.min():.2f}-{column.max():.2f})"
        cells.append(f"{column.mean():.2f}{spread}")
    known = " / ".join("-" if value is None else f"{value:.2f}" for value in PUBLISHED[name])
    print("| " + " | ".join([name, *cells, known, cost]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="keep the committee here (default: temporary)")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        start = time.process_time()
        committee = emt_copper.committee(folder or Path(temporary))
        members = [ask(package, committee.data) for package in committee.packages]
        report(members, committee.data)
        print(f"{time.process_time() - start:.0f} s of this process")


if __name__ == "__main__":
    main()
