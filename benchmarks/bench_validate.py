"""Validation of silicon: a packaged potential against pw.x at the settings of the demonstration, and known teachers.

    nice python benchmarks/bench_validate.py --teachers
    nice python benchmarks/bench_validate.py --potential model.nequip.zip --pseudos FOLDER --fidelity lda

Prints one line per property: value, reference, difference. pw.x runs two-atom cells, and supercells of 16 atoms.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from ase.build import bulk
from profile_here import BIN, codes, temporary_profile

TESTS = Path(__file__).parents[1] / "tests"
STARTS = {
    "silicon": ("Si", 5.40, 16.0, 6.0),
    "copper": ("Cu", 3.60, 9.0, 12.0),
    "aluminium": ("Al", 4.03, 9.0, 9.0),
}


def programs(root: Path) -> dict[str, Any]:
    """The codes of ``profile_here``, and ``explore``, ``ase`` and ``pw`` on the same computer."""
    from aiida import orm

    found = codes(root, threads=1)
    names = {
        "explore": str(BIN / "aiida-mlip-explore"),
        "ase": str(BIN / "aiida-mlip-label"),
        "pw": shutil.which("pw.x"),
    }
    plugins = {"pw": "quantumespresso.pw"}
    for name, path in names.items():
        if path:
            found[name] = orm.InstalledCode(
                label=name,
                computer=found["train"].computer,
                filepath_executable=path,
                default_calc_job_plugin=plugins.get(name),
                with_mpi=False,
            ).store()
    return found


def show(title: str, node: Any) -> None:
    print(f"{title}: exit status {node.exit_status} {node.exit_message or ''}")
    for entry in node.outputs.properties["entries"] if "properties" in node.outputs else []:
        print(
            f"  {entry['name']:34s} {entry['value']} | {entry['reference']} | {entry['difference']} {entry['reason']}"
        )


def teachers(found: dict[str, Any]) -> None:
    from aiida import orm
    from aiida.engine import run_get_node

    from aiida_mlip.workchains.validate import ValidateWorkChain

    path = {"environment_variables": {"PYTHONPATH": str(TESTS)}}
    for name, (symbol, a, vacancy, phonons) in STARTS.items():
        settings = {
            "eos": {"strain": 0.03, "points": 25, "fit_strain": 0.01},
            "elastic": {"strain": 0.002},
            "vacancy": {"min_length_ang": vacancy},
            "phonons": {"min_length_ang": phonons},
            "dimer": None,
        }
        builder = ValidateWorkChain.get_builder_from_protocol(
            orm.StructureData(ase=bulk(symbol, a=a)),
            codes={key: found[key] for key in ("ase", "explore")},
            subject={"teacher": {"engine": "ase", "calculator": f"known_teachers.{name}"}},
            protocol="fast",
            overrides=settings,
            options=path,
            label={"options": path},
        )
        show(name, run_get_node(builder)[1])


def silicon(found: dict[str, Any], package: Path, pseudos: Path, fidelity: str) -> None:
    from aiida import orm
    from aiida.engine import run_get_node
    from aiida_pseudo.data.pseudo.upf import UpfData
    from aiida_pseudo.groups.family import PseudoPotentialFamily

    from aiida_mlip.data.potential import PotentialData
    from aiida_mlip.workchains.validate import ValidateWorkChain

    PseudoPotentialFamily.create_from_folder(pseudos, "debian-lda", pseudo_type=UpfData)
    sys.path.insert(0, str(TESTS.parent / "examples"))
    from silicon import FIDELITIES

    builder = ValidateWorkChain.get_builder_from_protocol(
        orm.StructureData(ase=bulk("Si", a=5.40)),
        codes={key: found[key] for key in ("evaluate", "explore", "pw")},
        potentials={"member_0": PotentialData.import_package(package, fidelities=[fidelity])},
        reference=FIDELITIES,
        protocol="fast",
        overrides={"vacancy": None, "dimer": None},
        label={"max_concurrent": 1},
    )
    show("silicon", run_get_node(builder)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", action="store_true")
    parser.add_argument("--potential", type=Path)
    parser.add_argument("--pseudos", type=Path, help="folder with Si.pz-vbc.UPF alone")
    parser.add_argument("--fidelity", default="lda")
    arguments = parser.parse_args()
    with temporary_profile() as root:
        found = programs(root)
        if arguments.teachers:
            teachers(found)
        if arguments.potential is not None:
            silicon(found, arguments.potential, arguments.pseudos, arguments.fidelity)


if __name__ == "__main__":
    main()
