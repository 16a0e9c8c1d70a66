"""An objective's value and input gradient, together with the logits that decide on success."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ancra_jax.attacks.model import Logits, Model, float32_logits, fold_each
from ancra_jax.attacks.objectives import LogitsObjective, Objective
from ancra_jax.ops.fast_convolutions import with_fast_convolutions
from ancra_jax.ops.images import Images, Keys, Values
from ancra_jax.ops.pytree import pytree_dataclass


class Evaluation(NamedTuple):
    """An objective at some images."""

    values: Values  # the objective
    gradients: Images  # its gradients in the images
    logits: Logits  # of the judging model


def value_and_input_gradient(objective: Objective, images: Images) -> tuple[Values, Images]:
    """Return the objective of every example and its gradient; parameters receive none."""
    (values,), gradients = _differentiated(lambda x: (objective(x),), images)
    return values, gradients


def _differentiated(
    function: Callable[[Images], tuple[Values, *tuple[Any, ...]]], images: Images
) -> tuple[tuple[Any, ...], Images]:
    """Return what a function returns, and the gradient of the sum of the first part of it."""

    def total(x: Images) -> tuple[Float[Array, ""], tuple[Any, ...]]:
        found = function(x)
        return jnp.sum(found[0]), found

    differentiate = jax.value_and_grad(with_fast_convolutions(total), has_aux=True)
    (_, found), gradients = differentiate(images)
    return found, gradients


@pytree_dataclass(static=("draws",))
class Evaluator:
    """Evaluates an objective and the judging model."""

    objective: Objective  # what the attack ascends
    # The model that has to be fooled; None if it is the objective's own, whose forward pass then
    # serves both.
    judge: Model | None
    # One per example if the model is randomised and is called as ``model(images, key=key)``. Values
    # and gradients are then averaged over the draws of a step, the logits are the last draw's.
    keys: Keys | None = None
    draws: int = 1

    def __call__(self, images: Images, step: Int[Array, ""]) -> Evaluation:
        """Evaluate at ``images``; only a randomised model depends on the number of the step."""
        if self.keys is not None:
            return self._averaged(images, step * self.draws, self.keys)
        if self.judge is not None:
            values, gradients = value_and_input_gradient(self.objective, images)
            return Evaluation(values, gradients, float32_logits(self.judge, images))
        (values, logits), gradients = _differentiated(self._own.values_and_logits, images)
        return Evaluation(values, gradients, logits)

    def without_gradients(self, images: Images) -> tuple[Values, Logits]:
        """Return the objective and the judging model's logits; the model is deterministic."""
        if self.judge is not None:
            return self.objective(images), float32_logits(self.judge, images)
        return with_fast_convolutions(self._own.values_and_logits)(images)

    def among(self, rows: Int[np.ndarray, "chosen"]) -> "Evaluator":
        """Return the evaluator of some of the examples, where ``judge`` is None."""
        return replace(self, objective=self._own.among(rows))

    @property
    def _own(self) -> LogitsObjective:
        return cast(LogitsObjective, self.objective)

    def _averaged(self, images: Images, first: Int[Array, ""], keys: Keys) -> Evaluation:
        def one_draw(draw: Int[Array, ""]) -> Evaluation:
            model = WithKeys(self._own.model, fold_each(keys, first + draw))
            return Evaluator(replace(self._own, model=model), None)(images, first)

        draws = jnp.arange(self.draws)
        # A convolution's gradient inside a compiled loop is slow on the CPU backend.
        on_cpu = jax.default_backend() == "cpu"
        found = jax.vmap(one_draw)(draws) if on_cpu else jax.lax.map(one_draw, draws)
        return Evaluation(found[0].mean(axis=0), found[1].mean(axis=0), found[2][-1])


@pytree_dataclass()
class WithKeys:
    """A randomised model with the randomness of every example fixed by its own key."""

    model: Model
    keys: Keys

    def __call__(self, images: Images) -> Logits:
        """Return the logits of every image under its key, whatever the rest of the batch."""

        def one(image: Any, key: Any) -> Float[Array, "classes"]:
            return float32_logits(lambda x: self.model(x, key=key), image[None])[0]

        return jax.vmap(one)(images, self.keys)


def evaluator(
    objective: Objective, judge: Model, keys: Keys | None = None, draws: int = 1
) -> Evaluator:
    """Pair an objective with the judging model; equal models are called once.

    Raises:
      ValueError: ``keys`` for an objective that does not call a randomised model.
    """
    if keys is None:
        return Evaluator(objective, None if _is_own_model(objective, judge) else judge)
    if not isinstance(objective, LogitsObjective):
        raise ValueError(f"loss={objective!r}: a randomised model needs one of the named losses")
    return Evaluator(objective, None, keys, draws)


def _is_own_model(objective: Objective, judge: Model) -> bool:
    if not isinstance(objective, LogitsObjective):
        return False
    own, own_structure = jax.tree.flatten(objective.model)
    other, other_structure = jax.tree.flatten(judge)
    if cast(Any, own_structure) != other_structure:
        return False
    return all(x is y for x, y in zip(own, other, strict=True))
