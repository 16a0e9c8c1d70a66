"""CIFAR-100 with a ResNet-18, as in Table 1 of the paper; settings as for CIFAR-10.

    ancra train --config=cifar100.py:trades_ancra --workdir=runs/c100_ancra

The paper's claims (natural / PGD-40 / FGSM / C&W-40 / AutoAttack, %):
TRADES-ANCRA 53.73 / 51.24 / 52.17 / 52.55 / 35.81.

All methods are in docs/methods.md, all tables in docs/reproduce.md.
"""

from configs import common

SETTINGS = {"data.name": "cifar100", "second_order.diagonal": 0.02}


def get_config(argument=None):
    return common.config_of(argument, SETTINGS)
