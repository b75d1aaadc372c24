"""``aiida-mlip audit``: check the provenance of a node."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("node", metavar="PK|UUID")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def audit(node: str, as_json: bool) -> None:
    """Check that every Data node that NODE rests on has a creator or was given by a person.

    NODE is a potential, a dataset or a workchain. Exits with 1 when a node has no origin.
    """
    from aiida.common.exceptions import NotExistent
    from aiida.manage.configuration import load_profile
    from rich.console import Console

    load_profile()
    from aiida import orm

    from aiida_mlip.data import provenance

    try:
        report = provenance.audit(orm.load_node(node))
    except (NotExistent, ValueError) as error:
        raise click.ClickException(f"no node {node!r} in this profile: {error}") from error
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        console = Console(highlight=False)
        console.print(f"{report.n_nodes} nodes, {report.n_processes} of them processes")
        console.print(f"  {report.created} made by a calculation")
        console.print(f"  {report.user_inputs} given by a person")
        console.print(f"  {report.installed} codes and pseudopotentials")
        by_origin: dict[str, int] = {}
        for entry in report.third_party:
            by_origin[entry.origin] = by_origin.get(entry.origin, 0) + 1
        for origin, count in by_origin.items():
            console.print(f"  {count} made in a step of {origin.removeprefix('aiida.workflows:')} (another package)")
        for entry in report.orphans:
            console.print(f"[red]orphan[/red] {entry.node_type} pk {entry.pk} ({entry.uuid}): {entry.origin}")
        if report.unfinished:
            shown = ", ".join(str(pk) for pk in report.unfinished[:10])
            more = f" and {len(report.unfinished) - 10} more" if len(report.unfinished) > 10 else ""
            console.print(f"  processes that failed or have not ended: {shown}{more}")
        console.print("[green]passed[/green]" if report.passed else f"[red]failed[/red]: {len(report.orphans)} orphans")
    if not report.passed:
        raise SystemExit(1)
