"""Baking: an ordinary package of one level of theory, out of a joint one that is told the level with every frame.

A joint NequIP model joins two vectors for each atom: that of its type, and that of the level of theory (the graph field
``dataset``). With the level fixed, the second is the same for all atoms, so both together are a type embedding: that is
what is written, with the energies of the level's isolated atoms. A model that knows each element once for every level
(Allegro; :mod:`aiida_mlip.io.level_types`) keeps the types of one level and forgets the others. Nothing else of the
model changes, the code in the package least of all, and NequIP is not needed: the archive says what code it holds and
what it takes from outside.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from aiida_mlip.errors import FileFormatError, InvalidInputError, MlipError
from aiida_mlip.io.bake import BAKED, BakeRequest
from aiida_mlip.io.level_types import level_types, species_of_types
from aiida_mlip.io.model_package import read_package
from aiida_mlip.workers.unpacking import without_compiler

#: Graph field that tells a joint model the level of theory.
FIELD: Final[str] = "dataset"
#: Largest differences to the joint model that are put down to rounding: eV per atom, eV/Å.
ENERGY_TOLERANCE: Final[float] = 1e-6
FORCE_TOLERANCE: Final[float] = 1e-5

_FOLDER: Final[str] = "model"
_NAME: Final[str] = "sole_model"
_METADATA: Final[str] = "package_metadata.txt"
_CONFIG: Final[str] = "config.yaml"
_EXAMPLE: Final[str] = "example_data.pkl"
#: How ``torch.package`` begins a module that only stands for another one.
_MOCK: Final[bytes] = b"from _mock import MockedObject"


class NotExactError(MlipError):
    """What was baked does not predict what the joint model predicts."""


@dataclass(frozen=True)
class Deviation:
    """Largest differences between the baked and the joint model, on the frames in the package.

    :param energy: eV per atom.
    :param force: eV/Å, of a component.
    """

    energy: float
    force: float

    @property
    def is_rounding(self) -> bool:
        """Whether they are below the tolerances; NaN is not."""
        return self.energy <= ENERGY_TOLERANCE and self.force <= FORCE_TOLERANCE


def bake(folder: Path, request: BakeRequest) -> dict[str, Any]:
    """Write the package of one level of theory and prove it; **executes code from the joint package**.

    :param folder: where the joint package is, and where the new one goes.
    :raises FileFormatError: truncated or changed, or no package that can be loaded.
    :raises InvalidInputError: not a joint model, no such level of theory, or shifts for other types than it has.
    :raises NotExactError: the new package predicts something else; it is not kept.
    """
    package = folder / request.model
    digest = _checked(package, request.sha256)
    print(f"loading this model executes code from {package} (SHA-256 {digest})", flush=True)
    draft = folder / f".{os.getpid()}-{BAKED}"
    try:
        with _quiet():
            joint, shifts, deviation = _write_and_compare(package, draft, request, digest)
        if not deviation.is_rounding:
            raise NotExactError(
                f"{package.name}: baked at {request.fidelity} it differs by {deviation.energy:.2e} eV/atom and "
                f"{deviation.force:.2e} eV/Å from the joint model; allowed are {ENERGY_TOLERANCE:g} and "
                f"{FORCE_TOLERANCE:g}"
            )
        draft.replace(folder / BAKED)  # at once: a killed job leaves no half package
    finally:
        draft.unlink(missing_ok=True)
    print(
        f"baked at {request.fidelity}: within {deviation.energy:.1e} eV/atom and {deviation.force:.1e} eV/Å of the "
        "joint model",
        flush=True,
    )
    return {
        "status": "finished",
        "fidelity": request.fidelity,
        "index": request.index,
        "models": list(joint.modes),
        "energy_difference_ev_per_atom": deviation.energy,
        "force_difference_ev_per_ang": deviation.force,
        "shifts_changed_ev": {name: request.shifts[name] - shifts[name] for name in shifts},
    }


def _write_and_compare(
    package: Path, draft: Path, request: BakeRequest, digest: str
) -> tuple[_Archive, dict[str, float], Deviation]:
    """The joint package, its shifts, and how far the one written is from it."""

    def attempt() -> tuple[_Archive, dict[str, float], Deviation]:
        joint = _Archive(package)
        shifts = write_baked(joint, draft, request, digest)
        return joint, shifts, compare(joint, _Archive(draft), request, shifts)

    try:
        with without_compiler():  # saves the longest of all imports
            return attempt()
    except FileFormatError:
        return attempt()


def _checked(package: Path, expected: str | None) -> str:
    """SHA-256 of the package, after every checksum in it was found right."""
    if not package.is_file():
        raise FileFormatError(f"{package}: no such file")
    with package.open("rb") as stream:
        digest = read_package(stream, source=str(package)).sha256
    if expected is not None and digest != expected:
        raise FileFormatError(f"{package} was changed: SHA-256 is {digest[:12]}..., expected {expected[:12]}...")
    return digest


# -- the model -------------------------------------------------------------------------------------------------


def fold(model: Any, index: int, shifts: Mapping[str, float]) -> dict[str, float]:
    """Make a joint model one of a single level of theory, in place; it takes no field ``dataset`` any more.

    :param model: ``GraphModel`` of NequIP.
    :param index: of the level of theory.
    :param shifts: eV per atom by type name, in place of those it has.
    :returns: the shifts it had.
    :raises InvalidInputError: not a joint model, no such level of theory, or shifts for other types than it has.
    """
    species, n_levels = species_of_types(model.type_names)
    if n_levels > 1:
        _select_types(model, index, species, n_levels)
    else:
        _fold_embedding(model, index)
    before = _set_shifts(model, shifts)
    for module in model.modules():
        for name in ("irreps_in", "irreps_out"):
            if isinstance(fields := getattr(module, name, None), dict):  # e3nn's own modules have no fields
                fields.pop(FIELD, None)
    model.model_input_fields = [name for name in model.model_input_fields if name != FIELD]
    return before


def _fold_embedding(model: Any, index: int) -> None:
    """One embedding of the types, which ends with the vector of the level of theory, instead of two that are joined."""
    import torch

    found = [module for module in model.modules() if getattr(module, "do_categorical_graph_field_embed", False)]
    fields = [list(module.categorical_graph_field_embed_modules) for module in found]
    if fields != [[FIELD]]:
        raise InvalidInputError(
            f"not a joint model: expected one embedding of the field {FIELD!r}, found those of {fields}"
        )
    embedding = found[0]
    levels = embedding.categorical_graph_field_embed_modules[FIELD].weight.detach()
    row = index - embedding.categorical_graph_field_embed_shifts[FIELD]
    if not 0 <= row < len(levels):
        raise InvalidInputError(f"index {index}: the model knows {len(levels)} levels of theory")
    types = embedding.embed_module.weight.detach()
    joined = torch.cat([types, levels[row].expand(len(types), -1)], dim=1)
    embedding.embed_module = torch.nn.Embedding.from_pretrained(joined, freeze=False)
    embedding.do_categorical_graph_field_embed = False
    embedding.categorical_graph_field_embed_modules = torch.nn.ModuleDict()
    embedding.categorical_graph_field_embed_shifts = {}


def _select_types(model: Any, index: int, species: Sequence[str], n_levels: int) -> None:
    """Only the types of one level of theory, by the names of their elements."""
    import torch

    if not 0 <= index < n_levels:
        raise InvalidInputError(f"index {index}: the model knows {n_levels} levels of theory")
    n_types, every = len(species), level_types(species, n_levels)
    kept = slice(index * n_types, (index + 1) * n_types)
    for module in model.modules():
        if tuple(getattr(module, "type_names", ())) == every:
            module.type_names = list(species)
        if getattr(module, "num_types", None) == len(every):
            module.num_types = n_types
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Embedding) and child.num_embeddings == len(every):
                weight = child.weight.detach()[kept].clone()
                setattr(module, name, torch.nn.Embedding.from_pretrained(weight, freeze=False))
        if hasattr(module, "shifts_shortcut"):
            for name in ("shifts", "scales"):
                value = getattr(module, name)
                if len(value) == len(every):
                    rows = value.detach()[kept].clone()
                    setattr(module, name, torch.nn.Parameter(rows) if isinstance(value, torch.nn.Parameter) else rows)
    if isinstance(metadata := getattr(model, "_metadata", None), dict):
        metadata["type_names"] = " ".join(species)


def _set_shifts(model: Any, shifts: Mapping[str, float]) -> dict[str, float]:
    """Put the shifts of the atomic energies in place; returns those that were there."""
    import torch

    found = [module for module in model.modules() if hasattr(module, "shifts_shortcut")]
    if len(found) != 1:
        raise InvalidInputError(f"expected one module that shifts atomic energies, the model has {len(found)}")
    module = found[0]
    names = list(module.type_names)
    if sorted(names) != sorted(shifts):
        raise InvalidInputError(f"shifts: given for {sorted(shifts)}, but the model's types are {names}")
    if module.shifts_trainable:
        raise InvalidInputError(
            "the shifts of the joint model were trained, so those of the levels of theory are not known: train it "
            "with fixed ones"
        )
    before = module.shifts.detach().double().reshape(-1).tolist() or [0.0]
    values = torch.tensor([[shifts[name]] for name in names], dtype=module.out_dtype)
    module.register_buffer("shifts", values)
    module.has_shifts, module.shifts_shortcut = True, len(names) == 1
    return dict(zip(names, before * len(names) if len(before) == 1 else before, strict=True))


def _check_energies(before: Mapping[str, float], request: BakeRequest) -> None:
    """Refuse reference energies that are not those the joint model was trained with."""
    for name, change in request.change.items():
        if name in before and abs(before[name] + change - request.shifts[name]) > ENERGY_TOLERANCE:
            raise InvalidInputError(
                f"mixed reference energies: the joint model has {before[name]:.6f} eV for {name}, and was trained for "
                f"{change:+.6f} eV more at {request.fidelity}, but the reference energy given is "
                f"{request.shifts[name]:.6f} eV"
            )


# -- the package -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Code:
    """Of a package: names of the libraries that lie in it, of those it only has stand-ins for, modules from outside."""

    own: list[str]
    mocked: list[str]
    outside: list[str]


class _Archive:
    """A package: its models, and what it says about its code.

    :param path: ``.nequip.zip``, checked already.
    :raises FileFormatError: it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        from torch.package import PackageImporter

        self.path = path
        with _foreign(self.path):
            self.importer = PackageImporter(str(path))
            self.metadata = yaml.safe_load(self.importer.load_text(_FOLDER, _METADATA))
            self.modes = tuple(self.metadata["available_models"])
            names = self.metadata["atom_types"]
            self.species, self.n_level_types = species_of_types([str(names[index]) for index in range(len(names))])

    def load(self, name: str) -> Any:
        """A pickled object; storages in pickles within it are put on the CPU as well."""
        with _foreign(self.path), _on_cpu():
            return self.importer.load_pickle(_FOLDER, name, map_location="cpu")

    def models(self, mode: str) -> Any:
        """``ModuleDict`` of one of the variants: ``eager``, ``compile``."""
        models = self.load(f"{mode}_model.pkl")
        if list(models) != [_NAME]:
            raise FileFormatError(f"{self.path}: expected one model {_NAME!r}, found {list(models)}")
        return models

    def code(self) -> _Code:
        """What code lies in it, and what it takes from outside."""
        inside: dict[str, bool] = {}
        with zipfile.ZipFile(self.path) as archive:
            names = archive.namelist()
            for name in names:
                parts = PurePosixPath(name).parts[1:]
                if name.endswith(".py") and not parts[0].startswith("_"):
                    mocked = archive.read(name).startswith(_MOCK)
                    inside[parts[0]] = inside.get(parts[0], True) and mocked
            lists = [archive.read(name).decode() for name in names if name.endswith("/.data/extern_modules")]
        return _Code(
            own=[name for name, mocked in inside.items() if not mocked],
            mocked=[name for name, mocked in inside.items() if mocked],
            outside=" ".join(lists).split(),
        )


