"""Averaged weights, extra data and distillation in whole runs."""

import json
import shutil

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import evaluate, models
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.suites import SUITES
from ancra_jax.ops.files import read_arrays, read_json_lines
from ancra_jax.results.store import read_result
from ancra_jax.run import build, sharding
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.trained import load
from ancra_jax.run.weights import find_weights
from ancra_jax.run.workdir import open_for_training
from ancra_jax.train.loop import Training, train
from ancra_jax.types import Outputs
from tests.support.reference_weights import random_variables
from tests.support.small_runs import TinyNetwork, arrays, small_config


def program(**settings):
    """The training step of a configuration, as JAX hands it to the compiler."""
    config = small_config("pgd_at", data__crop_padding=1, **settings)
    training = Training(config, sharding.create_mesh(jax.devices()[:1]))
    operands = training.abstract_state, training.train_data, jnp.arange(128)
    return training.step.lower(*operands).as_text()


def test_options_that_are_off_leave_the_step_as_it_is():
    plain = program()
    others = {
        "negative_contrast__alpha": 0.3,
        "negative_contrast__strategy": "hard",
        "awp__warmup_epochs": 0,
        "udr__interval": 7,
        "self_adaptive__momentum": 0.5,
        "second_order__weight": 0.5,
        "distillation__temperature": 2.0,
        "extra_data__same_steps": True,
    }
    assert program(**others) == plain
    assert program(ema__decay=0.9) != plain  # so the texts tell programs apart


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of a run to distil from."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(small_config("natural", max_steps=2), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def options(teacher, extra_data):
    """Settings that turn everything on."""
    averages = {"ema__decay": 0.9, "swa__start_epoch": 1}
    distillation = {"distillation__teacher": str(teacher), "distillation__weight": 0.5}
    return averages | extra_data | distillation | {"model__batch_norm_parts": 2}


@pytest.fixture(scope="module")
def all_on(options, tmp_path_factory):
    """An uninterrupted run with everything on, and its final state."""
    workdir = tmp_path_factory.mktemp("options") / "run"
    return workdir, arrays(train(small_config("trades_ancra", **options), str(workdir)))


@pytest.mark.slow
def test_everything_composes_and_a_run_stopped_twice_equals_an_uninterrupted_one(
    all_on, options, tmp_path
):
    workdir, expected = all_on
    assert int(expected.step) == 10  # 5 steps an epoch: of 32 examples 24 are the data set's own
    assert int(expected.averages["swa"]["count"]) == 2
    for stop_at in (3, 8):  # within the first epoch, and within one that begins with an average
        train(small_config("trades_ancra", max_steps=stop_at, **options), str(tmp_path))
    continued = train(small_config("trades_ancra", **options), str(tmp_path))
    chex.assert_trees_all_equal(arrays(continued), expected)

    saved = json.loads((workdir / "checkpoints/10/extra/metadata").read_text())
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
def test_each_of_the_weights_is_evaluated_beside_the_others(all_on, monkeypatch):
    monkeypatch.setitem(SUITES, "quick", ("natural",))
    workdir, state = all_on
    config = small_config("trades_ancra")
    images = jnp.asarray(build.load_dataset(config.data).test.images[:20] / np.float32(255))
    network = build.create_network(config, 10)
    for weights in ("raw", "ema", "swa"):
        evaluate.run(
            str(workdir), suite="quick", checkpoint="last", weights=weights, num_examples=20
        )
        name = "last" if weights == "raw" else f"last_{weights}"
        assert read_result(workdir / f"evaluation/{name}/natural.json")["checkpoint"] == name
        variables = jax.tree.map(jnp.asarray, state.variables_of(weights))
        predicted = network.apply(variables, images).logits.argmax(axis=-1)
        found = read_arrays(workdir / f"evaluation/{name}/natural.npz")["predictions"]
        np.testing.assert_array_equal(found, predicted)


def test_extra_examples_may_stay_on_the_host(extra_data, tmp_path):
    options = {"max_steps": 1, **extra_data}
    on_device, on_host = (
        arrays(train(small_config("natural", **options, **more), str(tmp_path / str(len(more)))))
        for more in ({}, {"extra_data__on_host": True})
    )
    chex.assert_trees_all_close(on_host, on_device, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"on_host=True: .*swa\.start_epoch=1"):
        small_config("natural", extra_data__on_host=True, swa__start_epoch=1, **extra_data)


def test_an_epoch_may_have_as_many_steps_as_without_extra_data(extra_data):
    mesh = sharding.create_mesh(jax.devices()[:1])
    for same_steps, steps in ((False, 5), (True, 4)):  # 128 examples by 24, or by 32
        config = small_config("natural", extra_data__same_steps=same_steps, **extra_data)
        assert Training(config, mesh).steps_per_epoch == steps


