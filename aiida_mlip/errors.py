"""Every error this package raises on purpose.

::

    MlipError                       root: catch this to catch all of them
    ├── InvalidInputError           the caller gave something unusable (also a ValueError)
    │   ├── ProtocolError           a key or value of a protocol, fidelity or generator spec
    │   ├── FrameError              a frame that cannot be used; carries its number
    │   └── SpeciesError            chemical species that a potential or a pseudopotential family lacks
    ├── FileFormatError             a file that is truncated, tampered with, or not what it claims (also a ValueError)
    └── ExternalProgramError        a program we started ended badly
"""

from __future__ import annotations

#: Longest reason of an error of a frame (characters).
_LONGEST = 2000


class MlipError(Exception):
    """Root of all errors of this package."""


class InvalidInputError(MlipError, ValueError):
    """Input that cannot be used; the message names what was got and what is allowed."""


class ProtocolError(InvalidInputError):
    """A key or value of a protocol, fidelity or generator specification is wrong."""


class FrameError(InvalidInputError):
    """A frame that cannot be used.

    :param index: number of the frame, counted from 0, in the file or dataset named by ``source``.
    :param reason: what is wrong with it.
    """

    def __init__(self, index: int, reason: str, *, source: str = "dataset") -> None:
        self.index = index
        # what a file says may be long
        self.reason = reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"
        self.source = source
        super().__init__(f"{source}, frame {index}: {self.reason}")


class SpeciesError(InvalidInputError):
    """Chemical species asked for that a potential, dataset or pseudopotential family does not have."""


class FileFormatError(MlipError, ValueError):
    """A file is truncated, was changed, or is not what it claims to be."""


class ExternalProgramError(MlipError, RuntimeError):
    """A program started by this package ended badly; the message carries the end of its output."""
