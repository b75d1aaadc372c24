"""Molecular dynamics with pw.x in four calculations: prepare runs, continue one, collect one, assemble all.

A *run* is a Dict: its rung of the ladder, the level of theory with its settings hash, and the settings of the dynamics.
It consists of one or more *segments*, jobs of pw.x, each of which starts where the one before broke off.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.calculations.functions.aimd_report import run_report, summarise
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.md_runs import cores_of, has_too_few_bands, masses_of, read_segment
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.autocorrelation import decorrelated_rows
from aiida_mlip.kernel.cells import has_vacuum
from aiida_mlip.kernel.dynamics import maxwell_boltzmann, temperature
from aiida_mlip.kernel.frames import Failure, Frames, from_arrays, id_bytes, id_hex
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.kernel.kpoints import mesh_from_distance
from aiida_mlip.kernel.ladder import Rung, describe, ladder, starting_frame
from aiida_mlip.kernel.trajectory import (
    Segment,
    Trajectory,
    analyse,
    failed_geometries,
    join,
    resume_velocities,
)
from aiida_mlip.kernel.units import BOHR, RYDBERG_TIME
from aiida_mlip.protocols.aimd import AimdSettings, parse_aimd
from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities, settings_hash
from aiida_mlip.protocols.model import deep_merge

GENERATOR = "aimd"
#: Å/fs per Rydberg atomic unit of velocity.
_VELOCITY = BOHR / RYDBERG_TIME
#: Mixing of the density after an scf that did not converge, relative to before.
_LESS_MIXING = 0.5
#: Bands added at least where there were too few.
_MORE_BANDS = 4


@calcfunction
def prepare_aimd(
    structures: DatasetData, fidelities: orm.Dict, settings: orm.Dict, seed: orm.Int, **pseudos: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Make the runs of a ladder, and the inputs of pw.x for the first segment of each.

    :param structures: seed frames.
    :param fidelities: one level of theory of the engine ``qe``, by name.
    :param settings: see :mod:`aiida_mlip.protocols.aimd`.
    :param seed: of the starting velocities.
    :param pseudos: all pseudopotentials of the family, by symbol.
    :returns: ``run_<i>``, ``structure_<i>``, ``parameters_<i>``, ``settings_<i>`` (velocities), ``kpoints_<mesh>``,
        ``max_iterations`` and ``clean_workdir`` of :class:`PwBaseWorkChain`; or exit code 310 with the reason.
    """
    try:
        aimd = parse_aimd(settings.get_dict())
        ((name, spec),) = parse_fidelities(fidelities.get_dict()).items()
        if not isinstance(spec, QeFidelity):
            return ExitCode(310, f"fidelities.{name}: molecular dynamics runs with engine qe, got {spec.engine!r}")
        level = {
            "fidelity": name,
            "spec": spec.model_dump(mode="json", exclude_none=True),
            "settings": settings_hash(spec, {symbol: node.md5 for symbol, node in pseudos.items()}),
            "aimd": aimd.model_dump(mode="json"),
        }
        seeds = structures.frames()
        rungs = ladder(seeds, aimd.temperatures_kelvin, aimd.volume_scales, aimd.strains, aimd.replicas)
        result: dict[str, orm.Data] = {"max_iterations": orm.Int(1), "clean_workdir": orm.Bool(True)}
        for i, rung in enumerate(rungs):
            result |= _first_segment(i, rung, seeds, spec, aimd, level, seed.value)
    except MlipError as error:
        return ExitCode(310, str(error))
    return result


