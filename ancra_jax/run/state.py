"""The train state."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ancra_jax.methods.core import MethodState
from ancra_jax.run.averaging import Averages, Averaging, variables_of
from ancra_jax.types import Variables

NO_AVERAGES = Averaging()


class TrainState(NamedTuple):
    """All that changes while training; what a checkpoint holds."""

    step: Int[Array, ""]  # number of updates made
    params: PyTree  # float32
    batch_stats: PyTree  # running statistics of batch normalisation
    opt_state: PyTree
    method_state: MethodState  # what the method remembers from step to step
    averages: Averages  # of the weights, as far as they are kept

    @property
    def variables(self) -> Variables:
        """Return parameters and statistics as the network takes them."""
        return self.variables_of("raw")

    def variables_of(self, weights: str) -> Variables:
        """Return the variables of one of ``Averaging.weights``."""
        return variables_of(weights, self.params, self.batch_stats, self.averages)


def create_train_state(
    init: Callable[[Key[Array, ""], Float[Array, "1 height width channels"]], Variables],
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: Key[Array, ""],
    method_state: MethodState,
    averaging: Averaging = NO_AVERAGES,
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
