"""The train state, the optimiser, and the one jitted step that advances them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ancra_jax import models
from ancra_jax.config.schema import Config, OptimizerConfig
from ancra_jax.data import BatchPlan, DeviceSplit, StreamedSplit
from ancra_jax.methods.core import (
    Attacked,
    BatchStats,
    Examples,
    Images,
    Method,
    MethodState,
    Metrics,
    Model,
    Plan,
)
from ancra_jax.run.averaging import Averages, Averaging, variables_of
from ancra_jax.train import accumulation
from ancra_jax.train.accumulation import Part
from ancra_jax.types import Batch, Logits, Outputs, Scalar, Variables


class TrainState(NamedTuple):
    """All that changes while training; what a checkpoint holds."""

    step: Int[Array, ""]  # number of updates made
    params: PyTree  # float32
    batch_stats: PyTree  # running statistics of batch normalisation
    opt_state: PyTree
    method_state: MethodState  # what the method remembers from step to step
    averages: Averages  # of the weights, as far as they are kept

    def variables_of(self, weights: str) -> Variables:
        """Return the network's variables with one of ``Averaging.weights``."""
        return variables_of(weights, self.params, self.batch_stats, self.averages)


def create_train_state(
    init: Callable[[Key[Array, ""], Float[Array, "1 height width channels"]], Variables],
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: Key[Array, ""],
    method_state: MethodState,
    averaging: Averaging,
) -> TrainState:
    """Return initial parameters, statistics, optimiser state and averages."""
    variables = init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        method_state=method_state,
        averages=averaging.init(params, batch_stats),
    )


def scaled(config: Config) -> OptimizerConfig:
    """Return the optimiser's settings, the learning rate times batch size over its base if any.

    References:
      Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017.
    """
    base = config.optimizer.base_batch_size
    scale = config.batch_size / base if base else 1.0
    return replace(config.optimizer, learning_rate=config.optimizer.learning_rate * scale)


def learning_rate(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate of a step, counted from 0.

    During ``warmup_epochs`` it rises from 0 in a line, then the schedule begins, which ends with
    the last epoch all the same. ``'one_cycle_cosine'`` rises during the warm-up and falls after it
    as half waves of a cosine, from 1/25 of the rate and to 1/10,000 of that, as PyTorch's
    ``OneCycleLR``, which reaches the rate in the warm-up's last step.
    """
    rate = config.learning_rate
    steps = epochs * steps_per_epoch
    last = max(steps - 1, 1)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    # Milestones are epochs from 1, as the paper counts them; the warm-up comes out of the epochs.
    starts = [(epoch - 1) * steps_per_epoch - warmup for epoch in config.milestones]
    boundaries = dict.fromkeys(starts, config.decay)
    schedules = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, max(steps - warmup, 1)),
        "one_cycle": lambda: optax.linear_onecycle_schedule(
            steps, rate, pct_start=0.4, pct_final=0.95, div_factor=25.0
        ),
        # Half a step more than the share of its peak, step `warmup - 1`, is rounded off.
        "one_cycle_cosine": lambda: optax.cosine_onecycle_schedule(
            last, rate, pct_start=(max(warmup - 1, 1) + 0.5) / last
        ),
        "piecewise": lambda: optax.piecewise_constant_schedule(rate, boundaries),
    }
    after = schedules[config.schedule]()
    if not warmup or config.schedule == "one_cycle_cosine":
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def create_optimizer(
    config: OptimizerConfig, epochs: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Return SGD as PyTorch's: the decay is added to the gradients before momentum."""
    rate, spared = learning_rate(config, epochs, steps_per_epoch), config.no_weight_decay_on
    mask = partial(_decayed, biases=spared == "batch_norm") if spared else None
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov),
    )


def _decayed(params: PyTree, *, biases: bool) -> PyTree:
    """Return which parameters decay: none of batch normalisation, which has a ``scale``."""
    if not isinstance(params, Mapping):
        return biases or params.ndim > 1
    if "scale" in params:
        return jax.tree.map(lambda _: False, params)
    return {name: _decayed(group, biases=biases) for name, group in params.items()}


