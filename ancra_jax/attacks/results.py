"""What an attack returns."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class AttackResult(NamedTuple):
    """Per-example result of one attack.

    Attributes:
      images: an adversarial image where ``success``, the natural image elsewhere.
      success: whether the attack found a misclassified image inside the threat model.
      best_loss: the largest value of the ascended objective (for FAB: minus the smallest norm of a
        misclassified image, ``-inf`` without one).
      queries: forward passes spent on the example.
    """

    images: Float[Array, "batch height width channels"]
    success: Bool[Array, "batch"]
    best_loss: Float[Array, "batch"]
    queries: Int[Array, "batch"]
