"""``aiida-mlip-explore``: dynamics, relaxations and Monte Carlo with a potential, on the compute node.

Reads ``input.json`` (:class:`~aiida_mlip.io.explore.ExploreRequest`), the shards of structures, and where they are
there the packages of potentials, a file of LAMMPS commands and ``checkpoint.npz``. The runs (structures × replicas)
follow one another. Writes ``trajectory.npz`` (frames), ``series.npz``, ``selected.npz`` and ``grades.npz`` (frames
worth a label), ``output.json`` and, unless every run is done, ``checkpoint.npz``; every half minute, at the end, and
when the scheduler says that it is over. Exit status 0 unless nothing at all could be done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ase.calculators.calculator import Calculator
from pydantic import ValidationError

from aiida_mlip.errors import MlipError, SpeciesError
from aiida_mlip.io.arrays import read_npz
from aiida_mlip.io.explore import OUTPUT_FILE, REQUEST_FILE, STATISTICS_FILE, ExploreReport, ExploreRequest
from aiida_mlip.kernel.calibration import Calibration
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.explore_simulation import Simulation
from aiida_mlip.workers.force_source import ModelNotLoadedError, calculator_of_package
from aiida_mlip.workers.lammps_driver import LammpsMissingError
from aiida_mlip.workers.requested_forces import fidelity_index, requested_calculator
from aiida_mlip.workers.requested_uncertainty import requested_uncertain_potential
from aiida_mlip.workers.run_files import read_frames, replace_file
from aiida_mlip.workers.watch import Watch

_REASONS: Final[tuple[tuple[type[Exception], Any], ...]] = (
    (LammpsMissingError, "engine_missing"),
    (SpeciesError, "species_not_covered"),
    (ModelNotLoadedError, "model_not_loaded"),
)


def run(folder: Path, request: ExploreRequest) -> ExploreReport:
    """Do what a request asks, in a folder; see the module's text for the files.

    :raises InvalidInputError: input that cannot be used.
    :raises SpeciesError: an element that the potential does not cover.
    :raises LammpsMissingError: LAMMPS is asked for and not installed here.
    """
    structures = read_frames(folder, request.structures)
    calculator = _calculator(folder, request, structures)
    watch = None
    if request.spec.watch is not None:
        watch = Watch(
            request.spec.watch.model_copy(update={"min_distance_ang": request.spec.limits.min_distance_ang}),
            calculator,
            committee=_committee(folder, request, structures),
            calibration=None if request.calibration is None else Calibration.from_dict(request.calibration),
        )
    return Simulation(folder, request, calculator, structures, watch).run()


def _calculator(folder: Path, request: ExploreRequest, structures: Frames) -> Calculator:
    spec = request.spec
    if spec.lammps is not None and spec.lammps.pair_commands and spec.forces is None and request.sha256 is None:
        return Calculator()  # never asked: LAMMPS has the forces
    if spec.uncertainty is not None:
        return requested_uncertain_potential(folder, request, structures, spec.uncertainty)
    watched = spec.watch is not None and request.graded
    grades = Grades.from_arrays(read_npz(folder / STATISTICS_FILE)) if watched else None
    return requested_calculator(folder, request, structures, mode=spec.mode, grades=grades)


def _committee(folder: Path, request: ExploreRequest, structures: Frames) -> list[Calculator]:
    """Calculators of the other members."""
    return [
        calculator_of_package(
            folder / member.file,
            device=request.spec.device,
            sha256=member.sha256,
            species=request.species,
            wanted=structures.species,
            shifts={},
            fidelity=fidelity_index(request),
            mode=request.spec.mode,
        )
        for member in request.committee
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    :returns: 0, or 2 when nothing at all could be done (``output.json`` says why).
    """
    parser = argparse.ArgumentParser(
        prog="aiida-mlip-explore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where the files are (default: here)")
    folder: Path = parser.parse_args(arguments).folder.resolve()
    try:
        request = ExploreRequest.model_validate(json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8")))
        report = run(folder, request)
    except (OSError, ValueError, ValidationError, MlipError) as error:
        reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "invalid_input")
        print(f"error: {error}", file=sys.stderr)
        refusal = ExploreReport(status="refused", reason=reason, message=str(error)[:2000])
        if folder.is_dir():
            replace_file(folder / OUTPUT_FILE, refusal.model_dump_json(indent=1).encode())
        return 2
    print(f"{report.status}: {sum(run.frames for run in report.runs)} frames, {report.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
