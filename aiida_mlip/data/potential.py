"""PotentialData: a trained potential in the provenance graph, with what is needed to use and to judge it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Final

import numpy as np
from aiida import orm
from aiida.common.exceptions import ValidationError

from aiida_mlip.errors import FileFormatError, InvalidInputError, SpeciesError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.level_types import species_of_types
from aiida_mlip.io.model_package import ModelPackage, read_package, sha256_of
from aiida_mlip.kernel.calibration import Calibration
from aiida_mlip.kernel.uncertainty.grades import VERSION_KEY, Grades

UNITS: Final[dict[str, str]] = {
    "energy": "eV",
    "forces": "eV/angstrom",
    "stress": "eV/angstrom^3, tension positive",
    "cutoff_ang": "angstrom",
    "reference_energies": "eV per isolated atom",
    "energy_shifts": "eV per atom, to be added to what the package predicts",
}
#: Engines whose package is a ``.nequip.zip``: Allegro is a model of the NequIP framework.
ENGINES: Final[tuple[str, ...]] = ("nequip", "allegro")


class PotentialData(orm.Data):
    """A portable model package and what it takes to use and judge it. Opening it executes nothing.

    The package holds code: *loading the model* executes it. That happens only in the programs of
    :mod:`aiida_mlip.workers` on the compute node (see :mod:`aiida_mlip.workers.model_loading`), which say so in their
    output. Attributes, for queries: ``engine``, ``species``, ``type_names``, ``cutoff_ang``, ``fidelities``,
    ``joint``, ``reference_energies``, ``energy_shifts``, ``metrics``, ``units``, ``versions``, ``sha256``,
    ``size_bytes``, ``model_dtype``, ``statistics`` (names of the arrays of :meth:`statistics`), ``calibration``.
    """

    PACKAGE_NAME: ClassVar[str] = "model.nequip.zip"
    STATISTICS_NAME: ClassVar[str] = "statistics.npz"

    # -- making ------------------------------------------------------------------------------------------------

    @classmethod
    def from_package(
        cls,
        package: IO[bytes] | bytes | str | Path,
        *,
        engine: str = "nequip",
        species: Sequence[str] | None = None,
        cutoff_ang: float | None = None,
        fidelities: Sequence[str] = (),
        joint: bool = False,
        reference_energies: Mapping[str, Mapping[str, float]] | None = None,
        energy_shifts: Mapping[str, Mapping[str, float]] | None = None,
        metrics: Mapping[str, Any] | None = None,
        statistics: Mapping[str, np.ndarray] | None = None,
        calibration: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        source: str | None = None,
    ) -> PotentialData:
        """Unstored node of a model package; what is not given is read from the plain text inside the package.

        :param package: path, bytes or seekable binary stream of a ``.nequip.zip``.
        :param engine: one of :data:`ENGINES`.
        :param species: chemical symbols in the order of the model's types; must agree with the package.
        :param cutoff_ang: radial cutoff (Å).
        :param fidelities: names of the levels of theory it was trained on, in the order of the model's index.
        :param joint: the model is told the level of theory (field ``dataset``): see :attr:`joint`.
        :param reference_energies: isolated-atom energies (eV) per fidelity and symbol.
        :param energy_shifts: per fidelity and symbol, what to add to the package's energy per atom of that element
            to get a total energy (eV); empty when the package predicts totals.
        :param metrics: numbers that judge it, e.g. errors per part; NaN becomes ``None``.
        :param statistics: arrays for its uncertainty, see :meth:`aiida_mlip.kernel.uncertainty.grades.Grades.arrays`.
        :param calibration: of its committee's deviations, see :class:`aiida_mlip.kernel.calibration.Calibration`.
        :param versions: of the software that made it, beside those the package names.
        :param source: what to call the package in messages.
        :raises FileFormatError: truncated or changed package, or none at all; malformed grades or calibration.
        :raises InvalidInputError: a value that contradicts the package, or that it lacks and was not given.
        """
        if VERSION_KEY in (statistics or {}):
            Grades.from_arrays(statistics or {})
        if calibration:
            Calibration.from_dict(calibration)
        name = source or (str(package) if isinstance(package, str | Path) else "model package")
        with _opened(package, name) as stream:
            found = read_package(stream, source=name)
            node = cls()
            node.base.repository.put_object_from_filelike(stream, cls.PACKAGE_NAME)
        if engine not in ENGINES:
            raise InvalidInputError(f"{name}: unknown engine {engine!r}; known are {', '.join(ENGINES)}")
        if statistics:
            node.base.repository.put_object_from_filelike(io.BytesIO(write_npz(statistics)), cls.STATISTICS_NAME)
        names = list(dict.fromkeys(fidelities))
        if joint and (len(names) < 2 or len(names) < len(fidelities)):
            raise InvalidInputError(f"{name}: a joint potential has two fidelities or more, each once: {fidelities}")
        for key, table in (("reference_energies", reference_energies), ("energy_shifts", energy_shifts)):
            if names and (unknown := set(table or {}) - set(names)):
                raise InvalidInputError(f"{name}: {key} of {sorted(unknown)}, but the fidelities are {names}")
        node.base.attributes.set_many(
            {
                "engine": engine,
                "species": _species(found, species, len(names) if joint else 0, name),
                "type_names": list(found.type_names),
                "cutoff_ang": _cutoff(found, cutoff_ang, name),
                "model_dtype": found.model_dtype,
                "fidelities": names,
                "joint": joint,
                "reference_energies": jsonable(reference_energies or {}),
                "energy_shifts": jsonable(energy_shifts or {}),
                "metrics": jsonable(metrics or {}),
                "versions": {**found.versions, **(versions or {})},
                "units": UNITS,
                "sha256": found.sha256,
                "size_bytes": found.size_bytes,
                "statistics": sorted(statistics or {}),
                "calibration": jsonable(calibration or {}),
            }
        )
        return node

    @classmethod
    def import_package(cls, path: str | Path, **properties: Any) -> PotentialData:
        """Unstored node of a package made elsewhere, e.g. by hand with ``nequip-package build``.

        Species, cutoff and versions come from the package where it names them.

        :param properties: see :meth:`from_package`.
        :raises FileFormatError: no such file, truncated or changed.
        :raises InvalidInputError: species or cutoff that the package does not name, and that were not given.
        """
        return cls.from_package(Path(path), **properties)

    def judged(
        self,
        *,
        metrics: Mapping[str, Any] | None = None,
        statistics: Mapping[str, np.ndarray] | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> PotentialData:
        """Unstored node of the same package with more to judge it by; the repository keeps the package once.

        :param metrics: added to those it has.
        :param statistics: in place of those it has, where given; ``calibration`` likewise.
        :raises FileFormatError: a package that was changed, malformed grades or calibration.
        """
        with self.open_package() as stream:
            node = PotentialData.from_package(
                stream,
                engine=self.engine,
                species=self.species,
                cutoff_ang=self.cutoff_ang,
                fidelities=self.fidelities,
                joint=self.joint,
                reference_energies=self.reference_energies,
                energy_shifts=self.energy_shifts,
                metrics={**self.metrics, **(metrics or {})},
                statistics=self.statistics() if statistics is None else statistics,
                calibration=self.base.attributes.get("calibration", {}) if calibration is None else calibration,
                versions=self.versions,
                source=f"PotentialData<{self.uuid}>",
            )
        node.label, node.description = self.label, self.description
        return node

    def _validate(self) -> bool:
        super()._validate()
        if self.PACKAGE_NAME not in self.base.repository.list_object_names():
            raise ValidationError("a PotentialData holds a model package; make it with PotentialData.from_package")
        try:
            with self.base.repository.open(self.PACKAGE_NAME, "rb") as stream:
                digest = sha256_of(stream)
        except OSError as error:
            raise ValidationError(f"the model package cannot be read: {error}") from error
        if digest != self.base.attributes.get("sha256", None):
            raise ValidationError("the model package does not match its recorded SHA-256")
        return True

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def engine(self) -> str:
        """What trains and runs it: one of :data:`ENGINES`."""
        return str(self.base.attributes.get("engine"))

    @property
    def species(self) -> list[str]:
        """Chemical symbols it covers, in the order of the model's types."""
        return list(self.base.attributes.get("species"))

    @property
    def cutoff_ang(self) -> float:
        """Radial cutoff (Å)."""
        return float(self.base.attributes.get("cutoff_ang"))

    @property
    def fidelities(self) -> list[str]:
        """Levels of theory it was trained on, in the order of the model's index; empty when not known."""
        return list(self.base.attributes.get("fidelities"))

    @property
    def joint(self) -> bool:
        """Whether the model is one for several levels of theory, and must be told which with every frame.

        Such a package runs nowhere but in training; ``aiida_mlip.bake`` makes an ordinary one of it for each of its
        :attr:`fidelities`.
        """
        return bool(self.base.attributes.get("joint", False))

    @property
    def reference_energies(self) -> dict[str, dict[str, float]]:
        """Isolated-atom energies (eV) per fidelity and symbol."""
        return dict(self.base.attributes.get("reference_energies"))

    @property
    def energy_shifts(self) -> dict[str, dict[str, float]]:
        """Per fidelity and symbol: what to add to the package's energies (eV per atom) to get totals."""
        return dict(self.base.attributes.get("energy_shifts"))

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers that judge it, as given when it was made."""
        return dict(self.base.attributes.get("metrics"))

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software that made it."""
        return dict(self.base.attributes.get("versions"))

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the package."""
        return str(self.base.attributes.get("sha256"))

    def check_species(self, symbols: Iterable[str]) -> None:
        """Make sure that it covers these chemical symbols.

        :raises SpeciesError: some are missing; names them.
        """
        covered = set(self.species)
        if missing := sorted(set(symbols) - covered):
            raise SpeciesError(
                f"the potential <{self.uuid}> does not cover {', '.join(missing)}; it covers {', '.join(self.species)}"
            )

    @property
    def joint_method(self) -> str | None:
        """How it tells its levels of theory apart, as in ``multi_fidelity.method``; nothing: it is not joint."""
        if not self.joint:
            return None
        return "embedding" if list(self.base.attributes.get("type_names")) == list(self.species) else "types"

    def check_runs(self) -> None:
        """Make sure that it can be run as it is.

        :raises InvalidInputError: it is joint.
        """
        if self.joint:
            raise InvalidInputError(
                f"the potential <{self.uuid}> is a joint one of {', '.join(self.fidelities)}, which runs nowhere by "
                "itself: make an ordinary potential of one of them with aiida_mlip.bake"
            )

    # -- reading -----------------------------------------------------------------------------------------------

    @contextmanager
    def open_package(self) -> Iterator[IO[bytes]]:
        """Binary stream of the package, after its hash was checked.

        :raises FileFormatError: the file was changed since the node was made.
        """
        with self.base.repository.open(self.PACKAGE_NAME, "rb") as stream:
            digest = sha256_of(stream)
            if digest != self.sha256:
                raise FileFormatError(
                    f"PotentialData<{self.uuid}>: {self.PACKAGE_NAME} was changed: SHA-256 is {digest[:12]}..., "
                    f"recorded is {self.sha256[:12]}..."
                )
            stream.seek(0)
            yield stream

    def statistics(self) -> dict[str, np.ndarray]:
        """Arrays for its uncertainty; empty when it has none.

        :raises FileFormatError: the file was damaged.
        """
        if not self.base.attributes.get("statistics"):
            return {}
        with self.base.repository.as_path(self.STATISTICS_NAME) as path:
            return read_npz(path)

    @property
    def has_grades(self) -> bool:
        """Whether novelty, Laplace variance and extrapolation grade of its environments are known."""
        return VERSION_KEY in self.base.attributes.get("statistics", [])

    def grades(self) -> Grades | None:
        """Grades of environments against its training set; None when it has none.

        :raises FileFormatError: the arrays were damaged.
        """
        return Grades.from_arrays(self.statistics()) if self.has_grades else None

    def calibration(self) -> Calibration | None:
        """What turns its committee's deviations into error bounds; None when it has none.

        :raises FileFormatError: the attribute is no calibration.
        """
        values = self.base.attributes.get("calibration", {})
        return Calibration.from_dict(values) if values else None

    def export(self, path: str | Path) -> Path:
        """Write the package to a file that NequIP, ASE and LAMMPS know how to load.

        :param path: a file, or a folder to write ``<uuid>.nequip.zip`` into.
        :raises FileFormatError: the file was changed since the node was made.
        :raises InvalidInputError: the file exists.
        """
        target = Path(path)
        if target.is_dir():
            target = target / f"{self.uuid}.nequip.zip"
        try:
            with self.open_package() as stream, target.open("xb") as handle:
                while chunk := stream.read(1 << 20):
                    handle.write(chunk)
        except FileExistsError as error:
            raise InvalidInputError(f"{target} exists; give another name") from error
        return target


def jsonable(value: Any) -> Any:
    """``value`` with plain Python types only and ``None`` for every number that JSON lacks (NaN, infinity)."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def _opened(package: IO[bytes] | bytes | str | Path, name: str) -> Iterator[IO[bytes]]:
    if isinstance(package, bytes):
        yield io.BytesIO(package)
    elif isinstance(package, str | Path):
        if not Path(package).is_file():
            raise FileFormatError(f"{name}: no such file")
        with Path(package).open("rb") as stream:
            yield stream
    else:
        yield package


