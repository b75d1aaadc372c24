"""Do allotted dear labels teach more than random ones? Two teachers of copper that differ in some regions only.

    python benchmarks/bench_allocation.py [folder] [--seeds 3]

A pool of 240 frames, warm bulk for the most part, has the labels of the cheap teacher; 8 of them, chosen at random,
have those of the dear one too. Joint models are trained on both. Two of them, different by their seed, say where the
difference of the teachers is uncertain: `allocate` adds dear labels there, in rounds. Beside it random labels. Force
errors against the dear teacher on 160 other frames of the same kinds; the last table says how many random labels it
takes to get there. No dear label is spent on validation (12 further cheap ones are looked at, and decide nothing): the
learning rate falls to nothing, and the last weights are kept. A training takes about a minute of processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from allocation_teachers import KINDS, DearTeacher, frames_of, kinds_of, label
from ase.calculators.emt import EMT

from aiida_mlip.io.extxyz import write_extxyz
from aiida_mlip.io.nequip_config import (
    CONFIG_FILE,
    LEVEL,
    TRAIN_FILE,
    VAL_FILE,
    TrainingData,
    config_text,
    nequip_config,
)
from aiida_mlip.io.nequip_script import PACKAGE_FILE, after_training, before_training
from aiida_mlip.kernel.allocation import AllocateSettings, allocate, difference_deviation
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.reference_energies import fit_level_references, in_energies_of_one, level_shifts, rms_force
from aiida_mlip.kernel.splits import repetition
from aiida_mlip.kernel.training import repeated
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from preloaded import Preloaded

CHEAP, DEAR = "cheap", "dear"
POOL, TEST, VAL = 240, 160, 12
#: Two layers, vectors, eight features: what separates the allocations, not what gives the smallest error.
TRAINING: dict[str, Any] = {
    "protocol": "fast",
    "seed": 11,
    "device": "cpu",
    "multi_fidelity": {"fidelities": [CHEAP, DEAR]},
    "model": {
        "cutoff_ang": 4.0,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 16,
        "num_bessels": 6,
        "radial_mlp_width": 16,
        "dtype": "float32",
    },
    "loss": {"energy": 10.0, "forces": 1.0},
    "optimizer": {"learning_rate": 0.02, "schedule": "cosine", "final_fraction": 0.02},
    "batch_size": 8,
    "max_epochs": 24,
    "ema_decay": 0.95,
}


@dataclass(frozen=True)
class Data:
    """The pool and the test frames, row by row the same at both levels, and cheap frames to validate with."""

    cheap: Frames
    dear: Frames
    test: Frames
    val: Frames


def make_data(seed: int) -> Data:
    pool, test = frames_of(POOL, seed=100 + seed), frames_of(TEST, seed=7)
    return Data(
        label(pool, EMT, CHEAP),
        label(pool, DearTeacher, DEAR),
        label(test, DearTeacher, DEAR),
        label(frames_of(VAL, seed=8), EMT, CHEAP),
    )


def train(folder: Path, data: Data, rows: np.ndarray, *, seed: int, programs: Path) -> Path:
    """Joint model of all cheap labels and the dear ones of these rows; its package."""
    package = folder / PACKAGE_FILE
    if package.exists():
        return package
    settings = train_settings({**TRAINING, "seed": seed}).model_dump()
    both = concatenate([data.cheap, data.dear.take(rows)])
    folder.mkdir(parents=True, exist_ok=True)
    references = fit_level_references(both, both.species, [CHEAP, DEAR])
    shifts = level_shifts(references, references[DEAR])
    times = repetition(len(rows), len(data.cheap), settings["multi_fidelity"]["target_share"])
    facts = TrainingData(
        species=both.species,
        reference_energies=references[DEAR],
        force_scale_ev_per_ang=rms_force(both),
        with_energy=True,
        with_forces=True,
        with_stress=True,
        keep_last=True,
    )
    config = nequip_config(settings, facts, seed=seed)
    (folder / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")
    for name, frames in ((TRAIN_FILE, repeated(both, DEAR, times)), (VAL_FILE, data.val)):
        level = [int(frames.fidelities[index] == DEAR) for index in frames.fidelity]
        write_extxyz(
            in_energies_of_one(frames, shifts), folder / name, nan_missing=True, lineage=False, info={LEVEL: level}
        )
    script = [
        before_training(threads=1, initial=None),
        f"{programs}/nequip-train -cn config hydra.run.dir=. hydra.output_subdir=null > train.out 2> train.err",
        after_training(str(programs / "nequip-package"), keep_last=True),
    ]
    subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, check=False)
    if not package.exists():
        raise RuntimeError((folder / "train.err").read_text(encoding="utf-8")[-3000:])
    return package


def forces(package: Path, frames: Frames, level: int) -> np.ndarray:
    """(a, 3) forces of a joint model at a level of theory, eV/Å; kept beside the package."""
    kept = package.with_name(f"forces_{level}_{len(frames)}.npy")
    if not kept.exists():
        model = load_model(package, device="cpu")
        np.save(kept, predict(model, frames, fidelity=np.full(len(frames), level)).forces)
    return np.asarray(np.load(kept))


def errors(package: Path, data: Data) -> dict[str, float]:
    """Root mean square errors of dear force components, over all test frames and by kind."""
    wrong = forces(package, data.test, 1) - data.test.forces
    kind = kinds_of(data.test)[data.test.atom_rows()]
    parts = {name: float(np.sqrt(np.mean(wrong[kind == name] ** 2))) for name in KINDS}
    return {"all": float(np.sqrt(np.mean(wrong**2))), **parts}


def chosen(method: str, packages: list[Path], data: Data, rows: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Rows with the dear label once ``count`` more have it."""
    left = np.setdiff1d(np.arange(len(data.cheap)), rows)
    candidates = data.cheap.take(left)
    doubt = None
    if method == "difference":
        at = [np.array([forces(package, data.cheap, level) for package in packages]) for level in (1, 0)]
        doubt = difference_deviation(*at)[np.isin(data.cheap.atom_rows(), left)]
    settings = AllocateSettings(method, n_frames=count, seed=seed)
    found = allocate(candidates, settings, dear=data.cheap.take(rows), deviation=doubt)
    return np.concatenate([rows, left[found.rows]])


