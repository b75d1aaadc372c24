"""``aiida-mlip taint``: what rests on a label, a frame or a calculation."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aiida_mlip.data.taint import Taint, Tainted

_MOST_SHOWN = 20
_HOW = {"holds": "hold it", "trained": "trained on it", "held out": "judged with it"}


@click.command()
@click.argument("target", metavar="LABEL|CALCULATION|FRAME")
@click.option("--row", type=click.IntRange(min=0), help="One label of a calculation that made several, or one row.")
@click.option("--all", "everything", is_flag=True, help=f"Name every node, not only the first {_MOST_SHOWN} of a kind.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with nothing left out.")
def taint(target: str, row: int | None, everything: bool, as_json: bool) -> None:
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
        click.echo("\n".join(_lines(result, None if everything else _MOST_SHOWN)))


def _lines(result: Taint, most: int | None) -> list[str]:
    """Counts, then the nodes.

    :param most: of each kind; None: all.
    """
    lines = [f"{result.target}: {result.n_nodes} nodes rest on it; rows of datasets concerned: {result.n_rows}"]
    lines += _section("dataset", "datasets", result.datasets, most)
    lines += _section("potential", "potentials", result.potentials, most)
    lines += _section("simulation", "simulations", result.simulations, most)
    lines += _section("property", "properties", result.properties, most)
    if result.labels:
        lines.append(f"  {result.labels} label calculations came after it")
    return lines


def _section(title: str, plural: str, nodes: tuple[Tainted, ...], most: int | None) -> list[str]:
    """How many there are, and those that rest on it directly first."""
    if not nodes:
        return []
    counts: Counter[str] = Counter(each.how for each in nodes)
    said = ", ".join(f"{counts[how]} {words}" for how, words in _HOW.items() if counts[how])
    lines = [f"  {plural}: {len(nodes)}" + (f" ({said})" if said else "")]
    ordered = sorted(nodes, key=lambda each: (each.how == "follows", each.node.pk))
    for each in ordered[:most]:
        name = f" {each.node.name}" if each.node.name else ""
        how = "" if each.how == "follows" else f" ({each.how})"
        lines.append(f"    {title} {each.node.kind}<{each.node.pk}>{name} {each.node.uuid}{how}")
    if most is not None and len(ordered) > most:
        lines.append(f"    {len(ordered) - most} more {plural}, see --all")
    return lines
