"""Fixtures: a temporary AiiDA profile (SQLite in WAL mode, ZeroMQ broker), a computer, the real codes, real data.

Every test that needs AiiDA asks for ``aiida_profile`` directly or through another fixture; kernel tests do not.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# AiiDA makes its configuration folder on import: here, never the user's own.
_AIIDA_PATH = Path(tempfile.mkdtemp(prefix="aiida-mlip-tests-"))
(_AIIDA_PATH / ".aiida").mkdir()
os.environ["AIIDA_PATH"] = str(_AIIDA_PATH)
atexit.register(shutil.rmtree, _AIIDA_PATH, ignore_errors=True)

pytest_plugins = ["aiida.tools.pytest_fixtures"]

#: Real DFT data beside the repository; another place through the environment.
DATA_DIR = Path(os.environ.get("AIIDA_MLIP_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
BIN = Path(sys.executable).parent
MPIRUN = "/usr/bin/mpirun.openmpi"
PSEUDO_FAMILY = "debian-lda"
PSEUDOS = ["Si.pz-vbc.UPF"]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that run this are shared and slow at times: how long an example takes is no property under test.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the reference data (``mlearn/`` inside)."""
    if not (DATA_DIR / "mlearn").is_dir():
        pytest.fail(f"reference data not found in {DATA_DIR}; set AIIDA_MLIP_TEST_DATA")
    return DATA_DIR


@pytest.fixture(scope="session", autouse=True)
def aiida_profile(aiida_config, aiida_profile_factory):
    """Temporary profile with the embedded broker, so that a daemon can run as well; SQLite in WAL mode.

    No test may empty it (``aiida_profile_clean``): campaigns are made once per process and shared by test modules.
    """
    with aiida_profile_factory(aiida_config, broker_backend="core.zeromq") as profile:
        database = Path(profile.storage_config["filepath"]) / "database.sqlite"
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        profile.set_option("runner.poll.interval", 0)
        profile.set_option("daemon.timeout", 60)  # a loaded machine answers late
        aiida_config.update_profile(profile)
        aiida_config.store()
        yield profile


@pytest.fixture
def localhost(aiida_profile, tmp_path_factory):
    """This machine as an AiiDA computer: no login shell, the launcher that matches Debian's pw.x, polled at once."""
    from aiida import orm
    from aiida.common.exceptions import NotExistent

    try:
        return orm.load_computer("localhost")
    except NotExistent:
        pass
    computer = orm.Computer(
        label="localhost",
        hostname="localhost",
        transport_type="core.local",
        scheduler_type="core.direct",
        workdir=str(tmp_path_factory.mktemp("work")),
    )
    computer.set_mpirun_command([MPIRUN, "-np", "{tot_num_mpiprocs}"])
    computer.set_default_mpiprocs_per_machine(1)
    computer.set_minimum_job_poll_interval(0)
    computer.set_prepend_text(
        "export OMPI_MCA_ess_singleton_isolated=1 "
        "OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
        "OMPI_MCA_rmaps_base_oversubscribe=1"
    )
    computer.store()
    computer.configure(safe_interval=0, use_login_shell=False)
    return computer


def _code(localhost, label: str, executable: str | Path, plugin: str):
    from aiida import orm
    from aiida.common.exceptions import NotExistent

    try:
        return orm.load_code(f"{label}@localhost")
    except NotExistent:
        pass
    path = shutil.which(str(executable))
    if path is None:
        pytest.fail(f"{executable} not found: see README, `make env` installs it")
    return orm.InstalledCode(
        label=label,
        computer=localhost,
        filepath_executable=path,
        default_calc_job_plugin=plugin,
        with_mpi=False,
    ).store()


@pytest.fixture
def pw_code(localhost):
    """pw.x of Quantum ESPRESSO."""
    return _code(localhost, "pw", "pw.x", "quantumespresso.pw")


