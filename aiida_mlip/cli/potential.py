"""``aiida-mlip potential``: import, show and export potentials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiida_mlip.errors import ExternalProgramError, InvalidInputError

if TYPE_CHECKING:
    from aiida_mlip.data.potential import PotentialData


@click.group()
def potential() -> None:
    """Import, show, bake and export potentials. No command executes code of a model file here, jobs do."""


@potential.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--engine", default="nequip", show_default=True, help="What runs it: nequip or allegro.")
@click.option("--cutoff", "cutoff_ang", type=float, metavar="ANGSTROM", help="Radial cutoff, if the package is silent.")
@click.option("--fidelity", "fidelities", multiple=True, metavar="NAME", help="Level of theory it was trained on.")
@click.option("--joint", is_flag=True, help="The model is told the level of theory (field `dataset`), in that order.")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="[FIDELITY:]SYMBOL=EV",
    help="Energy of an isolated atom, e.g. pbe:Si=-103.6.",
)
@click.option("--label", default="", help="Label of the node.")
@click.option("--description", default="", help="Description of the node, e.g. where the model comes from.")
def import_(
    path: Path,
    engine: str,
    cutoff_ang: float | None,
    fidelities: tuple[str, ...],
    joint: bool,
    references: tuple[str, ...],
    label: str,
    description: str,
) -> None:
    """Store the package PATH (made by `nequip-package build`) as a potential; the file is checked completely."""
    from aiida_mlip.data.potential import PotentialData

    _load_profile()
    node = PotentialData.import_package(
        path,
        engine=engine,
        cutoff_ang=cutoff_ang,
        fidelities=fidelities,
        joint=joint,
        reference_energies=_references(references, fidelities),
    )
    node.label, node.description = label, description or f"imported from {path.name}"
    node.store()
    click.echo(f"stored potential {node.pk} <{node.uuid}>: {', '.join(node.species)}, cutoff {node.cutoff_ang:g} Å")
    click.echo("using it executes code from this file on the compute node: import only what you trust")


@potential.command()
@click.argument("identifier")
def show(identifier: str) -> None:
    """Tell what the potential IDENTIFIER (pk or uuid) is, where it comes from and how good it is."""
    from rich.console import Console
    from rich.table import Table

    node = _load(identifier)
    table = Table(title=f"Potential {node.pk} {node.label}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _rows(node):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    if errors := _error_table(node.metrics):
        console.print(errors)


@potential.command()
@click.argument("identifier")
@click.argument("fidelity")
@click.option(
    "--code", default="aiida-mlip-evaluate@localhost", show_default=True, metavar="LABEL", help="aiida-mlip-evaluate."
)
@click.option("--label", default="", help="Label of the node.")
def bake(identifier: str, fidelity: str, code: str, label: str) -> None:
    """Make an ordinary potential of FIDELITY out of the joint potential IDENTIFIER (pk or uuid); takes a job."""
    from aiida.engine import run_get_node

    from aiida_mlip.calculations.bake import BakeCalculation, request_of
    from aiida_mlip.cli.develop import load_code

    joint = _load(identifier)
    request_of(joint, fidelity)
    builder = BakeCalculation.get_builder()
    builder.code, builder.potential, builder.fidelity = load_code("evaluate", code), joint, fidelity
    results, job = run_get_node(builder)
    if not job.is_finished_ok:
        raise ExternalProgramError(
            f"BakeCalculation<{job.pk}> failed with status {job.exit_status}: {job.exit_message}"
        )
    baked = results["potential"]
    baked.label = label or f"{joint.label} {fidelity}".strip()
    click.echo(f"potential {baked.pk} <{baked.uuid}>: {fidelity}, {', '.join(baked.species)}")


@potential.command()
@click.argument("identifier")
@click.argument("path", type=click.Path(path_type=Path))
def export(identifier: str, path: Path) -> None:
    """Write the package of the potential IDENTIFIER (pk or uuid) to PATH, a new file or a folder."""
    target = _load(identifier).export(path)
    click.echo(f"wrote {target}")


def _load_profile() -> None:
    """Load the default profile, unless ``aiida-mlip --profile`` loaded one.

    :raises InvalidInputError: there is none.
    """
    from aiida import load_profile
    from aiida.common.exceptions import AiidaException

    try:
        load_profile()
    except AiidaException as error:
        raise InvalidInputError(f"no AiiDA profile: {error}; `aiida-mlip setup` makes one") from error


def _load(identifier: str) -> PotentialData:
    from aiida import orm
    from aiida.common.exceptions import MultipleObjectsError, NotExistent

    from aiida_mlip.data.potential import PotentialData

    _load_profile()
    try:
        node = orm.load_node(identifier)
    except (NotExistent, MultipleObjectsError, ValueError) as error:
        raise InvalidInputError(f"no potential {identifier!r}: {error}") from error
    if not isinstance(node, PotentialData):
        raise InvalidInputError(f"node {identifier} is a {type(node).__name__}, not a potential")
    return node


def _references(given: tuple[str, ...], fidelities: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Energies of isolated atoms by fidelity and symbol.

    :raises InvalidInputError: not of the form ``fidelity:symbol=number``, or no fidelity to attach it to.
    """
    from ase.data import atomic_numbers

    result: dict[str, dict[str, float]] = {}
    for text in given:
        name, _, rest = text.rpartition(":")
        symbol, _, number = rest.partition("=")
        fidelity = name or (fidelities[0] if len(fidelities) == 1 else "")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if value != value or symbol not in atomic_numbers:
            raise InvalidInputError(f"--reference {text!r}: expected [FIDELITY:]SYMBOL=EV, e.g. pbe:Si=-103.6")
        if fidelity not in fidelities:
            raise InvalidInputError(f"--reference {text!r}: name one of the fidelities given ({list(fidelities)})")
        result.setdefault(fidelity, {})[symbol] = value
    return result


