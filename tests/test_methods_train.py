"""Every configured method trains, saves, and continues to the same state."""

import shutil

import chex
import jax
import numpy as np
import pytest
from small_runs import small_config

from ancra_jax import config as config_lib
from ancra_jax import methods
from ancra_jax.train import train
from configs import cifar10, cifar100, common, digits, tiny_imagenet

FILES = {"cifar10": cifar10, "cifar100": cifar100, "digits": digits, "tiny_imagenet": tiny_imagenet}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", common.METHODS)
def test_every_configuration_names_a_method(file, name):
    method = methods.create(config_lib.from_mapping(FILES[file].get_config(name)))
    assert callable(method.loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", common.METHODS)
def test_two_steps_then_resumed_after_the_first(name, tmp_path):
    config = small_config(
        name,
        max_steps=2,
        checkpoint_every_steps=1,
        self_adaptive__start_epoch=1,
        awp__warmup_epochs=0,
        udr__interval=2,
    )
    expected = jax.tree.map(np.asarray, train(config, str(tmp_path)))
    shutil.rmtree(tmp_path / "checkpoints/2")
    continued = jax.tree.map(np.asarray, train(config, str(tmp_path)))
    chex.assert_trees_all_equal(continued, expected)
    check_state(name, expected.method_state)


def check_state(name, state):
    """What a method remembers has moved; other methods remember nothing."""
    match name:
        case "sat":
            soft_labels = state["soft_labels"]
            moved = (soft_labels.max(axis=1) < 1).sum()
            assert moved == 64  # two batches of 32, of 128 examples
            np.testing.assert_allclose(soft_labels.sum(axis=1), 1.0, rtol=1e-5)
        case "udr_pgd" | "udr_trades":
            assert 0 < state["udr"]["multiplier"] < 1 and state["udr"]["steps"] == 0
        case _:
            assert state == {}
