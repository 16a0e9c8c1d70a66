"""TRADES with the KL divergence taken apart and improved (DKL, IKL)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, Examples, Method, PairTerms
from ancra_jax.methods.registry import register
from ancra_jax.methods.standard import cross_entropy
from ancra_jax.types import Logits, Outputs, Scalar


@register("ikl")
def ikl(
    config: Config,
    attack: AttackSettings,
    *,
    mse_weight: float = 20.0,
    ce_weight: float = 4.0,
    temperature: float = 4.0,
    symmetric: bool = True,
    class_means: bool = True,
) -> Method:
    """Minimise ``CE(x, y) + ce_weight CE(sg p(x), p(x_adv)) + mse_weight wMSE(x, x_adv)``.

    The two last terms are `ancra_jax.losses.soft_cross_entropy` and ``logit_differences``, each
    over all heads. The KL divergence has their gradient with both weights 1, where the adversarial
    logits are constant in wMSE (``symmetric=False``) and its weights are ``p(x)``
    (``class_means=False``): that is DKL. IKL moves both sides, and weighs by the mean of
    ``softmax(logits / temperature)`` over the natural images of the label's class, of the final
    head in the epoch before; uniform in the first one.

    References:
      Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024; defaults of its authors'
      code for CIFAR-10, where wMSE's weights are those of the classes to the power of gamma = 1.
    """
    numbers = {"mse_weight": mse_weight, "ce_weight": ce_weight}
    if min(numbers.values()) < 0 or temperature <= 0:
        raise UsageError(
            f"--config.method.options: {numbers} must be at least 0, {temperature=} above 0"
        )
    over_heads = partial(core.over_heads, aux_weight=config.method.aux_weight)

    def init_state(labels: Int[Array, "examples"], num_classes: int) -> core.MethodState:
        if not class_means:
            return {}
        square = jnp.full((num_classes, num_classes), 1 / num_classes, jnp.float32)
        own = {"means": square, "sums": jnp.zeros_like(square), "epoch": jnp.zeros((), jnp.int32)}
        return {"ikl": own}

    def advanced(logits: Logits, examples: Examples) -> core.MethodState:
        """Begin an epoch with the means of the one before; add the batch's probabilities."""
        own, labels = examples.state["ikl"], examples.batch.labels
        begins, means, sums = examples.epoch > own["epoch"], own["means"], own["sums"]
        totals = jnp.sum(sums, axis=1, keepdims=True)  # 0 for a class that was not seen
        found = jnp.where(totals > 0, sums / jnp.where(totals > 0, totals, 1.0), means)
        seen = jax.lax.stop_gradient(jax.nn.softmax(logits / temperature))
        return {
            "means": jnp.where(begins, found, means),
            "sums": jnp.where(begins, 0.0, sums).at[labels].add(seen),
            "epoch": examples.epoch,
        }

    def loss(natural: Outputs, adversarial: Outputs, examples: Examples) -> PairTerms:
        labels, state = examples.batch.labels, examples.state
        if class_means:
            state = state | {"ikl": advanced(natural.logits, examples)}

        def differences(p: Logits, q: Logits) -> Scalar:
            weights = state["ikl"]["means"][labels] if class_means else jax.nn.softmax(p)
            return losses.logit_differences(
                p, q if symmetric else jax.lax.stop_gradient(q), weights
            )

        classification, of_ce = cross_entropy("loss_natural", natural, labels, config.method)
        pair = natural, adversarial
        mse, of_mse = over_heads("loss_differences", differences, *pair)
        soft, of_soft = over_heads("loss_soft", losses.soft_cross_entropy, *pair)
        value = classification + ce_weight * soft + mse_weight * mse
        return value, of_ce | of_mse | of_soft, state

    return core.natural_and_adversarial(attack, loss)._replace(init_state=init_state)
