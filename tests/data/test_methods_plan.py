"""Laws of the plan that compares methods: equal steps, equal rows, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import example, given
from hypothesis import settings as run
from hypothesis import strategies as st

from aiida_mlip.data.methods_plan import plan_of
from aiida_mlip.errors import InvalidInputError, SpeciesError
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.protocols.train_fidelities import METHODS, TRAININGS

SPEC = {"protocol": "fast", "max_epochs": 30, "multi_fidelity": {"fidelities": ["lda", "pbe"]}}


def labelled(cells, fidelity: str, *, symbol: str = "Si") -> Frames:
    images = []
    for number in cells:
        atoms = bulk(symbol, "diamond", a=5.3 + 0.01 * number)
        values = np.random.default_rng([number, len(fidelity)])
        atoms.calc = SinglePointCalculator(atoms, energy=float(values.normal()), forces=values.normal(size=(2, 3)))
        images.append(atoms)
    return from_ase(images, fidelity=fidelity)


def levels(n_low: int, n_high: int) -> Frames:
    return concatenate([labelled(range(n_low), "lda"), labelled(range(n_high), "pbe")])


@given(n_low=st.integers(20, 80), n_high=st.integers(6, 18), batch=st.integers(1, 8))
@example(n_low=49, n_high=11, batch=3)
@run(max_examples=15, deadline=None)
def test_all_trainings_make_the_same_number_of_steps(n_low, n_high, batch):
    """Up to one epoch; whoever has most rows has the epochs that were asked for. Else all have those."""
    spec = {**SPEC, "batch_size": batch}
    plan = plan_of(levels(n_low, n_high), spec, METHODS)
    steps, epochs = plan.summary["steps_per_epoch"], plan.summary["epochs"]
    most = max(steps.values()) * 30
    assert min(epochs.values()) == 30
    for name, count in steps.items():
        assert most <= count * epochs[name] < most + count
        assert train_settings(plan.settings[name]).max_epochs == epochs[name]
    equal = plan_of(levels(n_low, n_high), spec, METHODS, equal_steps=False)
    assert set(equal.summary["epochs"].values()) == {30}


def test_settings_of_the_trainings():
    """Nothing is held out twice, each at its own fidelity; what counts epochs is stretched with them."""
    spec = {**SPEC, "stop_after": 10, "optimizer": {"warmup_epochs": 3}}
    fine_tune = {"max_epochs": 7, "optimizer": {"learning_rate": 0.001}}
    plan = plan_of(levels(40, 10), spec, METHODS, fine_tune=fine_tune)
    full = {name: train_settings(value) for name, value in plan.settings.items()}
    assert set(full) == {name for names in TRAININGS.values() for name in names}
    assert {settings.split.test for settings in full.values()} == {0.0}
    assert {name: settings.target for name, settings in full.items()} == {
        "embedding": "pbe",
        "types": "pbe",
        "pooled": "pbe",
        "high_only": "pbe",
        "pretrain": "lda",
        "fine_tune": "pbe",
        "difference": "pbe_minus_lda",
        "delta": "pbe",
    }
    joint = {name: one.multi_fidelity.method for name, one in full.items() if one.multi_fidelity is not None}
    assert joint == {name: name for name in ("embedding", "types", "pooled")}
    factor = full["high_only"].max_epochs / 30
    assert factor > 2
    assert full["high_only"].stop_after == pytest.approx(10 * factor, abs=1)
    assert full["high_only"].optimizer.warmup_epochs == pytest.approx(3 * factor, abs=1)
    assert (full["fine_tune"].max_epochs, full["fine_tune"].optimizer.learning_rate) == (7, 0.001)
    assert full["high_only"].optimizer.learning_rate != 0.001


def test_of_several_cheap_fidelities_the_largest_is_taken():
    """Fine-tuning begins at the one with most labels, a difference at one that shares frames with the target."""
    frames = concatenate([levels(20, 10), labelled(range(50, 90), "tb")])
    spec = {**SPEC, "multi_fidelity": {"fidelities": ["tb", "lda", "pbe"]}}
    plan = plan_of(frames, spec, ("delta", "fine_tune", "embedding"))
    assert plan.summary["low"] == {"fine_tune": "tb", "delta": "lda"}
    counts = plan.summary["labels"]
    assert set(counts["delta"]) == {"lda", "pbe"}
    assert counts["embedding"] == {"tb": 40, "lda": counts["delta"]["lda"], "pbe": counts["delta"]["pbe"]}
    assert plan.summary["gap"]["tb"] == {"n_frames": 0, "force_rms_ev_per_ang": None, "energy_rms_ev_per_atom": None}


def test_each_refusal_names_its_method():
    frames = levels(20, 10)
    other = concatenate([frames, labelled(range(90, 100), "lda", symbol="Ge")])
    with pytest.raises(SpeciesError, match="delta: the rows to measure on have Ge"):
        plan_of(other, SPEC, ("delta",))
    test = labelled(range(90, 92), "pbe", symbol="Ge")
    with pytest.raises(SpeciesError, match="embedding: the rows to measure on have Ge"):
        plan_of(frames, SPEC, ("embedding",), test=test)
    with pytest.raises(InvalidInputError, match="high_only: 1 labelled rows form only 1 group"):
        plan_of(levels(20, 1), SPEC, ("high_only",), test=labelled([99], "pbe"))
    with pytest.raises(InvalidInputError, match="difference: 1 labelled rows form only 1 group"):
        plan_of(
            concatenate([levels(20, 1), labelled(range(50, 60), "pbe")]),
            SPEC,
            ("delta",),
            test=labelled([99], "pbe"),
        )
