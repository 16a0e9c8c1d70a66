"""S2O: adversarial training and TRADES regularised by second-order statistics."""

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.methods import second_order
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method, natural_and_adversarial
from ancra_jax.methods.registry import register
from ancra_jax.methods.standard import cross_entropy


@register("pgd_at_s2o")
def _pgd_at_s2o(config: Config, settings: AttackSettings) -> Method:
    method, s2o = config.method, config.second_order
    return second_order.pgd_at_s2o(
        settings,
        method.aux_weight,
        method.label_smoothing,
        cross_entropy_weight=s2o.cross_entropy_weight,
        weight=s2o.weight,
        diagonal=s2o.diagonal,
    )


@register("trades_s2o")
def _trades_s2o(config: Config, settings: AttackSettings) -> Method:
    method, s2o = config.method, config.second_order
    return second_order.trades_s2o(
        settings,
        method.beta,
        method.aux_weight,
        method.label_smoothing,
        cross_entropy_weight=s2o.cross_entropy_weight,
        weight=s2o.weight,
        diagonal=s2o.diagonal,
    )


def pgd_at_s2o(
    settings: AttackSettings,
    aux_weight: float,
    label_smoothing: float = 0.0,
    *,
    cross_entropy_weight: float,
    weight: float,
    diagonal: float,
) -> Method:
    """``cross_entropy_weight CE(x_adv, y) + weight R``, over all heads.

    ``R`` adds ``losses.second_order_divergence`` of the natural and of the adversarial logits.

    References:
      See ``ancra_jax.losses.second_order``.
    """

    def loss(natural, adversarial, examples):
        labels = examples.batch.labels
        classification = cross_entropy(adversarial, labels, aux_weight, label_smoothing)
        regulariser = _regulariser(natural, adversarial, labels, aux_weight, diagonal)
        metrics = {"loss_adversarial": classification, "loss_second_order": regulariser}
        value = cross_entropy_weight * classification + weight * regulariser
        return value, metrics, examples.state

    return natural_and_adversarial(settings, loss)


def trades_s2o(
    settings: AttackSettings,
    beta: float,
    aux_weight: float,
    label_smoothing: float = 0.0,
    *,
    cross_entropy_weight: float,
    weight: float,
    diagonal: float,
) -> Method:
    """``cross_entropy_weight CE(x, y) + weight R + beta KL(p(x) || p(x_adv))``, over all heads.

    ``R`` and references as in ``pgd_at_s2o``.
    """

    def loss(natural, adversarial, examples):
        labels = examples.batch.labels
        classification = cross_entropy(natural, labels, aux_weight, label_smoothing)
        regulariser = _regulariser(natural, adversarial, labels, aux_weight, diagonal)
        kl = losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=aux_weight)
        metrics = {
            "loss_natural": classification,
            "loss_second_order": regulariser,
            "loss_kl": kl,
        }
        value = cross_entropy_weight * classification + weight * regulariser + beta * kl
        return value, metrics, examples.state

    return natural_and_adversarial(settings, loss)


def _regulariser(natural, adversarial, labels, aux_weight, diagonal):
    divergence = lambda logits: losses.second_order_divergence(logits, labels, diagonal)  # noqa: E731
    return losses.combined(
        lambda p, q: divergence(p) + divergence(q), natural, adversarial, aux_weight=aux_weight
    )
