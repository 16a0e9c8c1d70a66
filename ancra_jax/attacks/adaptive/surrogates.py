"""Attacks on stand-ins for a model, and the defences that declare them.

A defence with a part that no gradient passes (an argmax, a rounding) misleads attacks on its own
logits. It can be attacked through something that resembles it and has a gradient: a surrogate. What
a surrogate suggests counts only if the model itself, with nothing replaced, is fooled by it.

References:
  Athalye, Carlini & Wagner, Obfuscated gradients give a false sense of security, ICML 2018 (BPDA).
  Tramer, Carlini, Brendel & Madry, On adaptive attacks to adversarial example defenses, NeurIPS
  2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ancra_jax.attacks.autoattack.ensemble import fitting_loss
from ancra_jax.attacks.model import Model
from ancra_jax.attacks.objectives import LOSSES, TARGETED_LOSSES, Objective

ObjectiveOf = Callable[[Any, Any], Objective]
"""``(labels, targets) -> objective`` of a batch; the targets are None in an untargeted attack."""

Level = Literal["quick", "standard", "thorough"]
LEVELS: tuple[Level, ...] = ("quick", "standard", "thorough")


@dataclass(frozen=True)
class SurrogateAttack:
    """One search along one objective; every iterate is judged by the model itself.

    Attributes:
      name: in the results.
      objective: what to ascend on a batch, a callable ``(labels, targets) -> objective``. Attacks
        whose objectives are pytrees of one structure share a compiled program.
      targeted: whether the objective aims at a class; there is a pass for each target then.
      search: ``'apgd'``; ``'pgd'``, whose last iterate counts; or ``'square'``, which asks the
        objective for values only.
      warm_start: an objective that APGD ascends first, from whose best point it goes on.
      group: of attacks that belong together.
      level: the smallest budget that includes the attack.
    """

    name: str
    objective: ObjectiveOf
    targeted: bool = False
    search: Literal["apgd", "pgd", "square"] = "apgd"
    warm_start: ObjectiveOf | None = None
    group: str = ""
    level: Level = "quick"


@dataclass(frozen=True)
class Surrogate:
    """A differentiable stand-in for a model.

    Attributes:
      name: in the results.
      forward: images to logits, or to an object with ``logits``; a callable pytree, so that one
        program serves surrogates that differ in their arrays alone.
      losses: names of ``apgd``'s losses; by default cross-entropy and, as far as the number of
        classes allows, both kinds of DLR.
      group, level: see ``SurrogateAttack``.
    """

    name: str
    forward: Model
    losses: tuple[str, ...] = ()
    group: str = ""
    level: Level = "quick"

    def attacks(self, num_classes: int) -> list[SurrogateAttack]:
        """Return an attack for each loss."""
        fitting = [fitting_loss(loss, num_classes) for loss in ("ce", "dlr", "targeted_dlr")]
        return [
            SurrogateAttack(
                f"{self.name}-{loss}",
                loss_on(self.forward, loss),
                targeted=loss in TARGETED_LOSSES,
                group=self.group,
                level=self.level,
            )
            for loss in self.losses or fitting
        ]


@dataclass(frozen=True)
class Defence:
    """The attacks that see through a defence.

    Attributes:
      name: of the defence.
      attacks: surrogates, or attacks on them.
      decision: what decides the model's prediction and has a gradient; warm starts go on along it.
        The margin of the model's own logits if None.
      rank_by: a model whose natural logits rank the targets; the model itself if None.
      statistics: ``(images, adversarial, labels, broken, placement)`` to named numbers that say how
        the part without a gradient behaves; for the result.
    """

    name: str
    attacks: Sequence[Surrogate | SurrogateAttack]
    decision: ObjectiveOf | None = None
    rank_by: Model | None = None
    statistics: Callable[..., dict[str, float | None]] | None = None


def loss_on(forward: Model, loss: str) -> ObjectiveOf:
    """Return one of ``apgd``'s named losses on the logits of a model of one's own."""
    if loss in TARGETED_LOSSES:
        return partial(TARGETED_LOSSES[loss], forward)
    if loss in LOSSES:
        return lambda labels, _: LOSSES[loss](forward, labels)
    raise ValueError(f"loss={loss!r}: allowed are {', '.join([*LOSSES, *TARGETED_LOSSES])}")
