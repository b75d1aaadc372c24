"""Settings of a scan of one large frame, as a person writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aiida_mlip.io.large_frames import Format
from aiida_mlip.kernel.grade_histogram import DEFAULT_TOP, DEFAULT_WIDTH
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.model import SpecModel


class ScanSettings(SpecModel):
    """How to scan; see :class:`aiida_mlip.io.scan.ScanRequest` for what each key means.

    :param fragments: cut them out there, see :mod:`aiida_mlip.protocols.fragment`.
    :param file: name of the file in the remote folder, where the frame is not given as a file node.
    """

    file: str | None = None
    frame: int = -1
    file_format: Format | None = None
    atom_style: str | None = None
    type_species: tuple[str, ...] | None = None
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
    fragments: FragmentSettings | None = None
