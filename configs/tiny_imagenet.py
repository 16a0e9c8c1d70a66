"""Tiny-ImageNet (64x64, 200 classes) with a PreActResNet-18.

    ancra train --config=tiny_imagenet.py:trades_ancra \
        --config.data.data_dir=tiny-imagenet-200.zip --workdir=runs/tiny_imagenet_ancra

The learning rate is the paper's, 0.01; the authors' code uses 0.1
(``--config.optimizer.learning_rate=0.1``).

All methods are in docs/methods.md, all tables in docs/reproduce.md.
"""

from configs import common

SETTINGS = {
    "data.name": "tiny_imagenet",
    "model.name": "preact_resnet18",
    "optimizer.weight_decay": 5e-4,
    "second_order.diagonal": 0.01,  # twice the even share, as on CIFAR-10 and CIFAR-100
}

TINY = {"model.width": 4}  # the images have four times as many pixels


def get_config(argument=None):
    return common.config_of(argument, SETTINGS, TINY)