def write_baked(joint: _Archive, target: Path, request: BakeRequest, digest: str) -> dict[str, float]:
    """Package of one level of theory, as ``nequip-package modify`` would write it; returns the shifts of the joint one.

    :param joint: the package to bake.
    :param target: file to write.
    :param request: the level of theory and its shifts.
    :param digest: of the joint package, which the metadata name.
    """
    from torch.package import PackageExporter

    example = _untold(joint)
    baked = {"from_sha256": digest, "field": FIELD, "index": request.index, "fidelity": request.fidelity}
    types = {"atom_types": dict(enumerate(joint.species))}
    metadata = yaml.safe_dump({**joint.metadata, **types, "baked": baked}, default_flow_style=False, allow_unicode=True)
    code, before = joint.code(), {}
    importers = (joint.importer, _outside({*code.own, *code.mocked}))
    with _foreign(joint.path), PackageExporter(str(target), importer=importers) as exporter:
        exporter.mock([f"{name}.**" for name in code.mocked])
        exporter.extern(code.outside)
        exporter.intern([f"{name}.**" for name in code.own])
        exporter.save_pickle(_FOLDER, _EXAMPLE, example, dependencies=True)
        exporter.save_text(_FOLDER, _CONFIG, joint.importer.load_text(_FOLDER, _CONFIG))
        exporter.save_text(_FOLDER, _METADATA, metadata)
        for mode in joint.modes:
            models = joint.models(mode)
            before = fold(models[_NAME], request.index, request.shifts)
            _check_energies(before, request)
            exporter.save_pickle(_FOLDER, f"{mode}_model.pkl", models, dependencies=True)
    return before


