"""``aiida-mlip generate``: make frames, or look first at what would be made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aiida_mlip.cli.nodes import load_profile, load_typed
from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.kernel.frames import Frames
    from aiida_mlip.protocols.generate import GenerateJob


#: What AiiDA puts before the message of a port's validator.
_PORT: Final[re.Pattern[str]] = re.compile(r"^Error occurred validating port '[\w.]+': ")


@click.command()
@click.argument("structures", nargs=-1)
@click.option("--spec", "spec_path", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of the steps.")
@click.option("--protocol", help="fast, moderate or precise, where there is no --spec.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all random numbers (default 0, or as the file says).")
@click.option("--code", "codes", multiple=True, metavar="NAME=LABEL", help="Code of stages, e.g. pw=pw@localhost.")
@click.option(
    "--potential", metavar="POTENTIAL", help="Potential of stages that name no calculator: pk, uuid or label."
)
@click.option("--import", "imports", multiple=True, metavar="NAME=DATASET", help="Dataset of an import step.")
@click.option("--reference", metavar="DATASET", help="Say how much of this dataset's environments is reached.")
@click.option("--preview", is_flag=True, help="Print what would be made, and its cost; nothing is stored or run.")
@click.option(
    "--cost-from", metavar="DATASET", help="Estimate core-hours from this dataset only, not all of the profile."
)
@click.option("--submit", "to_daemon", is_flag=True, help="Hand the job to the daemon instead of running it here.")
@click.option("--label", default="", help="Label of the dataset.")
def generate(
    structures: tuple[str, ...],
    spec_path: Path | None,
    protocol: str | None,
    *,
    seed: int | None,
    codes: tuple[str, ...],
    potential: str | None,
    imports: tuple[str, ...],
    reference: str | None,
    preview: bool,
    cost_from: str | None,
    to_daemon: bool,
    label: str,
) -> None:
    """Generate frames from STRUCTURES: pks of datasets or structures, or files that ASE reads.

    The keys of the file are documented in aiida_mlip.protocols.generate (GenerateJob); options that are given here
    replace those of the file. examples/generate.yaml is one.
    """
    from rich.console import Console

    from aiida_mlip.protocols.generate import parse_generate

    job = _job(spec_path, protocol)
    given = {"seed": seed, "potential": potential, "reference": reference}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes["codes"] = {**job.codes, **_pairs(codes, "--code")}
    changes["imports"] = {**job.imports, **_pairs(imports, "--import")}
    changes["structures"] = [*_beside(job.structures, spec_path), *structures]
    job = job.model_copy(update=changes)
    parse_generate(job.spec, where=str(spec_path or "generate"))
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=140)  # a log file does not wrap
    if preview:
        from aiida_mlip.cli.generate_preview import print_preview

        print_preview(job, seeds=_seed_frames(job.structures), cost_from=cost_from, console=console)
        return
    load_profile()
    builder = _builder(job)
    if to_daemon:
        from aiida_mlip.cli.progress import submit_to_daemon

        pk = submit_to_daemon(builder).pk
        click.echo(f"submitted as {pk}: aiida-mlip status {pk} --watch")
        return
    outputs, process = _run(builder)
    if "dataset" in outputs:
        node, summary = outputs["dataset"], outputs["summary"]
        if label:
            node.label = label
        console.print(summary_table(summary.get_dict(), caption=f"from Dict<{summary.pk}>"))
        if reached := summary.get_dict().get("coverage"):
            parts = ", ".join(f"{symbol} {share:.0%}" for symbol, share in reached["per_element"].items())
            console.print(
                f"coverage: {reached['fraction']:.0%} of the reference's environments ({parts}); {reached['novel']} "
                "cells that it does not have",
                soft_wrap=True,
            )
        console.print(f"dataset: DatasetData<{node.pk}> {node.uuid}", soft_wrap=True)
        if cost_from is not None:
            from aiida_mlip.cli.generate_preview import print_cost_of

            print_cost_of(node, cost_from, console=console)
    if not process.is_finished_ok:
        raise InvalidInputError(f"GenerateWorkChain<{process.pk}>: {process.exit_message}")


def summary_table(summary: dict[str, Any], *, caption: str | None = None) -> Table:
    """Table of what each step made, from the summary of a generation or of its preview."""
    from rich.table import Table

    rough = any(step.get("estimated") for step in summary["steps"])
    title = f"{'about ' if rough else ''}{summary['n_frames']} frames"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in ("step", "from"):
        table.add_column(name)
    for name in ("frames", "left out", "atoms", "volume\nÅ³/atom", "smallest\ndistance Å"):
        table.add_column(name, justify="right")
    if has_labels := any(step.get("labels") for step in summary["steps"]):
        table.add_column("labels")
    if has_process := any("process" in step for step in summary["steps"]):
        table.add_column("made by")
    if summary["n_seeds"]:
        table.add_row("seeds", "", str(summary["n_seeds"]))
    for step in summary["steps"]:
        name = step["name"] if step["name"] == step["generator"] else f"{step['name']} ({step['generator']})"
        volume, distance = step["volume_ang3_per_atom"], step["smallest_distance_ang"]
        known = step["natoms"] is not None and not step.get("estimated")
        cells = [
            name,
            ", ".join(step["parents"]) or "nothing",
            f"{'about ' if step.get('estimated') else ''}{step['frames']}",
            _left_out(step),
            _span(step["natoms"], "d") if step["natoms"] else "",
            _span(volume, ".2f") if volume else "",
            f"{distance:.3f}" if distance is not None else ("> 6" if known else ""),
        ]
        if has_labels:
            labels = step.get("labels", {}).items()
            cells.append(", ".join(f"{entry['labelled']} {fidelity}" for fidelity, entry in labels))
        if has_process:
            status = step.get("exit_status")
            cells.append((step.get("process") or "given")[:8] + (f" [{status}]" if status else ""))
        table.add_row(*cells)
    return table


def _left_out(step: dict[str, Any]) -> str:
    """Frames that are not in the result, and which filter dropped how many of them."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in step.get("dropped", {}).items())
    return f"{step['made'] - step['frames']}" + (f" ({reasons})" if reasons else "")


