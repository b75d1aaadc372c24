"""``aiida-mlip audit``: check the provenance of a node."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

_MOST_SHOWN = 20


@click.command()
@click.argument("node", metavar="PK|UUID")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def audit(node: str, as_json: bool) -> None:
    """Check that every Data node that NODE rests on has a creator or was given by a person, and what it rests on.

    NODE is a potential, a dataset or a workchain. Looks for nodes without origin, random numbers without seed, labels
    in use whose calculation failed, and potentials whose calibration is missing or out of date. Exits with 1 when a
    node has no origin, or for another finding that makes the result wrong or impossible to repeat.
    """
    from aiida import orm
    from rich.console import Console
    from rich.markup import escape

    from aiida_mlip.cli.nodes import load_typed
    from aiida_mlip.data import provenance
    from aiida_mlip.data.audit_findings import findings

    loaded = load_typed(node, orm.Node, "node")
    report, found = provenance.audit(loaded), findings(loaded)
    passed = report.passed and not any(finding.serious for finding in found)
    if as_json:
        as_dict = {**report.as_dict(), "passed": passed, "findings": [asdict(finding) for finding in found]}
        click.echo(json.dumps(as_dict, indent=2))
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
        for finding in found[:_MOST_SHOWN]:
            color = "red" if finding.serious else "yellow"
            console.print(f"[{color}]{finding.kind.replace('_', ' ')}[/{color}] {escape(finding.message)}")
        if len(found) > _MOST_SHOWN:
            console.print(f"  {len(found) - _MOST_SHOWN} more findings, see --json")
        n_serious = len(report.orphans) + sum(finding.serious for finding in found)
        console.print("[green]passed[/green]" if passed else f"[red]failed[/red]: {n_serious} to look at")
    if not passed:
        raise SystemExit(1)
