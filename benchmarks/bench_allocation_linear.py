"""Do allotted dear labels teach more than random ones? Many rounds and draws, with models that cost nothing to train.

    python benchmarks/bench_allocation_linear.py [--seeds 3] [--draws 5]

The teachers, pool and test frames of `bench_allocation.py`; the models are those of `allocation_models.py` in place of
NequIP's: potentials linear in random features, whose difference of the levels is fitted to the frames that have both
labels. From 8 random dear labels on, the labels are allotted in rounds by `allocate`; beside it the mean over several
random orders, and frames chosen by diversity alone. Errors are those of one potential against the dear teacher (the
mean over the members), and the last table says how many random labels it takes to get there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from allocation_models import LinearModels
from bench_allocation import KINDS, POOL, Data, equivalent, kinds_of, make_data, ratio, text

from aiida_mlip.kernel.allocation import AllocateSettings, allocate, difference_deviation

SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 144)
MEMBERS = 4
START = SIZES[0]


def error_of(models: LinearModels, rows: np.ndarray, data: Data) -> dict[str, float]:
    wrong = models.dear_forces(rows) - data.test.forces
    kind = kinds_of(data.test)[data.test.atom_rows()]
    masks = {"all": np.ones(len(kind), dtype=bool)} | {name: kind == name for name in KINDS}
    return {name: float(np.sqrt((wrong[:, mask] ** 2).mean(axis=(1, 2))).mean()) for name, mask in masks.items()}


def more(method: str, models: LinearModels, data: Data, rows: np.ndarray, count: int, *, batch: str) -> np.ndarray:
    """Rows with the dear label once there are ``count``."""
    left = np.setdiff1d(np.arange(POOL), rows)
    doubt = None
    if method == "difference":
        apart = models.differences(rows)
        doubt = difference_deviation(apart, np.zeros_like(apart))[np.isin(data.cheap.atom_rows(), left)]
    settings = AllocateSettings(method, batch, n_frames=count - len(rows))
    found = allocate(data.cheap.take(left), settings, dear=data.cheap.take(rows), deviation=doubt)
    return np.concatenate([rows, left[found.rows]])


def of_seed(seed: int, arguments: argparse.Namespace) -> dict[str, dict[int, dict[str, float]]]:
    """Errors by arm and number of dear labels."""
    data = make_data(seed)
    models = LinearModels(data.cheap, data.dear, data.test, members=MEMBERS, seed=seed)
    kind = kinds_of(data.cheap)
    first = np.random.default_rng(1000 + seed).permutation(POOL)[:START]
    result: dict[str, dict[int, dict[str, float]]] = {"random": {}}
    rest = np.setdiff1d(np.arange(POOL), first)
    orders = [np.random.default_rng([seed, draw]).permutation(rest) for draw in range(arguments.draws)]
    for count in SIZES:
        each = [error_of(models, np.concatenate([first, order])[:count], data) for order in orders]
        result["random"][count] = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    for arm in arguments.arms:
        method, _, batch = arm.partition("-")
        rows, result[arm] = first, {}
        for count in SIZES:
            if count > arguments.most:
                break
            rows = rows if count == START else more(method, models, data, rows, count, batch=batch or "maxdet")
            result[arm][count] = error_of(models, rows, data)
            kinds = {name: int((kind[rows] == name).sum()) for name in KINDS}
            print(f"seed {seed} {arm} {count} {kinds}: {result[arm][count]['all']:.4f} eV/Å", flush=True)
    return result


def report(results: list[dict[str, dict[int, dict[str, float]]]]) -> None:
    print("\n| dear labels | chosen by | seeds | mean | " + " | ".join(KINDS) + " |\n|" + "---|" * (4 + len(KINDS)))
    for arm in results[0]:
        for count in results[0][arm]:
            mine = [result[arm][count] for result in results]
            means = [f"{np.mean([one[name] for one in mine]):.3f}" for name in ("all", *KINDS)]
            each = " / ".join(f"{one['all']:.3f}" for one in mine)
            print(f"| {count} | {arm} | {each} | {' | '.join(means)} |")
    print("\n| dear labels | chosen by | random labels of the same error: seeds | ratios | by the means | ratio |")
    print("|" + "---|" * 6)
    counts = np.array(SIZES)
    curves = np.array([[result["random"][count]["all"] for count in SIZES] for result in results])
    for arm in (arm for arm in results[0] if arm != "random"):
        for count in (count for count in results[0][arm] if count > START):
            own = np.array([result[arm][count]["all"] for result in results])
            each = [equivalent(counts, curve, error) for curve, error in zip(curves, own, strict=True)]
            mean = equivalent(counts, curves.mean(axis=0), float(own.mean()))
            numbers = " / ".join(text(counts, value) for value in each)
            ratios = " / ".join(ratio(counts, count, value) for value in each)
            print(f"| {count} | {arm} | {numbers} | {ratios} | {text(counts, mean)} | {ratio(counts, count, mean)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=5, help="random orders averaged over for each seed")
    parser.add_argument("--most", type=int, default=64, help="most labels that are allotted")
    parser.add_argument(
        "--arms", nargs="+", default=["difference", "diversity"], help="methods, METHOD or METHOD-BATCH"
    )
    parser.add_argument("--json", type=Path, help="write all errors here")
    arguments = parser.parse_args()
    begin = time.process_time()
    results = [of_seed(seed, arguments) for seed in range(arguments.seeds)]
    report(results)
    print(f"\n{time.process_time() - begin:.0f} s of processor time")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
