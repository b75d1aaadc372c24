"""Fragments before the potential: relaxation of the buffer, and whether the surroundings of the centre survived.

The decisions are those of :mod:`aiida_mlip.kernel.fragments.acceptance`; here are the calls of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, chemical_symbols
from ase.optimize import FIRE

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.io.fragments import FragmentKeys, FragmentRecord
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.fragments.acceptance import (
    NEAR,
    AcceptanceLimits,
    Assessment,
    disturbed,
    movable,
    why_refuse,
    why_relax,
)
from aiida_mlip.kernel.frames import Frames, id_hex
from aiida_mlip.kernel.metadynamics.walls import PairWall
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.buffer_forces import REPULSION, BufferCalculator, PenalisedForces
from aiida_mlip.workers.force_source import PotentialCalculator
from aiida_mlip.workers.model_loading import LoadedModel

#: Steps of a relaxation between looks at whether it is still wanted.
_LOOK_EVERY: Final[int] = 5
#: Gives a model, with or without forces of its own, for one frame per call, with features.
Loader = Callable[[bool], LoadedModel]


@dataclass(frozen=True)
class Judged:
    """What became of a fragment.

    :param record: in plain words and numbers.
    :param frames: the fragment as it was accepted (one row); None: it was not.
    :param novelty: (a,) γ of its atoms.
    """

    record: FragmentRecord
    frames: Frames | None
    novelty: np.ndarray


class FragmentJudge:
    """Relaxes and judges fragments with one potential.

    :param load: gives the model; called with ``True`` for one with forces, and, when a buffer is to be relaxed, with
        ``False``.
    :param grades: of the potential's training set.
    :param settings: how.
    :param fidelity: index of the level of theory, for a model of several.
    """

    def __init__(self, load: Loader, grades: Grades, settings: FragmentKeys, *, fidelity: int | None = None) -> None:
        self._load, self._grades, self._settings, self._fidelity = load, grades, settings, fidelity
        self._limits: AcceptanceLimits = settings.acceptance()
        self._pairs = pair_limits(settings.min_distance_ang)

    @cached_property
    def _model(self) -> LoadedModel:
        return self._load(True)

    @cached_property
    def _calculator(self) -> PotentialCalculator:
        return PotentialCalculator(self._model, shifts={}, fidelity=self._fidelity, grades=self._grades)

    @cached_property
    def _penalised(self) -> PenalisedForces:
        return PenalisedForces(self._load(False), self._grades, fidelity=self._fidelity)

    def judge(self, fragment: Frames, parent_novelty: np.ndarray) -> Judged:
        """Relax the buffer where something asks for it, and say whether the fragment is to be labelled.

        :param fragment: one row with region and parent atoms, its centre first.
        :param parent_novelty: (a,) γ of its atoms in the parent, NaN for caps.
        :raises InvalidInputError: no fragment, or grades that do not fit it.
        """
        if fragment.region is None or fragment.parent_atom is None or not fragment.n_atoms:
            raise InvalidInputError("the frame is no fragment: it has no regions and parent atoms")
        if parent_novelty.shape != (fragment.n_atoms,):
            raise InvalidInputError(f"{len(parent_novelty)} grades of the parent for {fragment.n_atoms} atoms")
        record = FragmentRecord(
            carved_id=fragment.ids()[0],
            parent_id=id_hex(fragment.parent_id)[0],
            centre=int(fragment.parent_atom[0]),
            natoms=fragment.n_atoms,
            accepted=False,
            novelty_parent=_finite(parent_novelty[0]),
        )
        if unknown := self._unknown(fragment.species):
            return Judged(record.model_copy(update={"reason": unknown}), None, np.zeros(0))
        try:
            return self._judge(fragment, parent_novelty, record)
        except ExternalProgramError as error:  # this fragment, not the others
            return Judged(record.model_copy(update={"reason": str(error)[:500]}), None, np.zeros(0))

    def _judge(self, fragment: Frames, parent_novelty: np.ndarray, record: FragmentRecord) -> Judged:
        state = self._assess(fragment, parent_novelty)
        why = why_relax(state, self._limits)
        if self._settings.relax == "always" and why is None and state.movable.any():
            why = "it is always wanted"
        steps, carved = 0, fragment.positions
        if why is not None and self._settings.relax != "never":
            free = state.movable if self._settings.relax == "always" else disturbed(state, self._limits)
            fragment, steps = self._relaxed(fragment, parent_novelty, free)
            state = self._assess(fragment, parent_novelty)
        reason = why_refuse(state, self._limits)
        record = record.model_copy(
            update={
                "accepted": reason is None,
                "frame_id": fragment.ids()[0] if reason is None else None,
                "reason": reason or "",
                "novelty_fragment": _finite(state.novelty[0]),
                "largest_buffer_novelty": _finite(state.largest_buffer_novelty),
                "relaxed_because": why or "" if steps else "",
                "steps": steps,
                "n_moved": int((fragment.positions != carved).any(axis=1).sum()),
                "fmax_ev_per_ang": _finite(state.largest_buffer_force),
            }
        )
        return Judged(record, fragment if reason is None else None, state.novelty)

    def _unknown(self, species: Sequence[str]) -> str:
        """Why the potential cannot judge these elements; empty: it can."""
        names = self._model.type_names
        if missing := [symbol for symbol in species if symbol not in names]:
            return f"the potential does not cover {', '.join(missing)}; it covers {', '.join(names)}"
        if missing := [symbol for symbol in species if atomic_numbers[symbol] not in self._grades.elements]:
            known = ", ".join(chemical_symbols[number] for number in sorted(self._grades.elements))
            return f"the potential has no grades of {', '.join(missing)}: it was trained on {known}"
        return ""

    def _assess(self, fragment: Frames, parent_novelty: np.ndarray) -> Assessment:
        atoms = _bare(fragment)
        novelty = self._calculator.novelty(atoms)
        return Assessment(
            numbers=fragment.numbers,
            positions=fragment.positions,
            cell=fragment.cell[0],
            pbc=fragment.pbc[0],
            region=_region(fragment),
            parent_novelty=np.asarray(parent_novelty, dtype=float),
            novelty=novelty,
            forces=self._calculator.forces(atoms),
        )

    def _relaxed(self, fragment: Frames, parent_novelty: np.ndarray, free: np.ndarray) -> tuple[Frames, int]:
        """The fragment after the relaxation of some of its atoms, and how many steps it took.

        The less of the buffer moves the better, for every step takes it farther from what surrounded the core in the
        parent: it ends once nothing asks for it any more, unless it is always wanted.

        :param free: (a,) atoms that move.
        """
        if not free.any():
            return fragment, 0
        atoms = _bare(fragment)
        self._penalised.penalised = movable(_region(fragment))
        atoms.calc = BufferCalculator(self._penalised, PairWall(self._pairs, strength=REPULSION, onset=NEAR))
        atoms.set_constraint(FixAtoms(mask=~free))
        optimiser = FIRE(atoms, logfile=None)

        def moved() -> Frames:
            return fragment.with_columns(positions=np.where(free[:, None], atoms.positions, fragment.positions))

        for _ in optimiser.irun(fmax=self._settings.relax_fmax_ev_per_ang, steps=self._settings.relax_steps):
            if self._settings.relax == "always" or optimiser.nsteps % _LOOK_EVERY or not optimiser.nsteps:
                continue
            if why_relax(self._assess(moved(), parent_novelty), self._limits) is None:
                break
        return moved(), int(optimiser.nsteps)


def _bare(fragment: Frames) -> Atoms:
    return Atoms(numbers=fragment.numbers, positions=fragment.positions, cell=fragment.cell[0], pbc=fragment.pbc[0])


def _region(fragment: Frames) -> np.ndarray:
    if fragment.region is None:
        raise InvalidInputError("the frame is no fragment: it has no regions")
    return fragment.region


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