@pytest.fixture(scope="session")
def preloaded_programs():
    """Folder with nequip-train and nequip-package that need no start-up, see ``preloaded``."""
    from preloaded import Preloaded

    programs = Preloaded()
    yield programs.folder
    programs.close()


@pytest.fixture
def train_code(localhost, preloaded_programs):
    """What nequip-train of this environment does, without its start-up; nequip-package lies beside it."""
    return _code(localhost, "nequip-train", preloaded_programs / "nequip-train", "aiida_mlip.nequip_train")


@pytest.fixture
def installed_train_code(localhost):
    """The nequip-train program of this environment itself."""
    return _code(localhost, "installed-nequip-train", BIN / "nequip-train", "aiida_mlip.nequip_train")


@pytest.fixture
def label_code(localhost):
    """The aiida-mlip-label worker of this environment."""
    return _code(localhost, "aiida-mlip-label", BIN / "aiida-mlip-label", "aiida_mlip.ase_label")


@pytest.fixture
def evaluate_code(localhost):
    """The aiida-mlip-evaluate worker of this environment."""
    return _code(localhost, "aiida-mlip-evaluate", BIN / "aiida-mlip-evaluate", "aiida_mlip.evaluate")


@pytest.fixture
def preloaded_evaluate_code(localhost, preloaded_programs):
    """What aiida-mlip-evaluate of this environment does, without its start-up."""
    program = preloaded_programs / "aiida-mlip-evaluate"
    return _code(localhost, "preloaded-aiida-mlip-evaluate", program, "aiida_mlip.evaluate")


def debian_pseudo_folder() -> Path:
    """Folder of the pseudopotentials that come with Debian's quantum-espresso-data."""
    listing = subprocess.run(["dpkg", "-L", "quantum-espresso-data"], capture_output=True, text=True, check=False)
    for line in listing.stdout.splitlines():
        if line.endswith("Si.pz-vbc.UPF"):
            return Path(line).parent
    pytest.fail(
        "the pseudopotentials of quantum-espresso-data are not installed: apt-get install quantum-espresso-data"
    )


@pytest.fixture
def pseudo_family(aiida_profile, tmp_path) -> str:
    """Label of a pseudopotential family with Debian's LDA silicon."""
    from aiida import orm
    from aiida_pseudo.data.pseudo.upf import UpfData
    from aiida_pseudo.groups.family import PseudoPotentialFamily

    if not orm.QueryBuilder().append(PseudoPotentialFamily, filters={"label": PSEUDO_FAMILY}).count():
        folder = tmp_path / "pseudos"
        folder.mkdir()
        for name in PSEUDOS:
            shutil.copy(debian_pseudo_folder() / name, folder)
        PseudoPotentialFamily.create_from_folder(folder, PSEUDO_FAMILY, pseudo_type=UpfData)
    return PSEUDO_FAMILY


@pytest.fixture
def si8():
    """One conventional cell of diamond silicon at the LDA lattice constant (Frames of one row)."""
    from ase.build import bulk

    from aiida_mlip.kernel.frames import from_ase

    return from_ase([bulk("Si", cubic=True, a=5.40)])


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20261121)


