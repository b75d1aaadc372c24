"""Many cheap labels and a few dear ones against its baselines: metals with EMT as the teacher, silicon with real DFT.

    nice python benchmarks/bench_multi_fidelity.py emt [--domain alloy] [--seeds 1 2]
    nice python benchmarks/bench_multi_fidelity.py methods [--domain alloy] [--seeds 1]
    nice python benchmarks/bench_multi_fidelity.py property [--seeds 1]
    nice python benchmarks/bench_multi_fidelity.py labels --folder FOLDER
    nice python benchmarks/bench_multi_fidelity.py qe --folder FOLDER [--seeds 1 2]

``emt``: force errors on hot alloys or on copper, for several seeds. ``methods``: all methods of
aiida_mlip.train_fidelities on these frames. ``property``: mixing energies of copper and
platinum. ``labels``: real DFT of silicon through the package; what is in the folder's profile is not computed again.
``qe``: trainings on these, force errors and the equation of state. Every method gets as many steps of the optimizer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import copper_platinum
import numpy as np
import silicon_pair
from ase.eos import EquationOfState
from ase.units import GPa
from profile_here import kept_profile, temporary_profile

from aiida_mlip.kernel.frames import Frames, concatenate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from emt_pair import CHEAP, DEAR, DOMAINS, Labels

#: With all frames at the dear level, where these are known.
METHODS = ("embedding", "full", "high_only", "pooled")
ROOT_MPI = "export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"


def code(root: Path, name: str, program: str | Path | None, plugin: str) -> Any:
    """A program of this machine, without login shell; made on first use."""
    from aiida import orm
    from aiida.common.exceptions import NotExistent

    if program is None:
        raise SystemExit(f"{name}: no such program")
    try:
        return orm.load_code(f"{name}@here")
    except NotExistent:
        pass
    here = orm.Computer(
        label="here",
        hostname="localhost",
        transport_type="core.local",
        scheduler_type="core.direct",
        workdir=str(root / "work"),
    )
    here.set_default_mpiprocs_per_machine(1)
    here.set_minimum_job_poll_interval(1)
    here.set_prepend_text(ROOT_MPI)
    here.store()
    here.configure(safe_interval=0, use_login_shell=False)
    return orm.InstalledCode(
        label=name, computer=here, filepath_executable=str(program), default_calc_job_plugin=plugin, with_mpi=False
    ).store()


@contextmanager
def training_code() -> Iterator[Any]:
    """nequip-train in a throw-away profile, without its start-up."""
    from preloaded import Preloaded

    programs = Preloaded()
    try:
        with temporary_profile() as root:
            from aiida import get_profile  # not before AIIDA_PATH is set

            get_profile().set_option("runner.poll.interval", 1)
            yield code(root, "nequip-train", programs.folder / "nequip-train", "aiida_mlip.nequip_train")
    finally:
        programs.close()


def labels(folder: Path) -> None:
    """Real DFT labels of silicon at both fidelities."""
    with kept_profile(folder) as root:
        from aiida import get_profile  # not before AIIDA_PATH is set

        get_profile().set_option("runner.poll.interval", 1)
        silicon_pair.families(root)
        silicon_pair.label(root, code(root, "pw", shutil.which("pw.x"), "quantumespresso.pw"))


def table(
    jobs: Callable[[str, int], Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    measure: Callable[[str, int, Any], Mapping[str, float]],
    bars: Mapping[str, float],
) -> None:
    """Measure every method with every seed; print means, ranges, and what the embedding's mean is of the others'.

    :param jobs: method and seed to a training.
    :param measure: method, seed and what was learned to quantities, the one that matters first.
    :param bars: largest ratio of that of the embedding to that of a method.
    """
    found: dict[str, dict[str, list[float]]] = {method: {} for method in methods}
    with training_code() as train:
        from fidelity_trainings import learn  # not before the profile is loaded

        for seed in seeds:
            for method in methods:  # one after another: the machine may be shared
                values = measure(method, seed, learn([jobs(method, seed)], train)[0])
                print(f"{method}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()), flush=True)
                for name, value in values.items():
                    found[method].setdefault(name, []).append(value)
    names = list(found[methods[0]])
    print("\n| method | " + " | ".join(f"{name}: mean (range)" for name in names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for method, quantities in found.items():
        cells = [f"{np.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in quantities.values()]
        print(f"| {method} | " + " | ".join(cells) + " |")
    for method, bar in bars.items():
        own, other = np.array(found["embedding"][names[0]]), np.array(found[method][names[0]])
        each = ", ".join(f"{ratio:.2f}" for ratio in own / other)
        print(f"embedding / {method}: {own.mean() / other.mean():.2f} (seeds {each}), bar {bar}")


def emt(seeds: Sequence[int], domain: str, steps: int | None) -> None:
    """Alloys: the benchmark of the tests; or copper. Every seed has frames of its own."""
    kind = DOMAINS[domain]
    data = {seed: (kind.labels(seed=seed), kind.held_out(seed=seed)) for seed in seeds}
    for seed, (_, (cheap, test)) in data.items():
        gap, rms = (np.sqrt(np.mean(array**2)) for array in (cheap.forces - test.forces, test.forces))
        print(f"seed {seed}: rms force {rms:.3f}, rms difference {gap:.3f} eV/Å", flush=True)

    def job(method: str, seed: int) -> Any:
        from fidelity_trainings import SHORT, Job

        return Job(method, data[seed][0], seed=seed, **{**SHORT, **({} if steps is None else {"steps": steps})})

    def measure(_method: str, seed: int, learned: Any) -> dict[str, float]:
        test = data[seed][1][1]
        return {"force RMSE eV/Å": learned.force_rmse(test), "energy RMSE eV/atom": learned.energy_rmse(test)}

    table(job, METHODS, seeds, measure, {"high_only": 0.75, "full": 1.35, "pooled": 1.0})


def methods(seeds: Sequence[int], domain: str, steps: int | None, names: Sequence[str] | None) -> None:
    """The methods of the package in one table, by its workchain, with the settings of stage emt."""
    with training_code() as train:
        from aiida import orm
        from aiida.engine import run_get_node
        from fidelity_trainings import SHORT, Job

        from aiida_mlip.cli.results import print_results
        from aiida_mlip.data.dataset import DatasetData
        from aiida_mlip.protocols.train_fidelities import METHODS as ALL
        from aiida_mlip.workchains.train_fidelities import TrainFidelitiesWorkChain

        evaluate = orm.InstalledCode(
            label="evaluate",
            computer=train.computer,
            filepath_executable=str(train.filepath_executable.parent / "aiida-mlip-evaluate"),
            default_calc_job_plugin="aiida_mlip.evaluate",
            with_mpi=False,
        ).store()
        for seed in seeds:
            data, (_, test) = DOMAINS[domain].labels(seed=seed), DOMAINS[domain].held_out(seed=seed)
            job = Job("embedding", data, seed=seed, **{**SHORT, **({} if steps is None else {"steps": steps})})
            builder = TrainFidelitiesWorkChain.get_builder_from_protocol(
                DatasetData.from_frames(job.frames(), settings={CHEAP: "a" * 64, DEAR: "b" * 64}),
                {"train": train, "evaluate": evaluate},
                methods=tuple(names or ALL),
                overrides=job.settings(),
            )
            builder.test_dataset = DatasetData.from_frames(test, settings={DEAR: "b" * 64})
            builder.fine_tune = orm.Dict({"optimizer": {"learning_rate": 0.01}})
            results, node = run_get_node(builder)
            if not node.is_finished_ok:
                raise SystemExit(f"{node.exit_status} {node.exit_message}")
            print_results(node)
            for name, row in results["table"].get_dict()["methods"].items():
                print(f"{name}, seed {seed}: force RMSE {row['force_rmse_ev_per_ang']:.4f} eV/Å", flush=True)


def mixing(seeds: Sequence[int]) -> None:
    """Copper and platinum: mixing energies of the solid solution."""
    data, test, cells = copper_platinum.labels(), copper_platinum.held_out(), copper_platinum.solutions()
    truth, cheap = (
        copper_platinum.mixing_energies(copper_platinum.teacher_energies(cells, name)) for name in (DEAR, CHEAP)
    )
    curves: dict[tuple[str, int], np.ndarray] = {}

    def job(method: str, seed: int) -> Any:
        from fidelity_trainings import Job

        held_out = 20 if method == "full" else 2
        changes = {"optimizer": {"learning_rate": 0.02}}
        return Job(method, data, steps=2500, batch_size=10, seed=seed, validation=held_out, changes=changes)

    def measure(method: str, seed: int, learned: Any) -> dict[str, float]:
        curve = copper_platinum.mixing_energies(learned.predict(copper_platinum.as_frames(cells)).energy)
        curves[method, seed] = curve
        return {"off the truth %": 100 * relative(curve, truth), "force RMSE eV/Å": learned.force_rmse(test)}

    table(job, METHODS, seeds, measure, {"high_only": 1.0, "pooled": 1.0})
    print("mixing energy, meV/atom, at x(Pt) =", copper_platinum.FRACTIONS)
    print("truth", np.round(1e3 * truth, 1), "cheap teacher", np.round(1e3 * cheap, 1))
    print(f"cheap teacher off the truth: {100 * relative(cheap, truth):.1f} %")
    for (method, seed), curve in curves.items():
        off = 100 * relative(curve, curves["full", seed])
        print(f"{method}, seed {seed}: {np.round(1e3 * curve, 1)}, off that of all dear labels: {off:.1f} %")


def relative(curve: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square of the difference of two curves relative to that of the reference."""
    return float(np.sqrt(np.mean((curve - reference) ** 2) / np.mean(reference**2)))


