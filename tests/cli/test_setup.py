"""``aiida-mlip setup``: what it makes, that it can be repeated, what it refuses before anything is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aiida_mlip.cli import installation, mpi
from aiida_mlip.errors import InvalidInputError

MPIRUN = "/usr/bin/mpirun.openmpi"
PSEUDOS = Path("/usr/share/espresso/pseudo")


def _changes(output: str) -> dict[str, str]:
    """Label -> what happened to it."""
    lines = [line.split(maxsplit=2) for line in output.replace("pseudo family", "family").splitlines()]
    return {words[1]: words[2] for words in lines if len(words) == 3}


@pytest.mark.slow
def test_setup_makes_everything_and_repeating_changes_nothing(bare_machine):
    first = bare_machine.setup("--family", "lda")
    assert first.returncode == 0, first.stdout + first.stderr
    made = _changes(first.stdout)
    labels = ("mine", "localhost", "pw@localhost", "nequip-train@localhost", "aiida-mlip-label@localhost", "lda")
    assert all(made[label].startswith("created") for label in labels), first.stdout
    second = bare_machine.setup("--family", "lda")
    assert second.returncode == 0
    assert all(change.startswith("ok") for change in _changes(second.stdout).values() if "(" in change), second.stdout

    said = bare_machine.shell(
        "from aiida import orm\n"
        "from aiida.manage import get_manager\n"
        "from aiida_mlip.cli.installation import database_of, journal_mode\n"
        "computer = orm.load_computer('localhost')\n"
        "print(journal_mode(database_of(get_manager().get_profile())))\n"
        "print(' '.join(computer.get_mpirun_command()), computer.get_configuration()['use_login_shell'])\n"
        "print(computer.get_prepend_text())\n"
        "print(orm.QueryBuilder().append(orm.InstalledCode).count())\n"
        "print(get_manager().get_profile().process_control_backend)\n"
    ).splitlines()
    assert said[0] == "wal"
    assert said[1] == f"{MPIRUN} -np {{tot_num_mpiprocs}} False"
    assert "OMP_NUM_THREADS=1" in said[2]
    assert "binding_policy=none" in said[2]
    assert said[3:] == ["7", "core.zeromq"]

    spec = bare_machine.folder / "spec.yaml"
    spec.write_text("steps: [{generator: dimer, species: [Si]}]")
    done = bare_machine.call("aiida-mlip", "generate", "--spec", str(spec), "--submit")
    assert done.returncode == 1
    assert "start the daemon first: verdi daemon start" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_dry_run_makes_nothing(bare_machine):
    done = bare_machine.setup("--dry-run")
    assert done.returncode == 0
    assert "would be: created" in done.stdout
    assert "mine" not in bare_machine.call("verdi", "profile", "list").stdout
    assert not (bare_machine.folder / "work").exists()


@pytest.mark.slow
def test_a_program_that_moved_gets_a_new_code_and_the_old_one_keeps_its_history(machine, tmp_path):
    moved = tmp_path / "elsewhere" / "pw.x"
    moved.parent.mkdir()
    shutil.copy(installation.find_program("pw.x"), moved)
    done = machine.setup("--pw", str(moved))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replaces /usr/bin/pw.x" in done.stdout
    said = machine.shell(
        "from aiida import orm\n"
        "print(orm.load_code('pw@localhost').filepath_executable)\n"
        "old = orm.QueryBuilder().append(orm.InstalledCode, filters={'label': {'like': 'pw-%'}})\n"
        "for code in old.all(flat=True):\n"
        "    print(code.filepath_executable, code.is_hidden)\n"
    ).splitlines()
    assert said == [str(moved), "/usr/bin/pw.x True"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--select", "Xx*.UPF"), "no file matches `Xx*.UPF`"),
        (("--select", "Si.pbe*.UPF"), "several files for {'Si': ['Si.pbe-nl-rrkjus_psl.1.0.0.UPF', 'Si.pbe-rrkj.UPF'"),
        (("--mpirun", "mpirun"), "an absolute path is needed"),
        (("--computer", "cluster"), "there is no computer `cluster`"),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(bare_machine, arguments, message):
    done = bare_machine.setup(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_select_pseudos_takes_one_file_per_element():
    chosen = installation.select_pseudos(PSEUDOS, ["Si.pz-vbc.UPF", "C.pz-rrkjus.UPF"])
    assert {element: path.name for element, path in chosen.items()} == {"Si": "Si.pz-vbc.UPF", "C": "C.pz-rrkjus.UPF"}


def test_select_pseudos_refuses_a_file_without_an_element(tmp_path):
    (tmp_path / "Si.UPF").write_text("<UPF/>")
    with pytest.raises(InvalidInputError, match="is it a UPF file"):
        installation.select_pseudos(tmp_path)


def test_select_pseudos_refuses_what_is_no_folder(tmp_path):
    with pytest.raises(InvalidInputError, match="is not a folder"):
        installation.select_pseudos(tmp_path / "none")


def test_a_family_is_never_changed_under_the_calculations_that_rest_on_it(aiida_profile):
    folder = PSEUDOS
    files = {"Si": folder / "Si.pz-vbc.UPF"}
    made = installation.ensure_pseudo_family("fixed", files, cutoffs_ry=(12.0, 48.0))
    assert made.change == "created"
    assert installation.ensure_pseudo_family("fixed", files).change is None
    with pytest.raises(InvalidInputError, match="holds other files, or none, for Si"):
        installation.ensure_pseudo_family("fixed", {"Si": folder / "Si.pbe-rrkj.UPF"})
    with pytest.raises(InvalidInputError, match="holds other files, or none, for C"):
        installation.ensure_pseudo_family("fixed", {"C": folder / "C.pz-rrkjus.UPF"})

    from aiida import orm
    from aiida_pseudo.groups.family import CutoffsPseudoPotentialFamily

    family = orm.QueryBuilder().append(CutoffsPseudoPotentialFamily, filters={"label": "fixed"}).one()[0]
    assert family.get_recommended_cutoffs(elements=("Si",), unit="Ry") == pytest.approx((12.0, 48.0))


def test_dry_run_of_a_family_stores_nothing(aiida_profile):
    from aiida import orm
    from aiida_pseudo.groups.family import PseudoPotentialFamily

    def stored():
        return [orm.QueryBuilder().append(kind).count() for kind in (PseudoPotentialFamily, orm.Data)]

    files = {"Si": PSEUDOS / "Si.pz-vbc.UPF"}
    before = stored()
    assert installation.ensure_pseudo_family("dry", files, dry_run=True).change == "created"
    assert stored() == before


def test_a_relative_executable_is_refused(aiida_profile):
    with pytest.raises(InvalidInputError, match="not an absolute path"):
        installation.ensure_code("pw", "localhost", Path("pw.x"), "quantumespresso.pw", with_mpi=None)


def test_the_launcher_belongs_to_the_mpi_of_pw():
    pw = installation.find_program("pw.x")
    assert mpi.mpi_of(pw) == "OpenMPI"
    assert mpi.matching_launcher(pw) == Path(MPIRUN)
    assert mpi.mpi_of_launcher(Path(MPIRUN)) == "OpenMPI"


def test_a_serial_program_needs_no_launcher():
    assert mpi.matching_launcher(Path("/bin/ls")) is None