def test_helpers_get_the_teacher_and_nothing_is_distilled(teacher):
    config = small_config("hat", distillation__teacher=str(teacher))
    training = Training(config, sharding.create_mesh(jax.devices()[:1]))
    operands = training.data_at(0), jnp.arange(128), training.teacher
    _, metrics = jax.eval_shape(training.step, training.abstract_state, *operands)
    assert "loss_helper" in metrics and "loss_distillation" not in metrics


def test_weights_that_a_run_does_not_keep_are_refused(teacher):
    with pytest.raises(UsageError, match=r"--weights=ema: .* raw "):
        evaluate.run(str(teacher), weights="ema")


def test_averages_do_not_touch_the_training_and_one_that_has_not_begun_is_refused(
    teacher, tmp_path
):
    averages = {"ema__decay": 0.9, "swa__start_epoch": 2}
    state = arrays(train(small_config("natural", max_steps=2, **averages), str(tmp_path)))
    network, mesh = build.create_network(small_config("natural"), 10), sharding.create_mesh()
    without = find_weights(str(teacher), checkpoint="last").load(network, (8, 8, 1), mesh)
    # The compiler may fuse the same arithmetic otherwise.
    chex.assert_trees_all_close(state.variables_of("raw"), arrays(without), rtol=1e-5, atol=1e-7)
    with pytest.raises(UsageError, match=r"--weights=swa: .* epoch 2 "):
        evaluate.run(str(tmp_path), weights="swa", checkpoint="last")
    with pytest.raises(UsageError, match="best swa checkpoint"):
        evaluate.run(str(tmp_path), weights="swa")


def test_a_run_of_an_older_version_is_continued(finished, tmp_path):
    """Before there were averages, neither the state nor the configuration had them."""
    state = train(small_config(max_steps=3), str(tmp_path))
    saved = json.loads((tmp_path / "checkpoints/3/extra/metadata").read_text())
    shutil.rmtree(tmp_path / "checkpoints")
    older = {name: value for name, value in state._asdict().items() if name != "averages"}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, older, None, {"epoch": 1, "data": saved["data"]})
    checkpoints.close()
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    for group in ("ema", "swa", "extra_data", "distillation"):
        del values[group]
    file.write_text(json.dumps(values))
    chex.assert_trees_all_equal(arrays(train(small_config(), str(tmp_path))), finished[1])


def test_inputs_that_changed_are_refused(teacher, extra_data, tmp_path):
    path, other = tmp_path / "extra.npz", tmp_path / "teacher"
    shutil.copy(extra_data["extra_data__path"], path)
    shutil.copytree(teacher, other)
    options = extra_data | {"extra_data__path": str(path)}
    options |= {"distillation__teacher": str(other), "distillation__weight": 0.5}
    train(small_config(max_steps=1, **options), str(tmp_path / "run"))

    def continued(**changes):
        return train(small_config(max_steps=2, **options | changes), str(tmp_path / "run"))

    with pytest.raises(UsageError, match=r"--workdir=.*extra_data\.path was"):
        continued(**extra_data)
    shutil.rmtree(other)
    train(small_config("natural", max_steps=1), str(other))
    with pytest.raises(UsageError, match=r"^--config\.distillation\.teacher: .*fingerprint"):
        continued()
    shutil.rmtree(other)
    shutil.copytree(teacher, other)
    extra = read_arrays(path)
    np.savez(path, image=extra["image"], label=extra["label"][::-1])
    with pytest.raises(UsageError, match=r"^--config\.extra_data\.path: .*fingerprint"):
        continued()


