"""The reference, written from the code: ports and exit codes of processes, keys of specifications, help of programs.

Run by Sphinx at every build (``make docs``): it cannot be out of date. ``docs/reference_pages.py FOLDER`` writes
the pages alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import yaml

PACKAGE = "aiida_mlip"
#: Units by the end of a key, the longest first.
UNITS = {
    "_ev_per_atom_per_ps": "eV/atom/ps",
    "_kelvin": "K",
    "_ev_per_atom": "eV/atom",
    "_ev_per_ang": "eV/Å",
    "_k_per_ps": "K/ps",
    "_ang3_per_atom": "Å³/atom",
    "_per_atom": "per atom",
    "_core_hours": "core-hours",
    "_per_fs": "1/fs",
    "_mev": "meV",
    "_gpa": "GPa",
    "_thz": "THz",
    "_ang": "Å",
    "_deg": "°",
    "_ev": "eV",
    "_ry": "Ry",
    "_fs": "fs",
    "_ps": "ps",
    "_kb": "kB",
    "_k": "K",
    "_s": "s",
}
PAGES = {
    "workchains": "WorkChains",
    "calculations": "CalcJobs",
    "specifications": "Keys of specifications",
    "protocols": "Values of the protocols",
    "generators": "Generators",
    "programs": "Programs",
}


def write(folder: Path) -> None:
    """Write all pages into a folder; a page whose text has not changed is left alone."""
    folder.mkdir(exist_ok=True)
    makers = {
        "workchains": lambda: processes("aiida.workflows"),
        "calculations": lambda: processes("aiida.calculations"),
        "specifications": specifications,
        "protocols": protocols,
        "generators": generators,
        "programs": programs,
    }
    for name, title in PAGES.items():
        _replace(folder / f"{name}.md", "\n".join([f"# {title}", "", *makers[name](), ""]))
    toc = "\n".join(["# Reference", "", "Written from the code at every build.", "", "```{toctree}", *PAGES, "```", ""])
    _replace(folder / "index.md", toc)


def _replace(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# -- processes ---------------------------------------------------------------------------------------------------------


def processes(group: str) -> Iterator[str]:
    """Ports, steps and exit codes of every process of ours in a group of entry points."""
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        if not entry.name.startswith(f"{PACKAGE}."):
            continue
        process = entry.load()
        spec = process.spec()
        yield from [f"## {entry.name}", "", f"`{process.__module__}.{process.__name__}`", "", _text(process), ""]
        if (outline := getattr(spec, "get_outline", None)) is not None:
            yield from ["### Steps", "", "```text", _steps(outline().get_description()), "```", ""]
        yield from ["### Inputs", "", *_ports(spec.inputs), "", "### Outputs", "", *_ports(spec.outputs), ""]
        codes = sorted(spec.exit_codes.values(), key=lambda code: code.status)
        yield from ["### Exit codes", "", "| status | label | message |", "|---|---|---|"]
        yield from [f"| {code.status} | `{code_label(spec, code)}` | {_cell(code.message)} |" for code in codes]
        yield ""


def code_label(spec: Any, code: Any) -> str:
    """Name of an exit code."""
    return next(name for name, other in spec.exit_codes.items() if other == code)


def _steps(description: Any, depth: int = 0) -> str:
    """Outline of a workchain as indented lines."""
    if isinstance(description, str):
        return "  " * depth + description
    if isinstance(description, Mapping):
        return "\n".join("  " * depth + f"{key}\n{_steps(value, depth + 1)}" for key, value in description.items())
    return "\n".join(_steps(item, depth) for item in description)


def _ports(namespace: Any) -> Iterator[str]:
    rows = list(_port_rows(namespace, ""))
    if not rows:
        yield "None."
        return
    yield from ["| port | type | required | default | meaning |", "|---|---|---|---|---|"]
    yield from rows


def _port_rows(namespace: Any, prefix: str) -> Iterator[str]:
    for name, port in sorted(namespace.items()):
        if name == "metadata" or (not prefix and name == "monitors"):
            continue  # of every process: see the documentation of AiiDA
        path = f"{prefix}{name}"
        required = "yes" if port.required else ""
        if isinstance(port, Mapping):
            kinds = _kinds(port.valid_type) if port.dynamic else ""
            note = f"any names{', each ' + kinds if kinds else ''}. " if port.dynamic else ""
            yield f"| `{path}.` | namespace | {required} | | {note}{_cell(port.help)} |"
            yield from _port_rows(port, f"{path}.")
        else:
            default = _cell(_default(port))
            yield f"| `{path}` | {_kinds(port.valid_type)} | {required} | {default} | {_cell(port.help)} |"


def _kinds(kinds: Any) -> str:
    chosen = kinds if isinstance(kinds, tuple) else (kinds,)
    return ", ".join(kind.__name__ for kind in chosen if kind is not None and kind is not type(None))


def _default(port: Any) -> str:
    if not getattr(port, "has_default", bool)():  # outputs have none
        return ""
    value = port.default
    if callable(value):
        with contextlib.suppress(Exception):  # a default that needs a profile
            value = value()
    value = getattr(value, "value", value)
    return "computed" if callable(value) or "uuid" in repr(value) else f"`{value!r}`"


# -- specifications ----------------------------------------------------------------------------------------------------


def specifications() -> Iterator[str]:
    """Every key of every model of a specification."""
    yield "What a person may write into `Dict` inputs and YAML files; units are in the keys. A key that is not here is"
    yield "refused, and the nearest one is named."
    yield ""
    for model in sorted(_models(), key=lambda model: (model.__module__, model.__name__)):
        yield from [f"## {model.__name__}", "", f"`{model.__module__}`", "", _text(model), ""]
        fields = model.model_fields.items()
        yield from _keys(model, [(field.alias or name, _kind(field), _default_of(field)) for name, field in fields])


def _keys(model: Any, rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Table of keys: name, type, default; what they mean is in the docstring."""
    meanings = _parameters(model)
    yield from ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for name, kind, default in rows:
        yield f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_unit(name)} | {_cell(meanings.get(name, ''))} |"
    yield ""


