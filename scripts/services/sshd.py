"""An SSH server of its own on this machine, and a home folder whose ``~/.ssh/config`` knows it as host ``cluster``."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.process import MARK, free_ports, listens, server

HOST = "cluster"


@contextmanager
def sshd(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start the server.

    :param env: of it ``SLURM_CONF`` is what a session finds, as if Slurm were installed over there.
    :returns: ``HOME`` and ``PATH``: with them, ``cluster`` is a host that is reached without a password.
    """
    user = pwd.getpwuid(os.geteuid()).pw_name
    (port,) = free_ports(1)
    settings = folder / "home" / ".ssh"
    settings.mkdir(parents=True, mode=0o700)
    for key in (folder / "host_key", settings / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], env=dict(env), check=True)
    public = (folder / "host_key.pub").read_text(encoding="ascii")
    shutil.copy(settings / "id_ed25519.pub", folder / "authorized_keys")
    (settings / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}", encoding="ascii")
    (settings / "config").write_text(
        f"Host {HOST}\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n"
        f"  IdentityFile {settings}/id_ed25519\n  UserKnownHostsFile {settings}/known_hosts\n",
        encoding="ascii",
    )
    remote = [f'"{name}={env[name]}"' for name in (MARK, "SLURM_CONF") if name in env]
    configuration = folder / "sshd_config"
    configuration.write_text(
        f"""\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {"yes" if _is_locked(user) else "no"}
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
SetEnv {" ".join(remote)}
""",
        encoding="ascii",
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # compiled in
    program = shutil.which("sshd", path=f"{env.get('PATH', '')}:/usr/sbin:/sbin") or "sshd"
    with server(
        [program, "-D", "-e", "-f", str(configuration)], log=folder / "log", env=env, ready=lambda: listens(port)
    ):
        yield {"HOME": str(folder / "home"), "PATH": f"{_ssh(folder)}:{env['PATH']}"}


def _ssh(folder: Path) -> Path:
    """Folder of an ``ssh`` that reads the configuration of HOME: OpenSSH asks the system where a user's home is."""
    programs = folder / "bin"
    programs.mkdir()
    path = programs / "ssh"
    path.write_text('#!/bin/sh\nexec /usr/bin/ssh -F "$HOME/.ssh/config" "$@"\n', encoding="ascii")
    path.chmod(0o755)
    return programs


def _is_locked(user: str) -> bool:
    """Whether the account has no password in a way that sshd refuses unless PAM says otherwise."""
    try:
        lines = Path("/etc/shadow").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)
