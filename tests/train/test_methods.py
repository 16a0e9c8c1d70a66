"""Every configured method trains and continues to the same state, on one device or on eight."""

import shutil

import chex
import numpy as np
import pytest

from ancra_jax import config as config_lib
from ancra_jax import methods
from ancra_jax.run import build, sharding
from ancra_jax.run.weights import find_weights
from ancra_jax.train.loop import train
from configs import cifar10, cifar100, common, digits, tiny_imagenet
from tests.support.processes import run_on_devices
from tests.support.small_runs import arrays, small_config

FILES = {"cifar10": cifar10, "cifar100": cifar100, "digits": digits, "tiny_imagenet": tiny_imagenet}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", common.METHODS)
def test_every_configuration_names_a_method(file, name):
    method = methods.create(config_lib.from_mapping(FILES[file].get_config(name)))
    assert callable(method.loss)


# Pairs of a loss and a wrapper whose other pairs are trained here, and what others contain.
PAIRED = {
    "natural",  # in test_loop.py
    "mart",
    "at_awp",
    "trades_s2o",  # below, on eight devices
    "pgd_at",
    "trades",
    "trades_ancra",
    "trades_awp",
    "at_s2o",
    "udr_pgd",
    "pgd_at_ancra",
    "mart_ancra",
    "trades_anc",
    "trades_ra",
    "pgd_at_adr",
    "ikl",
    "hat",  # in test_options.py, where it has a teacher
    "trades_shallow",
    "trades_beta4",
    "trades_beta9",
    "trades_beta12",
    "trades_2x",
    "trades_4x",
    "trades_awp_ema",
    "trades_true_anc",
    "trades_ra_stopped",
    "trades_margin",
    "trades_batch_anc",
    "trades_soft_ra",
}
# What is trained together with another method.
TOGETHER = {
    "trades_ra_random": {
        "model__attention": "stopped",
        "margin_alignment__weight": 1.0,
        "negative_contrast__zeta": 3.0,
        "negative_contrast__true_labels": True,
        "negative_contrast__from_batch": True,
    }
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in common.METHODS if name not in PAIRED])
def test_two_steps_equal_one_and_another_after_it_was_resumed(name, tmp_path):
    config = small_config(
        name,
        max_steps=2,
        checkpoint_every_steps=1,
        self_adaptive__start_epoch=1,
        awp__warmup_epochs=0,
        udr__interval=2,
        **TOGETHER.get(name, {}),
    )
    expected = arrays(train(config, str(tmp_path)))
    shutil.rmtree(tmp_path / "checkpoints/2")
    chex.assert_trees_all_equal(arrays(train(config, str(tmp_path))), expected)
    check_state(name, expected.method_state)

    network, mesh = build.create_network(config, 10), sharding.create_mesh()
    found = find_weights(str(tmp_path), checkpoint="last")
    variables = found.load(network, (8, 8, 1), mesh)
    assert found.step == 2
    chex.assert_trees_all_equal(arrays(variables), expected.variables_of("raw"))


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


EIGHT_DEVICES = """
import sys
import chex, jax, pytest
from ancra_jax.errors import UsageError
from ancra_jax.run import build, sharding
from ancra_jax.train import loop
from ancra_jax.train.teacher import Teacher
from tests.support.reference_weights import random_variables
from tests.support.small_runs import arrays, small_config

assert jax.device_count() == 8
OPTIONS = dict(
    ema__decay=0.9, swa__start_epoch=1, extra_data__path=sys.argv[1], extra_data__fraction=0.25,
    distillation__weight=0.5, distillation__teacher="given below",
)

def random_teacher(config, dataset, mesh):
    network = build.create_network(small_config(), 10)
    variables = jax.device_put(random_variables(network, (8, 8, 1)), sharding.replicated(mesh))
    return Teacher(jax.tree_util.Partial(network.apply, variables), "")

loop.load_teacher = random_teacher

def after_one_step(name, devices, **options):
    options |= {"self_adaptive__start_epoch": 1, "awp__warmup_epochs": 0}
    # Beside the natural image the gradient of the KL is almost 0, and rounding decides its signs.
    config = small_config(name, data__crop_padding=1, attack__start="uniform", **options)
    training = loop.Training(config, sharding.create_mesh(devices))
    operands = training.train_data, training.permutation(0)
    state, _ = training.step(training.create_state(), *operands, training.teacher)
    if "swa" in state.averages:
        averages = training.refresh_statistics(state.averages, *operands, training.steps_per_epoch)
        state = state._replace(averages=averages)
    first = arrays(state)
    training.step(state, *operands, training.teacher)
    assert training.step._cache_size() == 1, f"{name}: what a step returns is laid out otherwise"
    return first

with pytest.raises(UsageError, match="config.batch_size=30: .* 8"):
    loop.train(small_config(batch_size=30), f"{sys.argv[1]}.run")

UDR = dict(udr__multiplier=1.0, udr__interval=1, optimizer__accumulation_steps=2)
PARTS = dict(model__batch_norm_parts=8)
for name, options in (("trades_awp_ancra", PARTS), ("trades_s2o", UDR), ("sat", OPTIONS)):
    eight, one = (after_one_step(name, d, **options) for d in (jax.devices(), jax.devices()[:1]))
    for field in ("params", "batch_stats", "method_state", "averages"):
        pair = getattr(eight, field), getattr(one, field)
        chex.assert_trees_all_close(*pair, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_eight_devices_make_the_step_of_one(extra_data):
    run_on_devices(8, EIGHT_DEVICES, extra_data["extra_data__path"])
