"""Natural training, PGD-AT, TRADES and MART."""

from jaxtyping import Array, Float, Int

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.methods import standard as base
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import (
    Method,
    Plan,
    Terms,
    accuracy,
    natural_and_adversarial,
    untargeted,
)
from ancra_jax.methods.registry import register
from ancra_jax.types import Outputs


def natural(aux_weight: float, label_smoothing: float = 0.0) -> Method:
    """Cross-entropy on natural images."""

    def prepare(predict, batch, key, epoch):
        del predict, batch, key, epoch
        return Plan({}, {})

    def loss(forward, batch_stats, examples):
        batch = examples.batch
        outputs, batch_stats = forward(batch_stats, batch.images, batch.labels)
        value = cross_entropy(outputs, batch.labels, aux_weight, label_smoothing)
        metrics = {"batch_accuracy_natural": accuracy(outputs, batch.labels)}
        return Terms(value, batch_stats, outputs, metrics, examples.state)

    return Method(prepare, loss)


def pgd_at(settings: AttackSettings, aux_weight: float, label_smoothing: float = 0.0) -> Method:
    """Cross-entropy on adversarial images.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    def loss(forward, batch_stats, examples):
        labels = examples.batch.labels
        outputs, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        value = cross_entropy(outputs, labels, aux_weight, label_smoothing)
        metrics = {"batch_accuracy_adversarial": accuracy(outputs, labels)}
        return Terms(value, batch_stats, None, metrics, examples.state, outputs)

    return Method(untargeted(settings), loss)


def trades(
    settings: AttackSettings, beta: float, aux_weight: float, label_smoothing: float = 0.0
) -> Method:
    """``CE(x, y) + beta KL(p(x) || p(x_adv))``, each term over all heads; nothing is detached.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019;
      ANCRA paper, eq. 7 for the heads.
    """

    def loss(natural, adversarial, examples):
        labels = examples.batch.labels
        classification = cross_entropy(natural, labels, aux_weight, label_smoothing)
        kl = losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=aux_weight)
        metrics = {"loss_natural": classification, "loss_kl": kl}
        return classification + beta * kl, metrics, examples.state

    return natural_and_adversarial(settings, loss)


def mart(
    settings: AttackSettings, beta: float, aux_weight: float, label_smoothing: float = 0.0
) -> Method:
    """MART: ``BCE(x_adv, y) + beta KL(p(x) || p(x_adv)) (1 - p_y(x))``, each term over all heads.

    Args:
      settings: the attack.
      beta: weight of the second term, lambda in its paper.
      aux_weight: weight of the auxiliary heads; every head has its own margin and weights.
      label_smoothing: of the cross-entropy within BCE.

    References:
      See ``ancra_jax.losses.mart``.
    """

    def loss(natural, adversarial, examples):
        labels = examples.batch.labels
        boosted = losses.combined(
            lambda q: losses.boosted_cross_entropy(q, labels, label_smoothing),
            adversarial,
            aux_weight=aux_weight,
        )
        kl = losses.combined(
            lambda p, q: losses.weighted_kl(p, q, labels),
            natural,
            adversarial,
            aux_weight=aux_weight,
        )
        metrics = {"loss_adversarial": boosted, "loss_kl": kl}
        return boosted + beta * kl, metrics, examples.state

    return natural_and_adversarial(settings, loss)


def cross_entropy(
    outputs: Outputs, labels: Int[Array, "batch"], aux_weight: float, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Cross-entropy over all heads."""
    return losses.combined(
        lambda logits: losses.cross_entropy(logits, labels, label_smoothing),
        outputs,
        aux_weight=aux_weight,
    )


@register("natural")
def _natural(config: Config, settings: AttackSettings) -> Method:
    del settings
    return base.natural(config.method.aux_weight, config.method.label_smoothing)


@register("pgd_at")
def _pgd_at(config: Config, settings: AttackSettings) -> Method:
    return base.pgd_at(settings, config.method.aux_weight, config.method.label_smoothing)


@register("trades")
def _trades(config: Config, settings: AttackSettings) -> Method:
    method = config.method
    return base.trades(settings, method.beta, method.aux_weight, method.label_smoothing)


@register("mart")
def _mart(config: Config, settings: AttackSettings) -> Method:
    method = config.method
    return base.mart(settings, method.beta, method.aux_weight, method.label_smoothing)
