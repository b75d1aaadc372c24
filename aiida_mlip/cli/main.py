"""``aiida-mlip``: the command line. Each command lives in a module that is imported when it is invoked."""

from __future__ import annotations

import importlib
from typing import Any

import click

from aiida_mlip import __version__
from aiida_mlip.errors import MlipError

#: Command -> (module, attribute, the line of ``aiida-mlip --help``). Help imports none of the modules.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "setup": ("aiida_mlip.cli.setup", "setup", "Create the profile, computer, codes and pseudopotential family."),
    "doctor": ("aiida_mlip.cli.doctor", "doctor", "Examine the installation: each line ok, or what to do."),
    "recover": ("aiida_mlip.cli.recover", "recover", "After a fault: mend daemon, broker and database; begin again."),
    "dataset": ("aiida_mlip.cli.dataset", "dataset", "Import, export and show datasets."),
    "generate": ("aiida_mlip.cli.generate", "generate", "Generate frames: crystals, defects, alloys, dynamics."),
    "potential": ("aiida_mlip.cli.potential", "potential", "Import, export and show potentials."),
    "develop": ("aiida_mlip.cli.develop", "develop", "From structures to a trained, tested potential."),
    "report": ("aiida_mlip.cli.report", "report", "Write a report to read: one HTML file, and the same as JSON."),
    "status": ("aiida_mlip.cli.status", "status", "What is running, done, failed, and when it will end."),
    "lineage": ("aiida_mlip.cli.lineage", "lineage", "What made a node, frame or atom, and what it made."),
    "taint": ("aiida_mlip.cli.taint", "taint", "Everything that rests on a label, frame or calculation."),
    "storage": ("aiida_mlip.cli.storage", "storage", "What takes the space, what can go; remove work directories."),
    "audit": ("aiida_mlip.cli.audit", "audit", "Check the provenance of a result: no orphans, every creator known."),
}


class LazyGroup(click.Group):
    """Group whose commands are imported on invocation, so that help is instant and a broken module stays alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Names in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import the command; an unknown name is None, a module that cannot be imported a usage error."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            ours = (error.name or "").startswith("aiida_mlip")
            cure = "" if ours else ". Is the extra installed? pip install 'aiida-mlip-workchains[aiida]'"
            raise click.ClickException(f"`aiida-mlip {cmd_name}` cannot be loaded: {error}{cure}") from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is a {type(command).__name__}, a click command is needed")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # Any: whatever the command returns
        """Run the command; an error of this package is a message, not a traceback."""
        try:
            return super().invoke(ctx)
        except MlipError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-p", "--profile", metavar="NAME", help="AiiDA profile to use instead of the default one.")
@click.version_option(__version__, prog_name="aiida-mlip")
@click.pass_context
def main(ctx: click.Context, profile: str | None) -> None:
    """Develop machine-learned interatomic potentials with AiiDA, every step in the provenance graph."""
    ctx.obj = {"profile": profile}
    if profile is None or ctx.invoked_subcommand in ("setup", "doctor"):  # they cope with one that is missing or broken
        return
    from aiida import load_profile
    from aiida.common.exceptions import AiidaException

    try:
        load_profile(profile)
    except AiidaException as error:
        raise click.ClickException(f"profile `{profile}` cannot be loaded: {error}") from error
