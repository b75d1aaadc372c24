"""Fidelities: named levels of theory, what they compute with, and when two of them give the same labels.

A *fidelity* is written as a mapping, for example in YAML::

    lda:
      engine: qe
      protocol: fast
      pseudo_family: debian-lda
      ecutwfc_ry: 12
      occupations: fixed
    emt:
      engine: ase
      calculator: ase.calculators.emt.EMT

:func:`parse_fidelities` reads it; :func:`settings_hash` decides whether a label may be used again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from aiida_mlip.errors import ProtocolError
from aiida_mlip.io.import_path import CalculatorPath
from aiida_mlip.protocols.model import DEFAULT_PROTOCOL, SpecModel, check_name, merged_protocol, validate_spec

Label: TypeAlias = Literal["energy", "forces", "stress"]
ALL_LABELS: Final[tuple[Label, ...]] = ("energy", "forces", "stress")
NAMELISTS: Final[tuple[str, ...]] = ("CONTROL", "SYSTEM", "ELECTRONS")
#: Keywords of pw.x that a fidelity has a key of its own for, or that this package sets: (namelist, keyword) -> key.
_OWN_KEYS: Final[Mapping[tuple[str, str], str]] = {
    ("CONTROL", "calculation"): "nothing: a label is always one scf",
    ("CONTROL", "tprnfor"): "labels",
    ("CONTROL", "tstress"): "labels",
    ("SYSTEM", "ecutwfc"): "ecutwfc_ry",
    ("SYSTEM", "ecutrho"): "ecutrho_ry",
    ("SYSTEM", "occupations"): "occupations",
    ("SYSTEM", "smearing"): "smearing",
    ("SYSTEM", "degauss"): "degauss_ry",
    ("SYSTEM", "nspin"): "spin",
    ("SYSTEM", "starting_magnetization"): "starting_magnetization",
    ("SYSTEM", "input_dft"): "input_dft",
    ("ELECTRONS", "conv_thr"): "conv_thr_ry_per_atom",
    ("ELECTRONS", "mixing_beta"): "mixing_beta",
    ("ELECTRONS", "electron_maxstep"): "electron_maxstep",
    ("ELECTRONS", "scf_must_converge"): "nothing: an unconverged scf is never a label",
}
#: Keywords of pw.x that change how the answer is reached, not the answer: not part of the settings hash.
_ROUTE_KEYS: Final[frozenset[tuple[str, str]]] = frozenset(
    {("CONTROL", key) for key in ("disk_io", "verbosity", "wf_collect", "max_seconds", "restart_mode", "title")}
    | {
        ("ELECTRONS", key)
        for key in (
            "mixing_mode",
            "mixing_ndim",
            "diagonalization",
            "diago_david_ndim",
            "diago_full_acc",
            "startingpot",
            "startingwfc",
        )
    }
)
#: Fields of a fidelity that change how the answer is reached, not the answer.
_ROUTE_FIELDS: Final[frozenset[str]] = frozenset(
    {
        "protocol",
        "pseudo_family",
        "mixing_beta",
        "electron_maxstep",
        "max_iterations",
        "batch_size",
        "bundle_size",
        "parameters",
    }
)
#: Starting magnetization (fraction of the valence) of an isolated atom of a fidelity that states none.
ATOM_MAGNETIZATION: Final[float] = 0.5
#: Smearing of an isolated atom: small, so that its entropy does not enter the reference energy.
ATOM_DEGAUSS_RY: Final[float] = 0.002

Scalar: TypeAlias = bool | int | float | str
Positive: TypeAlias = Annotated[float, Field(gt=0)]


class QeFidelity(SpecModel):
    """Level of theory computed by pw.x of Quantum ESPRESSO.

    :param protocol: ``fast``, ``moderate`` or ``precise``: the source of what is not stated.
    :param pseudo_family: label of the pseudopotential family in the AiiDA profile.
    :param ecutwfc_ry: wave function cutoff (Ry); left out: what the family recommends, if it does.
    :param ecutrho_ry: density cutoff (Ry); left out: what the family recommends, else four times ``ecutwfc_ry``.
    :param kpoints_distance_inv_ang: largest distance between k-points (1/Å, 2π included: the convention of AiiDA and
        aiida-quantumespresso); 1 point along non-periodic directions.
    :param occupations: ``smearing``, or ``fixed`` for an insulator, which must be stated.
    :param smearing: kind of smearing; the energy label is then the free energy, whose derivative the forces are.
    :param degauss_ry: width of the smearing (Ry).
    :param spin: ``none`` or ``collinear``.
    :param starting_magnetization: per chemical symbol, -1 to 1, needed with collinear spin.
    :param input_dft: functional, when not that of the pseudopotentials.
    :param conv_thr_ry_per_atom: convergence of the scf energy (Ry per atom).
    :param mixing_beta: mixing of the density.
    :param electron_maxstep: scf steps before a calculation counts as not converged.
    :param max_iterations: runs of pw.x (with less mixing, say) before a frame counts as failed.
    :param bundle_size: most frames that one job labels; 1: every frame has a job of its own; by default chosen: cheap
        frames in bundles, dear ones alone (see ``aiida_mlip.kernel.bundles``). Isolated atoms are always alone, and so
        is a frame that failed in a bundle when it is tried again.
    :param box_ang: edge (Å) of the cubic box of an isolated atom.
    :param padding_ang: empty space (Å) on either side of a molecule or slab that comes without a cell vector.
    :param parameters: any other keyword of pw.x, by namelist.
    :param labels: what is kept.
    """

    engine: Literal["qe"] = "qe"
    protocol: str = DEFAULT_PROTOCOL
    pseudo_family: str
    ecutwfc_ry: Positive | None = None
    ecutrho_ry: Positive | None = None
    kpoints_distance_inv_ang: Positive
    occupations: Literal["fixed", "smearing"]
    smearing: Literal["gaussian", "cold", "methfessel-paxton", "fermi-dirac"]
    degauss_ry: Positive
    spin: Literal["none", "collinear"]
    starting_magnetization: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict)
    input_dft: str | None = None
    conv_thr_ry_per_atom: Positive
    mixing_beta: Annotated[float, Field(gt=0, le=1)]
    electron_maxstep: Annotated[int, Field(ge=1)]
    max_iterations: Annotated[int, Field(ge=1, le=20)]
    bundle_size: Annotated[int, Field(ge=1)] | None = None
    box_ang: Annotated[float, Field(ge=6)] = 12.0
    padding_ang: Annotated[float, Field(ge=3)] = 6.0
    parameters: dict[str, dict[str, Scalar | dict[str, Scalar] | list[Any]]] = Field(default_factory=dict)
    labels: tuple[Label, ...] = ALL_LABELS

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: tuple[Label, ...]) -> tuple[Label, ...]:
        return _ordered_labels(value)

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        result: dict[str, dict[str, Any]] = {}
        for namelist, keywords in value.items():
            check_name("namelist", namelist.upper(), list(NAMELISTS), where="parameters")
            for keyword, setting in keywords.items():
                if own := _OWN_KEYS.get((namelist.upper(), keyword.lower())):
                    raise ValueError(f"{namelist}.{keyword} is not set here; use {own}")
                result.setdefault(namelist.upper(), {})[keyword.lower()] = setting
        return result

    @model_validator(mode="after")
    def _check_together(self) -> QeFidelity:
        if self.spin == "collinear" and not self.starting_magnetization and "SYSTEM" not in self.parameters:
            raise ValueError("collinear spin needs starting_magnetization, e.g. {Fe: 0.4}")
        if self.spin == "none" and self.starting_magnetization:
            raise ValueError("starting_magnetization is given, but spin is 'none'; did you mean spin: collinear?")
        if self.ecutwfc_ry and self.ecutrho_ry and self.ecutrho_ry < 4 * self.ecutwfc_ry:
            raise ValueError(
                f"ecutrho_ry must be at least 4 times ecutwfc_ry ({4 * self.ecutwfc_ry:g}), got {self.ecutrho_ry:g}"
            )
        return self

    def namelists(self, species: list[str], n_atoms: int, *, isolated: bool = False) -> dict[str, dict[str, Any]]:
        """Input namelists of pw.x for a frame.

        :param species: chemical symbols in the frame.
        :param n_atoms: atoms in the frame; the scf threshold of pw.x is a total.
        :param isolated: the frame is an isolated atom: spin-polarised and smeared whatever the fidelity says.
        :raises ProtocolError: no cutoff is known.
        """
        if self.ecutwfc_ry is None:
            raise ProtocolError("ecutwfc_ry: missing, and the pseudopotential family recommends none")
        control: dict[str, Any] = {"calculation": "scf", "tprnfor": True, "tstress": "stress" in self.labels}
        system: dict[str, Any] = {"ecutwfc": self.ecutwfc_ry, "ecutrho": self.ecutrho_ry or 4 * self.ecutwfc_ry}
        if isolated:
            system |= {"occupations": "smearing", "smearing": "gaussian", "degauss": ATOM_DEGAUSS_RY}
            control["tstress"] = False
        elif self.occupations == "smearing":
            system |= {"occupations": "smearing", "smearing": self.smearing, "degauss": self.degauss_ry}
        else:
            system["occupations"] = "fixed"
        if self.spin == "collinear" or isolated:
            start = {s: self.starting_magnetization.get(s, ATOM_MAGNETIZATION if isolated else 0.0) for s in species}
            system |= {"nspin": 2, "starting_magnetization": start}
        if self.input_dft:
            system["input_dft"] = self.input_dft
        electrons = {
            "conv_thr": self.conv_thr_ry_per_atom * n_atoms,
            "mixing_beta": self.mixing_beta,
            "electron_maxstep": max(self.electron_maxstep, 100) if isolated else self.electron_maxstep,
        }
        result = {"CONTROL": control, "SYSTEM": system, "ELECTRONS": electrons}
        for namelist, keywords in self.parameters.items():
            result[namelist] |= keywords
        return result


class AseFidelity(SpecModel):
    """Level of theory computed by an ASE calculator.

    The import path is imported, and called with the arguments, by ``aiida-mlip-label`` on the compute node: naming a
    calculator runs its code there. It is a dotted path to a class or function of an installed package, nothing else.

    :param calculator: dotted import path, e.g. ``ase.calculators.emt.EMT``.
    :param arguments: keyword arguments of the calculator.
    :param batch_size: most frames in one job.
    :param labels: what is kept.
    """

    engine: Literal["ase"] = "ase"
    calculator: CalculatorPath
    arguments: dict[str, Any] = Field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 2000
    labels: tuple[Label, ...] = ALL_LABELS

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: tuple[Label, ...]) -> tuple[Label, ...]:
        return _ordered_labels(value)


Fidelity: TypeAlias = QeFidelity | AseFidelity
ENGINES: Final[tuple[str, ...]] = ("qe", "ase")
_NAME: Final[re.Pattern[str]] = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def parse_fidelities(mapping: Mapping[str, Any], *, protocol: str | None = None) -> dict[str, Fidelity]:
    """Validated fidelities from plain mappings, in the order given.

    :param mapping: name of the fidelity -> its keys; ``engine`` is ``qe`` (default) or ``ase``.
    :param protocol: protocol of those that name none.
    :raises ProtocolError: none given, a bad name, an unknown engine, protocol or key (with the nearest valid one), or a
        value out of range.
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise ProtocolError("fidelities: at least one level of theory is needed, got none")
    result: dict[str, Fidelity] = {}
    for name, spec in mapping.items():
        where = f"fidelities.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ProtocolError(f"{where}: a name has letters, digits, '_' and '-' and begins with a letter")
        if not isinstance(spec, Mapping):
            raise ProtocolError(f"{where}: expected a mapping of keys, got {type(spec).__name__}")
        engine = check_name("engine", str(spec.get("engine", "qe")), list(ENGINES), where=where)
        data = dict(spec)
        if engine == "qe":
            data["protocol"] = str(spec.get("protocol") or protocol or DEFAULT_PROTOCOL)
            try:
                data = merged_protocol("fidelity", data["protocol"], data)
            except ProtocolError as error:
                raise ProtocolError(f"{where}.protocol: {error}") from error
        if engine == "qe":
            result[name] = validate_spec(QeFidelity, data, where=where)
        else:
            result[name] = validate_spec(AseFidelity, data, where=where)
    return result


