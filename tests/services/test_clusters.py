"""The how-to of docs/clusters.md, followed to the letter in a fresh AiiDA folder: its files, its commands, in order."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from service_jobs import BIN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
#: A file: its name, with at most words before it in the paragraph, then the block.
FILE = re.compile(r"`([~\w./-]+)`(?: \([^)]*\))?[^`\n]*:\n\n```(\w+)\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```console\n(.*?)```", re.DOTALL)
ADMINISTRATOR = {"sudo apt-get install -y postgresql rabbitmq-server", "sudo systemctl restart rabbitmq-server"}

pytestmark = [pytest.mark.qe, pytest.mark.nequip, pytest.mark.daemon, pytest.mark.timeout(2400)]

JOBS = """
import json
from aiida import orm
jobs = orm.QueryBuilder().append(orm.CalcJobNode).all(flat=True)
tops = [n for n in orm.QueryBuilder().append(orm.WorkChainNode).all(flat=True) if n.caller is None]
print("JSON", json.dumps({
    "jobs": [[j.process_type.rpartition(".")[2], j.get_job_id(), j.exit_status] for j in jobs],
    "tops": {n.process_label: [n.exit_status, n.exit_message] for n in tops},
    "potentials": [n.outputs.potentials.member_0.pk for n in tops if "potentials" in n.outputs],
    "profile": [p.storage_backend + " " + p.process_control_backend for p in [__import__("aiida").get_profile()]],
}))
"""


def here(folder: Path) -> dict[str, str]:
    """What stands in the page for what every site has its own of, and what the test machine has."""
    ssh = (Path(os.environ["HOME"]) / ".ssh" / "config").read_text(encoding="ascii")
    return {
        "User jane": f"User {getpass.getuser()}",
        "login.example.org": "127.0.0.1",
        "Port 22": re.search(r"Port \d+", ssh)[0],
        "/scratch/{username}/aiida": f"{folder}/scratch/{{username}}/aiida",
        "/opt/openmpi/bin/mpirun": "/usr/bin/mpirun.openmpi",
        "/opt/espresso/bin/pw.x": shutil.which("pw.x"),
        "/home/jane/mlip/bin": str(BIN),
        "/home/jane/aiida-repository": f"{folder}/repository",
        "~/pseudos": "/usr/share/espresso/pseudo",
        "change-me": "pass-word_1",
        "database_hostname: localhost": f"database_hostname: {os.environ['PGHOST']}",
        "database_port: 5432": f"database_port: {os.environ['PGPORT']}",
        "--broker-port 5672": f"--broker-port {os.environ['AMQP_PORT']}",
        "sudo -u postgres psql": "psql -d postgres",
        # root's OpenMPI asks for this
        "OMP_NUM_THREADS=1": "OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
        "OMPI_MCA_rmaps_base_oversubscribe=1",
        # sizes
        "set_minimum_job_poll_interval(30)": "set_minimum_job_poll_interval(1)",
        "safe_interval: 5": "safe_interval: 0.5",
        "num_mpiprocs_per_machine: 64": "num_mpiprocs_per_machine: 2",
        "side_by_side: 16": "side_by_side: 2",
        "num_cores_per_mpiproc: 8": "num_cores_per_mpiproc: 1",
        '"num_cores_per_mpiproc": 8': '"num_cores_per_mpiproc": 1',
        "max_wallclock_seconds: 43200": "max_wallclock_seconds: 3600",
        "max_wallclock_seconds: 28800": "max_wallclock_seconds: 3600",
        "max_wallclock_seconds: 14400": "max_wallclock_seconds: 3600",
        '"max_wallclock_seconds": 14400': '"max_wallclock_seconds": 3600',
        "device: auto": "device: auto\n  max_epochs: 3\n  threads: 1",
        "force_rmse_relative: 0.15": "force_rmse_relative: 100",
        # three epochs are no potential: at 10 K the crystal does not notice
        '"n_steps": 50, "temperature_k": 300': '"n_steps": 10, "temperature_k": 10',
    }


class Reader:
    """Someone who writes the files of the page into a folder and types its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = here(folder)
        self.home = folder / "home"
        shutil.copytree(Path(os.environ["HOME"]) / ".ssh", self.home / ".ssh")
        (self.home / ".ssh" / "config").unlink()
        (folder / ".aiida").mkdir()
        shutil.copy(ROOT / "examples" / "silicon.cif", folder)
        self.env = {
            **os.environ,
            "AIIDA_PATH": str(folder),
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def as_here(self, text: str) -> str:
        for there, own in self.own.items():
            text = text.replace(there, own)
        return text

    def write_files(self) -> list[str]:
        """Files of the page, but for those of the administrator."""
        found = {name: text for name, _, text in FILE.findall(PAGE)}
        for name, text in found.items():
            if not name.startswith("/etc/"):
                path = self.home / name.removeprefix("~/") if name.startswith("~/") else self.folder / name
                path.write_text(self.as_here(text), encoding="utf-8")
        return list(found)

    def type(self, command: str) -> str:
        """Output of a command, which has to succeed."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def look(self) -> dict:
        """Jobs and what started them, as the profile has them."""
        (self.folder / "look.py").write_text(JOBS, encoding="utf-8")
        (line,) = [line for line in self.type("verdi run look.py").splitlines() if line.startswith("JSON")]
        return json.loads(line.removeprefix("JSON"))


@pytest.fixture
def reader(tmp_path):
    """With a daemon or not, whatever was typed."""
    reader = Reader(tmp_path)
    yield reader
    subprocess.run(["verdi", "daemon", "stop"], env=reader.env, capture_output=True, check=False, timeout=180)


def commands() -> list[str]:
    return [
        line.split(" #")[0].strip() for block in COMMANDS.findall(PAGE) for line in block.splitlines() if line.strip()
    ]


def test_the_page_is_followed(reader):
    files = reader.write_files()
    assert len(files) == len(set(files)) == 11
    for there in reader.own:
        assert there in PAGE, f"{there} is not in the page any more"
    typed = commands()
    assert set(typed) > ADMINISTRATOR
    outputs = {}
    for command in typed:
        if command in ADMINISTRATOR:
            continue
        if "POTENTIAL" in command:
            command = command.replace("POTENTIAL", str(reader.look()["potentials"][0]))
        outputs[command] = reader.type(reader.as_here(command))
    assert re.search(r"all \d+ tests succeeded", outputs["verdi computer test cluster"])
    pk = outputs[next(command for command in outputs if "explore.py" in command)].split()[-1]
    reader.type(f"aiida-mlip status {pk} --watch")
    check_what_ran(reader.look())


def check_what_ran(found: dict) -> None:
    """Everything ended well, each kind of job in its partition, under the account, with a GPU where asked for."""
    assert found["profile"] == ["core.psql_dos core.rabbitmq"]
    assert found["tops"] == {"DevelopWorkChain": [0, None], "ExploreWorkChain": [0, None]}
    # `pw`: a frame of the bundle that was tried again alone, several times perhaps
    assert {kind for kind, _, _ in found["jobs"]} - {"pw"} == {"pw_bundle", "nequip_train", "evaluate", "explore"}
    for kind, number, exit_status in found["jobs"]:
        assert exit_status == 0 or kind == "pw"
        said = subprocess.run(
            ["scontrol", "-o", "show", "job", str(number)], capture_output=True, text=True, check=True
        ).stdout
        of_cpu = kind in {"pw_bundle", "pw"}
        assert f" Partition={'cpu' if of_cpu else 'gpu'} " in said
        assert " Account=materials " in said
        assert ("TresPerNode=gres:gpu:1" in said) == (not of_cpu)


def test_the_brokers_setting_is_the_one_tested():
    """What the page puts into /etc/rabbitmq is what the RabbitMQ of these tests runs with."""
    (text,) = [text for name, _, text in FILE.findall(PAGE) if name == "/etc/rabbitmq/advanced.config"]
    configured = (ROOT / "scripts" / "services" / "rabbitmq.py").read_text(encoding="utf-8")
    assert f'ADVANCED = "{text.strip()}\\n"' in configured
