"""``aiida-mlip lineage``: what made a node or a frame, and what it made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from aiida_mlip.data.graph import NodeRef
    from aiida_mlip.data.lineage import FrameLineage, NodeLineage, Origin

_MOST_SHOWN = 12


@click.command()
@click.argument("node", metavar="NODE|FRAME")
@click.option("--frame", metavar="ID", help="A frame of the dataset NODE, by its id or the first digits of it.")
@click.option("--row", type=click.IntRange(min=0), help="A frame of the dataset NODE, by its row, from 0.")
@click.option("--atom", type=click.IntRange(min=0), help="An atom of the frame, by its number, from 0.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with nothing left out.")
def lineage(node: str, frame: str | None, row: int | None, atom: int | None, as_json: bool) -> None:
    """Show what made NODE and what it made; of a frame also who labelled it, and which potentials learned from it.

    NODE is a dataset, a potential, a process, or any other node: its pk, uuid or label. FRAME is a frame id, or the
    first digits of one. For an atom of a fragment the atom of the simulation that it was cut out of is shown.
    """
    from aiida_mlip.cli.nodes import load_profile

    load_profile()
    from aiida_mlip.data import lineage as data
    from aiida_mlip.data.frame_index import FrameIndex
    from aiida_mlip.data.identify import FrameName

    if frame is not None and row is not None:
        raise click.UsageError("give --frame or --row, not both")
    with FrameIndex.open() as index:
        index.refresh()
        target = _target(node, frame, row, index)
        if isinstance(target, FrameName):
            frame_found = data.frame_lineage(target.frame_id, atom=atom, index=index)
            content, lines = frame_found.as_dict(), _frame_lines(frame_found)
        elif atom is not None:
            raise click.UsageError("--atom: of which frame? Give a frame id, or a dataset with --frame or --row")
        else:
            node_found = data.lineage(target)
            content, lines = node_found.as_dict(), _node_lines(node_found)
    click.echo(json.dumps(content, indent=2) if as_json else "\n".join(lines))


def _target(node: str, frame: str | None, row: int | None, index: Any) -> Any:  # Any: modules that need AiiDA
    """The node or frame that is meant."""
    from aiida_mlip.data.identify import FrameName, identify

    target = identify(node, index)
    if frame is None and row is None:
        return target
    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.errors import InvalidInputError

    if not isinstance(target, DatasetData):
        what = "a frame" if isinstance(target, FrameName) else f"a {type(target).__name__}"
        raise InvalidInputError(f"--frame and --row need a dataset, {node} is {what}")
    if row is not None:
        return FrameName(index.row_of(target.pk, row).frame_id)
    name = index.find_one(frame)
    if target.pk not in index.datasets_with(index.rows(name)):
        raise InvalidInputError(f"frame {name[:8]} is not in the dataset {node}")
    return FrameName(name)


def _frame_lines(found: FrameLineage) -> list[str]:
    """A frame, for people."""
    lines = [f"frame {found.frame_id}: {found.natoms} atoms"]
    if found.atom is not None:
        atom = found.atom
        about = ", ".join(part for part in (atom.symbol, atom.region) if part)
        lines.append(f"  atom {atom.index}" + (f" ({about})" if about else ""))
        if found.parent is not None:
            there = "was not there" if atom.parent_atom is None else f"was atom {atom.parent_atom}"
            lines.append(f"    {there} in the frame {found.parent.frame_id}")
    lines += _origin_lines("made", found.origin)
    if found.parent is not None:
        lines.append(f"  from the frame {found.parent.frame_id}")
        lines += [f"  {line}" for line in _origin_lines("made", found.parent)]
    for label in found.labels:
        source = "imported" if label.calculation is None else _name(label.calculation)
        if label.calculation is None and label.uuid is not None:
            source = f"a calculation that is not in this profile, {label.uuid}"
        row = "" if label.row is None else f", row {label.row}"
        lines.append(f"  label {label.fidelity}: {label.failure or 'computed'} by {source}{row}")
    if not found.labels:
        lines.append("  no label")
    lines += [f"  in {_name(place.dataset)}, row {place.row}" for place in found.places[:_MOST_SHOWN]]
    lines += _more(len(found.places), "datasets")
    for each in found.potentials[:_MOST_SHOWN]:
        part = {"train": "trained on it", "val": "stopped by it (validation)", "test": "tested on it, not trained"}
        how = part.get(each.part, "does not use it" if each.part == "unused" else "trained on its dataset")
        lines.append(f"  potential {_name(each.potential)}: {how}, by {_name(each.training)}")
    lines += _more(len(found.potentials), "potentials")
    if found.n_children:
        lines.append(f"  {found.n_children} frames were made from it")
    return lines


def _origin_lines(verb: str, origin: Origin) -> list[str]:
    if origin.made_by is None and origin.simulation is None:
        return [f"  {verb} by nobody in this profile: given by a person"]
    lines = [] if origin.made_by is None else [f"  {verb} by {_name(origin.made_by)}"]
    if origin.simulation is not None and origin.simulation != origin.made_by:
        lines.append(f"  from the simulation {_name(origin.simulation)}")
    return lines


def _node_lines(found: NodeLineage) -> list[str]:
    """A node, for people."""
    lines = [_name(found.node)]
    lines += [f"  {key}: {value}" for key, value in found.details.items() if value not in (None, {}, [])]
    is_process = "process_state" in found.details
    for depth, maker in enumerate(found.made_by):
        verb = "called by" if is_process or depth else "made by"
        lines.append(f"  {'  ' * depth}{verb} {_name(maker)}")
    if not found.made_by:
        lines.append("  started by a person" if is_process else "  given by a person")
    lines += _section("from", found.inputs)
    lines += _section("called" if is_process else "used by", found.used_by)
    lines += _section("made", found.made)
    for title, counts, n in (("rests on", found.rests_on, found.n_behind), ("led to", found.led_to, found.n_ahead)):
        said = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for role, count in counts.items())
        lines.append(f"  {title} {n} nodes" + (f": {said}" if said else ""))
    return lines


def _section(title: str, nodes: tuple[NodeRef, ...]) -> list[str]:
    lines = [f"  {title} {_name(node)}" for node in nodes[:_MOST_SHOWN]]
    return lines + _more(len(nodes), title)


def _more(n: int, what: str) -> list[str]:
    return [f"  ({what}: {n - _MOST_SHOWN} more, see --json)"] if n > _MOST_SHOWN else []


def _name(node: NodeRef) -> str:
    name = f" {node.name}" if node.name else ""
    return f"{node.kind}<{node.pk}>{name} {node.uuid}"