def _species(found: ModelPackage, given: Sequence[str] | None, n_levels: int, name: str) -> list[str]:
    """Chemical symbols in the order of the model's types, those of one level where each has types of its own."""
    from ase.data import chemical_symbols

    species, n_found = species_of_types(found.type_names)
    if n_found not in (1, n_levels):
        raise InvalidInputError(
            f"{name}: the model has types for {n_found} levels of theory ({', '.join(found.type_names)}), but "
            f"{n_levels} joint fidelities are named"
        )
    if given is not None:
        if sorted(given) != sorted(species):
            raise SpeciesError(f"{name}: species {list(given)} given, but the package has {list(species)}")
        return list(species)
    if unknown := [symbol for symbol in species if symbol not in chemical_symbols[1:]]:
        raise SpeciesError(f"{name}: the model's atom types {unknown} are not chemical symbols, which this needs")
    return list(species)


def _cutoff(found: ModelPackage, given: float | None, name: str) -> float:
    if given is None and found.cutoff_ang is None:
        raise InvalidInputError(f"{name}: the package does not name its cutoff; give cutoff_ang")
    value = float(given if given is not None else found.cutoff_ang)  # type: ignore[arg-type]  # one of them is there
    if not (math.isfinite(value) and value > 0):
        raise InvalidInputError(f"{name}: cutoff_ang must be a positive length in Å, got {value}")
    if given is not None and found.cutoff_ang is not None and not math.isclose(value, found.cutoff_ang, rel_tol=1e-6):
        raise InvalidInputError(f"{name}: cutoff_ang {value} given, but the package was made with {found.cutoff_ang}")
    return value
