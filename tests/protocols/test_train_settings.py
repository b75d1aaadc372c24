"""Settings of a training: protocols, overrides, messages."""

from __future__ import annotations

import pytest

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.model import PROTOCOLS
from aiida_mlip.protocols.train import FEWEST_TO_CHOOSE, lower_learning_rate, reduce_batch_size, train_settings


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_are_valid_and_stable_under_a_round_trip(protocol):
    found = train_settings({"protocol": protocol})
    assert train_settings(found.model_dump()) == found


def test_precise_costs_more_than_fast():
    fast, precise = (train_settings({"protocol": name}) for name in ("fast", "precise"))
    assert precise.model.num_layers > fast.model.num_layers
    assert precise.max_epochs > fast.max_epochs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"protocol": "fsat"}, "did you mean 'fast'"),
        ({"model": {"cutof_ang": 4.0}}, r"train\.model\.cutof_ang: unknown key.*did you mean 'cutoff_ang'"),
        ({"model": {"cutoff_ang": -4.0}}, r"train\.model\.cutoff_ang.*greater than 0.*-4\.0"),
        ({"split": {"test": 0.6, "val": 0.5}}, "test \\+ val must stay below 1"),
        ({"loss": {"energy": 0, "forces": 0, "stress": 0}}, "all weights of the loss are zero"),
        ({"nequip": {"trainr": {}}}, "did you mean 'trainer'"),
        ({"committee": 0}, "committee"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ProtocolError, match=message):
        train_settings(spec)


def test_not_a_mapping():
    with pytest.raises(ProtocolError, match="expected a mapping"):
        train_settings([1])  # type: ignore[arg-type]  # on purpose


def test_lower_learning_rate_changes_only_that_and_clipping():
    before = train_settings({"protocol": "fast"})
    after = train_settings(lower_learning_rate({"protocol": "fast"}, factor=0.5))
    assert after.optimizer.learning_rate == pytest.approx(before.optimizer.learning_rate / 2)
    assert after.grad_clip == 10.0
    changed = after.model_copy(update={"optimizer": before.optimizer, "grad_clip": before.grad_clip})
    assert changed == before


def test_reduce_batch_size_halves_until_one():
    spec = {"protocol": "fast", "batch_size": 5}
    sizes = []
    while train_settings(spec).batch_size > 1:
        spec = reduce_batch_size(spec)
        sizes.append(spec["batch_size"])
    assert sizes == [2, 1]
    with pytest.raises(ProtocolError, match="already 1"):
        reduce_batch_size(spec)


# -- several levels of theory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"multi_fidelity": {"fidelities": ["pbe"]}}, "multi_fidelity.fidelities.*at least 2"),
        (
            {"multi_fidelity": {"fidelities": ["lda", "pbe", "lda"]}},
            "two fidelities with the same index: 'lda' is named as number 0 and as number 2",
        ),
        ({"multi_fidelity": {"fidelities": ["lda", "pbe"]}, "fidelity": "hse"}, "'hse' is none of multi_fidelity"),
        ({"multi_fidelity": {"fidelities": ["lda", "pbe"], "target_share": 1.0}}, "target_share.*less than 1"),
        ({"multi_fidelity": {"fidelities": ["lda", "pbe"], "method": "delta"}}, "method.*'delta'"),
        (
            {
                "multi_fidelity": {"fidelities": ["lda", "pbe"], "method": "embedding"},
                "model": {"architecture": "allegro"},
            },
            "multi_fidelity.method: 'embedding' needs model.architecture 'nequip'; .* use 'types'",
        ),
        ({"model": {"architecture": "schnet"}}, "architecture.*'schnet'"),
        ({"model": {"num_tensor_features": 4}}, "num_tensor_features: only Allegro"),
        ({"multi_fidelity": {"fidelitys": ["lda", "pbe"]}}, "did you mean 'fidelities'"),
    ],
)
def test_mistakes_of_several_levels_are_named(spec, message):
    with pytest.raises(ProtocolError, match=message):
        train_settings(spec)


def test_the_target_is_the_last_level_or_the_one_named():
    several = {"fidelities": ["lda", "pbe"]}
    assert train_settings({"multi_fidelity": several}).target == "pbe"
    assert train_settings({"multi_fidelity": several, "fidelity": "lda"}).target == "lda"
    assert train_settings({}).target is None
    assert [
        train_settings({"multi_fidelity": {**several, "method": name}}).joint for name in ("embedding", "pooled")
    ] == [
        True,
        False,
    ]


def test_allegro_has_types_of_every_level():
    """By default; NequIP only where it is asked for."""
    several = {"fidelities": ["lda", "pbe", "hse"]}
    allegro = {"architecture": "allegro"}
    found = [
        train_settings({"multi_fidelity": levels, "model": model})
        for levels, model in (
            (several, allegro),
            (several, {}),
            ({**several, "method": "types"}, {}),
            ({**several, "method": "pooled"}, allegro),
            (None, allegro),
        )
    ]
    assert [each.method for each in found] == ["types", "embedding", "types", "pooled", None]
    assert [each.level_types for each in found] == [3, 1, 3, 1, 1]
    assert [each.joint for each in found] == [True, True, True, False, False]


def test_settings_of_several_levels_survive_a_round_trip():
    found = train_settings({"multi_fidelity": {"fidelities": ["lda", "pbe"], "num_features": 4}})
    assert train_settings(found.model_dump()) == found
    assert train_settings({**train_settings({}).model_dump(exclude={"multi_fidelity"})}).levels == ()


def test_few_dear_rows_do_not_choose_the_weights():
    several = {"protocol": "fast", "multi_fidelity": {"fidelities": ["lda", "pbe"]}}
    assert train_settings(several).keeps_last(FEWEST_TO_CHOOSE - 1)
    assert not train_settings(several).keeps_last(FEWEST_TO_CHOOSE)
    assert not train_settings({"protocol": "fast"}).keeps_last(1)
    assert not train_settings({**several, "stop_after": 5}).keeps_last(1)
    assert not train_settings({**several, "optimizer": {"schedule": "constant"}}).keeps_last(1)
    assert train_settings({"protocol": "fast", "checkpoint": "last"}).keeps_last(100)
    assert not train_settings({**several, "checkpoint": "best"}).keeps_last(1)
