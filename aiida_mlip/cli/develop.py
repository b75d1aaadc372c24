"""``aiida-mlip develop``: the main job from one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiida_mlip.errors import FileFormatError, InvalidInputError

if TYPE_CHECKING:
    from aiida import orm

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.protocols.develop import ActiveLearningJob, DevelopSpec


@click.command()
@click.argument("job", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="JOB.yaml")
@click.option("--submit", "to_daemon", is_flag=True, help="Hand the job to the daemon instead of running it here.")
def develop(job: Path, to_daemon: bool) -> None:
    """Develop a potential as JOB.yaml says: generate frames, label them with DFT, train, report held-out errors.

    The keys of the file are documented in aiida_mlip.protocols.develop; examples/silicon.yaml is one.
    """
    from aiida.manage.configuration import load_profile

    load_profile()
    from aiida_mlip.cli.progress import run_with_progress, submit_to_daemon, watch
    from aiida_mlip.cli.results import print_results

    builder = _builder(read_job(job), job.parent)
    print_forecast(builder)
    if to_daemon:
        node = submit_to_daemon(builder)
        click.echo(f"submitted as {node.pk}; interrupting this leaves it alone: aiida-mlip status {node.pk} --watch")
        watch(node.pk)
    else:
        _, node = run_with_progress(builder)
    print_results(node)
    print_report(node, Path(f"{job.stem}-{node.pk}.html"))
    if not node.is_finished_ok:
        raise click.ClickException(f"the job ended with exit status {node.exit_status}: {node.exit_message}")


def print_forecast(builder: Any) -> None:  # Any: a ProcessBuilder
    """Say what the active learning of a job may take, before it starts."""
    from aiida_mlip.workchains.develop import DevelopWorkChain

    found = DevelopWorkChain.forecast_active_learning(builder)
    for line in [] if found is None else found.lines():
        click.echo(f"active learning: {line}")


def print_report(node: orm.ProcessNode, path: Path) -> None:
    """Write the report of a finished job, and say where it lies."""
    from aiida_mlip.report.write import write_report

    write_report(node, path)
    click.echo(f"report: {path.absolute()}")


def read_job(job: Path) -> DevelopSpec:
    """Job of a YAML file.

    :raises FileFormatError: not such a file.
    :raises ProtocolError: a key or value that a job does not have.
    """
    from aiida_mlip.io.documents import parse_yaml
    from aiida_mlip.protocols.develop import DevelopSpec
    from aiida_mlip.protocols.model import validate_spec

    return validate_spec(DevelopSpec, parse_yaml(job.read_bytes(), source=str(job)), where=str(job))


def _builder(spec: DevelopSpec, folder: Path) -> Any:  # Any: a ProcessBuilder
    from aiida_mlip.workchains.develop import DevelopWorkChain

    return DevelopWorkChain.get_builder_from_protocol(
        _dataset(spec.structures, folder),
        codes={name: load_code(name, label) for name, label in spec.codes.items()},
        fidelities=spec.fidelities,
        protocol=spec.protocol,
        overrides=spec.overrides,
        generate_inputs=_generate_inputs(spec.generate_inputs),
        active_learning=None if spec.active_learning is None else _active_learning(spec.active_learning, folder),
        validate=None
        if spec.validation is None
        else {
            "structures": _dataset(spec.validation.structures, folder),
            "settings": spec.validation.settings,
        },
        promote=spec.promote,
    )


def _dataset(files: list[str], folder: Path, repeat: tuple[int, int, int] = (1, 1, 1)) -> DatasetData:
    """Geometries of every image of the files."""
    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.kernel.frames import from_ase

    images = [image for name in files for image in _images(folder / name)]
    for image in images:
        image.calc = None
    return DatasetData.from_frames(from_ase([image * repeat for image in images], source=", ".join(files)))


def _active_learning(job: ActiveLearningJob, folder: Path) -> dict[str, Any]:
    """Files of the job as nodes."""
    from aiida import orm

    explorations = {
        name: {"structures": _dataset(given.structures, folder, given.repeat), "spec": given.spec}
        for name, given in job.explorations.items()
    }
    hosts = {name: orm.StructureData(ase=_images(folder / file)[0]) for name, file in job.hosts.items()}
    return {"explorations": explorations, "settings": job.settings, "hosts": hosts}


def _generate_inputs(given: dict[str, Any]) -> dict[str, Any]:
    """Nodes and values of the generation's ports."""
    from aiida_mlip.cli.nodes import load_typed
    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.data.potential import PotentialData

    result = dict(given)
    for name, kind, word in (("potential", PotentialData, "potential"), ("reference", DatasetData, "dataset")):
        if name in given:
            result[name] = load_typed(str(given[name]), kind, word)
    if "imports" in given:
        if not isinstance(given["imports"], dict):
            raise InvalidInputError(f"generate.imports: expected datasets by name, got {given['imports']!r}")
        result["imports"] = {
            name: load_typed(str(value), DatasetData, "dataset") for name, value in given["imports"].items()
        }
    return result


def _images(path: Path) -> list[Any]:  # Any: ase.Atoms
    from aiida_mlip.io.ase_files import read_images

    if not path.is_file():
        raise InvalidInputError(f"structures: there is no file {path}")
    try:
        return list(read_images(path))
    except (FileFormatError, IndexError) as error:
        raise InvalidInputError(f"structures: {error}") from error


def load_code(name: str, label: str) -> orm.AbstractCode:
    """Code of a job file.

    :param name: its key below ``codes``.
    :raises InvalidInputError: the profile has no code of that label.
    """
    from aiida import orm
    from aiida.common.exceptions import MultipleObjectsError, NotExistent

    try:
        return orm.load_code(label)
    except (NotExistent, MultipleObjectsError, ValueError) as error:
        known = _known_codes()
        raise InvalidInputError(f"codes.{name}: no code {label!r} in this profile; there are {known}") from error


def _known_codes() -> list[str]:
    from aiida import orm

    query = orm.QueryBuilder().append(orm.Computer, tag="computer", project="label")
    query.append(orm.AbstractCode, with_computer="computer", project="label")
    return sorted({f"{code}@{computer}" for computer, code in query.all()})