def _untold(joint: _Archive) -> dict[str, Any]:
    """The frames in a package without their level of theory: as the baked model takes them."""
    example = {name: value for name, value in joint.load(_EXAMPLE).items() if name != FIELD}
    return {**example, "atom_types": example["atom_types"] % len(joint.species)}


def _outside(inside: Container[str]) -> Any:
    """Importer of modules that do not belong to the packages in the archive: an installed NequIP is another one."""
    from torch.package.importer import Importer, sys_importer

    class Outside(Importer):  # type: ignore[misc]  # torch.package is untyped
        def import_module(self, module_name: str) -> Any:
            if module_name.partition(".")[0] in inside:
                raise ModuleNotFoundError(f"{module_name}: not in the archive")
            return sys_importer.import_module(module_name)

    return Outside()


# -- the proof -------------------------------------------------------------------------------------------------


def compare(joint: _Archive, baked: _Archive, request: BakeRequest, shifts: Mapping[str, float]) -> Deviation:
    """Largest differences between the two packages on the frames in them; every variant of the baked one is run.

    :param shifts: eV per atom of the joint model, by type name.
    """
    import torch

    example = joint.load(_EXAMPLE)
    natoms = _atoms_per_frame(example)
    given = _untold(joint)
    if joint.n_level_types > 1:
        told = {**given, "atom_types": given["atom_types"] + request.index * len(joint.species)}
    else:
        told = {**given, FIELD: torch.full((len(natoms), 1), request.index)}
    model = joint.models(joint.modes[0])[_NAME].eval()
    change = torch.tensor([request.shifts[name] - shifts[name] for name in joint.species], dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(len(natoms)), natoms)
    added = torch.zeros(len(natoms), dtype=torch.float64).index_add_(0, rows, change[given["atom_types"].view(-1)])
    with _foreign(joint.path):
        expected = _predict(model, told)
    energy = force = 0.0
    for mode in baked.modes:
        variant = baked.models(mode)[_NAME].eval()
        with _foreign(baked.path):
            found = _predict(variant, given)
        difference = (found["total_energy"].view(-1) - expected["total_energy"].view(-1) - added) / natoms
        energy = _larger(energy, difference)
        force = _larger(force, found["forces"] - expected["forces"])
    return Deviation(energy, force)


