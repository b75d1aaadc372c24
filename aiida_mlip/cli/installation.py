"""What a first calculation needs: a profile, a computer, codes, a pseudopotential family. Safe to repeat.

Each ``ensure_x`` creates what is missing, corrects what would lose work silently, leaves everything else as it is, and
returns an :class:`Action` that says which of these happened. With ``dry_run`` nothing is changed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from aiida_mlip.cli.mpi import mpi_of_launcher
from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    from aiida.manage.configuration import Profile
    from aiida.orm import Computer

#: Label of a code -> (program, plugin, does it run under MPI: None leaves that to each calculation).
CODES: dict[str, tuple[str, str, bool | None]] = {
    "pw": ("pw.x", "quantumespresso.pw", None),
    "nequip-train": ("nequip-train", "aiida_mlip.nequip_train", False),
    "aiida-mlip-label": ("aiida-mlip-label", "aiida_mlip.ase_label", False),
    "aiida-mlip-evaluate": ("aiida-mlip-evaluate", "aiida_mlip.evaluate", False),
    "aiida-mlip-metadynamics": ("aiida-mlip-metadynamics", "aiida_mlip.metadynamics", False),
    "aiida-mlip-explore": ("aiida-mlip-explore", "aiida_mlip.explore", False),
    "aiida-mlip-fragment": ("aiida-mlip-fragment", "aiida_mlip.relax_fragments", False),
}


#: Jobs that AiiDA takes from its cache: a campaign that is begun again repeats none that finished.
REUSED = "aiida.calculations:aiida_mlip.*"
#: Functions that write their own uuid into what they make, which jobs then take as input.
REUSED_FUNCTIONS = (
    "aiida_mlip.calculations.functions.generate.generate",
    "aiida_mlip.calculations.functions.generate_stages.generate_steps",
    "aiida_mlip.calculations.functions.fragment.carve_fragments",
    "aiida_mlip.calculations.functions.embedding.carve_ladder",
)


@dataclass(frozen=True)
class Action:
    """One thing that set-up looked after.

    :ivar kind: ``profile``, ``computer``, ``code`` or ``pseudo family``.
    :ivar name: its label.
    :ivar change: what was done, e.g. ``created`` or ``journal mode set to WAL``; None if it was fine as it was.
    :ivar detail: one line about it.
    :ivar missing: could not be done; ``detail`` says what to do.
    """

    kind: str
    name: str
    change: str | None
    detail: str = ""
    missing: bool = False


def database_of(profile: Profile) -> Path | None:
    """Path of the SQLite database of a profile, None for another storage."""
    if profile.storage_backend != "core.sqlite_dos":
        return None
    return Path(profile.storage_config["filepath"]) / "database.sqlite"


def journal_mode(database: Path) -> str:
    """Journal mode of an SQLite database, e.g. ``wal`` or ``delete``."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    finally:
        connection.close()


def set_journal_mode(database: Path, mode: str = "wal") -> None:
    """Set the journal mode, which persists in the file. With ``wal`` a slow reader no longer blocks the writers.

    :raises InvalidInputError: if another connection holds the database.
    """
    connection = sqlite3.connect(database, timeout=10)
    try:
        got = connection.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise InvalidInputError(
            f"{database} is in use ({error}): `verdi daemon stop`, close other sessions, and repeat"
        ) from error
    finally:
        connection.close()
    if got != mode:
        raise InvalidInputError(f"{database}: journal mode is {got}, {mode} was asked for (a network file system?)")


def reuses_nothing(name: str) -> bool:
    """Whether a profile says nothing about caching, which leaves it off."""
    from aiida.manage import get_config

    options = ("caching.default_enabled", "caching.enabled_for", "caching.disabled_for")
    return not any(get_config().get_option(option, scope=name) for option in options)


def ensure_profile(name: str | None = None, *, dry_run: bool = False) -> Action:
    """Create or reuse a profile as ``verdi presto`` makes it (SQLite, embedded broker), in WAL mode, and load it.

    :param name: name of the profile; None is the default profile, or ``presto`` where there is none.
    :returns: what was done; the profile is loaded unless it does not exist and ``dry_run`` is set.
    :raises InvalidInputError: if the database cannot be switched to WAL.
    """
    from aiida import load_profile
    from aiida.manage import get_config
    from aiida.manage.configuration import create_profile

    config = get_config(create=True)
    name = name or config.default_profile_name or "presto"
    changes = []
    if name not in config.profile_names:
        if dry_run:
            return Action("profile", name, "created", f"SQLite, ZeroMQ broker, in {config.dirpath}")
        profile = create_profile(
            config,
            name=name,
            email="aiida@localhost",
            storage_backend="core.sqlite_dos",
            storage_config={},
            broker_backend="core.zeromq",
            broker_config={"supervised_by_daemon": True},
        )
        config.set_option("runner.poll.interval", 1, scope=name)
        config.set_option("daemon.timeout", 60, scope=name)  # stopping takes longer than 20 s where jobs fill the cores
        config.set_default_profile(name, overwrite=False)
        config.store()
        changes.append("created")
    if reuses_nothing(name):
        if not dry_run:
            config.set_option("caching.enabled_for", [REUSED, *REUSED_FUNCTIONS], scope=name)
            config.store()
        changes.append("finished jobs are reused")
    profile = config.get_profile(name)
    database = database_of(profile)
    if database is not None and journal_mode(database) != "wal":
        if not dry_run:
            set_journal_mode(database)
        changes.append("journal mode set to WAL")
    load_profile(name, allow_switch=True)
    return Action("profile", name, ", ".join(changes) or None, f"{profile.storage_backend}, in {config.dirpath}")


