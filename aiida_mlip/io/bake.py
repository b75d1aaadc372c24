"""Messages of ``aiida-mlip-evaluate --bake``: one level of theory of a joint potential as an ordinary package.

Request ``input.json``; answer ``output.json`` and the package ``baked.nequip.zip``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from aiida_mlip.io.evaluation import MODEL, read_model_request

#: The package that was made.
BAKED: Final[str] = "baked.nequip.zip"


class BakeRequest(BaseModel):
    """What to bake.

    :param model: package file of the joint potential beside the request.
    :param sha256: expected hash of the package.
    :param fidelity: name of the level of theory.
    :param index: its number in the model.
    :param shifts: energy (eV) of an atom by itself at that level of theory, for each of the model's types.
    :param change: by how much these differ from the shifts of the joint model; what it does not name is not checked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    model: str = MODEL
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    fidelity: str
    index: int = Field(ge=0)
    shifts: dict[str, float]
    change: dict[str, float] = Field(default_factory=dict)


def read_bake_request(path: Path) -> BakeRequest:
    """Request of a JSON file.

    :raises FileFormatError: no such file, or not JSON.
    :raises InvalidInputError: unknown keys or values; names each.
    """
    return read_model_request(path, BakeRequest)
