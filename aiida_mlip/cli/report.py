"""``aiida-mlip report``: one file to read, and the same content for programs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("process", metavar="PK|UUID")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file to write; an existing one is replaced.  [default: report-PK.html]",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the content as JSON, too."
)
def report(process: str, output: Path | None, json_path: Path | None) -> None:
    """Write the report of PROCESS: a finished, failed or running develop, active_learning, train, label, ... workchain.

    One HTML file that needs no network. Every number and figure leads to the node it comes from.
    """
    from aiida import orm

    from aiida_mlip.cli.nodes import load_typed
    from aiida_mlip.report.write import write_report

    node = load_typed(process, orm.ProcessNode, "process")
    path = Path(f"report-{node.pk}.html") if output is None else output
    written = write_report(node, path, json_path=json_path)
    click.echo(f"{written.verdict.word}: {written.verdict.sentence}")
    for text in written.missing:
        click.echo(f"missing: {text}")
    for target in (path, json_path):
        if target is not None:
            click.echo(f"written: {target.absolute()}")