def _default_of(field: Any) -> str:
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
    if hasattr(value, "model_dump"):
        return "its own"
    return "" if value is None else f"`{value!r}`"


def _models() -> Iterator[type]:
    from pydantic import BaseModel

    seen = set()
    for folder in ("protocols", "io"):
        package = importlib.import_module(f"{PACKAGE}.{folder}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for value in vars(module).values():
                ours = inspect.isclass(value) and issubclass(value, BaseModel) and value.__module__ == module.__name__
                if ours and value.__name__ != "SpecModel" and not value.__name__.startswith("_") and value not in seen:
                    seen.add(value)
                    yield value


def _parameters(thing: Any) -> dict[str, str]:
    """What the docstring says of each parameter."""
    found = re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", inspect.getdoc(thing) or "", re.MULTILINE | re.DOTALL)
    return {name: _markdown(" ".join(text.split())) for name, text in found}


def _kind(field: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limits = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return " ".join([f"`{_type(field.annotation)}`", *limits])


def _type(annotation: Any) -> str:
    """Type as it is written, without modules and limits."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(argument) for argument in arguments)
    if origin is typing.Literal:
        return " | ".join(repr(argument) for argument in arguments)
    if arguments:
        inside = ", ".join("..." if argument is ... else _type(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    return getattr(annotation, "__name__", str(annotation))


def _unit(key: str) -> str:
    return next((unit for end, unit in UNITS.items() if key.endswith(end)), "")


def protocols() -> Iterator[str]:
    """The tables of ``protocols/*.yaml``."""
    yield "What is taken where a key is left out: the values of the protocol `fast`, `moderate` (default) or `precise`."
    yield ""
    for path in sorted(files(f"{PACKAGE}.protocols").iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".yaml"):
            continue
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = list(table["protocols"])
        base = dict(_flat(table.get("base") or {}))
        columns = {name: base | dict(_flat(table["protocols"][name] or {})) for name in names}
        yield from [f"## {path.name.removesuffix('.yaml')}", ""]
        yield from [f"| key | {' | '.join(names)} | unit |", "|---" * (len(names) + 2) + "|"]
        for key in dict.fromkeys(key for column in columns.values() for key in column):
            values = " | ".join(f"`{columns[name][key]}`" if key in columns[name] else "" for name in names)
            yield f"| `{key}` | {values} | {_unit(key)} |"
        yield ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def generators() -> Iterator[str]:
    """Every generator, its parameters and an example."""
    from aiida_mlip.kernel.generators import GENERATORS

    for name, generator in sorted(GENERATORS.items()):
        fields = dataclasses.fields(generator.parameters)
        yield from [f"## {name}", "", _text(generator.parameters), ""]
        yield from _keys(generator.parameters, [(key.name, f"`{key.type}`", _dataclass_default(key)) for key in fields])
        example = yaml.safe_dump({"generator": name, **generator.example}, sort_keys=False, default_flow_style=None)
        yield from ["```yaml", example.strip(), "```", ""]


def _dataclass_default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "*required*" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()!r}`"


# -- programs ----------------------------------------------------------------------------------------------------------


def programs() -> Iterator[str]:
    """What ``--help`` says, of the commands of ``aiida-mlip`` and of the programs on compute nodes."""
    from aiida_mlip.cli.main import main

    yield from _commands(main, click.Context(main, info_name="aiida-mlip"))
    for entry in sorted(entry_points(group="console_scripts"), key=lambda entry: entry.name):
        if entry.name.startswith("aiida-mlip-"):
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                entry.load()(["--help"])
            yield from [f"## {entry.name}", "", "```text", text.getvalue().strip(), "```", ""]


def _commands(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from [f"## {context.command_path}", "", "```text", command.get_help(context).strip(), "```", ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _commands(child, click.Context(child, info_name=name, parent=context))


# -- text --------------------------------------------------------------------------------------------------------------


def _text(thing: Any) -> str:
    """Docstring without its parameters, as Markdown."""
    return _markdown(
        re.split(r"^:param |^:raises |^:returns:", inspect.getdoc(thing) or "", flags=re.MULTILINE)[0].strip()
    )


def _markdown(text: str) -> str:
    """Roles and literals of reStructuredText as code."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _cell(value: Any) -> str:
    """Text of one cell of a table."""
    text = _markdown(" ".join(str(value or "").split()))
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def main(arguments: Iterable[str]) -> None:
    """Write the pages into the folder that is named."""
    (folder,) = arguments
    write(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