def _rows(node: PotentialData) -> list[tuple[str, str]]:
    creator = node.creator
    references = [
        f"{fidelity}: {', '.join(f'{symbol} {energy:.6f}' for symbol, energy in table.items())}"
        for fidelity, table in node.reference_energies.items()
    ]
    return [
        ("uuid", node.uuid),
        ("engine", f"{node.engine} ({', '.join(f'{name} {version}' for name, version in node.versions.items())})"),
        ("species", ", ".join(node.species)),
        ("cutoff", f"{node.cutoff_ang:g} Å"),
        ("fidelities", _fidelities(node)),
        ("isolated atoms (eV)", "; ".join(references) or "not known"),
        ("metrics", ", ".join(_scalars(node.metrics)) or "none recorded"),
        ("grades", _grades(node)),
        ("calibration", _calibration(node)),
        ("package", f"{node.base.attributes.get('size_bytes') / 1e6:.2f} MB, SHA-256 {node.sha256}"),
        ("made by", f"{creator.process_label} {creator.pk}" if creator else "imported by a user"),
        ("description", node.description),
    ]


def _fidelities(node: PotentialData) -> str:
    names = ", ".join(node.fidelities) or "not known"
    return f"{names}: joint, runs once it is baked at one of them (aiida-mlip potential bake)" if node.joint else names


def _grades(node: PotentialData) -> str:
    """What its grades were fitted on."""
    from ase.data import chemical_symbols

    grades = node.grades()
    if grades is None:
        return "none: its novelty cannot be told"
    parts = [
        f"{chemical_symbols[number]} {element.n_train} environments, {len(element.means)} cluster(s)"
        for number, element in sorted(grades.elements.items())
    ]
    return f"{'; '.join(parts)}; {grades.n_features} features"


def _calibration(node: PotentialData) -> str:
    """Scales of the committee's deviation, and how well they do on held-out atoms."""
    found = node.calibration()
    if found is None:
        return "none: it takes a committee and frames held out from all members"
    scales = ", ".join(f"{symbol} {scale:.3g}" for symbol, scale in sorted(found.scale.items()))
    coverage = found.metrics.get("coverage", {})
    places = {"all": coverage.get("all"), **{name: entry["coverage"] for name, entry in _entries(coverage)}}
    covered = ", ".join(f"{name} {value:.3f}" for name, value in places.items() if value is not None)
    names = ("spearman", "auroc", "nll", "miscalibration_area", "ence")
    scores = ", ".join(f"{name} {_number(found.metrics.get(name), '.3g')}" for name in names)
    return (
        f"at {found.level:.0%} on {found.n_atoms} held-out atoms: error <= scale x deviation, scale {scales}; "
        f"coverage {covered}; force error (vector rms) {found.force_rmse_validation:.4g} eV/Å; {scores}"
    )


def _entries(coverage: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [entry for kind in ("element", "region") for entry in coverage.get(kind, {}).items()]


def _scalars(metrics: dict[str, Any], prefix: str = "") -> list[str]:
    """Numbers of the metrics as ``name value``; error reports per part come in a table of their own."""
    found = []
    for name, value in metrics.items():
        if isinstance(value, dict) and "n_frames" not in value:
            found += _scalars(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found.append(f"{prefix}{name} {value:.4g}")
    return found


def _error_table(metrics: dict[str, Any]) -> Any:  # Any: rich.table.Table, imported when needed
    """Errors per part, where the metrics have them in the form of :class:`aiida_mlip.kernel.metrics.ErrorReport`."""
    from rich.table import Table

    parts = {name: value for name, value in metrics.items() if isinstance(value, dict) and "n_frames" in value}
    if not parts:
        return None
    table = Table("part", "frames", "E RMSE (meV/atom)", "F RMSE (eV/Å)", "F RMSE/rms", "stress RMSE (GPa)")
    for name, value in parts.items():
        numbers = [
            _number(value.get("energy_rmse_ev_per_atom"), ".2f", 1e3),
            _number(value.get("force_rmse_ev_per_ang"), ".4f"),
            _number(value.get("force_rmse_relative"), ".1%"),
            _number(value.get("stress_rmse_gpa"), ".3f"),
        ]
        table.add_row(name, str(value["n_frames"]), *numbers)
    return table


def _number(value: float | None, spec: str, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:{spec}}"
