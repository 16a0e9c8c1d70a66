"""A folder of your own images, ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*``.

    ancra train --config=folder.py:trades --config.data.data_dir=DIR --workdir=runs/mine

Settings that are 0 are chosen by what is in the folder, printed, and kept in the run's config.json:
the side to which images are cut and resized (32 pixels, from 2,000 images on 64; small images of
one size stay as they are), the batch size (16 to 128) and how many images checkpoints are selected
by (an eighth). The network is a ResNet-18 of width 8, which learns a few hundred images in minutes
on a CPU; on an accelerator take ``--config.model.width=64``.

docs/data.md says what a folder may hold, docs/methods.md has all methods.
"""

from configs import common

SETTINGS = {
    "epochs": 40,
    "batch_size": 0,
    "log_every_steps": 10,
    "data.name": "folder",
    "data.image_size": 0,
    "data.selection_examples": 0,
    "model.width": 8,
    "negative_contrast.random_epochs": 4,
    "self_adaptive.start_epoch": 25,
    "awp.warmup_epochs": 4,
    "optimizer.learning_rate": 0.04,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 0.0,
    "selection.num_steps": 10,
}

TINY = {"data.train_examples": 0, "data.selection_examples": 0}


def get_config(argument=None):
    return common.config_of(argument, SETTINGS, TINY)
