"""Fragments as files: the settings that a person writes, and the messages of ``aiida-mlip-fragment``.

Request ``input.json`` beside shards of fragments, the grades of their atoms in the parent (``parent_novelty.npy``), a
package and its grades; answer ``output.json``, and where fragments were accepted ``fragments.npz`` (a shard) and
``novelty.npy`` (grades of their atoms).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from aiida_mlip.io.metadynamics import Settings
from aiida_mlip.kernel.fragments.acceptance import AcceptanceLimits
from aiida_mlip.kernel.fragments.fragment import FragmentLimits
from aiida_mlip.kernel.fragments.host import Host

REQUEST_FILE: Final[str] = "input.json"
OUTPUT_FILE: Final[str] = "output.json"
MODEL_FILE: Final[str] = "model.nequip.zip"
STATISTICS_FILE: Final[str] = "statistics.npz"
#: (a,) γ of the atoms of all fragments in their parents, NaN for caps.
PARENT_NOVELTY_FILE: Final[str] = "parent_novelty.npy"
#: Shard of the fragments that were accepted, and (a,) γ of their atoms.
ACCEPTED_FILE: Final[str] = "fragments.npz"
NOVELTY_FILE: Final[str] = "novelty.npy"

Relax = Literal["auto", "always", "never"]
Device = Literal["auto", "cpu", "cuda"]
_Vector = tuple[float, float, float]


class FragmentKeys(Settings):
    """How fragments are cut, relaxed and judged; see :mod:`aiida_mlip.protocols.fragment` for what the keys mean."""

    completion: Literal["auto", "crystal", "disordered", "molecular"] = "auto"
    core_radius_ang: float = Field(gt=0)
    buffer_ang: float = Field(default=3.0, ge=0)
    trust_depth_ang: float = Field(default=3.0, ge=0)
    max_atoms: int = Field(default=200, ge=1)
    threshold: float = Field(default=1.5, gt=0)
    max_fragments: int = Field(default=20, ge=1)
    min_distance_ang: float | dict[str, float] | None = None
    oxidation_states: dict[str, int] = Field(default_factory=dict)
    relax: Relax = "auto"
    relax_fmax_ev_per_ang: float = Field(default=0.15, gt=0)
    relax_steps: int = Field(default=200, ge=1)
    buffer_novelty: float = Field(default=1.5, gt=0)
    buffer_excess: float = Field(default=2.0, ge=1)
    survival: float = Field(default=0.05, gt=0)
    fidelity: str | None = None
    device: Device = "auto"

    def carving(self) -> FragmentLimits:
        """What the kernel asks of a fragment when it is cut.

        :raises InvalidInputError: a value that it does not take.
        """
        return FragmentLimits(
            core_radius=self.core_radius_ang,
            buffer=self.buffer_ang,
            trust_depth=self.trust_depth_ang,
            max_atoms=self.max_atoms,
            min_distance_ang=self.min_distance_ang,
            oxidation_states=self.oxidation_states,
        )

    def acceptance(self) -> AcceptanceLimits:
        """What the kernel asks of a fragment before it is accepted.

        :raises InvalidInputError: a value that it does not take.
        """
        return AcceptanceLimits(
            max_atoms=self.max_atoms,
            min_distance_ang=self.min_distance_ang,
            buffer_novelty=self.buffer_novelty,
            buffer_excess=self.buffer_excess,
            survival=self.survival,
        )


class HostCrystal(Settings):
    """A crystal that a frame is made of, in plain numbers.

    :param numbers: atomic numbers of the cell's atoms.
    :param positions: Å.
    :param cell: Å, rows are lattice vectors.
    """

    numbers: tuple[Annotated[int, Field(ge=1, le=118)], ...]
    positions: tuple[_Vector, ...]
    cell: tuple[_Vector, _Vector, _Vector]

    def host(self) -> Host:
        """The same for the kernel.

        :raises InvalidInputError: no crystal.
        """
        return Host(np.array(self.numbers, dtype=np.uint8), np.array(self.positions, dtype=float), np.array(self.cell))


class RelaxRequest(Settings):
    """Fragments to relax and judge.

    :param fragments: shard files beside the request, in order.
    :param settings: how.
    :param sha256: hash the package must have.
    :param species: chemical symbols that the potential covers; empty: not known.
    :param fidelities: levels of theory of the potential, in the order of its index.
    :param max_seconds: wall time after which no further fragment is begun.
    """

    version: Literal[1] = 1
    fragments: tuple[str, ...] = Field(min_length=1)
    settings: FragmentKeys
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    species: tuple[str, ...] = ()
    fidelities: tuple[str, ...] = ()
    max_seconds: float | None = Field(default=None, gt=0)


class FragmentRecord(Settings):
    """What became of one fragment.

    :param carved_id: frame id as it was cut.
    :param frame_id: frame id as it was accepted; another one where atoms were moved, None where it was refused.
    :param parent_id: frame id of the parent.
    :param centre: index of the centre in the parent; it is the first atom of the fragment.
    :param reason: why it was refused.
    :param novelty_parent: γ of the centre in the parent, None where it is not finite.
    :param novelty_fragment: in the fragment.
    :param largest_buffer_novelty: largest γ of a buffer atom or cap.
    :param relaxed_because: what asked for a relaxation; empty: nothing did, every atom stands where it stood.
    :param steps: of the relaxation.
    :param n_moved: atoms that it moved.
    :param fmax_ev_per_ang: largest force on a buffer atom, by the potential alone, in the end.
    """

    carved_id: str
    frame_id: str | None = None
    parent_id: str
    centre: int
    natoms: int
    accepted: bool
    reason: str = ""
    novelty_parent: float | None = None
    novelty_fragment: float | None = None
    largest_buffer_novelty: float | None = None
    relaxed_because: str = ""
    steps: int = 0
    n_moved: int = 0
    fmax_ev_per_ang: float | None = None


class RelaxReport(Settings):
    """Answer of ``aiida-mlip-fragment``.

    :param status: ``running``: of a program that was killed, ``walltime``: it stopped by itself before the end.
    :param reason: of a refusal: ``invalid_input``, ``species_not_covered``, ``model_not_loaded``.
    :param n_fragments: that were to be done.
    :param fragments: those that were done, in order.
    """

    status: Literal["finished", "walltime", "running", "refused"]
    reason: str = ""
    message: str = ""
    n_fragments: int = 0
    fragments: tuple[FragmentRecord, ...] = ()
    seconds: float = 0.0
