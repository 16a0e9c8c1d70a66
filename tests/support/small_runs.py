"""Configurations of runs that take seconds on a CPU."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np

from ancra_jax import config as config_lib
from ancra_jax import models
from ancra_jax.models.layers import BatchNorm, Conv
from ancra_jax.models.network import Network, Trunk, residual_blocks
from ancra_jax.models.resnet import BasicBlock
from configs import digits


class TinyNetwork(Network):
    """One convolution and two residual blocks: all that reverse attention needs."""

    total_stride: ClassVar[int] = 1
    pool_window: ClassVar[int] = 8

    def trunk(self, images, *, train):
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, parts=self.batch_norm_parts)
        x = nn.relu(norm()(conv(self.width)(images), train=train))
        block = partial(BasicBlock, conv=conv, norm=norm)
        blocks = residual_blocks(block, self.width, [2], prefix="layer", train=train)
        return Trunk(x, tuple(blocks), lambda x: x)


@models.register("tiny")
def _tiny(*, width, **options):
    return TinyNetwork(width=width or 4, **options)


SMALL = {
    "epochs": 2,
    "batch_size": 32,
    "log_every_steps": 2,
    "data.train_examples": 160,
    "data.test_examples": 40,
    "data.selection_examples": 32,
    "model.name": "tiny",
    "model.width": 4,
    "attack.num_steps": 2,
    "negative_contrast.random_epochs": 1,
    "self_adaptive.start_epoch": 2,
    "awp.warmup_epochs": 1,
    "selection.every_epochs": 1,
    "selection.num_steps": 2,
    "evaluation.num_steps": 3,
}


def small_config(method="natural", **overrides):
    """A frozen configuration; dots in names are written as two underscores."""
    config = digits.get_config(method)
    config.update_from_flattened_dict(SMALL)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in overrides.items()}
    )
    return config_lib.from_mapping(config)


def arrays(state):
    """A copy of a state on the host."""
    return jax.tree.map(np.asarray, state)


TRAIN_COMMAND = (
    "import tests.support.small_runs\n"
    "from ancra_jax import cli, train\n"
    "cli.run(train.main, train.define_flags)"
)


def small_flags():
    """The settings above as flags of the train command."""
    return [f"--config.{name}={value}" for name, value in SMALL.items()]
