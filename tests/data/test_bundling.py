"""How the size of bundles is chosen: stated, from measured costs, or from electrons, volume, mesh and cutoff."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from aiida_mlip.data.bundling import bundled_rows, dataset_with_costs, expected_costs, machine_factor
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.protocols.fidelity import parse_fidelities, settings_hash
from aiida_mlip.workchains.label_inputs import family_of, resolved_fidelities

SPEC = {
    "engine": "qe",
    "protocol": "fast",
    "pseudo_family": "debian-lda",
    "ecutwfc_ry": 20,
    "occupations": "fixed",
    "kpoints_distance_inv_ang": 0.6,
    "bundle_size": None,
}
SETTINGS = "ab" * 32


def pseudos():
    return {"Si": family_of("debian-lda").get_pseudo("Si")}


@pytest.fixture
def dataset(pseudo_family):
    """Three small cells, and one of 64 atoms."""
    images = [bulk("Si", a=5.3 + 0.1 * i) for i in range(3)]
    return DatasetData.from_frames(from_ase([*images, bulk("Si", cubic=True, a=5.4) * 2]))


def chosen(dataset, rows=(0, 1, 2, 3), measured=(), **changes):
    spec = parse_fidelities({"lda": SPEC | changes})["lda"]
    return bundled_rows(expected(dataset, rows, measured, **changes).core_seconds, spec.bundle_size)


def expected(dataset, rows=(0, 1, 2, 3), measured=(), other=None, **changes):
    spec = parse_fidelities({"lda": SPEC | changes})["lda"]
    return expected_costs(dataset, np.array(rows), spec, SETTINGS, pseudos=pseudos(), measured=measured, other=other)


def labelled(costs, *, settings=SETTINGS):
    """A dataset of two-atom cells that took so long."""
    n = len(costs)
    frames = from_ase([bulk("Si", a=5.0 + 0.01 * i) for i in range(n)])
    frames = frames.with_columns(
        energy=np.full(n, -200.0),
        forces=np.zeros((2 * n, 3)),
        cost=np.array(costs, dtype="<f4"),
        fidelity=np.zeros(n, dtype="<i2"),
        fidelities=("other_name",),
    )
    return DatasetData.from_frames(frames, settings={"other_name": settings})


def test_unmeasured_frames_are_judged_by_what_they_are(dataset):
    assert chosen(dataset) == ([[0, 1, 2]], [3])
    assert chosen(dataset, rows=(3, 2, 0)) == ([[1, 2]], [0])
    assert chosen(dataset, ecutwfc_ry=100, kpoints_distance_inv_ang=0.1) == ([], [0, 1, 2, 3])
    assert chosen(dataset, kpoints_distance_inv_ang=3.0, ecutwfc_ry=4) == ([[0, 1, 2, 3]], [])
    assert chosen(dataset, input_dft="HSE") == ([], [0, 1, 2, 3]), "nobody knows what another functional costs"


def test_measured_costs_decide(dataset):
    assert chosen(dataset, measured=[labelled([500.0, 500.0])]) == ([], [0, 1, 2, 3])
    # a power of the number of atoms: 64 atoms take a thousand times as long as two
    assert chosen(dataset, measured=[labelled([1.0, 1.0])], input_dft="HSE") == ([[0, 1, 2]], [3])
    assert chosen(dataset, measured=[labelled([0.01, np.nan])], input_dft="HSE") == ([[0, 1, 2, 3]], [])
    other = labelled([500.0, 500.0], settings="cd" * 32)
    assert chosen(dataset, measured=[other]) == chosen(dataset), "other settings, other costs"


def test_the_profile_is_asked_for_measured_costs(dataset):
    known = labelled([3.0, 4.0], settings="12" * 32).store()
    labelled([np.nan], settings="12" * 32).store()
    assert dataset_with_costs("12" * 32).pk == known.pk
    assert dataset_with_costs("34" * 32) is None


def test_a_stated_size_is_kept(dataset):
    assert chosen(dataset, bundle_size=2) == ([[0, 1], [2, 3]], [])
    assert chosen(dataset, bundle_size=3) == ([[0, 1, 2]], [3])
    assert chosen(dataset, bundle_size=9, ecutwfc_ry=100) == ([[0, 1, 2, 3]], [])


def test_the_size_is_no_setting_and_survives_the_builder(dataset):
    hashes = {settings_hash(parse_fidelities({"x": SPEC | {"bundle_size": size}})["x"]) for size in (None, 1, 50)}
    assert len(hashes) == 1
    for size in (None, 1, 50):
        written = resolved_fidelities({"x": SPEC | {"bundle_size": size}}, ["Si"])
        assert parse_fidelities(written)["x"].bundle_size == size
    with pytest.raises(ValueError, match="bundle_size"):
        parse_fidelities({"x": SPEC | {"bundle_size": 0}})


def test_measured_labels_correct_the_guess(dataset):
    """By their median, on the scale of the guess; another fidelity of the machine says how fast that is."""
    guess = expected(dataset)
    assert guess.source == "guessed"
    assert guess.core_seconds[3] > 200 * guess.core_seconds[0], "64 atoms against 2"
    took = labelled([2.0, 2.0, 8.0])
    known = expected(dataset, measured=[took])
    assert (known.source, known.n_labels, known.is_reliable) == ("measured", 3, False)
    assert known.core_seconds[0] == pytest.approx(2.0, rel=0.5)
    assert expected(dataset, measured=[labelled([2.0] * 12)]).is_reliable
    spec = parse_fidelities({"lda": SPEC})["lda"]
    factor = machine_factor({SETTINGS: spec}, {SETTINGS: pseudos()}, [took])
    scaled = expected(dataset, other=factor, ecutwfc_ry=40)
    assert scaled.source == "scaled"
    np.testing.assert_allclose(scaled.core_seconds, factor * expected(dataset, ecutwfc_ry=40).core_seconds)
    assert machine_factor({SETTINGS: spec}, {SETTINGS: pseudos()}, []) is None
    assert expected(dataset, other=factor, input_dft="HSE").source == "unknown"


def test_a_calculator_is_judged_by_the_number_of_atoms(dataset):
    spec = parse_fidelities({"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}})["emt"]
    rows = np.arange(4)
    unknown = expected_costs(dataset, rows, spec, SETTINGS, pseudos={})
    assert (unknown.source, np.isnan(unknown.core_seconds).all()) == ("unknown", True)
    known = expected_costs(dataset, rows, spec, SETTINGS, pseudos={}, measured=[labelled([1.0, 1.0])])
    assert known.core_seconds.tolist() == pytest.approx([1.0, 1.0, 1.0, 1024.0])
