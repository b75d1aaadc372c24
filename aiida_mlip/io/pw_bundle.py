"""The files of a bundle of pw.x labels: one archive of inputs in, one archive per finished frame out, a shell between.

What happens on the cluster is a POSIX shell script, so that nothing needs to be installed there::

    inputs.tar.gz           00000.in, 00001.in, ...
    pseudo/                 pseudopotentials
    work/00000/             a frame that runs: aiida.in, pseudo/, out/; removed as soon as it has ended
    done/00000.tar.gz       a frame that has ended: what the parser needs, moved here in one step
    results.tar             all of done/, once all frames have ended
    begun                   a line per frame that was begun, for people who watch, and to know what was cut off

A job that is killed leaves ``done/`` as it is: nothing that has ended is lost.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import clipped_lines, plain_text

INPUTS_FILE: Final[str] = "inputs.tar.gz"
SCRIPT_FILE: Final[str] = "bundle.sh"
RESULTS_FILE: Final[str] = "results.tar"
BEGUN_FILE: Final[str] = "begun"
DONE_FOLDER: Final[str] = "done"
#: Of a job that runs: frames in work, and inputs of those not begun.
WORK_FOLDER: Final[str] = "work"
INPUTS_FOLDER: Final[str] = "inputs"
PW_INPUT: Final[str] = "aiida.in"
PW_OUTPUT: Final[str] = "aiida.out"
PW_ERROR: Final[str] = "aiida.err"
CRASH: Final[str] = "CRASH"
TIMES: Final[str] = "times"
#: Names of the XML file, newest version of pw.x first.
XML_NAMES: Final[tuple[str, ...]] = ("data-file-schema.xml", "data-file.xml")
#: What a frame leaves may not be larger than this when unpacked (bytes): an XML file of 10,000 bands is 100 MB.
MAX_FRAME_BYTES: Final[int] = 1 << 30
_ARCHIVE: Final[re.Pattern[str]] = re.compile(r"(?:\./)?([0-9]{5,9})\.tar\.gz")

_NUMBER: Final[re.Pattern[str]] = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class FrameFiles:
    """What one frame of a bundle left.

    :param output: standard output of pw.x.
    :param error: its standard error.
    :param crash: its crash file, or None.
    :param xml: its XML file, or None.
    :param seconds: between begin and end on the clock of the cluster, NaN if not known.
    :param status: exit status of pw.x, or of its launcher, as the shell tells it; 128 + n after signal n; None if not
        known.
    """

    output: str
    error: str
    crash: str | None
    xml: bytes | None
    seconds: float
    status: int | None


def frame_name(index: int) -> str:
    """Name of the ``index``-th frame of a bundle, from 0, in file names."""
    return f"{index:05d}"


def pack_inputs(inputs: Sequence[str]) -> bytes:
    """Archive of the inputs of pw.x, one per frame; the same bytes for the same inputs.

    :param inputs: contents, in order.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index, text in enumerate(inputs):
            content = text.encode()
            member = tarfile.TarInfo(f"{frame_name(index)}.in")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def unpack_input(content: bytes, index: int) -> str:
    """Input of the ``index``-th frame out of the archive of :func:`pack_inputs`.

    :raises FileFormatError: not such an archive, or it has no such frame.
    """
    found = _members(content, (f"{frame_name(index)}.in",), source=INPUTS_FILE)
    if not found:
        raise FileFormatError(f"{INPUTS_FILE}: there is no frame {index} in it")
    return next(iter(found.values())).decode()


