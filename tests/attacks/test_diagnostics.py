"""Defences known to be broken are found out; an adversarially trained network is not accused.

Images are halved in size, at which the network of ``cnn_a`` still classifies, to keep this quick.
"""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax import attacks
from ancra_jax.attacks.diagnostics import landscape as diagnostics_landscape
from ancra_jax.attacks.diagnostics import measurements
from ancra_jax.attacks.diagnostics.checks import Row, noticed_share, rows_of, verdict
from tests.support import ENVIRONMENT, cnn_a

EXAMPLES = 40
EPSILON = 8 / 255


def small_data():
    recorded = cnn_a.load()
    images = recorded.images.reshape(len(recorded.images), 16, 2, 16, 2, 3).mean(axis=(2, 4))
    labels = recorded.labels
    correct = np.asarray(recorded.logits_fn(jnp.asarray(images))).argmax(axis=1) == labels
    # More correct examples than the network usually has, so that few suffice.
    chosen = np.concatenate([np.flatnonzero(correct)[:32], np.flatnonzero(~correct)[:8]])
    return SimpleNamespace(
        images=images[chosen], labels=labels[chosen], weights=recorded.logits_fn.args[0]
    )


def shorten(patch):
    patch.setattr(measurements, "QUERIES", 150)
    patch.setattr(diagnostics_landscape, "NOISE_DRAWS", 10)
    patch.setattr(measurements, "TARGETS", 3)
    patch.setattr(diagnostics_landscape, "LANDSCAPE_POINTS", 5)


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module", autouse=True)
def short():
    patch = pytest.MonkeyPatch()
    shorten(patch)
    yield
    patch.undo()


def diagnose(data, logits_fn, **settings):
    settings = {"num_steps": 20, "epsilon": EPSILON, "progress": None} | settings
    return attacks.diagnose(Partial(logits_fn, data.weights), data.images, data.labels, **settings)


def fired(diagnosis):
    return {row.name for row in diagnosis.fired}


@pytest.fixture(scope="module")
def ordinary(data):
    return diagnose(data, cnn_a.logits_fn)


def test_an_adversarially_trained_network_is_trustworthy(ordinary):
    assert fired(ordinary) == set()
    assert ordinary.verdict == "trustworthy"
    assert ordinary.clean_accuracy == 32 / 40
    not_run = {row.name for row in ordinary.rows if row.fired is None}
    assert not_run == {"adaptive attack beats AutoAttack"}


def test_the_curve_falls_from_clean_accuracy_to_nothing(ordinary):
    assert ordinary.epsilons[0] == 0 and {0.5, 1.0} <= set(ordinary.epsilons)
    assert ordinary.accuracies[0] == ordinary.clean_accuracy
    assert (np.diff(ordinary.accuracies) <= 0).all()
    assert ordinary.accuracies[-1] == 0


def test_the_landscape_is_the_loss_around_the_images(data, ordinary):
    offsets, losses = ordinary.landscape_offsets, ordinary.landscape_losses
    assert losses.shape == (4, 5, 5)
    np.testing.assert_allclose(offsets, np.linspace(-2 * EPSILON, 2 * EPSILON, 5), rtol=1e-6)
    model = Partial(cnn_a.logits_fn, data.weights)
    natural = attacks.objectives.cross_entropy(model, data.labels[:4])(jnp.asarray(data.images[:4]))
    np.testing.assert_allclose(losses[:, 2, 2], natural, rtol=1e-4)
    assert (losses[:, 4, 2] > losses[:, 2, 2]).all()  # uphill along the gradient


def saturated(weights, images):
    return 1e4 * cnn_a.logits_fn(weights, images)


def test_saturated_logits(data):
    found = diagnose(data, saturated)
    assert found.verdict == "masked"
    assert {"zero input gradient", "accuracy under an unbounded attack"} <= fired(found)


def quantised(weights, images):
    return cnn_a.logits_fn(weights, jnp.round(images * 7) / 7)


def test_quantised_input(data):
    found = diagnose(data, quantised)
    assert found.verdict == "masked"
    assert {
        "zero input gradient",
        "gradient-free or transfer beats white-box",
        "accuracy above chance at Linf 0.5",
        "loss still rises at the end",
    } <= fired(found)


def gated(weights, images):
    """Reverse attention on the pooled features: the predicted class's weights as their mask."""
    kernel, bias = weights["fc"]
    features = cnn_a.logits_fn(weights | {"fc": (jnp.eye(len(kernel)), jnp.zeros(1))}, images)
    first = features @ kernel + bias
    return SimpleOutputs(
        (features * kernel.T[jnp.argmax(first, axis=-1)]) @ kernel + bias, first[None]
    )


