"""Types that cross the borders between the parts of the library."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, PyTree

Variables = PyTree
"""Flax variables: ``{'params': ..., 'batch_stats': ...}``."""
Logits = Float[Array, "batch classes"]
Scalar = Float[Array, ""]


class Outputs(NamedTuple):
    """What a network says about a batch of images.

    Attributes:
      logits: final logits, ``f'`` in the paper.
      aux_logits: logits of the auxiliary heads, ``p_1, p_2`` of reverse attention; the first axis
        has length 0 for a network without them.
      features: the input of the final linear layer (with reverse attention: ``z'``, reweighted;
        with class branches the mean over them).
      class_rows: weights of the final linear layer, a row for each class, ``Omega`` in the paper;
        None if the network does not say.
    """

    logits: Logits
    aux_logits: Float[Array, "heads batch classes"]
    features: Float[Array, "batch features"]
    class_rows: Float[Array, "classes features"] | None = None


class Batch(NamedTuple):
    """Examples of a data set. All randomness of an example is derived from its index."""

    images: Float[Array, "batch height width channels"]  # pixels on the [0, 1] scale
    labels: Int[Array, "batch"]  # class numbers
    indices: Int[Array, "batch"]  # positions in the data set
    take: Callable[[Int[Array, "batch"]], Array] | None = None  # images of the batch, by indices

    def images_at(
        self, positions: Int[Array, "batch"]
    ) -> Float[Array, "batch height width channels"]:
        """Return the images in other rows of the batch.

        Where the batch is spread over devices, each takes what it needs from its copy of the data
        set: all images of the batch would have to be sent to all devices otherwise.
        """
        return self.images[positions] if self.take is None else self.take(self.indices[positions])


ApplyFn = Callable[..., Any]
"""A network as a pure function, as ``flax.linen.Module.apply`` is.

``apply(variables, images, labels=None, *, train=False, mutable=False)``. In the evaluation phase it
returns ``Outputs``. With ``train=True`` and ``mutable=['batch_stats']`` it returns ``(Outputs,
{'batch_stats': ...})``, and ``labels`` choose the reverse-attention masks.
"""
