"""A potential that grades the atoms of one slab of a large frame: features, novelty and energy in one model call."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiida_mlip.errors import InvalidInputError, SpeciesError
from aiida_mlip.kernel.slabs import Slab
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.grading import TorchGrades
from aiida_mlip.workers.model_loading import LoadedModel, load_model

#: Empty space (Å) around the atoms of a slab: the neighbour search wants a box.
_PADDING: Final[float] = 1.0


@dataclass(frozen=True)
class GradedSlab:
    """What the model says of a slab's own atoms.

    :param novelty: (n,) γ.
    :param features: (n, d) last-layer features.
    :param energy: sum of their energies (eV), without the potential's shifts.
    """

    novelty: np.ndarray
    features: np.ndarray
    energy: float


@dataclass
class SlabModel:
    """Grades slabs.

    :param model: loaded with features, without derivatives, for one frame per call.
    :param grades: of the potential's training set.
    :param seconds: where the time went.
    """

    model: LoadedModel
    grades: Grades
    seconds: dict[str, float] = field(default_factory=lambda: {"neighbours": 0.0, "model": 0.0, "grades": 0.0})

    def __post_init__(self) -> None:
        """Put the grades where the features will be."""
        from ase.data import atomic_numbers

        self._torch_grades = TorchGrades(self.grades, self.model.type_names, self.model.device)
        self._types = np.full(256, -1, dtype=np.int64)
        for index, name in enumerate(self.model.type_names):
            self._types[atomic_numbers[name]] = index

    def types_of(self, numbers: np.ndarray) -> np.ndarray:
        """(a,) the model's type indices of atomic numbers.

        :raises SpeciesError: an element that it does not cover.
        """
        from ase.data import chemical_symbols

        types = self._types[numbers]
        if (types < 0).any():
            missing = [chemical_symbols[z] for z in np.unique(numbers[types < 0])]
            raise SpeciesError(
                f"the model does not cover {', '.join(missing)}; it covers {', '.join(self.model.type_names)}"
            )
        return types

    def __call__(self, slab: Slab, types: np.ndarray) -> GradedSlab:
        """Grade the own atoms of a slab.

        :param types: (m,) type index of each atom of the slab.
        """
        import torch

        started = time.perf_counter()
        data = self.inputs(slab, types)
        listed = time.perf_counter()
        with torch.no_grad():
            output = self.model.call(data)
            features = self.model.features(data, output)[: slab.n_core]
            energies = output["atomic_energy"][: slab.n_core]
            if features.is_cuda:
                torch.cuda.synchronize()
            called = time.perf_counter()
            novelty = self._torch_grades.novelty(features, data["atom_types"][: slab.n_core])
        result = GradedSlab(
            novelty=novelty.cpu().numpy(),
            features=features.cpu().double().numpy(),
            energy=float(energies.double().sum()),
        )
        self.seconds["neighbours"] += listed - started
        self.seconds["model"] += called - listed
        self.seconds["grades"] += time.perf_counter() - called
        return result

    def inputs(self, slab: Slab, types: np.ndarray) -> dict[str, Any]:
        """The model's input: an isolated cluster, with the edges of those atoms whose neighbours count."""
        import torch

        centres, others, box = neighbours_of_centres(slab, self.model.cutoff_ang)
        if len(centres) == 0:
            raise InvalidInputError(
                f"no two of {len(slab.atoms)} atoms around atom {slab.atoms[0]} are within the cutoff of "
                f"{self.model.cutoff_ang} Å: the model cannot be evaluated there"
            )
        data = {
            "pos": torch.as_tensor(slab.positions),
            "cell": torch.as_tensor(box)[None],
            "pbc": torch.zeros((1, 3), dtype=torch.bool),
            "edge_index": torch.as_tensor(np.stack([centres, others]).astype(np.int64)),
            "edge_cell_shift": torch.zeros((len(centres), 3), dtype=torch.float64),
            "atom_types": torch.as_tensor(types),
        }
        return {name: value.to(self.model.device) for name, value in data.items()}


def neighbours_of_centres(slab: Slab, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j) within the cutoff where i is one of the slab's centres, and the box they were looked for in."""
    from matscipy.neighbours import neighbour_list

    low = slab.positions.min(axis=0) - _PADDING
    box = np.diag(slab.positions.max(axis=0) + _PADDING - low)
    i, j = neighbour_list(
        "ij",
        positions=slab.positions - low,
        cell=box,
        pbc=np.zeros(3, dtype=bool),
        numbers=np.ones(len(slab.positions), dtype=np.int32),
        cutoff=float(cutoff),
    )
    wanted = int(np.searchsorted(i, slab.n_centres))  # sorted by i, and the centres come first
    return i[:wanted], j[:wanted], box


def message_passing_layers(package: Path, loaded: LoadedModel | None = None) -> int:
    """Message-passing layers of a packaged model: 1 for a strictly local one; **executes code from it**.

    :param loaded: the same model, loaded already; looked into when it is not compiled.
    :raises InvalidInputError: a model whose layers cannot be told.
    """
    found = 0 if loaded is None else _count_layers(loaded)
    if not found:  # a compiled model has no parts to look at
        found = _count_layers(load_model(package, device="cpu", mode="eager", derivatives=False))
    if not found:
        raise InvalidInputError(f"{package}: cannot tell how many message-passing layers it has; give 'layers'")
    return found


def _count_layers(model: LoadedModel) -> int:
    """Message-passing layers by the names of a model's parts; 0 where there are none to tell."""
    parts: Any = getattr(model.call, "named_modules", dict)()  # of a torch module
    names = {name.rsplit(".", 1)[-1] for name, _ in parts}
    if model.feature_field == "edge_features" or "allegro" in names:
        return 1
    return sum(name.startswith("layer") and name.endswith("_convnet") for name in names)
