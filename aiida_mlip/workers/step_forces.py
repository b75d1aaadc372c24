"""Forces of one system, step after step: what dynamics needs from a loaded model, with as little else as possible.

:func:`aiida_mlip.workers.inference.predict` is for many frames; here the same numbers come from a neighbour list that
is kept while atoms move, without a copy of the frame and without a batch around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from aiida_mlip.errors import ExternalProgramError
from aiida_mlip.kernel.frames import Failure
from aiida_mlip.kernel.pair_list import PairList, Pairs
from aiida_mlip.workers.graphs import batched, on_device, shortened
from aiida_mlip.workers.inference import is_out_of_memory
from aiida_mlip.workers.model_loading import LoadedModel

#: Å beyond the cutoff that the neighbour list reaches; measured best for solids at 300-1000 K.
SKIN: Final[float] = 0.5


@dataclass(frozen=True)
class Step:
    """A potential's word on one geometry.

    :param energy: eV, as the package gives it.
    :param forces: (a, 3) eV/Å.
    :param stress: (3, 3) eV/Å³, tension positive; None unless periodic in three directions.
    :param features: (a, d) tensor after the last layer, on the model's device; None: the model gives none.
    :param types: (a,) tensor of the model's types, on its device.
    :param pairs: within the model's cutoff.
    """

    energy: float
    forces: Float64[np.ndarray, "a 3"]
    stress: Float64[np.ndarray, "3 3"] | None
    features: Any  # torch.Tensor, torch is not imported here
    types: Any
    pairs: Pairs


class StepForces:
    """Forces of a system that keeps its atoms.

    :param model: see :func:`aiida_mlip.workers.model_loading.load_model`; one for ``frames="one"`` is the fastest.
    :param fidelity: index of the level of theory, for a model of several.
    :param skin: of the neighbour list, Å.
    """

    def __init__(self, model: LoadedModel, *, fidelity: int | None = None, skin: float = SKIN) -> None:
        self._model = model
        self._fidelity = fidelity
        self._list = PairList(model.cutoff_ang, skin=skin)
        self._numbers = np.empty(0, dtype=int)
        self._types = np.empty(0, dtype=np.int64)

    @property
    def cutoff_ang(self) -> float:
        """Cutoff (Å) of the model."""
        return self._model.cutoff_ang

    def evaluate(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Step:
        """Energy, forces, stress and features of a geometry, from one call of the model.

        :param numbers: (a,) atomic numbers.
        :param positions: (a, 3) Å.
        :param cell: (3, 3) Å, rows are lattice vectors; zeros where there is none.
        :param pbc: (3,) periodicity.
        :raises ExternalProgramError: the model fails, or gives numbers that are not finite.
        :raises SpeciesError: an element that the model does not cover.
        """
        inputs, pairs = self._graph(numbers, positions, cell, pbc)
        return self._step(inputs, self._call(inputs), pairs, periodic=bool(np.all(pbc)))

    def _graph(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[dict[str, Any], Pairs]:
        """The model's input, and the pairs in it."""
        if not np.array_equal(numbers, self._numbers):
            self._types = self._model.types_of(numbers, self._fidelity)
            self._numbers = np.array(numbers)
        if not np.isfinite(positions).all():
            raise ExternalProgramError("the potential gave no forces: positions are not finite")
        pairs = self._list.pairs(positions, cell, pbc)
        return self._inputs(positions, cell, pairs), pairs

    def _call(self, inputs: dict[str, Any]) -> Any:
        try:
            return self._model.call(inputs)
        except Exception as error:  # the model is foreign code and may raise anything
            label = (Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.CRASHED).label
            raise ExternalProgramError(
                f"the potential gave no forces: {label} ({type(error).__name__}: {error})"
            ) from error

    def _step(self, inputs: dict[str, Any], outputs: Any, pairs: Pairs, *, periodic: bool) -> Step:
        a = len(self._numbers)
        energy = float(outputs["total_energy"].detach().reshape(-1)[0])
        forces = outputs["forces"].detach()[:a].cpu().double().numpy()
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise ExternalProgramError(f"the potential gave no forces: {Failure.IMPLAUSIBLE.label} (not finite)")
        stress = None
        if periodic and (found := outputs.get("stress")) is not None and found.numel():
            stress = found.detach().cpu().double().numpy().reshape(-1, 3, 3)[0]
            stress = stress if np.isfinite(stress).all() else None
        features = None if self._model.feature_field is None else self._model.features(inputs, outputs)[:a]
        return Step(energy, forces, stress, features, inputs["atom_types"][:a], pairs)

    def _inputs(self, positions: np.ndarray, cell: np.ndarray, pairs: Pairs) -> dict[str, Any]:
        """The model's input: the graph of `predict`, built without it."""
        import torch

        index, shift = pairs.index, pairs.shift
        if (cutoffs := self._model.pair_cutoffs) is not None:
            near = shortened(self._types, index, pairs.distance, cutoffs)
            index, shift = index.compress(near, axis=1), shift.compress(near, axis=0)
        data = {
            "pos": torch.tensor(positions, dtype=torch.float64),
            "cell": torch.tensor(cell, dtype=torch.float64).view(1, 3, 3),
            "edge_index": torch.as_tensor(index),
            "edge_cell_shift": torch.as_tensor(shift),
            "atom_types": torch.as_tensor(self._types),
        }
        if self._fidelity is not None and self._model.n_level_types == 1:
            data["dataset"] = torch.tensor([[self._fidelity]])
        if self._model.smallest_batch > 1:
            data = batched([data] * self._model.smallest_batch)
        return on_device(data, self._model.device)
