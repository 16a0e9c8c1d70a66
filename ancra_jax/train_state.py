"""The train state, and the one jitted step that advances it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from ancra_jax.data import pipeline
from ancra_jax.methods.core import Examples, Method, MethodState, Metrics
from ancra_jax.sharding import batch_sharded
from ancra_jax.types import ApplyFn, Batch, Variables


class TrainState(NamedTuple):
    """All that changes while training; what a checkpoint holds.

    Attributes:
      step: number of updates made.
      params: float32 parameters.
      batch_stats: running statistics of batch normalisation.
      opt_state: state of the optimiser.
      method_state: what the method remembers from step to step.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    method_state: MethodState

    @property
    def variables(self) -> Variables:
        """Parameters and statistics as the network takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


TrainStep = Callable[
    [TrainState, pipeline.DeviceSplit, Int[Array, "examples"]], tuple[TrainState, Metrics]
]


def create_train_state(
    init: Callable[[Key[Array, ""], Float[Array, "1 height width channels"]], Variables],
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: Key[Array, ""],
    method_state: MethodState,
) -> TrainState:
    """Initial parameters, statistics and optimiser state."""
    variables = init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        method_state=method_state,
    )


def batch_of_step(
    step: Int[Array, ""],
    data: pipeline.DeviceSplit,
    permutation: Int[Array, "examples"],
    *,
    batch_size: int,
    steps_per_epoch: int,
    augmentation: pipeline.Augmentation,
    key: Key[Array, ""],
    mesh: Mesh,
) -> tuple[Batch, Key[Array, ""]]:
    """The augmented batch of a step, and the key of everything else in it; to be called under jit.

    Args:
      step: number of updates made before.
      data: the training split on the devices.
      permutation: the epoch's order.
      batch_size: see `make_train_step`, as for the others.
      steps_per_epoch: steps per pass over the permutation.
      augmentation: of the natural images.
      key: of the run.
      mesh: devices that share the batch.
    """
    data_key, method_key = jax.random.split(jax.random.fold_in(key, step))
    batch = pipeline.training_batch(
        data,
        permutation,
        step % steps_per_epoch * batch_size,
        batch_size,
        data_key,
        augmentation,
        batch_sharded(mesh),
    )
    return batch, method_key


def make_train_step(
    apply: ApplyFn,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    steps_per_epoch: int,
    augmentation: pipeline.Augmentation,
    key: Key[Array, ""],
    mesh: Mesh,
) -> TrainStep:
    """Compiles ``(state, data, permutation) -> (state, metrics)``; the state is donated.

    The batch is taken from the data on the devices, augmented, attacked in the evaluation phase,
    and its loss differentiated in the training phase. All randomness derives from ``key``, the step
    and the data-set indices, so a resumed or differently sharded run draws the same numbers.

    Args:
      apply: the network.
      method: how a batch becomes a loss.
      optimizer: the update rule.
      batch_size: examples per step, over all devices.
      steps_per_epoch: steps per pass over the permutation.
      augmentation: of the natural images.
      key: of the run.
      mesh: devices that share the batch.
    """

    def step(state: TrainState, data, permutation):
        epoch = state.step // steps_per_epoch
        batch, method_key = batch_of_step(
            state.step,
            data,
            permutation,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            augmentation=augmentation,
            key=key,
            mesh=mesh,
        )
        predict = jax.tree_util.Partial(apply, state.variables)
        plan = method.prepare(predict, batch, method_key, epoch)
        attacked, method_state = method.attack(predict, plan.requests, state.method_state)
        examples = Examples(batch, attacked, plan.extras, method_state, epoch)

        def loss(params):
            def forward(batch_stats, images, labels):
                variables = {"params": params, "batch_stats": batch_stats}
                outputs, updated = apply(
                    variables, images, labels, train=True, mutable=["batch_stats"]
                )
                return outputs, updated.get("batch_stats", batch_stats)

            terms = method.loss(forward, state.batch_stats, examples)
            return terms.loss, terms

        (value, terms), gradients = method.gradient(loss, state.params, epoch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = terms.metrics | {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        new_state = TrainState(state.step + 1, params, terms.batch_stats, opt_state, terms.state)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)
