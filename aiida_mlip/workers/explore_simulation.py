"""All runs of a request, one after another: chunks of steps, a look at each, and back to the last trusted frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.explore import (
    CHECKPOINT_FILE,
    GRADES_FILE,
    OUTPUT_FILE,
    SELECTED_FILE,
    SERIES_FILE,
    TRAJECTORY_FILE,
    ExploreReport,
    ExploreRequest,
    RunReport,
    Stop,
)
from aiida_mlip.kernel.distances import closest_pair, describe_pair, pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.metadynamics.walls import PairWall, temperature_limit
from aiida_mlip.workers.explore_checkpoint import Trusted, read_checkpoint, write_checkpoint
from aiida_mlip.workers.explore_engines import ExploreEngine, make_engine
from aiida_mlip.workers.guarded_calculator import (
    FAR_AWAY,
    NO_NEIGHBOURS,
    ForcesFailed,
    GuardedCalculator,
    PairDistanceReached,
)
from aiida_mlip.workers.momenta import bare_atoms, kinetic_temperature, thermal_atoms
from aiida_mlip.workers.run_files import Recorder, replace_file
from aiida_mlip.workers.stopping import StopClock
from aiida_mlip.workers.watch import Watch

#: Names of the columns of ``series.npz``.
SERIES: Final[tuple[str, ...]] = (
    "run",
    "step",
    "temperature_k",
    "potential_energy_ev",
    "volume_ang3_per_atom",
    "smallest_distance_ang",
    "largest_novelty",
    "largest_error_ev_per_ang",
)
#: Names of the columns that say where a selected frame is from.
SELECTED: Final[tuple[str, ...]] = ("run", "step", "largest_novelty", "largest_error_ev_per_ang")
#: Ends of a run that leave nothing to do; after any other a restart goes on from the last trusted frame.
_DONE: Final[frozenset[Stop]] = frozenset({"finished", "converged"})
_GOES_ON: Final[frozenset[Stop]] = frozenset({"not_started", "running", "walltime"})


class Simulation:
    """All runs of a request.

    :param folder: where the files are.
    :param request: what to do.
    :param calculator: of the forces.
    :param structures: to start from.
    :param watch: of novelty and error, if any.
    """

    def __init__(
        self,
        folder: Path,
        request: ExploreRequest,
        calculator: Any,
        structures: Frames,
        watch: Watch | None = None,
    ) -> None:
        self.clock = StopClock(request.max_seconds, request.checkpoint_seconds)
        self._folder, self._request, self._spec = folder, request, request.spec
        self._structures, self._watch = structures, watch
        self._limits = pair_limits(request.spec.limits.min_distance_ang)
        self._guard = GuardedCalculator(calculator, PairWall(self._limits, onset=1.0))
        self.recorder = Recorder(structures, SERIES)
        self.selected = Recorder(structures, SELECTED)
        self._grades: list[tuple[np.ndarray, np.ndarray]] = []
        self._trusted: dict[int, Trusted] = {}
        self.report = ExploreReport(
            status="running",
            kind=request.spec.kind,
            steps_asked=request.spec.n_steps,
            runs=[
                RunReport(structure=row, replica=replica)
                for row in range(len(structures))
                for replica in range(request.spec.replicas)
            ],
        )
        self._steps_done = 0
        text = (folder / request.engine_input).read_text(encoding="utf-8") if request.engine_input else None
        self._engine: ExploreEngine = make_engine(request.spec, self._guard, text=text)

    def run(self) -> ExploreReport:
        """Run what is not done yet; everything is written when this returns.

        :raises ExternalProgramError: the engine refused the very first run.
        """
        self._resume()
        with self.clock.listening():
            for k, report in enumerate(self.report.runs):
                if report.stopped_by not in _GOES_ON:
                    continue
                if self.clock.over and self._steps_done:
                    break
                self._run(k)
                if report.stopped_by == "walltime":
                    break
        left = any(report.stopped_by in _GOES_ON for report in self.report.runs)
        self.report.status = "walltime" if left else "finished"
        self._write_all()
        return self.report

    # -- one run -----------------------------------------------------------------------------------------------

    def _run(self, k: int) -> None:
        report, first = self.report.runs[k], self._trusted.get(k)
        atoms = self._starting_atoms(report) if first is None else first.atoms(self._structures.pbc[report.structure])
        report.steps = 0 if first is None else first.step
        report.stopped_by, report.stopped_at, report.message = "running", None, ""
        self._last_selected = -1 if first is None else first.last_selected
        self._guard.reset()
        try:
            if self._is_sane(report, atoms):
                seed = self._seed(report, report.steps)
                self._engine.start(atoms, step=report.steps, seed=seed, state={} if first is None else first.engine)
                self._advance(k, atoms)
        except PairDistanceReached as error:
            self._stop(report, "pair_distance", str(error))
        except (ForcesFailed, ExternalProgramError) as error:
            if isinstance(error, ExternalProgramError) and k == 0 and report.steps == 0:
                raise
            self._stop(report, "forces_failed", str(error))
        finally:
            self._engine.finish()
        if report.stopped_by in _DONE:
            self._trusted.pop(k, None)
        elif k in self._trusted:
            report.steps = self._trusted[k].step
        print(
            f"run {k + 1}/{len(self.report.runs)}: {report.steps} steps, {report.frames} frames, "
            f"{report.selected} selected, {report.stopped_by} {report.message}",
            flush=True,
        )

    def _advance(self, k: int, atoms: Atoms) -> None:
        """Chunks of steps to the end of the run, or to where a limit, the watch or the clock says stop."""
        report, spec, watch = self.report.runs[k], self._spec, self._watch
        if report.steps == 0 and watch is not None and not self._observe(k, atoms):
            return
        self._trust(k, atoms)
        while report.stopped_by == "running":
            n = min(self._engine.stride(report.steps, spec.record_every), spec.n_steps - report.steps)
            if watch is not None:
                n = min(n, watch.every - report.steps % watch.every)
            done = self._engine.advance(n, seed=self._seed(report, report.steps))
            report.steps += done
            self._steps_done += done
            last = done < n or report.steps >= spec.n_steps
            due = self._engine.is_worth_recording(report.steps, spec.record_every, last=last)
            if not self._is_sane(report, atoms):
                return
            observed = watch is not None and (due or last or report.steps % watch.every == 0)
            if observed and not self._observe(k, atoms):
                return
            if due:
                self._record(k, atoms)
                self._engine.recorded()
            trusted = watch is None or observed
            if trusted:
                self._trust(k, atoms)
            if last:
                report.stopped_by = self._engine.outcome
            elif self.clock.over and trusted:  # so that every job gets on
                report.stopped_by = "walltime"
            elif self.clock.checkpoint_is_due:
                self._write_all()

    def _is_sane(self, report: RunReport, atoms: Atoms) -> bool:
        """Whether the frame keeps all limits; if not, the report says why."""
        if not ((np.abs(atoms.positions) < FAR_AWAY).all() and np.isfinite(atoms.get_momenta()).all()):
            return self._stop(report, "forces_failed", "atoms have run away: take a shorter timestep")
        geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        try:
            ratio, i, j, distance = closest_pair(*geometry, self._limits)
        except NO_NEIGHBOURS as error:
            message = f"no neighbours can be found, atoms or cell have run away ({error})"
            return self._stop(report, "forces_failed", message)
        if ratio < 1:
            pair = describe_pair(atoms.numbers, i, j, distance)
            allowed = self._limits[atoms.numbers[i], atoms.numbers[j]]
            where = "the structure to start from: " if report.steps == 0 else ""
            return self._stop(report, "pair_distance", f"{where}{pair}, allowed are {allowed:.3f} Å")
        target = self._spec.highest_temperature_k
        if target is not None and self._engine.moves_atoms():
            n = self._n_mobile(atoms)
            temperature = kinetic_temperature(atoms, n)
            limit = temperature_limit(target, n, self._spec.limits.max_temperature_k)
            if temperature > limit:
                message = f"{temperature:.0f} K is above the limit of {limit:.0f} K"
                return self._stop(report, "temperature", message)
        return True

    def _stop(self, report: RunReport, reason: Stop, message: str) -> bool:
        report.stopped_by, report.stopped_at, report.message = reason, report.steps, message
        return False

    # -- watching ----------------------------------------------------------------------------------------------

    def _observe(self, k: int, atoms: Atoms) -> bool:
        """Grade the present frame and select it if it is worth it; whether the run may go on."""
        report = self.report.runs[k]
        if self._watch is None:
            return True
        seen = self._seen = self._watch.observe(atoms, report.steps)
        novelty, error = _largest(seen.novelty), _largest(seen.error)
        report.largest_novelty = _larger(report.largest_novelty, novelty)
        report.largest_error_ev_per_ang = _larger(report.largest_error_ev_per_ang, error)
        spaced = self._last_selected < 0 or report.steps - self._last_selected >= self._spec.selected_every
        if seen.selected and (spaced or seen.stop):
            self.selected.add(
                atoms,
                structure=report.structure,
                generator=self._spec.generator,
                group=self._group(report),
                values=(float(k), float(report.steps), novelty, error),
            )
            unknown = np.full(len(atoms), np.nan)
            self._grades.append(
                (
                    unknown if seen.novelty is None else seen.novelty,
                    unknown if seen.error is None else seen.error,
                )
            )
            report.selected += 1
            self._last_selected = report.steps
        if seen.stop:
            return self._stop(report, seen.stop, seen.message)
        return True

    def _record(self, k: int, atoms: Atoms) -> None:
        report, engine = self.report.runs[k], self._engine
        geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        distance = closest_pair(*geometry, self._limits, reach=4.0)[3]
        temperature = kinetic_temperature(atoms, self._n_mobile(atoms)) if engine.moves_atoms() else np.nan
        volume = float(atoms.get_volume() / len(atoms)) if atoms.pbc.all() else np.nan
        grades = (np.nan, np.nan) if self._watch is None else (_largest(self._seen.novelty), _largest(self._seen.error))
        report.energy_ev = engine.energy()
        values = (float(k), float(report.steps), temperature, report.energy_ev, volume, distance, *grades)
        self.recorder.add(
            atoms,
            structure=report.structure,
            generator=self._spec.generator,
            group=self._group(report),
            values=values,
        )
        n = report.frames = report.frames + 1
        if engine.moves_atoms():
            mean = report.mean_temperature_k or 0.0
            report.mean_temperature_k = mean + (temperature - mean) / n
        if np.isfinite(distance):
            report.smallest_distance_ang = min(report.smallest_distance_ang or np.inf, distance)
        report.numbers = engine.numbers()

    # -- starting and going on ---------------------------------------------------------------------------------

    def _starting_atoms(self, report: RunReport) -> Atoms:
        temperature = self._spec.start_temperature_k
        if temperature is None:
            return bare_atoms(self._structures, report.structure)
        return thermal_atoms(
            self._structures,
            report.structure,
            temperature_k=temperature,
            fixed=self._spec.fixed_atoms,
            seed=self._seed(report, 0),
            at_rest=self._spec.starts_at_rest,
        )

    def _trust(self, k: int, atoms: Atoms) -> None:
        self._trusted[k] = Trusted.of(
            atoms,
            step=self.report.runs[k].steps,
            last_selected=self._last_selected,
            engine=self._engine.state(),
        )

    def _resume(self) -> None:
        """Take up what an earlier job has left."""
        path = self._folder / CHECKPOINT_FILE
        if not path.exists():
            return
        report, trusted = read_checkpoint(path)
        ours, theirs = ([(run.structure, run.replica) for run in each.runs] for each in (self.report, report))
        if ours != theirs or report.kind != self._spec.kind:
            raise InvalidInputError("checkpoint: not one of these structures, this kind and this number of replicas")
        self.report, self._trusted = report, trusted
        for k, frame in trusted.items():
            if len(frame.positions) != self._structures.natoms[report.runs[k].structure]:
                raise InvalidInputError(f"checkpoint: run {k} has {len(frame.positions)} atoms")
        report.status = "running"
        for run in report.runs:
            if self._request.restart_stopped and run.stopped_by not in _DONE:
                run.stopped_by = "walltime"
        going = sum(run.stopped_by in _GOES_ON for run in report.runs)
        print(f"going on with {going} of {len(report.runs)} runs", flush=True)

    def _write_all(self) -> None:
        # frames before the checkpoint: killed in between, a frame comes twice rather than never
        folder, report = self._folder, self.report
        self.recorder.write(folder / TRAJECTORY_FILE, folder / SERIES_FILE)
        self.selected.write(folder / SELECTED_FILE, None)
        if self._grades:
            replace_file(folder / GRADES_FILE, write_npz(self._grade_arrays()))
        report.seconds = round(self.clock.seconds, 3)
        if self._steps_done:
            report.seconds_per_step = round(report.seconds / self._steps_done, 6)
        if any(run.stopped_by not in _DONE for run in report.runs):
            replace_file(folder / CHECKPOINT_FILE, write_checkpoint(report, self._trusted))
        else:
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        replace_file(folder / OUTPUT_FILE, report.model_dump_json(indent=1).encode())
        self.clock.written()

    def _grade_arrays(self) -> Mapping[str, np.ndarray]:
        """Grades of the atoms of all selected frames, one frame after another."""
        frames = self.selected.frames
        return {
            **self.selected.arrays(),
            "frame_id": np.concatenate([frame.frame_id for frame in frames]),
            "natoms": np.concatenate([frame.natoms for frame in frames]),
            "novelty": np.concatenate([novelty for novelty, _ in self._grades]),
            "error_ev_per_ang": np.concatenate([error for _, error in self._grades]),
        }

    def _seed(self, report: RunReport, step: int) -> int:
        """Seed of a chunk of steps: the same whether or not the run was interrupted before it."""
        entropy = [self._spec.seed, report.structure, report.replica, step]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _group(self, report: RunReport) -> str:
        return f"{self._spec.generator} {self._structures.ids()[report.structure]} {self._spec.seed} {report.replica}"

    def _n_mobile(self, atoms: Atoms) -> int:
        return len(atoms) - len(set(self._spec.fixed_atoms))


def _largest(values: np.ndarray | None) -> float:
    return float("nan") if values is None or not len(values) else float(np.nanmax(values))


def _larger(known: float | None, new: float) -> float | None:
    """The larger of two; numbers that JSON lacks are left out."""
    if not np.isfinite(new):
        return known
    return new if known is None else max(known, new)
