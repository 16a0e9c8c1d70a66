"""Defences known to be broken are found out; an adversarially trained network is not accused.

Images are halved in size, at which the network of ``cnn_a`` still classifies, to keep this quick.
"""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax import attacks
from ancra_jax.attacks.diagnostics import measurements
from ancra_jax.attacks.diagnostics.api import checks_of, noticed_share, verdict
from ancra_jax.types import Outputs
from tests.attacks.test_autoattack_driver import linear
from tests.support import cnn_a
from tests.support.processes import run_on_devices

EXAMPLES = 40
EPSILON = 8 / 255
SEVERITIES = ["suspicious", "masked"]
SHORT = {"QUERIES": 150, "NOISE_DRAWS": 10, "TARGETS": 3, "LANDSCAPE_POINTS": 5}


def small_data():
    recorded = cnn_a.load()
    images = recorded.images.reshape(len(recorded.images), 16, 2, 16, 2, 3).mean(axis=(2, 4))
    labels = recorded.labels
    correct = np.asarray(recorded.model(jnp.asarray(images))).argmax(axis=1) == labels
    # More correct examples than the network usually has, so that few suffice.
    chosen = np.concatenate([np.flatnonzero(correct)[:32], np.flatnonzero(~correct)[:8]])
    return SimpleNamespace(
        images=images[chosen], labels=labels[chosen], weights=recorded.model.args[0]
    )


def shorten(patch):
    for name, value in SHORT.items():
        patch.setattr(measurements, name, value)


@pytest.fixture(scope="module", autouse=True)
def data():
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        yield small_data()


def diagnose(data, model, **settings):
    settings = {"num_steps": 20, "epsilon": EPSILON, "progress": None} | settings
    return attacks.diagnose(Partial(model, data.weights), data.images, data.labels, **settings)


def fired(diagnosis):
    return {check.name for check in diagnosis.fired}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("diagnosis")


@pytest.fixture(scope="module")
def ordinary(data, state):
    return diagnose(data, cnn_a.logits, state_path=state)


def test_an_adversarially_trained_network_is_trustworthy(data, ordinary):
    assert fired(ordinary) == set() and ordinary.verdict == "trustworthy"
    assert ordinary.clean_accuracy == 32 / 40
    not_run = {check.name for check in ordinary.checks if check.fired is None}
    assert not_run == {"adaptive attack beats AutoAttack"}
    # The curve falls from natural accuracy to nothing.
    assert ordinary.epsilons[0] == 0 and {0.5, 1.0} <= set(ordinary.epsilons)
    assert ordinary.accuracies[0] == ordinary.clean_accuracy
    assert (np.diff(ordinary.accuracies) <= 0).all() and ordinary.accuracies[-1] == 0
    # The landscape is the loss around the images, uphill along the gradient.
    offsets, losses = ordinary.landscape_offsets, ordinary.landscape_losses
    assert losses.shape == (4, 5, 5)
    np.testing.assert_allclose(offsets, np.linspace(-2 * EPSILON, 2 * EPSILON, 5), rtol=1e-6)
    model = Partial(cnn_a.logits, data.weights)
    natural = attacks.objectives.cross_entropy(model, data.labels[:4])(jnp.asarray(data.images[:4]))
    np.testing.assert_allclose(losses[:, 2, 2], natural, rtol=1e-4)
    assert (losses[:, 4, 2] > losses[:, 2, 2]).all()


def saturated(weights, images):
    return 1e4 * cnn_a.logits(weights, images)


def quantised(weights, images):
    return cnn_a.logits(weights, jnp.round(images * 7) / 7)


def masked_by_argmax(weights, images):
    """Reverse attention on the pooled features: the predicted class's weights as their mask."""
    kernel, bias = weights["fc"]
    features = cnn_a.logits(weights | {"fc": (jnp.eye(len(kernel)), jnp.zeros(1))}, images)
    first = features @ kernel + bias
    masked = features * kernel.T[jnp.argmax(first, axis=-1)]
    return Outputs(masked @ kernel + bias, first[None], features)


def with_noise(weights, images, key):
    return cnn_a.logits(weights, images + 0.1 * jax.random.normal(key, images.shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (saturated, {"zero input gradient", "accuracy under an unbounded attack"}),
        (quantised, {"zero input gradient", "gradient-free or transfer beats white-box",
                     "accuracy above chance at Linf 0.5", "loss still rises at the end"}),
        (masked_by_argmax, {"gradient-free or transfer beats white-box",
                            "adversarial iterate lost"}),
        (with_noise, {"outputs differ between calls"}),
    ],
)  # fmt: skip
def test_broken_defences_are_found_out(data, model, expected):
    found = diagnose(data, model, randomized=model is with_noise)
    assert expected <= fired(found)
    assert found.verdict == max((check.severity for check in found.fired), key=SEVERITIES.index)
    assert all(name in repr(found) for name in (found.verdict, *expected))


