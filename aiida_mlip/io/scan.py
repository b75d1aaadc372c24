"""Messages of ``aiida-mlip-evaluate --scan``: grades of one large frame.

Request ``input.json``; answer ``output.json``, and where candidates were found ``candidates.npz`` (their surroundings,
a shard of frames) and ``environments.npz`` (one row of numbers for each); where fragments were asked for and accepted
``fragments.npz`` (a shard) and ``fragment_novelty.npy`` (γ of their atoms).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.evaluation import MODEL, STATISTICS, read_model_request
from aiida_mlip.io.fragments import FragmentKeys, HostCrystal
from aiida_mlip.io.large_frames import Format
from aiida_mlip.kernel.grade_histogram import DEFAULT_TOP, DEFAULT_WIDTH

#: Shard of the fragments that were accepted, and (a,) γ of their atoms.
FRAGMENTS: Final[str] = "fragments.npz"
FRAGMENT_NOVELTY: Final[str] = "fragment_novelty.npy"
CANDIDATES: Final[str] = "candidates.npz"
ENVIRONMENTS: Final[str] = "environments.npz"
NOVELTY: Final[str] = "novelty.npy"
#: What a scan that was killed goes on from.
PARTIAL: Final[str] = "scan.partial.npz"


class ScanRequest(BaseModel):
    """What to scan, and how.

    :param file: the large frame, a path from the folder or an absolute one; see :mod:`aiida_mlip.io.large_frames`.
    :param frame: its number in the file; -1: the last.
    :param file_format: where the file does not tell.
    :param atom_style: of a LAMMPS data file that does not name it.
    :param type_species: chemical symbols of the atom types 1, 2, ... of a LAMMPS file.
    :param model: package file.
    :param sha256: hash the package must have.
    :param species: chemical symbols that the potential covers.
    :param statistics: ``.npz`` file of the potential's grades.
    :param device: where to run.
    :param mode: ``compiled`` spends a minute on compiling, once for a machine.
    :param layers: message-passing layers of the model; None: looked up in the package.
    :param max_atoms: atoms evaluated at once, halo included: memory against work spent in halos.
    :param threshold: γ above which an atom is a candidate.
    :param max_candidates: most candidates to write, worst first.
    :param separation_ang: no two candidates closer than this (Å); None: the cutoff.
    :param radius_ang: atoms around a candidate that are written (Å); None: all that it sees.
    :param histogram_top: γ at which the last bin ends.
    :param histogram_width: of a bin.
    :param write_novelty: write γ of every atom, too.
    :param save_every_s: seconds between saved states.
    :param fragments: cut the surroundings of the worst atoms out, complete and judge them here, and write those that
        are fit to be labelled.
    :param hosts: crystals that the frame is made of, for the completion of fragments.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    file: str
    frame: int = -1
    file_format: Format | None = None
    atom_style: str | None = None
    type_species: tuple[str, ...] | None = None
    model: str = MODEL
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    species: tuple[str, ...] | None = None
    statistics: str = STATISTICS
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mode: Literal["eager", "compiled"] = "compiled"
    layers: int | None = Field(default=None, ge=1)
    max_atoms: int = Field(default=60_000, ge=1)
    threshold: float = Field(default=1.5, gt=0)
    max_candidates: int = Field(default=100, ge=1)
    separation_ang: float | None = Field(default=None, gt=0)
    radius_ang: float | None = Field(default=None, gt=0)
    histogram_top: float = Field(default=DEFAULT_TOP, gt=0)
    histogram_width: float = Field(default=DEFAULT_WIDTH, gt=0)
    write_novelty: bool = False
    save_every_s: float = Field(default=60.0, ge=0)
    fragments: FragmentKeys | None = None
    hosts: tuple[HostCrystal, ...] = ()


def read_scan_request(path: Path) -> ScanRequest:
    """Request of a JSON file.

    :raises FileFormatError: no such file, or not JSON.
    :raises InvalidInputError: unknown keys or values; names each.
    """
    return read_model_request(path, ScanRequest)


def write_scan_request(path: Path, request: ScanRequest) -> None:
    """JSON file of a request."""
    try:
        path.write_text(json.dumps(request.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be written ({error})") from error
