"""``aiida-mlip doctor``: is everything there that a calculation needs, and will it do what it seems to do."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict

import click

from aiida_mlip.cli.checks import Check, Finding, perform
from aiida_mlip.cli.checks.computers import check_codes, check_computers, check_pw
from aiida_mlip.cli.checks.daemon import check_daemon
from aiida_mlip.cli.checks.programs import check_first_mpirun, check_packages, check_training
from aiida_mlip.cli.checks.storage import check_disk, check_journal, check_profile, check_pseudos

_COLOURS = {"ok": "green", "note": "yellow", "fix": "red"}


ENVIRONMENT: dict[str, Check] = {
    "packages": check_packages,
    "training": check_training,
    "mpirun": check_first_mpirun,
}
PROFILE: dict[str, Check] = {
    "database": check_journal,
    "daemon": check_daemon,
    "computers": check_computers,
    "codes": check_codes,
    "pw.x": check_pw,
    "pseudos": check_pseudos,
    "disk": check_disk,
}


def examine(profile: str | None = None, *, only: Collection[str] = ()) -> Iterator[Finding]:
    """Examine the Python environment and a profile; changes nothing.

    :param profile: name of the profile, None for the default one. It stays loaded.
    :param only: names of checks, keys of ``ENVIRONMENT`` and ``PROFILE``; empty for all.
    :returns: findings, in the order in which they are best mended.
    """

    def wanted(checks: dict[str, Check]) -> dict[str, Check]:
        return {name: check for name, check in checks.items() if not only or name in only}

    yield from perform(wanted(ENVIRONMENT))
    if not wanted(PROFILE):
        return
    about_profile = list(perform({"profile": lambda: check_profile(profile)}))
    yield from about_profile
    if not any(finding.state == "fix" for finding in about_profile):  # the rest lives in the profile
        yield from perform(wanted(PROFILE))


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*ENVIRONMENT, *PROFILE]), help="Only this. Can be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.pass_context
def doctor(ctx: click.Context, only: tuple[str, ...], as_json: bool) -> None:
    """Examine the installation and the profile; exit 1 if something needs a fix.

    Each line is ok, a note, or something to fix with the command that mends it. Nothing is changed.
    """
    start = time.monotonic()
    findings = []
    for finding in examine((ctx.obj or {}).get("profile"), only=only):
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
