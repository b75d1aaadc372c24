"""Silicon at two levels of theory of Quantum ESPRESSO: frames, their labels by the package, and equations of state.

Cheap: LDA, 12 Ry, 2 x 2 x 2 k-points. Dear: PBE, 24 Ry, 3 x 3 x 3. Cells of eight atoms, strained, at 0.88 to 1.14 of
the volume: most rattled by 0.02 to 0.20 Å, for the forces; some by less than 0.02 Å, for the energies of the crystal.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Frames, from_ase

CHEAP, DEAR = "lda12", "pbe24"
N_CHEAP, N_DEAR, N_TEST = 100, 10, 12
#: Crystals that are strained and hardly rattled, and how many of them have the dear label.
N_CALM, N_CALM_DEAR = 30, 3
LATTICE_ANG = 5.45
PSEUDOS = {CHEAP: "Si.pz-vbc.UPF", DEAR: "Si.pbe-rrkj.UPF"}
_COMMON = {"engine": "qe", "protocol": "fast", "occupations": "smearing", "smearing": "gaussian", "degauss_ry": 0.01}
FIDELITIES: dict[str, dict[str, Any]] = {
    # the distances give the same mesh in every cell of this benchmark: a mesh that jumps is noise
    CHEAP: {**_COMMON, "pseudo_family": CHEAP, "ecutwfc_ry": 12, "kpoints_distance_inv_ang": 0.8, "mixing_beta": 0.7},
    DEAR: {**_COMMON, "pseudo_family": DEAR, "ecutwfc_ry": 24, "kpoints_distance_inv_ang": 0.46, "mixing_beta": 0.7},
}
#: What :func:`label` writes.
PARTS = ("dear", "crystals", "cheap", "cheap_test", "dear_test", "cheap_crystals", "cheap_calm", "dear_calm")
#: Volumes of the equation of state, relative to LATTICE_ANG.
VOLUMES = np.linspace(0.91, 1.11, 9)


def cells(n: int, *, seed: int, rattle_ang: tuple[float, float] = (0.02, 0.20)) -> list[Atoms]:
    """n rattled cells; their volumes are spread evenly over the range, in random order."""
    rng = np.random.default_rng(seed)
    volumes = 0.88 + 0.26 * (rng.permutation(n) + rng.random(n)) / n
    images = []
    for volume in volumes:
        atoms = bulk("Si", cubic=True, a=LATTICE_ANG * volume ** (1 / 3))
        tensor = rng.normal(0.0, 0.01, (3, 3))
        tensor = (tensor + tensor.T) / 2
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + tensor - np.eye(3) * np.trace(tensor) / 3), scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(*rattle_ang), (8, 3))
        images.append(atoms)
    return images


def crystals() -> list[Atoms]:
    """Perfect crystals at the volumes of the equation of state."""
    return [bulk("Si", cubic=True, a=LATTICE_ANG * volume ** (1 / 3)) for volume in VOLUMES]


def dear_rows(images: list[Atoms], n: int) -> list[int]:
    """Rows that get the dear label: every tenth (or so) by volume, so that they span the range."""
    order = np.argsort([atoms.get_volume() for atoms in images])
    return sorted(int(row) for row in order[(np.arange(n) * len(images)) // n + len(images) // (2 * n)])


def label(folder: Path, code: Any) -> None:
    """Label everything with the workchain of the package; what is in the profile is not computed again.

    Writes a file for each of :data:`PARTS` into the folder.
    """
    train = cells(N_CHEAP, seed=1)
    dear = [train[row] for row in dear_rows(train, N_DEAR)]
    test = cells(20, seed=2)[:N_TEST]
    perfect = crystals()
    calm = cells(N_CALM, seed=3, rattle_ang=(0.0, 0.02))
    jobs = {
        "dear": (dear, DEAR),
        "crystals": (perfect, DEAR),
        "cheap": (train, CHEAP),
        "cheap_test": (test, CHEAP),
        "dear_test": (test, DEAR),
        "cheap_crystals": (perfect, CHEAP),
        "cheap_calm": (calm, CHEAP),
        "dear_calm": ([calm[row] for row in dear_rows(calm, N_CALM_DEAR)], DEAR),
    }
    for name in PARTS:
        images, fidelity = jobs[name]
        frames = _labelled(images, fidelity, code)
        (folder / f"{name}.npz").write_bytes(write_shard(frames))
        print(f"{name}: {len(frames)} at {fidelity}, {np.nansum(frames.cost):.0f} core-seconds", flush=True)


def load(folder: Path, name: str) -> Frames:
    """Frames that :func:`label` wrote."""
    with (folder / f"{name}.npz").open("rb") as handle:
        return read_shard(handle, source=name)


def families(folder: Path) -> None:
    """A pseudopotential family per fidelity, from the files of Debian's quantum-espresso-data."""
    from aiida import orm
    from aiida_pseudo.data.pseudo.upf import UpfData
    from aiida_pseudo.groups.family import PseudoPotentialFamily

    listing = subprocess.run(["dpkg", "-L", "quantum-espresso-data"], capture_output=True, text=True, check=True).stdout
    for name, file in PSEUDOS.items():
        if orm.QueryBuilder().append(PseudoPotentialFamily, filters={"label": name}).count():
            continue
        source = next(Path(line) for line in listing.splitlines() if line.endswith(file))
        upf = folder / "pseudos" / name / file
        upf.parent.mkdir(parents=True, exist_ok=True)
        upf.write_bytes(source.read_bytes())
        PseudoPotentialFamily.create_from_folder(upf.parent, name, pseudo_type=UpfData)


def _labelled(images: list[Atoms], fidelity: str, code: Any) -> Frames:
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.workchains.label import LabelWorkChain

    results, node = run_get_node(
        LabelWorkChain,
        dataset=DatasetData.from_frames(from_ase(images)),
        fidelities=orm.Dict({fidelity: FIDELITIES[fidelity]}),
        codes={"pw": code},
        max_concurrent=orm.Int(1),
        max_failed_fraction=orm.Float(0.0),
    )
    if not node.is_finished_ok:
        raise SystemExit(f"labelling at {fidelity} failed: {node.exit_status} {node.exit_message}")
    return results["dataset"].frames().take(results["dataset"].frames().labelled)
