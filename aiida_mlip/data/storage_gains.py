"""What can go without breaking provenance, and the command that does it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

from aiida.manage import get_manager

from aiida_mlip.data.storage import Folders, Storage

#: Files that are not packed, and gaps (bytes), that are too few to mention.
FEW_LOOSE: Final[int] = 100
SMALL_GAP: Final[int] = 1_000_000


@dataclass(frozen=True)
class Gain:
    """Something that can go.

    :param what: in words.
    :param n_bytes: how much that frees; None: not known.
    :param command: that does it.
    :param lost: what cannot be done any more afterwards; empty: nothing.
    """

    what: str
    n_bytes: int | None
    command: str
    lost: str = ""


def gains(found: Storage) -> tuple[Gain, ...]:
    """All that can go."""
    program, verdi = (f"{name} -p {_profile()}" for name in ("aiida-mlip", "verdi"))
    result = []
    for what, option, lost in (
        ("", "", "files that were not retrieved, such as wavefunctions"),
        ("failed", " --failed", "a look at what failed, and a restart from it"),
    ):
        folders = [each for each in found.work if each.what == what]
        if folders:
            kind = "failed" if what else "finished"
            n = sum(each.n for each in folders)
            text = f"work directories of {n} {kind} jobs"
            result.append(Gain(text, total(folders), f"{program} storage clean{option}", lost))
    files = found.repository
    if files.n_unreferenced:
        text = f"{files.n_unreferenced} files of nodes that were deleted"
        result.append(Gain(text, files.unreferenced_bytes, f"{verdi} storage maintain"))
    if files.n_loose > FEW_LOOSE:
        text = f"{files.n_loose} files that are not packed: far fewer files, hardly fewer bytes"
        result.append(Gain(text, 0, f"{verdi} storage maintain --compress"))
    if files.gap_bytes > SMALL_GAP:
        text = "gaps in packs of files; nothing else may use the profile"
        result.append(Gain(text, files.gap_bytes, f"{verdi} daemon stop; {verdi} storage maintain --full"))
    if found.database.free_bytes > SMALL_GAP:
        text = "free pages of the database, which it would fill again; nothing else may use the profile"
        result.append(Gain(text, found.database.free_bytes, f"{verdi} daemon stop; {_vacuum()}"))
    if found.index_bytes:
        text = "the index of frames, made again by the next lineage or taint"
        result.append(Gain(text, found.index_bytes, f"rm {shlex.quote(found.index_path)}"))
    return tuple(result)


def total(folders: list[Folders]) -> int | None:
    """Bytes of folders; None where one of them is not known."""
    if any(each.n_bytes is None for each in folders):
        return None
    return sum(each.n_bytes or 0 for each in folders)


def _vacuum() -> str:
    profile = get_manager().get_profile()
    path = "" if profile is None else f"{profile.storage_config['filepath']}/database.sqlite"
    return f"python -c {shlex.quote(f'import sqlite3; sqlite3.connect({path!r}).execute({chr(39)}VACUUM{chr(39)})')}"


def _profile() -> str:
    profile = get_manager().get_profile()
    return "" if profile is None else shlex.quote(profile.name)
