"""What the documentation says can be typed: commands and options exist, job files are read, Python is run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from aiida_mlip.cli.main import main
from aiida_mlip.protocols.develop import DevelopSpec
from aiida_mlip.protocols.fidelity import parse_fidelities
from aiida_mlip.protocols.generate import parse_generate
from aiida_mlip.protocols.model import validate_spec
from aiida_mlip.protocols.targets import Targets
from aiida_mlip.protocols.train import train_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- executed -->\s*)?```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page: Path, *languages: str, executed: bool = False) -> list[str]:
    """Texts of the code blocks of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for mark, language, text in found if language in languages and (mark or not executed)]


COMMANDS = [
    pytest.param(line.split("#")[0].strip(), id=f"{page.stem}: {line.split('#')[0].strip()}")
    for page in PAGES
    for block in blocks(page, "console", "bash")
    for line in block.splitlines()
    if line.startswith("aiida-mlip ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_options_exist(line: str) -> None:
    command: click.Command = main
    context = click.Context(main, info_name="aiida-mlip")
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group) and not (command.invoke_without_command and words[:1] < ["a"]):
        name = words.pop(0)  # but a group that does something by itself, alone or with options
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    known = {option for parameter in command.params for option in parameter.opts}
    used = {word.split("=")[0] for word in words if word.startswith("-")}
    assert used <= known, f"unknown options {used - known}"


def test_commands_are_found_at_all() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("page", [page for page in PAGES if "\nfidelities:" in page.read_text(encoding="utf-8")])
def test_job_files_are_read(page: Path) -> None:
    jobs = [yaml.safe_load(text) for text in blocks(page, "yaml") if "\nfidelities:" in text]
    assert jobs
    for job in jobs:
        spec = validate_spec(DevelopSpec, job, where=page.name)
        assert parse_fidelities(spec.fidelities, protocol=spec.protocol)
        steps, _ = parse_generate({key: value for key, value in spec.generate.items() if key != "seed"})
        assert len(steps) == len(spec.generate["steps"])
        assert train_settings({"protocol": spec.protocol, **spec.train}).batch_size > 0
        validate_spec(Targets, spec.targets, where="targets")


PYTHON = [pytest.param(text, id=f"{page.stem}-{i}") for page in PAGES for i, text in enumerate(blocks(page, "python"))]


@pytest.mark.parametrize("text", PYTHON)
def test_python_is_python_and_imports_what_exists(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("aiida_mlip"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_python_of_the_tutorial_runs(toy_package: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "tutorial.md", "python", executed=True)
    names = {"package": toy_package}
    exec(compile(text, "tutorial.md", "exec"), names)  # noqa: S102 - the documentation is ours
    assert abs(names["energy"]) > 0
    assert names["forces"].shape == (8, 3)


def test_the_reference_has_every_process_key_and_command(tmp_path: Path) -> None:
    """Written from the code; a process, a key or a command that is missing there shows here."""
    source = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
    pages = importlib.util.module_from_spec(source)
    source.loader.exec_module(pages)
    pages.write(tmp_path)
    text = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md")}
    assert "| `dataset` | DatasetData | yes |" in text["workchains"]
    assert "| 502 | `ERROR_" in text["workchains"]
    assert "`max_epochs` | `int` ≥ 1 | *required*" in text["specifications"]
    assert "| `model.cutoff_ang` |" in text["protocols"]
    assert text["protocols"].count("| Å |") > 1
    for name in main.list_commands(click.Context(main)):
        assert f"## aiida-mlip {name}\n" in text["programs"]
    for entry in importlib.metadata.entry_points(group="aiida.workflows"):
        if entry.name.startswith("aiida_mlip."):
            assert f"## {entry.name}\n" in text["workchains"]
    for page in text.values():  # every row of a table has as many cells as its head
        for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.strip().splitlines()}) == 1, table[:300]
