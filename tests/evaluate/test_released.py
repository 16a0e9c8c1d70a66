"""The attacks of the authors' code, against direct NumPy of what their script does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.cli.progress import Bar
from ancra_jax.data import Split
from ancra_jax.errors import UsageError
from ancra_jax.evaluate import released
from ancra_jax.evaluate.spec import Target, Task
from ancra_jax.types import Batch
from tests.support.small_runs import small_config

PIXELS, CLASSES, EPSILON, STEP, STEPS = 6, 3, 0.1, 0.03, 5
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(PIXELS, CLASSES)).astype(np.float32)


@jax.tree_util.Partial
def linear(images):
    return images.reshape(len(images), -1) @ KERNEL


def their_attack(start, images, labels, groups):
    """Their C&W on the linear network, one group at a time."""
    x = start.copy()
    for rows in groups:
        for _ in range(STEPS):
            logits = x[rows] @ KERNEL
            y = labels[rows]
            others = np.where(np.eye(CLASSES, dtype=bool)[y], -np.inf, logits).argmax(1)
            total = (logits[np.arange(len(y)), y] - logits[np.arange(len(y)), others]).sum()
            # The gradient of -relu(total).
            gradient = (KERNEL[:, others] - KERNEL[:, y]).T * (total > 0)
            moved = x[rows] + STEP * np.sign(gradient)
            moved = np.clip(moved - images[rows], -EPSILON, EPSILON) + images[rows]
            x[rows] = np.clip(moved, 0, 1)
    return x


@pytest.mark.parametrize("together", [3, 4, 200])
def test_the_margins_of_a_group_are_followed_until_their_sum_is_0(together):
    images = RNG.uniform(size=(8, PIXELS)).astype(np.float32)
    start = images + RNG.uniform(-EPSILON, EPSILON, images.shape).astype(np.float32)
    predicted = (images @ KERNEL).argmax(1)
    labels = predicted.copy()
    labels[:2] = (labels[:2] + 1) % CLASSES  # misclassified: they are followed with the others
    count = 7  # the last row fills the batch
    images[count:], start[count:], labels[count:] = images[count - 1], start[count - 1], labels[6]
    groups = [slice(i, min(i + together, count)) for i in range(0, count, together)]
    expected = their_attack(start[:count], images[:count], labels, groups)

    shape = (8, 1, PIXELS, 1)
    indices = jnp.minimum(jnp.arange(8) + 400, 400 + count - 1)
    settings = released.Settings("linf", EPSILON, "margin", STEP, STEPS, True, together=together)
    found = released.follow_summed_margins(
        linear,
        jnp.asarray(start).reshape(shape),
        Batch(jnp.asarray(images).reshape(shape), jnp.asarray(labels), indices),
        attacks.threat_model("linf", EPSILON),
        settings,
    )
    np.testing.assert_allclose(found.reshape(8, -1)[:count], expected, atol=1e-6)


def test_fgsm_starts_at_a_random_point_that_is_not_clipped(tmp_path):
    fgsm, cw = released.specs(small_config("trades"))
    assert (fgsm.name, cw.name) == ("fgsm_released", "cw20_released")
    images = jnp.asarray(RNG.integers(0, 2, (4, 1, PIXELS, 1)), jnp.float32)
    labels, indices = jnp.arange(4) % CLASSES, jnp.arange(4)
    task = Task(
        Target(
            linear,
            Split(np.zeros((4, 1, PIXELS, 1), np.uint8), np.arange(4, dtype=np.int32)),
            4,
            images.sharding,
        ),
        {"settings": fgsm.settings | {"epsilon": EPSILON, "step_size": EPSILON}},
        tmp_path,
        np.asarray(labels),
        jax.random.key(0),
        Bar("fgsm", 4),
    )
    ball = attacks.threat_model("linf", EPSILON)
    found = released.attack(task, Batch(images, labels, indices), ball)
    noise = ball.noise(attacks.example_keys(task.key, indices), images)
    start = images + EPSILON * noise
    assert start.min() < 0 or start.max() > 1
    q = jax.nn.softmax(linear(start))
    gradient = (q - np.eye(CLASSES)[labels]) @ KERNEL.T
    moved = start + EPSILON * np.sign(gradient).reshape(images.shape)
    expected = np.clip(np.clip(moved, images - EPSILON, images + EPSILON), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_norm_than_theirs_is_refused():
    config = small_config("trades", evaluation__norm="l2")
    with pytest.raises(UsageError, match=r"--suite=released: .*evaluation\.norm='l2'.*'linf'"):
        released.specs(config)
