"""Named arrays as deterministic ``.npz`` bytes: equal arrays give equal files, readable by ``numpy.load``."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from aiida_mlip.errors import FileFormatError, InvalidInputError

_EPOCH: Final[tuple[int, int, int, int, int, int]] = (1980, 1, 1, 0, 0, 0)


def write_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Bytes of an uncompressed ``.npz`` file, in the order of the names, without time stamps.

    :param arrays: numbers, booleans or fixed-width text; no Python objects.
    :raises InvalidInputError: an array of Python objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            value = np.asarray(arrays[name], order="C")
            if value.dtype.hasobject:
                raise InvalidInputError(f"array {name!r} holds Python objects ({value.dtype}); give numbers or text")
            member = io.BytesIO()
            np.lib.format.write_array(member, value, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH), member.getvalue())
    return buffer.getvalue()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, read completely.

    :raises FileFormatError: missing, truncated, or no such archive; names the file.
    """
    try:
        # opened here, because numpy leaves the file open when it is no archive
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path.name}: not a readable archive of arrays ({error})") from error