def pytest_collection_modifyitems(items):
    """Whoever asks for the committee first waits for its training."""
    for item in items:
        if "emt_copper_committee" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """What is made once for all processes of a test session lies here; whoever makes it holds a lock."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def emt_copper_committee(shared_folder, request):
    """Four NequIP potentials of 300 K bulk copper and the frames that test them, see ``emt_copper``.

    Trained once for all processes of a test session (a minute or two of one core); a folder named in
    AIIDA_MLIP_TEST_COMMITTEES keeps them for the next session.
    """
    import emt_copper

    kept = Path(os.environ.get("AIIDA_MLIP_TEST_COMMITTEES", shared_folder))
    return emt_copper.committee(kept, lambda: request.getfixturevalue("preloaded_programs"))


@pytest.fixture(scope="session")
def toy_package(shared_folder, request) -> Path:
    """A NequIP package (Si and C, cutoff 4 Å, double precision) trained for one epoch on Lennard-Jones labels.

    Trained once for all processes of a test session.
    """
    return _trained_once(shared_folder, "toy", _toy_config(), _toy_images(), request)


@pytest.fixture(scope="session")
def joint_toy_package(shared_folder, request) -> Path:
    """The same as a joint model of three levels of theory, which it is told as the field ``dataset``."""
    return _joint_toy(shared_folder, "float64", request)


@pytest.fixture(scope="session")
def joint_toy_package_32(shared_folder, request) -> Path:
    """The joint one in single precision."""
    return _joint_toy(shared_folder, "float32", request)


def _joint_toy(shared_folder: Path, dtype: str, request) -> Path:
    config = _toy_config()
    config["data"]["include_keys"] = ["dataset"]
    config["training_module"]["model"]["model_dtype"] = dtype
    config["training_module"]["model"]["categorical_graph_field_embed"] = [
        {"field": "dataset", "num_features": 3, "min": 0, "max": 2}
    ]
    images = [image for level in range(3) for image in _toy_images(level)]
    config["data"]["split_dataset"].update(train=9, val=3)
    return _trained_once(shared_folder, f"joint-{dtype}", config, images, request)


def _toy_images(level: int = 0) -> list:
    from ase.build import bulk
    from ase.calculators.lj import LennardJones

    images = []
    for seed, name in enumerate(["Si", "Si", "SiC", "SiC"]):
        crystal = {"crystalstructure": "zincblende", "a": 4.4} if name == "SiC" else {}
        atoms = bulk(name, cubic=True, **crystal)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = LennardJones(sigma=1.8, epsilon=0.5 + 0.1 * level, rc=4.0)
        atoms.get_forces()
        atoms.get_stress()
        atoms.info["dataset"] = level
        images.append(atoms)
    return images


def _trained_once(shared_folder: Path, name: str, config: dict, images: list, request) -> Path:
    from filelock import FileLock

    package = shared_folder / name / "toy.nequip.zip"
    with FileLock(shared_folder / f"{name}.lock"):
        if not package.exists():
            shutil.rmtree(package.parent, ignore_errors=True)
            draft = package.parent / "draft"
            draft.mkdir(parents=True)
            _train_toy(draft, request.getfixturevalue("preloaded_programs"), config, images).rename(package)
    return package


def _train_toy(folder: Path, programs: Path, config: dict, images: list) -> Path:
    import ase.io
    import yaml

    ase.io.write(folder / "frames.xyz", images)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for command in (
        ["nequip-train", "-cn", "config.yaml"],
        ["nequip-package", "build", "best.ckpt", "toy.nequip.zip"],
    ):
        run = subprocess.run(
            [str(programs / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True, check=False
        )
        if run.returncode:
            pytest.fail(f"{' '.join(command)} failed:\n{(run.stdout + run.stderr)[-3000:]}")
    return folder / "toy.nequip.zip"


def _toy_config() -> dict:
    types = ["Si", "C"]
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 1}
    return {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "split_dataset": {"file_path": "frames.xyz", "train": 3, "val": 1},
            "transforms": [
                {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": types},
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": 4.0},
            ],
            "train_dataloader": loader,
            "val_dataloader": loader,
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": ".", "filename": "best"}
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_rmse": 1.0}},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "model": {
                "_target_": "nequip.model.NequIPGNNModel",
                "seed": 3,
                "model_dtype": "float64",
                "type_names": types,
                "r_max": 4.0,
                "num_bessels": 4,
                "num_layers": 2,
                "l_max": 1,
                "num_features": 4,
                "avg_num_neighbors": 14.0,
                "per_type_energy_shifts": {"Si": -1.0, "C": -2.0},
                "per_type_energy_scales": 1.0,
                "radial_mlp_depth": 1,
                "radial_mlp_width": 8,
            },
        },
    }
