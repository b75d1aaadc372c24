"""The potential with a slope of its uncertainty that a request of a dynamics program asks for."""

from __future__ import annotations

from pathlib import Path

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.arrays import read_npz
from aiida_mlip.io.metadynamics import MODEL_FILE, STATISTICS_FILE, Uncertainty
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.force_source import load_potential
from aiida_mlip.workers.requested_forces import ForcesRequest, fidelity_index
from aiida_mlip.workers.uncertain_potential import UncertainPotential


def requested_uncertain_potential(
    folder: Path, request: ForcesRequest, structures: Frames, settings: Uncertainty
) -> UncertainPotential:
    """Calculator of the package and the grades in the folder; executes code from the package.

    :param settings: which uncertainty, and where it saturates.
    :raises FileFormatError: no grades, or broken ones.
    :raises InvalidInputError: an element that the grades have no environments of.
    :raises SpeciesError: an element that the potential does not cover.
    :raises ModelNotLoadedError: the package is broken, changed, or cannot be loaded here.
    """
    from ase.data import atomic_numbers

    grades = Grades.from_arrays(read_npz(folder / STATISTICS_FILE))
    if missing := [symbol for symbol in structures.species if atomic_numbers[symbol] not in grades.elements]:
        raise InvalidInputError(f"the potential was never trained on {', '.join(missing)}: it has no grades of them")
    model = load_potential(
        folder / MODEL_FILE,
        species=request.species,
        wanted=structures.species,
        device=request.spec.device,
        expected_sha256=request.sha256,
        features=True,
        derivatives=False,
    )
    return UncertainPotential(
        model,
        shifts=request.energy_shifts,
        grades=grades,
        measure=settings.measure,
        saturation=settings.saturation,
        fidelity=fidelity_index(request),
    )
