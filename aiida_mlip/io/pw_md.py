"""Standard output of a molecular dynamics run of pw.x, whole or cut off anywhere.

The output is the only file that a killed run always leaves, and it holds every step: geometry, label, and whether the
scf converged. A last line that was not finished is dropped, so half a number is never read as a number.

Format: Quantum ESPRESSO 6.7 to 7.x, ``ATOMIC_POSITIONS (angstrom)``.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import FileFormatError
from aiida_mlip.kernel.trajectory import Segment

#: eV per rydberg and Å per bohr as aiida-quantumespresso converts the labels of single calculations (CODATA 2006).
#: With newer constants rows of one dataset would differ by 1e-7 of the total energy: 1e-5 eV/atom in Si, 3e-4 in Fe.
RYDBERG: Final[float] = 13.6056917253
BOHR: Final[float] = 0.52917720859
_STEP: Final[re.Pattern[str]] = re.compile(r"^ +Entering Dynamics:.*$", re.MULTILINE)
_POSITIONS: Final[re.Pattern[str]] = re.compile(r"^ATOMIC_POSITIONS \(angstrom\)[ \t]*\n", re.MULTILINE)
_ENERGY: Final[re.Pattern[str]] = re.compile(r"^!+ +total energy +=(.*) Ry[ \t]*$", re.MULTILINE)
_CONVERGED: Final[re.Pattern[str]] = re.compile(r"^ +convergence has been achieved in", re.MULTILINE)
_NOT_CONVERGED: Final[re.Pattern[str]] = re.compile(r"convergence NOT achieved", re.MULTILINE)
_FORCES: Final[re.Pattern[str]] = re.compile(r"^ +Forces acting on atoms.*\n", re.MULTILINE)
_TOTAL_FORCE: Final[re.Pattern[str]] = re.compile(r"^ +Total force = ", re.MULTILINE)
_STRESS: Final[re.Pattern[str]] = re.compile(r"^ +total +stress +\(Ry/bohr\*\*3\).*\n", re.MULTILINE)
_KINETIC: Final[re.Pattern[str]] = re.compile(r"^ +kinetic energy \(Ekin\) =(.*) Ry[ \t]*$", re.MULTILINE)
_END: Final[re.Pattern[str]] = re.compile(r"End of molecular dynamics calculation")
_CPU: Final[re.Pattern[str]] = re.compile(r"total cpu time spent up to now is +([0-9.]+) secs")
_WALL: Final[re.Pattern[str]] = re.compile(
    r"^ +PWSCF +:.*CPU +(?:(\d+)d *)?(?:(\d+)h *)?(?:(\d+)m *)?(?:([0-9.]+)s)? *WALL", re.MULTILINE
)


def read_md_output(
    text: str, start: Float[np.ndarray, "a 3"], *, stress: bool = True, source: str = "pw.x output"
) -> Segment:
    """Labelled steps of the standard output of a molecular dynamics run.

    A step counts when its scf converged and its energy, all its forces and, if wanted, its whole stress are there and
    finite. An unconverged scf is never a label, whatever was printed with it.

    :param text: the output, possibly cut off.
    :param start: (a, 3) Å, positions the run was given (the output has them with fewer digits).
    :param stress: the run was asked for the stress.
    :param source: what to call the output in messages.
    :raises FileFormatError: the text is the output of another kind of calculation or of other atoms.
    """
    complete = text[: text.rfind("\n") + 1]
    parts = _STEP.split(complete)
    positions = np.array(start, dtype=float)
    n_atoms = len(positions)
    steps: list[tuple[np.ndarray, float, np.ndarray, np.ndarray, float]] = []
    failed = False
    pending: np.ndarray | None = positions
    for i, part in enumerate(parts):
        if i:
            moved = _vectors(part, _POSITIONS, n_atoms, skip_words=1)
            if moved is None:
                break
            pending = positions = moved
        label = _label(part, n_atoms, stress=stress)
        if label is None:
            failed = bool(_NOT_CONVERGED.search(part))
            break
        kinetic = _number(_KINETIC, parts[i + 1]) if i + 1 < len(parts) else np.nan
        steps.append((positions, *label, kinetic))
        pending = None
    if parts[0].strip() and "PWSCF" not in parts[0] and not steps:
        raise FileFormatError(f"{source}: not an output of pw.x; it begins {complete[:60]!r}")
    m = len(steps)
    return Segment(
        positions=np.array([s[0] for s in steps]).reshape(m, n_atoms, 3),
        energy=np.array([s[1] for s in steps]) * RYDBERG,
        forces=np.array([s[2] for s in steps]).reshape(m, n_atoms, 3) * RYDBERG / BOHR,
        # pw.x prints what the material exerts: compression positive
        stress=np.array([s[3] for s in steps]).reshape(m, 3, 3) * -RYDBERG / BOHR**3,
        kinetic=np.array([s[4] for s in steps]) * RYDBERG,
        unlabelled=pending,
        scf_failed=failed,
        completed=bool(_END.search(complete)) and m == len(parts) - 1,
        seconds=_seconds(complete),
    )


def _label(part: str, n_atoms: int, *, stress: bool) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Energy (Ry), forces (Ry/bohr) and stress (Ry/bohr³) of the scf in a part of the output; None if not complete."""
    if _NOT_CONVERGED.search(part) or not _CONVERGED.search(part):
        return None
    energies = _ENERGY.findall(part)
    forces = _vectors(part, _FORCES, n_atoms, after="force =")
    if not energies or forces is None or not _TOTAL_FORCE.search(part):
        return None
    try:
        energy = float(energies[-1])
    except ValueError:
        return None
    tensor = _vectors(part, _STRESS, 3) if stress else np.full((3, 3), np.nan)
    return None if tensor is None or not np.isfinite(energy) else (energy, forces, tensor)


def _vectors(part: str, header: re.Pattern[str], n: int, *, skip_words: int = 0, after: str = "") -> np.ndarray | None:
    """(n, 3) finite numbers from the n non-empty lines behind a header; None if they are not all there."""
    match = header.search(part)
    if match is None:
        return None
    lines = [line for line in part[match.end() :].split("\n")[: n + 3] if line.strip()][:n]
    try:
        rows = [
            [float(word) for word in (line.split(after)[1] if after else line).split()[skip_words : skip_words + 3]]
            for line in lines
        ]
        values = np.array(rows, dtype=float).reshape(n, 3)
    except (ValueError, IndexError):
        return None
    return values if np.isfinite(values).all() else None


def _number(pattern: re.Pattern[str], part: str) -> float:
    match = pattern.search(part)
    try:
        return float(match.group(1)) if match else float("nan")
    except ValueError:
        return float("nan")


def _seconds(text: str) -> float:
    if match := _WALL.search(text):
        days, hours, minutes, seconds = (_plain(x) if x else 0.0 for x in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    times = _CPU.findall(text)
    return _plain(times[-1]) if times else float("nan")


def _plain(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