def _predict(model: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Energies and forces by the plain forward pass: the variant for training would compile itself first."""
    plain: Any = next(kind for kind in type(model).__mro__ if kind.__name__ == "GraphModel")
    output = plain.forward(model, dict(data))
    return {name: output[name].detach().double() for name in ("total_energy", "forces")}


def _atoms_per_frame(data: Mapping[str, Any]) -> Any:
    """(n,) tensor."""
    import torch

    counts = data.get("num_atoms")
    return torch.tensor([len(data["atom_types"])]) if counts is None else counts.view(-1)


def _larger(most: float, difference: Any) -> float:
    """The larger of a number and the largest absolute value of a tensor; NaN wins."""
    value = float(difference.abs().max())
    return value if value > most or value != value else most


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Whatever the code inside a package raises is an error of that file."""
    try:
        yield
    except (MemoryError, MlipError):
        raise
    except Exception as error:
        raise FileFormatError(f"{path}: the model cannot be used ({type(error).__name__}: {error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of the libraries about their own internals; double precision outside of the model, as NequIP has."""
    import torch

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Storages inside of pickles inside of a package are read onto the CPU, where ``map_location`` does not reach."""
    import torch

    kept = torch.storage._load_from_bytes

    def load(data: bytes) -> Any:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)

    torch.storage._load_from_bytes = load
    try:
        yield
    finally:
        torch.storage._load_from_bytes = kept
