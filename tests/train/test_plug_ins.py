"""Averaged weights, extra data and distillation in whole runs."""

import json
import shutil
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancra_jax import data, methods, models
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.suites import evaluate
from ancra_jax.methods.core import Examples
from ancra_jax.results.store import read_result
from ancra_jax.run import build as components
from ancra_jax.run import sharding
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.files import read_json_lines
from ancra_jax.run.state import TrainState, create_train_state
from ancra_jax.run.weights import load_weights
from ancra_jax.run.workdir import open_for_training
from ancra_jax.train import optim
from ancra_jax.train.loop import train
from ancra_jax.train.step import make_train_step
from tests.support.small_runs import TinyNetwork, small_config


def arrays(state):
    return jax.tree.map(np.asarray, state)


def spelled_out_step(model, method, optimizer, config, key, mesh):
    """A training step without any option, from its parts."""

    def step(state, split, permutation):
        epoch, position = jnp.divmod(state.step, 4)
        data_key, method_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = data.training_batch(
            split,
            permutation,
            position * 32,
            32,
            data_key,
            components.augmentation(config.data),
            sharding.batch_sharded(mesh),
        )
        predict = jax.tree_util.Partial(model.apply, state.variables)
        plan = method.prepare(predict, batch, method_key, epoch)
        attacked, method_state = method.attack(predict, plan.requests, state.method_state)
        examples = Examples(batch, attacked, plan.extras, method_state, epoch)

        def loss(params):
            def forward(batch_stats, images, labels):
                variables = {"params": params, "batch_stats": batch_stats}
                outputs, updated = model.apply(
                    variables, images, labels, train=True, mutable=["batch_stats"]
                )
                return outputs, updated["batch_stats"]

            terms = method.loss(forward, state.batch_stats, examples)
            return terms.loss, terms

        (value, terms), gradients = method.gradient(loss, state.params, epoch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = terms.metrics | {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        done = state.step + 1
        return TrainState(done, params, terms.batch_stats, opt_state, terms.state, {}), metrics

    return jax.jit(step, donate_argnums=0)


@pytest.mark.slow
def test_options_that_are_off_leave_the_step_as_it_is():
    config = small_config("pgd_at", data__crop_padding=1)
    splits = components.split_dataset(components.load_dataset(config.data), config)
    model, method = components.create_network(config, 10), methods.create(config)
    optimizer = optim.create(config.optimizer, 2, 4)
    mesh, key = sharding.create_mesh(jax.devices()[:1]), jax.random.key(3)
    batches = components.batch_plan(config, splits, key, jax.random.key(4), mesh)
    operands = data.put_on_device(splits.train), jnp.arange(128)

    def after_two_steps(step):
        state = create_train_state(model.init, optimizer, (8, 8, 1), jax.random.key(1), {})
        for _ in range(2):
            state, _ = step(state, *operands)
        return arrays(state)

    step = make_train_step(model.apply, method, optimizer, batches)
    spelled_out = spelled_out_step(model, method, optimizer, config, key, mesh)
    chex.assert_trees_all_equal(after_two_steps(step), after_two_steps(spelled_out))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of a run to distil from."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(small_config("natural", max_steps=2), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def plug_ins(teacher, tmp_path_factory):
    """Settings that turn everything on."""
    path = tmp_path_factory.mktemp("extra") / "extra.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=images, label=rng.integers(0, 10, 50))
    return {
        "ema__decay": 0.9,
        "swa__start_epoch": 1,
        "extra_data__path": str(path),
        "extra_data__fraction": 0.25,
        "distillation__teacher": str(teacher),
        "distillation__weight": 0.5,
    }


@pytest.fixture(scope="module")
def finished(plug_ins, tmp_path_factory):
    """An uninterrupted run with everything on, and its final state."""
    workdir = tmp_path_factory.mktemp("plug_ins") / "run"
    return workdir, arrays(train(small_config("trades_ancra", **plug_ins), str(workdir)))


@pytest.mark.slow
def test_everything_composes_and_a_run_stopped_twice_equals_an_uninterrupted_one(
    finished, plug_ins, tmp_path
):
    workdir, expected = finished
    assert int(expected.step) == 10  # 5 steps an epoch: of 32 examples 24 are the data set's own
    assert int(expected.averages["swa"]["count"]) == 2
    for stop_at in (3, 8):  # within the first epoch, and within one that begins with an average
        train(small_config("trades_ancra", max_steps=stop_at, **plug_ins), str(tmp_path))
    continued = train(small_config("trades_ancra", **plug_ins), str(tmp_path))
    chex.assert_trees_all_equal(arrays(continued), expected)

    (extra,) = (workdir / "checkpoints/10/extra").glob("metadata")
    saved = json.loads(extra.read_text())
    assert saved["image_shape"] == [8, 8, 1] and saved["class_names"] == list("0123456789")
    assert not any("teacher" in name for name in saved["checksums"])
    records = read_json_lines(workdir / "metrics.jsonl")
    losses = [record for record in records if record["kind"] == "train"]
    assert all(r["loss_distillation"] > 0 and "loss_negative_contrast" in r for r in losses)
    for record in [record for record in records if record["kind"] == "selection"]:
        for prefix in ("", "ema_", "swa_"):
            robust, natural = (record[f"{prefix}{n}_accuracy"] for n in ("robust", "natural"))
            assert 0 <= robust <= natural <= 1


@pytest.mark.slow
def test_each_of_the_weights_is_evaluated_beside_the_others(finished):
    workdir, state = finished
    config = small_config("trades_ancra")
    test = components.load_dataset(config.data).test
    images = jnp.asarray(test.images[:20] / np.float32(255))
    model = components.create_network(config, 10)
    for weights in ("raw", "ema", "swa"):
        evaluate(str(workdir), suite="quick", checkpoint="last", weights=weights, num_examples=20)
        name = "last" if weights == "raw" else f"last_{weights}"
        assert read_result(workdir / f"evaluation/{name}/natural.json")["checkpoint"] == name
        variables = jax.tree.map(jnp.asarray, state.variables_of(weights))
        predicted = model.apply(variables, images).logits.argmax(axis=-1)
        found = np.load(workdir / f"evaluation/{name}/natural.npz")["predictions"]
        np.testing.assert_array_equal(found, predicted)


def test_weights_that_a_run_does_not_keep_are_refused(teacher):
    with pytest.raises(UsageError, match=r"--weights=ema: the run in .* allowed are raw \(config"):
        evaluate(str(teacher), weights="ema")


def test_averages_do_not_touch_the_training_and_one_that_has_not_begun_is_refused(
    teacher, tmp_path
):
    averages = {"ema__decay": 0.9, "swa__start_epoch": 2}
    state = arrays(train(small_config("natural", max_steps=2, **averages), str(tmp_path)))
    mesh = sharding.create_mesh()
    model = components.create_network(small_config("natural"), 10)
    without = load_weights(str(teacher), model, (8, 8, 1), mesh, checkpoint="last").variables
    # The compiler may fuse the same arithmetic otherwise.
    chex.assert_trees_all_close(state.variables, arrays(without), rtol=1e-5, atol=1e-7)
    with pytest.raises(UsageError, match=r"--weights=swa: .*before the end of epoch 2 \(config"):
        evaluate(str(tmp_path), weights="swa", checkpoint="last")
    with pytest.raises(UsageError, match=r"has no best swa checkpoint yet"):
        evaluate(str(tmp_path), weights="swa")


def test_the_best_checkpoint_of_each_of_the_weights_is_kept(tmp_path):
    names = ("robust_accuracy", "ema_robust_accuracy", "swa_robust_accuracy")
    checkpoints = Checkpoints(tmp_path / "checkpoints", metrics=names)
    accuracies = [(0.5, 0.1), (0.3, 0.6, 0.1), (0.2, 0.2, 0.7), (0.1, 0.2, 0.1), (0.1, 0.1, 0.1)]
    for step, values in enumerate(accuracies, 1):
        checkpoints.save(step, {"step": np.int32(step)}, dict(zip(names, values, strict=False)))
    checkpoints.save(6, {"step": np.int32(6)})
    checkpoints.save(7, {"step": np.int32(7)})
    checkpoints.close()
    reopened = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert reopened.steps() == [1, 2, 3, 6, 7]
    assert [reopened.best_step(name) for name in names] == [1, 2, 3]


class OlderState(NamedTuple):
    """The train state before there were averages."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple
    method_state: dict


def test_a_run_of_an_older_version_is_continued(tmp_path):
    expected = arrays(train(small_config(), str(tmp_path / "new")))
    state = train(small_config(max_steps=3), str(tmp_path / "old"))
    saved = json.loads((tmp_path / "old/checkpoints/3/extra/metadata").read_text())
    shutil.rmtree(tmp_path / "old/checkpoints")
    checkpoints = Checkpoints(tmp_path / "old/checkpoints")
    checkpoints.save(3, OlderState(*state[:5]), None, {"epoch": 1, "data": saved["data"]})
    checkpoints.close()
    file = tmp_path / "old/config.json"
    values = json.loads(file.read_text())
    for group in ("ema", "swa", "extra_data", "distillation"):
        del values[group]
    file.write_text(json.dumps(values))
    chex.assert_trees_all_equal(arrays(train(small_config(), str(tmp_path / "old"))), expected)


def test_inputs_that_changed_are_refused(teacher, plug_ins, tmp_path):
    path, other = tmp_path / "extra.npz", tmp_path / "teacher"
    shutil.copy(plug_ins["extra_data__path"], path)
    shutil.copytree(teacher, other)
    options = {"extra_data__path": str(path), "extra_data__fraction": 0.25}
    options |= {"distillation__teacher": str(other), "distillation__weight": 0.5}
    train(small_config(max_steps=1, **options), str(tmp_path / "run"))

    def continued(**changes):
        return train(small_config(max_steps=2, **options | changes), str(tmp_path / "run"))

    with pytest.raises(UsageError, match=r"another configuration \(extra_data\.path was"):
        continued(extra_data__path=plug_ins["extra_data__path"])
    shutil.rmtree(other)
    train(small_config("natural", max_steps=1), str(other))
    with pytest.raises(UsageError, match=r"^config\.distillation\.teacher: its contents differ"):
        continued()
    shutil.rmtree(other)
    shutil.copytree(teacher, other)
    extra = np.load(path)
    np.savez(path, image=extra["image"], label=extra["label"][::-1])
    with pytest.raises(UsageError, match=r"^config\.extra_data\.path: its contents differ"):
        continued()


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((8, 8, 1), 7, r"images of shape \(8, 8, 1\) and 10 classes: .*fc/bias has shape \[7\]"),
        (
            (8, 8, 3),
            10,
            r"images of shape \(8, 8, 1\) and 10 classes: .*kernel has shape \[3, 3, 3",
        ),
        ((9, 9, 1), 10, r"was trained on images of shape \(9, 9, 1\) and the 10 classes 0, 1, 2"),
    ],
)
def test_a_teacher_of_other_classes_or_images_is_refused(tmp_path, shape, classes, message):
    config = small_config("natural", data__name="pictures")
    open_for_training(str(tmp_path / "teacher"), config)
    model = components.create_network(config, classes)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    checkpoints = Checkpoints(tmp_path / "teacher/checkpoints")
    trained_on = {"image_shape": shape, "class_names": list(map(str, range(classes)))}
    checkpoints.save(1, variables, {"robust_accuracy": 0.5}, trained_on)
    checkpoints.close()
    student = small_config(
        distillation__teacher=str(tmp_path / "teacher"), distillation__weight=0.5
    )
    with pytest.raises(UsageError, match=rf"^config\.distillation\.teacher=.*{message}"):
        train(student, str(tmp_path / "student"))
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"distillation__teacher": "/nothing/there"}, r"teacher=/nothing/there: holds no run"),
        (
            {"distillation__teacher_weights": "swa"},
            r"teacher_weights=swa: the run in .* allowed are",
        ),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(teacher, tmp_path, choice, message):
    options = {"distillation__teacher": str(teacher), "distillation__weight": 0.5} | choice
    with pytest.raises(UsageError, match=rf"^config\.distillation\.{message}"):
        train(small_config(**options), str(tmp_path / "student"))


@models.register("plain_tiny")
def _plain_tiny(*, reverse_attention, width, **options):
    del reverse_attention
    return TinyNetwork(width=width, **options)


def test_attention_on_a_network_without_it_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"reverse_attention=True: the network 'plain_tiny' has no"
    ):
        train(small_config("trades_ra", model__name="plain_tiny"), str(tmp_path / "run"))
