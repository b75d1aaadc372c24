"""Loading a packaged model. This is the one place where code from a model file is executed, and it says so."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiida_mlip.errors import ExternalProgramError, FileFormatError, InvalidInputError
from aiida_mlip.io.model_package import read_package

#: Suffix of a model compiled for this machine.
COMPILED_SUFFIX: Final[str] = ".nequip.pt2"


@dataclass(frozen=True)
class LoadedModel:
    """A NequIP-framework model ready to be called on batches of graphs.

    :param call: dictionary of tensors -> dictionary with energies, forces and stresses.
    :param transforms: what turns a bare geometry into the model's input (types, neighbour list).
    :param device: ``torch.device`` it runs on.
    :param type_names: atom types in the order of their index.
    :param cutoff_ang: radial cutoff (Å).
    :param smallest_batch: fewest frames per call (a compiled model is specialised to "more than one").
    """

    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # Any: torch.Tensor, torch is not imported here
    transforms: Sequence[Callable[[Mapping[str, Any]], Mapping[str, Any]]]
    device: Any  # torch.device
    type_names: tuple[str, ...]
    cutoff_ang: float
    smallest_batch: int = 1


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
    path: str | Path, *, device: str = "auto", mode: str = "eager", expected_sha256: str | None = None
) -> LoadedModel:
    """Load a ``.nequip.zip``. **Executes code from that file**: load only packages whose origin you trust.

    The archive is checked first (every checksum, and its hash when one is expected); only then is it loaded.

    :param path: the package.
    :param device: ``auto``, ``cpu`` or ``cuda``.
    :param mode: ``eager``, or ``compiled``: compile it for this machine beside the package, or reuse what was compiled.
    :param expected_sha256: hexadecimal hash the file must have.
    :raises FileFormatError: truncated or changed, or no model that can be loaded.
    :raises InvalidInputError: unknown device or mode.
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
    target = resolve_device(device)
    print(f"loading this model executes code from {package} (SHA-256 {digest})", flush=True)
    return _load_eager(package, target) if mode == "eager" else _load_compiled(package, target)


def _load_eager(package: Path, device: str) -> LoadedModel:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about their own internals
            from nequip.model.saved_models.load_utils import load_saved_model
            from nequip.utils.global_state import set_global_state

            set_global_state(allow_tf32=False)
            model = load_saved_model(str(package), compile_mode="eager")
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
    return _assemble(model, metadata, device)


def _load_compiled(package: Path, device: str) -> LoadedModel:
    compiled = package.with_name(f"{package.name.removesuffix('.nequip.zip')}-{device}{COMPILED_SUFFIX}")
    if not compiled.exists() or compiled.stat().st_mtime < package.stat().st_mtime:
        _compile(package, compiled, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nequip.model.inference_models import load_compiled_model
        from nequip.scripts._compile_utils import AOTI_BATCH_TARGET, COMPILE_TARGET_DICT

        target = COMPILE_TARGET_DICT[AOTI_BATCH_TARGET]
        try:
            model, metadata = load_compiled_model(str(compiled), device, list(target["input"]), list(target["output"]))
        except Exception as error:  # whatever the library raises for a file it cannot use
            raise FileFormatError(f"{compiled}: cannot be loaded ({type(error).__name__}: {error})") from error
    return _assemble(model, metadata, device, smallest_batch=2)


def _compile(package: Path, compiled: Path, device: str) -> None:
    """Run ``nequip-compile`` of this environment; its product is specific to this machine."""
    program = Path(sys.executable).with_name("nequip-compile")
    options = ["--device", device, "--mode", "aotinductor", "--target", "batch"]
    print(f"compiling for {device}: {compiled.name}", flush=True)
    run = subprocess.run(
        [str(program), str(package), str(compiled), *options], capture_output=True, text=True, check=False
    )
    if run.returncode != 0 or not compiled.exists():
        end = (run.stdout + run.stderr)[-2000:]
        raise ExternalProgramError(f"nequip-compile of {package} ended with status {run.returncode}:\n{end}")


def _assemble(model: Any, metadata: Mapping[str, Any], device: str, *, smallest_batch: int = 1) -> LoadedModel:
    import torch
    from nequip.integrations.utils import basic_transforms
    from nequip.nn import graph_model

    names = metadata[graph_model.TYPE_NAMES_KEY]
    type_names = names.split(" ") if isinstance(names, str) else list(names)
    cutoff = float(metadata[graph_model.R_MAX_KEY])
    transforms = basic_transforms(dict(metadata), cutoff, type_names, {name: name for name in type_names})
    return LoadedModel(
        call=model,
        transforms=transforms,
        device=torch.device(device),
        type_names=tuple(type_names),
        cutoff_ang=cutoff,
        smallest_batch=smallest_batch,
    )
