"""Settings of the jobs of a validation, per role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.explore import parse_explore, resolved_spec
from aiida_mlip.protocols.fidelity import AseFidelity, Fidelity, parse_fidelities
from aiida_mlip.protocols.validate import ValidateSettings

#: Sections that only a potential or an ASE calculator can do, and those among them that a reference may leave out.
_RUNS: Final[tuple[str, ...]] = ("dynamics", "expansion", "order")
_OPTIONAL: Final[tuple[str, ...]] = ("dimer", *_RUNS)
_FS_PER_PS: Final[float] = 1000.0


def single_fidelity(fidelities: Mapping[str, Any], *, where: str) -> Fidelity:
    """The one level of theory.

    :raises ProtocolError: not valid, or not exactly one.
    """
    found = parse_fidelities(fidelities)
    if len(found) != 1:
        raise ProtocolError(f"{where}.fidelities: exactly one level of theory is compared, got {', '.join(found)}")
    return next(iter(found.values()))


def planned(settings: ValidateSettings, levels: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Plain contents of the nodes that jobs are given.

    :param levels: fidelities of ``subject`` and ``reference``; None for a subject: a potential; for a reference: none.
    :raises ProtocolError: something does not fit together.
    """
    result: dict[str, dict[str, Any]] = {
        "evaluation": {"device": settings.device, **({"fidelity": settings.fidelity} if settings.fidelity else {})}
    }
    for role, level in levels.items():
        if role == "reference" and level is None:
            continue
        engine = None if level is None else single_fidelity(level, where=role)
        own = role_settings(settings, role, engine)
        result[f"settings_{role}"] = own.model_dump(mode="json")
        if engine is None or isinstance(engine, AseFidelity):
            result |= {f"{kind}_{role}{number}": spec for kind, number, spec in _specs(own, engine)}
    return result


def role_settings(settings: ValidateSettings, role: str, engine: Fidelity | None) -> ValidateSettings:
    """Without what this role does not do."""
    changes: dict[str, Any] = {}
    if role == "reference":
        changes = {
            name: None
            for name in _OPTIONAL
            if (section := getattr(settings, name)) is not None and not section.reference
        }
    if engine is not None and not isinstance(engine, AseFidelity):
        changes |= dict.fromkeys(_RUNS)
    return settings.model_copy(update=changes)


def _specs(settings: ValidateSettings, engine: AseFidelity | None) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, number, specification) of every exploration."""
    base: dict[str, Any] = {"device": settings.device}
    if engine is not None:
        base["forces"] = {"calculator": engine.calculator, "arguments": engine.arguments}
    elif settings.fidelity is not None:
        base["fidelity"] = settings.fidelity
    found: list[tuple[str, str, dict[str, Any]]] = []
    if settings.vacancy is not None or settings.surface is not None:
        found.append(("relax", "", {**base, "kind": "relax", "relax": settings.relaxed.model_dump(mode="json")}))
    if (keys := settings.dynamics) is not None:
        parts = ((keys.equilibration_ps, "langevin"), (keys.production_ps, "nve"))
        for i, kelvin in enumerate(keys.temperatures_k):
            schedule: list[dict[str, Any]] = [
                {"ensemble": ensemble, "n_steps": _steps(time, keys.timestep_fs)} for time, ensemble in parts
            ]
            schedule[0]["temperature_k"] = kelvin
            spec = {"md": {"timestep_fs": keys.timestep_fs, "schedule": schedule}, "record_every": keys.record_every}
            found.append(("dynamics", f"_{i:02d}", {**base, "kind": "md", "seed": keys.seed + i, **spec}))
    if (grow := settings.expansion) is not None:
        for i, kelvin in enumerate(grow.temperatures_k):
            part = {"ensemble": "npt", "n_steps": _steps(grow.duration_ps, grow.timestep_fs), "temperature_k": kelvin}
            spec = {"md": {"timestep_fs": grow.timestep_fs, "schedule": [part]}, "record_every": grow.record_every}
            found.append(("expansion", f"_{i:02d}", {**base, "kind": "md", "seed": grow.seed + i, **spec}))
    if (order := settings.order) is not None:
        swaps = {"temperature_k": order.temperature_k, "n_steps": order.n_steps, "n_shells": order.n_shells}
        spec = {"monte_carlo": swaps, "record_every": order.record_every, "seed": order.seed}
        found.append(("order", "_00", {**base, "kind": "monte_carlo", **spec}))
    return [(kind, number, _resolved(spec, kind)) for kind, number, spec in found]


def _steps(picoseconds: float, timestep_fs: float) -> int:
    return max(1, round(picoseconds * _FS_PER_PS / timestep_fs))


def _resolved(spec: dict[str, Any], kind: str) -> dict[str, Any]:
    plain = resolved_spec(spec, where=kind)
    return parse_explore(plain, where=kind).model_dump(mode="json", exclude_none=True)
