"""Settings of an evaluation, as a person writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aiida_mlip.protocols.model import SpecModel


class EvaluateSettings(SpecModel):
    """How to evaluate a potential.

    :param fidelity: level of theory to predict where a frame is not labelled; for potentials of several.
    :param device: where to run; ``auto`` takes a GPU when there is one.
    :param mode: ``eager`` starts at once; ``compiled`` spends a minute on compiling, worth it for many frames.
    :param atoms_per_batch: atoms evaluated at once: memory against speed.
    :param fit_grades: fit the grades of :mod:`aiida_mlip.kernel.uncertainty` on the rows of the training part.
    :param seed: of that fit.
    """

    fidelity: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mode: Literal["eager", "compiled"] = "eager"
    atoms_per_batch: int = Field(default=1024, ge=1)
    fit_grades: bool = False
    seed: int = Field(default=0, ge=0)
