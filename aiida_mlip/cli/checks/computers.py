"""Computers and codes: does a job get there, is the program there, and does pw.x really run on two ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from aiida_mlip.cli.checks import Finding
from aiida_mlip.cli.installation import CODES
from aiida_mlip.cli.mpi import matching_launcher, read_rank_count
from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    from aiida.orm import Computer, InstalledCode

#: The oldest pw.x that this package was run with.
OLDEST_PW = (6, 7)


def check_computers() -> Iterator[Finding]:
    """For each computer: configured, reachable, quiet shell, scheduler answers, job folder can be written."""
    from aiida import orm

    computers = orm.QueryBuilder().append(orm.Computer).all(flat=True)
    if not computers:
        yield Finding("computer", "fix", "there is none", "aiida-mlip setup")
    for computer in computers:
        subject = f"computer {computer.label}"
        if not computer.is_configured:
            cure = f"verdi computer configure {computer.transport_type} {computer.label}"
            yield Finding(subject, "fix", "not configured for this user", cure)
            continue
        try:
            yield from _check_connection(computer, subject)
        except Exception as error:  # noqa: BLE001 - transports raise anything from socket errors to their own
            cure = f"verdi computer test {computer.label}"
            yield Finding(subject, "fix", f"cannot be used: {type(error).__name__}: {error}", cure)


def _check_connection(computer: Computer, subject: str) -> Iterator[Finding]:
    scheduler = computer.get_scheduler()
    with computer.get_transport() as transport:
        scheduler.set_transport(transport)
        without_ps = computer.scheduler_type == "core.direct" and transport.exec_command_wait("command -v ps")[0] != 0
        jobs = {} if without_ps else scheduler.get_jobs(as_dict=True)
        workdir = computer.get_workdir().format(username=transport.whoami())
        _, stdout, stderr = transport.exec_command_wait("echo aiida")
        code, _, _ = transport.exec_command_wait(f"mkdir -p {quote(workdir)} && test -w {quote(workdir)}")
    if without_ps:
        yield Finding(
            subject, "fix", "no `ps` there: AiiDA takes every running job for finished", "apt-get install procps"
        )
    elif code != 0:
        yield Finding(
            subject, "fix", f"its job folder {workdir} cannot be written", f"mkdir -p {workdir}, or its owner"
        )
    elif (stdout, stderr) != ("aiida\n", ""):
        said = (stdout.replace("aiida\n", "") + stderr).strip().splitlines()[0]
        yield Finding(subject, "fix", f"its shell prints on its own: {said[:60]!r}", "silence ~/.bashrc there")
    else:
        seen = "" if computer.scheduler_type == "core.direct" else f", {len(jobs)} job(s) seen"
        message = f"{computer.transport_type}, {computer.scheduler_type}{seen}, {workdir}"
        yield Finding(subject, "ok", message)
    if computer.get_configuration().get("use_login_shell"):
        cure = f"verdi computer configure {computer.transport_type} {computer.label} --no-use-login-shell -n"
        yield Finding(subject, "note", "opens a login shell for every command: 0.3 s for each job", cure)
    command = computer.get_mpirun_command()
    if computer.scheduler_type == "core.direct" and command and not Path(command[0]).is_absolute():
        message = f"its launcher is the bare name `{command[0]}`: the first on PATH, which a pip package may replace"
        cure = "aiida-mlip setup" if computer.label == "localhost" else "a new computer with an absolute mpirun_command"
        yield Finding(subject, "note", message, cure)


def check_codes() -> Iterator[Finding]:
    """For each code: its program is there and executable; and there is one for each of our plugins."""
    from aiida import orm

    codes = [code for code in orm.QueryBuilder().append(orm.InstalledCode).all(flat=True) if not code.is_hidden]
    for plugin, label in ((plugin, label) for label, (_, plugin, _) in CODES.items()):
        if not any(code.default_calc_job_plugin == plugin for code in codes):
            yield Finding(f"code {label}", "fix", f"there is none for `{plugin}`", "aiida-mlip setup")
    for code in codes:
        if code.computer.is_configured:
            yield _check_executable(code)


def _check_executable(code: InstalledCode) -> Finding:
    path, subject = str(code.filepath_executable), f"code {code.full_label}"
    if not Path(path).is_absolute():
        cure = f"verdi code duplicate {code.full_label}, with the absolute path"
        return Finding(subject, "note", f"its program is the bare name `{path}`: what it is depends on PATH", cure)
    with code.computer.get_transport() as transport:
        code_there, _, _ = transport.exec_command_wait(f"test -x {quote(path)} -a -f {quote(path)}")
    if code_there == 0:
        return Finding(subject, "ok", path)
    return Finding(
        subject,
        "fix",
        f"{path} is not there, or not executable",
        f"install it, or `aiida-mlip setup` (a new code), or `verdi code hide {code.full_label}`",
    )


def check_pw() -> Iterator[Finding]:
    """Run each pw.x on two ranks through its computer's launcher, and read what it says about itself."""
    from aiida import orm

    codes = orm.QueryBuilder().append(orm.InstalledCode).all(flat=True)
    for code in codes:
        if code.is_hidden or code.default_calc_job_plugin != CODES["pw"][1] or not code.computer.is_configured:
            continue
        yield from probe_pw(code)


