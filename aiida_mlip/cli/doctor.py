"""``aiida-mlip doctor``: is everything there that a calculation needs, and will it do what it seems to do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict

import click

from aiida_mlip.cli.checks import Finding, perform
from aiida_mlip.cli.checks.computers import check_codes, check_computers, check_pw
from aiida_mlip.cli.checks.daemon import check_daemon
from aiida_mlip.cli.checks.programs import check_first_mpirun, check_packages, check_training
from aiida_mlip.cli.checks.storage import check_disk, check_journal, check_profile, check_pseudos

_COLOURS = {"ok": "green", "note": "yellow", "fix": "red"}


def examine(profile: str | None = None) -> Iterator[Finding]:
    """Examine the Python environment and a profile; changes nothing.

    :param profile: name of the profile, None for the default one. It stays loaded.
    :returns: findings, in the order in which they are best mended.
    """
    yield from perform({"packages": check_packages, "training": check_training, "mpirun": check_first_mpirun})
    about_profile = list(perform({"profile": lambda: check_profile(profile)}))
    yield from about_profile
    if any(finding.state == "fix" for finding in about_profile):
        return  # the rest lives in the profile
    yield from perform(
        {
            "database": check_journal,
            "daemon": check_daemon,
            "computers": check_computers,
            "codes": check_codes,
            "pw.x": check_pw,
            "pseudo family": check_pseudos,
            "disk": check_disk,
        }
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Examine the installation and the profile; exit 1 if something needs a fix.

    Each line is ok, a note, or something to fix with the command that mends it. Nothing is changed.
    """
    start = time.monotonic()
    findings = []
    for finding in examine((ctx.obj or {}).get("profile")):
        findings.append(finding)
        if not as_json:
            _show(finding)
    to_fix = sum(finding.state == "fix" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": to_fix == 0, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        verdict = "nothing to fix" if to_fix == 0 else f"{to_fix} to fix"
        click.echo(f"{len(findings)} looked at, {verdict}  ({time.monotonic() - start:.1f} s)")
    ctx.exit(1 if to_fix else 0)


def _show(finding: Finding) -> None:
    click.echo(
        f"{click.style(f'{finding.state:<4}', fg=_COLOURS[finding.state])}  {finding.subject:<32} {finding.message}"
    )
    if finding.cure is not None:
        click.echo(f"{'':38} -> {finding.cure}")
