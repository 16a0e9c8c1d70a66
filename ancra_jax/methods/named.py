"""The methods that ``config.method.name`` may name, made of their settings."""

from ancra_jax.config import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods import base, second_order
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method
from ancra_jax.methods.registry import register
from ancra_jax.methods.self_adaptive import self_adaptive_trades


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


@register("sat")
def _sat(config: Config, settings: AttackSettings) -> Method:
    if config.method.label_smoothing > 0:
        raise UsageError(
            f"config.method.label_smoothing={config.method.label_smoothing}: must be 0 for the "
            "method 'sat', whose labels are soft already"
        )
    if config.self_adaptive.start_epoch > config.epochs:
        raise UsageError(
            f"config.self_adaptive.start_epoch={config.self_adaptive.start_epoch}: must be at most "
            f"config.epochs={config.epochs}, or no soft label ever moves"
        )
    return self_adaptive_trades(
        settings,
        config.method.beta,
        config.method.aux_weight,
        start_epoch=config.self_adaptive.start_epoch,
        momentum=config.self_adaptive.momentum,
    )


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
