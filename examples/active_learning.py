"""Active learning of copper, with the EMT calculator of ASE as a teacher in place of DFT: minutes on a laptop.

    verdi run examples/active_learning.py

A potential is trained on copper at room temperature, then heated to 1500 K. Where it does not know what it meets, the
dynamics stops, the frames are labelled, the potential is trained again, and the dynamics goes on from where it could
still be trusted. Needs the codes that `aiida-mlip setup` makes. For your own system give labelled frames (any
DatasetData) and fidelities of the engine qe.
"""

import click
from aiida import orm
from ase.build import bulk
from rich.console import Console

from aiida_mlip.cli.progress import run_with_progress
from aiida_mlip.cli.rounds_table import history_table
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain
from aiida_mlip.workchains.active_learning_forecast import forecast
from aiida_mlip.workchains.generate import GenerateWorkChain
from aiida_mlip.workchains.label import LabelWorkChain

FIDELITIES = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
ROOM_TEMPERATURE = {
    "steps": [
        {"generator": "strain", "per_parent": 10, "linear": 0.02, "keep": False},
        {"generator": "rattle", "parents": "strain", "per_parent": 4, "amplitude_ang": [0.05, 0.15]},
    ]
}
HEATING = {
    "kind": "md",
    "record_every": 20,
    "selected_every": 10,
    "md": {"timestep_fs": 4, "schedule": [{"n_steps": 1000, "temperature_k": 300, "end_temperature_k": 1500}]},
}
TRAINING = {
    "committee": 3,
    "max_epochs": 80,
    "split": {"test": 0.15, "val": 0.1},
    "model": {"cutoff_ang": 4.5, "num_layers": 1, "l_max": 1, "num_features": 8, "radial_mlp_width": 16},
}


def room_temperature() -> DatasetData:
    """Labelled frames of a small, warm crystal."""
    seeds = DatasetData.from_frames(from_ase([bulk("Cu", cubic=True) * (2, 1, 1)]))
    made, _ = run_with_progress(GenerateWorkChain.get_builder_from_protocol(seeds, overrides=ROOM_TEMPERATURE))
    labelled, _ = run_with_progress(
        LabelWorkChain.get_builder_from_protocol(
            dataset=made["dataset"],
            codes={"ase": orm.load_code("aiida-mlip-label@localhost")},
            fidelities=FIDELITIES,
        )
    )
    return labelled["dataset"]


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Rounds at most.")
def main(rounds: int) -> None:
    """Learn what copper looks like on the way to its melting point."""
    builder = ActiveLearningWorkChain.get_builder_from_protocol(
        room_temperature(),
        codes={
            "explore": orm.load_code("aiida-mlip-explore@localhost"),
            "train": orm.load_code("nequip-train@localhost"),
            "evaluate": orm.load_code("aiida-mlip-evaluate@localhost"),
            "ase": orm.load_code("aiida-mlip-label@localhost"),
        },
        fidelities=FIDELITIES,
        explorations={
            "heating": {
                "structures": DatasetData.from_frames(from_ase([bulk("Cu", cubic=True) * (2, 2, 2)])),
                "spec": HEATING,
            }
        },
        protocol="fast",
        overrides={"settings": {"max_rounds": rounds, "labels_per_round": 10}, "train": TRAINING},
    )
    for line in forecast(builder).lines():
        click.echo(line)
    results, node = run_with_progress(builder)
    if "history" not in results:
        raise SystemExit(f"ended with exit status {node.exit_status}: {node.exit_message}")
    Console().print(history_table(results["history"]))


if __name__ == "__main__":
    main()