def launcher_environment() -> str:
    """Shell line for jobs on this machine: one thread per rank, jobs side by side, OpenMPI's permission for root.

    By default OpenMPI binds the ranks of every small job to the same first cores, so that two jobs share one core; and
    a program without launcher starts a daemon, which fills the memory when the program is killed.
    """
    variables = [
        "OMP_NUM_THREADS=1",
        "OMPI_MCA_hwloc_base_binding_policy=none",
        "OMPI_MCA_rmaps_base_oversubscribe=1",
        "OMPI_MCA_ess_singleton_isolated=1",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        variables += ["OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"]
    return f"export {' '.join(variables)}"


def ensure_computer(
    label: str = "localhost",
    *,
    launcher: Path | None = None,
    workdir: Path | None = None,
    dry_run: bool = False,
) -> Action:
    """Create this machine as a computer that runs jobs directly, or correct what an existing one would trip over.

    :param launcher: absolute path of the MPI launcher; None where no code runs under MPI.
    :param workdir: folder for the jobs; default ``scratch`` beside the AiiDA configuration.
    :raises InvalidInputError: if the launcher is a bare name: the first ``mpirun`` on PATH may be another MPI's; or if
        there is no such computer and its label is not ``localhost``.
    """
    from aiida import orm
    from aiida.common.exceptions import NotExistent
    from aiida.manage import get_config

    if launcher is not None and not launcher.is_absolute():
        raise InvalidInputError(f"launcher `{launcher}`: an absolute path is needed, e.g. /usr/bin/mpirun.openmpi")
    mpirun = [str(launcher), "-np", "{tot_num_mpiprocs}"] if launcher else []
    try:
        computer = orm.load_computer(label)
    except NotExistent:
        if label != "localhost":
            raise InvalidInputError(
                f"there is no computer `{label}`: create it with `verdi computer setup` (see aiida-mlip setup --help)"
            ) from None
        folder = (workdir or Path(get_config().dirpath) / "scratch").resolve()
        if not dry_run:
            _create_computer(label, mpirun, folder)
        return Action("computer", label, "created", f"core.local, core.direct, {' '.join(mpirun) or 'no MPI'}")
    changes = _correct_computer(computer, mpirun, dry_run=dry_run)
    return Action(
        "computer", label, ", ".join(changes) or None, f"{computer.transport_type}, {computer.scheduler_type}"
    )


def _create_computer(label: str, mpirun: Sequence[str], workdir: Path) -> None:
    from aiida import orm

    computer = orm.Computer(
        label=label,
        hostname="localhost",
        description="this machine, jobs run directly",
        transport_type="core.local",
        scheduler_type="core.direct",
        workdir=str(workdir),
    )
    computer.set_mpirun_command(list(mpirun))
    computer.set_default_mpiprocs_per_machine(1)
    computer.set_minimum_job_poll_interval(1)
    computer.set_prepend_text(launcher_environment())
    computer.store()
    computer.configure(safe_interval=0, use_login_shell=False)


def _correct_computer(computer: Computer, mpirun: Sequence[str], *, dry_run: bool) -> list[str]:
    """Settings of a computer on this machine that lose work or time; a computer elsewhere is its owner's business."""
    changes: list[str] = []
    if computer.transport_type != "core.local":
        return changes
    if mpirun and _launches_another_mpi(computer, mpirun[0]):
        changes.append(f"launcher {' '.join(mpirun)}")
        if not dry_run:
            computer.set_mpirun_command(list(mpirun))
    missing = [
        word for word in launcher_environment().split()[1:] if word.split("=")[0] not in computer.get_prepend_text()
    ]
    if missing:
        changes.append(f"environment {' '.join(missing)}")
        if not dry_run:
            computer.set_prepend_text(f"{computer.get_prepend_text()}\nexport {' '.join(missing)}".strip())
    if not computer.is_configured or computer.get_configuration().get("use_login_shell", True):
        changes.append("no login shell")
        if not dry_run:
            computer.configure(safe_interval=0, use_login_shell=False)
    return changes


def _launches_another_mpi(computer: Computer, launcher: str) -> bool:
    """Whether the launcher of a computer is a bare name, missing, or belongs to another MPI than ``launcher``."""
    command = computer.get_mpirun_command()
    if not command or not Path(command[0]).is_absolute():
        return True
    return command[0] != launcher and mpi_of_launcher(Path(command[0])) != mpi_of_launcher(Path(launcher))


def find_program(program: str) -> Path | None:
    """Absolute path of a program: beside the running Python first, then on PATH."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(program)
    return Path(found) if found else None


def ensure_code(
    label: str, computer: str, executable: Path, plugin: str, *, with_mpi: bool | None, dry_run: bool = False
) -> Action:
    """Create a code, or leave the one of that label alone if its executable is still there.

    An executable that moved needs a new code, for a stored one does not change: the old one keeps its history, hidden
    and under another label.

    :raises InvalidInputError: if the executable is not an absolute path.
    """
    from aiida import orm
    from aiida.common.exceptions import NotExistent

    if not executable.is_absolute():
        raise InvalidInputError(f"code {label}: `{executable}` is not an absolute path")
    change = "created"
    try:
        code = orm.load_code(f"{label}@{computer}")
    except NotExistent:
        pass
    else:
        if Path(str(code.filepath_executable)) == executable:
            return Action("code", code.full_label, None, str(executable))
        change = f"replaces {code.filepath_executable}, whose code is now {label}-{code.pk}"
        if not dry_run:
            code.label = f"{label}-{code.pk}"
            code.is_hidden = True
    if not dry_run:
        orm.InstalledCode(
            label=label,
            computer=orm.load_computer(computer),
            filepath_executable=str(executable),
            default_calc_job_plugin=plugin,
            with_mpi=with_mpi,
        ).store()
    return Action("code", f"{label}@{computer}", change, str(executable))


def select_pseudos(folder: Path, patterns: Sequence[str] = ()) -> dict[str, Path]:
    """Choose one UPF file per element.

    :param patterns: shell patterns of file names, e.g. ``*.pbe-*kjpaw*``; a file counts if one of them matches. Without
        patterns every UPF file counts.
    :returns: element -> file.
    :raises InvalidInputError: if nothing matches, a pattern matches nothing, a file is no UPF, or two files are left
        for one element.
    """
    from aiida_pseudo.data.pseudo.upf import parse_element

    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is not a folder of UPF files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".upf" and path.is_file())
    idle = [pattern for pattern in patterns if not any(fnmatchcase(path.name, pattern) for path in files)]
    if idle or not files:
        wanted = ", ".join(f"`{pattern}`" for pattern in idle) or "*.UPF"
        raise InvalidInputError(f"{folder}: no file matches {wanted}; there are {[path.name for path in files][:20]}")
    found: dict[str, list[Path]] = {}
    for path in files:
        if patterns and not any(fnmatchcase(path.name, pattern) for pattern in patterns):
            continue
        try:
            element = parse_element(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise InvalidInputError(f"{path}: no element found, is it a UPF file?") from error
        found.setdefault(element.capitalize(), []).append(path)
    twice = {element: [path.name for path in paths] for element, paths in found.items() if len(paths) > 1}
    if twice:
        raise InvalidInputError(f"{folder}: several files for {twice}; choose with --select PATTERN (repeat it)")
    return {element: paths[0] for element, paths in found.items()}


def ensure_pseudo_family(
    label: str,
    pseudos: Mapping[str, Path],
    *,
    cutoffs_ry: tuple[float, float] | None = None,
    dry_run: bool = False,
) -> Action:
    """Create a pseudopotential family from chosen files, or check that the one of that label holds these very files.

    :param pseudos: element -> UPF file, from :func:`select_pseudos`.
    :param cutoffs_ry: recommended cutoffs (wavefunction, density) in Ry for all elements; None leaves them to the
        fidelity.
    :raises InvalidInputError: if a family of that label exists and holds other files: calculations rest on it.
    """
    from aiida import orm
    from aiida_pseudo.data.pseudo.upf import UpfData
    from aiida_pseudo.groups.family import CutoffsPseudoPotentialFamily, PseudoPotentialFamily

    names = ", ".join(path.name for path in pseudos.values())
    existing = orm.QueryBuilder().append(PseudoPotentialFamily, filters={"label": label}).first(flat=True)
    if existing is not None:
        held = {pseudo.element: pseudo.md5 for pseudo in existing.nodes}
        asked = {element: UpfData(path).md5 for element, path in pseudos.items()}
        if not asked.items() <= held.items():
            other = sorted(element for element, md5 in asked.items() if held.get(element) != md5)
            raise InvalidInputError(
                f"family `{label}` exists and holds other files, or none, for {', '.join(other)}: "
                "choose another name with --family"
            )
        return Action("pseudo family", label, None, f"{len(held)} elements: {', '.join(sorted(held))}")
    if not dry_run:
        family = CutoffsPseudoPotentialFamily(label=label, description="made by aiida-mlip setup").store()
        family.add_nodes([UpfData.get_or_create(path).store() for path in pseudos.values()])
        if cutoffs_ry is not None:
            wfc, rho = cutoffs_ry
            family.set_cutoffs(
                {element: {"cutoff_wfc": wfc, "cutoff_rho": rho} for element in pseudos}, "standard", unit="Ry"
            )
    return Action("pseudo family", label, "created", names)
