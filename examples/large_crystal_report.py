"""What became of `large_crystal.py`: errors against the truth in the whole crystal, time spent, and pictures.

    verdi run examples/large_crystal_report.py PK [FOLDER]

PK is the ActiveLearningWorkChain. Takes the last pass of the exploration, computes the teacher's forces on some of its
frames, all atoms of them, and compares those of the last potential. Pictures are written to FOLDER (default: here).
"""

import json
import tempfile
from pathlib import Path

import click
import matplotlib
import numpy as np
from aiida import orm
from ase.calculators.emt import EMT
from matscipy.neighbours import neighbour_list

from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.workers.force_source import PotentialCalculator, calculator_of_package

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Between the first and the second shell of neighbours of copper (Å), stretched by a tenth.
NEIGHBOUR_ANG = 3.2
SERIES = {"step": "step", "novelty": "largest_novelty"}
COLOURS = {Region.CORE: "#c0392b", Region.TRUST: "#e6a23c", Region.BUFFER: "#b8c4ce"}


def steps(node: orm.WorkChainNode, stage: str) -> list[orm.ProcessNode]:
    """What was called for a stage, in the order of the rounds, as far as it has given something."""
    called = [(link.link_label, link.node) for link in node.base.links.get_outgoing().all()]
    found = [pair for pair in called if pair[0].startswith("round_") and stage in pair[0]]
    return [child for _, child in sorted(found, key=lambda pair: pair[0]) if len(list(child.outputs))]


def calculator(potential: orm.Data) -> PotentialCalculator:
    """The potential with its grades, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return calculator_of_package(
            potential.export(folder),
            device="auto",
            sha256=potential.sha256,
            species=potential.species,
            wanted=potential.species,
            shifts=potential.energy_shifts,
            fidelity=None,
            grades=potential.grades(),
        )


def compare(frames: Frames, rows: list[int], model: PotentialCalculator) -> list[dict]:
    """Errors of force components (eV/Å) and γ of all atoms of some frames."""
    results = []
    for row in rows:
        atoms = frames.to_ase(row)
        few = np.bincount(neighbour_list("i", atoms, NEIGHBOUR_ANG), minlength=len(atoms)) != 12
        truth = atoms.copy()
        truth.calc = EMT()
        squared = (model.forces(atoms) - truth.get_forces()) ** 2
        results.append(
            {
                "atoms": atoms,
                "few": few,
                "novelty": model.novelty(atoms),
                "error": np.sqrt(squared.sum(axis=1)),
                "all": float(np.sqrt(squared.mean())),
                "defects": float(np.sqrt(squared[few].mean())) if few.any() else float("nan"),
                "bulk": float(np.sqrt(squared[~few].mean())),
                "rms": float(np.sqrt((truth.get_forces() ** 2).mean())),
            }
        )
    return results


def draw_crystal(result: dict, path: Path, title: str) -> None:
    """The crystal seen along the slit: γ of every atom, and the error of its force."""
    atoms, order = result["atoms"], np.argsort(result["novelty"])
    wrapped = atoms.get_positions(wrap=True)[order]
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained", sharey=True)
    size = min(6.0, 40000 / len(atoms))
    for axis, values, name, top in (
        (axes[0], result["novelty"], "γ", 4.0),
        (axes[1], result["error"], "force error (eV/Å)", 0.5),
    ):
        drawn = axis.scatter(
            wrapped[:, 0], wrapped[:, 1], c=values[order], s=size, vmin=0, vmax=top, cmap="inferno_r", lw=0
        )
        figure.colorbar(drawn, ax=axis, label=name, shrink=0.8)
    few = result["few"][order]
    axes[2].scatter(wrapped[few, 0], wrapped[few, 1], s=size, c="#34495e", lw=0)
    axes[2].set_title(f"{int(few.sum())} atoms without twelve neighbours", fontsize=10)
    axes[0].set_ylabel("y (Å), pulled along it")
    for axis in axes:
        axis.set(xlabel="x (Å)", aspect="equal")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_fragments(frames: Frames, rows: np.ndarray, path: Path) -> None:
    """Fragments as they were labelled, by the region of each atom, around the atom that asked for it."""
    figure = plt.figure(figsize=(4.2 * len(rows), 4.4), layout="constrained")
    for place, row in enumerate(rows, start=1):
        axis = figure.add_subplot(1, len(rows), place, projection="3d", proj_type="ortho")
        part = frames.atom_slice(int(row))
        positions, region, cell = frames.positions[part], frames.region[part], frames.cell[row]
        centred = positions - positions[0]
        scaled = np.linalg.solve(cell.T, centred.T).T
        centred = (scaled - np.round(scaled)) @ cell
        for kind, colour in COLOURS.items():
            mine = centred[region == kind]
            if len(mine):
                name = f"{kind.name.lower()} ({len(mine)})"
                axis.scatter(*mine.T, s=70, c=colour, edgecolors="k", lw=0.3, label=name, depthshade=False)
        axis.scatter(0, 0, 0, s=200, c="k", marker="*", label="centre", depthshade=False)
        corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) - 0.5
        for a in corners:
            for b in corners:
                if np.abs(a - b).sum() == 1 and tuple(a) < tuple(b):
                    axis.plot(*np.array([a @ cell, b @ cell]).T, c="0.6", lw=0.8)
        axis.set_axis_off()
        axis.set_aspect("equal")
        axis.legend(loc="upper left", fontsize=7, frameon=False)
        axis.set_title(f"{len(positions)} atoms around atom {int(frames.parent_atom[part][0])}", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_rounds(history: dict, runs: list[dict], path: Path) -> None:
    """How far each pass came, and the largest γ on the way."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for run in runs:
        left.plot(run["step"], run["novelty"], "o-", ms=3, label=f"round {run['round']}")
    for threshold, name in ((4.0, "stop"), (2.5, "select")):
        left.axhline(threshold, c="k", ls="--" if name == "stop" else ":", lw=1)
        left.annotate(name, (0, threshold), fontsize=8, va="bottom")
    left.set(xlabel="step", ylabel="largest γ of all atoms", ylim=(0, 4.5))
    left.legend(fontsize=7)
    rounds = history["rounds"]
    right.plot([one["number"] for one in rounds], [one["steps_trusted"] for one in rounds], "o-", label="steps trusted")
    right.set(xlabel="round", ylabel="steps trusted", xticks=[one["number"] for one in rounds])
    twin = right.twinx()
    twin.plot([one["number"] for one in rounds], [one["force_rmse"] for one in rounds], "s--", c="#c0392b")
    twin.set_ylabel("force RMSE on held-out frames (eV/Å)", color="#c0392b")
    figure.savefig(path, dpi=130)
    plt.close(figure)


