"""Which MPI an executable was built with, which launcher belongs to it, and whether the two really run together.

An MPI program under the launcher of another MPI runs as N serial copies in one directory, each believing to be alone,
and ends with exit status 0: nobody notices but the clock. Hence :func:`read_rank_count`, which looks at what pw.x says.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from aiida_mlip.errors import InvalidInputError

#: Shared library of an MPI -> (its name, launchers in the order of preference: Debian's names, mpirun last).
MPI_LIBRARIES: dict[str, tuple[str, tuple[str, ...]]] = {
    r"libmpi\.so\.(20|40)|libopen-rte": ("OpenMPI", ("/usr/bin/mpirun.openmpi", "mpirun.openmpi", "mpirun")),
    r"libmpich|libmpi\.so\.12": ("MPICH", ("/usr/bin/mpirun.mpich", "mpirun.mpich", "mpiexec.hydra", "mpirun")),
}

_RANKS = re.compile(r"Parallel version \(MPI[^)]*\), running on\s+(\d+)\s+processor")
_VERSION = re.compile(r"Program PWSCF v\.?\s*(\S+)")


@dataclass(frozen=True)
class PwBanner:
    """What the banner of pw.x says.

    :ivar version: version as printed, e.g. ``6.7MaX``.
    :ivar ranks: MPI ranks of each copy that printed a banner: ``(2,)`` for one run on two ranks, ``(1, 1)`` for two
        serial copies; a serial build counts as 1.
    """

    version: str
    ranks: tuple[int, ...]

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number of the version, (0, 0) if they cannot be read.

        >>> PwBanner("7.3.1", (1,)).release
        (7, 3)
        """
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def mpi_of(executable: Path) -> str | None:
    """Name of the MPI that ``executable`` is linked with, or None: serial, static, a script, or not found.

    >>> mpi_of(Path("/bin/sh")) is None
    True
    """
    listing = subprocess.run(["ldd", str(executable)], capture_output=True, text=True, check=False).stdout
    for pattern, (name, _) in MPI_LIBRARIES.items():
        if re.search(pattern, listing):
            return name
    return None


def mpi_of_launcher(launcher: Path) -> str | None:
    """Name of the MPI a launcher belongs to, as its ``--version`` says; None when it does not say."""
    try:
        done = subprocess.run([str(launcher), "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = done.stdout + done.stderr
    if "Open MPI" in said or "OpenRTE" in said:
        return "OpenMPI"
    return "MPICH" if re.search(r"HYDRA|MPICH|Intel\(R\) MPI", said) else None


def matching_launcher(executable: Path) -> Path | None:
    """Absolute path of a launcher of the MPI that ``executable`` is linked with; None for a serial executable.

    :raises InvalidInputError: if the executable is linked with an MPI of which no launcher is installed.
    """
    name = mpi_of(executable)
    if name is None:
        return None
    candidates = next(launchers for mpi, launchers in MPI_LIBRARIES.values() if mpi == name)
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None and mpi_of_launcher(Path(found)) == name:
            return Path(found)
    raise InvalidInputError(
        f"{executable} is linked with {name}, and none of its launchers ({', '.join(candidates)}) is installed here: "
        "give the right one with --mpirun /absolute/path"
    )


def read_rank_count(output: str) -> PwBanner | None:
    r"""Read version and rank counts from the output of pw.x; None if no banner is in it.

    >>> read_rank_count("Program PWSCF v.6.7MaX starts\n Parallel version (MPI), running on     2 processors")
    PwBanner(version='6.7MaX', ranks=(2,))
    """
    versions = _VERSION.findall(output)
    if not versions:
        return None
    ranks = [int(count) for count in _RANKS.findall(output)]
    serial_copies = max(len(versions) - len(ranks), 0)
    return PwBanner(version=versions[0], ranks=(*ranks, *([1] * serial_copies)))