def test_a_saved_network_teaches_as_its_run_does(teacher, tmp_path):
    file = str(tmp_path / "teacher.safetensors")
    load(teacher).save(file)
    states = [
        train(
            small_config(max_steps=2, distillation__teacher=str(path), distillation__weight=0.5),
            str(tmp_path / f"student{number}"),
        )
        for number, path in enumerate((teacher, file))
    ]
    chex.assert_trees_all_equal(*map(arrays, states))


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((8, 8, 1), 7, r"\(8, 8, 1\) and the 7 classes 0, 1, 2"),
        ((8, 8, 3), 10, r"\(8, 8, 3\) and the 10 classes 0, 1, 2"),
        ((9, 9, 1), 10, r"\(9, 9, 1\) and the 10 classes 0, 1, 2"),
    ],
)
def test_a_teacher_of_other_classes_or_images_is_refused(tmp_path, shape, classes, message):
    config = small_config("natural", data__name="pictures")
    open_for_training(str(tmp_path / "teacher"), config)
    network = build.create_network(config, classes)
    variables = random_variables(network, shape)
    checkpoints = Checkpoints(tmp_path / "teacher/checkpoints")
    trained_on = {"image_shape": shape, "class_names": list(map(str, range(classes)))}
    checkpoints.save(1, variables, {"robust_accuracy": 0.5}, trained_on)
    checkpoints.close()
    distillation = {"distillation__teacher": str(tmp_path / "teacher"), "distillation__weight": 0.5}
    with pytest.raises(UsageError, match=rf"^--config\.distillation\.teacher=.*{message}"):
        train(small_config(**distillation), str(tmp_path / "student"))
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"distillation__teacher": "/nothing/there"}, r"teacher=/nothing/there: "),
        ({"distillation__teacher": "cifar10-trades-w8"}, r"teacher=cifar10-trades-w8: .* must be"),
        ({"distillation__teacher_weights": "swa"}, r"teacher_weights=swa: .* raw "),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(teacher, tmp_path, choice, message):
    options = {"distillation__teacher": str(teacher), "distillation__weight": 0.5} | choice
    with pytest.raises(UsageError, match=rf"^--config\.distillation\.{message}"):
        train(small_config(**options), str(tmp_path / "student"))


@models.register("plain_tiny")
def _plain_tiny(*, reverse_attention, width, **options):
    del reverse_attention
    return TinyNetwork(width=width, **options)


def test_attention_on_a_network_without_it_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"model\.reverse_attention=True: .*'plain_tiny'"):
        train(small_config("trades_ra", model__name="plain_tiny"), str(tmp_path / "run"))


@models.register("dense{returned}")
def _dense(*, num_classes, width, reverse_attention, dtype, returned):
    return Dense(num_classes, returned)


class Dense(nn.Module):
    """No batch normalisation; returns the logits alone, or fewer than there are classes."""

    num_classes: int
    returned: int

    @nn.compact
    def __call__(self, images, labels=None, *, train=False):
        features = images.reshape(len(images), -1)
        if not self.returned:
            return nn.Dense(self.num_classes)(features)
        logits = nn.Dense(self.returned)(features)
        return Outputs(logits, jnp.zeros((0, *logits.shape)), features)


@pytest.mark.parametrize(("returned", "message"), [(0, "types.Outputs"), (7, r"\(1, 7\)")])
def test_a_network_that_returns_something_else_is_refused(tmp_path, returned, message):
    name = f"dense{returned}"
    with pytest.raises(UsageError, match=rf"^--config\.model\.name='{name}': .*{message}"):
        train(small_config(model__name=name), str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"^--config\.model\.mean=\(0\.5, 0\.5\): "):
        train(small_config(model__mean=(0.5, 0.5), model__std=(1, 1)), str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"^--config\.model\.width=1000000: .*weights"):
        train(small_config(model__width=10**6), str(tmp_path / "run"))
    for field in ("attack.step_size", "evaluation.epsilon"):
        settings = {field.replace(".", "__"): 9.0}
        settings |= {f"{group}__norm": "l2" for group in ("attack", "evaluation")}
        with pytest.raises(UsageError, match=rf"^--config\.{field}=9\.0: .* at most 8,"):
            train(small_config(**settings), str(tmp_path / "run"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"activation": "silu"}, r"activation='silu'"),
        ({"mean": (0.5,), "std": (0.5,)}, r"(mean|std)=\(0\.5,\)"),
        ({"batch_norm_momentum": 0.5}, r"batch_norm_momentum=0\.5"),
        ({"batch_norm_parts": 2}, "batch_norm_parts=2"),
        ({"name": "wide_resnet11_1"}, "name='wide_resnet11_1'"),
        ({"name": "wide_resnet16_0"}, "name='wide_resnet16_0'"),
    ],
)
def test_what_a_network_cannot_be_made_with_is_named(settings, field):
    named = {f"model__{name}": value for name, value in ({"name": "dense10"} | settings).items()}
    with pytest.raises(UsageError, match=rf"^--config\.model\.{field}: "):
        build.create_network(small_config(**named), 10)


def test_a_network_without_batch_normalisation_starts_from_a_file(tmp_path):
    config = small_config(model__name="dense10", max_steps=1)
    train(config, str(tmp_path / "first"))
    load(tmp_path / "first").save(tmp_path / "net.safetensors")
    settings = {"init_from": str(tmp_path / "net.safetensors"), "optimizer__learning_rate": 1e-20}
    more = small_config(model__name="dense10", max_steps=1, **settings)
    state = train(more, str(tmp_path / "second"))
    there = load(tmp_path / "first").variables["params"]
    chex.assert_trees_all_close(state.params, there, atol=1e-12)
