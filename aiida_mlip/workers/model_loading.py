"""Loading a packaged model. This is the one place where code from a model file is executed, and it says so."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiida_mlip.errors import ExternalProgramError, FileFormatError, InvalidInputError
from aiida_mlip.io.level_types import species_of_types, type_indices
from aiida_mlip.io.model_package import read_package
from aiida_mlip.workers import compile_model
from aiida_mlip.workers.compile_model import FEATURE_FIELDS, TARGETS, feature_field
from aiida_mlip.workers.graphs import pair_cutoffs
from aiida_mlip.workers.unpacking import unpack

#: Suffix of a model compiled for this machine.
COMPILED_SUFFIX: Final[str] = ".nequip.pt2"
#: Environment variable: folder where compiled models are kept for all jobs, instead of beside each package.
COMPILED_FOLDER: Final[str] = "AIIDA_MLIP_COMPILED"


@dataclass(frozen=True)
class LoadedModel:
    """A NequIP-framework model ready to be called on batches of graphs.

    :param call: dictionary of tensors -> dictionary with energies, forces and stresses.
    :param device: ``torch.device`` it runs on.
    :param type_names: atom types in the order of their index, chemical symbols; those of the first level of theory
        where each level has types of its own.
    :param cutoff_ang: radial cutoff (Å), the largest.
    :param pair_cutoffs: (t, t) cutoff (Å) by the types of centre and neighbour; None: the same for all.
    :param smallest_batch: fewest frames per call (a model compiled for many is specialised to "more than one").
    :param largest_batch: most frames per call; None: any number.
    :param feature_field: output that holds the features after the last layer; None: no such output.
    :param derivatives: whether forces and stress come with the energy.
    :param n_level_types: how many types of its own each element has, one for every level of theory.
    """

    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # Any: torch.Tensor, torch is not imported here
    device: Any  # torch.device
    type_names: tuple[str, ...]
    cutoff_ang: float
    pair_cutoffs: np.ndarray | None = None
    smallest_batch: int = 1
    largest_batch: int | None = None
    feature_field: str | None = None
    derivatives: bool = True
    n_level_types: int = 1

    def types_of(self, numbers: np.ndarray, fidelity: int | None = None) -> np.ndarray:
        """(a,) the model's type of each atom.

        :param numbers: (a,) atomic numbers.
        :param fidelity: index of the level of theory, for a model of several.
        :raises SpeciesError: an element that the model does not cover.
        :raises InvalidInputError: no level of theory was named, where each has types of its own.
        """
        if self.n_level_types == 1:
            return type_indices(self.type_names, numbers)
        if fidelity is None or not 0 <= fidelity < self.n_level_types:
            raise InvalidInputError(
                f"the model has types for {self.n_level_types} levels of theory: say which, got index {fidelity}"
            )
        return type_indices(self.type_names, numbers, fidelity)

    def features(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, keep_graph: bool = False) -> Any:
        """(a, d) tensor of the invariant features after the last layer, those a linear readout turns into energies.

        Features of atoms are taken as they are; those of edges (Allegro) are summed over the edges of each centre.

        :raises InvalidInputError: the model was loaded without features, or has none.
        """
        if self.feature_field is None:
            raise InvalidInputError("this model gives no features: load it with features=True")
        values = outputs[self.feature_field]
        values = values if keep_graph else values.detach()
        if self.feature_field == "node_features":
            return values
        pooled = values.new_zeros(len(inputs["pos"]), values.shape[1])
        return pooled.index_add_(0, inputs["edge_index"][0], values)


def resolve_device(name: str = "auto") -> str:
    """``cpu`` or ``cuda``: ``auto`` takes a GPU when torch sees one.

    :raises InvalidInputError: an unknown device, or ``cuda`` where there is none.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InvalidInputError(f"unknown device {name!r}; allowed are auto, cpu, cuda")
    available = bool(torch.cuda.is_available())
    if name == "cuda" and not available:
        raise InvalidInputError("device 'cuda' was asked for, but torch sees no GPU here; use 'auto' or 'cpu'")
    return "cuda" if available and name != "cpu" else "cpu"


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    mode: str = "eager",
    expected_sha256: str | None = None,
    features: bool = False,
    frames: str = "many",
    derivatives: bool = True,
) -> LoadedModel:
    """Load a ``.nequip.zip``. **Executes code from that file**: load only packages whose origin you trust.

    The archive is checked first (every checksum, and its hash when one is expected); only then is it loaded.

    :param path: the package.
    :param device: ``auto``, ``cpu`` or ``cuda``.
    :param mode: ``eager``, or ``compiled``: compile it for this machine, or reuse what was compiled. Its place is
        beside the package, or in the folder that the environment variable AIIDA_MLIP_COMPILED names.
    :param expected_sha256: hexadecimal hash the file must have.
    :param features: per-atom features come with every call (an eager model always has them).
    :param frames: ``many`` or ``one`` per call; a compiled model for ``one`` spends nothing on a second (dynamics).
    :param derivatives: False: energies (and features) only, at less than half the cost.
    :raises FileFormatError: truncated or changed, or no model that can be loaded.
    :raises InvalidInputError: unknown device or mode, or features of a model that has none.
    :raises ExternalProgramError: ``nequip-compile`` failed.
    """
    package = Path(path)
    if not package.is_file():
        raise FileFormatError(f"{package}: no such file")
    with package.open("rb") as stream:
        digest = read_package(stream, source=str(package)).sha256
    if expected_sha256 is not None and digest != expected_sha256:
        raise FileFormatError(f"{package} was changed: SHA-256 is {digest[:12]}..., expected {expected_sha256[:12]}...")
    if mode not in ("eager", "compiled"):
        raise InvalidInputError(f"unknown mode {mode!r}; allowed are eager, compiled")
    if frames not in TARGETS:
        raise InvalidInputError(f"unknown frames {frames!r}; allowed are {', '.join(sorted(TARGETS))}")
    target = resolve_device(device)
    print(f"loading this model executes code from {package} (SHA-256 {digest})", flush=True)
    if mode == "eager":
        model = _load_eager(package, target, derivatives)
    else:
        model = _load_compiled(package, digest, _Variant(target, frames, features, derivatives))
    if features and model.feature_field is None:
        raise InvalidInputError(f"{package}: the model has none of the outputs {', '.join(FEATURE_FIELDS)}")
    return model


