"""The whole job in one file: what ``aiida-mlip develop job.yaml`` reads.

::

    structures: [silicon.cif]          # files that ASE reads, relative to this file
    protocol: fast
    codes: {pw: pw@localhost, train: nequip-train@localhost, evaluate: aiida-mlip-evaluate@localhost}
    fidelities:
      lda: {engine: qe, pseudo_family: debian-lda, ecutwfc_ry: 12, occupations: fixed}
    generate:
      seed: 1
      steps:
        - {generator: strain, per_parent: 14, linear: 0.04, keep: false}
        - {generator: rattle, parents: strain, per_parent: 5, amplitude_ang: [0.02, 0.2]}
    label: {max_concurrent: 2}
    promote: {fraction: 0.1}           # of several fidelities: which frames get the last one's label; left out: all
    train: {committee: 4}
    active_learning:                   # left out: none
      hosts: {silicon: silicon.cif}    # crystals that fragments are completed to
      explorations:
        hot:
          structures: [silicon.cif]
          repeat: [3, 3, 3]
          spec: {kind: md, md: {timestep_fs: 2, schedule: [{n_steps: 500, temperature_k: 900}]}}
      settings: {mode: fragments, fragment: {core_radius_ang: 4.5, buffer_ang: 3.0}, dft_core_hours: 10}
    validation: {structures: [silicon.cif]}     # properties beside those of DFT; left out: none
    targets: {force_rmse_relative: 0.15}
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field, PositiveInt

from aiida_mlip.protocols.model import DEFAULT_PROTOCOL, SpecModel

#: Keys below ``generate`` that are inputs of the generation, not of its specification.
GENERATE_INPUTS: Final[tuple[str, ...]] = ("potential", "imports", "reference", "options", "max_concurrent")


class ExplorationJob(SpecModel):
    """One exploration of a job file.

    :param structures: files that ASE reads, every image of each.
    :param repeat: how often along each lattice vector.
    :param spec: what is run, see :mod:`aiida_mlip.protocols.explore`.
    """

    structures: list[str] = Field(min_length=1)
    repeat: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)
    spec: dict[str, Any]


class ActiveLearningJob(SpecModel):
    """Active learning of a job file.

    :param explorations: by name.
    :param settings: see :mod:`aiida_mlip.protocols.active_learning`.
    :param hosts: crystals that fragments are completed to: files by name.
    """

    explorations: dict[str, ExplorationJob] = Field(min_length=1)
    settings: dict[str, Any] = {}
    hosts: dict[str, str] = {}


class ValidationJob(SpecModel):
    """Validation of a job file.

    :param structures: crystals: files that ASE reads, every image of each.
    :param settings: what differs from the protocol, see :mod:`aiida_mlip.protocols.validate`.
    """

    structures: list[str] = Field(min_length=1)
    settings: dict[str, Any] = {}


class DevelopSpec(SpecModel):
    """Keys of a job file; what stands below ``generate`` to ``targets`` is read by the models of those stages.

    :param structures: seed structures: files that ASE reads, every image of each.
    :param protocol: ``fast``, ``moderate`` or ``precise``.
    :param codes: labels of AiiDA codes: ``pw`` and ``ase`` as the fidelities need them, ``train``, ``evaluate``; and
        ``metadynamics`` and ``explore`` where steps of the generation need them; ``explore`` and ``fragment`` for
        active learning.
    :param fidelities: levels of theory, see :mod:`aiida_mlip.protocols.fidelity`.
    :param generate: steps, see :mod:`aiida_mlip.protocols.generate`; and what they need of the profile: ``potential``,
        ``imports``, ``reference``, ``options``, ``max_concurrent`` (as in
        :class:`~aiida_mlip.protocols.generate.GenerateJob`).
    :param label: further inputs of the labelling, e.g. ``max_concurrent``, ``isolated_atoms``, ``options``.
    :param promote: with several fidelities, see :mod:`aiida_mlip.protocols.promote`.
    :param train: settings, see :mod:`aiida_mlip.protocols.train`.
    :param train_options: scheduler options by ``train`` and ``evaluate``.
    :param active_learning: where simulations lead, see :class:`ActiveLearningJob`.
    :param validation: properties beside those of DFT, see :class:`ValidationJob`.
    :param targets: see :mod:`aiida_mlip.protocols.targets`.
    """

    structures: list[str] = Field(min_length=1)
    protocol: str = DEFAULT_PROTOCOL
    codes: dict[str, str]
    fidelities: dict[str, dict[str, Any]]
    generate: dict[str, Any] = {}
    label: dict[str, Any] = {}
    promote: dict[str, Any] | None = None
    train: dict[str, Any] = {}
    train_options: dict[str, dict[str, Any]] = {}
    active_learning: ActiveLearningJob | None = None
    validation: ValidationJob | None = None
    targets: dict[str, Any] = {}

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the protocol, by stage."""
        names = ("generate", "label", "train", "train_options", "targets")
        found = {name: getattr(self, name) for name in names if getattr(self, name)}
        if steps := {key: value for key, value in self.generate.items() if key not in GENERATE_INPUTS}:
            return {**found, "generate": steps}
        return {name: value for name, value in found.items() if name != "generate"}

    @property
    def generate_inputs(self) -> dict[str, Any]:
        """What the steps of the generation need of the profile."""
        return {key: value for key, value in self.generate.items() if key in GENERATE_INPUTS}
