"""The profile: does it load, can several programs use its database at once, is there room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from aiida_mlip.cli.checks import Finding
from aiida_mlip.cli.installation import database_of, journal_mode, reuses_nothing

#: Free space (GB) below which there is something to say, and below which something breaks soon.
FEW_GB, TOO_FEW_GB = 10.0, 1.0


def check_profile(name: str | None) -> Iterator[Finding]:
    """Load the profile and open its storage.

    :param name: None is the default profile.
    """
    from aiida import load_profile
    from aiida.manage import get_config, get_config_option, get_manager

    config = get_config(create=True)
    wanted = name or config.default_profile_name
    if wanted is None:
        yield Finding("profile", "fix", f"there is none in {config.dirpath}", "aiida-mlip setup")
        return
    if wanted not in config.profile_names:
        known = ", ".join(config.profile_names) or "none"
        yield Finding(
            "profile", "fix", f"`{wanted}` does not exist; there are: {known}", f"aiida-mlip -p {wanted} setup"
        )
        return
    profile = load_profile(wanted, allow_switch=True)
    storage = get_manager().get_profile_storage()
    yield Finding("profile", "ok", f"{profile.name}: {profile.storage_backend}, AiiDA schema {storage.version_head()}")
    if get_config_option("caching.default_enabled"):
        yield Finding("caching", "note", "AiiDA may reuse a job that finished with a failure", "keep it off for pw.x")
    elif reuses_nothing(profile.name):
        message = "off: a campaign that is begun again trains and explores again"
        yield Finding("caching", "note", message, f"aiida-mlip -p {profile.name} setup")


def check_journal() -> Iterator[Finding]:
    """Whether SQLite lets readers and writers work at the same time."""
    from aiida.manage import get_manager

    profile = get_manager().get_profile()
    database = database_of(profile) if profile is not None else None
    if profile is None or database is None:
        return
    mode = journal_mode(database)
    if mode == "wal":
        yield Finding("database", "ok", "SQLite, WAL journal")
        return
    yield Finding(
        "database",
        "fix",
        f"SQLite journal mode is `{mode}`: one slow reader blocks every writer, and processes get stuck",
        "aiida-mlip recover",
    )


def server_age_s() -> float | None:
    """Seconds since the PostgreSQL of the loaded profile began, or began again; None where there is none.

    After one of its processes has crashed the server ends all sessions and begins again without being started: the
    statistics of its writer say when.
    """
    from aiida.manage import get_manager
    from sqlalchemy import text

    manager = get_manager()
    profile = manager.get_profile()
    if profile is None or profile.storage_backend != "core.psql_dos":
        return None
    session = manager.get_profile_storage().get_session()
    began = "greatest(pg_postmaster_start_time(), (SELECT max(stats_reset) FROM pg_stat_bgwriter))"
    return float(session.execute(text(f"SELECT extract(epoch FROM now() - {began})")).scalar_one())  # noqa: S608 - ours


def check_pseudos() -> Iterator[Finding]:
    """Whether there are pseudopotentials to label with."""
    from aiida import orm
    from aiida_pseudo.groups.family import PseudoPotentialFamily

    families = orm.QueryBuilder().append(PseudoPotentialFamily).all(flat=True)
    if not families:
        yield Finding("pseudo family", "fix", "there is none", "aiida-mlip setup --pseudos FOLDER --family NAME")
    for family in families:
        elements = sorted(pseudo.element for pseudo in family.nodes)
        shown = ", ".join(elements[:12]) + (f" and {len(elements) - 12} more" if len(elements) > 12 else "")
        yield Finding("pseudo family", "ok" if elements else "fix", f"{family.label}: {shown or 'it is empty'}")


def check_disk() -> Iterator[Finding]:
    """Room for the repository and, on this machine, for the jobs."""
    from aiida import orm
    from aiida.manage import get_config

    folders = {"repository": Path(get_config().dirpath)}
    for computer in orm.QueryBuilder().append(orm.Computer, filters={"transport_type": "core.local"}).all(flat=True):
        folders[f"jobs of {computer.label}"] = Path(computer.get_workdir().format(username="*"))
    for what, folder in folders.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 1e9
        state = "fix" if free < TOO_FEW_GB else "note" if free < FEW_GB else "ok"
        cure = None if state == "ok" else "aiida-mlip storage"
        yield Finding("disk", state, f"{what}: {free:.0f} GB free in {there}", cure)  # type: ignore[arg-type] # a str
