"""What a generation would make and cost, as a table and one line per level of theory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiida_mlip.cli.generate import import_nodes, summary_table
from aiida_mlip.cli.nodes import load_profile
from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.data.label_costs import MeasuredLabels
    from aiida_mlip.kernel.frames import Frames
    from aiida_mlip.protocols.generate import AnyStep, GenerateJob
    from aiida_mlip.workchains.generate_preview import CostEstimate, Preview

_SQUARE = (
    "the square of the number of atoms (its cube per k-point, while the k-points of a fixed distance become fewer as "
    "the cell grows)"
)


def print_preview(job: GenerateJob, *, seeds: Frames | None, cost_from: str | None, console: Console) -> None:
    """Print what a job would make, and its cost.

    :param seeds: its seed frames.
    :param cost_from: estimate the cost from this dataset only.
    :raises InvalidInputError: unusable steps, or datasets that are not there.
    """
    from aiida_mlip.protocols.generate import parse_filters, parse_generate
    from aiida_mlip.workchains.generate_preview import preview

    steps, keep_seeds = parse_generate(job.spec)
    if job.imports:
        load_profile()
    imports = {name: node.frames() for name, node in import_nodes(job).items()} if job.imports else {}
    _check_imports(steps, imports)
    filters = parse_filters(job.spec)
    try:
        plan = preview(seeds, steps, seed=job.seed, keep_seeds=keep_seeds, filters=filters, imports=imports)
    except InvalidInputError as error:
        raise InvalidInputError(f"spec.{error}") from error
    console.print(summary_table(plan.summary))
    if any(step.get("estimated") for step in plan.summary["steps"]):
        console.print(
            "counts with 'about' are estimates: n_steps / record_every of each run, 10 frames of a relaxation, every "
            "step of aimd after the equilibration (decorrelated thinning leaves fewer); filters will drop some",
            soft_wrap=True,
        )
    for line in _still_needed(steps, job):
        console.print(line, soft_wrap=True, markup=False)
    species = set(seeds.species if seeds is not None else ())
    _print_costs(plan, job, species, cost_from, console)


def _check_imports(steps: Sequence[AnyStep], imports: Mapping[str, Frames]) -> None:
    from aiida_mlip.protocols.generate import stage_steps

    names = {step.job.dataset: index for index, step in stage_steps(steps).items() if step.job.dataset}
    for name, index in names.items():
        if name not in imports:
            raise InvalidInputError(f"spec.steps[{index}].dataset: give the dataset: --import {name}=PK, or `imports`")
    for name in imports:
        if name not in names:
            raise InvalidInputError(f"imports.{name}: no step imports it")


def _still_needed(steps: Sequence[AnyStep], job: GenerateJob) -> list[str]:
    """What a run of these steps needs and the job does not give."""
    from aiida_mlip.protocols.generate import stage_steps

    lines = []
    for index, step in stage_steps(steps).items():
        code, where = step.job.code, f"to run spec.steps[{index}] ({step.generator})"
        if code and code not in job.codes:
            lines.append(f"{where}: give a code, --code {code}=LABEL, or `codes`")
        if code == "pw" and not job.fidelities:
            lines.append(f"{where}: give its level of theory in `fidelities`")
        if code not in ("", "pw") and not step.job.has_forces and job.potential is None:
            lines.append(f"{where}: give `forces` in the step, or --potential")
    return lines


def print_cost_of(node: DatasetData, cost_from: str, *, console: Console) -> None:
    """Print what labels of a dataset would cost, from the measured labels of another."""
    from aiida_mlip.workchains.generate_preview import preview_of

    plan = preview_of(node.iter_shards())
    for labels in _measured(cost_from):
        _print_one(plan, labels.fidelity, labels, only=True, console=console)


def _print_costs(plan: Preview, job: GenerateJob, species: set[str], cost_from: str | None, console: Console) -> None:
    """One line per level of theory: those of the job, else all that were measured."""
    try:
        load_profile()
    except InvalidInputError as error:
        if cost_from is not None:
            raise
        console.print(f"DFT core-hours: not known without a profile ({error})", soft_wrap=True)
        return
    measured = _measured(cost_from)
    if job.fidelities:
        hashes = _hashes(job)
        for name in job.fidelities:
            found = [entry for entry in measured if entry.settings and entry.settings == hashes.get(name)]
            found = found or [entry for entry in measured if entry.fidelity == name and name not in hashes]
            labels = found[0] if found else None
            _print_one(plan, name, labels, only=len(job.fidelities) == 1, console=console)
        return
    fitting = [entry for entry in measured if not species or species <= set(entry.species)]
    for labels in fitting:
        _print_one(plan, labels.fidelity, labels, only=len(fitting) == 1, console=console)
    if not fitting:
        text = "no measured label in this profile yet" if not measured else "no measured label of these elements yet"
        console.print(f"DFT core-hours: {text}; state `fidelities` to name the levels of theory", soft_wrap=True)


def _measured(cost_from: str | None) -> list[MeasuredLabels]:
    from aiida_mlip.cli.dataset import load_dataset
    from aiida_mlip.data.label_costs import measured_labels

    if cost_from is None:
        return measured_labels()
    node = load_dataset(cost_from)
    found = measured_labels([node])
    if not found:
        raise InvalidInputError(f"--cost-from: dataset {cost_from} holds no measured costs")
    return found


def _hashes(job: GenerateJob) -> dict[str, str]:
    """Settings hash of each level of theory of the job, as far as its pseudopotentials are in the profile."""
    from aiida_mlip.workchains.label_inputs import settings_hashes

    result: dict[str, str] = {}
    for name, level in job.fidelities.items():
        try:
            result |= settings_hashes({name: level})
        except InvalidInputError:
            continue
    return result


def _print_one(plan: Preview, fidelity: str, labels: MeasuredLabels | None, *, only: bool, console: Console) -> None:
    from aiida_mlip.workchains.generate_preview import estimate_cost

    estimate = estimate_cost(plan, fidelity, labels, only=only)
    console.print(_line(estimate), soft_wrap=True, markup=False)


def _line(estimate: CostEstimate) -> str:
    labels = estimate.labels
    work = [f"labels of {estimate.n_frames} frames"]
    if estimate.n_pw_steps:
        work.append(f"{estimate.n_pw_steps} steps of pw.x in aimd")
    if labels is None:
        return f"DFT at {estimate.fidelity}: {' and '.join(work)}; no measured label of this fidelity yet"
    work[0] += f" about {estimate.label_hours:.3g} core-hours"
    if estimate.n_pw_steps:
        work[1] += f" about {estimate.pw_hours:.3g}"
    model = estimate.periodic or estimate.isolated
    if model is None:
        raise InvalidInputError(f"fidelity {estimate.fidelity}: its measured labels have no cost")
    low, high = model.sizes
    growth = f"the power {model.power:.2f} of the number of atoms, fitted to them" if model.fitted else _SQUARE
    return (
        f"DFT at {estimate.fidelity}: {', '.join(work)}; from {len(labels.core_seconds)} measured labels of dataset "
        f"{labels.pk} ({low}{f' to {high}' if high > low else ''} atoms), taken to grow with {growth}"
    )
