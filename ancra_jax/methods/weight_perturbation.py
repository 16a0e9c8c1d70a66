"""Adversarial weight perturbation (AWP) as a wrapper around any adversarial method."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ancra_jax.config.schema import Config, shown
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, Epoch, LossOfParams, Method, ValueAndGradient
from ancra_jax.types import Scalar

Weight = Float[Array, "*shape"]


def weight_perturbation(method: Method, config: Config, attack: AttackSettings) -> Method:
    """Take a method's gradient where its loss is worst near the weights.

    Every kernel ``w`` is moved by ``gamma ||w|| / (||g|| + 1e-20) g``, where ``g`` is the gradient
    of the method's loss; the gradient there is the one that the optimiser gets, for the weights as
    they were. Biases and batch normalisation stay where they are, and during
    ``config.awp.warmup_epochs`` everything does. Off while ``config.awp.gamma`` is 0.

    References:
      Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020.
    """
    awp = config.awp
    if awp.gamma == 0:
        return method
    core.check_adversarial(config, shown(config, "awp.gamma"))
    core.check_before_end(config, "awp.warmup_epochs", awp.warmup_epochs)

    def gradient(loss: LossOfParams, params: PyTree, epoch: Epoch) -> ValueAndGradient:
        ascent, _ = jax.grad(loss, has_aux=True)(params)
        length = jnp.where(epoch < awp.warmup_epochs, 0.0, awp.gamma)
        perturbed = jax.tree.map(lambda w, g: _moved(w, g, length), params, ascent)
        return method.gradient(loss, perturbed, epoch)

    return method._replace(gradient=gradient)


def _moved(weight: Weight, ascent: Weight, length: Scalar) -> Weight:
    if weight.ndim <= 1:  # a bias, or batch normalisation
        return weight
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))  # noqa: E731
    return weight + length * norm(weight) / (norm(ascent) + 1e-20) * ascent
