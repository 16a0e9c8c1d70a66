"""The optimiser: SGD with momentum and coupled weight decay, and its learning-rate schedules."""

import optax

from ancra_jax.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate by step; milestones are epochs from 1, as the paper counts them."""
    rate = config.learning_rate
    steps = epochs * steps_per_epoch
    match config.schedule:
        case "constant":
            return optax.constant_schedule(rate)
        case "cosine":
            return optax.cosine_decay_schedule(rate, steps)
        case "one_cycle":
            return optax.linear_onecycle_schedule(
                steps, rate, pct_start=0.4, pct_final=0.95, div_factor=25.0
            )
        case "piecewise":
            boundaries = {
                (epoch - 1) * steps_per_epoch: config.decay for epoch in config.milestones
            }
            return optax.piecewise_constant_schedule(rate, boundaries)
    raise ValueError(f"schedule={config.schedule!r}")


def create(
    config: OptimizerConfig, epochs: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Return SGD as PyTorch's: the decay is added to all gradients before momentum."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate(config, epochs, steps_per_epoch), momentum=config.momentum),
    )