@calcfunction
def continue_aimd(
    run: orm.Dict,
    structure: orm.StructureData,
    parameters: orm.Dict,
    settings: orm.Dict,
    retrieved: orm.FolderData | None = None,
) -> dict[str, orm.Data]:
    """Make the inputs of pw.x for the next segment of a run that broke off.

    It starts at the last labelled step, positions and velocities, which is computed once more; after an scf that did
    not converge, with less mixing; after one with too few bands, with more.

    :param run: of :func:`prepare_aimd`.
    :param structure: of the segment that broke off, like ``parameters`` and ``settings``.
    :param retrieved: files of its job, if there are any.
    :returns: ``structure``, ``parameters``, ``settings``.
    """
    aimd = parse_aimd(run.get_dict()["aimd"])
    namelists = copy.deepcopy(parameters.get_dict())
    segment = read_segment(structure, namelists, retrieved)
    velocities = resume_velocities(segment, masses_of(structure), aimd.timestep_fs)
    namelists["CONTROL"]["nstep"] -= segment.resume_step
    if segment.scf_failed:
        namelists["ELECTRONS"]["mixing_beta"] *= _LESS_MIXING
    if retrieved is not None and has_too_few_bands(retrieved.creator):
        bands = int(retrieved.creator.outputs.output_parameters["number_of_bands"])
        namelists["SYSTEM"]["nbnd"] = bands + max(bands // 5, _MORE_BANDS)
    moved = structure.clone()
    lines = settings.get_dict()
    if velocities is not None:
        moved.reset_sites_positions(segment.positions[segment.resume_step].tolist())
        lines["ATOMIC_VELOCITIES"] = (velocities / _VELOCITY).tolist()
    return {"structure": moved, "parameters": orm.Dict(namelists), "settings": orm.Dict(lines)}


@calcfunction
def collect_aimd(run: orm.Dict, **segments: orm.Data) -> dict[str, orm.Data]:
    """Turn the segments of a run into labelled, decorrelated frames, the whole trajectory, and a report.

    :param run: of :func:`prepare_aimd`.
    :param segments: ``structure_<s>``, ``parameters_<s>`` and, if its job left files, ``retrieved_<s>`` of segment s.
    :returns: ``report``, and as far as there are any, ``dataset`` and ``trajectory``.
    """
    content = run.get_dict()
    aimd = parse_aimd(content["aimd"])
    count = sum(key.startswith("structure_") for key in segments)
    retrieved = [segments.get(f"retrieved_{s:03d}") for s in range(count)]
    parts = [
        read_segment(segments[f"structure_{s:03d}"], segments[f"parameters_{s:03d}"].get_dict(), retrieved[s])
        for s in range(count)
    ]
    trajectory = join(parts)
    equilibration = aimd.equilibration_steps
    analysis = analyse(trajectory, timestep=aimd.timestep_fs, equilibration=equilibration)
    stride = analysis.stride if aimd.thinning.mode == "decorrelated" else 1
    kept = decorrelated_rows(
        len(trajectory), max(stride, aimd.thinning.every), start=equilibration, most=aimd.thinning.max_frames
    )
    result: dict[str, orm.Data] = {}
    frames = _frames(content, segments["structure_000"], parts, retrieved, trajectory, kept)
    if len(frames):
        result["dataset"] = DatasetData.from_frames(frames, settings={content["fidelity"]: content["settings"]})
    if len(trajectory):
        result["trajectory"] = _trajectory_node(segments["structure_000"], trajectory, aimd)
    report = run_report(content, aimd, parts, retrieved, segments, trajectory, analysis, kept)
    result["report"] = orm.Dict(report)
    return result


@calcfunction
def assemble_aimd(**parts: orm.Data) -> dict[str, orm.Data]:
    """Merge the frames of all runs and sum up their reports.

    :param parts: ``dataset_<i>`` (of the runs that gave frames) and ``report_<i>``.
    :returns: ``summary``, and ``dataset`` if there is one frame.
    """
    datasets = [parts[key] for key in sorted(parts) if key.startswith("dataset_")]
    reports = [parts[key].get_dict() for key in sorted(parts) if key.startswith("report_")]
    result: dict[str, orm.Data] = {}
    n_frames = 0
    if datasets:
        result["dataset"] = merged = DatasetData.merge(datasets)
        n_frames = sum(entry["labelled"] for entry in merged.base.attributes.get("fidelities").values())
    result["summary"] = orm.Dict(summarise(reports, n_frames=n_frames))
    return result


def kpoints_label(structure: orm.StructureData, spec: QeFidelity) -> str:
    """Output label of the mesh of a structure in :func:`prepare_aimd`; it depends on the cell alone."""
    return "kpoints_" + "_".join(str(n) for n in _mesh(structure, spec))


def _mesh(structure: orm.StructureData, spec: QeFidelity) -> tuple[int, int, int]:
    return mesh_from_distance(np.array(structure.cell), np.array(structure.pbc), spec.kpoints_distance_inv_ang)


def _first_segment(
    index: int, rung: Rung, seeds: Frames, spec: QeFidelity, aimd: AimdSettings, level: Mapping[str, Any], seed: int
) -> dict[str, orm.Data]:
    """Nodes of one run, see :func:`prepare_aimd`."""
    frame = starting_frame(seeds, rung, supercell=aimd.supercell, padding=spec.padding_ang)
    check_geometries(frame, source=f"run {index} ({describe(rung)})")
    atoms = frame.to_ase(0)
    structure = orm.StructureData(cell=frame.cell[0].tolist(), pbc=frame.pbc[0].tolist())
    for symbol, position in zip(atoms.get_chemical_symbols(), frame.positions, strict=True):
        structure.append_atom(symbols=symbol, position=position.tolist())
    velocities = maxwell_boltzmann(masses_of(structure), rung.kelvin * aimd.initial_temperature_factor, rung.rng(seed))
    symbols = sorted(structure.get_symbols_set())
    namelists = deep_merge(spec.namelists(symbols, frame.n_atoms), aimd.namelists(rung.kelvin, aimd.n_steps))
    mesh = _mesh(structure, spec)
    kpoints = orm.KpointsData()
    kpoints.set_kpoints_mesh(mesh)
    group = id_hex(rung.key(seed)[None])[0]
    return {
        f"run_{index:04d}": orm.Dict({**level, "index": index, "rung": asdict(rung), "group": group}),
        f"structure_{index:04d}": structure,
        f"parameters_{index:04d}": orm.Dict(namelists),
        f"settings_{index:04d}": orm.Dict({"ATOMIC_VELOCITIES": (velocities / _VELOCITY).tolist()}),
        kpoints_label(structure, spec): kpoints,
    }


def _frames(
    content: Mapping[str, Any],
    structure: orm.StructureData,
    segments: list[Segment],
    retrieved: list[orm.FolderData | None],
    trajectory: Trajectory,
    kept: np.ndarray,
) -> Frames:
    """Rows of the kept steps, then of the geometries whose scf failed."""
    spec = parse_fidelities({content["fidelity"]: content["spec"]})[content["fidelity"]]
    failed = failed_geometries(segments, trajectory)
    n_atoms = len(structure.sites)
    n, m = len(kept) + len(failed), len(kept)
    uuids = [node.creator.uuid if node is not None else "0" * 32 for node in retrieved]
    origin = [*(int(s) for s in trajectory.segment[kept]), *(s for s, _ in failed)]
    positions = np.array([*trajectory.positions[kept], *(x for _, x in failed)]).reshape(n, n_atoms, 3)
    costs = [_cost(node, part) for node, part in zip(retrieved, segments, strict=True)]
    forces = np.full((n, n_atoms, 3), np.nan)
    stress = np.full((n, 3, 3), np.nan)
    cell = np.array(structure.cell)
    if "forces" in spec.labels:
        forces[:m] = trajectory.forces[kept]
    if "stress" in spec.labels and all(structure.pbc):
        solid = np.array([not has_vacuum(x, cell) for x in positions[:m]], dtype=bool)
        stress[:m][solid] = trajectory.stress[kept][solid]
    ids = id_bytes([uuids[s] for s in origin])
    return from_arrays(
        natoms=np.full(n, n_atoms),
        numbers=np.tile(structure.get_ase().numbers, n),
        positions=positions.reshape(-1, 3),
        cell=np.tile(cell, (n, 1, 1)),
        pbc=np.tile(np.array(structure.pbc), (n, 1)),
        energy=np.concatenate([trajectory.energy[kept], np.full(n - m, np.nan)]),
        forces=forces.reshape(-1, 3),
        stress=stress,
        fidelity=np.zeros(n),
        generator=np.zeros(n),
        failure=np.array([0] * m + [int(Failure.SCF_NOT_CONVERGED)] * (n - m)),
        cost=np.array([costs[s] for s in origin]),
        parent_id=np.tile(id_bytes([content["rung"]["seed_id"]]), (n, 1)),
        group_id=np.tile(id_bytes([content["group"]]), (n, 1)),
        geometry_uuid=ids,
        label_uuid=ids,
        label_row=np.concatenate([trajectory.row[kept], [len(segments[s]) for s, _ in failed]]),
        fidelities=(content["fidelity"],),
        generators=(GENERATOR,),
    )


def _cost(retrieved: orm.FolderData | None, segment: Segment) -> float:
    """Core-seconds of one step of a segment."""
    if retrieved is None or not len(segment):
        return float("nan")
    return segment.seconds / len(segment) * cores_of(retrieved.creator)


def _trajectory_node(structure: orm.StructureData, trajectory: Trajectory, aimd: AimdSettings) -> orm.TrajectoryData:
    """All labelled steps: positions and cells (Å), times (ps), energies (eV), forces (eV/Å), stress (eV/Å³)."""
    n = len(trajectory)
    node = orm.TrajectoryData()
    node.set_trajectory(
        symbols=[site.kind_name for site in structure.sites],
        positions=trajectory.positions,
        stepids=np.arange(n),
        cells=np.tile(np.array(structure.cell), (n, 1, 1)),
        times=np.arange(n) * aimd.timestep_fs * 1e-3,
        pbc=structure.pbc,
    )
    arrays = {
        "energy": trajectory.energy,
        "kinetic_energy": trajectory.kinetic,
        "temperature": temperature(trajectory.kinetic, len(structure.sites)),
        "forces": trajectory.forces,
        "stress": trajectory.stress,
        "segment": trajectory.segment,
        "row": trajectory.row,
    }
    for name, value in arrays.items():
        node.set_array(name, value)
    return node