def split_results(content: bytes) -> tuple[dict[int, bytes], str]:
    """Archives of the frames in ``results.tar``, as many as can be read, and what is wrong with the rest (or nothing).

    :param content: of ``results.tar``, possibly cut off.
    """
    found: dict[int, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                match = _ARCHIVE.fullmatch(member.name)
                if match is None or not member.isreg():
                    continue
                handle = archive.extractfile(member)
                data = handle.read() if handle is not None else b""
                if len(data) != member.size:
                    return found, f"{RESULTS_FILE}: cut off in {member.name}"
                found[int(match[1])] = data
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        return found, f"{RESULTS_FILE}: {error}"
    return found, ""


def index_of(name: str) -> int | None:
    """Number of the frame whose archive has this name, or None."""
    match = _ARCHIVE.fullmatch(name)
    return int(match[1]) if match else None


def read_frame(content: bytes, *, source: str = "archive") -> FrameFiles:
    """What a frame left, out of its archive.

    :param content: of ``done/<frame>.tar.gz``.
    :param source: what to call it in messages.
    :raises FileFormatError: it cannot be read to the end, or is larger than :data:`MAX_FRAME_BYTES`.
    """
    found = _members(content, (PW_OUTPUT, PW_ERROR, CRASH, TIMES, *XML_NAMES), source=source)
    text = {
        name: plain_text(clipped_lines(data.decode(errors="replace")))
        for name, data in found.items()
        if name not in XML_NAMES
    }
    seconds, status = _times(text.get(TIMES, ""))
    return FrameFiles(
        output=text.get(PW_OUTPUT, ""),
        error=text.get(PW_ERROR, ""),
        crash=text.get(CRASH),
        xml=next((found[name] for name in XML_NAMES if name in found), None),
        seconds=seconds,
        status=status,
    )


def begun_frames(text: str) -> list[int]:
    """Numbers of the frames that were begun, out of the file ``begun``; lines that make no sense are left out."""
    words = [line.split()[0] for line in text.splitlines() if line.strip()]
    return [int(word) for word in words if _NUMBER.fullmatch(word)]


def bundle_script(
    run_line: str,
    *,
    side_by_side: int,
    environment: Mapping[str, str] | None = None,
    max_seconds: int | None = None,
) -> str:
    """Script that runs all frames, ``side_by_side`` at a time; it is read (``.``) by the shell of the job.

    :param run_line: command, quoted for the shell, that reads ``aiida.in`` in the current directory.
    :param side_by_side: frames that run at once.
    :param environment: variables that are set before.
    :param max_seconds: after which no further frame is begun.
    """
    exports = "".join(f"export {name}={value}\n" for name, value in (environment or {}).items())
    late = "false" if max_seconds is None else f"[ $(($(date +%s) - started)) -ge {max_seconds} ]"
    workers = "label_frames" if side_by_side == 1 else "label_frames &\n" * side_by_side + "wait"
    return _SCRIPT.format(
        exports=exports,
        run_line=f"{run_line} > {PW_OUTPUT} 2> {PW_ERROR}",
        workers=workers,
        late=late,
        inputs=INPUTS_FILE,
        work=WORK_FOLDER,
        rest=INPUTS_FOLDER,
        results=RESULTS_FILE,
        begun=BEGUN_FILE,
        done=DONE_FOLDER,
        input=PW_INPUT,
        kept=" ".join((TIMES, PW_OUTPUT, PW_ERROR, CRASH, *XML_NAMES)),
        times=TIMES,
    )


_SCRIPT: Final[str] = """\
# Runs pw.x for many frames; see aiida_mlip/io/pw_bundle.py. POSIX shell, needs tar and gzip.
set +e
{exports}run_frame() {{
    {run_line}
}}

# What has begun in an earlier life of this job (a requeue) and not ended begins anew.
rm -rf {work} claimed {rest}
mkdir -p {work} claimed {rest} {done}
gzip -dc {inputs} | (cd {rest} && tar xf -)
started=$(date +%s)
frames=$(cd {rest} && for name in *.in; do echo "${{name%.in}}"; done)

label_frame() {{
    [ -e "{done}/$1.tar.gz" ] && return
    mkdir "claimed/$1" 2>/dev/null || return 0
    mkdir "{work}/$1" "{work}/$1/pseudo" "{work}/$1/out" || return
    ln pseudo/* "{work}/$1/pseudo/" 2>/dev/null || cp pseudo/* "{work}/$1/pseudo/"
    mv "{rest}/$1.in" "{work}/$1/{input}"
    begin=$(date +%s.%N)
    echo "$1 $begin" >> {begun}
    (cd "{work}/$1" && run_frame) < /dev/null
    status=$?
    echo "$begin $(date +%s.%N) $status" > "{work}/$1/{times}"
    (
        cd "{work}/$1" || exit
        mv out/aiida.save/data-file*.xml . 2>/dev/null
        set --
        for name in {kept}; do [ -f "$name" ] && set -- "$@" "$name"; done
        tar cf - "$@" | gzip -c
    ) > "{done}/$1.part" && mv "{done}/$1.part" "{done}/$1.tar.gz"
    rm -rf "{work}/$1"
}}

label_frames() {{
    for frame in $frames; do
        kill -0 $$ 2>/dev/null || exit 1  # the job was ended: begin no more
        {late} && return
        label_frame "$frame"
    done
}}

{workers}

ended=0
expected=0
for frame in $frames; do
    expected=$((expected + 1))
    [ -e "{done}/$frame.tar.gz" ] && ended=$((ended + 1))
done
if [ "$ended" -eq "$expected" ]; then
    (cd {done} && tar cf ../{results}.part ./*.tar.gz) && mv {results}.part {results} && rm -rf {done}
fi
rm -rf {work} claimed {rest}
"""


def _members(content: bytes, names: Sequence[str], *, source: str) -> dict[str, bytes]:
    """Plain files of these names in a compressed archive, read into memory, never onto a disk."""
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            plain = packed.read(MAX_FRAME_BYTES + 1)  # to the end, where the checksum is
        if len(plain) > MAX_FRAME_BYTES:
            raise ValueError(f"more than {MAX_FRAME_BYTES} bytes")
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                handle = archive.extractfile(member) if member.isreg() and name in names else None
                if handle is not None:
                    found[name] = handle.read()
                    if len(found[name]) != member.size:
                        raise ValueError(f"cut off in {name}")
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise FileFormatError(f"{source}: {error}") from error
    return found


def _times(text: str) -> tuple[float, int | None]:
    """Seconds between begin and end, and exit status; a clock without fractions of a second prints ``.N``."""
    try:
        begin, end, status = text.split()
        return float(end.replace("N", "0")) - float(begin.replace("N", "0")), int(status)
    except ValueError:
        return float("nan"), None