def _softened(
    plan: Plan, network: Any, method: Method, state: TrainState, batch: Batch, epochs: Scalar
) -> tuple[Plan, Logits | None]:
    """Return the plan with the method's soft labels, if it has any, and these."""
    if method.soft_labels is None:
        return plan, None
    averaged = jax.tree_util.Partial(network.apply, state.variables_of("ema"))
    labels = method.soft_labels(averaged, batch, epochs)
    return plan.softened(labels), labels


def make_train_step(
    network: Any,
    method: Method,
    optimizer: optax.GradientTransformation,
    batches: BatchPlan,
    averaging: Averaging,
    schedule: optax.Schedule | None = None,
    parts: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the jitted step ``(state, data, permutation, teacher) -> (state, metrics)``.

    The batch is taken from the data on the devices, augmented, attacked in the evaluation phase
    (with batch normalisation folded into the kernels, once for all iterations), and its loss
    differentiated in the training phase. The state is donated. All randomness derives
    from the plan's key, the step and the data-set indices, so a resumed or differently sharded run
    draws the same numbers. The teacher, for methods that distil from one, is a pytree: its weights
    are an argument, neither constants of the program nor a part of the state. ``schedule``, the
    optimiser's learning rate, is added to the metrics. The batch is processed in ``parts``, one
    after another: attacks are planned on the whole batch and there is one update, while each part
    has batch statistics of its own and moves the running ones, as in PyTorch.
    """

    def step(
        state: TrainState,
        data: DeviceSplit | StreamedSplit,
        permutation: Int[Array, "examples"],
        teacher: Model | None = None,
    ) -> tuple[TrainState, Metrics]:
        epoch = state.step // batches.steps_per_epoch
        batch = batches.batch(data, permutation, state.step)
        batch = batches.with_others(batch, data, state.step)
        _, method_key = batches.keys(state.step)

        model = models.BoundNetwork(network, state.variables_of("raw")).folded()
        plan = method.prepare(model, batch, method_key, epoch)
        passed = state.step / batches.steps_per_epoch
        plan, soft_labels = _softened(plan, network, method, state, batch, passed)
        part_of = partial(accumulation.take, parts=parts, size=batches.batch_size)

        def attack_part(part: Part) -> Attacked:
            return method.attack(model, part_of(plan.requests, part), state.method_state)

        attacked, method_state = accumulation.attack(attack_part, state.method_state, parts)
        teacher_logits = None if teacher is None else teacher(batch.images).logits
        examples = Examples(
            batch, attacked, plan.extras, {}, epoch, teacher_logits, soft_labels=soft_labels
        )

        def loss_of_part(
            params: PyTree, part: Part, carried: tuple[BatchStats, MethodState]
        ) -> tuple[Float[Array, ""], tuple[tuple[BatchStats, MethodState], Metrics]]:
            def forward(
                batch_stats: BatchStats, images: Images, labels: Int[Array, "batch"]
            ) -> tuple[Outputs, BatchStats]:
                variables = {"params": params, "batch_stats": batch_stats}
                outputs, updated = network.apply(
                    variables, images, labels, train=True, mutable=["batch_stats"]
                )
                return outputs, updated.get("batch_stats", batch_stats)

            batch_stats, remembered = carried
            chosen = part_of(examples, part)._replace(state=remembered, teacher=teacher)
            terms = method.loss(forward, batch_stats, chosen)
            return terms.loss, ((terms.batch_stats, terms.state), terms.metrics)

        loss = accumulation.mean_loss(loss_of_part, (state.batch_stats, method_state), parts)
        (value, (carried, metrics)), gradients = method.gradient(loss, state.params, epoch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        done = state.step + 1
        averages = averaging.advance(state.averages, params, done, batches.steps_per_epoch)
        return TrainState(done, params, carried[0], opt_state, carried[1], averages), metrics

    return jax.jit(step, donate_argnums=0)
