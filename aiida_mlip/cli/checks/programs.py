"""The Python environment: the packages that train, the GPU, and another package of the same name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from aiida_mlip.cli.checks import Finding
from aiida_mlip.cli.mpi import mpi_of, mpi_of_launcher


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_packages() -> Iterator[Finding]:
    """AiiDA, this package, and the other one that imports as ``aiida_mlip`` too."""
    versions = {name: _version(name) for name in ("aiida-mlip-workchains", "aiida-core", "aiida-quantumespresso")}
    yield Finding("python", "ok", f"{sys.version.split()[0]}; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    if _version("aiida-mlip") is not None:
        yield Finding(
            "packages",
            "fix",
            "`aiida-mlip` is installed too: another project, which overwrites this one's import package",
            "pip uninstall aiida-mlip; pip install --force-reinstall --no-deps aiida-mlip-workchains",
        )


def check_training() -> Iterator[Finding]:
    """Whether nequip and torch are here, and whether torch sees the GPU that the machine has."""
    versions = {name: _version(name) for name in ("nequip", "torch")}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        yield Finding(
            "training",
            "note",
            f"{', '.join(missing)} not installed in this environment: needed where nequip-train runs",
            "pip install 'aiida-mlip-workchains[nequip]'",
        )
        return
    yield Finding("training", "ok", f"nequip {versions['nequip']}, torch {versions['torch']}")
    gpu = gpu_name()
    if gpu is None:
        yield Finding("gpu", "ok", "none on this machine: training runs on the CPU")
    elif _torch_sees_gpu():
        yield Finding("gpu", "ok", gpu)
    else:
        cure = "install the CUDA build of torch in this environment"
        yield Finding("gpu", "fix", f"{gpu}, and torch {versions['torch']} cannot use it", cure)


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU, None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _torch_sees_gpu() -> bool:
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", question], check=False, capture_output=True).returncode == 0


def check_first_mpirun() -> Iterator[Finding]:
    """Whether the first ``mpirun`` on PATH is of another MPI than pw.x: packages of PyPI bring their own."""
    launcher, pw = shutil.which("mpirun"), shutil.which("pw.x")
    if launcher is None or pw is None:
        return
    theirs, ours = mpi_of_launcher(Path(launcher)), mpi_of(Path(pw))
    if ours is not None and theirs is not None and theirs != ours:
        yield Finding(
            "mpirun",
            "note",
            f"the first on PATH, {launcher}, is {theirs}'s, pw.x needs {ours}'s: computers must name it in full",
        )
