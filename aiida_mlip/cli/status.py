"""``aiida-mlip status``: what a workchain is doing."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.argument("process", type=int, metavar="PK")
@click.option("--watch", "follow", is_flag=True, help="Keep showing it until the process ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
def status(process: int, follow: bool, as_json: bool) -> None:
    """Show the stages of the workchain PK: what is running, done, failed, and when it is expected to end."""
    from aiida.manage.configuration import load_profile
    from rich.console import Console

    load_profile()
    from aiida_mlip.cli import progress
    from aiida_mlip.errors import InvalidInputError

    try:
        state = progress.watch(process) if follow else progress.snapshot(process)
    except InvalidInputError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(state), default=str, indent=2))
    elif not follow:
        Console().print(progress.render(state))
    if state.exit_message:
        click.echo(state.exit_message)
