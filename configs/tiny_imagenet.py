"""Tiny-ImageNet (64x64, 200 classes) with a PreActResNet-18.

    ancra train --config=tiny_imagenet.py:trades_ancra \
        --config.data.data_dir=tiny-imagenet-200.zip --workdir=runs/tiny_imagenet_ancra

The learning rate is the paper's, 0.01; the authors' code uses 0.1
(``--config.optimizer.learning_rate=0.1``).

    ancra train --config=tiny_imagenet.py:best \
        --config.data.data_dir=tiny-imagenet-200.zip --workdir=runs/tiny_imagenet_best

``best`` is PGD-AT with ADR and averaged weights, a ResNet-18 (Wu et al., Annealing
Self-Distillation Rectification Improves Adversarial Training, ICLR 2024): published, not measured
here, 48.55 natural and 20.21 under AutoAttack (``--weights=ema``). With AWP their number is 20.10.
80 epochs cost 0.6 times the 120 of ``trades``.

All methods are in docs/methods.md, all tables in docs/reproduce.md.
"""

from configs import common

SETTINGS = {
    "data.name": "tiny_imagenet",
    "model.name": "preact_resnet18",
    "optimizer.weight_decay": 5e-4,
    "second_order.diagonal": 0.01,  # twice the even share, as on CIFAR-10 and CIFAR-100
}

RECIPES = {
    "best": common.BEST
    | {
        "model.name": "resnet18",
        "epochs": 80,
        "awp.gamma": 0.0,
        "optimizer.milestones": (40, 60),
        "method.options": {"temperature": (2.0, 1.5), "interpolation": (0.5, 0.9)},
    }
}

TINY = {"model.width": 4}  # the images have four times as many pixels


def get_config(argument=None):
    return common.config_of(argument, SETTINGS, TINY, RECIPES)
