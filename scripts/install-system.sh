#!/usr/bin/env bash
# Quantum ESPRESSO (pw.x and its pseudopotentials), OpenBLAS, ps and python3-venv, through apt where that is permitted.
# Where it is not, one line says what to install. Exit status 0: everything is there.
set -euo pipefail

packages=()
command -v pw.x >/dev/null || packages+=(quantum-espresso)
compgen -G '/usr/share/espresso/pseudo/Si.pz-vbc.UPF' >/dev/null || packages+=(quantum-espresso-data)
# The reference BLAS that quantum-espresso pulls in by itself makes pw.x several times slower.
compgen -G '/usr/lib/*/openblas-pthread/libblas.so.3' >/dev/null || packages+=(libopenblas0-pthread)
command -v mpirun.openmpi >/dev/null || packages+=(openmpi-bin)
# AiiDA asks ps which jobs of this machine still run.
command -v ps >/dev/null || packages+=(procps)
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
# The tests open the report in a browser; without one they skip that, so it is wanted, not needed.
wanted=()
if [ -n "${MLIP_BROWSER:-}" ] && ! command -v chromium chromium-browser google-chrome >/dev/null; then wanted+=(chromium); fi
[ ${#packages[@]} -eq 0 ] && [ ${#wanted[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
    root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    root=(sudo -n)
elif [ ${#packages[@]} -eq 0 ]; then
    echo "Not permitted to install ${wanted[*]}: the tests that open the report in a browser will be skipped"
    exit 0
else
    echo "Not permitted to install packages. Please run: sudo apt-get install ${packages[*]}" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "No apt-get on this machine. Please install what Debian calls: ${packages[*]}" >&2
    exit 1
fi

packages+=("${wanted[@]}")
echo "apt-get install ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends "${packages[@]}" >/dev/null
