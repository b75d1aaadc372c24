"""GenerateWorkChain: frames from a specification of generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiida import orm
from aiida.engine import ExitCode, WorkChain

from aiida_mlip.calculations.functions.generate import generate, seed_frames
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.generate import check_steps
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.generate import parse_generate
from aiida_mlip.protocols.model import merged_protocol


class GenerateWorkChain(WorkChain):
    """Make frames from seed structures, or from nothing, by a list of generator steps.

    Entry point ``aiida_mlip.generate``. The specification is documented in :mod:`aiida_mlip.protocols.generate`.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.input("spec", valid_type=orm.Dict, validator=_validate_spec, help="Generator steps: what is made of what.")
        spec.input("seed", valid_type=orm.Int, validator=_validate_seed, help="Seed of all random numbers.")
        spec.input("structures", valid_type=DatasetData, required=False, help="Seed frames.")
        spec.input(
            "reference",
            valid_type=DatasetData,
            required=False,
            help="The summary says how much of it the frames reach.",
        )
        spec.input_namespace(
            "cells", valid_type=orm.StructureData, required=False, dynamic=True, help="Further seeds, by name."
        )
        spec.inputs.validator = _validate_inputs

        spec.outline(
            cls.run_generate,
            cls.inspect_generate,
        )

        spec.output("dataset", valid_type=DatasetData, required=False, help="The frames, unlabelled, with lineage.")
        spec.output("summary", valid_type=orm.Dict, required=False, help="What came from where, per step.")

        spec.exit_code(300, "ERROR_GENERATE_FAILED", message="No frames were made: {reason}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        structures: DatasetData | orm.StructureData | Sequence[orm.StructureData] | None = None,
        *,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Any:  # Any: a ProcessBuilder
        """Builder with the steps of a protocol.

        :param structures: seeds: a dataset, a structure, or several structures.
        :param protocol: ``fast``, ``moderate`` (default) or ``precise``.
        :param overrides: ``steps`` (replaces the protocol's), ``keep_seeds``, ``seed``.
        :raises InvalidInputError: unknown protocol, generator or key.
        """
        settings = merged_protocol("generate", protocol, overrides)
        seed = settings.pop("seed", 0)
        parse_generate(settings, where="generate")
        builder = cls.get_builder()
        builder.spec = orm.Dict(settings)
        builder.seed = orm.Int(seed)
        if isinstance(structures, DatasetData):
            builder.structures = structures
        elif structures is not None:
            several = [structures] if isinstance(structures, orm.StructureData) else list(structures)
            builder.cells = {f"cell_{index:04d}": structure for index, structure in enumerate(several)}
        return builder

    # -- steps -------------------------------------------------------------------------------------------------

    def run_generate(self) -> None:
        """Make the frames."""
        inputs = {key: self.inputs[key] for key in ("spec", "seed", "structures", "reference") if key in self.inputs}
        inputs |= dict(self.inputs.get("cells", {}))
        _, node = generate.run_get_node(**inputs, metadata={"call_link_label": "generate"})
        self.ctx.generate = node.uuid

    def inspect_generate(self) -> ExitCode | None:
        """Return the frames and the summary."""
        node = orm.load_node(self.ctx.generate)
        if not node.is_finished_ok:
            self.report(f"generate<{node.pk}> failed with exit status {node.exit_status}: {node.exit_message}")
            return self.exit_codes.ERROR_GENERATE_FAILED.format(reason=node.exit_message)
        for name in ("dataset", "summary"):
            self.out(name, node.outputs[name])
        self.report(f"made {node.outputs.summary['n_frames']} frames: DatasetData<{node.outputs.dataset.pk}>")
        return None


def _validate_spec(value: orm.Dict | None, _: Any) -> str | None:
    if value is None:
        return None
    try:
        parse_generate(value.get_dict())
    except InvalidInputError as error:
        return str(error)
    return None


def _validate_seed(value: orm.Int | None, _: Any) -> str | None:
    return f"a seed must not be negative, got {value.value}" if value is not None and value.value < 0 else None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """Check that the seeds are usable and enough for the steps."""
    if "spec" not in inputs:
        return None  # an optional namespace of another workchain, left empty
    try:
        steps, _keep = parse_generate(inputs["spec"].get_dict())
        seeds = seed_frames(inputs.get("structures"), inputs.get("cells") or {})
        if seeds is not None:
            check_geometries(seeds, source="structures")
        check_steps(steps, n_seeds=0 if seeds is None else len(seeds))
    except InvalidInputError as error:
        return str(error)
    return None