class SimpleOutputs(tuple):
    """Logits and auxiliary logits, by name."""

    def __new__(cls, *fields):
        return super().__new__(cls, fields)

    logits = property(lambda self: self[0])
    aux_logits = property(lambda self: self[1])


jax.tree_util.register_pytree_node(
    SimpleOutputs, lambda outputs: (tuple(outputs), None), lambda _, fields: SimpleOutputs(*fields)
)


def test_an_argmax_gated_head(data):
    found = diagnose(data, gated)
    assert found.verdict == "masked"
    assert {
        "gradient-free or transfer beats white-box",
        "adversarial iterate lost",
    } <= fired(found)


def with_noise(weights, images, key):
    return cnn_a.logits_fn(weights, images + 0.1 * jax.random.normal(key, images.shape))


def test_random_noise_with_a_key(data):
    found = diagnose(data, with_noise, randomized=True)
    assert found.verdict in ("suspicious", "masked")
    assert "outputs differ between calls" in fired(found)


def test_hidden_random_noise(data):
    generator = np.random.default_rng(0)

    def hidden(weights, images):
        noise = generator.standard_normal(images.shape).astype(np.float32)
        return cnn_a.logits_fn(weights, images + 0.1 * noise)

    found = diagnose(data, hidden)
    assert found.verdict in ("suspicious", "masked")
    assert "outputs differ between calls" in fired(found)


def test_results_from_elsewhere_are_compared(data, tmp_path):
    clean = diagnose(data, cnn_a.logits_fn, state_path=tmp_path)
    everything, nothing = np.ones(EXAMPLES, bool), np.zeros(EXAMPLES, bool)

    def again(**results):  # all measurements are in the state already
        return fired(diagnose(data, cnn_a.logits_fn, state_path=tmp_path, results=results))

    assert again(autoattack=nothing, adaptive=nothing) == fired(clean) == set()
    assert again(pgd40=everything) == {"robust accuracy above clean accuracy"}
    half = np.arange(EXAMPLES) < 16
    assert again(autoattack=half, adaptive=nothing) == {"adaptive attack beats AutoAttack"}
    assert again(transfer=nothing) == {"gradient-free or transfer beats white-box"}
    with pytest.raises(ValueError, match=r"results\['pgd40'\] has shape \(3,\): expected \[40\]"):
        again(pgd40=everything[:3])