def _span(window: list[float], form: str) -> str:
    low, high = (format(value, form) for value in window)
    return low if low == high else f"{low} .. {high}"


# -- what is asked -------------------------------------------------------------------------------------------------


def _job(path: Path | None, protocol: str | None) -> GenerateJob:
    from aiida_mlip.protocols.generate import GenerateJob
    from aiida_mlip.protocols.model import merged_protocol, validate_spec

    if path is None:
        return validate_spec(GenerateJob, merged_protocol("generate", protocol), where="generate")
    if protocol is not None:
        raise InvalidInputError("give --spec or --protocol, not both")
    return read_spec(path)


def read_spec(path: Path) -> GenerateJob:
    """Steps of a YAML file.

    :raises InvalidInputError: no such file, or keys and values that it cannot have.
    :raises FileFormatError: not YAML.
    """
    from aiida_mlip.io.documents import parse_yaml
    from aiida_mlip.protocols.generate import GenerateJob
    from aiida_mlip.protocols.model import validate_spec

    try:
        content = parse_yaml(path.read_bytes(), source=str(path))
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path}: expected a mapping with the key 'steps', got {type(content).__name__}")
    return validate_spec(GenerateJob, content, where=str(path))


def _pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping."""
    result = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise InvalidInputError(f"{option}: expected NAME=VALUE, got {text!r}")
        result[name] = value
    return result


def _beside(names: list[str | int], spec_path: Path | None) -> list[str]:
    """Structures of a file: files beside it, or nodes."""
    folder = Path() if spec_path is None else spec_path.parent
    return [str(folder / str(name)) if (folder / str(name)).exists() else str(name) for name in names]


def _seed_frames(structures: list[str | int]) -> Frames | None:
    from aiida import orm

    from aiida_mlip.io.readers import join, read_path
    from aiida_mlip.kernel.frames import concatenate, from_ase

    parts = []
    for name in map(str, structures):
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
    if Path(name).suffix:
        raise InvalidInputError(f"there is no file {name}")
    return load_typed(name, (DatasetData, orm.StructureData), "dataset, structure or file")


def _builder(job: GenerateJob) -> Any:  # Any: a ProcessBuilder
    from aiida import orm

    from aiida_mlip.cli.develop import load_code
    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.data.potential import PotentialData
    from aiida_mlip.workchains.generate import GenerateWorkChain

    nodes = [_seed_node(str(name)) for name in job.structures]
    datasets = [node for node in nodes if isinstance(node, DatasetData)]
    cells = [node for node in nodes if isinstance(node, orm.StructureData)]
    if len(datasets) > 1:
        raise InvalidInputError(f"give one dataset or file at most, got {len(datasets)}; merge them first")
    inputs: dict[str, Any] = {"max_concurrent": job.max_concurrent, "options": job.options or None}
    if job.potential is not None:
        inputs["potential"] = load_typed(str(job.potential), PotentialData, "potential")
    if job.committee:
        members = job.committee.items()
        inputs["committee"] = {name: load_typed(str(value), PotentialData, "potential") for name, value in members}
    if job.reference is not None:
        inputs["reference"] = load_typed(str(job.reference), DatasetData, "dataset")
    if job.imports:
        inputs["imports"] = import_nodes(job)
    return GenerateWorkChain.get_builder_from_protocol(
        datasets[0] if datasets else None,
        cells=cells,
        overrides={"keep_seeds": False, **job.spec, "seed": job.seed},
        codes={name: load_code(name, label) for name, label in job.codes.items()},
        fidelities=job.fidelities or None,
        **inputs,
    )


def import_nodes(job: GenerateJob) -> dict[str, DatasetData]:
    """Datasets of the import steps."""
    from aiida_mlip.cli.dataset import load_dataset

    return {name: load_dataset(str(identifier)) for name, identifier in job.imports.items()}


def _run(builder: Any) -> tuple[dict[str, Any], Any]:  # Any: a ProcessBuilder; a ProcessNode
    """Outputs and process; progress is shown where programs run."""
    from aiida.engine import run_get_node

    from aiida_mlip.cli.progress import run_with_progress
    from aiida_mlip.protocols.generate import parse_generate, stage_steps

    stages = stage_steps(parse_generate(builder.spec.get_dict())[0])
    try:
        return run_with_progress(builder) if stages else run_get_node(builder)
    except ValueError as error:  # a port's validator
        raise InvalidInputError(_PORT.sub("", str(error))) from error
