"""``aiida-mlip taint``: what rests on a label, a frame or a calculation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aiida_mlip.data.taint import Taint, Tainted

_MOST_SHOWN = 20


@click.command()
@click.argument("target", metavar="LABEL|CALCULATION|FRAME")
@click.option("--row", type=click.IntRange(min=0), help="One label of a calculation that made several, or one row.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with nothing left out.")
def taint(target: str, row: int | None, as_json: bool) -> None:
    """Show every dataset, potential, simulation and property that rests on TARGET, should it be wrong.

    TARGET is a calculation or any other node (pk, uuid or label), a frame (its id, or the first digits of it), or a
    label: FIDELITY:FRAME, as in pbe:3fa2c1.
    """
    from aiida_mlip.cli.nodes import load_profile

    load_profile()
    from aiida_mlip.data import taint as data
    from aiida_mlip.data.frame_index import FrameIndex
    from aiida_mlip.data.identify import FrameName, identify

    with FrameIndex.open() as index:
        index.refresh()
        found = identify(target, index)
        if not isinstance(found, FrameName):
            result = data.taint(found, row=row, index=index)
        elif row is not None:
            raise click.UsageError("--row needs a calculation or a dataset; for a label of a frame give FIDELITY:FRAME")
        else:
            result = data.taint_frame(found.frame_id, fidelity=found.fidelity, index=index)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        for line in _lines(result):
            click.echo(line)


def _lines(result: Taint) -> list[str]:
    lines = [f"{result.target}: {result.n_nodes} nodes rest on it"]
    lines += _section("dataset", result.datasets)
    lines += _section("potential", result.potentials)
    lines += _section("simulation", result.simulations)
    lines += _section("property", result.properties)
    if result.labels:
        lines.append(f"  {result.labels} label calculations came after it")
    return lines


def _section(title: str, nodes: tuple[Tainted, ...]) -> list[str]:
    """Those that rest on it directly first."""
    ordered = sorted(nodes, key=lambda each: (each.how == "follows", each.node.pk))
    lines = []
    for each in ordered[:_MOST_SHOWN]:
        name = f" {each.node.name}" if each.node.name else ""
        how = "" if each.how == "follows" else f" ({each.how})"
        lines.append(f"  {title} {each.node.kind}<{each.node.pk}>{name} {each.node.uuid}{how}")
    if len(ordered) > _MOST_SHOWN:
        lines.append(f"  ({title}: {len(ordered) - _MOST_SHOWN} more, see --json)")
    return lines
