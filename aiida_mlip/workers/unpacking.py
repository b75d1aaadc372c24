"""A packaged model without NequIP: the archive holds the code that its model needs, so only torch is imported.

Importing NequIP (training framework, plots, torch's compiler) takes longer than most small jobs; a package loads in a
tenth of that. Whatever is out of the ordinary is left to NequIP's own loader.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

#: Where ``nequip-package`` puts the model, and its name in there.
_FOLDER: Final[str] = "model"
_FILE: Final[str] = "eager_model.pkl"
_NAME: Final[str] = "sole_model"


def unpack(package: Path) -> Any | None:
    """Eager model of a package on the CPU; None: not like this, use NequIP's loader. **Executes code from the file**.

    Sets what NequIP sets for its models in this process: double precision outside of the model, and no warm-up of
    TorchScript for shapes that change.

    :param package: ``.nequip.zip``, checked already.
    """
    import torch
    from torch.package import PackageImporter

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings(), without_compiler():
            warnings.simplefilter("ignore")  # of torch, about its own internals
            torch.jit.set_fusion_strategy([("DYNAMIC", 10)])
            models = PackageImporter(str(package)).load_pickle(_FOLDER, _FILE, map_location="cpu")
        model = models[_NAME]
        _ = dict(model.metadata), model.irreps_out
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - code of the file may raise anything; NequIP's loader has the last word
        torch.set_default_dtype(default)
        print(f"loading it through NequIP ({type(error).__name__}: {error})", flush=True)
        return None
    return model


@contextmanager
def without_compiler() -> Iterator[None]:
    """Leave torch's compiler alone: to mark a function as not to be compiled would import it, longer than torch itself.

    An eager model needs no such mark, and contains nothing compiled. Anything else that is wanted of the compiler here
    is an error, and so goes through NequIP's loader.
    """
    import torch

    if "torch._dynamo" in sys.modules:
        yield
        return
    kept = torch.compiler.disable
    absent = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))
    torch.compiler.disable = _unmarked
    torch._dynamo = absent
    try:
        yield
    finally:
        torch.compiler.disable = kept
        if vars(torch).get("_dynamo") is absent:
            del torch._dynamo


def _unmarked(function: Callable[..., Any] | None = None, **_: Any) -> Any:  # Any: as torch's own
    """A function as it is, with the call signature of ``torch.compiler.disable``."""
    return _unmarked if function is None else function
