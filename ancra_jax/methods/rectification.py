"""Annealing self-distillation rectification (ADR): soft labels of the averaged network."""

import jax.numpy as jnp

from ancra_jax import losses
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.methods import standard
from ancra_jax.methods.core import AttackSettings, Method, Model
from ancra_jax.methods.registry import register
from ancra_jax.types import Batch, Logits, Scalar


@register("pgd_at_adr")
def pgd_at_adr(
    config: Config,
    attack: AttackSettings,
    *,
    temperature: tuple[float, ...] = (2.5, 1.5),
    interpolation: tuple[float, ...] = (0.7, 0.85),
) -> Method:
    """Minimise ``CE(x_adv, s)`` with the soft labels ``s``, which the attack ascends too.

    ``s`` are `ancra_jax.losses.rectified_labels` of the logits that the average of the weights
    (``config.ema``) gives the natural images. From the first step to the last, temperature and
    interpolation go from the first of their two numbers to the second, along half a wave of a
    cosine.

    References:
      Wu et al., Annealing Self-Distillation Rectification Improves Adversarial Training, ICLR 2024;
      defaults of its authors' code for CIFAR-10.
    """
    return _rectified(standard.pgd_at(config, attack), config, temperature, interpolation)


@register("trades_adr")
def trades_adr(
    config: Config,
    attack: AttackSettings,
    *,
    temperature: tuple[float, ...] = (2.5, 2.0),
    interpolation: tuple[float, ...] = (0.7, 0.95),
) -> Method:
    """Minimise ``CE(x, s) + beta KL(p(x) || p(x_adv))``, with ``s`` as for `pgd_at_adr`."""
    return _rectified(standard.trades(config, attack), config, temperature, interpolation)


def annealed(ends: tuple[float, ...], share: Scalar) -> Scalar:
    """Return the number between two ends after a share of training, along a cosine."""
    first, last = ends
    return last + (first - last) / 2 * (1 + jnp.cos(jnp.pi * share))


def _rectified(
    method: Method,
    config: Config,
    temperature: tuple[float, ...],
    interpolation: tuple[float, ...],
) -> Method:
    if len(temperature) != 2 or min(temperature) <= 0:
        raise UsageError(
            f"--config.method.options.{temperature=}: must be two numbers greater than 0, at the "
            "first step and at the last"
        )
    if len(interpolation) != 2 or not 0 <= min(interpolation) <= max(interpolation) <= 1:
        raise UsageError(f"--config.method.options.{interpolation=}: must be two numbers in [0, 1]")
    if config.ema.decay == 0:
        raise UsageError(
            f"{shown(config, 'ema.decay')}: must be greater than 0 for "
            f"{shown(config, 'method.name')}, whose soft labels are those of the average"
        )

    def soft_labels(averaged: Model, batch: Batch, epochs: Scalar) -> Logits:
        share, logits = epochs / config.epochs, averaged(batch.images).logits
        ends = annealed(temperature, share), annealed(interpolation, share)
        return losses.rectified_labels(logits, batch.labels, *ends)

    return method._replace(soft_labels=soft_labels)