def qe(folder: Path, seeds: Sequence[int], steps: int) -> None:
    """Silicon: force errors and equation of state of real DFT."""
    parts = {name: [silicon_pair.load(folder, f"{name}{kind}") for kind in ("", "_calm")] for name in ("cheap", "dear")}
    data = Labels(concatenate(parts["cheap"]), concatenate(parts["dear"]))
    crystals = silicon_pair.load(folder, "crystals")
    a0, b0 = equation_of_state(crystals, crystals.energy)
    wide = {"cutoff_ang": 5.0, "num_features": 32, "radial_mlp_width": 32}
    changes = {"optimizer": {"learning_rate": 0.02}, "model": wide}

    def job(method: str, seed: int) -> Any:
        from fidelity_trainings import Job

        return Job(method, data, steps=steps, batch_size=5, seed=seed, validation=1, changes=changes)

    def measure(_method: str, _seed: int, learned: Any) -> dict[str, float]:
        test = silicon_pair.load(folder, "dear_test")
        a, b = equation_of_state(crystals, learned.predict(crystals).energy)
        return {
            "force RMSE eV/Å": learned.force_rmse(test),
            "energy RMSE eV/atom": learned.energy_rmse(test),
            "a0 Å": a,
            "a0 off %": 100 * (a / a0 - 1),
            "B0 GPa": b,
            "B0 off %": 100 * (b / b0 - 1),
        }

    table(job, ("embedding", "high_only", "pooled"), seeds, measure, {"high_only": 1.0, "pooled": 1.0})
    cheap, test, low = (silicon_pair.load(folder, name) for name in ("cheap_test", "dear_test", "cheap_crystals"))
    a, b = equation_of_state(low, low.energy)
    gap, rms = (np.sqrt(np.mean(array**2)) for array in (cheap.forces - test.forces, test.forces))
    print(f"rms force {rms:.3f}, rms difference of the levels {gap:.4f} eV/Å")
    print(f"pw.x: dear a0 {a0:.4f} Å, B0 {b0:.1f} GPa; cheap a0 {a:.4f} Å, B0 {b:.1f} GPa")


