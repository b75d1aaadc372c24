"""A PostgreSQL cluster of its own: Debian's, in a temporary folder, run as the user postgres where root starts it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.process import free_ports, server, succeeds

USER = "postgres"


@contextmanager
def postgresql(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start PostgreSQL.

    :param folder: empty folder that the user postgres may enter.
    :returns: environment variables as libpq reads them; the user may create databases.
    """
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    user = "postgres" if os.geteuid() == 0 else None
    password = secrets.token_hex(8)
    data, key = folder / "data", folder / "password"
    key.write_text(password, encoding="ascii")
    if user is not None:
        for path in (folder, key):
            shutil.chown(path, user, user)
    made = [programs / "initdb", "-D", data, "-U", USER, "--pwfile", key, "--auth=scram-sha-256"]
    subprocess.run(
        [*made, "--locale=C.UTF-8", "--encoding=UTF8"],
        env=dict(env),
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        stdout=subprocess.DEVNULL,
        check=True,
        cwd=folder,
    )
    key.unlink()
    (port,) = free_ports(1)
    access = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": USER, "PGPASSWORD": password}
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(folder), "-p", str(port)]
    ask = [str(programs / "psql"), "-d", "postgres", "-c", "SELECT 1"]
    with server(
        [*command, "-c", "listen_addresses=127.0.0.1"],
        log=folder / "log",
        env=env,
        ready=lambda: succeeds(ask, {**env, **access}),
        user=user,
        stop=signal.SIGINT,  # ends sessions, then the server
    ):
        yield access
