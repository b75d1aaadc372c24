"""Silicon, from a crystal to a tested potential: the main job of this package, small enough for a laptop.

    verdi run examples/silicon.py             # here, in this process
    verdi run examples/silicon.py --submit    # by the daemon (verdi daemon start)

`make demo` does the first in an environment and AiiDA folder of its own. Needs the codes and the pseudopotential family
that `aiida-mlip setup` makes. To use it for your own system, change `seeds`, `FIDELITIES` and the codes.
"""

from pathlib import Path

import click
from aiida import orm
from aiida.engine import submit
from ase.build import bulk

from aiida_mlip.cli.develop import print_forecast, print_report
from aiida_mlip.cli.progress import run_with_progress, watch
from aiida_mlip.cli.results import print_results
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.develop import DevelopWorkChain

FIDELITIES = {
    "lda": {
        "engine": "qe",
        "pseudo_family": "debian-lda",
        "ecutwfc_ry": 20.0,
        "kpoints_distance_inv_ang": 0.8,  # 2 x 2 x 2 in every strained cell: a mesh that jumps is noise
        # perfect silicon is an insulator, but strong rattling closes its gap: fixed occupations would not converge
        "occupations": "smearing",
        "smearing": "gaussian",
        "degauss_ry": 0.01,
        "mixing_beta": 0.7,
    }
}
GENERATE = {
    "seed": 1,
    "steps": [
        {"generator": "strain", "per_parent": 14, "linear": 0.04, "volume": [0.92, 1.08], "keep": False},
        {"generator": "rattle", "parents": "strain", "per_parent": 5, "amplitude_ang": [0.02, 0.2]},
    ],
}
# where simulations lead: a warm crystal with a vacancy, far too large for this much DFT
EXPLORE = {
    "kind": "md",
    "record_every": 20,
    "selected_every": 20,
    "md": {"timestep_fs": 2, "schedule": [{"n_steps": 60, "temperature_k": 600}]},
    "watch": {"every": 10},
}
LEARN = {
    "mode": "fragments",
    "max_rounds": 1,
    "labels_per_round": 2,
    # 63 atoms, at Γ as dense in k-points as the cells of 8 above: another density would be another level of theory
    "fragment": {"core_radius_ang": 4.0, "buffer_ang": 1.4, "max_atoms": 70, "max_fragments": 2},
}
# properties of the crystal, from the potential and from the same DFT
VALIDATE = {"vacancy": None, "elastic": None, "dimer": None, "phonons": {"min_length_ang": 6.0}}
TARGETS = {"force_rmse_relative": 0.15, "energy_rmse_ev_per_atom": 0.010}


def explorations() -> dict[str, dict[str, object]]:
    """Simulations that the potential is to be certain of."""
    vacancy = bulk("Si", cubic=True, a=5.40) * (4, 4, 4)
    del vacancy[100]
    return {"vacancy": {"structures": DatasetData.from_frames(from_ase([vacancy])), "spec": EXPLORE}}


def build(concurrency: int) -> DevelopWorkChain:
    """Everything the job needs, as a builder."""
    crystal = bulk("Si", cubic=True, a=5.40)
    seeds = DatasetData.from_frames(from_ase([crystal], source="silicon crystal"))
    return DevelopWorkChain.get_builder_from_protocol(
        seeds,
        codes={
            "pw": orm.load_code("pw@localhost"),
            "train": orm.load_code("nequip-train@localhost"),
            **{name: orm.load_code(f"aiida-mlip-{name}@localhost") for name in ("evaluate", "explore", "fragment")},
        },
        fidelities=FIDELITIES,
        protocol="fast",
        overrides={
            "generate": GENERATE,
            "label": {"max_concurrent": concurrency},
            "train": {"split": {"test": 0.15, "val": 0.1}},
            "targets": TARGETS,
        },
        active_learning={
            "explorations": explorations(),
            "settings": LEARN,
            "hosts": {"silicon": orm.StructureData(ase=crystal)},
        },
        validate={"structures": orm.StructureData(ase=bulk("Si", a=5.40)), "settings": VALIDATE},
    )


@click.command()
@click.option("--submit", "to_daemon", is_flag=True, help="Hand the job to the daemon instead of running it here.")
@click.option("--concurrency", default=2, show_default=True, help="Labels computed at the same time.")
@click.option("--report", default="silicon.html", show_default=True, type=click.Path(path_type=Path))
def main(to_daemon: bool, concurrency: int, report: Path) -> None:
    """Develop a potential of silicon."""
    builder = build(concurrency)
    print_forecast(builder)
    if to_daemon:
        node = submit(builder)
        click.echo(f"submitted: follow it with `aiida-mlip status {node.pk} --watch`")
        watch(node.pk)
    else:
        _, node = run_with_progress(builder)
    print_results(node)
    print_report(node, report)
    if node.exit_status == DevelopWorkChain.exit_codes.ERROR_NOT_CONVERGED.status:
        click.echo(f"{node.exit_message}. A demonstration allows one round; give it more to go on.")
    elif not node.is_finished_ok:
        raise SystemExit(f"the job ended with exit status {node.exit_status}: {node.exit_message}")


if __name__ == "__main__":
    main()