@click.command()
@click.argument("pk")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option("--frames", "n_frames", default=3, show_default=True, help="Frames of the last pass to compare.")
def main(pk: str, folder: Path, n_frames: int) -> None:
    """Print errors and times, and draw."""
    folder.mkdir(parents=True, exist_ok=True)
    node = orm.load_node(pk)
    history = steps(node, "_record")[-1].outputs.result.get_dict()  # while it runs, those of the rounds so far
    n_rounds = len(history["rounds"])
    explored = steps(node, "_explore_")[:n_rounds]
    last, potentials = explored[-1], steps(node, "_train")[:n_rounds][-1].outputs.potentials
    frames = last.outputs.dataset.frames()
    rows = sorted({int(row) for row in np.linspace(len(frames) - 1, 0, n_frames)})
    compared = compare(frames, rows, calculator(potentials["member_0"]))
    held_out = history["rounds"][-1]["force_rmse"]
    novelties = [one.outputs.series.get_array("largest_novelty") for one in explored if "series" in one.outputs]
    summary = {
        "verdict": history["verdict"],
        "evidence": history["evidence"],
        "wall_minutes": round((steps(node, "_record")[-1].mtime - node.ctime).total_seconds() / 60, 1),
        "rounds": len(history["rounds"]),
        "labelled": sum(one["n_labelled"] for one in history["rounds"]),
        "stops_in_last_pass": [run["stopped_by"] for run in last.outputs.summary["runs"]],
        "largest_novelty_in_last_pass": float(np.max(novelties[-1])),
        "held_out_force_rmse": held_out,
        "large": [
            {key: round(one[key], 4) for key in ("all", "bulk", "defects", "rms")}
            | {"novelty_max": round(float(one["novelty"].max()), 2), "ratio": round(one["all"] / held_out, 3)}
            for one in compared
        ],
    }
    print(json.dumps(summary, indent=1))
    (folder / "large_crystal.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw_crystal(
        compared[-1], folder / "large_crystal.png", f"{len(compared[-1]['atoms'])} atoms, last frame of the last pass"
    )
    dataset = steps(node, "_merge")[-1].outputs.dataset.frames()
    cut = np.flatnonzero(dataset.parent_atom[dataset.offsets[:-1]] >= 0)
    draw_fragments(
        dataset, cut[np.linspace(0, len(cut) - 1, min(3, len(cut))).astype(int)], folder / "large_fragments.png"
    )
    runs = [
        {"round": number} | {key: one.outputs.series.get_array(name) for key, name in SERIES.items()}
        for number, one in enumerate(explored)
        if "series" in one.outputs
    ]
    draw_rounds(history, runs, folder / "large_rounds.png")


if __name__ == "__main__":
    main()
