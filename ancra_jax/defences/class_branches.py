"""The attacks on class branches, whose every part has a gradient."""

from typing import Any

from ancra_jax.attacks import Defence
from ancra_jax.attacks.adaptive import Surrogate, SurrogateAttack, loss_on
from ancra_jax.attacks.model import Model


def class_branches(network: Any, predict: Model) -> Defence | None:
    """Declare attacks on a network that scores every class by a branch of its own.

    The margin between two classes is that between two branches, which targeted attacks ascend. No
    argmax is in the way, so the network is its own surrogate; Square, which follows no gradient,
    shows whether there is one that leads nowhere.

    Args:
      network: a module with an attribute ``last_block``; another one has no such defence.
      predict: its inference with variables bound.
    """
    if getattr(network, "last_block", "") != "class_branches":
        return None
    square = SurrogateAttack("b2-square-margin", loss_on(predict, "margin"), search="square")
    own = Surrogate("b1-branches", predict, losses=("ce", "margin", "targeted_margin"))
    return Defence("class_branches", [own, square])
