"""scikit-learn's digits, 8x8 grey images: the example that runs anywhere in a minute.

    ancra train --config=digits.py:trades_ancra --workdir=runs/digits_ancra

Nothing is downloaded. The network is a ResNet-18 of width 8; epsilon is 0.1 (26/255): these images
are larger strokes on a clean background, and 8/255 would be no challenge.

All methods are in docs/methods.md, all tables in docs/reproduce.md.
"""

from configs import common

EPSILON = 0.1

SETTINGS = {
    "epochs": 15,
    "log_every_steps": 10,
    "data.name": "digits",
    "data.selection_examples": 200,
    "data.crop_padding": 1,
    "data.horizontal_flip": False,
    "model.width": 8,
    "attack.epsilon": EPSILON,
    "attack.step_size": EPSILON / 4,
    "negative_contrast.random_epochs": 2,
    "self_adaptive.start_epoch": 10,
    "awp.warmup_epochs": 2,
    "optimizer.learning_rate": 0.05,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 0.0,
    "selection.step_size": EPSILON / 4,
    "evaluation.epsilon": EPSILON,
    "evaluation.step_size": EPSILON / 10,
}

TINY = {"data.train_examples": 1000}


def get_config(argument=None):
    return common.config_of(argument, SETTINGS, TINY)
