"""Natural and PGD accuracy on the selection split, by which the best checkpoint is chosen."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from ancra_jax import attacks
from ancra_jax.attacks.model import Model, example_keys
from ancra_jax.config.schema import Config
from ancra_jax.data import Split, batches_for_evaluation
from ancra_jax.ops.images import Flags, Images
from ancra_jax.ops.target import compiler_options
from ancra_jax.run.averaging import NATURAL_ACCURACY, ROBUST_ACCURACY, metric_name
from ancra_jax.run.sharding import batch_sharded
from ancra_jax.types import ApplyFn, Batch, Logits, Variables


def _first_head(model: Model, images: Images) -> Logits:
    """Return the first auxiliary logits; what follows them is not computed."""
    return model(images).aux_logits[0]


def make_select(
    apply: ApplyFn, config: Config, key: Key[Array, ""], split: Split, mesh: Mesh
) -> Callable[[dict[str, Variables]], dict[str, float]]:
    """Return a function from the variables of a run's weights, by their name, to accuracies.

    The accuracies are called as ``metric_name`` says. PGD ascends the cross-entropy of the final
    logits from a uniform start in the training attack's ball, and with ``'final_and_first'`` of
    ``selection.heads`` in another attack that of the first auxiliary head, which no mask of reverse
    attention precedes. An example is robust if it is classified correctly, by the final logits,
    before and after every attack.
    """
    threat_model = attacks.threat_model(config.attack.norm, config.attack.epsilon)
    batch_size = config.selection.batch_size or config.batch_size
    sharding = batch_sharded(mesh)

    @partial(jax.jit, compiler_options=compiler_options())
    def count_correct(variables: Variables, batch: Batch, mask: Flags) -> Int[Array, "2"]:
        model = jax.tree_util.Partial(apply, variables)

        def correct(images: Images) -> Flags:
            return jnp.argmax(model(images).logits, -1) == batch.labels

        attacked = [model]
        if config.selection.heads == "final_and_first":
            attacked.append(jax.tree_util.Partial(_first_head, model))
        natural = robust = correct(batch.images) & mask
        for one in attacked:
            adversarial = attacks.ascend(
                attacks.objectives.cross_entropy(one, batch.labels),
                threat_model.random_start(example_keys(key, batch.indices), batch.images),
                batch.images,
                threat_model,
                step_size=config.selection.step_size,
                num_steps=config.selection.num_steps,
                loop="compiled",
            )
            robust &= correct(adversarial)
        return jnp.stack([jnp.sum(natural), jnp.sum(robust)])

    def select(variables_by_weights: dict[str, Variables]) -> dict[str, float]:
        accuracies = {}
        for weights, variables in variables_by_weights.items():
            counts = [
                count_correct(variables, batch, mask)
                for batch, mask in batches_for_evaluation(split, batch_size, sharding=sharding)
            ]
            # Fetched from the devices once, at the end.
            natural, robust = (int(count) for count in sum(jax.device_get(counts)))
            accuracies[metric_name(weights, NATURAL_ACCURACY)] = natural / len(split)
            accuracies[metric_name(weights, ROBUST_ACCURACY)] = robust / len(split)
        return accuracies

    return select
