"""What an attack asks of a model: logits, and which images are adversarial by them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.ops.fast_convolutions import with_fast_convolutions
from ancra_jax.ops.images import AnyImages, AnyLabels, Flags, Images, Keys, Labels, Values
from ancra_jax.ops.pytree import pytree_dataclass

Logits = Float[Array, "batch classes"]
AuxLogits = Float[Array, "heads batch classes"]
Model = Callable[..., Any]
"""From images to logits [batch, classes], or to an object with ``logits`` and, if the model has
auxiliary heads, ``aux_logits`` [heads, batch, classes]."""


def as_pytree(model: Model) -> Model:
    """Return a model as a pytree of arrays, so that it can be an argument of ``jit``.

    A callable that is a pytree already (``jax.tree_util.Partial``, an Equinox or NNX module) has
    its arrays traced: another checkpoint does not compile again. Its other leaves (an Equinox
    module's activation functions and flags) are constants of the compiled program. A plain function
    becomes a ``Partial`` of itself: its whole closure is a constant.
    """
    if jax.tree_util.all_leaves([model]):
        return jax.tree_util.Partial(model)
    leaves, structure = jax.tree.flatten(model)
    arrays = [x if isinstance(x, (jax.Array, np.ndarray, np.generic)) else None for x in leaves]
    if all(x is not None for x in arrays):
        return model
    pairs = zip(leaves, arrays, strict=True)
    constants = tuple(leaf if array is None else None for leaf, array in pairs)
    return PartlyStatic(arrays, constants, structure)


@pytree_dataclass(static=("constants", "structure"))
class PartlyStatic:
    """A callable pytree some of whose leaves are not arrays and must not be traced.

    Every leaf stands in ``arrays`` or in ``constants``, and the other has None in its place.
    """

    arrays: list[Any]
    constants: tuple[Any, ...]
    structure: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the original callable."""
        both = zip(self.arrays, self.constants, strict=True)
        leaves = [constant if array is None else array for array, constant in both]
        return jax.tree.unflatten(self.structure, leaves)(*args, **kwargs)


def model_outputs(model: Model, images: Images) -> tuple[Logits, AuxLogits]:
    """Call the model and return its logits as ``read_outputs`` does."""
    return read_outputs(model(images))


def read_outputs(outputs: Any) -> tuple[Logits, AuxLogits]:
    """Return the final and the auxiliary logits in what a model returned, as float32.

    Without auxiliary heads the first axis of theirs is 0.
    """
    logits = jnp.asarray(getattr(outputs, "logits", outputs), jnp.float32)
    aux_logits = getattr(outputs, "aux_logits", None)
    if aux_logits is None:
        aux_logits = jnp.zeros((0, *logits.shape))
    return logits, jnp.asarray(aux_logits, jnp.float32)


def float32_logits(model: Model, images: Images) -> Logits:
    """Return the model's final logits, computed as fast as the loops of the attacks need."""
    return with_fast_convolutions(lambda x: model_outputs(model, x)[0])(images)


@jax.jit
def forward(model: Model, images: Images) -> Logits:
    """Return the model's final logits, float32.

    Raises:
      ValueError: they are not [batch, classes] with at least 2 classes.
    """
    outputs = model(images)
    logits: Any = getattr(outputs, "logits", outputs)
    shape = np.shape(logits)
    if len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
        raise ValueError(
            f"the model returned logits of shape {shape} for {len(images)} images: expected "
            f"[{len(images)}, classes] with at least 2 classes"
        )
    return read_outputs(outputs)[0]


@jax.jit
def example_keys(key: Key[Array, ""], indices: AnyLabels) -> Keys:
    """Return one key per example, derived from its data-set index and from nothing else."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


@jax.jit
def fold_each(keys: Keys, number: int | Int[Array, ""]) -> Keys:
    """Derive from every example's key a new one for a numbered purpose."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


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

    def draw(self, number: int | Int[Array, ""]) -> "WithKeys":
        """Return the model with new randomness, derived from the keys and a number."""
        return replace(self, keys=fold_each(self.keys, number))


def misclassified(logits: Logits, labels: Labels) -> Flags:
    """Return whether the predicted class is not the label; non-finite logits never count."""
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return (jnp.argmax(logits, axis=-1) != labels) & finite


TOLERANCE = 1e-6
"""How far, on the [0, 1] pixel scale, rounding may carry a point out of the ball."""


@explains_old_calls
def is_adversarial(
    model: Model,
    candidates: AnyImages,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
) -> Flags:
    """Judge candidates by a fresh forward pass, whatever an attack believed of them.

    Returns:
      Whether the candidate is finite, in [0, 1], in the ball around its natural image (tolerance
      1e-6), and misclassified with finite logits.
    """
    arrays = jnp.asarray(candidates), jnp.asarray(images), jnp.asarray(labels)
    return judge(as_pytree(model), *arrays, threat_model)[0]


def judge(
    model: Model, candidates: Images, images: Images, labels: Labels, threat_model: ThreatModel
) -> tuple[Flags, Values]:
    """Return ``is_adversarial`` for a model that is a pytree, and the perturbations' norms."""
    return _verdict(forward(model, candidates), candidates, images, labels, threat_model)


@jax.jit
def _verdict(
    logits: Logits, candidates: Images, images: Images, labels: Labels, threat_model: ThreatModel
) -> tuple[Flags, Values]:
    norms = threat_model.norm(candidates - images)
    finite = jnp.all(jnp.isfinite(candidates), axis=(1, 2, 3))
    in_range = jnp.all((candidates >= 0) & (candidates <= 1), axis=(1, 2, 3))
    in_ball = norms <= threat_model.epsilon + TOLERANCE
    return misclassified(logits, labels) & finite & in_range & in_ball, norms
