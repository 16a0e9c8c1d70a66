"""Surrogates that a defence declares, on input quantisation, whose gradient is zero everywhere."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks.adaptive import BUDGETS, loss_on, plan
from tests.support.small_mlp import WEIGHTS, examples, mlp, mlp_model

EPSILON = 0.08


def quantised(weights, images):
    return mlp(weights, jnp.round(8 * images) / 8)


def straight_through(weights, images):
    return mlp(weights, images + jax.lax.stop_gradient(jnp.round(8 * images) / 8 - images))


MODEL = jax.tree_util.Partial(quantised, WEIGHTS)
SURROGATE = jax.tree_util.Partial(straight_through, WEIGHTS)
DEFENCE = attacks.Defence("quantisation", [attacks.Surrogate("straight-through", SURROGATE)])
BUDGET = attacks.AdaptiveBudget(15, 2, 1, 30, exhaustive=True)
NATURAL = examples(MODEL)
suite = partial(attacks.adaptive, MODEL, *NATURAL, epsilon=EPSILON, budget=BUDGET, progress=None)


def test_surrogates_break_what_the_models_own_gradient_cannot():
    """The start is all that APGD on the model itself has; the suite follows the surrogate."""
    plain = attacks.autoattack(
        MODEL, *NATURAL, epsilon=EPSILON, version="custom", attacks_to_run=["apgd-ce"],
        num_steps=15, progress=None,
    )  # fmt: skip
    assert "zero input gradient on 11 of 11" in plain.warnings[0]
    result = suite(defences=[DEFENCE])
    assert result.robust_accuracy < plain.robust_accuracy
    assert [record.name for record in result.records] == [
        "straight-through-ce", "straight-through-dlr", "straight-through-targeted_dlr",
    ]  # fmt: skip
    broken = ~result.robust & (result.broken_by != "clean")
    judged = attacks.is_adversarial(MODEL, result.images, *NATURAL, attacks.Linf(EPSILON))
    np.testing.assert_array_equal(np.asarray(judged)[broken], True)
    assert result.robust_accuracy <= min(record.own_accuracy for record in result.records)


def test_what_fools_the_surrogate_alone_does_not_count():
    other = mlp_model(seed=1)
    defence = attacks.Defence("", [attacks.Surrogate("other", other, losses=("ce",))])
    (record,) = suite(defences=[defence]).records
    ball = attacks.Linf(EPSILON)
    on_other = attacks.apgd(other, *NATURAL, ball, key=jax.random.key(0), num_steps=15)
    fooled = np.asarray(on_other.success) & (np.arange(11) >= 2)
    assert fooled.sum() > record.broken


def test_other_models_are_transferred_from_and_warm_starts():
    """A network with the same weights and a gradient is the best of all sources."""
    result = suite(transfer_from={"twin": mlp_model(), "stranger": mlp_model(seed=1)})
    own = {record.name: record.own_accuracy for record in result.records}
    assert own["transfer-twin-ce"] < own["transfer-stranger-ce"]
    groups = {record.name: record.group for record in result.records}
    assert groups.pop("square-margin") == "" and set(groups.values()) == {"A7"}
    assert own["square-margin"] < 9 / 11  # a model without a defence is attacked all the same
    # The model's own margin has no gradient: where the twin has not succeeded, nothing moves on.
    assert own["warm-twin"] <= own["transfer-twin-ce"] + 1 / 11


def test_a_warm_start_is_where_apgd_goes_on():
    """Along a margin without a gradient the cold attack stays where it begins."""
    cold = attacks.SurrogateAttack("cold", loss_on(MODEL, "margin"))
    warm = attacks.SurrogateAttack(
        "warm", loss_on(MODEL, "margin"), warm_start=loss_on(mlp_model(), "margin")
    )
    found = [suite(defences=[attacks.Defence("", [a])]) for a in (cold, warm)]
    (by_cold,), (by_warm,) = (result.records for result in found)
    assert by_warm.broken > by_cold.broken
    attacked = NATURAL[1] == np.asarray(MODEL(jnp.asarray(NATURAL[0]))).argmax(axis=1)
    spent = [result.queries[attacked] - 2 for result in found]  # natural image, judgement
    np.testing.assert_array_equal(spent[1], 2 * spent[0])


@pytest.mark.parametrize("search", ["pgd", "square"])
def test_other_searches_ascend_the_surrogate(search):
    attack = attacks.SurrogateAttack("along", loss_on(SURROGATE, "margin"), search=search)
    (record,) = suite(defences=[attacks.Defence("", [attack])]).records
    assert record.attacked == 9 and record.broken > 0


def test_the_losses_fit_the_number_of_classes():
    for classes, losses in [
        (2, ["ce", "margin", "targeted_margin"]),
        (3, ["ce", "dlr", "targeted_margin"]),
        (4, ["ce", "dlr", "targeted_dlr"]),
    ]:
        names = [attack.name for attack in DEFENCE.attacks[0].attacks(classes)]
        assert names == [f"straight-through-{loss}" for loss in losses]
    with pytest.raises(ValueError, match=r"loss='kl': .* ce, dlr"):
        loss_on(MODEL, "kl")


def test_budgets_choose_attacks_and_order_them_by_cost():
    declared = [
        attacks.SurrogateAttack("dear", loss_on(MODEL, "ce"), search="square"),
        attacks.SurrogateAttack("each", loss_on(MODEL, "targeted_dlr"), targeted=True),
        attacks.SurrogateAttack("cheap", loss_on(MODEL, "ce")),
        attacks.SurrogateAttack("rare", loss_on(MODEL, "ce"), level="thorough"),
    ]
    chosen = partial(plan, MODEL, 5, [attacks.Defence("", declared)], {}, BUDGETS["quick"])
    assert [attack.name for attack in chosen(["quick"])] == ["cheap", "each", "dear"]
    assert [attack.name for attack in chosen()] == ["cheap", "rare", "each", "dear"]
    unchecked = inspect.unwrap(attacks.adaptive)  # without its types
    with pytest.raises(ValueError, match=r"budget='fast': .* 'quick', 'standard'"):
        unchecked(MODEL, *examples(), epsilon=EPSILON, budget="fast")