def test_results_from_elsewhere_are_compared(data, ordinary, state):
    everything, nothing = np.ones(EXAMPLES, bool), np.zeros(EXAMPLES, bool)

    def again(**results):  # all measurements are in the state already
        return fired(diagnose(data, cnn_a.logits, state_path=state, results=results))

    assert again(autoattack=nothing, adaptive=nothing) == set()
    assert again(pgd40=everything) == {"robust accuracy above clean accuracy"}
    half = np.arange(EXAMPLES) < 16
    assert again(autoattack=half, adaptive=nothing) == {"adaptive attack beats AutoAttack"}
    assert again(transfer=nothing) == {"gradient-free or transfer beats white-box"}
    with pytest.raises(ValueError, match=r"results\['pgd40'\].*\(3,\).*\[40\]"):
        again(pgd40=everything[:3])
    with pytest.raises(ValueError, match="num_steps=0"):
        diagnose(data, cnn_a.logits, num_steps=0)


def test_interrupted_it_continues_to_the_same_checks(data, ordinary, tmp_path):
    def stop(progress):
        if progress.round == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(data, cnn_a.logits, state_path=tmp_path, progress=stop)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == 6  # one says whose measurements these are
    second = diagnose(data, cnn_a.logits, state_path=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert second.checks == ordinary.checks
    np.testing.assert_array_equal(second.landscape_losses, ordinary.landscape_losses)
    with pytest.raises(ValueError, match=f"state_path={tmp_path} .* settings"):
        diagnose(data, cnn_a.logits, state_path=tmp_path, epsilon=0.1)
    with pytest.raises(ValueError, match=f"state_path={tmp_path} .* model"):
        diagnose(data, saturated, state_path=tmp_path)
    (tmp_path / "clean.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=f"state_path={tmp_path}: clean"):
        diagnose(data, cnn_a.logits, state_path=tmp_path)


def test_a_state_of_version_0_1_belongs_to_the_same_diagnosis(tmp_path):
    images = np.arange(96, dtype=np.float32).reshape(3, 4, 4, 2) / 96
    diagnosed = partial(attacks.diagnose, linear, images, np.arange(3), epsilon=0.5, norm="l2")
    with pytest.raises(ZeroDivisionError):
        diagnosed(num_steps=7, state_path=tmp_path, progress=lambda progress: 1 / 0)
    with np.load(tmp_path / "identity.npz") as identity:
        assert str(identity["fingerprint"]) == (
            "13ef70033ba0363c15e77c53b29e374dfe1b205054cdd1e53d296c5a7231ad50"
        )


def elsewhere():
    """Runs in a process of its own: another order, in other batches, on several devices."""
    assert jax.device_count() == 4
    shorten(pytest.MonkeyPatch())
    data = small_data()
    order = np.random.default_rng(0).permutation(EXAMPLES)
    data.images, data.labels = data.images[order], data.labels[order]
    found = diagnose(data, cnn_a.logits, indices=order, batch_size=16)
    correct = found.correct_at[np.argsort(order)].tolist()
    print(json.dumps([found.verdict, [check.value for check in found.checks], correct]))


@pytest.mark.slow
def test_batches_order_and_devices_do_not_matter(ordinary):
    code = "import tests.attacks.test_diagnostics as t; t.elsewhere()"
    verdict, values, correct = json.loads(run_on_devices(4, code)[-1])
    assert verdict == ordinary.verdict
    np.testing.assert_allclose(
        np.array(values, float), np.array([c.value for c in ordinary.checks], float), atol=1e-5
    )
    np.testing.assert_array_equal(correct, ordinary.correct_at)


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
    return {check.name for check in checks_of(measured, results) if check.fired}


def test_one_example_of_many_proves_nothing():
    assert fired_of(made_up(100, 1)) == set()
    assert fired_of(made_up(100, 2)) == {"more effort breaks more", "adversarial iterate lost"}
    assert fired_of(made_up(2000, 4)) == set()  # 0.2 %
    verdicts = [verdict(checks_of(made_up(*many), {})) for many in ((100, 1), (100, 2), (2000, 5))]
    assert verdicts == ["trustworthy", "suspicious", "masked"]


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
    check = "one step beats many"
    assert check in fired_of(made_up(100, 5)) and check not in fired_of(made_up(100, 4))
    ordinary = made_up(300, 9)
    ordinary["pgd"]["correct"] = np.arange(300) < 295
    assert check not in fired_of(ordinary)


def test_what_was_not_run_is_not_passed():
    measured = made_up(100, 0) | {"square": {}}
    by_name = {check.name: check for check in checks_of(measured, {})}
    check = by_name["gradient-free or transfer beats white-box"]
    assert check.value is None and check.fired is None
    nothing = np.zeros(100, bool)
    assert fired_of(measured, transfer=nothing) == {check.name}
    assert fired_of(measured, **{"transfer": nothing, "white-box": nothing}) == set()
    measured["clean"] = measured["clean"] | {"correct": nothing}
    assert {c.name for c in checks_of(measured, {}) if c.fired is None} >= {
        "loss still rises at the end",
        "noisy landscape",
    }
