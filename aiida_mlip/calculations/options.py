"""Scheduler options as text of a job script: a line break in one of them would be a command of its own.

AiiDA quotes what it passes to programs, but writes accounts, partitions and the like as they are. Texts that are meant
to be commands (``prepend_text``, ``append_text``, ``custom_scheduler_commands``) are left alone: they are the
submitter's own, see docs/security.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

#: Options that stand in the script's head as they are.
_HEADER: Final[tuple[str, ...]] = ("account", "qos", "queue_name", "priority")
#: Files of the job folder.
_FILES: Final[tuple[str, ...]] = (
    "input_filename", "output_filename", "scheduler_stdout", "scheduler_stderr", "submit_script_filename"
)  # fmt: skip
_WORD: Final[re.Pattern[str]] = re.compile(r"[\w.:@%+,/=-]+")
_FILE: Final[re.Pattern[str]] = re.compile(r"[\w.+-]+")
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
    return None


def validate_options(options: Mapping[str, Any], _: Any) -> str | None:
    """The same as validator of a calculation's ``metadata.options``."""
    return options_problem(options, "metadata.options")


def _shown(value: object) -> str:
    return repr(str(value)[:60])
