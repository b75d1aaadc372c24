"""Text files of millions of lines, read in blocks: numbers of a table, and the line where it goes wrong."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Final

import numpy as np

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief

#: Lines that are held as text at once.
_BLOCK: Final[int] = 50_000
#: Longest line (characters).
_LONGEST: Final[int] = 1 << 20
#: Characters of a word in a table.
_WORD: Final[str] = "U16"


class LineReader:
    """Lines of a text file, with the frame and the number of the line for messages.

    :param stream: open text file, at its beginning.
    :param source: its name in messages.
    """

    def __init__(self, stream: IO[str], source: str) -> None:
        self._stream, self.source = stream, source
        self._waiting: str | None = None
        self.frame, self.line = 0, 0

    def error(self, reason: str, *, line: int | None = None) -> FileFormatError:
        """Error that names the file, the frame and the line (the latest, if not told)."""
        where = self.line if line is None else line
        return FileFormatError(f"{self.source}, frame {self.frame}, line {where}: {brief(reason, 2000)}")

    def next(self) -> str | None:
        """Next line without its end; None at the end of the file."""
        for text in self._take(1):
            return text.rstrip("\r\n")
        return None

    def expect(self, what: str) -> str:
        """Next line.

        :raises FileFormatError: the file ends here.
        """
        text = self.next()
        if text is None:
            raise self.error(f"the file ends where {what} is expected")
        return text

    def peek(self, what: str) -> str:
        """Next line, which stays the next one.

        :raises FileFormatError: the file ends here.
        """
        self._waiting = self.expect(what) + "\n"
        self.line -= 1
        return self._waiting

    def skip(self, count: int) -> None:
        """Pass over lines.

        :raises FileFormatError: the file ends before.
        """
        while count > 0:
            found = sum(1 for _ in self._take(min(count, _BLOCK)))
            if found == 0:
                raise self.error(f"the file ends {count} lines too early")
            count -= found

    def table(self, rows: int, numbers: Sequence[int], words: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the next lines.

        :param rows: lines of the table.
        :param numbers: columns that hold numbers, from 0.
        :param words: columns that hold text.
        :returns: (rows, numbers) float64 and (rows, words) text.
        :raises FileFormatError: the file ends before, or a line without these columns; names it.
        """
        # what the file says of its length may be wrong: nothing is allocated by it
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        first = 0
        while first < rows:
            lines = list(self._take(min(rows - first, _BLOCK)))
            if not lines:
                raise self.error(f"truncated: {first} of {rows} rows are there")
            parts.append(self._parse(lines, numbers, words))
            first += len(lines)
        values, texts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return values, texts

    def _parse(self, lines: list[str], numbers: Sequence[int], words: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        kinds = [("number", "f8", (len(numbers),)), *([("word", _WORD, (len(words),))] if words else [])]
        try:
            found = np.loadtxt(lines, dtype=kinds, usecols=(*numbers, *words), comments=None, ndmin=1)
        except (ValueError, IndexError):
            found = None
        if found is None or len(found) != len(lines):
            raise self._first_bad_line(lines, numbers, words)
        return found["number"], found["word"] if words else np.empty((len(lines), 0), dtype=_WORD)

    def _first_bad_line(self, lines: list[str], numbers: Sequence[int], words: Sequence[int]) -> FileFormatError:
        start = self.line - len(lines)
        width = max((*numbers, *words)) + 1
        for number, text in enumerate(lines, start=start + 1):
            row = text.split()
            if len(row) < width:
                return self.error(f"expected {width} columns, got {len(row)}: {text.strip()[:80]!r}", line=number)
            for column in numbers:
                try:
                    float(row[column])
                except ValueError:
                    return self.error(f"column {column + 1} is no number: {row[column][:40]!r}", line=number)
        return self.error("not a table", line=start + 1)

    def _take(self, count: int) -> Iterator[str]:
        if self._waiting is not None and count > 0:
            text, self._waiting, count = self._waiting, None, count - 1
            self.line += 1
            yield text
        try:
            for _ in range(count):
                text = self._stream.readline(_LONGEST + 1)
                if not text:
                    return
                self.line += 1
                if len(text) > _LONGEST:
                    raise self.error(f"a line of more than {_LONGEST} characters")
                yield text
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise self.error(f"cannot be read: {error}") from error
