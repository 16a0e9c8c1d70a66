"""The one jitted step that advances the train state."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, Int, PyTree

from ancra_jax.data import BatchPlan, DeviceSplit
from ancra_jax.methods.core import BatchStats, Examples, Images, Method, Metrics, Model, Terms
from ancra_jax.run.averaging import Averaging
from ancra_jax.run.state import NO_AVERAGES, TrainState
from ancra_jax.types import ApplyFn, Outputs

TrainStep = Callable[
    [TrainState, DeviceSplit, Int[Array, "examples"], Model | None], tuple[TrainState, Metrics]
]


def make_train_step(
    apply: ApplyFn,
    method: Method,
    optimizer: optax.GradientTransformation,
    batches: BatchPlan,
    averaging: Averaging = NO_AVERAGES,
) -> TrainStep:
    """Return the jitted step ``(state, data, permutation, teacher) -> (state, metrics)``.

    The batch is taken from the data on the devices, augmented, attacked in the evaluation phase,
    and its loss differentiated in the training phase. The state is donated. All randomness derives
    from the plan's key, the step and the data-set indices, so a resumed or differently sharded run
    draws the same numbers. The teacher, for methods that distil from one, is a pytree: its weights
    are an argument, neither constants of the program nor a part of the state.
    """

    def step(
        state: TrainState,
        data: DeviceSplit,
        permutation: Int[Array, "examples"],
        teacher: Model | None = None,
    ) -> tuple[TrainState, Metrics]:
        epoch = state.step // batches.steps_per_epoch
        batch = batches.batch(data, permutation, state.step)
        _, method_key = batches.keys(state.step)

        model = jax.tree_util.Partial(apply, state.variables)
        plan = method.prepare(model, batch, method_key, epoch)
        attacked, method_state = method.attack(model, plan.requests, state.method_state)
        teacher_logits = None if teacher is None else teacher(batch.images).logits
        examples = Examples(batch, attacked, plan.extras, method_state, epoch, teacher_logits)

        def loss(params: PyTree) -> tuple[Float[Array, ""], Terms]:
            def forward(
                batch_stats: BatchStats, images: Images, labels: Int[Array, "batch"]
            ) -> tuple[Outputs, BatchStats]:
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
        done = state.step + 1
        averages = averaging.advance(state.averages, params, done, batches.steps_per_epoch)
        new_state = TrainState(done, params, terms.batch_stats, opt_state, terms.state, averages)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)
