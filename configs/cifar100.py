"""CIFAR-100 with a ResNet-18, as in Table 1 of the paper; settings as for CIFAR-10.

    ancra train --config=cifar100.py:trades_ancra --workdir=runs/c100_ancra

The paper's claims (natural / PGD-40 / FGSM / C&W-40 / AutoAttack, %):
TRADES-ANCRA 53.73 / 51.24 / 52.17 / 52.55 / 35.81.

    ancra train --config=cifar100.py:best --workdir=runs/c100_best

``best`` is PGD-AT with ADR, AWP and averaged weights (Wu et al., Annealing Self-Distillation
Rectification Improves Adversarial Training, ICLR 2024): published, not measured here, 57.36 natural
and 28.52 under AutoAttack (``--weights=ema``). 200 epochs cost 1.7 times the
120 of ``trades``.

All methods are in docs/methods.md, all tables in docs/reproduce.md.
"""

from configs import common

SETTINGS = {"data.name": "cifar100", "second_order.diagonal": 0.02}
RECIPES = {"best": common.BEST | {"method.options": {"temperature": (2.0, 1.0)}}}


def get_config(argument=None):
    return common.config_of(argument, SETTINGS, recipes=RECIPES)
