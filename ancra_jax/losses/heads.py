"""How a loss term is taken over the final logits and the auxiliary heads."""

from collections.abc import Callable

from ancra_jax.attacks.objectives import combine_heads
from ancra_jax.types import Outputs, Scalar


def combined(term: Callable[..., Scalar], *outputs: Outputs, aux_weight: float) -> Scalar:
    """Compute ``g(f') + aux_weight mean_k g(p_k)``, which the paper writes with a hat.

    Args:
      term: ``g``; takes the logits of every element of ``outputs``, all of the same head.
      *outputs: network outputs (natural, adversarial, ...), with equally many auxiliary heads.
      aux_weight: lambda_aux of the paper, 2 by default in the configurations.

    Returns:
      The combined term; ``g(f')`` alone for networks without auxiliary heads.
    """
    final = tuple(output.logits for output in outputs)
    auxiliary = tuple(output.aux_logits for output in outputs)
    return combine_heads(lambda logits: term(*logits), final, auxiliary, aux_weight)
