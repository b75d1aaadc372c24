"""The files between a labelling job and its worker: request and frames in, labels and report out."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

INPUT_FILE: Final[str] = "input.json"
FRAMES_FILE: Final[str] = "frames.npz"
#: Shard of the frames finished so far, in order, with labels or failure classes.
LABELS_FILE: Final[str] = "labels.npz"
OUTPUT_FILE: Final[str] = "output.json"


class LabelRequest(BaseModel):
    """Contents of ``input.json``.

    :param fidelity: name of the level of theory.
    :param calculator: dotted import path of an ASE calculator.
    :param arguments: its keyword arguments.
    :param labels: ``energy``, ``forces``, ``stress``.
    :param checkpoint_seconds: finished frames are written at least this often.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fidelity: str
    calculator: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    labels: tuple[str, ...]
    checkpoint_seconds: float = Field(default=5.0, ge=0)


class LabelReport(BaseModel):
    """Contents of ``output.json``.

    :param n_frames: frames asked for.
    :param n_done: frames finished, well or not.
    :param error: why nothing could be done at all; empty otherwise.
    :param messages: row -> why it failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_frames: int
    n_done: int = 0
    error: str = ""
    messages: dict[int, str] = Field(default_factory=dict)
