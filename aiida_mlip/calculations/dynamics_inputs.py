"""What the jobs of all dynamics programs do with their structures and their potential."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase.data import atomic_numbers

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData


def shard_copies(dataset: DatasetData, stem: str, copies: list[tuple[str, str, str]]) -> tuple[str, ...]:
    """Names that the shards of a dataset get in the work directory; adds what is to be copied."""
    names = tuple(f"{stem}_{i:04d}.npz" for i in range(len(dataset.shard_names)))
    copies += [
        (dataset.uuid, f"{DatasetData._PREFIX}/{shard}", name)
        for shard, name in zip(dataset.shard_names, names, strict=True)
    ]
    return names


def check_potential(potential: PotentialData, fidelity: str | None, species: Sequence[str]) -> str | None:
    """What keeps a potential from driving these species at a level of theory; None if nothing does.

    :raises InvalidInputError: it is a joint one of several levels.
    :raises SpeciesError: it does not cover them.
    :raises FileFormatError: its package was changed.
    """
    potential.check_runs()
    potential.check_species(species)
    if fidelity is not None and fidelity not in potential.fidelities:
        return f"spec.fidelity: {fidelity!r} is none of the potential's: {potential.fidelities}"
    if fidelity is None and len(potential.fidelities) > 1:
        return f"spec.fidelity: missing, the potential knows several: {potential.fidelities}"
    with potential.open_package():
        return None


def described_potential(potential: PotentialData, fidelity: str | None) -> dict[str, Any]:
    """What a request says about the potential."""
    fidelities = list(potential.fidelities)
    name = fidelity or (fidelities[0] if fidelities else "")
    return {
        "sha256": potential.sha256,
        "species": tuple(potential.species),
        "fidelities": tuple(fidelities),
        "energy_shifts": potential.energy_shifts.get(name, {}),
    }


def why_no_slope(potential: PotentialData, species: Sequence[str]) -> str | None:
    """Why the uncertainty of a potential cannot be followed; None if it can.

    :raises FileFormatError: its grades were damaged.
    """
    grades = potential.grades()
    if grades is None:
        return f"potential: <{potential.uuid}> has no grades, so there is no uncertainty to follow; train it again"
    if missing := [symbol for symbol in species if atomic_numbers[symbol] not in grades.elements]:
        return f"potential: <{potential.uuid}> was never trained on {', '.join(missing)}, so it has no grades of them"
    return None
