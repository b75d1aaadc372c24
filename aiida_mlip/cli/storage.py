"""``aiida-mlip storage``: what takes the space, what can go, and the removal of work directories."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiida_mlip.data.remote_folders import Cleaning, Sizes
    from aiida_mlip.data.storage import Folders, Storage
    from aiida_mlip.data.storage_gains import Gain
    from aiida_mlip.data.work_directories import WorkDirectory

_MOST_SHOWN = 12


@click.group(invoke_without_command=True)
@click.option("--no-sizes", is_flag=True, help="Do not ask computers how large work directories are.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def storage(ctx: click.Context, no_sizes: bool, as_json: bool) -> None:
    """Show what takes the space, and what can go without breaking provenance.

    Looks at the database, the files of nodes, the work directories of jobs on all computers, and what jobs were told
    to stash. Removes nothing.
    """
    if ctx.invoked_subcommand is not None:
        return
    from aiida_mlip.cli.nodes import load_profile

    load_profile()
    from aiida_mlip.data import storage as data
    from aiida_mlip.data.storage_gains import gains

    found = data.storage(ask_computers=not no_sizes)
    can_go = gains(found)
    if as_json:
        click.echo(json.dumps({**found.as_dict(), "can_go": [asdict(gain) for gain in can_go]}, indent=2))
    else:
        click.echo("\n".join([*_lines(found), *_gain_lines(can_go)]))


@storage.command()
@click.option("--older-than", metavar="DAYS", type=click.FloatRange(min=0), help="Only of jobs that ended before.")
@click.option("--workchain", metavar="PK", help="Only of jobs that this process called, directly or not.")
@click.option("--failed", is_flag=True, help="Also those of failed jobs, from which a restart could go on.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; needs --yes or --dry-run.")
def clean(
    older_than: float | None, workchain: str | None, failed: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove work directories of jobs that have ended, on their computers.

    Never those of jobs that run, nor any that a process which has not ended uses or may go on from. Retrieved files
    and all nodes stay: lineage and audit say the same afterwards. May be repeated. Exits with 1 where a directory that
    should have gone is still there.
    """
    from aiida import orm

    from aiida_mlip.cli.nodes import load_profile, load_typed

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json needs --yes or --dry-run")
    load_profile()
    from aiida_mlip.data import remote_folders

    pk = None if workchain is None else load_typed(workchain, orm.ProcessNode, "process").pk
    chosen = _chosen(pk, older_than, failed=failed)
    going = [each for each in chosen if not each.kept]
    sizes = remote_folders.measure([(each.computer, each.path) for each in going])
    if not as_json:
        click.echo("\n".join(_plan_lines(chosen, sizes)))
    result = remote_folders.Cleaning()
    if going and not dry_run:
        if not yes:
            click.confirm(f"Remove {len(going)} work directories?", abort=True)
        # what was started meanwhile may need one of them
        still = {each.path for each in going}
        now = [each for each in _chosen(pk, older_than, failed=failed) if not each.kept and each.path in still]
        result = _removed(now, quiet=as_json)
    if as_json:
        click.echo(json.dumps(_as_dict(chosen, sizes, result, dry_run=dry_run), indent=2))
    elif going and not dry_run:
        click.echo("\n".join(_result_lines(result, sizes)))
    if result.kept:
        raise SystemExit(1)


def _chosen(workchain: int | None, older_than: float | None, *, failed: bool) -> list[WorkDirectory]:
    """Work directories, with what keeps them here: also ``recent``, and not ``failed`` where that was asked for."""
    from aiida_mlip.data.work_directories import work_directories

    before = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    found = []
    for each in work_directories(workchain).there:
        kept = "" if failed and each.kept == "failed" else each.kept
        kept = "recent" if not kept and before is not None and each.ended > before else kept
        found.append(replace(each, kept=kept))
    return found


def _removed(directories: Sequence[WorkDirectory], *, quiet: bool) -> Cleaning:
    from aiida_mlip.data import remote_folders

    if quiet:
        return remote_folders.clean(directories)
    with click.progressbar(length=len(directories), label="removing") as bar:
        return remote_folders.clean(directories, bar.update)


def _reason(kept: str) -> str:
    from aiida_mlip.data.work_directories import REASONS

    return {**REASONS, "recent": "the job ended too short a time ago"}[kept]


