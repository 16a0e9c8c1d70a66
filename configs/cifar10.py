"""CIFAR-10 with a ResNet-18, as in Tables 1 to 4 of the paper.

    ancra train --config=cifar10.py:trades_ancra --workdir=runs/trades_ancra

docs/methods.md lists all methods, their settings and what their papers claim.
The paper's claims (natural / PGD-40 / FGSM / C&W-40 / AutoAttack, %) for 120 epochs:
TRADES 78.92 / 48.40 / 59.60 / 47.59 / 45.44, TRADES-ANCRA 81.70 / 82.96 / 82.74 / 83.01 / 59.70.
An accuracy under attack above the natural one is the mark of a hidden gradient; see the README.

On CPU try ``--config.model.width=8 --config.data.train_examples=5000 --config.epochs=10``.
"""

from configs import common

SETTINGS = {"data.name": "cifar10"}


def get_config(argument=None):
    return common.config_of(argument, SETTINGS)
