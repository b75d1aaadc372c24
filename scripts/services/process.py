"""A server as a child process: never outlives its parent, and is waited for."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

#: Environment variable that every process started for the services has; its value is their folder.
MARK = "MLIP_SERVICES"
#: Seconds that a server has to start or to stop: far more than any needs, a loaded machine is slow.
PATIENCE_S = 300.0


def free_ports(n: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def listens(port: int) -> bool:
    """Whether something answers on a port of the loopback interface."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def succeeds(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a command ends with 0 within half a minute."""
    try:
        done = subprocess.run(command, env=dict(env), capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@contextmanager
def server(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    ready: Callable[[], bool],
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that stays in the foreground, from when it is ready until the block is left.

    :param stop: signal that asks it to end; after that it and its process group are killed.
    :raises RuntimeError: if it ends by itself before it is ready, or is not ready in time; with the end of its log.
    """
    library = ctypes.CDLL(None)

    def die_with_parent() -> None:
        library.prctl(1, int(stop))  # PR_SET_PDEATHSIG

    started = time.monotonic()
    group = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C is for the tests
            preexec_fn=die_with_parent,
            **group,
        )
    try:
        while not ready():
            if process.poll() is not None or time.monotonic() - started > PATIENCE_S:
                end = log.read_text(encoding="utf-8", errors="replace")[-4000:]
                state = "ended" if process.poll() is not None else f"is not ready after {PATIENCE_S:.0f} s"
                raise RuntimeError(f"{' '.join(command)} {state}; {log} ends with\n{end}")
            time.sleep(0.1)
        print(f"{Path(command[0]).name} is ready after {time.monotonic() - started:.1f} s", flush=True)
        yield process
    finally:
        _end(process, stop)


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    process.send_signal(stop)
    try:
        process.wait(PATIENCE_S / 6)
    except subprocess.TimeoutExpired:
        print(f"{process.args} does not end: killed", flush=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def marked(folder: Path) -> list[int]:
    """Processes that were started for the services in a folder, directly or not: daemons, jobs."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile
    return found


def sweep(folder: Path) -> list[int]:
    """Kill what is left of the services in a folder and of what used them.

    :returns: process ids of what was killed.
    """
    killed: list[int] = []
    for _ in range(20):
        left = marked(folder)
        if not left:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed += [pid for pid in left if pid not in killed]
        time.sleep(0.1)
    return killed
