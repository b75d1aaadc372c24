"""The lines of the job script around ``nequip-train``: which checkpoint is the best, and making a package of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from aiida_mlip.io.nequip_config import CHECKPOINT_DIR

PACKAGE_FILE: Final[str] = "model.nequip.zip"
STATUS_FILE: Final[str] = "status.txt"
PACKAGE_LOG: Final[str] = "package.out"
STDOUT: Final[str] = "train.out"
STDERR: Final[str] = "train.err"
#: Metrics of the trainings that this one continues.
HISTORY_DIR: Final[str] = "history"
INITIAL_DIR: Final[str] = "initial"
BEST_FILE: Final[str] = "best.ckpt"

# The names carry the validation error in a fixed width, so that the first in C order is the best one.
_BEST_OF: Final[str] = """\
best_checkpoint() {
    best=
    for file in "$1"/"${2:-best}"_*.ckpt; do
        case "${file##*/}" in *nan*|*inf*|*'_*.ckpt') continue ;; esac
        best=$file
        break
    done
}"""


def before_training(*, threads: int | None, initial: str | None) -> str:
    """Lines before the program.

    :param threads: of the linear algebra; nothing: as the environment says.
    :param initial: folder with the checkpoints of the training to start from, relative to the job's folder.
    """
    lines = ["export LC_ALL=C PYTHONUNBUFFERED=1", _BEST_OF]
    if threads is not None:
        lines.append(f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}")
    if initial is not None:
        folder = shlex.quote(initial)
        lines += [f"best_checkpoint {folder}", f'[ -n "$best" ] && mv "$best" {folder}/{BEST_FILE}']
    return "\n".join(lines)


def after_training(packager: str, *, keep_last: bool = False) -> str:
    """Lines after the program: its exit status, its wall time, then a package of the best checkpoint, if there is one.

    :param packager: path of ``nequip-package``.
    :param keep_last: package the last checkpoint instead, unless its validation error is not finite.
    """
    last = f'best_checkpoint {CHECKPOINT_DIR} kept\n[ -n "$best" ] || ' if keep_last else ""
    return f"""\
echo "train $?" > {STATUS_FILE}
echo "seconds $SECONDS" >> {STATUS_FILE}
{last}best_checkpoint {CHECKPOINT_DIR}
if [ -n "$best" ]; then
    echo "best $best" >> {STATUS_FILE}
    {shlex.quote(packager)} build "$best" {PACKAGE_FILE} > {PACKAGE_LOG} 2>&1
    echo "package $?" >> {STATUS_FILE}
fi"""


def read_status(text: str) -> dict[str, str]:
    """``train``, ``package``: exit status of the programs; ``seconds``: wall time; ``best``: path of the checkpoint."""
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


def kept_epoch(status: Mapping[str, str]) -> int | None:
    """Epoch of the checkpoint that was packaged, as its name says it; None where none was.

    >>> kept_epoch({"best": "checkpoints/best_000000.0322587_000004.ckpt"})
    4
    """
    number = PurePosixPath(status.get("best", "")).stem.rpartition("_")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None
