"""Adaptive attacks on reverse attention: batches, order, devices, stops change no flag."""

import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.defences import declared
from tests.attacks.test_autoattack_driver import assert_equal
from tests.defences.test_reverse_attention_attacks import MODULE, examples, network
from tests.support.processes import run_python

PREDICT = network(5)
COUNT, EPSILON = 20, 0.02
ORDER = np.random.default_rng(0).permutation(COUNT)
PER_EXAMPLE = ("robust", "broken_by", "target", "queries")


def problem():
    """Images whose natural predictions are their labels."""
    images, _ = examples(COUNT)
    return np.asarray(images), np.asarray(jnp.argmax(PREDICT(images).logits, -1))


def run(order=None, predict=PREDICT, progress=None, **options):
    """The attacks of the smallest budget, in few steps, on the examples in a given order."""
    images, labels = problem()
    order = np.arange(COUNT) if order is None else order
    (defence,) = declared(MODULE, predict)
    quick = [attack for attack in defence.attacks if attack.level == "quick"]
    budget = attacks.AdaptiveBudget(
        num_steps=4, num_targets=2, num_restarts=1, num_queries=8, exhaustive=True,
        targeted_on_all=False,
    )  # fmt: skip
    return attacks.adaptive(
        predict, images[order], labels[order], indices=order, epsilon=EPSILON, budget=budget,
        defences=[dataclasses.replace(defence, attacks=quick)], progress=progress, **options,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def whole():
    return run(batch_size=COUNT)


def test_there_is_something_to_find(whole):
    assert 0 < whole.robust_accuracy < 1 and len(set(whole.broken_by)) > 3
    judged = attacks.is_adversarial(PREDICT, whole.images, *problem(), attacks.Linf(EPSILON))
    np.testing.assert_array_equal(judged, ~whole.robust)
    on_all = [record for record in whole.records if record.attacked == COUNT]
    assert 3 < len(on_all) < len(whole.records)
    # The others get what all attacks before them left.
    for before, record in itertools.pairwise(whole.records):
        assert record in on_all or record.attacked == round(COUNT * before.accuracy_after)
    accuracies = [record.own_accuracy for record in on_all]
    assert len(set(accuracies)) > 3 and whole.robust_accuracy <= min(accuracies)
    names = [record.name for record in whole.records]
    assert names[0] == "a6-square-gate2"  # eight queries are the cheapest here
    assert names.index("a4-joint-2-cross_entropy") < names.index("a7-trunk-warm")


def test_stopped_again_and_again_it_ends_with_the_same_flags(whole, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def a_second_each(event):
        now[0] += event.attack != "clean"

    left = []
    for size in [3, COUNT] * 20:  # what is left may be done in batches of another size
        found = run(batch_size=size, state_path=tmp_path, max_seconds=4, progress=a_second_each)
        if found.complete:
            break
        assert found.records == whole.records[: len(found.records)]
        left.append(found.robust.sum())
    assert len(left) > 5 and left == sorted(left, reverse=True) and left[0] > left[-1]
    assert_equal(found, whole, 1e-5)
    assert found.complete


def elsewhere(path):
    """Runs in a process of its own: another order, in other batches, on eight devices."""
    assert len(jax.devices()) == 8
    on_one = jax.device_put(PREDICT, jax.devices()[0])  # where somebody has put the weights
    found = run(ORDER, on_one, batch_size=8)
    np.savez(path, **{name: getattr(found, name) for name in (*PER_EXAMPLE, "images")})


@pytest.mark.slow
def test_batches_order_and_devices_do_not_matter(whole, tmp_path):
    path = str(tmp_path / "eight.npz")
    code = f"import tests.defences.test_adaptive_evaluation as t; t.elsewhere({path!r})"
    run_python(code, devices=8, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    with np.load(path) as eight:
        assert_equal(dataclasses.replace(whole, **eight), whole, 1e-5, ORDER)
