"""Adversarial weight perturbation (AWP) as a wrapper around any adversarial method."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ancra_jax.config.schema import Config
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method, _needs_an_attack, _needs_epochs_after

_TINY = 1e-20


def weight_perturbation(method: Method, *, gamma: float, warmup_epochs: int) -> Method:
    """Takes a method's gradient where its loss is worst near the weights.

    Every kernel ``w`` is moved by ``gamma ||w|| / (||g|| + 1e-20) g``, where ``g`` is the gradient
    of the method's loss; the gradient there is the one that the optimiser gets, for the weights as
    they were. Biases and batch normalisation stay where they are.

    Args:
      method: the method to extend.
      gamma: length of the move, relative to the kernel's norm.
      warmup_epochs: epochs at the start without a move.

    References:
      Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020.
    """

    def gradient(loss, params, epoch):
        ascent, _ = jax.grad(loss, has_aux=True)(params)
        length = jnp.where(epoch < warmup_epochs, 0.0, gamma)
        perturbed = jax.tree.map(lambda w, g: _moved(w, g, length), params, ascent)
        return method.gradient(loss, perturbed, epoch)

    return method._replace(gradient=gradient)


def _moved(
    weight: Float[Array, "*shape"], ascent: Float[Array, "*shape"], length: Float[Array, ""]
) -> Float[Array, "*shape"]:
    if weight.ndim <= 1:  # a bias, or batch normalisation
        return weight
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))  # noqa: E731
    return weight + length * norm(weight) / (norm(ascent) + _TINY) * ascent


def with_weight_perturbation(method: Method, config: Config, settings: AttackSettings) -> Method:
    """AWP for ``config.awp.gamma`` above 0."""
    del settings
    awp = config.awp
    if awp.gamma == 0:
        return method
    _needs_an_attack(config, f"config.awp.gamma={awp.gamma}")
    _needs_epochs_after(config, "awp.warmup_epochs", awp.warmup_epochs)
    return weight_perturbation(method, gamma=awp.gamma, warmup_epochs=awp.warmup_epochs)