@dataclass(frozen=True)
class _Variant:
    """What a compiled file was made for."""

    device: str
    frames: str
    features: bool
    derivatives: bool

    @property
    def options(self) -> list[str]:
        """Of the program that compiles."""
        flags = [("--features", self.features), ("--no-derivatives", not self.derivatives)]
        return ["--device", self.device, "--frames", self.frames, *(name for name, given in flags if given)]

    def file(self, package: Path, digest: str) -> Path:
        """Its place; another package, machine, torch or nequip has another."""
        key = hashlib.sha256("\n".join([digest, *self.options, *_machine(self.device)]).encode()).hexdigest()[:10]
        parts = [self.device, self.frames, *(["features"] if self.features else []), key]
        folder = Path(os.environ.get(COMPILED_FOLDER) or package.parent)
        return folder / f"{package.name.removesuffix('.nequip.zip')}-{'-'.join(parts)}{COMPILED_SUFFIX}"


def _machine(device: str) -> list[str]:
    """What compiled code depends on: libraries, and the instructions of the processor or the GPU."""
    import nequip
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    return [torch.__version__, nequip.__version__, platform.machine(), " ".join(sorted(flags.split())), gpu]


def _load_eager(package: Path, device: str, derivatives: bool) -> LoadedModel:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about their own internals
            model = unpack(package) if device == "cpu" else None
            if model is None:
                model = _load_through_nequip(package)
        model.eval()
        metadata = dict(model.metadata)
        model.to(torch.device(device))
    except MemoryError:
        raise
    except Exception as error:  # whatever the code inside the file raises
        raise FileFormatError(f"{package}: the model cannot be loaded ({type(error).__name__}: {error})") from error
    # weights need no gradients here: only positions and strain do
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not derivatives:
        model.model.do_derivatives = False
    loaded = assemble(model, metadata, device)
    return replace(loaded, feature_field=feature_field(model.irreps_out), derivatives=derivatives)


def _load_through_nequip(package: Path) -> Any:
    from nequip.model.saved_models.load_utils import load_saved_model
    from nequip.utils.global_state import set_global_state

    set_global_state(allow_tf32=False)
    return load_saved_model(str(package), compile_mode="eager")


def _load_compiled(package: Path, digest: str, variant: _Variant) -> LoadedModel:
    compiled = variant.file(package, digest)
    if not compiled.exists():
        _compile(package, compiled, variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nequip.model.inference_models import load_compiled_model

        try:
            model, metadata = load_compiled_model(str(compiled), variant.device)
        except Exception as error:  # whatever the library raises for a file it cannot use
            raise FileFormatError(f"{compiled}: cannot be loaded ({type(error).__name__}: {error})") from error
    single = variant.frames == "one"
    return replace(
        assemble(model, metadata, variant.device),
        smallest_batch=1 if single else 2,
        largest_batch=1 if single else None,
        feature_field=feature_field(dict.fromkeys(model.output_keys)) if variant.features else None,
        derivatives=variant.derivatives,
    )


def _compile(package: Path, compiled: Path, variant: _Variant) -> None:
    """Run ``nequip-compile`` of this environment; its product is specific to this machine."""
    compiled.parent.mkdir(parents=True, exist_ok=True)
    draft = compiled.with_name(f".{os.getpid()}-{compiled.name}")
    print(f"compiling for {variant.device}: {compiled.name}", flush=True)
    command = [sys.executable, "-m", compile_model.__name__, str(package), str(draft), *variant.options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not draft.exists():
        draft.unlink(missing_ok=True)
        end = (run.stdout + run.stderr)[-2000:]
        raise ExternalProgramError(f"nequip-compile of {package} ended with status {run.returncode}:\n{end}")
    draft.replace(compiled)  # at once: another process sees a whole file or none


def assemble(model: Any, metadata: Mapping[str, Any], device: str) -> LoadedModel:
    """A model in memory, with what its input depends on.

    :param model: NequIP-framework model on the device, in evaluation mode.
    :param metadata: of the model: type names and cutoffs.
    :param device: ``cpu`` or ``cuda``.
    """
    import torch

    names = metadata["type_names"]
    type_names = names.split(" ") if isinstance(names, str) else list(names)
    species, n_levels = species_of_types(type_names)
    return LoadedModel(
        call=model,
        device=torch.device(device),
        type_names=species,
        n_level_types=n_levels,
        cutoff_ang=float(metadata["r_max"]),
        pair_cutoffs=pair_cutoffs(metadata, type_names),
    )
