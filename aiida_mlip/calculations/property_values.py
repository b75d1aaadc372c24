"""Values of properties from what a source has computed, with the nodes that they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from aiida import orm

from aiida_mlip.calculations.property_frames import (
    PropertyFrames,
    distances_of,
    phonon_cells,
    relaxed_energies,
    results_from,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import jsonable
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.properties import defects, dimers, dynamics, elastic, equation_of_state, phonons
from aiida_mlip.kernel.properties.crystal import Crystal
from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Results, failed
from aiida_mlip.protocols.validate import ValidateSettings

_FS_PER_PS = 1000.0
_MISSING = "the job that computes it gave no result"


class Values:
    """Collects properties and curves of one source.

    :param nodes: what the source computed, by name: ``eos_result``, ``static_result``, ``relaxed``, ...
    """

    def __init__(self, nodes: Mapping[str, orm.Data]) -> None:
        self._nodes = nodes
        self.entries: list[dict[str, Any]] = []
        self.curves: dict[str, np.ndarray] = {}

    def add(
        self,
        structure: int,
        names: Sequence[tuple[str, str, str]],
        sources: Sequence[str],
        make: Callable[[], Outcome],
    ) -> None:
        """Add what ``make`` gives, or the reason why it gives nothing.

        :param names: (name, family, unit) of the properties that then have no value.
        :param sources: names of the nodes used.
        """
        try:
            outcome = make()
        except NotComputableError as error:
            outcome = failed(names, str(error))
        uuids = [self._nodes[name].uuid for name in sources if name in self._nodes]
        for entry in outcome.properties:
            self.entries.append({**jsonable(asdict(entry)), "structure": structure, "uuids": uuids})
        prefix = "" if structure < 0 else f"s{structure}_"
        self.curves |= {prefix + name: np.asarray(values) for name, values in outcome.curves.items()}


def source_values(
    crystals: Sequence[Crystal], settings: ValidateSettings, made: PropertyFrames, nodes: Mapping[str, orm.Data]
) -> Values:
    """Everything that the settings ask for.

    :param made: from the equation of state of this source.
    :param nodes: ``eos_result``; ``static`` and ``static_result``; ``relax`` and ``relaxed`` (of the relaxed frames:
        ``relaxed_frames`` too); ``<run>_<i>_dataset``, ``_series``, ``_summary`` of the runs.
    """
    values = Values(nodes)
    static = _static_results(nodes)
    for index, crystal in enumerate(crystals):
        outcome, own, energy = made.equations[index]
        names = [entry for entry in equation_of_state.NAMES if entry[0] != "a0_ang" or crystal.is_cubic]
        reason = made.skipped.get((index, "eos"), "")
        values.add(index, names, ["eos_result"], partial(_given, outcome, names, reason))
        _add_lattice(values, index, crystal, own, settings, made, static)
        _add_defects(values, index, own, energy, settings, made, nodes)
        _add_runs(values, index, settings, made, nodes)
    for (structure, what), (start, stop) in made.static.rows.items():
        if structure < 0:
            pair = (what.split("_")[1], what.split("_")[2])
            part = partial(_dimer, pair, settings, static, (start, stop))
            values.add(-1, [dimers.dimer_name(pair)], ["static_result"], part)
    return values


def _given(outcome: Outcome | None, names: Sequence[tuple[str, str, str]], reason: str) -> Outcome:
    return failed(names, reason) if outcome is None else outcome


def _dimer(pair: tuple[str, str], settings: ValidateSettings, static: Results | None, rows: tuple[int, int]) -> Outcome:
    return dimers.repulsion(pair, distances_of(pair, settings), _part(static, *rows))


def _static_results(nodes: Mapping[str, orm.Data]) -> Results | None:
    if "static_result" not in nodes or "static" not in nodes:
        return None
    return results_from(nodes["static"].frames(), nodes["static_result"])


def _part(results: Results | None, start: int, stop: int) -> Results:
    if results is None:
        raise NotComputableError(_MISSING)
    return results.part(start, stop)


def _add_lattice(
    values: Values,
    index: int,
    crystal: Crystal,
    own: Crystal | None,
    settings: ValidateSettings,
    made: PropertyFrames,
    static: Results | None,
) -> None:
    """Elastic constants and phonons."""

    def results(what: str) -> tuple[Crystal, Results]:
        if own is None:
            raise NotComputableError("no equilibrium volume")
        rest = _part(static, *made.static.rows[index, "equilibrium"])
        rest.check("forces")
        force = float(np.linalg.norm(rest.forces[0], axis=1).max())
        if force > settings.max_residual_force_ev_per_ang:
            raise NotComputableError(
                f"the atoms are not at rest, a force of {force:.3f} eV/Å is left: give a relaxed structure"
            )
        return own, _part(static, *made.static.rows[index, what])

    if (keys := settings.elastic) is not None:
        names = [("c11_gpa", "elastic_constants", "GPa"), *elastic.SUMMARY]
        if crystal.is_cubic:
            names[1:1] = [(f"{name}_gpa", "elastic_constants", "GPa") for name in ("c12", "c44")]
        values.add(
            index,
            names,
            ["static_result"],
            lambda: elastic.elastic_constants(
                *results("elastic"), strain=keys.strain, displacement=keys.displacement_ang
            ),
        )
    if (phonon := settings.phonons) is not None:
        names = [("phonons_gamma_thz", "phonons", "THz"), phonons.LOWEST]

        def bands() -> Outcome:
            crystal_now, forces = results("phonons")
            return phonon_cells(crystal_now, settings).outcome(
                forces, mesh=phonon.mesh, points_per_path=phonon.points_per_path
            )

        values.add(index, names, ["static_result"], bands)


def _add_defects(
    values: Values,
    index: int,
    own: Crystal | None,
    energy: float,
    settings: ValidateSettings,
    made: PropertyFrames,
    nodes: Mapping[str, orm.Data],
) -> None:
    """Vacancy and surfaces."""
    wanted = [] if settings.vacancy is None else [("vacancy", defects.VACANCY)]
    if settings.surface is not None:
        wanted += [(name[0], name) for name in map(defects.surface_name, settings.surface.miller)]
    if not wanted:
        return
    energies, reasons, how = _relaxed(nodes)
    millers = {} if settings.surface is None else {defects.surface_name(m)[0]: m for m in settings.surface.miller}

    def outcome(what: str) -> Outcome:
        if (why := made.skipped.get((index, what)) or made.skipped.get((index, "eos"))) is not None or own is None:
            raise NotComputableError(why or "no equilibrium volume")
        start, stop = made.relax.rows[index, what]
        if energies is None:
            raise NotComputableError(_MISSING)
        for row in range(start, stop):
            if not np.isfinite(energies[row]):
                raise NotComputableError(reasons[row])
        cells = made.relax.cells[start:stop]
        if what == "vacancy":
            text = f"{len(cells[0])} sites, at constant volume, {how}"
            return defects.vacancy_energy(len(cells[0]), *map(float, energies[start:stop]), definition=text)
        text = f"slab of {len(cells[0])} atoms, not reconstructed, {how}"
        return defects.surface_energy(millers[what], cells[0], float(energies[start]), energy, definition=text)

    for what, name in wanted:
        values.add(index, [name], ["relaxed"], partial(outcome, what))


def _relaxed(nodes: Mapping[str, orm.Data]) -> tuple[np.ndarray | None, list[str], str]:
    """Energies of relaxed frames, why they are missing, and what they are."""
    if "relaxed" not in nodes:
        return None, [], ""
    own = isinstance(nodes["relaxed"], orm.Dict)
    frames = (nodes["relax"] if own else nodes["relaxed_frames"]).frames()
    how = "relaxed" if own else "at the geometry that the potential relaxed, scaled to the own lattice"
    return *relaxed_energies(nodes["relaxed"], frames, "energy"), how


def _add_runs(
    values: Values, index: int, settings: ValidateSettings, made: PropertyFrames, nodes: Mapping[str, orm.Data]
) -> None:
    """Dynamics, thermal expansion, order."""
    if index not in {structure for group in made.runs.values() for structure, _ in group.rows}:
        return
    if (keys := settings.dynamics) is not None:
        run = made.runs["dynamics"].rows[index, "dynamics"][0]
        steps = [round(time * _FS_PER_PS / keys.timestep_fs) for time in (keys.equilibration_ps, keys.production_ps)]
        for i, kelvin in enumerate(keys.temperatures_k):
            name = f"dynamics_{i:02d}"

            def one(name: str = name, kelvin: float = kelvin) -> Outcome:
                frames, series, report = _run(nodes, name, run)
                return dynamics.run_outcome(
                    frames,
                    series["step"].astype(int),
                    series["potential_energy_ev"],
                    series["temperature_k"],
                    report=report,
                    temperature=kelvin,
                    timestep=keys.timestep_fs,
                    equilibration=steps[0],
                    n_steps=sum(steps),
                )

            sources = [f"{name}_dataset", f"{name}_summary"]
            values.add(index, dynamics.run_names(kelvin), sources, one)
    if (expansion := settings.expansion) is not None:
        run = made.runs["expansion"].rows[index, "expansion"][0]
        sources = [f"expansion_{i:02d}_series" for i in range(len(expansion.temperatures_k))]
        values.add(index, [dynamics.EXPANSION], sources, lambda: _expansion(nodes, run, expansion.temperatures_k))
    if (order := settings.order) is not None:
        run = made.runs["order"].rows[index, "order"][0]
        values.add(
            index,
            [("order", "order", "1")],
            ["order_00_dataset"],
            lambda: dynamics.order_outcome(_run(nodes, "order_00", run)[0], n_shells=order.n_shells),
        )


def _expansion(nodes: Mapping[str, orm.Data], run: int, temperatures: Sequence[float]) -> Outcome:
    volumes = []
    for i in range(len(temperatures)):
        _, series, report = _run(nodes, f"expansion_{i:02d}", run)
        if report["stopped_by"] != "finished":
            raise NotComputableError(f"the run at {temperatures[i]:g} K ended: {report['stopped_by']}")
        volume = series["volume_ang3_per_atom"]
        volumes.append(float(volume[len(volume) // 2 :].mean()))
    return dynamics.expansion_outcome(temperatures, volumes)


def _run(nodes: Mapping[str, orm.Data], name: str, run: int) -> tuple[Frames, dict[str, np.ndarray], dict[str, Any]]:
    """Frames, series and report of one run of an exploration."""
    dataset, series, summary = (nodes.get(f"{name}_{kind}") for kind in ("dataset", "series", "summary"))
    if summary is None:
        raise NotComputableError(_MISSING)
    report: dict[str, Any] = summary["runs"][run]
    if not isinstance(dataset, DatasetData) or series is None:
        raise NotComputableError(f"no frame was recorded: {report['stopped_by']} {report['message']}")
    mine = series.get_array("run").astype(int) == run
    columns = {key: series.get_array(key)[mine] for key in series.get_arraynames()}
    return dataset.frames().take(mine), columns, report
