"""Training through the workchain against the same `nequip-train` and `nequip-package` by hand: ratio of wall times.

Both train the same frames with the same configuration file, one after the other, in turns, on the same machine.

    python benchmarks/bench_training_overhead.py --epochs 400 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from profile_here import BIN, codes, temporary_profile


def copper(n: int) -> Any:
    """n labelled frames of 32 atoms: rattled copper with the EMT calculator of ASE."""
    import numpy as np
    from ase.build import bulk
    from ase.calculators.emt import EMT

    from aiida_mlip.kernel.frames import from_ase

    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.get_stress()
        images.append(atoms)
    return from_ase(images, fidelity="emt")


def by_hand(folder: Path, *, threads: int) -> float:
    """Seconds of nequip-train and nequip-package in a folder with `config.yaml`, `train.xyz`, `val.xyz`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    command = [str(BIN / "nequip-train"), "-cn", "config", "hydra.run.dir=.", "hydra.output_subdir=null"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    best = sorted((folder / "checkpoints").glob("best_*.ckpt"))[0]
    command = [str(BIN / "nequip-package"), "build", str(best), "model.nequip.zip"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def through_workchain(programs: dict[str, Any], frames: Any, *, epochs: int, threads: int) -> tuple[float, float, Path]:
    """Seconds of the training workchain, of all of TrainWorkChain with its evaluation, and the job's folder."""
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.workchains.nequip_base import NequipBaseWorkChain
    from aiida_mlip.workchains.train import TrainWorkChain

    settings = {"max_epochs": epochs, "threads": threads, "device": "cpu"}
    builder = TrainWorkChain.get_builder_from_protocol(
        DatasetData.from_frames(frames), programs, protocol="fast", overrides=settings
    )
    start = time.perf_counter()
    _, node = run_get_node(builder)
    whole = time.perf_counter() - start
    if not node.is_finished_ok:
        raise RuntimeError(f"TrainWorkChain<{node.pk}> failed: {node.exit_message}")
    training = next(child for child in node.called if child.process_class is NequipBaseWorkChain)
    job = next(child for child in training.called if isinstance(child, orm.CalcJobNode))
    return (training.mtime - training.ctime).total_seconds(), whole, Path(job.get_remote_workdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    frames = copper(arguments.frames)
    pairs = []
    with temporary_profile() as root:
        programs = codes(root, threads=arguments.threads)
        for number in range(arguments.rounds):
            seconds, whole, job = through_workchain(
                programs, frames, epochs=arguments.epochs, threads=arguments.threads
            )
            folder = root / f"hand_{number}"
            folder.mkdir()
            for name in ("config.yaml", "train.xyz", "val.xyz"):
                (folder / name).write_bytes((job / name).read_bytes())
            hand = by_hand(folder, threads=arguments.threads)
            pairs.append(
                {"workchain_s": seconds, "with_evaluation_s": whole, "by_hand_s": hand, "ratio": seconds / hand}
            )
            print(json.dumps(pairs[-1]), flush=True)
    print(json.dumps({"median_ratio": sorted(pair["ratio"] for pair in pairs)[len(pairs) // 2], "bar": 1.05}))


if __name__ == "__main__":
    main()
