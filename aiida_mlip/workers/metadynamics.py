"""``aiida-mlip-metadynamics``: biased dynamics from starting structures, on the compute node.

Reads ``input.json`` (:class:`~aiida_mlip.io.metadynamics.MetadynamicsRequest`), the shards of structures, and where
they are there the package of a potential, the folder ``bias`` and ``checkpoint.npz``. The trajectories are run one
after another under one growing bias. Writes ``trajectory.npz`` (frames), ``series.npz``, ``bias/``, ``output.json``
and, when not all is done, ``checkpoint.npz``; every half minute, at the end, and when the scheduler says that it is
over. Exit status 0 unless nothing at all could be done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from pydantic import ValidationError

from aiida_mlip.errors import ExternalProgramError, InvalidInputError, MlipError, SpeciesError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.metadynamics import (
    BIAS_FOLDER,
    CHECKPOINT_FILE,
    ENGINE_INPUT_FILE,
    OUTPUT_FILE,
    REQUEST_FILE,
    SERIES_FILE,
    TRAJECTORY_FILE,
    MetadynamicsReport,
    MetadynamicsRequest,
    TrajectoryReport,
)
from aiida_mlip.kernel.distances import closest_pair, pair_limits
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.metadynamics.walls import PairWall, temperature_limit
from aiida_mlip.workers.force_source import ModelNotLoadedError
from aiida_mlip.workers.guarded_calculator import ForcesFailed, GuardedCalculator, PairDistanceReached
from aiida_mlip.workers.lammps_driver import LammpsMissingError
from aiida_mlip.workers.metadynamics_engines import ENGINES, BiasedEngine, EngineMissingError, langevin
from aiida_mlip.workers.momenta import kinetic_temperature, thermal_atoms
from aiida_mlip.workers.requested_forces import requested_calculator
from aiida_mlip.workers.requested_uncertainty import requested_uncertain_potential
from aiida_mlip.workers.run_files import Recorder, read_frames, replace_file
from aiida_mlip.workers.stopping import StopClock

GENERATOR: Final[str] = "metadynamics"
#: Names of the columns of ``series.npz``.
SERIES: Final[tuple[str, ...]] = (
    "trajectory",
    "step",
    "temperature_k",
    "potential_energy_ev",
    "bias_energy_ev",
    "smallest_distance_ang",
)
#: Unbiased frames per structure that make the reference of environment space.
_REFERENCE_FRAMES: Final[int] = 20
_REASONS: Final[tuple[tuple[type[Exception], Any], ...]] = (
    (LammpsMissingError, "engine_missing"),
    (EngineMissingError, "engine_missing"),
    (SpeciesError, "species_not_covered"),
    (ModelNotLoadedError, "model_not_loaded"),
)


class Simulation:
    """All trajectories of a request, one after another.

    :param folder: where the files are.
    :param request: what to do.
    :param calculator: of the unbiased forces.
    :param structures: to start from.
    """

    def __init__(self, folder: Path, request: MetadynamicsRequest, calculator: Calculator, structures: Frames) -> None:
        self.clock = StopClock(request.max_seconds, request.checkpoint_seconds)
        self._folder, self._request, self._spec = folder, request, request.spec
        self._structures = structures
        walls = request.spec.walls
        self._limits = pair_limits(walls.min_distance_ang)
        strength = walls.pair_strength_ev_per_ang2 if walls.pair_action == "repel" else 0.0
        self._wall = PairWall(self._limits, strength=strength, onset=walls.pair_onset)
        self._guard = GuardedCalculator(calculator, self._wall)
        self._calculator = calculator
        self.recorder = Recorder(structures, SERIES)
        self.report = MetadynamicsReport(
            status="running",
            engine=request.spec.engine,
            steps_asked=request.spec.n_steps,
            trajectories=[
                TrajectoryReport(structure=row, replica=replica)
                for row in range(len(structures))
                for replica in range(request.spec.replicas)
            ],
        )
        self._steps_done = 0
        self._engine: BiasedEngine = self._make_engine()

    def run(self) -> MetadynamicsReport:
        """Run what is not done yet; everything is written when this returns.

        :raises ExternalProgramError: the engine refused the very first trajectory.
        """
        number, step, atoms = self._resume()
        for k in range(number, len(self.report.trajectories)):
            self._trajectory(k, step if k == number else 0, atoms if k == number else None)
            if self.report.trajectories[k].stopped_by == "walltime":
                break
        self.report.status = (
            "walltime"
            if any(t.stopped_by in ("walltime", "not_started") for t in self.report.trajectories[number:])
            else "finished"
        )
        self._write_all()
        if self.report.status == "finished":
            (self._folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        return self.report

    # -- one trajectory ----------------------------------------------------------------------------------------

    def _trajectory(self, k: int, step: int, atoms: Atoms | None) -> None:
        report, spec = self.report.trajectories[k], self._spec
        report.steps, report.stopped_by = step, "running"
        if atoms is None:
            atoms = self._starting_atoms(report)
        if reason := self._overlap(atoms):
            report.stopped_by, report.message = "pair_distance", reason
            return
        self._guard.reset()
        self._guard.reset_watch()
        try:
            self._engine.start(atoms, step=step, seed=self._seed(report, step))
            while report.steps < spec.n_steps and report.stopped_by == "running":
                n = min(spec.record_every - report.steps % spec.record_every, spec.n_steps - report.steps)
                self._engine.advance(n, seed=self._seed(report, report.steps))
                self._steps_done += n
                report.steps += n
                self._after_chunk(k, atoms)
            if report.stopped_by == "running":
                report.stopped_by = "finished"
        except PairDistanceReached as error:
            report.stopped_by, report.message = "pair_distance", str(error)
        except (ForcesFailed, ExternalProgramError) as error:
            if isinstance(error, ExternalProgramError) and k == 0 and report.steps == 0:
                raise
            report.stopped_by, report.message = "forces_failed", str(error)
        finally:
            self._end(k, atoms)
        print(
            f"trajectory {k + 1}/{len(self.report.trajectories)}: {report.steps} steps, {report.frames} frames, "
            f"{report.stopped_by} {report.message}",
            flush=True,
        )

    def _end(self, k: int, atoms: Atoms) -> None:
        if self.report.trajectories[k].stopped_by == "walltime":
            self._checkpoint(k, atoms)
        self._engine.finish()

    def _after_chunk(self, k: int, atoms: Atoms) -> None:
        """Walls, frame, clock."""
        report, walls = self.report.trajectories[k], self._spec.walls
        n_mobile = len(atoms) - len(set(self._spec.fixed_atoms))
        temperature = kinetic_temperature(atoms, n_mobile)
        limit = temperature_limit(self._spec.temperature_k, n_mobile, walls.max_temperature_k)
        if temperature > limit:
            if walls.temperature_action == "stop":
                report.stopped_by = "temperature"
                report.message = f"{temperature:.0f} K is above the limit of {limit:.0f} K"
                return
            self._engine.scale_velocities(float(np.sqrt(self._spec.temperature_k / temperature)))
        if report.steps % self._spec.record_every == 0:
            self._record(k, atoms, temperature)
        if self.clock.over:
            if report.steps < self._spec.n_steps or k + 1 < len(self.report.trajectories):
                report.stopped_by = "walltime" if report.steps < self._spec.n_steps else "finished"
        elif self.clock.checkpoint_is_due:
            # frames before the checkpoint: killed in between, a frame comes twice rather than never
            self._write_all()
            self._checkpoint(k, atoms)

    def _record(self, k: int, atoms: Atoms, temperature: float) -> None:
        report = self.report.trajectories[k]
        numbers, cell = atoms.numbers, atoms.cell.array
        _, _, _, distance = closest_pair(numbers, atoms.positions, cell, atoms.pbc, self._limits, reach=4.0)
        bias = self._engine.bias_energy()
        group = f"metadynamics {self._structures.ids()[report.structure]} {self._spec.seed} {report.replica}"
        values = (float(k), float(report.steps), temperature, self._guard.base_energy, bias, distance)
        self.recorder.add(atoms, structure=report.structure, generator=GENERATOR, group=group, values=values)
        n = report.frames = report.frames + 1
        mean = report.mean_temperature_k or 0.0
        report.mean_temperature_k = mean + (temperature - mean) / n
        if np.isfinite(distance):
            report.smallest_distance_ang = min(report.smallest_distance_ang or np.inf, distance)
        report.largest_bias_ev = max(report.largest_bias_ev or -np.inf, bias)

    # -- starting and going on ---------------------------------------------------------------------------------

    def _make_engine(self) -> BiasedEngine:
        bias = self._folder / BIAS_FOLDER
        bias.mkdir(exist_ok=True)
        text = None
        if self._request.engine_input:
            text = (self._folder / ENGINE_INPUT_FILE).read_text(encoding="utf-8")
        return ENGINES[self._spec.engine](self._spec, self._guard, folder=bias, text=text, reference=self._reference)

    def _reference(self) -> Frames:
        """Reference of environment space: the frames given, else unbiased dynamics of every structure."""
        if self._request.reference:
            return read_frames(self._folder, self._request.reference)
        space = self._spec.environment
        steps = 200 if space is None else space.reference_steps
        every = max(1, steps // _REFERENCE_FRAMES)
        frames = []
        for row in range(len(self._structures)):
            atoms = self._starting_atoms(TrajectoryReport(structure=row, replica=-1))
            if self._overlap(atoms):
                continue
            dynamics = langevin(atoms, GuardedCalculator(self._calculator, self._wall), self._spec, seed=row)
            for step in range(1, steps + 1):
                dynamics.step()
                if step % every == 0:
                    bare = atoms.copy()
                    bare.set_constraint()
                    frames.append(from_ase([bare]))
        if not frames:
            raise PairDistanceReached("every structure has atoms closer than walls.min_distance_ang allows")
        print(f"reference of environment space: {len(frames)} unbiased frames", flush=True)
        return concatenate(frames)

    def _starting_atoms(self, report: TrajectoryReport) -> Atoms:
        return thermal_atoms(
            self._structures,
            report.structure,
            temperature_k=self._spec.temperature_k,
            fixed=self._spec.fixed_atoms,
            seed=self._seed(report, 0),
        )

    def _overlap(self, atoms: Atoms) -> str:
        ratio, i, j, distance = closest_pair(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, self._limits)
        return "" if ratio >= 1 else f"the structure to start from has atoms {i} and {j} {distance:.3f} Å apart"

    def _seed(self, report: TrajectoryReport, step: int) -> int:
        """Seed of a chunk of steps: the same whether or not the run was interrupted before it."""
        entropy = [self._spec.seed, report.structure, report.replica + 1, step]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _checkpoint(self, k: int, atoms: Atoms) -> None:
        arrays = {
            "trajectory": np.array(k),
            "step": np.array(self.report.trajectories[k].steps),
            "positions": atoms.positions,
            "momenta": atoms.get_momenta(),
        }
        replace_file(self._folder / CHECKPOINT_FILE, write_npz(arrays))
        self._engine.save(self._folder / BIAS_FOLDER)

    def _resume(self) -> tuple[int, int, Atoms | None]:
        """Trajectory and step to go on from, and the atoms there."""
        path = self._folder / CHECKPOINT_FILE
        if not path.exists():
            return 0, 0, None
        try:
            arrays = read_npz(path)
            number, step = int(arrays["trajectory"]), int(arrays["step"])
            atoms = self._structures.to_ase(self.report.trajectories[number].structure)
            atoms = Atoms(numbers=atoms.numbers, positions=arrays["positions"], cell=atoms.cell, pbc=atoms.pbc)
            atoms.set_momenta(arrays["momenta"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InvalidInputError(f"checkpoint: not one of this run ({type(error).__name__}: {error})") from error
        for earlier in self.report.trajectories[:number]:
            earlier.stopped_by, earlier.message = "finished", "in an earlier job"
        print(f"going on from trajectory {number + 1}, step {step}", flush=True)
        return number, step, atoms

    def _write_all(self) -> None:
        self.recorder.write(self._folder / TRAJECTORY_FILE, self._folder / SERIES_FILE)
        self._engine.save(self._folder / BIAS_FOLDER)
        summary = self._engine.summary()
        self.report.hills, self.report.tau_ev = int(summary.get("hills", 0)), summary.get("tau_ev")
        self.report.seconds = round(self.clock.seconds, 3)
        if self._steps_done:
            self.report.seconds_per_step = round(self.report.seconds / self._steps_done, 6)
        replace_file(self._folder / OUTPUT_FILE, self.report.model_dump_json(indent=1).encode())
        self.clock.written()


def run(folder: Path, request: MetadynamicsRequest) -> MetadynamicsReport:
    """Do what a request asks, in a folder; see the module's text for the files.

    :raises InvalidInputError: input that cannot be used.
    :raises SpeciesError: an element that the potential does not cover.
    :raises EngineMissingError: an engine that is not installed here.
    """
    structures = read_frames(folder, request.structures)
    settings = request.spec.uncertainty
    calculator = (
        requested_calculator(folder, request, structures)
        if settings is None
        else requested_uncertain_potential(folder, request, structures, settings)
    )
    simulation = Simulation(folder, request, calculator, structures)
    with simulation.clock.listening():
        return simulation.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    :returns: 0, or 2 when nothing at all could be done (``output.json`` says why).
    """
    parser = argparse.ArgumentParser(
        prog="aiida-mlip-metadynamics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where the files are (default: here)")
    folder: Path = parser.parse_args(arguments).folder.resolve()
    try:
        request = MetadynamicsRequest.model_validate(json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8")))
        report = run(folder, request)
    except (OSError, ValueError, ValidationError, MlipError) as error:
        reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "invalid_input")
        print(f"error: {error}", file=sys.stderr)
        refusal = MetadynamicsReport(status="refused", reason=reason, message=str(error)[:2000])
        if folder.is_dir():
            replace_file(folder / OUTPUT_FILE, refusal.model_dump_json(indent=1).encode())
        return 2
    print(f"{report.status}: {sum(t.frames for t in report.trajectories)} frames, {report.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
