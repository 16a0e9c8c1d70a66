"""Clean and PGD accuracy on the selection split, by which the best checkpoint is chosen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from ancra_jax import attacks
from ancra_jax.attacks.model import example_keys
from ancra_jax.config.schema import AttackConfig, SelectionConfig
from ancra_jax.data import Split, batches_for_evaluation
from ancra_jax.run.averaging import NATURAL_ACCURACY, ROBUST_ACCURACY, metric_name
from ancra_jax.types import ApplyFn, Batch, Variables

Counts = tuple[Int[Array, ""], Int[Array, ""]]


def make_count_correct(
    apply: ApplyFn, attack: AttackConfig, config: SelectionConfig, key: Key[Array, ""]
) -> Callable[[Variables, Batch, Bool[Array, "batch"]], Counts]:
    """Compiles the count of correctly classified examples of a batch: natural, and under PGD.

    PGD ascends the cross-entropy of the final logits from a uniform start in the training attack's
    ball; an example is robust if it is classified correctly before and after the attack.
    """
    threat_model = attacks.threat_model(attack.norm, attack.epsilon)

    @jax.jit
    def count_correct(variables, batch, mask):
        predict = jax.tree_util.Partial(apply, variables)
        correct = lambda images: jnp.argmax(predict(images).logits, -1) == batch.labels  # noqa: E731
        adversarial = attacks.ascend(
            attacks.objectives.cross_entropy(predict, batch.labels),
            threat_model.random_start(example_keys(key, batch.indices), batch.images),
            batch.images,
            threat_model,
            step_size=config.step_size,
            num_steps=config.num_steps,
            loop="compiled",
        )
        natural = correct(batch.images) & mask
        robust = correct(adversarial) & natural
        return jnp.sum(natural), jnp.sum(robust)

    return count_correct


def evaluate_selection(
    count_correct: Callable[[Variables, Batch, Bool[Array, "batch"]], Counts],
    variables_of: dict[str, Variables],
    split: Split,
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> dict[str, float]:
    """Accuracies on a split, of each of a run's weights, named by ``metric_name``."""
    accuracies: dict[str, float] = {}
    for weights, variables in variables_of.items():
        found = _accuracies(count_correct, variables, split, batch_size, sharding)
        accuracies |= {metric_name(weights, name): value for name, value in found.items()}
    return accuracies


def _accuracies(count_correct, variables, split, batch_size, sharding):
    # Fetched from the devices once, at the end.
    counts = [
        count_correct(variables, batch, mask)
        for batch, mask in batches_for_evaluation(split, batch_size, sharding=sharding)
    ]
    natural, robust = (sum(int(count) for count in column) for column in zip(*counts, strict=True))
    return {
        NATURAL_ACCURACY: natural / len(split),
        ROBUST_ACCURACY: robust / len(split),
    }
