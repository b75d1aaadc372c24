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
    """Show the stages of the workchain PK: what is running, done, failed, and when it is expected to end.

    For active learning also its rounds, and what is spent of the budgets.
    """
    from aiida.manage.configuration import load_profile
    from rich.console import Console

    load_profile()
    from aiida_mlip.cli import progress
    from aiida_mlip.cli.rounds_table import render_budget
    from aiida_mlip.data.budget import budgets
    from aiida_mlip.errors import InvalidInputError

    try:
        state = progress.watch(process) if follow else progress.snapshot(process)
    except InvalidInputError as error:
        raise click.ClickException(str(error)) from error
    spent = budgets(process)
    if as_json:
        as_dict = {**asdict(state), "active_learning": [each.as_dict() for each in spent]}
        click.echo(json.dumps(as_dict, default=str, indent=2))
    else:
        console = Console()
        if not follow:
            console.print(progress.render(state))
        for each in spent:
            console.print(render_budget(each))
    if state.exit_message:
        click.echo(state.exit_message)
