"""``aiida-mlip``: help is instant, a broken command stays alone, an error is a message."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from aiida_mlip.cli import main as module
from aiida_mlip.cli.main import COMMANDS, main
from aiida_mlip.errors import InvalidInputError


def test_help_lists_every_command_and_imports_nothing_heavy():
    """A person who asks for help shall not wait for AiiDA and torch."""
    code = (
        "import sys\n"
        "from aiida_mlip.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print('HEAVY', sorted({'aiida', 'torch', 'numpy', 'ase'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    for name, (_, _, summary) in COMMANDS.items():
        assert name in done.stdout
        assert summary.split()[0] in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_loads_and_explains_itself(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_a_command_that_cannot_be_imported_leaves_the_others_alone(monkeypatch):
    monkeypatch.setitem(module.COMMANDS, "broken", ("aiida_mlip.cli.no_such_module", "broken", "Broken."))
    runner = CliRunner()
    result = runner.invoke(main, ["broken"])
    assert result.exit_code == 1
    assert "no_such_module" in result.output
    assert "Traceback" not in result.output
    assert runner.invoke(main, ["--help"]).exit_code == 0
    assert runner.invoke(main, ["setup", "--help"]).exit_code == 0


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(main, ["devlop"])
    assert result.exit_code == 2
    assert "devlop" in result.output


def test_our_errors_are_messages(monkeypatch):
    @click.command()
    def failing() -> None:
        raise InvalidInputError("cutoff -3 Å: a positive number is needed")

    monkeypatch.setattr(main, "get_command", lambda _ctx, _name: failing)
    result = CliRunner().invoke(main, ["failing"])
    assert result.exit_code == 1
    assert "Error: cutoff -3 Å: a positive number is needed" in result.output


def test_an_unknown_profile_is_named():
    result = CliRunner().invoke(main, ["-p", "no-such-profile", "doctor"])
    assert result.exit_code == 1
    assert "no-such-profile" in result.output
    assert "Traceback" not in result.output
