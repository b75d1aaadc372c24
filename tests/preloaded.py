"""``nequip-train``, ``nequip-package`` and ``aiida-mlip-evaluate`` without start-up: forks of one process.

A tiny training takes one second, and importing what it needs six, twice: for the training and for the package. Here one
process of the session imports it; what looks like the programs asks it for a fork, in the caller's folder, with its
environment, arguments, limits and output. Whoever kills the caller ends the fork. The code that runs is that of the
installed programs; that these themselves start, fail and are limited as they should is tested with the real ones
(``tests/calculations/test_nequip_train.py``, and what the daemon runs).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

PROGRAMS = ("nequip-train", "nequip-package", "aiida-mlip-evaluate")

CLIENT = """#!{python} -SE
import json, os, resource, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
request = json.dumps({{
    "program": {program!r}, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ),
    "memory": resource.getrlimit(resource.RLIMIT_AS),
}}).encode()
socket.send_fds(link, [len(request).to_bytes(8, "big")], [0, 1, 2])
link.sendall(request)
answer = link.recv(1)
sys.exit(answer[0] if answer else 1)
"""


class Preloaded:
    """The process that forks, and a folder with the programs; ends with this process at the latest."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="preloaded-"))  # a socket's path must be short
        address = str(self.folder / "socket")
        for program in PROGRAMS:
            path = self.folder / program
            path.write_text(CLIENT.format(python=sys.executable, address=address, program=program))
            path.chmod(0o755)
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        if self._process.stdout.readline() != b"listening\n":
            raise RuntimeError((self.folder / "log").read_text()[-3000:])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


# -- in the process that forks -----------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Fork for everyone who asks, until standard input ends."""
    import hydra  # noqa: F401
    import lightning.pytorch  # noqa: F401
    import nequip.data.datamodule
    import nequip.model.saved_models.load_utils
    import nequip.train  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the attendants
    os.write(1, b"listening\n")
    while listener in select.select([listener, 0], [], [])[0]:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(link)
            return
        link.close()


def attend(link: socket.socket) -> None:
    """Run one program in a fork; returns in that fork when it is done, and ends the attendant itself."""
    head, files, *_ = socket.recv_fds(link, 8, 3)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += link.recv(size - len(text))
    child = os.fork()
    if child == 0:
        link.close()
        become(json.loads(text), files)
        return
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    if ended not in select.select([link, ended], [], [])[0]:
        os.kill(child, signal.SIGKILL)  # the caller is gone
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        link.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def become(request: dict, files: list[int]) -> None:
    """Be the program that was asked for."""
    import torch

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    resource.setrlimit(resource.RLIMIT_AS, tuple(request["memory"]))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    (program,) = entry_points(group="console_scripts", name=request["program"])
    sys.argv = [str(Path(sys.executable).with_name(program.name)), *request["arguments"]]
    sys.path[0] = str(Path(sys.executable).parent)
    sys.exit(program.load()())


if __name__ == "__main__":
    serve(sys.argv[1])