def _plan_lines(chosen: Sequence[WorkDirectory], sizes: Sizes) -> list[str]:
    """What would go, how much that frees, and what stays and why."""
    going = [each for each in chosen if not each.kept]
    by_kind = ", ".join(f"{n} {kind}" for kind, n in Counter(each.kind for each in going).most_common())
    lines = [f"{len(going)} work directories can go, {_size(_bytes(going, sizes))}" + (f": {by_kind}" if going else "")]
    lines += _problem_lines(sizes.problems)
    kept = Counter(each.kept for each in chosen if each.kept)
    return lines + [f"{n} stay: {_reason(reason)}" for reason, n in kept.most_common()]


def _result_lines(result: Cleaning, sizes: Sizes) -> list[str]:
    lines = [f"{len(result.cleaned)} work directories removed, {_size(_bytes(result.cleaned, sizes))}"]
    lines += [f"  not removed: {path}: {why}" for path, why in list(result.kept.items())[:_MOST_SHOWN]]
    more = len(result.kept) - _MOST_SHOWN
    return [*lines, f"  and {more} more, see --json"] if more > 0 else lines


def _as_dict(chosen: Sequence[WorkDirectory], sizes: Sizes, result: Cleaning, *, dry_run: bool) -> dict[str, Any]:
    going = [each for each in chosen if not each.kept]
    return {
        "dry_run": dry_run,
        "can_go": [_entry(each, sizes) for each in going],
        "n_bytes": _bytes(going, sizes),
        "stay": dict(Counter(each.kept for each in chosen if each.kept)),
        "removed": [each.path for each in result.cleaned],
        "not_removed": result.kept,
        "problems": sizes.problems,
    }


def _entry(each: WorkDirectory, sizes: Sizes) -> dict[str, Any]:
    return {
        "jobs": list(each.jobs),
        "kind": each.kind,
        "computer": each.computer,
        "path": each.path,
        "ended": each.ended.isoformat(),
        "n_bytes": sizes.n_bytes.get((each.computer, each.path)),
    }


def _bytes(directories: Sequence[WorkDirectory], sizes: Sizes) -> int | None:
    """Bytes on the disk; None where one of them is not known."""
    found = [sizes.n_bytes.get((each.computer, each.path)) for each in directories]
    return None if any(n is None for n in found) else sum(n for n in found if n)


def _lines(found: Storage) -> list[str]:
    """Everything that takes space, for people."""
    database, files = found.database, found.repository
    lines = [f"database        {_size(database.n_bytes):>10}  {database.n_nodes} nodes, {database.n_links} links"]
    if database.n_checkpoints:
        about = f"{database.n_checkpoints} processes that have not ended"
        lines.append(f"  checkpoints   {_size(database.checkpoint_bytes):>10}  {about}")
    lines.append(f"files of nodes  {_size(files.n_bytes):>10}  each once, with the first kind that has it")
    lines += [
        f"  {kind.name:<23} {_size(kind.n_bytes):>10}  {kind.n_files} files of {kind.n_nodes} nodes"
        for kind in files.kinds
    ]
    lines.append(f"work directories  {found.n_cleaned} are cleaned, {sum(each.n for each in found.work)} are there")
    lines += [line for each in found.work for line in _folder_lines(each, _reason(each.what) if each.what else "")]
    if found.stashed:
        lines.append(f"stashed on purpose  {sum(each.n for each in found.stashed)}")
        lines += [line for each in found.stashed for line in _folder_lines(each, each.what)]
    return lines + _problem_lines(found.problems)


def _folder_lines(folders: Folders, why: str) -> list[str]:
    kinds = ", ".join(f"{n} {kind}" for kind, n in folders.kinds.items())
    said = "; ".join(part for part in (kinds, why) if part)
    return [
        f"  {folders.computer:<23} {_size(folders.n_bytes):>10}  {folders.n} folders" + (f" ({said})" if said else "")
    ]


def _problem_lines(problems: dict[str, str]) -> list[str]:
    return [f"  {computer} could not be asked: {why}" for computer, why in problems.items()]


def _gain_lines(found: Sequence[Gain]) -> list[str]:
    """What can go."""
    if not found:
        return ["nothing can go: every file belongs to a node"]
    lines = ["can go, with lineage and audit as before:"]
    for gain in found:
        lines.append(f"  {_size(gain.n_bytes):>10}  {gain.what}" + (f" (lost: {gain.lost})" if gain.lost else ""))
        lines.append(f"              {gain.command}")
    return lines


def _size(n_bytes: int | None) -> str:
    """Bytes for people.

    >>> _size(1234567), _size(None)
    ('1.2 MB', '?')
    """
    if n_bytes is None:
        return "?"
    size, units = float(n_bytes), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
