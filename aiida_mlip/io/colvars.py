"""Input of COLVARS (doi:10.1080/00268976.2013.813594) from a specification of collective variables, and its PMF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.documents import brief
from aiida_mlip.io.metadynamics import CollectiveVariable, Hills

#: Name of the metadynamics bias in the input we write.
BIAS_NAME: Final[str] = "metadynamics"
#: Grid spacing in units of the width of a hill.
_SPACING: Final[float] = 0.5
#: Digits of the number of an atom.
_MOST_DIGITS: Final[int] = 20
_ATOM_KEYWORDS: Final[re.Pattern[str]] = re.compile(r"^\s*(atomNumbers|atomNumbersRange)\s+(.*)$", re.IGNORECASE)


def colvars_input(
    variables: Sequence[CollectiveVariable], hills: Hills, *, temperature_k: float, record_every: int
) -> str:
    """Text of a COLVARS input with one metadynamics bias over all variables; energies in eV, lengths in Å.

    :param variables: one to three, more make the grid too large.
    :param hills: height, pace and bias factor.
    :param temperature_k: of the thermostat; the bias temperature is T·(γ − 1).
    :param record_every: steps between lines of the trajectory of the variables.
    :raises InvalidInputError: no variable, or more than three.
    """
    if not 1 <= len(variables) <= 3:
        raise InvalidInputError(f"collective_variables: one to three are possible, got {len(variables)}")
    lines = ["units metal", f"colvarsTrajFrequency {record_every}", "colvarsRestartFrequency 0", ""]
    for variable in variables:
        lines += _variable(variable)
    lines += [
        "metadynamics {",
        f"  name {BIAS_NAME}",
        f"  colvars {' '.join(variable.name for variable in variables)}",
        f"  hillWeight {hills.height_ev:.10g}",
        f"  newHillFrequency {hills.every}",
        # Gaussian sigma = hillWidth/2 grid spacings
        f"  hillWidth {2 / _SPACING:g}",
        "  writeFreeEnergyFile on",
    ]
    if hills.bias_factor is not None:
        lines += ["  wellTempered on", f"  biasTemperature {temperature_k * (hills.bias_factor - 1):.10g}"]
    return "\n".join([*lines, "}", ""])


def check_colvars_input(text: str, *, n_atoms: int, where: str = "engine_input") -> None:
    """Look at a person's own COLVARS input before anything is started.

    :param text: contents of the file.
    :param n_atoms: atoms of the structure it is for.
    :raises InvalidInputError: unbalanced braces, no variable, no bias, or an atom that is not there.
    """
    plain = "\n".join(line.split("#", 1)[0] for line in text.splitlines())
    if plain.count("{") != plain.count("}"):
        raise InvalidInputError(f"{where}: {plain.count('{')} opening and {plain.count('}')} closing braces")
    if not re.search(r"^[ \t]*colvar\s*\{", plain, re.MULTILINE | re.IGNORECASE):
        raise InvalidInputError(f"{where}: there is no block 'colvar {{ ... }}'")
    for number, line in enumerate(plain.splitlines(), start=1):
        if not (match := _ATOM_KEYWORDS.match(line.replace("{", " ").replace("}", " "))):
            found = re.findall(r"atomNumbers(?:Range)?\s+([\d\s-]+)", line, re.IGNORECASE)
        else:
            found = [match.group(2)]
        for value in (value for part in found for value in re.findall(r"[0-9]+", part)):
            atom = int(value) if len(value) < _MOST_DIGITS else 0
            if not 1 <= atom <= n_atoms:
                said = value[:_MOST_DIGITS]
                raise InvalidInputError(f"{where}, line {number}: atom {said} does not exist, atoms are 1..{n_atoms}")


def read_pmf(text: str, *, source: str = "pmf") -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n"]]:
    """Free energy on the grid of the variables, as COLVARS writes it.

    :returns: (n, d) values of the variables and (n,) eV, lowest point zero.
    :raises FileFormatError: not such a file.
    """
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        table = np.array(rows, dtype=float)
        if not np.isfinite(table).all():
            raise ValueError("numbers that are not finite")
    except ValueError as error:
        raise FileFormatError(f"{source}: not a table of numbers ({brief(error)})") from error
    if table.ndim != 2 or table.shape[1] < 2:
        raise FileFormatError(f"{source}: expected columns of variables and one of energies, got {table.shape}")
    return table[:, :-1], table[:, -1] - table[:, -1].min()


def without_values(state: str) -> str:
    r"""A state of COLVARS with the biases alone, for a trajectory whose variables begin elsewhere.

    >>> without_values("colvar {\n name d\n x 2.0\n}\nmetadynamics {\n}\n")
    'metadynamics {\n}\n'
    """
    kept, depth, inside = [], 0, False
    for line in state.splitlines(keepends=True):
        if depth == 0 and re.match(r"\s*colvar\s*\{", line):
            inside = True
        depth += line.count("{") - line.count("}")
        if not inside:
            kept.append(line)
        if depth == 0 and "}" in line:
            inside = False
    return "".join(kept)


def _variable(variable: CollectiveVariable) -> list[str]:
    spacing = variable.width * _SPACING
    component = {"distance": "distance", "angle": "angle", "coordination": "coordNum"}[variable.kind]
    lines = [
        "colvar {",
        f"  name {variable.name}",
        f"  width {spacing:.10g}",
        f"  lowerBoundary {variable.lower:.10g}",
        f"  upperBoundary {variable.upper:.10g}",
        "  expandBoundaries on",
        f"  {component} {{",
    ]
    for name in ("group1", "group2", "group3"):
        if atoms := getattr(variable, name):
            lines.append(f"    {name} {{ atomNumbers {' '.join(str(atom + 1) for atom in atoms)} }}")
    if variable.cutoff_ang is not None:
        lines.append(f"    cutoff {variable.cutoff_ang:.10g}")
    # harmonic walls: energy = k/2 ((x - wall)/spacing)^2, wall_ev at one hill width
    constant = 2 * variable.wall_ev * _SPACING**2
    return [
        *lines,
        "  }",
        "}",
        "harmonicWalls {",
        f"  name wall_{variable.name}",
        f"  colvars {variable.name}",
        f"  lowerWalls {variable.lower:.10g}",
        f"  upperWalls {variable.upper:.10g}",
        f"  forceConstant {constant:.10g}",
        "}",
        "",
    ]
