"""aiida-mlip potential: what people type, and what they are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from click.testing import CliRunner

from aiida_mlip.cli.main import main
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.uncertainty.grades import fit_grades


def invoke(*arguments: str):
    return CliRunner().invoke(main, ["potential", *arguments])


def newest() -> PotentialData:
    builder = orm.QueryBuilder().append(PotentialData, tag="p").order_by({"p": {"id": "desc"}})
    return builder.first(flat=True)


def test_import_show_export(toy_package: Path, tmp_path: Path) -> None:
    done = invoke("import", str(toy_package), "--fidelity", "pbe", "--reference", "Si=-3.5", "--label", "toy")
    assert done.exit_code == 0, done.output
    assert "executes code from this file" in done.output
    node = newest()
    assert (node.label, node.fidelities, node.reference_energies) == ("toy", ["pbe"], {"pbe": {"Si": -3.5}})

    shown = invoke("show", node.uuid)
    assert shown.exit_code == 0, shown.output
    for text in ("Si, C", "4 Å", "pbe", "-3.500000", "imported by a user"):
        assert text in shown.output, text
    assert node.sha256 in "".join(part.strip(" │\n") for part in shown.output.split("│"))

    target = tmp_path / "out.nequip.zip"
    assert invoke("export", str(node.pk), str(target)).exit_code == 0
    assert target.read_bytes() == toy_package.read_bytes()
    again = invoke("export", str(node.pk), str(target))
    assert again.exit_code == 1
    assert "exists; give another name" in again.output


def test_a_joint_potential_is_shown_and_baked(joint_toy_package: Path, evaluate_code) -> None:
    names = [text for name in ("lda", "pbe", "hse") for text in ("--fidelity", name)]
    energies = ["--reference", "hse:Si=-108.5", "--reference", "hse:C=-157.25", "--reference", "lda:Si=-106.0"]
    done = invoke("import", str(joint_toy_package), "--joint", "--label", "three", *names, *energies)
    assert done.exit_code == 0, done.output
    joint = newest()
    assert (joint.joint, joint.fidelities) == (True, ["lda", "pbe", "hse"])
    shown = " ".join(invoke("show", str(joint.pk)).output.replace("│", " ").split())
    for text in ("lda, pbe, hse: joint, runs once it is baked", "hse: Si -108.500000, C -157.250000", "lda: Si -106"):
        assert text in shown, text

    for fidelity, message in (
        ("lda", "no reference energy of C at lda"),
        ("scan", "'scan' is none of the potential's"),
    ):
        refused = invoke("bake", str(joint.pk), fidelity)
        assert refused.exit_code == 1
        assert message in refused.output
    assert newest().pk == joint.pk

    done = invoke("bake", str(joint.pk), "hse", "--code", evaluate_code.full_label)
    assert done.exit_code == 0, done.output
    baked = newest()
    assert (baked.label, baked.fidelities, baked.joint) == ("three hse", ["hse"], False)
    assert f"potential {baked.pk} <{baked.uuid}>: hse, Si, C" in done.output
    shown = invoke("show", str(baked.pk)).output
    assert "BakeCalculation" in shown
    assert "joint" not in shown


def test_show_prints_errors_per_part(toy_package: Path) -> None:
    part = {
        "n_frames": 7,
        "energy_rmse_ev_per_atom": 0.0042,
        "force_rmse_ev_per_ang": 0.1234,
        "force_rmse_relative": 0.1,
    }
    node = PotentialData.import_package(
        toy_package, metrics={"test": part, "validation": {"loss": 0.25}, "best_epoch": 12}
    ).store()
    shown = invoke("show", str(node.pk)).output
    for text in ("test", "7", "4.20", "0.1234", "10.0%", "-", "validation.loss 0.25", "best_epoch 12"):
        assert text in shown, text


def test_show_prints_grades_and_calibration(toy_package: Path) -> None:
    """The numbers are those of the node; without them it says what is missing."""
    rng = np.random.default_rng(0)
    numbers, deviation = np.tile([14, 6], 100), rng.lognormal(size=200)
    error = deviation[:, None] * rng.normal(size=(200, 3))
    calibration = calibrate(deviation, error, numbers, region=np.where(deviation < 1, "inside", "outside"))
    grades = fit_grades(rng.normal(size=(200, 4)), numbers)
    node = PotentialData.import_package(
        toy_package, statistics=grades.arrays(), calibration=calibration.as_dict()
    ).store()
    shown = " ".join(invoke("show", str(node.pk)).output.replace("│", " ").split())
    coverage = calibration.metrics["coverage"]
    for text in (
        "C 100 environments",
        "4 features",
        "at 90% on 200 held-out atoms",
        f"Si {calibration.scale['Si']:.3g}",
        f"all {coverage['all']:.3f}",
        f"inside {coverage['region']['inside']['coverage']:.3f}",
        f"{calibration.force_rmse_validation:.4g} eV/Å",
        f"auroc {calibration.metrics['auroc']:.3g}",
    ):
        assert text in shown, (text, shown)
    bare = PotentialData.import_package(toy_package).store()
    shown = " ".join(invoke("show", str(bare.pk)).output.replace("│", " ").split())
    assert "none: its novelty cannot be told" in shown
    assert "none: it takes a committee" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cutoff", "-3"], "positive length"),
        (["--engine", "gap"], "known are nequip, allegro"),
        (["--reference", "Si=-1"], "name one of the fidelities"),
        (["--fidelity", "pbe", "--reference", "Si"], "expected [FIDELITY:]SYMBOL=EV"),
        (["--fidelity", "pbe", "--reference", "hse:Si=1"], "name one of the fidelities"),
        (["--fidelity", "pbe", "--reference", "Xy=1"], "expected [FIDELITY:]SYMBOL=EV"),
    ],
)
def test_bad_options_store_nothing(toy_package: Path, options: list[str], message: str) -> None:
    before = orm.QueryBuilder().append(orm.Node).count()
    result = invoke("import", str(toy_package), *options)
    assert result.exit_code == 1
    assert message in result.output
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_damaged_files_and_wrong_nodes(toy_package: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.nequip.zip"
    half.write_bytes(toy_package.read_bytes()[:1000])
    for path, message in ((half, "half.nequip.zip: not a readable model package"), (tmp_path / "no", "no such file")):
        result = invoke("import", str(path))
        assert result.exit_code == 1
        assert message in result.output.replace("\n", " ")
    number = orm.Int(3).store()
    assert "is a Int, not a potential" in invoke("show", str(number.pk)).output
    assert "no potential '999999'" in invoke("show", "999999").output
