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

from functools import partial
from typing import Any

import jax

from ancra_jax.attacks.adaptive.surrogates import Defence, SurrogateAttack, register_defence
from ancra_jax.attacks.model import LogitsFn, model_outputs
from ancra_jax.defences.attention_objective import LABEL, TARGET, Goal, ascent
from ancra_jax.defences.branches import BranchObjective
from ancra_jax.defences.gate import gate_statistics

NAME = "reverse_attention"
_A_1, _A_2, _F = (1, 0, 0), (0, 1, 0), (0, 0, 1)  # weights of the heads in an objective
_BRANCHES = {"kk": (TARGET, TARGET), "yk": (LABEL, TARGET), "ky": (TARGET, LABEL)}
_RANKS = 3  # of each mask's classes in the black-box search: 9 branches a query


@register_defence(NAME)
def reverse_attention(network: Any, predict: LogitsFn) -> Defence | None:
    """Declares the attacks on a network with reverse attention; None for a plain one.

    Args:
      network: a module with an attribute ``reverse_attention``.
      predict: its inference with variables bound, ``predict(images, attention=rule)``.
    """
    if not getattr(network, "reverse_attention", False):
        return None
    parts = (_gate, _branches, _soft_masks, _joint, _fixed_target, _black_box, _transfer)
    return Defence(
        NAME,
        [attack for part in parts for attack in part(predict)],
        decision=Goal(predict, ascent("margin", (1, 1, 0))),
        rank_by=jax.tree_util.Partial(_last_aux_logits, predict),
        gate=partial(gate_statistics, predict),
    )


def _gate(predict):
    """The gate: the margins that choose the masks. No mask comes before those of a_1."""
    attacks = []
    for number, head in ((1, _A_1), (2, _A_2)):
        for loss, targeted, level in (
            ("cross_entropy", False, "quick"),
            ("targeted_margin", True, "quick"),
            ("targeted_dlr", True, "standard"),
        ):
            goal = Goal(predict, ascent(loss, head))
            attacks.append(_attack("A1", f"gate{number}-{loss}", goal, targeted, level))
    return attacks


def _branches(predict):
    """Forced masks and the smallest of the three margins that make the branch real and wrong."""

    def attack(name, branch, targeted, level, softness=0.0):
        goal = Goal(predict, ascent("branch", branch=branch, softness=softness))
        return _attack("A2", f"branch-{name}", goal, targeted, level)

    attacks = [attack("yy-min", (LABEL, LABEL), False, "standard")]
    for name, branch in _BRANCHES.items():
        attacks += [
            attack(f"{name}-min", branch, True, "quick" if name == "kk" else "standard"),
            attack(f"{name}-soft-min", branch, True, "thorough", softness=1.0),
        ]
    return attacks


def _soft_masks(predict):
    """A gradient through the softmax of a mask's logits, its value kept hard or soft as well."""
    attacks = []
    for temperature in (1.0, 0.3, 0.1):
        for name, loss, hard in (
            ("through", "cross_entropy", True),
            ("through", "margin", True),
            ("soft", "cross_entropy", False),
        ):
            what = ascent(loss, _F, temperature=temperature, hard=hard, gradient=True)
            quick = temperature == 0.3 and loss == "cross_entropy"
            attacks.append(
                _attack(
                    "A3",
                    f"{name}-{temperature:g}-{loss}",
                    Goal(predict, what),
                    level="quick" if quick else "standard",
                )
            )
    return attacks


def _joint(predict):
    """The final loss and, lambda times, the mean of the auxiliary ones."""
    return [
        _attack(
            "A4",
            f"joint-{weight}-{loss}",
            Goal(predict, ascent(loss, (weight / 2, weight / 2, 1))),
            level="quick" if weight == 2 and loss == "cross_entropy" else "standard",
        )
        for weight in (1, 2, 10)
        for loss in ("cross_entropy", "margin")
    ]


def _fixed_target(predict):
    """All masks the target's, and the target's margin over all others."""
    return [
        _attack(
            "A5",
            f"masks-k-{weight}",
            Goal(predict, ascent("class_margin", (weight, weight, 1), branch=(TARGET, TARGET))),
            True,
            level,
        )
        for weight, level in ((1, "quick"), (10, "thorough"))
    ]


def _black_box(predict):
    """Square, which uses values only."""
    margin = Goal(predict, ascent("margin", _A_2))

    def branches(labels, targets):
        return BranchObjective(predict, labels, _RANKS)

    return [
        _attack("A6", "square-gate2", margin, search="square"),
        _attack("A6", "square-branches", branches, level="standard", search="square"),
    ]


def _transfer(predict):
    """From the same network without masks, classified by a_2; and on from there."""
    plain = Goal(predict, ascent("cross_entropy", _A_2, off=True))
    masked = Goal(predict, ascent("margin", (1, 1, 0)))
    return [
        _attack("A7", "trunk", plain),
        _attack("A7", "trunk-warm", masked, warm_start=plain),
    ]


def _attack(group, name, objective, targeted=False, level="quick", **more):
    name = f"{group.lower()}-{name}"
    return SurrogateAttack(name, objective, targeted, group=group, level=level, **more)


def _last_aux_logits(predict, images):
    return model_outputs(predict, images)[1][-1]
