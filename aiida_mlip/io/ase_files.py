"""Images of a file through ASE's readers, which trust what they read more than this package does.

Refused are formats that are no files of frames (data bases, addresses of servers, folders) or build arrays of any size
that a file asks for, and compressed files that inflate to too much.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief

if TYPE_CHECKING:
    from ase import Atoms

#: Formats of ASE that are not read.
REFUSED: Final[frozenset[str]] = frozenset(
    {"bundletrajectory", "db", "eon", "json", "mysql", "netcdftrajectory", "postgresql"}
)
#: Largest ratio of inflated to packed bytes, and what a small file may inflate to in any case.
MAX_RATIO: Final[int] = 100
MIN_INFLATED: Final[int] = 1024**2
#: Memory (bytes) that any file may take, a hundred times its size come on top.
MIN_MEMORY: Final[int] = 2 * 1024**3
_HEAVIEST: Final[int] = 118
_PACKED: Final[dict[str, Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_CHUNK: Final[int] = 1 << 20


def read_images(path: Path, *, index: int | str = ":", file_format: str | None = None) -> list[Atoms]:
    """Images of a file that ASE reads.

    :param index: which; by default all.
    :param file_format: ASE's name of the format, if the file name does not tell.
    :raises FileFormatError: a format that is not read, a file that ASE cannot read, or images that cannot be.
    :raises IndexError: no such image.
    """
    import ase.io
    from ase.io.formats import filetype

    check_packed_size(path)
    try:
        # the absolute path is no address of a server, whatever the file is called
        kind = file_format or filetype(str(path.absolute()))
        if kind in REFUSED:
            raise FileFormatError(f"{path}: the format {kind!r} is not read; write the frames as extended XYZ")
        with memory_limited(MAX_RATIO * path.stat().st_size + MIN_MEMORY):
            images = ase.io.read(str(path.absolute()), index=index, format=kind, do_not_split_by_at_sign=True)
    except StopIteration as error:
        raise IndexError(index) from error
    except (FileFormatError, IndexError):
        raise
    except Exception as error:  # each of ASE's many readers fails in its own way
        raise FileFormatError(f"{path}: ASE cannot read it ({type(error).__name__}: {brief(error)})") from error
    found = images if isinstance(images, list) else [images]
    for number, image in enumerate(found):
        if wrong := what_is_wrong(image.numbers, image.positions, image.cell.array):
            raise FileFormatError(f"{path}, frame {number}: {wrong}")
    return found


def what_is_wrong(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> str:
    """Why these cannot be atoms; empty if they can.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å.
    """
    if len(numbers) and not (numbers.min() >= 1 and numbers.max() <= _HEAVIEST):
        return f"atomic numbers must be 1..{_HEAVIEST}, got {numbers.min()}..{numbers.max()}"
    if not np.isfinite(positions).all():
        return f"the position of atom {int(np.argmin(np.isfinite(positions).all(axis=1)))} is not finite"
    return "" if np.isfinite(cell).all() else "the cell is not finite"


@contextmanager
def memory_limited(extra: int) -> Iterator[None]:
    """Let this process take so many bytes more, and no others: a file of a line may ask for a thousand million atoms.

    Where the system cannot say what the process has, or takes no limit, nothing is limited.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + extra
        if soft != resource.RLIM_INFINITY and soft <= wanted:
            raise OSError
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (OSError, ValueError, IndexError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_packed_size(path: Path) -> None:
    """Inflate a packed file in bounded memory, as far as is allowed.

    :raises FileFormatError: it inflates to more than a hundred times its size, or is damaged.
    """
    opened = _PACKED.get(path.suffix.lower())
    if opened is None:
        return
    most = max(MAX_RATIO * path.stat().st_size, MIN_INFLATED)
    try:
        with opened(path, "rb") as stream:
            length = _length(stream, most)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise FileFormatError(f"{path}: not a readable packed file ({error})") from error
    if length > most:
        raise FileFormatError(f"{path}: inflates to more than {most} bytes, {MAX_RATIO} times its size")


def _length(stream: IO[bytes], most: int) -> int:
    length = 0
    while length <= most and (chunk := stream.read(_CHUNK)):
        length += len(chunk)
    return length