def probe_pw(code: InstalledCode, *, ranks: int = 2, timeout_s: int = 30) -> Iterator[Finding]:
    """Start pw.x without an input: its banner tells version and rank count; it stops by itself.

    :param ranks: MPI ranks to ask for where the computer has a launcher and runs jobs directly.
    """
    computer, subject = code.computer, f"pw.x {code.full_label}"
    words = computer.get_mpirun_command()
    direct = computer.scheduler_type == "core.direct"
    parallel = direct and bool(words) and code.with_mpi is not False
    launcher = " ".join(quote(word.format(tot_num_mpiprocs=ranks)) for word in words) if parallel else ""
    script = "\n".join(
        [
            computer.get_prepend_text(),
            code.prepend_text,
            'folder=$(mktemp -d); cd "$folder" || exit 1',
            f"timeout {timeout_s} {launcher} {quote(str(code.filepath_executable))} -in no-such-input </dev/null 2>&1",
            'cd / && rm -rf "$folder"',
        ]
    )
    with computer.get_transport() as transport:
        _, stdout, stderr = transport.exec_command_wait(f"bash -c {quote(script)}")
    banner = read_rank_count(stdout)
    if banner is None:
        said = [line for line in (stdout + stderr).splitlines() if line.strip(" -%")]
        tail = " / ".join(line.strip() for line in said[-3:])
        yield Finding(subject, "fix", f"`{launcher} {code.filepath_executable}` does not start: {tail[:200]}")
        return
    if banner.release < OLDEST_PW:
        yield Finding(subject, "fix", f"version {banner.version}: older than 6.7", "install Quantum ESPRESSO >= 6.7")
    if not parallel:
        where = "one rank" if direct else "one rank; the launcher of a cluster's scheduler is not tried from here"
        yield Finding(subject, "ok" if direct else "note", f"version {banner.version}, {where}")
    elif banner.ranks == (ranks,):
        yield Finding(subject, "ok", f"version {banner.version}, runs on {ranks} ranks with {words[0]}")
    else:
        yield _wrong_launcher(code, words[0], banner.ranks, subject)


def _wrong_launcher(code: InstalledCode, launcher: str, ranks: tuple[int, ...], subject: str) -> Finding:
    copies = f"{len(ranks)} copies of {ranks[0]} rank" if len(ranks) > 1 else f"one copy of {ranks[0]} rank(s)"
    message = f"asked {launcher} for 2 ranks, got {copies}: a launcher of another MPI, or a serial pw.x"
    try:
        right = (
            matching_launcher(Path(str(code.filepath_executable))) if code.computer.hostname == "localhost" else None
        )
    except InvalidInputError as error:
        return Finding(subject, "fix", message, str(error))
    cure = f"aiida-mlip setup --mpirun {right}" if right else "the launcher of the MPI that pw.x was built with"
    return Finding(subject, "fix", message, cure)
