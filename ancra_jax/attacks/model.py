"""What an attack asks of a model: logits, and which images are adversarial by them."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.arguments import ROUNDING, AnyKey, as_key, check_callable
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.ops.fast_convolutions import with_fast_convolutions
from ancra_jax.ops.images import AnyLabels, Flags, Images, Keys, Labels, Values
from ancra_jax.ops.pytree import pytree_dataclass

Logits = Float[Array, "batch classes"]
AuxLogits = Float[Array, "heads batch classes"]
_UNTRACED = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
Model = Callable[..., Any]
"""From images to logits [batch, classes], or to an object with ``logits`` and, if the model has
auxiliary heads, ``aux_logits`` [heads, batch, classes]."""


def as_pytree(model: Model, name: str = "model") -> Model:
    """Return a model as a pytree of arrays, so that it can be an argument of ``jit``.

    A callable that is a pytree already (``jax.tree_util.Partial``, an Equinox or NNX module) has
    its arrays traced: another checkpoint does not compile again. Its other leaves (an Equinox
    module's activation functions and flags) are constants of the compiled program. So are those of
    a pytree whose method is given. A plain function becomes a ``Partial`` of itself: its whole
    closure is a constant, as it was when a program was compiled. Anything else is refused with a
    TypeError that speaks of ``name``.
    """
    check_callable(model, name, "a callable from images to logits")
    if inspect.ismethod(model) and not jax.tree_util.all_leaves([model.__self__]):
        model = jax.tree_util.Partial(model.__func__, model.__self__)
    if any(kind.__module__.partition(".")[0] == "torch" for kind in type(model).__mro__):
        raise TypeError(f"{name} is PyTorch's: `ancra import` takes weights over (docs/pytorch.md)")
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
    """Call the model and return its logits as ``read_outputs`` does, with errors that explain."""
    try:
        outputs = model(images)
    except Exception as error:
        if type(error).__name__ == "TraceContextError":
            raise TypeError(
                "model changes its own state when it is called (batch statistics, dropout): call "
                "model.eval() before the attack"
            ) from error
        if isinstance(error, _UNTRACED):
            raise TypeError(
                "model cannot be traced: it turns JAX's arrays into NumPy's, or decides by their "
                "values; write it with jax.numpy"
            ) from error
        if not hasattr(error, "__notes__"):
            error.add_note(f"raised by the model, called with {images.dtype}{list(images.shape)}")
            if isinstance(error, TypeError) and "'key'" in str(error):
                error.add_note("a model that takes a key needs randomized=True")
            if type(error).__module__ == "flax.errors":  # as unbound modules, or in training phase
                error.add_note("Linen: jax.tree_util.Partial(module.apply, variables, train=False)")
        raise
    return read_outputs(outputs, len(images))


def read_outputs(outputs: Any, batch: int | None = None) -> tuple[Logits, AuxLogits]:
    """Return the final and the auxiliary logits in what a model returned, as float32.

    Without auxiliary heads the first axis of theirs is 0.

    Raises:
      TypeError: the model returned something else.
      ValueError: the logits are not [batch, classes] with at least 2 classes, or those of the heads
        not [heads, batch, classes].
    """
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, jax.Array | np.ndarray):
        raise TypeError(
            f"model returned a {type(logits).__name__}: expected logits [batch, classes], or an "
            "object with `logits`; wrap the model in a function that returns its logits alone"
        )
    shape = logits.shape
    count = batch if batch is not None or not shape else shape[0]
    if len(shape) != 2 or shape[0] != count or shape[1] < 2:
        raise ValueError(
            f"the model returned logits of shape {shape} for {count} images: expected "
            f"[{count}, classes] with at least 2 classes"
        )
    aux_logits = getattr(outputs, "aux_logits", None)
    if aux_logits is None:
        aux_logits = np.zeros((0, *shape))
    if np.shape(aux_logits)[1:] != shape:
        raise ValueError(
            f"the model returned aux_logits of shape {np.shape(aux_logits)} beside logits of shape "
            f"{shape}: expected [heads, batch, classes]"
        )
    return jnp.asarray(logits, jnp.float32), jnp.asarray(aux_logits, jnp.float32)


@jax.jit
def fast_outputs(model: Model, images: Images) -> tuple[Logits, AuxLogits]:
    """Return what ``model_outputs`` does, computed as fast as the loops of the attacks need.

    A ``jit`` of its own inside theirs, so that all programs of an ensemble share one trace of the
    model and of its derivative: tracing takes longer than reading a compiled program.
    """
    logits, aux_logits = with_fast_convolutions(partial(model_outputs, model))(images)
    return logits, jnp.asarray(aux_logits)


def float32_logits(model: Model, images: Images) -> Logits:
    """Return the model's final logits by ``fast_outputs``."""
    return fast_outputs(model, images)[0]


@jax.jit
def forward(model: Model, images: Images) -> Logits:
    """Return the model's final logits, float32.

    Raises:
      TypeError, ValueError: as ``read_outputs``; the model changes its own state.
    """
    # In a trace of its own a stateful module refuses to change. In this one it would not, and be
    # judged in its training phase.
    return jax.jit(partial(model_outputs, model))(images)[0]


def example_keys(key: AnyKey, indices: AnyLabels) -> Keys:
    """Return one key per example, derived from its data-set index and from nothing else.

    Args:
      key: a key, or a seed: a whole number from 0 to 2**32 - 1.
      indices: data-set indices, integers [batch].

    Raises:
      TypeError, ValueError: ``key`` is neither.
    """
    if key is None:
        raise TypeError("key=None: expected jax.random.key(seed), or a seed")
    return _example_keys(as_key(key), jnp.asarray(indices))


@jax.jit
def _example_keys(key: Key[Array, ""], indices: Labels) -> Keys:
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
            outputs = partial(model_outputs, lambda x: self.model(x, key=key))
            return with_fast_convolutions(outputs)(image[None])[0][0]

        return jax.vmap(one)(images, self.keys)

    def draw(self, number: int | Int[Array, ""]) -> "WithKeys":
        """Return the model with new randomness, derived from the keys and a number."""
        return replace(self, keys=fold_each(self.keys, number))


def misclassified(logits: Logits, labels: Labels) -> Flags:
    """Return whether the predicted class is not the label; non-finite logits never count."""
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return (jnp.argmax(logits, axis=-1) != labels) & finite


def judge(
    model: Model, candidates: Images, images: Images, labels: Labels, threat_model: ThreatModel
) -> tuple[Flags, Values, Labels]:
    """Return ``attacks.is_adversarial`` for checked arguments, norms and predicted classes."""
    return _verdict(forward(model, candidates), candidates, images, labels, threat_model)


@jax.jit
def _verdict(
    logits: Logits, candidates: Images, images: Images, labels: Labels, threat_model: ThreatModel
) -> tuple[Flags, Values, Labels]:
    norms = threat_model.norm(candidates - images)
    finite = jnp.all(jnp.isfinite(candidates), axis=(1, 2, 3))
    in_range = jnp.all((candidates >= 0) & (candidates <= 1), axis=(1, 2, 3))
    in_ball = norms <= threat_model.epsilon + ROUNDING
    adversarial = misclassified(logits, labels) & finite & in_range & in_ball
    return adversarial, norms, jnp.argmax(logits, axis=-1)
