"""What a student loses against its teacher.

References:
  Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
"""

import jax
from jaxtyping import Array, Float

from ancra_jax.losses.basic import kl_divergence


def distillation(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    temperature: float,
) -> Float[Array, ""]:
    """Mean over the batch of ``T^2 KL(softmax(sg(teacher) / T) || softmax(student / T))``.

    The factor keeps the gradient as large as that of the cross-entropy, whatever ``T``.

    Args:
      student: logits of one head.
      teacher: logits for the same examples; frozen.
      temperature: ``T``.
    """
    target = jax.lax.stop_gradient(teacher) / temperature
    return temperature**2 * kl_divergence(target, student / temperature)
