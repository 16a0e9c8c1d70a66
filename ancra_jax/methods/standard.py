"""Natural training, PGD-AT, TRADES and MART.

Every term ``g`` of a loss is taken over all heads, ``g(f') + aux_weight mean_k g(p_k)``.
"""

from functools import partial

from ancra_jax import losses
from ancra_jax.config.schema import Config, MethodConfig
from ancra_jax.methods import core
from ancra_jax.methods.core import (
    AttackSettings,
    BatchStats,
    Examples,
    Forward,
    Method,
    Metrics,
    Terms,
)
from ancra_jax.methods.registry import register
from ancra_jax.ops.images import Labels
from ancra_jax.types import Batch, Logits, Outputs, Scalar


@register("natural")
def natural(config: Config, attack: AttackSettings) -> Method:
    """Minimise ``CE(x, y)``."""

    def prepare(model: core.Model, batch: Batch, key: core.StepKey, epoch: core.Epoch) -> core.Plan:
        return core.Plan({}, {})

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        images, labels = examples.batch[:2]
        outputs, batch_stats = forward(batch_stats, images, labels)
        value, metrics = cross_entropy("loss_natural", outputs, examples.targets, config.method)
        metrics |= {"batch_accuracy_natural": core.accuracy(outputs, labels)}
        return Terms(value, batch_stats, outputs, metrics, examples.state)

    return Method(prepare, loss)


@register("pgd_at")
def pgd_at(config: Config, attack: AttackSettings) -> Method:
    """Minimise ``CE(x_adv, y)``.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        images, labels = examples.attacked["adversarial"], examples.batch.labels
        outputs, batch_stats = forward(batch_stats, images, labels)
        value, metrics = cross_entropy("loss_adversarial", outputs, examples.targets, config.method)
        metrics |= {"batch_accuracy_adversarial": core.accuracy(outputs, labels)}
        return Terms(value, batch_stats, None, metrics, examples.state, outputs)

    return Method(core.untargeted(attack), loss)


@register("trades")
def trades(config: Config, attack: AttackSettings) -> Method:
    """Minimise ``CE(x, y) + beta KL(p(x) || p(x_adv))``; nothing is detached.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019;
      ANCRA paper, eq. 7 for the heads.
    """
    method = config.method

    def loss(natural: Outputs, adversarial: Outputs, examples: Examples) -> core.PairTerms:
        targets = examples.targets
        classification, of_natural = cross_entropy("loss_natural", natural, targets, method)
        kl, of_kl = kl_divergence(natural, adversarial, method)
        return classification + method.beta * kl, of_natural | of_kl, examples.state

    return core.natural_and_adversarial(attack, loss)


@register("mart")
def mart(config: Config, attack: AttackSettings) -> Method:
    """Minimise ``BCE(x_adv, y) + beta KL(p(x) || p(x_adv)) (1 - p_y(x))``.

    Every head has its own margin within BCE and its own weights ``1 - p_y``. ``beta`` is lambda in
    MART's paper.

    References:
      Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
      ICLR 2020.
    """
    method = config.method
    over_heads = partial(core.over_heads, aux_weight=method.aux_weight)

    def loss(natural: Outputs, adversarial: Outputs, examples: Examples) -> core.PairTerms:
        labels, smoothing = examples.batch.labels, method.label_smoothing
        term = partial(losses.boosted_cross_entropy, labels=labels, label_smoothing=smoothing)
        boosted, of_boosted = over_heads("loss_adversarial", term, adversarial)
        weighted = partial(losses.weighted_kl, labels=labels)
        kl, of_kl = over_heads("loss_kl", weighted, natural, adversarial)
        return boosted + method.beta * kl, of_boosted | of_kl, examples.state

    return core.natural_and_adversarial(attack, loss)


def cross_entropy(
    name: str, outputs: Outputs, labels: Labels | Logits, method: MethodConfig
) -> tuple[Scalar, Metrics]:
    """Return the cross-entropy over all heads, with the method's label smoothing, and metrics."""
    term = partial(losses.cross_entropy, labels=labels, label_smoothing=method.label_smoothing)
    return core.over_heads(name, term, outputs, aux_weight=method.aux_weight)


def kl_divergence(
    natural: Outputs, adversarial: Outputs, method: MethodConfig
) -> tuple[Scalar, Metrics]:
    """Return ``KL(p(x) || p(x_adv))`` over all heads, and its metrics."""
    pair = natural, adversarial
    return core.over_heads("loss_kl", losses.kl_divergence, *pair, aux_weight=method.aux_weight)
