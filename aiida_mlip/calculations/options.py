"""Scheduler options as text of a job script: a line break in one of them would be a command of its own.

AiiDA quotes what it passes to programs, but writes accounts, partitions and the like as they are. Texts that are meant
to be commands (``prepend_text``, ``append_text``, ``custom_scheduler_commands``) are left alone: they are the
submitter's own, see docs/security.md. What a job is told to stash goes into commands unquoted, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiida import orm

from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.errors import MlipError, ProtocolError
from aiida_mlip.protocols.model import check_name

#: Options that stand in the script's head as they are.
_HEADER: Final[tuple[str, ...]] = ("account", "qos", "queue_name", "priority")
#: Files of the job folder.
_FILES: Final[tuple[str, ...]] = (
    "input_filename", "output_filename", "scheduler_stdout", "scheduler_stderr", "submit_script_filename"
)  # fmt: skip
_WORD: Final[re.Pattern[str]] = re.compile(r"[\w.:@%+,/=-]+")
_FILE: Final[re.Pattern[str]] = re.compile(r"[\w.+-]+")
#: A path, and one with the wildcards of a shell.
_PATH: Final[re.Pattern[str]] = re.compile(r"[\w.+@%:,=/-]+")
_PATTERN: Final[re.Pattern[str]] = re.compile(r"[\w.+@%:,=/*?\[\]-]+")
#: How files can be stashed: copied, or as an archive.
STASH_MODES: Final[tuple[str, ...]] = ("copy", "tar", "tar.bz2", "tar.gz", "tar.xz")
_VARIABLE: Final[re.Pattern[str]] = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def options_problem(options: Mapping[str, Any], where: str = "options") -> str | None:
    r"""Why these options cannot be written into a job script; None if they can.

    >>> options_problem({"queue_name": "debug"})
    >>> options_problem({"queue_name": "debug\nrm -rf ~"})
    "options.queue_name: 'debug\\nrm -rf ~' is no word of letters, digits and .:@%+,/=-"
    """
    for name in _HEADER:
        value = options.get(name)
        if value is not None and not _WORD.fullmatch(str(value)):
            return f"{where}.{name}: {_shown(value)} is no word of letters, digits and .:@%+,/=-"
    for name in _FILES:
        value = options.get(name)
        if value is not None and not (_FILE.fullmatch(str(value)) and str(value).strip(".")):
            return f"{where}.{name}: {_shown(value)} is no plain file name"
    variables = options.get("environment_variables") or {}
    for name, value in variables.items() if isinstance(variables, Mapping) else ():
        if not _VARIABLE.fullmatch(str(name)):
            return f"{where}.environment_variables: {_shown(name)} is no name of a variable"
        if "\x00" in str(value):
            return f"{where}.environment_variables.{name}: a null character"
    if variables and options.get("environment_variables_double_quotes"):
        return f"{where}.environment_variables_double_quotes: values would be commands of the shell"
    return _stash_problem(options["stash"], f"{where}.stash") if options.get("stash") is not None else None


def _stash_problem(stash: Any, where: str) -> str | None:  # Any: whatever was given
    """Why files cannot be stashed so."""
    if not isinstance(stash, Mapping):
        return f"{where}: {_shown(stash)} is no mapping with source_list, target_base and stash_mode"
    if missing := [name for name in ("source_list", "target_base", "stash_mode") if name not in stash]:
        return f"{where}.{missing[0]}: missing"
    sources, target, mode = stash["source_list"], stash["target_base"], stash["stash_mode"]
    if not isinstance(sources, list | tuple) or not sources:
        return f"{where}.source_list: {_shown(sources)} is no list of files of the work directory"
    for source in sources:
        if not (isinstance(source, str) and _PATTERN.fullmatch(source) and _stays_inside(source)):
            return f"{where}.source_list: {_shown(source)} is no file of the work directory, or pattern of such"
    if not (isinstance(target, str) and target.startswith("/") and _PATH.fullmatch(target) and ".." not in target):
        return f"{where}.target_base: {_shown(target)} is no absolute path of letters, digits and .+@%:,=/-"
    if mode not in STASH_MODES:
        return f"{where}.stash_mode: {_shown(mode)} is none of {', '.join(STASH_MODES)}"
    if mode != "copy" and not isinstance(stash.get("dereference"), bool):
        return f"{where}.dereference: {mode} needs true (links are followed) or false"
    return None


def _stays_inside(path: str) -> bool:
    return not path.startswith(("/", "-")) and ".." not in path.split("/")


def check_job_options(options: Mapping[str, Any], process: Any, where: str = "options") -> None:
    """Make sure that jobs of a process can have these options; what is not said stays as it is by default.

    :param process: class of the job. Any: aiida-core ships no type for process specs.
    :raises ProtocolError: an unknown option, or a value that cannot be; names the option.
    """
    port = process.spec().inputs["metadata"]["options"]
    for name in options:
        check_name("option", name, list(port), where=where)
    if problem := options_problem(options, where):
        raise ProtocolError(problem)
    given = port.pre_process({"resources": dict(ONE_CORE), **options})
    if (error := port.validate(given, tuple(where.split(".")))) is not None:
        raise ProtocolError(f"{error.port}: {error.message}")


def options_validator(process: Any) -> Callable[[Any, Any], str | None]:
    """Validator of a port with the options of the jobs of a process.

    :param process: class of the job.
    """

    def validate(value: Any, port: Any) -> str | None:
        if not isinstance(value, orm.Dict):
            return None  # left out, or refused by its type
        try:
            check_job_options(value.get_dict(), process, port.name)
        except MlipError as error:
            return str(error)
        return None

    return validate


def validate_options(options: Mapping[str, Any], _: Any) -> str | None:
    """The same as validator of a calculation's ``metadata.options``."""
    return options_problem(options, "metadata.options")


def _shown(value: object) -> str:
    return repr(str(value)[:60])
