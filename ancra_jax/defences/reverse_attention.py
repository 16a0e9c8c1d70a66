"""The attacks that see through reverse attention, A1 to A7.

In inference block b = 1, 2 computes auxiliary logits a_b from its pooled features g_b, takes the
class c_b = argmax a_b, and multiplies its map by that class's row of the final linear layer Omega;
the final logits are f = Omega (g_2 * Omega_{c_2}) + bias. Attacks on f alone are misled:

- no gradient passes the argmax that chooses a mask;
- f_c = sum(Omega_c^2 g_2) + bias_c for c = c_2 has no negative term, so argmax f is almost always
  c_2, and the margin that decides is that of a_2;
- under a fixed mask y the gradient of f_y - f_k weights a channel by Omega_y (Omega_y - Omega_k)
  where a_2 needs Omega_y - Omega_k: the opposite sign where Omega_y < 0.

So these attacks ascend what decides. Success is judged by the network itself, masks and all.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Int

from ancra_jax.attacks.adaptive import Defence, Level, SurrogateAttack
from ancra_jax.attacks.gradients import value_and_input_gradient
from ancra_jax.attacks.job import HostImages, Numbers
from ancra_jax.attacks.model import Model, as_pytree, model_outputs
from ancra_jax.attacks.objectives import Logits
from ancra_jax.attacks.placement import Placement
from ancra_jax.defences.attention_objective import (
    LABEL,
    TARGET,
    Ascent,
    AttentionObjective,
    ascent,
    branch_maximum,
    goal,
)
from ancra_jax.ops.images import Images, Labels, Values

_A_1, _A_2 = (1, 0, 0), (0, 1, 0)  # weights of the heads in an objective
_BRANCHES = {"kk": (TARGET, TARGET), "yk": (LABEL, TARGET), "ky": (TARGET, LABEL)}
_best_of_nine = partial(branch_maximum, ranks=3)  # 9 branches in a query of Square


def reverse_attention(network: Any, predict: Model) -> Defence | None:
    """Declare the attacks on a network with reverse attention; return None for a plain one.

    Args:
      network: a module with an attribute ``reverse_attention``.
      predict: its inference with variables bound, ``predict(images, attention=rule)``.
    """
    if not getattr(network, "reverse_attention", False):
        return None
    return Defence(
        "reverse_attention",
        list(_attacks(predict)),
        decision=goal(predict, ascent("margin", (1, 1, 0))),
        rank_by=Partial(_last_aux_logits, predict),
        statistics=partial(mask_statistics, predict),
    )


def _attacks(predict: Model) -> Iterator[SurrogateAttack]:
    """Yield the attacks of every group; what most of them do is data, see ``Ascent``."""

    def attack(name: str, level: Level, what: Ascent, targeted: bool = False) -> SurrogateAttack:
        group = name[:2].upper()
        return SurrogateAttack(name, goal(predict, what), targeted, group=group, level=level)

    # A1: the margins that choose the masks. No mask comes before those of a_1.
    for number, head in ((1, _A_1), (2, _A_2)):
        name = f"a1-gate{number}"
        yield attack(f"{name}-cross_entropy", "quick", ascent("cross_entropy", head))
        yield attack(f"{name}-targeted_margin", "quick", ascent("targeted_margin", head), True)
        yield attack(f"{name}-targeted_dlr", "standard", ascent("targeted_dlr", head), True)
    # A2: forced masks and the smallest of the three margins that make the branch real and wrong.
    yield attack("a2-branch-yy-min", "standard", ascent("branch", branch=(LABEL, LABEL)))
    for name, branch in _BRANCHES.items():
        level: Level = "quick" if name == "kk" else "standard"
        soft = ascent("branch", branch=branch, softness=1.0)
        yield attack(f"a2-branch-{name}-min", level, ascent("branch", branch=branch), True)
        yield attack(f"a2-branch-{name}-soft-min", "thorough", soft, True)
    # A3: a gradient through the softmax of a mask's logits, its value kept hard or soft as well.
    for temperature in (1.0, 0.3, 0.1):
        for name, loss, hard in (
            ("through", "cross_entropy", True),
            ("through", "margin", True),
            ("soft", "cross_entropy", False),
        ):
            level = "quick" if temperature == 0.3 and loss == "cross_entropy" else "standard"
            what = ascent(loss, temperature=temperature, hard=hard, gradient=True)
            yield attack(f"a3-{name}-{temperature:g}-{loss}", level, what)
    # A4: the final loss and, lambda times, the mean of the auxiliary ones.
    for weight in (1, 2, 10):
        for loss in ("cross_entropy", "margin"):
            level = "quick" if weight == 2 and loss == "cross_entropy" else "standard"
            joint = ascent(loss, (weight / 2, weight / 2, 1))
            yield attack(f"a4-joint-{weight}-{loss}", level, joint)
    # A5: all masks the target's, and the target's margin over all others.
    for weight in (1, 10):
        level = "quick" if weight == 1 else "thorough"
        own = ascent("class_margin", (weight, weight, 1), branch=(TARGET, TARGET))
        yield attack(f"a5-masks-k-{weight}", level, own, True)
    # A6: Square, which uses values only.
    black_box = partial(SurrogateAttack, search="square", group="A6")
    yield black_box("a6-square-gate2", goal(predict, ascent("margin", _A_2)))
    yield black_box(
        "a6-square-branches",
        lambda labels, _: Partial(_best_of_nine, predict, labels=labels),
        level="standard",
    )
    # A7: from the same network without masks, classified by a_2; and on from there.
    plain = goal(predict, ascent("cross_entropy", _A_2, off=True))
    masked = goal(predict, ascent("margin", (1, 1, 0)))
    yield SurrogateAttack("a7-trunk", plain, group="A7")
    yield SurrogateAttack("a7-trunk-warm", masked, warm_start=plain, group="A7")


def _last_aux_logits(predict: Model, images: Images) -> Logits:
    return model_outputs(predict, images)[1][-1]


def mask_statistics(
    predict: Model,
    images: HostImages,
    adversarial: HostImages,
    labels: Numbers,
    broken: Bool[np.ndarray, "examples"],
    placement: Placement,
) -> dict[str, float | None]:
    """Measure how often the final prediction is the last mask's class, and how gradients agree.

    Args:
      predict: a network with reverse attention on two blocks.
      images, labels: natural images and their class numbers.
      adversarial: adversarial images where ``broken``.
      broken: examples that some attack broke.
      placement: of the batches.

    Returns:
      ``final_is_last_mask`` (argmax f = c_2) and ``masks_agree`` (c_1 = c_2) on the natural images,
      both also with ``_adversarial``; ``last_mask_changes`` (c_2 differs from the natural image's)
      on the adversarial ones; ``gradient_cosine``, the mean of the cosine between the gradients of
      f_y - f_k and a_2[y] - a_2[k] on the natural images, k the largest wrong logit of a_2. None
      where there are no such examples.
    """
    predict = placement.replicate(as_pytree(predict))

    def over(function: Callable[..., Array], chosen: Numbers, *arrays: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(function(predict, *placement.place([array[rows] for array in arrays])))
            for rows, _ in placement.batches(chosen)
        ]
        return np.concatenate(parts)[: len(chosen)] if parts else np.zeros((0, 3), np.int32)

    everything = np.arange(len(images))
    attacked = np.flatnonzero(broken)
    first, last, final = over(_classes, everything, images).T
    first_then, last_then, final_then = over(_classes, attacked, adversarial).T
    return {
        "final_is_last_mask": _mean(final == last),
        "masks_agree": _mean(first == last),
        "final_is_last_mask_adversarial": _mean(final_then == last_then),
        "masks_agree_adversarial": _mean(first_then == last_then),
        "last_mask_changes": _mean(last_then != last[attacked]),
        "gradient_cosine": _mean(over(_cosine, everything, images, labels)),
    }


@jax.jit
def _classes(predict: Model, images: Images) -> Int[Array, "batch 3"]:
    """Return c_1, c_2 and argmax f."""
    logits, aux_logits = model_outputs(predict, images)
    return jnp.argmax(jnp.concatenate([aux_logits, logits[None]]), axis=-1).T


def _cosine(predict: Model, images: Images, labels: Labels) -> Values:
    final = _gradient(predict, images, labels, ascent("targeted_margin", (0, 0, 1)))
    last_mask = _gradient(predict, images, labels, ascent("targeted_margin", (0, 1, 0)))
    dot = jnp.sum(final * last_mask, axis=(1, 2, 3))
    norms = jnp.sqrt(jnp.sum(final**2, (1, 2, 3)) * jnp.sum(last_mask**2, (1, 2, 3)))
    return dot / (norms + 1e-30)


@jax.jit
def _gradient(predict: Model, images: Images, labels: Labels, what: Ascent) -> Images:
    """Return the gradient of z_k - z_y, k being the largest wrong logit of a_2."""
    a_2 = model_outputs(predict, images)[1][-1]
    wrong = jnp.where(jax.nn.one_hot(labels, a_2.shape[-1], dtype=bool), -jnp.inf, a_2)
    objective = AttentionObjective(predict, what, labels, jnp.argmax(wrong, axis=-1))
    return value_and_input_gradient(objective, images)[1]


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
