import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax.errors import UsageError
from ancra_jax.methods import negatives
from ancra_jax.methods.negatives import choose_negatives, random_negatives
from ancra_jax.ops.files import read_arrays
from tests.support.reference_weights import GOLDEN

STRATEGIES = ("random", "soft", "hard", "easy")


def keys_of(size, seed=0):
    return jax.random.split(jax.random.key(seed), size)


@pytest.mark.parametrize("strategy", ["soft", "hard", "easy"])
def test_strategies_agree_with_the_reference(strategy):
    golden = read_arrays(GOLDEN / "negatives.npz")
    labels = jnp.asarray(golden["y"], jnp.int32)
    chosen = choose_negatives(strategy, keys_of(len(labels)), labels, jnp.asarray(golden["logits"]))
    np.testing.assert_array_equal(chosen.positions, golden[strategy])
    np.testing.assert_array_equal(labels[chosen.positions], golden[f"{strategy}_label"])
    np.testing.assert_array_equal(chosen.fallback, golden[f"{strategy}_fallback"])
    assert chosen.valid.all()


def numpy_choice(strategy, labels, logits):
    """The rule read off the paper, one anchor after the other; None where nothing qualifies."""
    predicted = logits.argmax(1)
    chosen = []
    for i in range(len(labels)):
        admitted = {
            "soft": predicted == predicted[i],
            "hard": predicted == labels[i],
            "easy": (predicted != labels[i]) & (predicted != predicted[i]),
        }[strategy] & (labels != labels[i])
        scores = np.where(admitted, logits[:, labels[i]], -np.inf)
        chosen.append(int(scores.argmax()) if admitted.any() else None)
    return chosen


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 5), strategy=st.sampled_from(STRATEGIES))
def test_any_strategy_on_any_batch(seed, classes, strategy):
    size = 12
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    logits = rng.standard_normal((size, 5)).astype(np.float32)
    chosen = choose_negatives(
        strategy, keys_of(size, seed), jnp.asarray(labels, jnp.int32), jnp.asarray(logits)
    )
    positions, valid = np.asarray(chosen.positions), np.asarray(chosen.valid)
    several_classes = len(set(labels)) > 1
    assert valid.all() if several_classes else not valid.any()
    assert (labels[positions] != labels)[valid].all()
    if strategy != "random" and several_classes:
        expected = numpy_choice(strategy, labels, logits)
        for position, fallback, choice in zip(positions, chosen.fallback, expected, strict=True):
            assert bool(fallback) == (choice is None)
            assert choice is None or position == choice


def test_random_is_uniform_over_other_classes_then_over_their_examples():
    labels = jnp.asarray([0, 1, 1, 1, 2], jnp.int32)
    draws = jax.vmap(lambda key: random_negatives(jax.random.split(key, 5), labels)[0])(
        jax.random.split(jax.random.key(1), 6000)
    )
    of_first = np.bincount(np.asarray(draws[:, 0]), minlength=5) / 6000
    np.testing.assert_allclose(of_first, [0, 1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=0.03)
    of_last = np.bincount(np.asarray(draws[:, 4]), minlength=5) / 6000
    np.testing.assert_allclose(of_last, [1 / 2, 1 / 6, 1 / 6, 1 / 6, 0], atol=0.03)


def test_jitted_equals_not_jitted():
    labels = jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32)
    logits = jax.random.normal(jax.random.key(0), (6, 3))
    for strategy in STRATEGIES:
        choose = lambda k, y, z: choose_negatives(strategy, k, y, z)  # noqa: B023, E731
        chex.assert_trees_all_equal(
            choose(keys_of(6), labels, logits), jax.jit(choose)(keys_of(6), labels, logits)
        )


def test_an_unknown_strategy_and_missing_logits_are_refused():
    labels = jnp.asarray([0, 1], jnp.int32)
    with pytest.raises(UsageError, match=r"'hardest'.*'hard'.*random, soft, hard, easy"):
        choose_negatives("hardest", keys_of(2), labels)
    with pytest.raises(ValueError, match=r"'soft'.*logits"):
        choose_negatives("soft", keys_of(2), labels)
    with pytest.raises(UsageError, match="'random'"):
        negatives.register("random")


@negatives.register("last")
def last(labels, logits):
    positions = jnp.arange(len(labels), dtype=jnp.float32)
    scores = jnp.broadcast_to(positions, (len(labels), len(labels)))
    return jnp.where(labels[:, None] == 2, -jnp.inf, scores)


def test_a_strategy_of_ones_own_chooses_by_its_scores():
    assert {*STRATEGIES, "last"} <= set(negatives.available())
    labels = jnp.asarray([0, 1, 2, 0, 1, 1], jnp.int32)
    chosen = choose_negatives("last", keys_of(6), labels, jnp.zeros((6, 3)))
    # Never one of the anchor's own class, whatever its score; class 2 has no candidate.
    np.testing.assert_array_equal(np.delete(chosen.positions, 2), [5, 3, 5, 3, 3])
    np.testing.assert_array_equal(chosen.fallback, labels == 2)
    assert labels[chosen.positions[2]] != 2
