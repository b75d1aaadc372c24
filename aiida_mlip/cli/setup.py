"""``aiida-mlip setup``: everything a first calculation on this machine needs, in one command that can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from aiida_mlip.cli import installation
from aiida_mlip.cli.installation import CODES, Action
from aiida_mlip.cli.mpi import matching_launcher

EPILOG = """\b
A computer of one's own, e.g. a cluster with Slurm, comes from two files and AiiDA's own commands:
\b
  verdi computer setup --config cluster.yml      verdi computer configure core.ssh_async cluster
\b
  # cluster.yml
  label: cluster
  hostname: login.example.org
  transport: core.ssh_async
  scheduler: core.slurm
  work_dir: /scratch/{username}/aiida
  mpirun_command: srun -n {tot_num_mpiprocs}
  mpiprocs_per_machine: 64
  default_memory_per_machine: 200000000      # kB
  shebang: '#!/bin/bash'
  prepend_text: export OMP_NUM_THREADS=1
  append_text: ''
\b
Then `aiida-mlip setup --computer cluster --pw /path/there/pw.x`, and `aiida-mlip doctor`.
"""


@click.command(epilog=EPILOG)
@click.option("--computer", default="localhost", show_default=True, help="Label of the computer that the codes run on.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Folder of the jobs, for a new computer.")
@click.option("--pw", type=click.Path(path_type=Path), help="pw.x; searched on PATH by default.")
@click.option("--mpirun", type=click.Path(path_type=Path), help="MPI launcher; by default the one that matches pw.x.")
@click.option(
    "--programs",
    type=click.Path(path_type=Path),
    help="Folder of nequip-train and the aiida-mlip programs; by default the running Python's.",
)
@click.option("--pseudos", type=click.Path(path_type=Path), help="Folder of UPF files.")
@click.option(
    "--select", multiple=True, metavar="PATTERN", help="Which of the UPF files, e.g. 'Si.pz-vbc.UPF'. Can be repeated."
)
@click.option("--family", default="mlip", show_default=True, help="Label of the pseudopotential family.")
@click.option("--cutoffs-ry", type=float, nargs=2, help="Wavefunction and density cutoff of the family (Ry).")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.pass_context
def setup(
    ctx: click.Context,
    computer: str,
    workdir: Path | None,
    pw: Path | None,
    mpirun: Path | None,
    programs: Path | None,
    pseudos: Path | None,
    select: tuple[str, ...],
    family: str,
    cutoffs_ry: tuple[float, float] | None,
    dry_run: bool,
) -> None:
    """Create, or check and correct, the profile, the computer, the codes and the pseudopotentials.

    Safe to repeat: what is there and right stays as it is.
    """
    chosen = installation.select_pseudos(pseudos, select) if pseudos is not None else None  # before anything is made
    actions: list[Action] = []

    def report(action: Action) -> None:
        actions.append(action)
        verb = action.change or "ok"
        if dry_run and action.change and not action.missing:
            verb = f"would be: {action.change}"
        click.echo(f"{action.kind:<14} {action.name:<32} {verb}  ({action.detail})")

    report(installation.ensure_profile((ctx.obj or {}).get("profile"), dry_run=dry_run))
    if dry_run and actions[0].change and "created" in actions[0].change:
        click.echo("The rest goes into the new profile: computer, codes, pseudopotential family.")
        return
    for action in ensure_codes(computer, workdir=workdir, pw=pw, mpirun=mpirun, programs=programs, dry_run=dry_run):
        report(action)
    if chosen is not None:
        report(installation.ensure_pseudo_family(family, chosen, cutoffs_ry=cutoffs_ry, dry_run=dry_run))
    if any(action.missing for action in actions):
        ctx.exit(1)
    if not dry_run:
        click.echo("Next: aiida-mlip doctor")


def ensure_codes(
    computer: str = "localhost",
    *,
    workdir: Path | None = None,
    pw: Path | None = None,
    mpirun: Path | None = None,
    programs: Path | None = None,
    dry_run: bool = False,
) -> Iterator[Action]:
    """Create or check a computer and the codes on it.

    :param pw: pw.x; searched on PATH by default.
    :param programs: folder of nequip-train and the ``aiida-mlip-*`` programs; by default the running Python's.
    :returns: one action per thing; a program that is not found is an action that is ``missing``.
    :raises InvalidInputError: see :func:`~aiida_mlip.cli.installation.ensure_computer` and ``ensure_code``.
    """
    given = {
        label: pw if label == "pw" else programs / program if programs else None
        for label, (program, _, _) in CODES.items()
    }
    here = computer == "localhost"
    found = {
        label: given[label] or (installation.find_program(program) if here else None)
        for label, (program, _, _) in CODES.items()
    }
    launcher = mpirun or (matching_launcher(found["pw"]) if here and found["pw"] is not None else None)
    yield installation.ensure_computer(computer, launcher=launcher, workdir=workdir, dry_run=dry_run)
    for label, (program, plugin, with_mpi) in CODES.items():
        executable = found[label]
        if executable is not None:
            yield installation.ensure_code(label, computer, executable, plugin, with_mpi=with_mpi, dry_run=dry_run)
        elif not here:
            option = "--pw /path/there/pw.x" if label == "pw" else "--programs /folder/there"
            yield Action("code", f"{label}@{computer}", None, f"left out: no {option} given")
        else:
            cure = (
                "apt-get install quantum-espresso" if label == "pw" else "pip install 'aiida-mlip-workchains[nequip]'"
            )
            yield Action("code", f"{label}@{computer}", "not found", f"{program}: {cure}", missing=True)
