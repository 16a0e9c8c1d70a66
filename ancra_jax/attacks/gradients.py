"""An objective's value and input gradient, together with the logits that decide on success."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.model import Images, Model, float32_logits, fold_each
from ancra_jax.attacks.objectives import LogitsObjective, Objective
from ancra_jax.ops.fast_convolutions import with_fast_convolutions
from ancra_jax.ops.pytree import pytree_dataclass


class Evaluation(NamedTuple):
    """An objective at some images.

    Attributes:
      values: the objective.
      gradients: its gradients in the images.
      logits: the judging model's logits.
    """

    values: Float[Array, "batch"]
    gradients: Images
    logits: Float[Array, "batch classes"]


def value_and_input_gradient(
    objective: Objective, images: Images
) -> tuple[Float[Array, "batch"], Images]:
    """The objective of every example and its gradient; parameters receive none."""

    def total(x):
        values = objective(x)
        return jnp.sum(values), values

    (_, values), gradients = jax.value_and_grad(with_fast_convolutions(total), has_aux=True)(images)
    return values, gradients


@pytree_dataclass()
class Evaluator:
    """Evaluates an objective and the judging model.

    Attributes:
      objective: what the attack ascends.
      judge: the model that has to be fooled; None if it is the objective's own, whose forward pass
        then serves both.
    """

    objective: Objective
    judge: Model | None

    def __call__(self, images: Images, step: Int[Array, ""]) -> Evaluation:
        """Evaluates at ``images``; a deterministic model does not depend on ``step``."""
        if self.judge is not None:
            values, gradients = value_and_input_gradient(self.objective, images)
            return Evaluation(values, gradients, float32_logits(self.judge, images))

        objective = cast(LogitsObjective, self.objective)

        def total(x):
            values, logits = objective.values_and_logits(x)
            return jnp.sum(values), (values, logits)

        (_, (values, logits)), gradients = jax.value_and_grad(
            with_fast_convolutions(total), has_aux=True
        )(images)
        return Evaluation(values, gradients, logits)

    def without_gradients(
        self, images: Images
    ) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
        """Return the objective and the judging model's logits."""
        if self.judge is not None:
            return self.objective(images), float32_logits(self.judge, images)
        objective = cast(LogitsObjective, self.objective)
        return with_fast_convolutions(objective.values_and_logits)(images)


@pytree_dataclass(static=("draws",))
class RandomizedEvaluator:
    """Evaluates an objective of a randomised model, averaged over draws of its randomness.

    Attributes:
      objective: what the attack ascends; its model is called as ``model(images, key=key)``.
      keys: one key per example.
      draws: number of draws; values and gradients are averaged, the logits are the last draw's.
    """

    objective: LogitsObjective
    keys: Key[Array, "batch"]
    draws: int

    def __call__(self, images: Images, step: Int[Array, ""]) -> Evaluation:
        """Evaluates at ``images`` with randomness of its own in every step."""

        def one_draw(draw):
            number = step * self.draws + draw
            model = WithKeys(self.objective.model, fold_each(self.keys, number))
            return Evaluator(replace(self.objective, model=model), None)(images, step)

        # A convolution's gradient inside a compiled loop is slow on the CPU backend.
        over_draws = jax.vmap if jax.default_backend() == "cpu" else partial(partial, jax.lax.map)
        values, gradients, logits = over_draws(one_draw)(jnp.arange(self.draws))
        return Evaluation(values.mean(axis=0), gradients.mean(axis=0), logits[-1])


@pytree_dataclass()
class WithKeys:
    """A randomised model with the randomness of every example fixed by its own key."""

    model: Model
    keys: Key[Array, "batch"]

    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        """Logits of every image under its key, independent of the rest of the batch."""

        def one(image, key):
            return float32_logits(lambda x: self.model(x, key=key), image[None])[0]

        return jax.vmap(one)(images, self.keys)


def evaluator(objective: Objective, judge: Model) -> Evaluator:
    """Pairs an objective with the judging model; equal models are called once."""
    return Evaluator(objective, None if _is_own_model(objective, judge) else judge)


def _is_own_model(objective, judge):
    if not isinstance(objective, LogitsObjective):
        return False
    own, own_structure = jax.tree.flatten(objective.model)
    other, other_structure = jax.tree.flatten(judge)
    if own_structure != other_structure:  # type: ignore[operator]
        return False
    return all(x is y for x, y in zip(own, other, strict=True))
