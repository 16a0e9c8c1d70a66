"""Searches in TF32, as accelerators have it; the highest precision judges what they find."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax import attacks
from tests.support import cnn_a
from tests.support.tf32 import emulated


def tilted(weights, images):
    kernel, bias = weights
    return images.reshape(len(images), -1) @ kernel + bias


def test_a_success_that_rounding_made_does_not_count(tmp_path):
    images = np.full((6, 2, 2, 1), 0.5, np.float32)
    # The first class is ahead by 4e-4; rounding its weights to 1 takes 8e-4.
    kernel = jnp.broadcast_to(jnp.array([1.0004, 1.0]), (4, 2))
    model = Partial(tilted, (kernel, jnp.array([0.0, 4e-4])))
    evaluate = partial(
        attacks.autoattack, model, images, np.zeros(6, int), epsilon=0.01, key=0, progress=None,
        version="custom", attacks_to_run=["square:num_queries=9"], checks=False,
        log_path=tmp_path / "log",
    )  # fmt: skip
    with emulated():
        fast = evaluate(search_precision="high")
        exact = evaluate()
    assert fast.robust.all() and exact.robust.all()
    assert fast.search_precision == "high" and exact.search_precision == "highest"
    assert [record.denied for record in fast.records] == [6] and fast.denied == 6
    assert exact.denied == 0
    np.testing.assert_array_equal(fast.images, images)
    assert "6 denied" in (tmp_path / "log").read_text().splitlines()[0]


def test_fast_searches_break_what_exact_ones_break():
    network = cnn_a.load()
    chosen = slice(32)
    given = (network.images[chosen], network.labels[chosen])
    ball = attacks.Linf(cnn_a.EPSILON)
    evaluate = partial(
        attacks.autoattack, network.model, *given, ball, key=0, progress=None, version="custom",
        attacks_to_run=["apgd-ce"], num_steps=8, checks=False,
    )  # fmt: skip
    with emulated():
        fast, exact = (evaluate(search_precision=name) for name in ("high", "highest"))
        with jax.default_matmul_precision("highest"):
            judged = attacks.is_adversarial(network.model, fast.images, *given, ball)
    assert not np.array_equal(fast.images, exact.images)  # another way was taken
    assert (fast.robust & ~exact.robust).sum() <= len(given[0]) / 1000
    broken = ~fast.robust & (fast.broken_by != "clean")
    assert broken.any() and np.asarray(judged)[broken].all()


def test_states_of_other_precisions_are_refused(tmp_path):
    model = Partial(tilted, (jnp.eye(4), jnp.zeros(4)))
    given = (np.full((2, 2, 2, 1), 0.5, np.float32), np.zeros(2, int))
    evaluate = partial(
        attacks.autoattack, model, *given, epsilon=0.01, progress=None, version="custom",
        attacks_to_run=["square"], num_queries=2, state_path=tmp_path, checks=False,
    )  # fmt: skip
    evaluate()
    evaluate(search_precision="highest")
    with pytest.raises(ValueError, match="state_path"):
        evaluate(search_precision="default")
    with pytest.raises(ValueError, match="search_precision='fast'"):
        evaluate(search_precision="fast")
