"""mlearn data (doi:10.1021/acs.jpca.9b08723) through aiida_mlip.train: test errors beside the published table.

    python benchmarks/mlearn.py --data ../shared/data --element Si --protocol precise --epochs 100 300

Each number of epochs is one training of its own (the learning rate falls over it): error against minutes.
`--warm` continues from the potential of the number before instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from profile_here import codes, temporary_profile

#: Published test MAE: energy (meV/atom), force (eV/Å).
PUBLISHED = {
    "Si": {"SNAP": (6.44, 0.133), "qSNAP": (3.81, 0.116), "MTP": (2.31, 0.056), "GAP": (2.91, 0.07)},
    "Cu": {"SNAP": (0.53, 0.037), "qSNAP": (0.56, 0.024), "MTP": (0.41, 0.0069), "GAP": (0.46, 0.01)},
}


def datasets(folder: Path, element: str) -> tuple[Any, Any]:
    """Training and test frames as nodes."""
    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.io.extxyz import read_extxyz

    nodes = []
    for part in ("train", "test"):
        path = folder / "mlearn" / f"{element}_{part}.xyz"
        nodes.append(DatasetData.from_frames(read_extxyz(path, fidelity="pbe")).store())
    return nodes[0], nodes[1]


def trainings(arguments: argparse.Namespace, root: Path) -> Iterator[dict[str, Any]]:
    """One row per number of epochs: minutes, errors, node."""
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.workchains.nequip_base import NequipBaseWorkChain
    from aiida_mlip.workchains.train import TrainWorkChain

    train, test = datasets(arguments.data, arguments.element)
    programs = codes(root, threads=arguments.threads)
    potential = None
    for epochs in arguments.epochs:
        overrides = {
            "max_epochs": epochs,
            "threads": arguments.threads,
            "device": arguments.device,
            # the test frames are a file of their own; snapshots were drawn at random by the authors
            "split": {"test": 0.0, "val": arguments.val, "group_by": "frame"},
            **json.loads(arguments.overrides),
        }
        builder = TrainWorkChain.get_builder_from_protocol(
            train, programs, protocol=arguments.protocol, overrides=overrides
        )
        builder.test_dataset = test
        if arguments.warm and potential is not None:
            builder.initial_potentials = {"all": potential}
        outputs, node = run_get_node(builder)
        if "errors" not in outputs:
            raise RuntimeError(f"TrainWorkChain<{node.pk}> failed: {node.exit_message}")
        training = next(child for child in node.called if child.process_class is NequipBaseWorkChain)
        job = next(child for child in training.called if isinstance(child, orm.CalcJobNode))
        potential = outputs["potentials"]["member_0"]
        if arguments.keep is not None:
            potential.export(arguments.keep / f"{arguments.element}_{arguments.protocol}_{epochs}.nequip.zip")
        external = outputs["errors"]["external"]
        yield {
            "element": arguments.element,
            "protocol": arguments.protocol,
            "epochs": epochs,
            "minutes": round((job.mtime - job.ctime).total_seconds() / 60, 2),
            "energy_mae_mev_per_atom": round(1e3 * external["energy_mae_ev_per_atom"], 3),
            "force_mae_ev_per_ang": round(external["force_mae_ev_per_ang"], 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mlearn/")
    parser.add_argument("--element", choices=sorted(PUBLISHED), default="Si")
    parser.add_argument("--protocol", default="precise")
    parser.add_argument("--epochs", type=int, nargs="+", default=[100])
    parser.add_argument("--val", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overrides", default="{}", help="further settings as JSON")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder to export the potentials to")
    arguments = parser.parse_args()
    for name, (energy, force) in PUBLISHED[arguments.element].items():
        print(f"{arguments.element} {name:6s} energy {energy:6.2f} meV/atom   force {force:.4f} eV/Å   (published)")
    with temporary_profile() as root:
        for row in trainings(arguments, root):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
