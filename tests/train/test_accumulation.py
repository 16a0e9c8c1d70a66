"""A step whose batch is taken in parts makes the update of the whole batch."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancra_jax import methods
from ancra_jax.data import Augmentation, BatchPlan, DeviceSplit, StreamedSplit
from ancra_jax.data.pipeline import ExtraDraws
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import read_json_lines
from ancra_jax.run import build
from ancra_jax.run.workdir import read_starts
from ancra_jax.train.loop import train
from ancra_jax.train.step import create_train_state, make_train_step
from ancra_jax.types import Outputs
from tests.support.small_runs import arrays, small_config

EXAMPLES, CLASSES, SHAPE = 256, 4, (8, 8, 1)
RNG = np.random.default_rng(0)
DATA = DeviceSplit(
    jnp.asarray(RNG.integers(0, 256, (EXAMPLES, *SHAPE)), jnp.uint8),
    jnp.asarray(RNG.integers(0, CLASSES, EXAMPLES), jnp.int32),
)
ORDER = jnp.asarray(RNG.permutation(EXAMPLES), jnp.int32)


class Plain(NamedTuple):
    """A network that is no Linen module."""

    apply: Callable


def init(key, images):
    first, second = jax.random.split(key)
    pixels = images[0].size
    return {
        "params": {
            "kernel": jax.random.normal(first, (pixels, 64)) / np.sqrt(pixels),
            "out": jax.random.normal(second, (64, CLASSES)) / 8,
        }
    }


def perceptron(variables, images, labels=None, *, train=False, mutable=False):
    """Outputs for an image that do not depend on the batch."""
    params = variables["params"]
    features = images.reshape(len(images), -1)
    for _ in range(4):
        features = jax.nn.tanh(features @ params["kernel"])
    logits = features @ params["out"]
    outputs = Outputs(logits, jnp.zeros((0, *logits.shape)), features)
    return (outputs, {}) if mutable else outputs


def lowered(apply, init, config, parts, batch_size=16, extra=None):
    """The step, and a state to call it with."""
    method, optimizer, averaging = methods.create(config), optax.sgd(0.1), build.averaging(config)
    steps, key = EXAMPLES // batch_size, jax.random.key(1)
    batches = BatchPlan(batch_size, steps, Augmentation(1), key, extra=extra)
    key, memory = jax.random.key(0), method.init_state(DATA.labels, CLASSES)
    state = create_train_state(init, optimizer, SHAPE, key, memory, averaging)
    step = make_train_step(Plain(apply), method, optimizer, batches, averaging, parts=parts)
    return step, state, batches


STATEFUL = {"udr__multiplier": 0.9, "udr__interval": 1, "udr__rate": 10.0}


HELPED = {"method__name": "hat", "distillation__teacher": "elsewhere"}
# A step draws 4 of its examples from 8 others, which come from the host.
OTHERS = ExtraDraws(4, EXAMPLES, 8, jax.random.key(2))


@pytest.mark.parametrize(
    ("name", "options", "atol", "extra"),
    [
        ("trades_anc", STATEFUL | HELPED, 1e-6, OTHERS),
        ("ikl", {"awp__gamma": 0.01, "awp__warmup_epochs": 0}, 1e-6, None),
        ("trades_adr", {}, 1e-6, None),
        # Its weights are scaled to the size of what is averaged over, here of a part.
        ("sat", {"self_adaptive__start_epoch": 1}, 1e-4, None),
    ],
)
def test_parts_make_the_update_of_the_whole(name, options, atol, extra):
    config = small_config(name, attack__start="uniform", **options)
    data, teacher, after = DATA, None, []
    if extra:
        data = StreamedSplit(DATA, DeviceSplit(DATA.images[:4], DATA.labels[:4]))
        teacher = jax.tree_util.Partial(perceptron, init(jax.random.key(3), DATA.images[:1]))
    for parts in (1, 4):
        step, state, _ = lowered(perceptron, init, config, parts, extra=extra)
        after.append(step(state, data, ORDER, teacher))
    (whole, of_whole), (in_parts, of_parts) = arrays(after)
    chex.assert_trees_all_close(in_parts, whole, rtol=1e-5, atol=atol)
    chex.assert_trees_all_close(of_parts, of_whole, rtol=1e-4, atol=10 * atol)


def normalised(variables, images, labels=None, *, train=False, mutable=False):
    """A network that takes the mean of its features over the batch off, and keeps a running one."""
    params, running = variables["params"], variables["batch_stats"]["mean"]
    features = images.reshape(len(images), -1) @ params["kernel"]
    mean = features.mean(axis=0) if train else running
    features = jax.nn.tanh(features - mean)
    logits = features @ params["out"]
    outputs = Outputs(logits, jnp.zeros((0, *logits.shape)), features)
    return (outputs, {"batch_stats": {"mean": 0.9 * running + 0.1 * mean}}) if mutable else outputs


def test_a_part_has_batch_statistics_of_its_own():
    def start(key, images):
        return init(key, images) | {"batch_stats": {"mean": jnp.zeros(64)}}

    step, state, batches = lowered(normalised, start, small_config(), 2)
    params, batch_stats = arrays(state.params), arrays(state.batch_stats)
    batch = batches.batch(DATA, ORDER, jnp.zeros((), jnp.int32))

    @jax.grad
    def gradient(params, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits = normalised(variables, images, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    parts = [(batch.images[part::2], batch.labels[part::2]) for part in (0, 1)]
    first, second = (jax.jit(gradient)(params, *part) for part in parts)
    expected = jax.tree.map(lambda w, a, b: w - 0.1 * (a + b) / 2, params, first, second)
    for images, _ in parts:
        variables = {"params": params, "batch_stats": batch_stats}
        _, updated = normalised(variables, images, train=True, mutable=["batch_stats"])
        batch_stats = updated["batch_stats"]
    after, _ = step(state, DATA, ORDER)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(after.batch_stats, batch_stats, rtol=1e-5, atol=1e-6)


def test_parts_take_less_memory():
    def temporaries(parts):
        step, state, _ = lowered(perceptron, init, small_config("trades"), parts, EXAMPLES)
        return step.lower(state, DATA, ORDER).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16) < 0.5 * temporaries(1)


def test_a_run_scales_its_learning_rate_and_says_so(tmp_path, capsys):
    options = {"optimizer__base_batch_size": 128, "optimizer__accumulation_steps": 2}
    config = small_config(epochs=1, optimizer__learning_rate=0.08, **options)
    train(config, str(tmp_path))
    assert "learning rate 0.02:" in capsys.readouterr().out  # 0.08 x 32 / 128
    records = read_json_lines(tmp_path / "metrics.jsonl")
    assert 0 < max(record.get("learning_rate", 0) for record in records) <= 0.02
    assert read_starts(str(tmp_path))[0]["learning_rate"] == pytest.approx(0.02)
    with pytest.raises(UsageError, match="accumulation_steps=3"):
        train(small_config(optimizer__accumulation_steps=3), str(tmp_path / "other"))