def settings_hash(fidelity: Fidelity, pseudo_md5s: Mapping[str, str] | None = None) -> str:
    """Hash of everything a label depends on: equal if and only if a label may be used again.

    Not in it: names (of the fidelity, protocol, pseudopotential family), concurrency, walltime, batch sizes, and how
    the scf is driven (mixing, diagonalization, number of steps).

    :param fidelity: level of theory.
    :param pseudo_md5s: MD5 per chemical symbol of *all* pseudopotentials of the family (QE only), so that datasets of
        different species at one level of theory can be merged.
    :returns: 64 hexadecimal digits.
    """
    content = fidelity.model_dump(mode="json", exclude=set(_ROUTE_FIELDS))
    if isinstance(fidelity, QeFidelity):
        content["pseudos"] = dict(pseudo_md5s or {})
        content["ecutrho_ry"] = fidelity.ecutrho_ry or (fidelity.ecutwfc_ry and 4 * fidelity.ecutwfc_ry)
        if fidelity.occupations == "fixed":
            del content["smearing"], content["degauss_ry"]
        content["parameters"] = {
            f"{namelist}.{keyword}": value
            for namelist, keywords in fidelity.parameters.items()
            for keyword, value in keywords.items()
            if (namelist, keyword) not in _ROUTE_KEYS
        }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _ordered_labels(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    if "energy" not in labels:
        raise ValueError("must contain 'energy'")
    return tuple(label for label in ALL_LABELS if label in labels)
