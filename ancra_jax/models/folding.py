"""What many forward passes in the evaluation phase have in common, computed once."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from ancra_jax.models.layers import FOLDED, BatchNorm
from ancra_jax.ops.convolution import turned
from ancra_jax.ops.pytree import Foldable, pytree_dataclass
from ancra_jax.ops.target import platform
from ancra_jax.types import Variables


def folded(network: Any, variables: Variables) -> Variables:
    """Return variables whose batch normalisation is done, for the evaluation phase.

    With running statistics, batch normalisation is the affine map ``s x + t`` per channel, with
    ``s = scale / sqrt(var + epsilon)`` and ``t = bias - s mean``. Where it follows a convolution
    directly, ``s`` goes into the kernel and the layer adds ``t`` alone. Elsewhere (before the
    convolutions of pre-activation blocks) the layer computes ``s x + t`` with numbers that are
    known. Logits, auxiliary logits and features stay the same up to rounding. Works inside ``jit``;
    gradients with respect to images are those of the network. On CPU the kernels of their input
    gradient are made here too.

    Args:
      network: one of `create`. Any other, and a network of other blocks that do not say what
        follows their convolutions (a class variable ``folds``), keeps its variables.
      variables: its parameters and batch statistics, or what this function made of them.

    Returns:
      What ``network.apply`` takes in place of ``variables`` with ``train=False``.
    """
    stats = variables.get("batch_stats")
    find = getattr(network, "folds", None)
    if not stats or find is None or any(find(path[:-2]) is None for path in flatten_dict(stats)):
        return variables
    return _fold(network, variables)


@partial(jax.jit, static_argnums=0)
def _fold(network: Any, variables: Variables) -> Variables:
    params, stats = (flatten_dict(variables[name]) for name in ("params", "batch_stats"))
    left = {}
    for path, mean in stats.items():
        *scope, norm, statistic = path
        if statistic != "mean":
            continue
        layer = (*scope, norm)
        scale = params.pop((*layer, "scale"))
        scale = scale * jax.lax.rsqrt(stats[*layer, "var"] + BatchNorm.epsilon)
        bias = params.pop((*layer, "bias")) - mean * scale
        if conv := network.folds(scope).get(norm):
            kernel = (*scope, conv, "kernel")
            params[kernel] = (params[kernel] * scale).astype(network.dtype)
            bias = bias.astype(network.dtype)
        else:
            left[*layer, "scale"] = scale
        left[*layer, "bias"] = bias
    if platform() == "cpu":
        for path, kernel in params.items():
            if kernel.ndim == 4:
                left[*path[:-1], "turned"] = turned(kernel.astype(network.dtype))
    return {"params": unflatten_dict(params), FOLDED: unflatten_dict(left)}


@pytree_dataclass(static=("network",))
class BoundNetwork(Foldable):
    """A network with its variables: ``network.apply`` without its first argument.

    A pytree of the variables, so other weights of the network do not compile again. The loops of
    attacks call it as `folded` makes it.
    """

    network: Any  # a Linen module
    variables: Variables

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the network; in the evaluation phase the result is ``Outputs``."""
        return self.network.apply(self.variables, *args, **options)

    def folded(self) -> "BoundNetwork":
        """Return it with `folded` variables."""
        return replace(self, variables=folded(self.network, self.variables))
