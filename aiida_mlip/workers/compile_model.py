"""``python -m aiida_mlip.workers.compile_model``: a package compiled by ``nequip-compile``, with per-atom features.

NequIP's own targets return energies, forces and stress. The targets here can add the features after the last layer, so
that a compiled potential grades itself in the same call, and can leave the derivatives out. Executes code from the
package: it runs as a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Where the features are, in the order they are looked for, and what they belong to (see `model_loading`).
FEATURE_FIELDS: Final[tuple[str, ...]] = ("edge_features", "node_features")
#: How many frames a call takes: NequIP's target of the same input.
TARGETS: Final[dict[str, str]] = {"one": "ase", "many": "batch"}
_NO_DERIVATIVES: Final[str] = "disable_ForceStressOutput"


def feature_field(irreps_out: Mapping[str, Any]) -> str | None:
    """Output of a model that holds its last features; None: it has no such output.

    Allegro ends with features of edges, NequIP with features of atoms.

    >>> feature_field({"node_features": "4x0e", "pos": "1o"})
    'node_features'
    """
    return next((name for name in FEATURE_FIELDS if name in irreps_out), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("output")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", choices=sorted(TARGETS), default="many")
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--no-derivatives", action="store_true")
    options = parser.parse_args(arguments)
    from nequip.data import AtomicDataDict
    from nequip.scripts import _compile_utils
    from nequip.scripts.compile import main as compile_package

    target = dict(_compile_utils.COMPILE_TARGET_DICT[TARGETS[options.frames]])
    derivatives = (AtomicDataDict.FORCE_KEY, AtomicDataDict.STRESS_KEY)
    outputs = [name for name in target["output"] if not (options.no_derivatives and name in derivatives)]
    if options.features:
        outputs.append(_feature_field_of(options.package))
    _compile_utils.register_compile_targets({"aiida_mlip": {**target, "output": outputs}})
    compile_package(
        [
            options.package,
            options.output,
            *("--device", options.device, "--mode", "aotinductor", "--target", "aiida_mlip"),
            *(("--modifiers", _NO_DERIVATIVES) if options.no_derivatives else ()),
        ]
    )
    return 0


def _feature_field_of(package: str) -> str:
    from nequip.model.saved_models.load_utils import load_saved_model

    model = load_saved_model(package, compile_mode="eager")
    field = feature_field(model.irreps_out)
    if field is None:
        raise SystemExit(f"{package}: the model has none of the outputs {', '.join(FEATURE_FIELDS)}")
    return field


if __name__ == "__main__":
    raise SystemExit(main())
