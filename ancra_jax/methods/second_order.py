"""S2O: adversarial training and TRADES regularised by second-order statistics.

The regulariser ``R`` adds `ancra_jax.losses.second_order_divergence` of the natural and of the
adversarial logits; ``c`` is ``config.second_order.cross_entropy_weight``, ``w`` the ``weight`` of
the regulariser. Every term is taken over all heads.

References:
  Jin et al., Enhancing Adversarial Training with Second-Order Statistics of Weights, CVPR 2022.
"""

from functools import partial

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, Examples, Method, Metrics, PairTerms
from ancra_jax.methods.registry import register
from ancra_jax.methods.standard import cross_entropy, kl_divergence
from ancra_jax.ops.images import Labels
from ancra_jax.types import Outputs, Scalar


@register("pgd_at_s2o")
def pgd_at_s2o(config: Config, attack: AttackSettings) -> Method:
    """Minimise ``c CE(x_adv, y) + w R``."""
    s2o = config.second_order

    def loss(natural: Outputs, adversarial: Outputs, examples: Examples) -> PairTerms:
        labels = examples.batch.labels
        classification, of_ce = cross_entropy(
            "loss_adversarial", adversarial, labels, config.method
        )
        regulariser, of_r = _regulariser(natural, adversarial, labels, config)
        value = s2o.cross_entropy_weight * classification + s2o.weight * regulariser
        return value, of_ce | of_r, examples.state

    return core.natural_and_adversarial(attack, loss)


@register("trades_s2o")
def trades_s2o(config: Config, attack: AttackSettings) -> Method:
    """Minimise ``c CE(x, y) + w R + beta KL(p(x) || p(x_adv))``."""
    s2o, beta = config.second_order, config.method.beta

    def loss(natural: Outputs, adversarial: Outputs, examples: Examples) -> PairTerms:
        labels = examples.batch.labels
        classification, of_ce = cross_entropy("loss_natural", natural, labels, config.method)
        regulariser, of_r = _regulariser(natural, adversarial, labels, config)
        kl, of_kl = kl_divergence(natural, adversarial, config.method)
        value = s2o.cross_entropy_weight * classification + s2o.weight * regulariser + beta * kl
        return value, of_ce | of_r | of_kl, examples.state

    return core.natural_and_adversarial(attack, loss)


def _regulariser(
    natural: Outputs, adversarial: Outputs, labels: Labels, config: Config
) -> tuple[Scalar, Metrics]:
    diagonal = config.second_order.diagonal
    term = partial(losses.second_order_divergence, labels=labels, diagonal=diagonal)
    both = lambda p, q: term(p) + term(q)  # noqa: E731
    pair = natural, adversarial
    return core.over_heads("loss_second_order", both, *pair, aux_weight=config.method.aux_weight)
