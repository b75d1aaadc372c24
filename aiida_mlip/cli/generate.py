"""``aiida-mlip generate``: make frames, or look first at what would be made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiida_mlip.cli.nodes import load_profile, load_typed
from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from aiida_mlip.data.dataset import DatasetData


@click.command()
@click.argument("structures", nargs=-1)
@click.option("--spec", "spec_path", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of the steps.")
@click.option("--protocol", help="fast, moderate or precise, where there is no --spec.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option("--preview", is_flag=True, help="Print what would be made; nothing is stored.")
@click.option("--cost-from", metavar="DATASET", help="Estimate DFT core-hours from the costs of this labelled dataset.")
@click.option("--label", default="", help="Label of the dataset.")
def generate(
    structures: tuple[str, ...],
    spec_path: Path | None,
    protocol: str | None,
    seed: int,
    preview: bool,
    cost_from: str | None,
    label: str,
) -> None:
    """Generate frames from STRUCTURES: pks of datasets or structures, or files that ASE reads."""
    from rich.console import Console

    from aiida_mlip.protocols.generate import parse_generate

    settings = _settings(spec_path, protocol)
    steps, keep_seeds = parse_generate(settings, where=str(spec_path or "generate"))
    if cost_from is not None or not preview or any(not Path(name).exists() for name in structures):
        load_profile()
    console = Console()
    if preview:
        from aiida_mlip.calculations.functions.generate import summary_dict
        from aiida_mlip.kernel.generate import generate as generate_frames
        from aiida_mlip.protocols.generate import parse_filters

        seeds = _seed_frames(structures)
        frames, table = generate_frames(seeds, steps, seed=seed, keep_seeds=keep_seeds, filters=parse_filters(settings))
        n_seeds = len(seeds) if keep_seeds and seeds is not None else 0
        console.print(summary_table(summary_dict(table, n_seeds=n_seeds)))
        if cost_from is not None:
            console.print(_cost_line(frames.natoms.tolist(), cost_from), soft_wrap=True)
        return
    outputs = _run(structures, settings, seed)
    node = outputs["dataset"]
    node.label = label
    console.print(summary_table(outputs["summary"].get_dict(), caption=f"from Dict<{outputs['summary'].pk}>"))
    console.print(f"dataset: DatasetData<{node.pk}> {node.uuid}", soft_wrap=True)
    if cost_from is not None:
        console.print(_cost_line(node.column("natoms").tolist(), cost_from), soft_wrap=True)


def summary_table(summary: dict[str, Any], *, caption: str | None = None) -> Table:
    """Table of what each step made, from the summary of :func:`aiida_mlip.calculations.functions.generate.generate`."""
    from rich.table import Table

    table = Table(title=f"{summary['n_frames']} frames", caption=caption, title_justify="left", caption_justify="left")
    for name in ("step", "from"):
        table.add_column(name)
    for name in ("frames", "left out", "atoms", "volume\nÅ³/atom", "smallest\ndistance Å"):
        table.add_column(name, justify="right")
    if summary["n_seeds"]:
        table.add_row("seeds", "", str(summary["n_seeds"]), "", "", "", "")
    for step in summary["steps"]:
        title = step["name"] if step["name"] == step["generator"] else f"{step['name']} ({step['generator']})"
        volume, distance = step["volume_ang3_per_atom"], step["smallest_distance_ang"]
        table.add_row(
            title,
            ", ".join(step["parents"]) or "nothing",
            str(step["frames"]),
            _left_out(step),
            _span(step["natoms"], "d"),
            _span(volume, ".2f") if volume else "",
            f"{distance:.3f}" if distance is not None else "> 6",
        )
    return table


def _left_out(step: dict[str, Any]) -> str:
    """Frames that are not in the result, and which filter dropped how many of them."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in step.get("dropped", {}).items())
    return f"{step['made'] - step['frames']}" + (f" ({reasons})" if reasons else "")


def _span(window: list[float], form: str) -> str:
    low, high = (format(value, form) for value in window)
    return low if low == high else f"{low} .. {high}"


def _settings(path: Path | None, protocol: str | None) -> dict[str, Any]:
    from aiida_mlip.protocols.model import merged_protocol

    if path is None:
        return merged_protocol("generate", protocol)
    if protocol is not None:
        raise InvalidInputError("give --spec or --protocol, not both")
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path}: expected a mapping with the key 'steps', got {type(content).__name__}")
    return content


def _seed_frames(structures: tuple[str, ...]) -> Any:  # Any: Frames or None; kernel types are imported on use
    from aiida import orm

    from aiida_mlip.io.readers import join, read_path
    from aiida_mlip.kernel.frames import concatenate, from_ase

    parts = []
    for name in structures:
        if Path(name).exists():  # no profile is needed to look at what a file would give
            parts.append(join(read_path(name, fidelity=None)))
            continue
        node = _seed_node(name)
        parts.append(from_ase([node.get_ase()]) if isinstance(node, orm.StructureData) else node.frames())
    return concatenate(parts) if parts else None


def _seed_node(name: str) -> Any:  # Any: DatasetData or StructureData
    """Node of a pk or uuid; an unstored dataset of a file."""
    from aiida import orm

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.io.readers import join, read_path

    if Path(name).exists():
        return DatasetData.from_frames(join(read_path(name, fidelity=None)))
    return load_typed(name, (DatasetData, orm.StructureData), "dataset, structure or file")


def _run(structures: tuple[str, ...], settings: dict[str, Any], seed: int) -> dict[str, Any]:
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.workchains.generate import GenerateWorkChain

    nodes = [_seed_node(name) for name in structures]
    datasets = [node for node in nodes if isinstance(node, DatasetData)]
    if len(datasets) > 1:
        raise InvalidInputError(f"give one dataset or file at most, got {len(datasets)}; merge them first")
    builder = GenerateWorkChain.get_builder()
    builder.spec, builder.seed = orm.Dict(settings), orm.Int(seed)
    if datasets:
        builder.structures = datasets[0]
    cells = [node for node in nodes if isinstance(node, orm.StructureData)]
    if cells:
        builder.cells = {f"cell_{index:04d}": node for index, node in enumerate(cells)}
    try:
        result, process = run_get_node(builder)
    except ValueError as error:  # a port's validator
        raise InvalidInputError(str(error)) from error
    if not process.is_finished_ok:
        raise InvalidInputError(f"GenerateWorkChain<{process.pk}>: {process.exit_message}")
    outputs: dict[str, Any] = result
    return outputs


def _cost_line(natoms: list[int], identifier: str) -> str:
    """Core-hours to label frames, scaled from measured costs with the square of the number of atoms."""
    import numpy as np

    from aiida_mlip.cli.dataset import load_dataset

    node: DatasetData = load_dataset(identifier)
    cost, size = node.column("cost").astype(float), node.column("natoms").astype(float)
    known = np.isfinite(cost)
    if not known.any():
        raise InvalidInputError(f"--cost-from: dataset {identifier} holds no measured costs")
    per_square = float(np.median(cost[known] / size[known] ** 2))
    hours = per_square * float(np.sum(np.asarray(natoms, dtype=float) ** 2)) / 3600
    return (
        f"about {hours:.3g} core-hours of DFT, from {int(known.sum())} measured labels of dataset {node.pk}, "
        "taken to grow with the square of the number of atoms"
    )
