"""Which random numbers of a step belong to what: one stream each, then one key per example."""

import jax
from jaxtyping import Array, Int, Key

from ancra_jax.attacks.model import example_keys as _example_keys

ADVERSARIAL, NEGATIVE_CHOICE, NEGATIVE_ATTACK = range(3)


def example_keys(
    key: Key[Array, ""], stream: int, indices: Int[Array, "batch"]
) -> Key[Array, "batch"]:
    """Keys of one stream of a step, derived from the step's key and the data-set indices."""
    return _example_keys(jax.random.fold_in(key, stream), indices)
