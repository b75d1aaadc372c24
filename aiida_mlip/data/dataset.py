"""DatasetData: an immutable, ordered collection of frames in the provenance graph."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from aiida import orm
from aiida.common.exceptions import ValidationError

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.shards import ROWS_PER_SHARD, read_columns, read_shard, read_tables, shard_name, write_shard
from aiida_mlip.kernel.frames import (
    NONE,
    Failure,
    Frames,
    concatenate,
    id_hex,
    id_keys,
    label_keys,
    reference_energies,
)
from aiida_mlip.kernel.labelling import RowStates, states_of, surviving_rows

if TYPE_CHECKING:
    from ase import Atoms

UNITS = {
    "positions": "angstrom",
    "cell": "angstrom",
    "energy": "eV",
    "forces": "eV/angstrom",
    "stress": "eV/angstrom^3, tension positive",
    "cost": "core-seconds",
}


class DatasetData(orm.Data):
    """Frames with labels, stored as content-addressed shards; opening the node reads no array.

    Create it with :meth:`from_frames`, or :meth:`merge` to extend one without copying its shards. Attributes, for
    queries: ``n_rows``, ``n_atoms``, ``species``, ``fidelities`` (name -> settings hash and counts), ``generators``,
    ``ranges``, ``reference_energies``, ``failures``, ``units``, ``shards``.
    """

    _PREFIX: ClassVar[str] = "shards"

    # -- making ------------------------------------------------------------------------------------------------

    @classmethod
    def from_frames(cls, frames: Frames, *, settings: dict[str, str] | None = None) -> DatasetData:
        """Unstored node of these frames.

        :param frames: at least one row.
        :param settings: settings hash per fidelity name (see :mod:`aiida_mlip.protocols.fidelity`); one that is
            missing stays empty ("labels from elsewhere").
        :raises InvalidInputError: no frames.
        """
        if len(frames) == 0:
            raise InvalidInputError("an empty dataset: there are no frames")
        node = cls()
        parts = [frames] if len(frames) <= ROWS_PER_SHARD else (frames.take(rows) for rows in _chunks(len(frames)))
        node._append(parts, settings or {})
        return node

    @classmethod
    def from_blocks(cls, blocks: Iterable[Frames], *, settings: dict[str, str] | None = None) -> DatasetData:
        """Unstored node of frames that come block by block: about one shard and one block are in memory at a time.

        :param blocks: frames, at least one row in all.
        :param settings: as for :meth:`from_frames`.
        :raises InvalidInputError: no frames.
        """
        node = cls()
        node._append(_repacked(blocks), settings or {})
        if len(node) == 0:
            raise InvalidInputError("an empty dataset: there are no frames")
        return node

    @classmethod
    def merge(cls, datasets: Sequence[DatasetData]) -> DatasetData:
        """Unstored union of several datasets; whole shards are kept as they are, so they cost no new bytes.

        Of several labels of one frame at one fidelity the first is kept. A failed row is dropped where the frame is
        labelled at that fidelity in any of the datasets, an unlabelled row where the frame is labelled or failed at
        any fidelity: a label that comes later supersedes its absence, never another label.

        :raises InvalidInputError: nothing to merge, or one fidelity name with two different settings hashes.
        """
        if not datasets:
            raise InvalidInputError("nothing to merge")
        node = cls()
        node._merge(datasets)
        return node

    def _append(self, parts: Iterable[Frames], settings: dict[str, str]) -> None:
        summaries = list(self.base.attributes.get("shards", []))
        for part in parts:
            data = write_shard(part)
            name = shard_name(data)
            self.base.repository.put_object_from_filelike(io.BytesIO(data), f"{self._PREFIX}/{name}")
            summaries.append({"name": name, "bytes": len(data), **_summarise(part)})
        self._set_summary(summaries, settings)

    def _merge(self, datasets: Sequence[DatasetData]) -> None:
        settings: dict[str, str] = {}
        summaries: list[dict[str, Any]] = []
        for dataset in datasets:
            for name, value in dataset.settings.items():
                if settings.setdefault(name, value) != value:
                    raise InvalidInputError(
                        f"fidelity {name!r} was computed with two different settings ({settings[name][:8]} and "
                        f"{value[:8]}); give one of them another name"
                    )
        shards = _distinct_shards(datasets)
        masks = surviving_rows([dataset._row_states(summary["name"]) for dataset, summary in shards])
        for (dataset, summary), keep in zip(shards, masks, strict=True):
            path = f"{self._PREFIX}/{summary['name']}"
            if keep.all():
                with dataset.base.repository.open(path, "rb") as handle:
                    self.base.repository.put_object_from_filelike(handle, path)
                summaries.append(summary)
            elif keep.any():
                part = dataset._read(summary["name"]).take(keep)
                data = write_shard(part)
                name = shard_name(data)
                if all(name != other["name"] for other in summaries):
                    self.base.repository.put_object_from_filelike(io.BytesIO(data), f"{self._PREFIX}/{name}")
                    summaries.append({"name": name, "bytes": len(data), **_summarise(part)})
        self._set_summary(summaries, settings)

    def _set_summary(self, shards: list[dict[str, Any]], settings: dict[str, str]) -> None:
        fidelities: dict[str, dict[str, Any]] = {}
        generators: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        references: dict[str, dict[str, float]] = {}
        ranges: dict[str, list[float]] = {}
        for shard in shards:
            for name, counts in shard["fidelities"].items():
                entry = fidelities.setdefault(name, {"settings": settings.get(name, ""), "labelled": 0, "failed": 0})
                entry["labelled"] += counts["labelled"]
                entry["failed"] += counts["failed"]
            generators.update(shard["generators"])
            failures.update(shard["failures"])
            for name, energies in shard["reference_energies"].items():
                references.setdefault(name, {}).update(energies)
            for name, (low, high) in shard["ranges"].items():
                known = ranges.get(name, [low, high])
                ranges[name] = [min(known[0], low), max(known[1], high)]
        self.base.attributes.set_many(
            {
                "n_rows": sum(shard["n_rows"] for shard in shards),
                "n_atoms": sum(shard["n_atoms"] for shard in shards),
                "species": _sort_symbols({symbol for shard in shards for symbol in shard["species"]}),
                "fidelities": fidelities,
                "generators": dict(generators),
                "failures": dict(failures),
                "reference_energies": references,
                "ranges": ranges,
                "units": UNITS,
                "shards": shards,
            }
        )

    def _validate(self) -> bool:
        super()._validate()
        shards = self.base.attributes.get("shards", None)
        if not shards:
            raise ValidationError("a DatasetData holds at least one frame; use DatasetData.from_frames or .merge")
        present = set(self.base.repository.list_object_names(self._PREFIX))
        if missing := {shard["name"] for shard in shards} - present:
            raise ValidationError(f"shards missing from the repository: {sorted(missing)}")
        return True

    # -- looking without reading arrays -----------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.base.attributes.get("n_rows"))

    @property
    def species(self) -> list[str]:
        """Chemical symbols present, by atomic number."""
        return list(self.base.attributes.get("species"))

    @property
    def fidelities(self) -> list[str]:
        """Names of the levels of theory that rows were labelled at, or failed to be."""
        return list(self.base.attributes.get("fidelities"))

    @property
    def n_labels(self) -> int:
        """Labels, over all fidelities."""
        return sum(entry["labelled"] for entry in self.base.attributes.get("fidelities").values())

    @property
    def settings(self) -> dict[str, str]:
        """Settings hash per fidelity; empty for labels that came from elsewhere."""
        return {name: entry["settings"] for name, entry in self.base.attributes.get("fidelities").items()}

    @property
    def reference_energies(self) -> dict[str, dict[str, float]]:
        """Isolated-atom energies (eV) per fidelity and symbol, where the dataset holds such rows."""
        return dict(self.base.attributes.get("reference_energies"))

    # -- reading -----------------------------------------------------------------------------------------------

    @property
    def embedding(self) -> list[dict[str, Any]]:
        """Measured embedding errors of fragments: ``uuid`` of the measurement, ``error_ev_per_ang``, ``buffer_ang``."""
        return list(self.base.attributes.get("embedding", []))

    @property
    def shard_names(self) -> list[str]:
        """File names (content hashes) in row order."""
        return [shard["name"] for shard in self.base.attributes.get("shards")]

    def _read(self, name: str) -> Frames:
        with self.base.repository.open(f"{self._PREFIX}/{name}", "rb") as handle:
            data = handle.read()
        if shard_name(data) != name:
            raise FileFormatError(f"DatasetData<{self.uuid}>: shard {name} does not match its content hash")
        return read_shard(io.BytesIO(data), source=f"DatasetData<{self.uuid}> shard {name[:12]}")

    def shard_columns(
        self, name: str, columns: Iterable[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
        """Some columns of a shard (``natoms`` is always among them) and its name tables, without reading the rest.

        :raises FileFormatError: a damaged shard.
        """
        path, source = f"{self._PREFIX}/{name}", f"DatasetData<{self.uuid}> shard {name[:12]}"
        with self.base.repository.open(path, "rb") as handle:
            tables = read_tables(handle, source=source)
        with self.base.repository.open(path, "rb") as handle:
            return read_columns(handle, columns, source=source), tables

    def _row_states(self, name: str) -> RowStates:
        """Of each row of a shard: see :func:`~aiida_mlip.kernel.labelling.row_states`."""
        columns, tables = self.shard_columns(name, ["frame_id", "fidelity", "failure"])
        keys = label_keys(columns["frame_id"], columns["fidelity"], tables["fidelities"])
        return id_keys(columns["frame_id"]), keys, states_of(columns["fidelity"], columns["failure"])

    def iter_shards(self) -> Iterator[Frames]:
        """Frames shard by shard: at most one shard is held at a time."""
        return (self._read(name) for name in self.shard_names)

    def frames(self) -> Frames:
        """All rows at once."""
        return concatenate(list(self.iter_shards()))

    def column(self, name: str) -> np.ndarray:
        """One column over all rows (or atoms) without reading the others.

        Name tables differ between shards, so the columns ``fidelity`` and ``generator`` come as names (``""``: none).
        """
        if name in ("fidelity", "generator"):
            parts = []
            for frames in self.iter_shards():
                table = np.array([*(frames.fidelities if name == "fidelity" else frames.generators), ""], dtype=object)
                parts.append(table[getattr(frames, name)])
            return np.concatenate(parts)
        parts = []
        for shard in self.shard_names:
            with self.base.repository.open(f"{self._PREFIX}/{shard}", "rb") as handle:
                parts.append(read_columns(handle, [name], source=f"DatasetData<{self.uuid}>")[name])
        return np.concatenate(parts)

    def frame_ids(self) -> list[str]:
        """Frame id of every row, 32 hexadecimal digits."""
        return id_hex(self.column("frame_id"))

    def __getitem__(self, index: int | slice) -> Frames:
        """Rows by number or slice; only the shards concerned are read."""
        rows = range(len(self))[index if isinstance(index, slice) else slice(index, index + 1 or None)]
        wanted = np.asarray(rows)
        if len(wanted) == 0:
            raise IndexError(f"dataset of {len(self)} rows has no row {index}")
        parts, start = [], 0
        order: list[np.ndarray] = []
        for shard in self.base.attributes.get("shards"):
            inside = np.flatnonzero((wanted >= start) & (wanted < start + shard["n_rows"]))
            if len(inside):
                parts.append(self._read(shard["name"]).take(wanted[inside] - start))
                order.append(inside)
            start += shard["n_rows"]
        return concatenate(parts).take(np.argsort(np.concatenate(order)))

    def __iter__(self) -> Iterator[Frames]:
        """Single rows, one shard in memory at a time."""
        for frames in self.iter_shards():
            for row in range(len(frames)):
                yield frames.take([row])

    def filter(
        self, *, fidelity: str | None = None, labelled: bool | None = None, generator: str | None = None
    ) -> Frames:
        """Rows by column values, e.g. the labelled ones at one fidelity."""
        parts = []
        for frames in self.iter_shards():
            keep = np.ones(len(frames), dtype=bool)
            if fidelity is not None:
                keep &= _is_named(frames.fidelity, frames.fidelities, fidelity)
            if generator is not None:
                keep &= frames.generator == (
                    frames.generators.index(generator) if generator in frames.generators else -2
                )
            if labelled is not None:
                keep &= frames.labelled == labelled
            parts.append(frames.take(keep))
        return concatenate(parts)

    def to_ase(self, rows: slice | None = None) -> Iterator[Atoms]:
        """Rows as :class:`ase.Atoms`, one shard in memory at a time (or the given slice)."""
        if rows is not None:
            yield from self[rows].iter_ase()
            return
        for frames in self.iter_shards():
            yield from frames.iter_ase()


def _is_named(column: np.ndarray, names: tuple[str, ...], name: str) -> np.ndarray:
    return column == names.index(name) if name in names else np.zeros(len(column), dtype=bool)


def _repacked(blocks: Iterable[Frames]) -> Iterator[Frames]:
    """The same rows in shards of full size, but for the last."""
    waiting: list[Frames] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(part) for part in waiting) < ROWS_PER_SHARD:
            continue
        whole = concatenate(waiting)
        full = len(whole) - len(whole) % ROWS_PER_SHARD
        for start in range(0, full, ROWS_PER_SHARD):
            yield whole.take(np.arange(start, start + ROWS_PER_SHARD))
        waiting = [whole.take(np.arange(full, len(whole)))]
    rest = concatenate(waiting) if waiting else None
    if rest is not None and len(rest):
        yield rest


def _chunks(n: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + ROWS_PER_SHARD, n)) for start in range(0, n, ROWS_PER_SHARD))


def _distinct_shards(datasets: Sequence[DatasetData]) -> list[tuple[DatasetData, dict[str, Any]]]:
    """Shards of all datasets in order, each content once."""
    found: dict[str, tuple[DatasetData, dict[str, Any]]] = {}
    for dataset in datasets:
        for summary in dataset.base.attributes.get("shards"):
            found.setdefault(summary["name"], (dataset, summary))
    return list(found.values())


def _sort_symbols(symbols: Iterable[str]) -> list[str]:
    from ase.data import atomic_numbers

    return sorted(symbols, key=atomic_numbers.__getitem__)


def _summarise(frames: Frames) -> dict[str, Any]:
    """Attributes of one shard: counts, names and ranges; plain JSON, no NaN."""
    fidelities = {}
    for index, name in enumerate(frames.fidelities):
        rows = frames.fidelity == index
        if rows.any():
            fidelities[name] = {
                "labelled": int((rows & frames.labelled).sum()),
                "failed": int((rows & (frames.failure != 0)).sum()),
            }
    failures = Counter(Failure(int(value)).label for value in frames.failure if value)
    generators = Counter(frames.generators[i] if i != NONE else "import" for i in frames.generator)
    ranges = {}
    norms = np.sqrt(np.einsum("ai,ai->a", frames.forces, frames.forces))
    volume = np.abs(np.linalg.det(frames.cell))
    per_atom = {
        "energy_ev_per_atom": frames.energy / frames.natoms,
        "force_norm_ev_per_ang": norms,
        "volume_ang3_per_atom": np.where(frames.pbc.all(axis=1), volume / frames.natoms, np.nan),
        "natoms": frames.natoms.astype(float),
    }
    for name, values in per_atom.items():
        finite = values[np.isfinite(values)]
        if len(finite):
            ranges[name] = [float(finite.min()), float(finite.max())]
    return {
        "n_rows": len(frames),
        "n_atoms": frames.n_atoms,
        "species": list(frames.species),
        "fidelities": fidelities,
        "generators": dict(generators),
        "failures": dict(failures),
        "reference_energies": {name: dict(value) for name, value in reference_energies(frames).items()},
        "ranges": ranges,
    }
