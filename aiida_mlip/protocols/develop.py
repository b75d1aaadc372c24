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
    train: {committee: 4}
    targets: {force_rmse_relative: 0.15}
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aiida_mlip.protocols.model import DEFAULT_PROTOCOL, SpecModel


class DevelopSpec(SpecModel):
    """Keys of a job file; what stands below ``generate`` to ``targets`` is read by the models of those stages.

    :param structures: seed structures: files that ASE reads, every image of each.
    :param protocol: ``fast``, ``moderate`` or ``precise``.
    :param codes: labels of AiiDA codes: ``pw`` and ``ase`` as the fidelities need them, ``train``, ``evaluate``.
    :param fidelities: levels of theory, see :mod:`aiida_mlip.protocols.fidelity`.
    :param generate: steps, see :mod:`aiida_mlip.protocols.generate`.
    :param label: further inputs of the labelling, e.g. ``max_concurrent``, ``isolated_atoms``, ``options``.
    :param train: settings, see :mod:`aiida_mlip.protocols.train`.
    :param train_options: scheduler options by ``train`` and ``evaluate``.
    :param targets: see :mod:`aiida_mlip.protocols.targets`.
    """

    structures: list[str] = Field(min_length=1)
    protocol: str = DEFAULT_PROTOCOL
    codes: dict[str, str]
    fidelities: dict[str, dict[str, Any]]
    generate: dict[str, Any] = {}
    label: dict[str, Any] = {}
    train: dict[str, Any] = {}
    train_options: dict[str, dict[str, Any]] = {}
    targets: dict[str, Any] = {}

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the protocol, by stage."""
        names = ("generate", "label", "train", "train_options", "targets")
        return {name: getattr(self, name) for name in names if getattr(self, name)}