def test_interrupted_it_continues_to_the_same_rows(data, ordinary, tmp_path, monkeypatch):
    def interrupted(job, known):
        raise KeyboardInterrupt

    original = measurements.MEASUREMENTS["apgd"]
    monkeypatch.setitem(measurements.MEASUREMENTS, "apgd", interrupted)
    with pytest.raises(KeyboardInterrupt):
        diagnose(data, cnn_a.logits_fn, state_path=tmp_path)
    monkeypatch.setitem(measurements.MEASUREMENTS, "apgd", original)
    monkeypatch.setitem(measurements.MEASUREMENTS, "pgd", interrupted)  # is known by now
    second = diagnose(data, cnn_a.logits_fn, state_path=tmp_path)
    assert second.rows == ordinary.rows
    np.testing.assert_array_equal(second.landscape_losses, ordinary.landscape_losses)
    with pytest.raises(ValueError, match="other images, labels or settings"):
        diagnose(data, cnn_a.logits_fn, state_path=tmp_path, epsilon=0.1)
    with pytest.raises(ValueError, match="another model"):
        diagnose(data, reordered, state_path=tmp_path)
    (tmp_path / "clean.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"clean\.npz is not readable"):
        diagnose(data, cnn_a.logits_fn, state_path=tmp_path)


def reordered(weights, images):
    return jnp.flip(cnn_a.logits_fn(weights, images), axis=-1)


def values(diagnosis):
    return [row.value if row.value is not None else -1.0 for row in diagnosis.rows]


def test_batches_and_order_do_not_matter(data, ordinary):
    order = np.random.default_rng(0).permutation(EXAMPLES)
    shuffled = SimpleNamespace(
        images=data.images[order], labels=data.labels[order], weights=data.weights
    )
    other = diagnose(shuffled, cnn_a.logits_fn, indices=order, batch_size=16)
    np.testing.assert_allclose(values(other), values(ordinary), atol=1e-5)
    np.testing.assert_array_equal(other.correct_at, ordinary.correct_at[order])
    assert other.verdict == ordinary.verdict


@pytest.mark.slow
def test_devices_do_not_matter(data, ordinary):
    code = """
import json
import jax, pytest
import tests.attacks.test_diagnostics as t
t.shorten(pytest.MonkeyPatch())
assert jax.device_count() == 4
found = t.diagnose(t.small_data(), t.cnn_a.logits_fn)
print(json.dumps([found.verdict, t.values(found)]))
"""
    environment = ENVIRONMENT | {
        "JAX_NUM_CPU_DEVICES": "4",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    verdict, found = json.loads(done.stdout.splitlines()[-1])
    assert verdict == ordinary.verdict
    np.testing.assert_allclose(found, values(ordinary), atol=1e-5)


def test_bad_input_is_named(data):
    model = Partial(cnn_a.logits_fn, data.weights)
    with pytest.raises(ValueError, match="images is empty"):
        attacks.diagnose(model, data.images[:0], data.labels[:0], epsilon=EPSILON)
    with pytest.raises(ValueError, match=r"epsilon=-1\.0"):
        attacks.diagnose(model, data.images, data.labels, epsilon=-1.0)
    with pytest.raises(ValueError, match="num_steps=0"):
        attacks.diagnose(model, data.images, data.labels, epsilon=0.1, num_steps=0)


def made_up(count, lost):
    """Measurements of a network without signs, but for so many examples in three of them."""
    flags = np.arange(count) < lost
    no, yes = np.zeros(count, bool), np.ones(count, bool)
    return {
        "clean": {"correct": yes, "classes": np.array([10]), "difference": np.zeros(1)},
        "fgsm": {"correct": ~flags},
        "pgd": {"correct": yes, "met": flags, "loss": np.minimum(np.arange(41.0), 9) + no[:, None]},
        "gradient": {"zero": no},
        "noise": {"change": np.zeros(count)},
        "apgd": {"broken": no, "claimed": no},
        "longer": {"broken": no, "claimed": no},
        "restarted": {"broken": flags, "claimed": flags},
        "targeted": {"broken": no},
        "heads": {},
        "square": {"broken": flags},
        "curve": {"correct": np.stack([yes, no, no], axis=1)},
    }


def fired_of(measured, **results):
    return {row.name for row in rows_of(measured, results) if row.fired}


def test_one_example_of_many_proves_nothing():
    assert fired_of(made_up(100, 1)) == set()
    assert fired_of(made_up(100, 2)) == {"more effort breaks more", "adversarial iterate lost"}
    assert fired_of(made_up(2000, 4)) == set()  # 0.2 %
    assert verdict(rows_of(made_up(2000, 5), {})) == "masked"


@pytest.mark.parametrize("count", [20, 200, 5000])
def test_the_share_that_is_noticed(count):
    share = noticed_share(count)
    fires = max(2, count // 500 + 1)  # two examples, or more than 0.2 %
    assert fired_of(made_up(count, fires)) and not fired_of(made_up(count, fires - 1))
    assert fires / count < share
    draws = np.random.default_rng(0).binomial(count, share, 100_000)
    assert np.mean(draws < fires) == pytest.approx(0.05, abs=0.003)
    assert noticed_share(1) == pytest.approx(1)  # a single example never fires


def test_one_step_has_to_beat_many_by_more_than_chance():
    """Of 300 examples FGSM alone broke 4 and PGD alone 15 of an ordinary network's."""
    row = "one step beats many"
    assert row in fired_of(made_up(100, 5)) and row not in fired_of(made_up(100, 4))
    ordinary = made_up(300, 9)
    ordinary["pgd"]["correct"] = np.arange(300) < 295
    assert row not in fired_of(ordinary)


def test_what_was_not_run_is_not_passed():
    measured = made_up(100, 0) | {"square": {}}
    by_name = {row.name: row for row in rows_of(measured, {})}
    row = by_name["gradient-free or transfer beats white-box"]
    assert row.value is None and row.fired is None
    nothing, everything = np.zeros(100, bool), np.ones(100, bool)
    assert fired_of(measured, transfer=nothing) == {row.name}
    parts = {"transfer": nothing, "white-box": nothing}
    assert fired_of(measured, **parts) == set()
    measured["clean"] = measured["clean"] | {"correct": ~everything}
    assert {r.name for r in rows_of(measured, {}) if r.fired is None} >= {
        "loss still rises at the end",
        "noisy landscape",
    }


def test_the_verdict_is_that_of_the_gravest_row():
    passed = Row("a", 0.0, 1.0, False, "masked", "")
    not_run = dataclasses.replace(passed, value=None, fired=None)
    suspicious = Row("b", 2.0, 1.0, True, "suspicious", "")
    masked = Row("c", 2.0, 1.0, True, "masked", "")
    assert verdict([passed, not_run]) == "trustworthy"
    assert verdict([passed, suspicious]) == "suspicious"
    assert verdict([suspicious, masked, passed]) == "masked"
