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

from ancra_jax.attacks.model import LogitsFn, model_outputs
from ancra_jax.attacks.surrogates import Defence, SurrogateAttack, register_defence
from ancra_jax.defences.attention_objective import LABEL, TARGET, Goal, ascent
from ancra_jax.defences.branches import BranchObjective
from ancra_jax.defences.gate import gate_statistics

NAME = "reverse_attention"
_A_1, _A_2, _F = (1, 0, 0), (0, 1, 0), (0, 0, 1)
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

    def attack(group, name, goal, targeted=False, level="quick", **more):
        name = f"{group[:2].lower()}-{name}"
        return SurrogateAttack(name, goal, targeted, group=group, level=level, **more)

    def along(*arguments, **options):
        return Goal(predict, ascent(*arguments, **options))

    gate = "A1 gate"
    attacks = [
        attack(gate, "gate2-ce", along("cross_entropy", _A_2)),
        attack(gate, "gate2-margin", along("targeted_margin", _A_2), True),
        attack(gate, "gate2-dlr", along("targeted_dlr", _A_2), True, "standard"),
        attack(gate, "gate1-margin", along("targeted_margin", _A_1), True, "standard"),
        attack(gate, "gate1-dlr", along("targeted_dlr", _A_1), True, "thorough"),
    ]
    branches = "A2 branches"
    for name, branch in _BRANCHES.items():
        level = "quick" if name == "kk" else "standard"
        attacks += [
            attack(branches, f"branch-{name}-min", along("branch", branch=branch), True, level),
            attack(
                branches,
                f"branch-{name}-soft-min",
                along("branch", branch=branch, softness=1.0),
                True,
                "thorough",
            ),
        ]
    unchanged = along("branch", branch=(LABEL, LABEL))
    attacks.append(attack(branches, "branch-yy-min", unchanged, level="standard"))

    soft = "A3 soft mask"
    for temperature in (1.0, 0.3, 0.1):
        level = "quick" if temperature == 0.3 else "standard"
        through = {"temperature": temperature, "gradient": True}
        name = f"through-{temperature:g}"
        attacks += [
            attack(soft, f"{name}-ce", along("cross_entropy", _F, **through), level=level),
            attack(soft, f"{name}-margin", along("margin", _F, **through), level="standard"),
        ]
        relaxed = along("cross_entropy", _F, hard=False, **through)
        attacks.append(attack(soft, f"soft-{temperature:g}-ce", relaxed, level=level))

    joint = "A4 joint"
    for weight in (1, 2, 10):
        heads = (weight / 2, weight / 2, 1)
        level = "quick" if weight == 2 else "standard"
        attacks += [
            attack(joint, f"joint-ce-{weight}", along("cross_entropy", heads), level=level),
            attack(joint, f"joint-margin-{weight}", along("margin", heads), level="standard"),
        ]

    both = (TARGET, TARGET)
    attacks += [
        attack(
            "A5 fixed target",
            f"masks-k-{weight}",
            along("class_margin", (weight, weight, 1), branch=both),
            True,
            level,
        )
        for weight, level in ((1, "quick"), (10, "thorough"))
    ]

    decision = along("margin", _A_2)
    attacks += [
        attack("A6 black box", "square-gate2", decision, search="square"),
        attack(
            "A6 black box",
            "square-branches",
            lambda labels, targets: BranchObjective(predict, labels, _RANKS),
            level="standard",
            search="square",
        ),
        attack("A7 transfer", "trunk-ce", along("cross_entropy", _A_2, off=True)),
        attack("A7 transfer", "trunk-warm", decision, warm_start=along("margin", _A_2, off=True)),
    ]
    return Defence(
        NAME,
        attacks,
        decision,
        rank_by=jax.tree_util.Partial(_last_aux_logits, predict),
        gate=partial(gate_statistics, predict),
    )


def _last_aux_logits(predict, images):
    return model_outputs(predict, images)[1][-1]
