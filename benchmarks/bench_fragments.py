"""Embedding error of fragments cut from silicon with a vacancy, by real pw.x: force error at the centre and around it.

    nice python benchmarks/bench_fragments.py --work /tmp/fragments

The reference is the frame itself: 215 atoms, a vacancy next to the centre, LDA, k-points 2×2×2. Fragments of growing
in-radius are carved and computed at the same settings with k-points of (nearly) the same density. The folder is kept:
a second run computes only what is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read
from ase.io.espresso import write_espresso_in

from aiida_mlip.kernel.fragments.carve import carve
from aiida_mlip.kernel.fragments.embedding import embedding_error
from aiida_mlip.kernel.fragments.fragment import Fragment, FragmentLimits, Region
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.kpoints import mesh_from_distance

CORE = 2.43
IN_RADII = (3.8, 4.6, 5.4)
K_DISTANCE = 0.3  # 1/Å


def vacancy(amplitude: float, seed: int) -> tuple[Atoms, int]:
    """215 rattled silicon atoms and the index of one beside the empty site."""
    atoms = bulk("Si", cubic=True) * (3, 3, 3)
    atoms.positions += np.random.default_rng(seed).normal(scale=amplitude, size=atoms.positions.shape)
    gone = 100
    neighbour = int(np.argsort(atoms.get_distances(gone, range(len(atoms)), mic=True))[1])
    del atoms[gone]
    return atoms, neighbour - (neighbour > gone)


def mesh(cell: np.ndarray) -> tuple[int, int, int]:
    """k-points along each reciprocal vector; a cell 1 % smaller than the lattice does not get a denser one."""
    return mesh_from_distance(cell, np.ones(3, dtype=bool), 1.01 * K_DISTANCE)


def forces(
    atoms: Atoms, folder: Path, pseudo_dir: str, command: str, *, gamma: bool = False
) -> tuple[np.ndarray, float]:
    """Forces (eV/Å) by pw.x, and its wall time (s).

    :param gamma: only Γ, with real wavefunctions: an eighth of the time.
    """
    output = folder / "pw.out"
    if not (output.exists() and "JOB DONE" in output.read_text()):
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "control": {"calculation": "scf", "tprnfor": True, "pseudo_dir": pseudo_dir, "outdir": "./out"},
            # levels of the vacancy lie in the gap, partly filled
            "system": {
                "ecutwfc": 12.0,
                "nosym": True,
                "occupations": "smearing",
                "smearing": "gaussian",
                "degauss": 0.01,
            },
            "electrons": {"conv_thr": 1e-8 * len(atoms), "mixing_beta": 0.5},
        }
        with (folder / "pw.in").open("w") as handle:
            write_espresso_in(
                handle,
                atoms,
                data,
                pseudopotentials={"Si": "Si.pz-vbc.UPF"},
                kpts=None if gamma else mesh(atoms.cell.array),
                koffset=0,
            )
        with (folder / "pw.in").open() as source, output.open("w") as sink:
            subprocess.run(shlex.split(command), stdin=source, stdout=sink, cwd=folder, check=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
    text = output.read_text()
    wall = next(line for line in text.splitlines() if line.strip().startswith("PWSCF") and "WALL" in line)
    return read(output, format="espresso-out").get_forces(), _seconds(wall.split("CPU")[1].split("WALL")[0])


def _seconds(text: str) -> float:
    total, number = 0.0, ""
    for character in text.replace(" ", ""):
        if character in "hms":
            total += float(number) * {"h": 3600, "m": 60, "s": 1}[character]
            number = ""
        else:
            number += character
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the calculations; kept")
    parser.add_argument("--pw", default=shutil.which("pw.x") or "pw.x", help="command, with `mpirun` where wanted")
    parser.add_argument("--reference-pw", help="another command for the reference, where that has fewer k-points")
    parser.add_argument("--pseudo-dir", default="/usr/share/espresso/pseudo")
    parser.add_argument("--amplitude", type=float, default=0.08, help="of the random displacements (Å)")
    parser.add_argument("--gamma", action="store_true", help="the reference at Γ only: its own error is then larger")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atoms, centre = vacancy(options.amplitude, options.seed)
    crystal = bulk("Si", cubic=True)
    host = Host(crystal.numbers.astype(np.uint8), crystal.positions, crystal.cell.array)
    fragments = [
        carve(
            atoms.numbers.astype(np.uint8),
            atoms.positions,
            atoms.cell.array,
            np.ones(3, dtype=bool),
            centre,
            FragmentLimits(core_radius=CORE, buffer=in_radius - CORE),
            completion="crystal",
            host=host,
        )
        for in_radius in IN_RADII
    ]
    results = []
    for fragment in fragments:
        cut = Atoms(numbers=fragment.numbers, positions=fragment.positions, cell=fragment.cell, pbc=True)
        results.append(forces(cut, options.work / f"fragment_{len(cut)}", options.pseudo_dir, options.pw))
        print(f"fragment of {len(cut)} atoms, k {mesh(cut.cell.array)}: {results[-1][1]:.0f} s", flush=True)
    folder = options.work / ("reference_gamma" if options.gamma else "reference")
    truth, wall = forces(atoms, folder, options.pseudo_dir, options.reference_pw or options.pw, gamma=options.gamma)
    rms = float(np.sqrt((truth**2).sum(axis=1).mean()))
    points = "Γ" if options.gamma else mesh(atoms.cell.array)
    print(f"reference: {len(atoms)} atoms, k {points}, {wall:.0f} s, rms force {1e3 * rms:.0f} meV/Å")
    print("| in-radius Å | atoms | k | centre meV/Å | r < 3 Å meV/Å | over rms force | wall s |")
    for in_radius, fragment, (found, seconds) in zip(IN_RADII, fragments, results, strict=True):
        error = np.linalg.norm(found - truth[fragment.parent_atom], axis=1)
        near = np.linalg.norm(fragment.positions, axis=1) < 3.0
        around = float(np.sqrt((error[near] ** 2).mean()))
        k = "×".join(map(str, mesh(fragment.cell)))
        print(
            f"| {in_radius:.1f} | {len(fragment)} | {k} | {1e3 * error[0]:.0f} | {1e3 * around:.0f} | "
            f"{around / rms:.3f} | {seconds:.0f} |"
        )
    tell_gate(fragments, [found for found, _ in results])


def tell_gate(fragments: list[Fragment], forces_of: list[np.ndarray]) -> None:
    """What the embedding gate of a campaign says, which knows the fragments only."""
    shared = sorted(
        set.intersection(*(set(part.parent_atom[part.region == Region.CORE].tolist()) for part in fragments))
    )
    core = [
        found[[part.parent_atom.tolist().index(atom) for atom in shared]]
        for part, found in zip(fragments, forces_of, strict=True)
    ]
    gate = embedding_error(np.array(IN_RADII) - CORE, np.array(core)[:, None])
    print(
        f"gate ({len(shared)} core atoms): errors {[f'{1e3 * error:.0f}' for error in gate.errors]} meV/Å against the "
        f"largest, allowed {1e3 * gate.tolerance:.0f}; buffer {gate.chosen} Å, measured {1e3 * gate.measured:.0f}"
    )


if __name__ == "__main__":
    main()
