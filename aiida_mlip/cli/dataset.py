"""``aiida-mlip dataset``: import, export and show datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiida_mlip.cli.nodes import load_profile, load_typed
from aiida_mlip.errors import InvalidInputError, MlipError

if TYPE_CHECKING:
    from aiida import orm

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.io.readers import FileFrames


@click.group()
def dataset() -> None:
    """Import, export and show datasets."""


@dataset.command("import")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--fidelity", metavar="NAME", help="Level of theory of the labels, e.g. pbe; needed if there are any.")
@click.option("--group", default="frame", show_default=True, help="Split groups: frame, file, or an info key.")
@click.option("--settings", metavar="HASH", help="Settings hash of the fidelity: its labels are then reused.")
@click.option("--format", "file_format", metavar="NAME", help="ASE's name of the file format.")
@click.option("--energy-key", metavar="KEY", help="Info key of the total energy in extended XYZ, in eV.")
@click.option("--forces-key", metavar="KEY", help="Column of the forces in extended XYZ, in eV/Å.")
@click.option("--virial-sign", type=click.Choice(["negative", "positive"]), help="stress = -virial/V, or +virial/V.")
@click.option("--from-calculations", "calculations", multiple=True, metavar="PK|GROUP", help="Finished pw.x jobs.")
@click.option("--accept-implausible", is_flag=True, help="Import labels that look wrong; what is wrong is recorded.")
@click.option("--label", default="", help="Label of the node.")
def import_(paths: tuple[Path, ...], calculations: tuple[str, ...], label: str, **options: Any) -> None:
    """Store frames from files as a dataset: extended XYZ, what ASE reads, or directories of pw.x outputs.

    Units are eV, Å and eV/Å³ (tension positive). Labels are checked against one another and refused if they look wrong.
    """
    if bool(paths) == bool(calculations):
        raise InvalidInputError("give files, or --from-calculations, not both and not neither")
    load_profile()
    node = _from_calculations(calculations, options) if calculations else _from_files(paths, options)
    node.label = label
    if not node.is_stored:
        node.description = f"imported from {', '.join(path.name for path in paths)}"[:255]
        node.store()
    click.echo(f"stored dataset {node.pk} <{node.uuid}>: {_one_line(node)}")
    verdict = node.base.attributes.get("plausibility", {})
    for finding in verdict.get("findings", []):
        click.echo(f"accepted although frame {finding['frame']} {finding['reason']}", err=True)
    for check in verdict.get("untested", []):
        click.echo(f"not tested for lack of data: {check}")


def _from_files(paths: tuple[Path, ...], options: dict[str, Any]) -> DatasetData:
    from aiida_mlip.calculations.functions.dataset import checked_dataset
    from aiida_mlip.io.extxyz import LabelKeys
    from aiida_mlip.io.readers import join, read_path

    keys = LabelKeys(energy=options["energy_key"], forces=options["forces_key"], virial_sign=options["virial_sign"])
    fidelity = options["fidelity"]
    parts = [
        part
        for path in paths
        for part in read_path(
            path, fidelity=fidelity, keys=keys, group=options["group"], file_format=options["file_format"]
        )
    ]
    for part in parts:
        if part.unconverged:
            click.echo(f"{part.path}: {part.unconverged} frame(s) whose SCF did not converge: no label", err=True)
    settings = {fidelity: options["settings"]} if fidelity and options["settings"] else {}
    accept = options["accept_implausible"]
    if len(parts) > 1:  # messages shall count the frames of the file, not of all files together
        for part in parts:
            checked_dataset(part.frames, settings={}, accept_implausible=accept, source=str(part.path))
    return checked_dataset(join(parts), settings=settings, accept_implausible=accept, source=_source(parts))


def _source(parts: list[FileFrames]) -> str:
    return str(parts[0].path) if len(parts) == 1 else f"{len(parts)} files together"


def _from_calculations(identifiers: tuple[str, ...], options: dict[str, Any]) -> DatasetData:
    from aiida import orm

    from aiida_mlip.calculations.functions.dataset import calculation_inputs, import_calculations

    if not options["fidelity"]:
        raise InvalidInputError("--fidelity: name the level of theory of the calculations")
    nodes = calculation_inputs(node for identifier in identifiers for node in _calculations(identifier))
    inputs: dict[str, Any] = {
        "fidelity": orm.Str(options["fidelity"]),
        "accept_implausible": orm.Bool(options["accept_implausible"]),
        **nodes,
    }
    if options["settings"]:
        inputs["settings"] = orm.Str(options["settings"])
    outputs, process = import_calculations.run_get_node(**inputs)
    if not process.is_finished_ok:
        raise InvalidInputError(process.exit_message)
    node: DatasetData = outputs["dataset"]
    return node


def _calculations(identifier: str) -> list[orm.CalcJobNode]:
    """Jobs of a group, or one by pk or uuid; of a workchain, the jobs that it called last."""
    from aiida import orm
    from aiida.common.exceptions import MultipleObjectsError, NotExistent

    try:
        node = orm.load_node(identifier)
    except (NotExistent, MultipleObjectsError, ValueError):
        try:
            nodes = list(orm.load_group(identifier).nodes)
        except NotExistent as error:
            raise InvalidInputError(f"no calculation and no group {identifier!r}") from error
    else:
        nodes = [node]
    jobs = []
    for found in nodes:
        if isinstance(found, orm.WorkChainNode):
            inner = [job for job in found.called_descendants if isinstance(job, orm.CalcJobNode)]
            jobs += inner[-1:] if "output_parameters" in found.outputs else [job for job in inner if job.is_finished_ok]
        elif isinstance(found, orm.CalcJobNode):
            jobs.append(found)
    if not jobs:
        raise InvalidInputError(f"{identifier!r} holds no calculations")
    return jobs


@dataset.command()
@click.argument("identifier")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--nan-missing", is_flag=True, help="Write missing labels as nan, so that all frames have the same keys.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def export(identifier: str, path: Path, nan_missing: bool, force: bool) -> None:
    """Write the dataset IDENTIFIER (pk or uuid) as extended XYZ with every digit and the lineage of each frame."""
    from aiida_mlip.io.extxyz import write_extxyz

    node = load_dataset(identifier)
    if path.exists() and not force:
        raise InvalidInputError(f"{path} exists; --force overwrites it")
    with path.open("w", encoding="utf-8") as stream:
        for frames in node.iter_shards():
            write_extxyz(frames, stream, nan_missing=nan_missing)
    click.echo(f"wrote {len(node)} frames to {path}")


@dataset.command()
@click.argument("identifier")
@click.option("--json", "as_json", is_flag=True, help="Print the attributes as JSON.")
def show(identifier: str, as_json: bool) -> None:
    """Tell what is in the dataset IDENTIFIER (pk or uuid); no array is read."""
    node = load_dataset(identifier)
    if as_json:
        attributes = {key: value for key, value in node.base.attributes.all.items() if key != "shards"}
        click.echo(json.dumps({"pk": node.pk, "uuid": node.uuid, "label": node.label, **attributes}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Dataset {node.pk} {node.label}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _rows(node):
        table.add_row(name, value)
    Console().print(table)


def _rows(node: DatasetData) -> list[tuple[str, str]]:
    """Lines of the table; every number is an attribute of the node."""
    known = node.base.attributes.all
    size = sum(shard["bytes"] for shard in known["shards"])
    rows = [
        ("uuid", node.uuid),
        ("made by", f"{node.creator.process_label} {node.creator.pk}" if node.creator else "user input"),
        (
            "frames",
            f"{known['n_rows']} rows, {known['n_atoms']} atoms, {size / 1e6:.2f} MB in {len(known['shards'])} shards",
        ),
        ("species", " ".join(known["species"])),
    ]
    for name, entry in known["fidelities"].items():
        settings = f", settings {entry['settings'][:12]}" if entry["settings"] else ", labels from elsewhere"
        rows.append((f"fidelity {name}", f"{entry['labelled']} labelled, {entry['failed']} failed{settings}"))
    for title, key in (("generators", "generators"), ("failures", "failures")):
        if known[key]:
            rows.append((title, ", ".join(f"{count} {name}" for name, count in known[key].items())))
    for name, energies in known["reference_energies"].items():
        rows.append((f"isolated atoms, {name}", ", ".join(f"{s} {e:.6f} eV" for s, e in energies.items())))
    rows += [(name, f"{low:.6g} .. {high:.6g}") for name, (low, high) in known["ranges"].items()]
    verdict = known.get("plausibility")
    if verdict is not None:
        found = verdict["findings"]
        rows.append(("labels checked", f"{len(found)} findings, accepted" if found else "nothing implausible"))
        rows += [("", f"frame {finding['frame']}: {finding['reason']}") for finding in found[:5]]
        rows += [(name, f"{value:.4g}") for name, value in verdict["measures"].items()]
    return rows


def _one_line(node: DatasetData) -> str:
    labels = ", ".join(
        f"{entry['labelled']} labelled at {name}" for name, entry in node.base.attributes.get("fidelities").items()
    )
    return f"{len(node)} frames of {' '.join(node.species)}" + (f", {labels}" if labels else ", no labels")


def load_dataset(identifier: str) -> DatasetData:
    """Dataset by pk, uuid or label.

    :raises MlipError: no profile, no such node, or not a dataset.
    """
    from aiida_mlip.data.dataset import DatasetData

    node = load_typed(identifier, DatasetData, "dataset")
    if not isinstance(node, DatasetData):
        raise MlipError(f"node {identifier} is not a dataset")
    return node
