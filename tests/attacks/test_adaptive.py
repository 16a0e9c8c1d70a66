"""The registry of surrogates, on input quantisation, whose gradient is zero everywhere."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks.adaptive import surrogates
from ancra_jax.attacks.adaptive.api import BUDGETS, plan
from ancra_jax.attacks.adaptive.searches import SEARCHES
from ancra_jax.attacks.adaptive.surrogates import loss_on
from tests.attacks.test_autoattack import examples, mlp, mlp_model

EPSILON = 0.08
WEIGHTS = mlp_model().args[0]


def quantised(weights, images):
    return mlp(weights, jnp.round(8 * images) / 8)


def straight_through(weights, images):
    return mlp(weights, images + jax.lax.stop_gradient(jnp.round(8 * images) / 8 - images))


MODEL = jax.tree_util.Partial(quantised, WEIGHTS)
SURROGATE = jax.tree_util.Partial(straight_through, WEIGHTS)
DEFENCE = attacks.Defence("quantisation", [attacks.Surrogate("straight-through", SURROGATE)])
BUDGET = attacks.AdaptiveBudget(
    num_steps=15, num_targets=2, num_restarts=1, num_queries=30, exhaustive=True
)


@pytest.fixture(scope="module")
def natural():
    return examples(MODEL)


suite = partial(attacks.adaptive, MODEL, epsilon=EPSILON, budget=BUDGET, progress=None)


def test_surrogates_break_what_the_models_own_gradient_cannot(natural):
    """The start is all that APGD on the model itself has; the suite follows the surrogate."""
    plain = attacks.autoattack(
        MODEL, *natural, epsilon=EPSILON, version="custom", attacks_to_run=["apgd-ce"],
        num_steps=15, progress=None,
    )  # fmt: skip
    assert "zero input gradient on 11 of 11" in plain.warnings[0]
    result = suite(*natural, defences=[DEFENCE])
    assert result.robust_accuracy < plain.robust_accuracy
    assert [record.name for record in result.records] == [
        "straight-through-ce", "straight-through-dlr", "straight-through-targeted_dlr",
    ]  # fmt: skip
    images, labels = natural
    broken = ~result.robust & (result.broken_by != "clean")
    ball = attacks.Linf(EPSILON)
    judged = attacks.is_adversarial(MODEL, result.images, images, labels, ball)
    np.testing.assert_array_equal(np.asarray(judged)[broken], True)
    assert result.robust_accuracy <= min(record.own_accuracy for record in result.records)


def test_what_fools_the_surrogate_alone_does_not_count(natural):
    images, labels = natural
    other = jax.tree_util.Partial(mlp, mlp_model(seed=1).args[0])
    defence = attacks.Defence("", [attacks.Surrogate("other", other, losses=("ce",))])
    (record,) = suite(*natural, defences=[defence]).records
    ball = attacks.Linf(EPSILON)
    on_other = attacks.apgd(other, images, labels, ball, key=jax.random.key(0), num_steps=15)
    fooled = np.asarray(on_other.success) & (np.arange(11) >= 2)
    assert fooled.sum() > record.broken


def test_other_models_are_transferred_from_and_warm_starts(natural):
    """A network with the same weights and a gradient is the best of all sources."""
    twin, stranger = mlp_model(), mlp_model(seed=1)
    result = suite(*natural, transfer_from={"twin": twin, "stranger": stranger})
    own = {record.name: record.own_accuracy for record in result.records}
    assert own["transfer-twin-ce"] < own["transfer-stranger-ce"]
    groups = {record.name: record.group for record in result.records}
    assert groups.pop("square-margin") == "" and set(groups.values()) == {"A7"}
    # The model's own margin has no gradient: where the twin has not succeeded, nothing moves on.
    assert own["warm-twin"] <= own["transfer-twin-ce"] + 1 / 11


def test_a_warm_start_is_where_apgd_goes_on(natural):
    """The decision of a blind start ends elsewhere than that of a good one."""
    images, labels = natural
    keys = {"key": jax.random.key(0), "indices": jnp.arange(11), "active": jnp.ones(11, bool)}
    along_twin = loss_on(jax.tree_util.Partial(mlp, WEIGHTS), "margin")
    search = partial(
        SEARCHES["apgd"], MODEL, jnp.asarray(images), jnp.asarray(labels), attacks.Linf(EPSILON),
        objective=loss_on(MODEL, "margin"), num_steps=10, **keys,
    )  # fmt: skip
    cold, warm = search(), search(warm_start=along_twin)
    assert (warm.best_loss >= cold.best_loss).all() and (warm.best_loss > cold.best_loss).any()
    np.testing.assert_array_equal(warm.queries, 2 * cold.queries)
    assert warm.success.sum() > cold.success.sum()


@pytest.mark.parametrize("search", ["pgd", "square"])
def test_other_searches_ascend_the_surrogate(natural, search):
    along = loss_on(SURROGATE, "margin")
    attack = attacks.SurrogateAttack("along", along, search=search)
    (record,) = suite(*natural, defences=[attacks.Defence("", [attack])]).records
    assert record.attacked == 9 and record.broken > 0


def test_a_model_without_a_defence_is_attacked_all_the_same(natural):
    result = suite(*natural)
    (record,) = result.records
    assert record.name == "square-margin" and record.broken > 0


def test_the_losses_fit_the_number_of_classes():
    for classes, losses in [
        (2, ["ce", "margin", "targeted_margin"]),
        (3, ["ce", "dlr", "targeted_margin"]),
        (4, ["ce", "dlr", "targeted_dlr"]),
    ]:
        names = [attack.name for attack in DEFENCE.attacks[0].attacks(classes)]
        assert names == [f"straight-through-{loss}" for loss in losses]


def test_budgets_choose_attacks_and_order_them_by_cost():
    declared = [
        attacks.SurrogateAttack("dear", loss_on(MODEL, "ce"), search="square"),
        attacks.SurrogateAttack("each", loss_on(MODEL, "targeted_dlr"), targeted=True),
        attacks.SurrogateAttack("cheap", loss_on(MODEL, "ce")),
        attacks.SurrogateAttack("rare", loss_on(MODEL, "ce"), level="thorough"),
    ]
    defence = attacks.Defence("", declared)
    names = {
        levels: [attack.name for attack in plan(MODEL, 5, [defence], {}, BUDGETS["quick"], levels)]
        for levels in (("quick",), ("quick", "standard", "thorough"))
    }
    assert list(names.values()) == [["cheap", "each", "dear"], ["cheap", "rare", "each", "dear"]]
    unchecked = inspect.unwrap(attacks.adaptive)  # without its types
    with pytest.raises(ValueError, match="budget='fast': allowed are 'quick', 'standard'"):
        unchecked(MODEL, *examples(), epsilon=EPSILON, budget="fast")


def test_declarations_are_registered_by_name(monkeypatch):
    monkeypatch.setattr(surrogates, "_declarations", {})

    @surrogates.register_defence("quantisation")
    def declare(network, predict):
        return DEFENCE if network == "quantised" else None

    assert surrogates.declared("quantised", MODEL) == [DEFENCE]
    assert surrogates.declared("plain", MODEL) == []
    with pytest.raises(ValueError, match="'quantisation' is registered already"):
        surrogates.register_defence("quantisation")(declare)
    with pytest.raises(ValueError, match="loss='kl': allowed are ce, dlr"):
        loss_on(MODEL, "kl")
