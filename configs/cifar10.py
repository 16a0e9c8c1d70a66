"""CIFAR-10 with a ResNet-18, as in Tables 1 to 4 of the paper.

    ancra train --config=cifar10.py:trades_ancra --workdir=runs/trades_ancra

docs/methods.md lists all methods, their settings and what their papers claim.
The paper's claims (natural / PGD-40 / FGSM / C&W-40 / AutoAttack, %) for 120 epochs:
TRADES 78.92 / 48.40 / 59.60 / 47.59 / 45.44, TRADES-ANCRA 81.70 / 82.96 / 82.74 / 83.01 / 59.70.
An accuracy under attack above the natural one is the mark of a hidden gradient; see the README.

Two recipes beside the methods, as their authors have them. The accuracies (natural / AutoAttack, %)
are published, not measured here; evaluate ``--weights=ema``.

    ancra train --config=cifar10.py:best --workdir=runs/best
    ancra train --config=cifar10.py:best_extra --config.extra_data.path=1m.npz --workdir=runs/extra

``best``: PGD-AT with ADR, AWP and averaged weights (Wu et al., Annealing Self-Distillation
Rectification Improves Adversarial Training, ICLR 2024): 83.26 / 51.24. A step costs what one of
TRADES does, 27 forward passes; the 200 epochs cost 1.7 times the 120 of ``trades``.
``best_extra``: TRADES with a million generated images (Wang et al., Better Diffusion Models Further
Improve Adversarial Training, ICML 2023), who publish larger networks. Others' PreActResNet-18 with
a million of an older model's images: 56.66 AutoAttack (Rebuffi et al., 2021), 86.86 / 57.09 (HAT).
400 epochs of 95 batches of 512 cost 3.3 times ``trades``. The images are ``cifar10/1m.npz`` of
P2333/DM-Improves-AT on Hugging Face.

On CPU try ``--config.model.width=8 --config.data.train_examples=5000 --config.epochs=10``.
"""

from configs import common

SETTINGS = {"data.name": "cifar10"}
RECIPES = {"best": common.BEST, "best_extra": common.BEST_EXTRA}


def get_config(argument=None):
    return common.config_of(argument, SETTINGS, recipes=RECIPES)