def equation_of_state(crystals: Frames, energies: np.ndarray) -> tuple[float, float]:
    """Lattice constant (Å) and bulk modulus (GPa) of cubic cells by Birch and Murnaghan."""
    volumes = np.abs(np.linalg.det(crystals.cell))
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return float(volume ** (1 / 3)), float(modulus / GPa)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["emt", "methods", "property", "labels", "qe"])
    parser.add_argument("--folder", type=Path, help="of the labels of silicon, and of the profile that made them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, help="of the optimizer, of stages emt, methods and qe")
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="alloy", help="of stages emt and methods")
    parser.add_argument("--methods", nargs="+", help="of stage methods: the first is the result (default: all)")
    arguments = parser.parse_args()
    if arguments.stage in ("labels", "qe") and arguments.folder is None:
        parser.error(f"{arguments.stage} needs --folder")
    match arguments.stage:
        case "emt":
            emt(arguments.seeds, arguments.domain, arguments.steps)
        case "methods":
            methods(arguments.seeds, arguments.domain, arguments.steps, arguments.methods)
        case "property":
            mixing(arguments.seeds)
        case "labels":
            labels(arguments.folder)
        case "qe":
            qe(arguments.folder, arguments.seeds, arguments.steps or 8000)


if __name__ == "__main__":
    main()