def run(arguments: argparse.Namespace, folder: Path, programs: Path) -> None:
    table: dict[str, dict[int, list[dict[str, float]]]] = {}
    for seed in range(arguments.seeds):
        data = make_data(seed)
        kind = kinds_of(data.cheap)
        first = np.random.default_rng(1000 + seed).permutation(POOL)[: arguments.start]
        for arm in arguments.arms:
            rows, packages = first, []
            for count in [arguments.start, *arguments.sizes[arm]]:
                if count > arguments.start:
                    rows = first if arm == "random" else rows  # one order: the fewer are among the more
                    rows = chosen(arm, packages, data, rows, count - len(rows), seed=seed)
                name = f"start-{seed}" if count == arguments.start else f"{arm}-{seed}-{count}"
                last = count == arguments.sizes[arm][-1]
                members = 2 if arm == "difference" and not last else 1
                begin = time.perf_counter()
                packages = [
                    train(folder / f"{name}-{member}", data, rows, seed=100 * seed + member, programs=programs)
                    for member in range(members)
                ]
                found = errors(packages[0], data)
                table.setdefault(arm, {}).setdefault(count, []).append(found)
                kinds = {each: int((kind[rows] == each).sum()) for each in KINDS}
                print(
                    f"seed {seed} {arm} {count} {kinds}: "
                    + ", ".join(f"{each} {value:.4f}" for each, value in found.items())
                    + f" eV/Å ({time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )
    (folder / "allocation.json").write_text(json.dumps(table, indent=1))
    report(table, arguments.start)


def report(table: dict[str, dict[int, list[dict[str, float]]]], start: int) -> None:
    """The tables of docs/benchmarks.md."""
    print("\n| dear labels | chosen by | seeds | mean | " + " | ".join(KINDS) + " |\n|" + "---|" * (4 + len(KINDS)))
    for arm, sizes in table.items():
        for count, results in sizes.items():
            if count == start and arm != "random":
                continue
            each = " / ".join(f"{result['all']:.3f}" for result in results)
            means = [f"{np.mean([result[kind] for result in results]):.3f}" for kind in ("all", *KINDS)]
            print(f"| {count} | {'random' if count == start else arm} | {each} | " + " | ".join(means) + " |")
    counts = np.array(list(table["random"]))
    print(
        "\n| dear labels | chosen by | random labels of the same error: seeds | by the means | ratio |\n|" + "---|" * 5
    )
    for arm in (name for name in table if name != "random"):
        for count in (count for count in table[arm] if count > start):
            own = [result["all"] for result in table[arm][count]]
            curve = np.array([[result["all"] for result in table["random"][n]] for n in counts])
            each = [equivalent(counts, curve[:, seed], error) for seed, error in enumerate(own)]
            mean = equivalent(counts, curve.mean(axis=1), float(np.mean(own)))
            words = " / ".join(text(counts, value) for value in each)
            print(f"| {count} | {arm} | {words} | {text(counts, mean)} | {ratio(counts, count, mean)} |")


def equivalent(counts: np.ndarray, curve: np.ndarray, error: float) -> float:
    """Labels at which a learning curve (log-log, made to fall) reaches an error; inf past its end."""
    falling = np.minimum.accumulate(curve)
    if error < falling[-1]:
        return np.inf
    return float(np.exp(np.interp(-np.log(error), -np.log(falling), np.log(counts))))


def text(counts: np.ndarray, value: float) -> str:
    return f"> {counts[-1]}" if np.isinf(value) else f"{value:.0f}"


def ratio(counts: np.ndarray, count: int, value: float) -> str:
    return f"< {count / counts[-1]:.2f}" if np.isinf(value) else f"{count / value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="keep the trainings here (default: temporary)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=["random", "difference"])
    parser.add_argument("--difference", nargs="+", type=int, default=[24])
    parser.add_argument("--diversity", nargs="+", type=int, default=[24])
    parser.add_argument("--random", nargs="+", type=int, default=[24, 48])
    arguments = parser.parse_args()
    arguments.sizes = {arm: getattr(arguments, arm) for arm in ("difference", "diversity", "random")}
    programs = Preloaded()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            run(arguments, arguments.folder or Path(temporary), programs.folder)
    finally:
        programs.close()


if __name__ == "__main__":
    main()
