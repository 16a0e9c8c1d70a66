"""A method's parts on arrays: examples, and a forward that looks logits up instead of computing."""

import jax
import jax.numpy as jnp

from ancra_jax import losses, methods
from ancra_jax.losses import cross_entropy, kl_divergence
from ancra_jax.methods.core import Examples
from ancra_jax.methods.negatives import Negatives
from ancra_jax.types import Batch, Outputs
from tests.support.small_runs import small_config

BATCH, CLASSES, HEADS, TRAINING = 6, 4, 2, 10
LABELS = jnp.asarray([0, 1, 2, 3, 0, 1], jnp.int32)
INDICES = jnp.asarray([7, 2, 9, 0, 4, 5], jnp.int32)


def trades(p, q, labels):
    return cross_entropy(p, labels) + 6 * kl_divergence(p, q)


def mart(p, q, labels):
    return losses.boosted_cross_entropy(q, labels) + 5 * losses.weighted_kl(p, q, labels)


def second_order(p, q, labels):
    return sum(losses.second_order_divergence(logits, labels, 0.2) for logits in (p, q))


def trades_s2o(p, q, labels):
    kl = kl_divergence(p, q)
    return 0.7 * cross_entropy(p, labels) + 0.15 * second_order(p, q, labels) + 6 * kl


EQUATIONS = {
    "natural": lambda p, q, y: cross_entropy(p, y),
    "pgd_at": lambda p, q, y: cross_entropy(q, y),
    "trades": trades,
    "mart": mart,
    "at_s2o": lambda p, q, y: 0.9 * cross_entropy(q, y) + 0.05 * second_order(p, q, y),
    "trades_s2o": trades_s2o,
}
"""Losses of one head, of its natural logits ``p`` and its adversarial logits ``q``."""


def method_of(name, **overrides):
    """The method of a small configuration; dots in names are written as two underscores."""
    return methods.create(small_config(name, **overrides))


def outputs(seed, heads=HEADS):
    keys = jax.random.split(jax.random.key(seed))
    return Outputs(
        jax.random.normal(keys[0], (BATCH, CLASSES)),
        jax.random.normal(keys[1], (heads, BATCH, CLASSES)),
        jnp.zeros((BATCH, 3)),
    )


def every_negative(size):
    """Negatives of which none is missing, for a loss that is given their images."""
    return Negatives(jnp.zeros(size, jnp.int32), jnp.ones(size, bool), jnp.zeros(size, bool))


def images(value):
    """Images of one grey each; their pixel tells the forward below which logits to return."""
    return jnp.full((BATCH, 2, 2, 1), value)


def examples(state=None, epoch=0, extras=None, attacked=None, teacher_logits=None):
    batch = Batch(images(0.0), LABELS, INDICES)
    attacked = {"adversarial": images(1.0)} | (attacked or {})
    epoch = jnp.asarray(epoch, jnp.int32)
    return Examples(batch, attacked, extras or {}, state or {}, epoch, teacher_logits)


def terms_of(method, examples, *stored):
    """The loss of a method whose forward returns the ``i``-th outputs for images of value ``i``.

    The batch statistics count the forwards: they are the values of the images, in order.
    """

    def forward(batch_stats, images, labels):
        number = images[0, 0, 0, 0].astype(jnp.int32)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stored)
        return jax.tree.map(lambda leaf: leaf[number], stacked), [*batch_stats, number]

    return method.loss(forward, [], examples)


def over_heads(term, *stored, aux_weight=2.0):
    """``g(f') + aux_weight mean_k g(p_k)``, head by head."""
    heads = [term(*(o.aux_logits[k] for o in stored)) for k in range(len(stored[0].aux_logits))]
    return term(*(o.logits for o in stored)) + aux_weight * sum(heads) / len(heads)
